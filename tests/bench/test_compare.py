"""Short comparisons on real servers: all that `make bench` writes."""

import signal
import subprocess
import sys

import pytest
from matplotlib import image

from bench.compare import Comparison
from bench.server import alive, wait_until
from bench.work import ROOT
from bench.workload import WORKLOADS
from load import cost

SHORT = ["--seconds", "0.2", "--repeats", "1", "--tries", "1"]


def run(*arguments, status=0):
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done


def plots(folder):
    """The names of all plots; each can be read, and is not blank."""
    files = sorted(folder.glob("*.png"))
    for file in files:
        pixels = image.imread(file)
        assert min(pixels.shape[:2]) > 200 and pixels.std() > 0.05
    return [file.name for file in files]


def test_a_run_of_ours_writes_numbers_tables_and_plots(tmp_path):
    done = run(
        "bench.compare", "--only", "muleteer", "--workloads", "noop", *SHORT, "--clients", "1,4", "--out", tmp_path
    )
    found = Comparison.read(tmp_path / "compare.json")
    assert found.ok and found.ours == list(found.versions) == ["muleteer"] and "commit" in found.machine
    assert [(one.server, one.door, one.clients) for one in found.measurements] == [
        ("muleteer", "nginx", 1),
        ("muleteer", "nginx", 4),
    ]
    for one in found.measurements:
        assert one.right > 0 and one.errors == one.refused == 0
        assert 0 < one.p50_ms <= one.p99_ms
        assert set(one.cpu_us) == {"nginx", "front", "model", "other"} and one.client_cores > 0
    (session,) = found.sessions
    # two replicas and the spare, two workers for predictions and one for health
    assert session.processes["model"] == 3 and session.processes["front"] == 3
    assert session.startup_s > 0 and session.failure == "" and session.idle_cores >= 0
    assert found.model_ms.keys() == {"noop"} and "| idle: of a core" in done.stdout
    assert all(0 < session.pss_bytes[role] <= session.rss_bytes[role] for role in ("nginx", "front", "model", "other"))
    assert plots(tmp_path) == ["cpu.png", "memory.png", "noop.png"]
    told = (tmp_path / "compare.md").read_text()
    assert told.startswith("# Results\n\n## Comparison\n") and f"### W2 no-op: {WORKLOADS['noop'].title}" in told
    assert done.stdout.strip() in told and "| W2 no-op | 4 " in told
    # how far it is, for each measurement
    assert "\n[1/2, " in done.stderr and "\n[2/2, " in done.stderr


def test_two_trees_of_ours_and_a_peer_bare_and_behind_nginx(tmp_path):
    only = ["--only", "muleteer,again,naive", "--tree", f"again={ROOT}", "--workloads", "sleep"]
    done = run("tests.bench.with_naive", *only, *SHORT, "--clients", "4", "--out", tmp_path)
    found = Comparison.read(tmp_path / "compare.json")
    assert found.ok and found.ours == ["muleteer", "again"]
    assert [(session.server, session.failure) for session in found.sessions] == [
        *(("muleteer", ""), ("again", ""), ("naive", ""))
    ]
    naive = [one for one in found.measurements if one.server == "naive"]
    assert [one.door for one in naive] == ["bare", "nginx"]
    assert all(one.right > 0 and one.errors == 0 for one in naive)
    # four processes of each part
    session = found.sessions[-1]
    assert session.processes["model"] == WORKLOADS["sleep"].processes
    assert session.processes["front"] >= 4 and session.processes["nginx"] == 2
    verdicts, summary = done.stdout.strip().split("\n\n")
    # what is started from this tree is held to the peer
    assert verdicts.count("of naive, the best peer") == 1
    # each of ours in one line, with the one peer there is
    assert [line.count("naive") for line in summary.splitlines()[2:]] == [2, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_stopped_writes_what_there_is_and_leaves_no_process(tmp_path, number):
    only = ["--only", "naive", "--workloads", "sleep", "--seconds", "60", "--repeats", "1"]
    command = [sys.executable, "-m", "tests.bench.with_naive", *only, "--clients", "1", "--out", tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        # the load generator comes last
        wait_until(lambda: any(name == "loadgen" for name in below(process.pid).values()), "it measures")
        started = below(process.pid)
        process.send_signal(number)
        assert f"stopped; what was measured is in {tmp_path}" in process.stderr.read()
        assert process.wait() == 130
    assert {"uwsgi", "nginx", "loadgen"} <= set(started.values())
    assert not [name for pid, name in started.items() if alive(pid)]
    assert Comparison.read(tmp_path / "compare.json").measurements == []


def test_a_peer_that_does_not_start_is_told(tmp_path):
    only = ["--only", "naive", "--workloads", "noop", *SHORT]
    done = run("tests.bench.with_naive", "--broken", *only, "--out", tmp_path)
    told = "- naive was not measured: the server ended with 1; its last words: "
    assert told in done.stdout and told in (tmp_path / "compare.md").read_text()


def below(pid):
    """The names of the processes below a process."""
    reading = cost.read()
    return {found: reading.processes[found].name for found in reading.below(pid) - {pid} if found in reading.processes}


def test_what_is_unknown_is_named(tmp_path):
    told = run("bench.compare", "--workloads", "noop,nap", status=2).stderr
    assert "unknown: nap; there are sleep, noop, digits, cnn, image" in told
    told = run("bench.compare", "--only", "nobody", status=2).stderr
    assert "unknown: nobody; there are muleteer, gunicorn" in told
    assert "'16,many' is not numbers" in run("bench.compare", "--clients", "16,many", status=2).stderr
    assert "is not NAME=DIR" in run("bench.compare", "--tree", f"here={tmp_path}", status=2).stderr
