"""Workers: where they run and what each takes on; what a dead one held is sent to another, and no client notices."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from .conftest import wait_until, write_model
from .test_04_health import SLOW

BLOB = SLOW.replace('"float64"}', '"float64", "text": "string"}', 1).replace(
    'return {"slept": inputs["seconds"]}', 'return {"slept": len(inputs["text"])}'
)


def holders(server):
    """For each request that is in the workers, accepted and not answered, the pid of its worker."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    # state 03 is connected
    connected = [line for line in lines if line[5] == "03" and len(line) == 8]
    mine = {
        f"socket:[{inode}]"
        for *_, inode, path in connected
        if path.startswith(str(server.run_dir)) and path.endswith("/predict.sock")
    }
    found = []
    for pid in server.prediction_workers():
        with suppress(OSError):
            found += [pid for file in Path(f"/proc/{pid}/fd").iterdir() if str(file.readlink()) in mine]
    return found


def shares(server):
    """How many requests each worker holds."""
    found = holders(server)
    return [found.count(pid) for pid in server.prediction_workers()]


def hold_several(server, pids):
    found = holders(server)
    return all(found.count(pid) >= 3 for pid in pids)


@pytest.fixture
def serve(start, tmp_path):
    """Starts a server of a slow model."""
    return lambda source=SLOW, **environ: start(MODEL=write_model(tmp_path / "slow", source), **environ).wait_ready()


def kill(server, victims):
    # all at once: none of them is sent what the one before it held
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for victim in set(victims):
            os.kill(victim, number)
    wait_until(lambda: not set(victims) & set(server.processes()["worker"]), "they are dead", 10)


@pytest.mark.parametrize("count", [1, 2])
def test_every_request_that_a_killed_worker_held_is_answered(serve, count):
    server = serve(MULES=4, WORKERS=3, THREADS=8)
    (health,) = set(server.processes()["worker"]) - set(server.prediction_workers())
    for _ in range(3):
        wait_until(lambda: len(server.prediction_workers()) == 2, "both workers", 10)
        with ThreadPoolExecutor(16) as clients:
            # one for each thread
            answers = [clients.submit(server.predict, {"seconds": 0.3 + number / 1000}) for number in range(16)]
            victims = server.prediction_workers()[:count]
            wait_until(partial(hold_several, server, victims), "they hold several", 10)
            kill(server, victims)
            for number, answer in enumerate(answers):
                assert (answer.result().status, answer.result().json) == (200, {"slept": 0.3 + number / 1000})
    assert health in server.processes()["worker"]


@pytest.mark.parametrize("size", [10, 100_000, 900_000])
def test_a_body_is_sent_again_whole_from_memory_and_from_a_file(serve, size):
    server = serve(BLOB, MULES=2, WORKERS=2, THREADS=4)
    with ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(server.predict, {"seconds": 0.5, "text": "x" * size}) for _ in range(2)]
        wait_until(lambda: all(replica["busy_s"] > 0 for replica in server.ready()["replicas"]), "all are busy", 10)
        kill(server, server.prediction_workers())
        assert [(answer.result().status, answer.result().json) for answer in answers] == [(200, {"slept": size})] * 2


def test_the_query_of_a_request_that_is_sent_again_is_not_logged(serve):
    server = serve(MULES=1, WORKERS=2)
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(server.request, "POST", "/predict?token=hush", b'{"seconds": 0.5}')
        kill(server, wait_until(lambda: holders(server), "a worker holds it", 10))
        assert answer.result().status == 200
    assert server.access(answer.result().headers["x-request-id"])["path"] == "/predict"
    assert "hush" not in server.log + (server.run_dir / "access.log").read_text()


def test_a_request_that_is_sent_again_keeps_the_deadline_it_had(serve):
    # another worker and another replica are free
    server = serve(MULES=2, WORKERS=3, SERVING_DEADLINE_MS=4000)
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(server.predict, {"seconds": 3})
        wait_until(lambda: max(replica["busy_s"] for replica in server.ready()["replicas"]) > 1.2, "it predicts", 10)
        kill(server, holders(server))
        # 3 s more would fit into a deadline that starts again
        assert (answer.result().status, answer.result().json["code"]) == (504, "deadline")


def test_a_request_is_sent_again_twice_and_not_more(serve):
    environ = {"SERVING_DEADLINE_MS": 20_000, "SERVING_STOP_TIMEOUT_S": 21}
    server = serve(MULES=4, WORKERS=2, **environ)
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(server.predict, {"seconds": 3})
        for _ in range(3):
            kill(server, wait_until(lambda: holders(server), "a worker holds it", 10))
        found = answer.result()
    assert (found.status, found.json["code"]) == (502, "bad_gateway")
    assert found.json["request_id"] == found.headers["x-request-id"]
    wait_until(server.prediction_workers, "a successor", 10)
    assert server.predict({"seconds": 0}).status == 200


def test_an_error_of_the_app_is_not_sent_again(serve, tmp_path):
    calls = tmp_path / "calls"
    calls.touch()
    raising = f"open({str(calls)!r}, 'a').write('x'); raise RuntimeError('no')"
    server = serve(
        SLOW.replace("        time.sleep", f"        if inputs['seconds']: {raising}\n        time.sleep"), WORKERS=3
    )
    assert server.predict({"seconds": 1}).json["code"] == "engine"
    assert calls.read_text() == "x"


def placed(pid):
    """Where a process or thread may run, and how it is scheduled."""
    return os.sched_getaffinity(pid), os.sched_getscheduler(pid)


def test_each_worker_stays_on_a_processor_of_its_own_and_all_others_run_where_they_like(serve):
    everywhere, as_usual = placed(0)
    server = serve(WORKERS=3)
    workers = server.prediction_workers()
    places = [os.sched_getaffinity(pid) for pid in workers]
    assert all(len(place) == 1 for place in places)
    assert len(set.union(*places)) == min(2, len(everywhere))
    for pid, place in zip(workers, places, strict=True):
        # also those that began later
        threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
        assert len(threads) >= 64
        assert all(placed(thread) == (place, os.SCHED_BATCH) for thread in threads)
    (health,) = set(server.processes()["worker"]) - set(workers)
    assert all(placed(pid) == (everywhere, as_usual) for pid in (health, *server.processes()["mule"]))
    kill(server, workers[:1])
    wait_until(lambda: len(server.prediction_workers()) == 2, "its successor", 10)
    assert os.sched_getaffinity(server.prediction_workers()[0]) == places[0]


def test_workers_run_where_they_may(serve):
    everywhere = os.sched_getaffinity(0)
    one = {max(everywhere)}
    os.sched_setaffinity(0, one)
    try:
        server = serve(WORKERS=3)
    finally:
        os.sched_setaffinity(0, everywhere)
    assert all(os.sched_getaffinity(pid) == one for pid in server.processes()["worker"])
    assert server.predict({"seconds": 0}).status == 200


def test_workers_are_not_pinned_where_a_setting_says_so(serve):
    server = serve(SERVING_PIN_WORKERS="false")
    assert all(placed(pid) == placed(0) for pid in server.processes()["worker"])


def test_a_worker_that_has_nearly_all_connections_leaves_some_to_its_neighbour(serve):
    server = serve(MULES=4, WORKERS=3)
    stopped, told = threading.Event(), []

    def ask_on():
        while not stopped.is_set():
            told.append(server.predict({"seconds": 0.02}).status)

    clients = [threading.Thread(target=ask_on) for _ in range(40)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: sum(shares(server)) >= 30, "they hold many", 10)
        # whoever is left has all of them
        kill(server, server.prediction_workers()[1:])
        wait_until(lambda: len(server.prediction_workers()) == 2, "its successor", 10)
        wait_until(lambda: min(shares(server)) >= 10, "that has its part", 20)
    finally:
        stopped.set()
        for client in clients:
            client.join()
    assert set(told) == {200}
