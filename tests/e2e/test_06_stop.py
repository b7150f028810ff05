"""Stops: what is accepted is answered, then all exit with 0."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import pytest

from .conftest import wait_until, write_model
from .test_04_health import SLOW


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_in_flight(start, tmp_path, number):
    server = start(MODEL=write_model(tmp_path / "slow", SLOW), MULES=2).wait_ready()
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(server.predict, {"seconds": 0.5}) for _ in range(8)]
        wait_until(lambda: all(replica["busy_s"] > 0 for replica in server.ready()["replicas"]), "all are busy", 5)
        assert server.stop(number) == 0
        assert [answer.result().status for answer in answers] == [200] * 8
    with pytest.raises((OSError, HTTPException)):
        server.predict({"seconds": 0})


def test_a_stop_is_bounded(start, tmp_path):
    source = SLOW.replace('inputs["seconds"])\n        return', "100)\n        return").replace(
        "time.sleep(100)", "inputs['seconds'] and time.sleep(100)"
    )
    environ = {"SERVING_DEADLINE_MS": 1000, "SERVING_STOP_TIMEOUT_S": 3}
    server = start(MODEL=write_model(tmp_path / "endless", source), MULES=1, **environ).wait_ready()
    assert server.predict({"seconds": 1}).status == 504
    assert server.stop() == 0
    assert "stopped" in server.output


def test_uwsgi_alone_finishes_what_it_accepted(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "slow", SLOW), MULES=2).wait_ready()
    (master,) = server.processes()["master"]
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(server.predict, {"seconds": 0.3}) for _ in range(8)]
        wait_until(lambda: all(replica["busy_s"] > 0 for replica in server.ready()["replicas"]), "all are busy", 5)
        os.kill(master, signal.SIGTERM)
        assert [answer.result().status for answer in answers] == [200] * 8
    assert server.process.wait(20) == 1
    assert "uwsgi ended by itself" in server.output
