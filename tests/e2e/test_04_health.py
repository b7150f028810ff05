"""Health: ready means ready, and it is told while everything else is busy."""

import os
import signal
import threading
import time
from pathlib import Path

from .conftest import FANCY, cpu_s, descendants, wait_until, write_model

SLOW = """
import time

class Model:
    inputs = {"seconds": "float64"}
    outputs = {"slept": "float64"}
    batched = False

    def __init__(self, path):
        pass

    def predict(self, inputs):
        time.sleep(inputs["seconds"])
        return {"slept": inputs["seconds"]}
"""


def test_readyz_tells_each_replica(fancy):
    answer = fancy.request("GET", "/readyz")
    assert answer.status == 200
    ready = answer.json
    assert ready["status"] == "ready" and ready["ready_replicas"] == 4
    assert ready["model"]["signature"]["inputs"] == [{"name": "text", "dtype": "string", "shape": []}]
    mules = fancy.processes()["mule"]
    assert [replica["id"] for replica in ready["replicas"]] == [1, 2, 3, 4]
    for replica in ready["replicas"]:
        assert replica["pid"] in mules
        assert (replica["state"], replica["ready"], replica["version"]) == ("ready", True, 1)
        assert 0 <= replica["heartbeat_age_s"] < 3
        assert replica["last_error"] == ""


def test_healthz_tells_that_the_process_is_up(fancy):
    answer = fancy.request("GET", "/healthz")
    assert (answer.status, answer.json) == (200, {"status": "up"})


def test_health_answers_while_every_prediction_thread_is_busy(start, tmp_path):
    model = write_model(tmp_path / "slow", SLOW)
    server = start(MODEL=model, MULES=1, WORKERS=3, THREADS=2, SERVING_DEADLINE_MS=4000).wait_ready()
    answers = []
    # two workers of two threads, and as many again
    clients = [
        threading.Thread(target=lambda: answers.append(server.predict({"seconds": 0.4}).status)) for _ in range(8)
    ]
    for client in clients:
        client.start()
    busy = wait_until(lambda: server.ready()["replicas"][0]["busy_s"] > 0, "the replica is busy", 5)
    assert busy
    told = [server.request("GET", path).status for path in ("/healthz", "/readyz") * 10]
    # all of them were told before the predictions were
    assert told == [200] * 20
    assert len(answers) < 8
    for client in clients:
        client.join()
    assert set(answers) == {200, 503} and answers.count(200) >= 4


def test_replicas_and_spare_that_are_all_stopped_are_not_ready_and_are_again_when_they_go_on(start):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    pids = server.processes()["mule"]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: server.request("GET", "/readyz").status == 503, "their silence is noticed", 10)
    assert server.ready()["replicas"][0]["heartbeat_age_s"] >= 3
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: server.request("GET", "/readyz").status == 200, "it is ready again", 10)


def test_a_replica_that_was_killed_is_replaced(start):
    server = start(MODEL=FANCY, MULES=2).wait_ready()
    victim = server.ready()["replicas"][0]["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: (
            victim not in [replica["pid"] for replica in server.ready()["replicas"]]
            and server.ready()["ready_replicas"] == 2
        ),
        "a successor is ready",
        15,
    )
    assert server.predict({"text": "x"}).status == 200


def test_requests_wait_for_a_model_only_when_one_has_ever_been_ready(start, tmp_path):
    source = SLOW.replace(
        "        pass", "        while not __import__('os').path.exists(path + '/go'): time.sleep(0.05)"
    )
    model = write_model(tmp_path / "late", source)
    server = start(MODEL=model, MULES=1)

    def refused():
        try:
            return server.predict({"seconds": 0})
        except OSError:
            return None

    # until the workers are up it is "unavailable"
    loading = lambda: (found := refused()) and found.json["code"] == "model_loading" and found  # noqa: E731
    answer = wait_until(loading, "a refusal")
    assert answer.status == 503 and answer.headers["retry-after"] == "2"
    wait_until(lambda: server.ready()["replicas"][0]["state"] == "loading", "the replica loads", 5)
    (model / "go").touch()
    server.wait_ready()
    assert server.predict({"seconds": 0}).status == 200


def test_only_replicas_hold_an_ml_framework(digits):
    def frameworks(pid):
        maps = Path(f"/proc/{pid}/maps").read_text()
        return {name for name in ("tensorflow", "keras", "sklearn", "torch", "h5py") if f"/{name}" in maps}

    roles = digits.processes()
    ready = digits.ready()
    replicas, spare = [replica["pid"] for replica in ready["replicas"]], ready["spare"]["pid"]
    assert len(roles["worker"]) >= 3 and sorted(roles["mule"]) == sorted([*replicas, spare]) and len(replicas) == 2
    assert all(not frameworks(pid) for pid in [*roles["master"], *roles["worker"], spare])
    assert all("tensorflow" in frameworks(pid) for pid in replicas)


def test_an_idle_server_uses_less_than_a_hundredth_of_a_core(digits):
    pids = descendants(digits.process.pid)

    def used():
        before, start = cpu_s(pids), time.monotonic()
        time.sleep(10)
        return (cpu_s(pids) - before) / (time.monotonic() - start)

    # a machine that others share may be slow for some seconds
    assert any(used() < 0.01 for _ in range(3))
