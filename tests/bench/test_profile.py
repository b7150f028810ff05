"""A short profile of a real server, and what is told of it."""

import os
import re
import signal
import subprocess
import sys

import pytest

from bench import profile
from bench.client import Client, Refused
from bench.profile import Profile
from bench.server import alive, wait_until
from bench.work import ROOT
from load import cost
from tests.load.tiny_server import TinyServer, sized

from .test_compare import run

SHORT = ["--seconds", "0.3", "--clients", "1,3"]


def test_a_profile_tells_stages_switches_calls_and_flames(tmp_path):
    done = run("bench.profile", "bench/models/noop", *SHORT, "--out", tmp_path)
    told = (tmp_path / "profile.md").read_text()
    assert done.stdout.strip() in told and told.startswith("# Results\n\n## noop\n")
    rows = {
        cells[0]: cells[1:] for line in told.splitlines() if (cells := [cell.strip() for cell in line.split("|")[1:-1]])
    }
    for stage in ("decode", "queue", "predict", "encode", "rest", "total"):
        for cell in rows[stage]:
            p50, p90, p99 = map(float, cell.split(", "))
            assert 0 <= p50 <= p90 <= p99
    for role in ("nginx", "worker", "mule"):
        asleep, displaced = map(float, rows[f"{role}: switches, asleep and displaced"][0].split(", "))
        assert asleep > 0.1 and displaced >= 0
        assert float(rows[f"**{role}**"][0].strip("*")) > 1
    # one request, one answer of a worker
    assert abs(float(rows["writev"][0].split()[0]) - 1) < 0.1
    for role in ("worker", "mule"):
        flames = (tmp_path / f"profile-noop-{role}.svg").read_text()
        assert f"profile-noop-{role}.svg" in told
        assert re.search({"worker": "Predict", "mule": "step"}[role], flames)


def test_ctrl_c_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "bench.profile", "bench/models/noop", "--out", tmp_path, "--seconds", "9"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        names = lambda: {found.name for found in started(process.pid).values()}  # noqa: E731
        wait_until(lambda: "loadgen" in names() or process.poll() is not None, "it is measuring")
        pids = started(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    assert not any(map(alive, pids))


def started(pid):
    reading = cost.read()
    return {child: reading.processes[child] for child in reading.below(pid) - {pid}}


def test_what_is_missing_is_said_before_anything_starts(tmp_path):
    done = run("bench.profile", tmp_path, status=2)
    assert f"{tmp_path} has no sample.json" in done.stderr


def test_percentiles_of_few_and_many():
    assert profile.percentiles([2.0]) == "2.000, 2.000, 2.000"
    assert profile.percentiles([number / 1000 for number in range(101)]) == "0.050, 0.090, 0.099"


def test_calls_are_told_by_role_the_commonest_first():
    calls = {"nginx": {}, "worker": {"read": (1.0, 0.25), "getpid": (0.001, 0.0)}, "mule": {"futex": (2.5, 0.0)}}
    (head, *rows) = profile.call_rows([Profile(1, traced_rate=1234.5, calls=calls)])
    assert head == ["requests/s with strace", "1,234"]
    assert rows == [
        ["**nginx**", "**0.00**"],
        ["**worker**", "**1.00**"],
        ["read", "1.00 (0.25)"],
        ["**mule**", "**2.50**"],
        ["futex", "2.50"],
    ]


def test_a_client_takes_the_time_of_each_stage():
    timing = "Server-Timing: decode;dur=0.050, queue;dur=0.200, predict;dur=0.010, encode;dur=0.020"
    server = TinyServer(lambda body, number: ([sized(b'{"y": 1}', "200 OK", timing)], "right"))
    try:
        with Client(server.port, b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n") as client:
            for _ in range(2):
                found = client.time()
                assert list(found) == ["decode", "queue", "predict", "encode", "rest", "total"]
                assert found["queue"] == 0.2 and sum(found.values()) == pytest.approx(2 * found["total"])
    finally:
        server.close()


def test_a_client_refuses_what_is_no_prediction():
    server = TinyServer(lambda body, number: ([sized(b"", "503 Busy")], "refused"))
    try:
        with (
            Client(server.port, b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n") as client,
            pytest.raises(Refused, match="503 Busy"),
        ):
            client.ask()
    finally:
        server.close()
