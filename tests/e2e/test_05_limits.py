"""Limits: no free thread, no time, no backlog, and a deadline that passes."""

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import pytest

from ..serving.ini import shipped
from .conftest import FANCY, ask, wait_until, write_model
from .test_04_health import SLOW

COUNTING = SLOW.replace("        time.sleep", "        open('{file}', 'a').write('x')\n        time.sleep")


def test_more_at_once_than_there_are_threads_is_refused_and_nothing_is_lost(start, tmp_path):
    model = write_model(tmp_path / "slow", SLOW)
    server = start(MODEL=model, MULES=1, WORKERS=2, THREADS=5).wait_ready()
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda number: server.predict({"seconds": 0.2 + number / 1000}), range(16)))
    full = [answer for answer in answers if answer.status == 503]
    good = [answer for answer in answers if answer.status == 200]
    assert len(full) + len(good) == 16 and len(full) >= 8 and len(good) >= 4
    for answer in full:
        assert answer.json["code"] == "queue_full" and "all 5 threads" in answer.json["detail"]
        assert int(answer.headers["retry-after"]) >= 1
    slept = [answer.json["slept"] for answer in good]
    assert len(set(slept)) == len(slept)
    assert server.predict({"seconds": 0}).status == 200


def test_a_deadline_that_passes_is_told_and_the_task_is_dropped_before_predict(start, tmp_path):
    count = tmp_path / "predicted"
    count.touch()
    model = write_model(tmp_path / "slow", COUNTING.replace("{file}", str(count)))
    server = start(MODEL=model, MULES=1).wait_ready()
    warm = count.read_text()
    with ThreadPoolExecutor(8) as clients:
        first = clients.submit(server.predict, {"seconds": 1.0})
        time.sleep(0.3)
        late = [clients.submit(server.predict, {"seconds": 0.0}, X_Request_Timeout_Ms="100") for _ in range(5)]
        for answer in [future.result() for future in late]:
            assert (answer.status, answer.json["code"]) == (504, "deadline")
        assert first.result().status == 200
    assert server.predict({"seconds": 0.0}).status == 200
    assert len(count.read_text()) - len(warm) == 2


def test_a_deadline_can_be_lowered_and_not_raised(start, tmp_path):
    model = write_model(tmp_path / "slow", SLOW)
    server = start(MODEL=model, MULES=2, SERVING_DEADLINE_MS=500).wait_ready()
    assert server.predict({"seconds": 0.2}).status == 200
    assert server.predict({"seconds": 0.2}, X_Request_Timeout_Ms="50").status == 504
    assert server.predict({"seconds": 1.0}, X_Request_Timeout_Ms="5000").status == 504
    # the reply that came too late goes to nobody
    for _ in range(20):
        assert server.predict({"seconds": 0.01}, X_Request_Timeout_Ms="450").json == {"slept": 0.01}


def test_with_the_shipped_numbers_too_much_is_refused_and_nothing_is_late(start, tmp_path):
    model = write_model(tmp_path / "slow", SLOW)
    server = start(MODEL=model).wait_ready()

    with ThreadPoolExecutor(150) as clients:
        told = Counter(clients.map(lambda number: server.predict({"seconds": 0.05}).status, range(150)))
    # one for each thread; the rest at once
    assert set(told) == {200, 503} and told[200] >= 128, told
    assert server.predict({"seconds": 0}).status == 200


def check_refused(answer, code, told):
    """Refused by nginx, as the app would."""
    assert (answer.status, answer.json["code"], answer.json["status"]) == (503, code, 503), answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["retry-after"] == "1" and told in answer.json["detail"]


@pytest.mark.parametrize(("workers", "threads"), [(2, 1), (2, 2), (4, 1), (3, 2)])
def test_what_finds_no_thread_is_refused_at_once(start, tmp_path, workers, threads):
    model = write_model(tmp_path / "slow", SLOW)
    server = start(MODEL=model, MULES=4, WORKERS=workers, THREADS=threads).wait_ready()
    seats = (workers - 1) * threads
    for _ in range(2):
        # the first of them are in until all have come
        with ThreadPoolExecutor(seats + 8) as clients:
            answers = list(clients.map(lambda number: server.predict({"seconds": 1.5}), range(seats + 8)))
        refused = [answer for answer in answers if answer.status != 200]
        assert len(refused) == 8
        for answer in refused:
            check_refused(answer, "queue_full", f"all {seats} threads")
        line = server.access(refused[0].headers["x-request-id"])
        assert (line["method"], line["path"], line["status"]) == ("POST", "/predict", 503)
    assert "no live upstreams" not in server.log


@contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        # another may have taken its place by now
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_the_time_in_the_backlog_counts(start, tmp_path):
    server = start(MODEL=FANCY, MULES=1, WORKERS=2, THREADS=4).wait_ready()
    with ThreadPoolExecutor(3) as clients:
        # a worker that does not get to accept
        with stopped(server.prediction_workers()[0]):
            late = [clients.submit(server.predict, {"text": "a"}, X_Request_Timeout_Ms="200") for _ in range(2)]
            early = clients.submit(server.predict, {"text": "b"})
            time.sleep(1)
        for answer in [future.result() for future in late]:
            assert (answer.status, answer.json["code"]) == (504, "deadline")
            assert "no thread was free" in answer.json["detail"]
        assert early.result().status == 200


def test_what_finds_no_place_in_the_backlog_is_refused_at_once(start, tmp_path):
    (tmp_path / "uwsgi.ini").write_text(shipped(listen=1))
    server = start(INI=tmp_path / "uwsgi.ini", MODEL=FANCY, MULES=1, WORKERS=2, THREADS=8).wait_ready()
    with ThreadPoolExecutor(8) as clients:
        with stopped(server.prediction_workers()[0]):
            answers = [clients.submit(server.predict, {"text": "a"}) for _ in range(8)]
            wait_until(lambda: sum(answer.done() for answer in answers) >= 5, "most are refused", 10)
            time.sleep(0.2)
        told = [answer.result() for answer in answers]
    # some wait: how many a backlog of one holds is the kernel's
    assert {answer.status for answer in told} == {200, 503}
    for answer in told:
        if answer.status == 503:
            check_refused(answer, "unavailable", "listen in uwsgi.ini")


def test_clients_that_give_up_early_take_nothing_from_the_others(start):
    server = start(MODEL=FANCY, MULES=4, SERVING_DEADLINE_MS=2000).wait_ready()
    over = threading.Event()

    def impatient(number):
        connection = server.connect()
        while not over.is_set():
            ask(connection, "POST", "/predict", b'{"text": "late"}', {"X-Request-Timeout-Ms": "4"})
        connection.close()

    with ThreadPoolExecutor(6) as clients:
        late = [clients.submit(impatient, number) for number in range(6)]
        found = [server.predict({"text": str(number)}).status for number in range(400)]
        over.set()
        for client in late:
            client.result()
    assert found == [200] * 400
    assert "no free item" not in server.log and "FULL" not in server.log


def test_what_cannot_make_its_deadline_is_refused_at_the_door(start, tmp_path):
    model = write_model(tmp_path / "slow", SLOW)
    server = start(MODEL=model, MULES=1, SERVING_DEADLINE_MS=1500).wait_ready()
    # it learns what a row takes
    for _ in range(5):
        assert server.predict({"seconds": 0.3}).status == 200
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda number: server.predict({"seconds": 0.3}), range(20)))
    told = Counter(answer.status for answer in answers)
    # 1.5 s are enough for four of 0.3 s, one more or less
    assert set(told) <= {200, 503, 504} and told[200] >= 3 and told[503] >= 13 and told[504] <= 2, told
    for answer in answers:
        if answer.status == 503:
            assert answer.json["code"] == "overloaded" and "deadline_ms" in answer.json["detail"]
            assert int(answer.headers["retry-after"]) >= 1
    # where nobody waits even that is tried which has never been quick enough
    assert server.predict({"seconds": 0.3}, X_Request_Timeout_Ms="50").status == 504


def test_nothing_is_refused_for_being_late_where_that_is_turned_off(start, tmp_path):
    model = write_model(tmp_path / "slow", SLOW)
    environ = {"SERVING_DEADLINE_MS": 1500, "SERVING_REFUSE_LATE": "false"}
    server = start(MODEL=model, MULES=1, **environ).wait_ready()
    for _ in range(5):
        assert server.predict({"seconds": 0.3}).status == 200
    with ThreadPoolExecutor(20) as clients:
        told = Counter(clients.map(lambda number: server.predict({"seconds": 0.3}).status, range(20)))
    assert set(told) == {200, 504} and told[504] >= 13, told


def test_a_client_that_goes_away_frees_its_thread_and_its_input_is_not_predicted(start, tmp_path):
    count = tmp_path / "predicted"
    count.touch()
    model = write_model(tmp_path / "slow", COUNTING.replace("{file}", str(count)))
    server = start(MODEL=model, MULES=1, WORKERS=2, THREADS=4).wait_ready()
    warm = len(count.read_text())
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(server.predict, {"seconds": 1.5})
        time.sleep(0.3)
        gone = [server.connect() for _ in range(3)]
        for connection in gone:
            connection.request("POST", "/predict", b'{"seconds": 0.5}')
        time.sleep(0.3)
        for connection in gone:
            connection.close()
        # the threads of the three are free for others
        with ThreadPoolExecutor(3) as others:
            assert set(others.map(lambda _: server.predict({"seconds": 0}).status, range(3))) == {200}
        assert first.result().status == 200
    # and the model never saw what nobody waits for
    assert len(count.read_text()) - warm == 4


def test_clients_that_have_gone_take_no_place_from_the_others(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "slow", SLOW), MULES=1, WORKERS=2, THREADS=5).wait_ready()
    with ThreadPoolExecutor(5) as clients:
        first = clients.submit(server.predict, {"seconds": 1.5})
        wait_until(lambda: server.ready()["replicas"][0]["busy_s"] > 0, "it is busy", 5)
        # at each of the threads, twice
        for _ in range(2):
            gone = [server.connect() for _ in range(4)]
            for connection in gone:
                connection.request("POST", "/predict", b'{"seconds": 1}')
            time.sleep(0.2)
            for connection in gone:
                connection.close()
            time.sleep(0.2)
        others = [clients.submit(server.predict, {"seconds": 0}) for _ in range(4)]
        assert [answer.result().status for answer in (first, *others)] == [200] * 5


def test_a_thousand_replies_that_come_too_late_are_in_nobody_s_way(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "slow", SLOW), MULES=1).wait_ready()
    with closing(server.connect()) as connection:
        told = Counter(
            ask(connection, "POST", "/predict", b'{"seconds": 0.006}', {"X-Request-Timeout-Ms": "5"}).status
            for _ in range(1200)
        )
    assert told[504] > 1000, told
    assert [server.predict({"seconds": 0}).status for _ in range(20)] == [200] * 20
    assert "no free item" not in server.log and "FULL" not in server.log


def test_a_free_replica_is_never_left_idle_for_a_deadline_that_is_short(start, tmp_path):
    model = write_model(tmp_path / "slow", SLOW)
    server = start(MODEL=model, MULES=4, SERVING_DEADLINE_MS=1000).wait_ready()
    with ThreadPoolExecutor(4) as clients:
        for _ in range(2):
            assert [answer.status for answer in clients.map(lambda _: server.predict({"seconds": 0.85}), range(4))] == [
                200
            ] * 4
