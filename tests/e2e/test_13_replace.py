"""Replacement: a replica that is worn out, or not right any more, goes once there is another; nothing is lost by it."""

import os
import signal
import threading
from collections import Counter

from .conftest import ask, wait_until, write_model

# keeps a MiB of each predict
LEAKING = """
class Model:
    inputs = {"x": "float64"}
    outputs = {"y": "float64"}
    batched = False

    def __init__(self, path):
        self.kept = []

    def predict(self, inputs):
        self.kept.append(b"x" * (1 << 20))
        return {"y": inputs["x"] * 2}
"""
# answers wrongly while a file is there
ERRING = """
import os

class Model:
    inputs = {"x": "float64"}
    outputs = {"y": "float64"}
    batched = False

    def __init__(self, path):
        self.wrong = path + "/wrong"

    def predict(self, inputs):
        return {"y": inputs["x"] * 2 + os.path.exists(self.wrong)}
"""


class Load:
    """Clients that ask without a pause, and what they were told."""

    def __init__(self, server, clients=3):
        self.told = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server, number)) for number in range(clients)]

    def _ask(self, server, number):
        connection = server.connect()
        while not self._over.is_set():
            number += 1
            answer = ask(connection, "POST", "/predict", b'{"x": %d}' % number)
            self.told["right" if answer.status == 200 and answer.json == {"y": 2.0 * number} else answer.status] += 1
        connection.close()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()


def pids(server):
    return {replica["pid"] for replica in server.ready()["replicas"]}


def test_a_replica_that_leaks_is_replaced_before_it_goes_and_never_all_at_once(start, tmp_path):
    model = write_model(tmp_path / "leaking", LEAKING)
    server = start(MODEL=model, MULES=2, SERVING_REPLICA_MAX_RSS_MB=150).wait_ready()
    first = pids(server)
    with Load(server) as load:
        ready = []

        def all_are_new():
            found = server.ready()
            ready.append(found["ready_replicas"])
            return not first & {replica["pid"] for replica in found["replicas"]}

        wait_until(all_are_new, "both have been replaced")
    assert set(load.told) == {"right"}, load.told
    assert min(ready) >= 1
    assert all(replica["rss_mb"] > 0 for replica in server.ready()["replicas"])
    assert "is replaced by pid" in server.log


def test_a_limit_that_the_model_alone_is_over_is_refused_with_a_value_that_would_do(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "leaking", LEAKING), MULES=1, SERVING_REPLICA_MAX_RSS_MB=20)
    assert server.process.wait(60) == 1
    assert "replica_max_rss_mb = 20: the model alone takes" in server.output and "would do" in server.output


def test_a_replica_is_replaced_after_its_number_of_tasks_also_when_it_is_the_only_one(start, tmp_path):
    model = write_model(tmp_path / "erring", ERRING)
    server = start(MODEL=model, MULES=1, SERVING_REPLICA_MAX_TASKS=200).wait_ready()
    seen = pids(server)
    with Load(server) as load:
        wait_until(lambda: seen.update(pids(server)) or len(seen) > 3, "it was replaced three times")
    assert set(load.told) == {"right"}, load.told


def test_a_replica_whose_canary_is_wrong_is_not_ready_and_says_why(start, tmp_path):
    model = write_model(tmp_path / "erring", ERRING)
    (model / "sample.json").write_text('{"x": 21}')
    (model / "answer.json").write_text('{"y": 42}')
    server = start(MODEL=model, MULES=2, SERVING_CANARY_S=1).wait_ready()
    assert server.predict({"x": 1}).json == {"y": 2.0}
    (model / "wrong").touch()
    wait_until(lambda: server.request("GET", "/readyz").status == 503, "the canaries are wrong", 20)
    for replica in server.ready()["replicas"]:
        assert "the canary is wrong: output 'y' of the sample differs from" in replica["last_error"]
    answer = wait_until(
        lambda: (found := server.predict({"x": 1})).status == 503 and found, "nobody is asked any more", 20
    )
    assert answer.json["code"] == "model_loading"
    (model / "wrong").unlink()
    wait_until(lambda: server.ready()["ready_replicas"] == 2, "they are right again")
    assert server.predict({"x": 1}).json == {"y": 2.0}


def test_a_replica_that_is_told_to_go_finishes_what_it_holds(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "erring", ERRING), MULES=2).wait_ready()
    with Load(server) as load:
        for _ in range(4):
            (victim, *_) = pids(server)
            os.kill(victim, signal.SIGTERM)
            wait_until(
                lambda victim=victim: victim not in pids(server) and server.ready()["ready_replicas"] == 2,
                "another is there",
            )
    assert set(load.told) == {"right"}, load.told
