"""The load generator counts what happened, and what is right it judges by the body."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from load import loadgen
from load.loadgen import Item

from .tiny_server import TinyServer, chunked, sized

CLIENTS = 4
PLACES = 5
PATIENCE_S = 20


@pytest.fixture
def load(tmp_path):
    """Runs the generator against a server that answers as it is told to; what was counted, and what was done."""

    def load(answer, items, clients=CLIENTS, seconds=0.15):
        server = TinyServer(answer)
        work = tmp_path / "work"
        loadgen.write_work(work, items)
        try:
            return loadgen.run(server.port, clients, seconds, 0.0, work, lambda: None).counts, server.counts
        finally:
            server.close()

    return load


def items():
    """Each place asks for itself, and no other answer is right."""
    bodies = [json.dumps({"x": [place]}).encode() for place in range(PLACES)]
    return [Item(loadgen.request(body), *loadgen.contains(f'"ok:{place}"')) for place, body in enumerate(bodies)]


def echo(body):
    return b'{"y": "ok:%d"}' % json.loads(body)["x"][0]


def near(counted, done):
    """All but what was on its way at the end."""
    return done - CLIENTS <= counted <= done


def test_right_answers_are_counted_with_their_times(load):
    counts, done = load(lambda body, number: ([sized(echo(body))], "right"), items())
    assert near(counts.right, done["right"]) and counts.right > 0
    assert counts.errors == counts.refused == 0 and counts.first_wrong == ""
    assert 0 < counts.p50_ms <= counts.p90_ms <= counts.p99_ms <= counts.max_ms
    assert counts.rate == counts.right / counts.seconds > 0
    assert counts.cpu_s > 0


def test_an_answer_that_went_to_another_request_is_wrong(load):
    def answer(body, number):
        if number % 3:
            return [sized(echo(body))], "right"
        return [sized(b'{"y": "ok:%d"}' % ((json.loads(body)["x"][0] + 1) % PLACES))], "wrong"

    counts, done = load(answer, items())
    assert near(counts.wrong, done["wrong"]) and near(counts.right, done["right"]) and counts.wrong > 0
    assert counts.first_wrong.startswith("item ") and ": 200 {'y': 'ok:" in counts.first_wrong


def test_another_status_is_wrong_whatever_the_body_says(load):
    counts, done = load(lambda body, number: ([sized(echo(body), "500 Oh")], "wrong"), items())
    assert near(counts.wrong, done["wrong"]) and counts.wrong > 0 and counts.right == 0


def test_refusals_are_counted_apart(load):
    def answer(body, number):
        if number % 2:
            return [sized(b"", "503 Busy")], "refused"
        return [sized(echo(body))], "right"

    counts, done = load(answer, items())
    assert near(counts.refused, done["refused"]) and near(counts.right, done["right"])
    assert counts.refused > 0 and counts.errors == 0


def test_who_is_told_to_wait_does_not_ask(load):
    counts, done = load(lambda body, number: ([sized(b"", "503 Busy", "Retry-After: 60")], "refused"), items())
    assert counts.refused == done["refused"] == CLIENTS and counts.errors == 0


def test_who_waits_may_lose_its_connection(load):
    counts, done = load(lambda body, number: ([sized(b"", "503 Busy", "Retry-After: 60"), None], "refused"), items())
    assert counts.refused == done["refused"] == CLIENTS and counts.errors == 0


@pytest.mark.parametrize("pieces", [[None], [sized(b'{"y": "ok:0"}')[:-4], None], [b"HTTP/1.1 200", None]])
def test_a_connection_that_ends_in_an_answer_is_cut(load, pieces):
    counts, done = load(lambda body, number: (pieces, "cut"), items())
    assert near(counts.cut, done["cut"]) and counts.cut > 0 and counts.right == counts.wrong == 0
    assert counts.first_wrong.startswith("cut after ")


def test_chunks_are_joined_however_they_come(load):
    def answer(body, number):
        text = echo(body)
        return [*chunked(text[:3], text[3:4], text[4:])] if number % 2 else [b"".join(chunked(text))], "right"

    counts, done = load(answer, items())
    assert near(counts.right, done["right"]) and counts.right > 0 and counts.errors == 0


def test_an_answer_without_length_ends_with_its_connection(load):
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    counts, done = load(lambda body, number: ([head + echo(body), None], "right"), items())
    assert near(counts.right, done["right"]) and counts.right > 0 and counts.errors == 0
    assert near(counts.reopened, done["right"])


def test_what_never_comes_is_stuck(load):
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 3600.0]
    counts, _ = load(lambda body, number: (pieces, "stuck"), items())
    assert counts.stuck == CLIENTS and counts.right == counts.wrong == counts.cut == 0


def test_a_wrong_answer_that_comes_after_the_end_is_seen(load):
    counts, done = load(lambda body, number: ([0.5, sized(b"no")], "wrong"), items())
    assert counts.wrong == done["wrong"] == CLIENTS


def test_nobody_there_is_a_failure(tmp_path):
    server = TinyServer(None)
    server.close()
    loadgen.write_work(tmp_path / "work", items())
    counts = loadgen.run(server.port, 1, 0.1, 0.0, tmp_path / "work", lambda: None).counts
    assert counts.failed > 0 and counts.right == 0


def test_a_large_body_arrives_whole(load):
    body = json.dumps({"x": [7] * 300_000}).encode()
    item = Item(loadgen.request(body), *loadgen.contains('"whole"'))
    counts, done = load(lambda got, number: ([sized(b'"whole"' if got == body else b'"part"')], "right"), [item])
    assert near(counts.right, done["right"]) and counts.right > 0 and counts.wrong == 0


@pytest.mark.parametrize(
    ("right", "body", "is_right"),
    [
        (loadgen.contains('"ok:1"'), b'{"y": "ok:1"}', True),
        (loadgen.contains('"ok:1"'), b'{"y": "ok:11"}', False),
        (loadgen.equals(b"abc"), b"abc", True),
        (loadgen.equals(b"abc"), b"abcd", False),
        (loadgen.equals(b"abc"), b"abd", False),
        (loadgen.numbers([0.5, -2.0], 1e-3), b'{"y": [0.5, -2.0]}', True),
        (loadgen.numbers([0.5, -2.0], 1e-3), b'{"y2":[5.0009e-1,-2]}', True),
        (loadgen.numbers([0.5, -2.0], 1e-3), b'{"y": [-2.0, 0.5]}', False),
        (loadgen.numbers([0.5, -2.0], 1e-3), b'{"y": [0.502, -2.0]}', False),
        (loadgen.numbers([0.5, -2.0], 1e-3), b'{"y": [0.5]}', False),
        (loadgen.numbers([0.5, -2.0], 1e-3), b'{"y": [0.5, -2.0, 3]}', False),
        (loadgen.numbers([0.5, -2.0], 1e-3), b'{"y": [0.5, NaN]}', False),
        (loadgen.numbers([], 1e-3), b'{"y": []}', True),
    ],
)
def test_what_is_right(load, right, body, is_right):
    counts, _ = load(lambda _, number: ([sized(body)], ""), [Item(loadgen.request(b"{}"), *right)], 1, 0.05)
    assert (counts.right > 0, counts.wrong > 0) == (is_right, not is_right)


def test_it_looks_when_the_measurement_begins_and_ends(tmp_path):
    server = TinyServer(lambda body, number: ([sized(echo(body))], "right"))
    loadgen.write_work(tmp_path / "work", items())
    try:
        looks = iter(["before", "after"])
        ran = loadgen.run(server.port, 1, 0.1, 0.1, tmp_path / "work", lambda: next(looks))
    finally:
        server.close()
    assert (ran.before, ran.after) == ("before", "after")
    # the warm-up is not counted
    assert 0 < ran.counts.right < server.counts["right"]


# ---- an open loop


@pytest.fixture
def flow(tmp_path):
    """Runs the generator with a rate; what was counted, what was done, and each request by itself."""

    def flow(answer, rate=400.0, clients=CLIENTS, seconds=0.5, warm_up=0.05, seed=1):
        server = TinyServer(answer)
        work, samples = tmp_path / "work", tmp_path / "samples"
        loadgen.write_work(work, items())
        try:
            ran = loadgen.run(server.port, clients, seconds, warm_up, work, lambda: None, rate, seed, samples)
        finally:
            server.close()
        return ran.counts, server.counts, loadgen.read_samples(samples)

    return flow


def test_an_open_loop_asks_at_its_rate_and_at_the_moments_that_its_seed_draws(flow):
    def answer(body, number):
        return [sized(echo(body))], "right"

    counts, _, samples = flow(answer, rate=2000.0, clients=16)
    assert counts.errors == counts.refused == 0 and counts.right == len(samples)
    # of a thousand arrivals the deviation is 32
    assert 800 < counts.right < 1200
    gaps = np.diff(samples["due_us"][np.argsort(samples["due_us"])]) / 500
    # those of a Poisson process: as much deviation as mean
    assert 0.8 < gaps.std() / gaps.mean() < 1.2
    again, _, other = flow(answer, rate=2000.0, clients=16)[0], None, flow(answer, 2000.0, 16, seed=2)[2]
    assert 800 < again.right < 1200
    assert list(other["due_us"][:20]) != list(samples["due_us"][:20])


def test_time_counts_from_when_a_request_fell_due_and_not_from_when_it_could_be_sent(flow):
    def answer(body, number):
        # stalls once, and has one connection: all that falls due meanwhile is late, and each says by how much
        return [0.3 if number == 40 else 0.0, sized(echo(body))], "right"

    counts, _, samples = flow(answer, rate=400.0, clients=1, warm_up=0.0)
    stalled = samples["took_us"] > 50_000
    assert counts.right == len(samples) and counts.errors == 0
    # three tenths of a second of 400 a second, of which a sixth was nearly over
    assert 60 < stalled.sum() <= counts.late + 1


def test_a_refusal_puts_off_nobody_in_an_open_loop(flow):
    def answer(body, number):
        if number % 2:
            return [sized(b"", "503 Busy", "Retry-After: 60")], "refused"
        return [sized(echo(body))], "right"

    counts, done, samples = flow(answer)
    assert counts.refused > 50 and counts.right > 50 and counts.errors == 0
    assert (samples["status"] == 503).sum() == counts.refused
    assert counts.refused <= done["refused"] and counts.right <= done["right"]


def test_what_falls_due_and_is_not_answered_is_in_the_samples(flow):
    counts, _, samples = flow(lambda body, number: ([None], "cut"))
    assert counts.cut == len(samples) > 50 and not samples["status"].any()
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 3600.0]
    counts, _, samples = flow(lambda body, number: (pieces, "stuck"))
    assert counts.stuck >= len(samples) > 50 and not samples["status"].any()
    assert (samples["took_us"] >= 5_900_000).all()


def test_what_fell_due_before_the_measurement_is_in_no_sample(flow):
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 3600.0]
    counts, _, samples = flow(lambda body, number: (pieces, "stuck"), seconds=0.2, warm_up=0.4)
    assert 0 < len(samples) < counts.stuck
    assert (samples["due_us"] < 200_000).all()


def test_it_ends_with_whoever_started_it(tmp_path):
    server = TinyServer(lambda body, number: ([sized(echo(body))], "right"))
    loadgen.write_work(tmp_path / "work", items())
    code = "from load import loadgen; from pathlib import Path; look = lambda: print('begun', flush=True);"
    code += f"loadgen.run({server.port}, 1, 600, 0, Path({str(tmp_path / 'work')!r}), look, 20.0)"
    try:
        with subprocess.Popen([sys.executable, "-c", code], cwd=loadgen.ROOT, stdout=subprocess.PIPE) as starter:
            assert starter.stdout is not None
            while starter.stdout.readline() != b"begun\n":
                assert starter.poll() is None
            below = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()
            ends = os.pidfd_open(int(below[0]))
            starter.kill()
        assert select.select([ends], [], [], PATIENCE_S)[0]
        os.close(ends)
    finally:
        server.close()


def test_the_servers_own_times_are_read(flow):
    def answer(body, number):
        return [sized(echo(body), "200 OK", "Server-Timing: decode;dur=1, queue;dur=0.25, predict;dur=5.5")], "right"

    _, _, samples = flow(answer)
    assert set(samples["queue_us"]) == {250} and set(samples["predict_us"]) == {5500}
