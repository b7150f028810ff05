"""Crashes and hangs: what a replica held is answered by another, and the guilty one alone is told."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from .conftest import FANCY, ask, wait_until, write_model
from .test_04_health import SLOW

# does what its input says; a word in front of the colon tells what that is
TRAP = """
import ctypes, os, time

class Model:
    inputs = {"do": "string"}
    outputs = {"done": "string"}
    batched = True

    def __init__(self, path):
        pass

    def predict(self, inputs):
        for text in inputs["do"]:
            word = str(text).partition(":")[0]
            if word == "exit":
                os._exit(3)
            if word == "crash":
                ctypes.string_at(0)
            if word == "hang":
                time.sleep(1000)
            if word == "slow":
                time.sleep(0.5)
        return {"done": inputs["do"]}
"""


def trap(start, tmp_path, **environ):
    return start(MODEL=write_model(tmp_path / "trap", TRAP), **environ).wait_ready()


def busy(server):
    """The pids of the replicas that predict."""
    return [replica["pid"] for replica in server.ready()["replicas"] if replica["busy_s"] > 0]


def test_what_a_killed_replica_held_is_answered_by_the_others(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "slow", SLOW), MULES=3).wait_ready()
    with ThreadPoolExecutor(9) as clients:
        answers = [clients.submit(server.predict, {"seconds": 0.3 + number / 1000}) for number in range(9)]
        (victim, *_) = wait_until(lambda: len(busy(server)) == 3 and busy(server), "all are busy", 5)
        os.kill(victim, signal.SIGKILL)
        found = [answer.result() for answer in answers]
    assert [answer.status for answer in found] == [200] * 9
    assert [answer.json["slept"] for answer in found] == [0.3 + number / 1000 for number in range(9)]
    wait_until(lambda: server.ready()["ready_replicas"] == 3, "the post is taken", 20)
    assert f"(pid {victim}) was killed by signal 9 (SIGKILL)" in server.log
    assert "while it predicted 1 tasks: 1 tasks are offered again" in server.log


def test_what_the_only_replica_held_is_answered_by_the_one_that_takes_over(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "slow", SLOW), MULES=1).wait_ready()
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(server.predict, {"seconds": 0.3}) for _ in range(3)]
        (victim,) = wait_until(lambda: busy(server), "it is busy", 5)
        os.kill(victim, signal.SIGKILL)
        assert [answer.result().status for answer in answers] == [200] * 3


def test_replica_and_spare_may_die_together(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "slow", SLOW), MULES=1).wait_ready()
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(server.predict, {"seconds": 0.3}) for _ in range(3)]
        wait_until(lambda: busy(server), "it is busy", 5)
        for pid in server.processes()["mule"]:
            os.kill(pid, signal.SIGKILL)
        assert [answer.result().status for answer in answers] == [200] * 3
    ready = wait_until(lambda: (found := server.ready())["ready_replicas"] and found["spare"] and found, "both", 20)
    assert len(ready["replicas"]) == 1


def test_the_input_that_crashes_is_found_in_its_batch_and_the_others_are_answered(start, tmp_path):
    server = trap(start, tmp_path, MULES=3, SERVING_BATCH_WAIT_MS=500)
    for word, told in (("exit", "exited with status 3"), ("crash", "was killed by signal 6 (SIGABRT)")):
        with ThreadPoolExecutor(16) as clients:
            good = [clients.submit(server.predict, {"do": f"good:{number}"}) for number in range(12)]
            bad = clients.submit(server.predict, {"do": word}).result()
            assert (bad.status, bad.json["code"]) == (500, "replica_crashed")
            assert told in bad.json["detail"]
            assert [one.result().json for one in good] == [{"done": f"good:{number}"} for number in range(12)]
        lines = [line for line in server.log.splitlines() if bad.headers["x-request-id"] in line]
        assert any(f"answered 500 replica_crashed: its process {told}" in line for line in lines)
        wait_until(lambda: server.ready()["ready_replicas"] == 3, "the pool is whole again", 20)


def test_a_client_that_insists_on_a_poison_is_refused_at_once_and_takes_no_replica_down(start, tmp_path):
    server = trap(start, tmp_path, MULES=2, SERVING_QUARANTINE_S=3)
    assert server.predict({"do": "exit"}).json["code"] == "replica_crashed"
    wait_until(lambda: server.ready()["ready_replicas"] == 2, "the pool is whole again", 20)
    pids = sorted(replica["pid"] for replica in server.ready()["replicas"])
    for _ in range(50):
        answer = server.predict({"do": "exit"})
        if "refused for now" not in answer.json["detail"]:
            break
        assert (answer.status, answer.json["code"]) == (500, "replica_crashed")
        assert 0 < int(answer.headers["retry-after"]) <= 3
        assert server.predict({"do": "good"}).status == 200
        assert sorted(replica["pid"] for replica in server.ready()["replicas"]) == pids
    # it is judged anew when its time is over
    wait_until(lambda: "refused for now" not in server.predict({"do": "exit"}).json["detail"], "it is tried again", 10)


def test_a_predict_that_never_ends_is_ended_and_its_batch_is_answered(start, tmp_path):
    environ = {"SERVING_PREDICT_TIMEOUT_S": 1, "SERVING_DEADLINE_MS": 8000, "SERVING_BATCH_WAIT_MS": 500}
    server = trap(start, tmp_path, MULES=3, **environ)
    with ThreadPoolExecutor(16) as clients:
        good = [clients.submit(server.predict, {"do": f"good:{number}"}) for number in range(12)]
        bad = clients.submit(server.predict, {"do": "hang"}).result()
        assert (bad.status, bad.json["code"]) == (500, "replica_crashed")
        assert "predict_timeout_s = 1" in bad.json["detail"]
        assert [one.result().json for one in good] == [{"done": f"good:{number}"} for number in range(12)]


def test_an_input_that_hangs_for_longer_than_its_deadline_is_refused_when_it_comes_again(start, tmp_path):
    server = trap(start, tmp_path, MULES=2, SERVING_PREDICT_TIMEOUT_S=2, SERVING_DEADLINE_MS=1000)
    assert server.predict({"do": "hang"}).json["code"] == "deadline"
    wait_until(lambda: "killed its process, alone: refused" in server.log, "it is judged", 20)
    answer = server.predict({"do": "hang"})
    assert (answer.status, answer.json["code"]) == (500, "replica_crashed")
    assert int(answer.headers["retry-after"]) > 0


def test_a_replica_that_is_stopped_is_replaced_and_what_it_held_is_answered(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "slow", SLOW), MULES=2).wait_ready()
    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(server.predict, {"seconds": 0.4}) for _ in range(4)]
        victim = wait_until(lambda: len(busy(server)) == 2 and busy(server)[0], "both are busy", 5)
        os.kill(victim, signal.SIGSTOP)
        assert [answer.result().status for answer in answers] == [200] * 4
    wait_until(lambda: f"pid {victim} was stopped (SIGSTOP): killed" in server.log, "it is told", 10)
    wait_until(lambda: server.ready()["ready_replicas"] == 2, "the pool is whole again", 20)
    assert victim not in server.processes()["mule"]


def test_a_spare_that_is_stopped_is_replaced(start):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    victim = wait_until(lambda: server.ready()["spare"], "there is a spare", 5)["pid"]
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: (spare := server.ready()["spare"]) and spare["pid"] != victim, "another is there", 20)
    assert server.predict({"text": "x"}).status == 200


def test_an_input_that_hangs_is_refused_also_when_its_client_goes_away_each_time(start, tmp_path):
    server = trap(start, tmp_path, MULES=2, SERVING_PREDICT_TIMEOUT_S=1)

    def hit_and_run():
        with closing(server.connect()) as connection:
            connection.request("POST", "/predict", b'{"do": "hang"}')
            time.sleep(0.3)

    def refused():
        hit_and_run()
        return "nobody waits any more killed its process, alone: refused" in server.log

    wait_until(refused, "it is judged", 20)
    wait_until(lambda: server.ready()["ready_replicas"] == 2, "the pool is whole again", 20)
    pids = sorted(replica["pid"] for replica in server.ready()["replicas"])
    for _ in range(10):
        hit_and_run()
    assert server.predict({"do": "good"}).status == 200
    assert sorted(replica["pid"] for replica in server.ready()["replicas"]) == pids


def test_a_poison_that_is_alone_takes_one_replica_with_it_and_the_others_serve_on(start, tmp_path):
    server = trap(start, tmp_path, MULES=2)
    before = {replica["pid"] for replica in server.ready()["replicas"]}
    assert server.predict({"do": "exit"}).json["code"] == "replica_crashed"
    assert len(before & {replica["pid"] for replica in server.ready()["replicas"]}) == 1
    assert server.predict({"do": "good"}).status == 200


def test_a_replica_that_can_open_no_file_any_more_harms_no_other(start, tmp_path):
    source = TRAP.replace(
        "        for text",
        """        for text in inputs["do"]:
            if text == "open":
                self.files = []
                try:
                    while True:
                        self.files.append(open("/dev/null"))
                except OSError:
                    pass
        for text""",
    )
    server = start(MODEL=write_model(tmp_path / "open", source), MULES=3).wait_ready()
    before = sorted(replica["pid"] for replica in server.ready()["replicas"])
    server.predict({"do": "open"})
    # each looks at the others meanwhile
    time.sleep(3)
    ready = server.ready()
    assert ready["ready_replicas"] == 3 and sorted(replica["pid"] for replica in ready["replicas"]) == before
    assert ready["spare"]["pid"]


def test_a_signal_without_a_name_is_a_death_like_any_other(start):
    server = start(MODEL=FANCY, MULES=2).wait_ready()
    victim = server.ready()["replicas"][0]["pid"]
    os.kill(victim, 35)
    wait_until(lambda: f"(pid {victim}) was killed by signal 35" in server.log, "it is told", 10)
    wait_until(lambda: server.ready()["ready_replicas"] == 2, "the pool is whole again", 20)


def test_a_load_that_never_ends_is_ended(start, tmp_path):
    source = TRAP.replace("        pass", "        while os.path.exists(path + '/hold'): time.sleep(0.05)")
    model = write_model(tmp_path / "held", source)
    server = start(MODEL=model, MULES=1, SERVING_LOAD_TIMEOUT_S=1).wait_ready()
    (model / "hold").touch()
    os.kill(server.ready()["replicas"][0]["pid"], signal.SIGKILL)
    wait_until(lambda: "load_timeout_s = 1" in server.log, "it is killed", 20)
    (model / "hold").unlink()
    wait_until(lambda: server.ready()["ready_replicas"] == 1, "the next one is ready", 30)


def test_a_replica_that_crashes_before_it_answers_anything_is_started_with_growing_pauses(start, tmp_path):
    # the warm-up predicts four times: the fifth is the first request
    source = TRAP.replace("        pass", "        self.served = 0").replace(
        "        for text", "        self.served += 1\n        if self.served > 4: os._exit(5)\n        for text"
    )
    server = start(MODEL=write_model(tmp_path / "loop", source), MULES=1).wait_ready()
    for number in range(3):
        assert server.predict({"do": f"good:{number}"}).json["code"] == "replica_crashed"
        wait_until(lambda number=number: server.ready()["replicas"][0]["crashes"] == number + 1, "it is counted", 20)
        wait_until(lambda: server.ready()["ready_replicas"] == 1, "it is tried again", 20)
    assert server.ready()["replicas"][0]["last_death"].startswith("exited with status 5")


def test_kills_of_mules_and_workers_freeze_nobody_and_no_answer_is_wrong(start):
    server = start(MODEL=FANCY, MULES=3, SERVING_DEADLINE_MS=2000, SERVING_STOP_TIMEOUT_S=5).wait_ready()
    told: dict[int | str, int] = {}
    wrong = []
    stop = threading.Event()

    def client(number):
        turn = 0
        connection = server.connect()
        while not stop.is_set():
            turn += 1
            text = f"{number}/{turn}"
            answer = ask(connection, "POST", "/predict", b'{"text": "%s"}' % text.encode())
            told[answer.status] = told.get(answer.status, 0) + 1
            if answer.status == 200 and answer.json != {"res": f"Can't tell anything smart about: {text}"}:
                wrong.append((text, answer))
        connection.close()

    with ThreadPoolExecutor(8) as clients:
        running = [clients.submit(client, number) for number in range(8)]
        for turn in range(12):
            time.sleep(0.4)
            ready = wait_until(lambda: (found := server.ready())["ready_replicas"] >= 2 and found, "two are ready")
            victims = server.processes()["worker"] if turn % 3 == 2 else [one["pid"] for one in ready["replicas"]]
            os.kill(victims[turn % len(victims)], signal.SIGKILL)
        wait_until(lambda: server.ready()["ready_replicas"] == 3, "all replicas are back", 20)
        stop.set()
        for one in running:
            one.result(10)
    assert not wrong
    assert set(told) == {200}, told
    assert told[200] > 100, told
    assert server.stop() == 0


def test_a_worker_that_is_stopped_is_replaced(start):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    victim = server.processes()["worker"][0]
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: victim not in server.processes()["worker"], "it is killed", 10)
    wait_until(lambda: len(server.processes()["worker"]) == 3, "another is there", 10)
    assert [server.predict({"text": "x"}).status for _ in range(8)] == [200] * 8


def test_one_that_is_stopped_while_it_holds_the_lock_freezes_nobody_for_long(start, tmp_path):
    # stops itself where it pulls, with the lock in its hands
    source = """
import os, signal, uwsgi

class Model:
    inputs = {"x": "float64"}
    outputs = {"y": "float64"}
    batched = False

    def __init__(self, path):
        self.flag, self.pull = path + "/stop", uwsgi.queue_pull
        uwsgi.queue_pull = self.stop

    def stop(self):
        try:
            os.unlink(self.flag)
        except OSError:
            return self.pull()
        os.kill(os.getpid(), signal.SIGSTOP)

    def predict(self, inputs):
        return {"y": inputs["x"] * 2}
"""
    model = write_model(tmp_path / "stop", source)
    server = start(MODEL=model, MULES=3).wait_ready()
    for number in range(3):
        (model / "stop").touch()
        with ThreadPoolExecutor(6) as clients:
            answers = list(clients.map(lambda number: server.predict({"x": number}), range(6)))
        assert [answer.json for answer in answers] == [{"y": 2.0 * number} for number in range(6)]
        wait_until(lambda: server.ready()["ready_replicas"] == 3, "the pool is whole again", 20)
    assert server.log.count("was stopped (SIGSTOP): killed") >= 3
