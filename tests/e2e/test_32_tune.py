"""The counts that fit: measured on real servers, reported, and written where a server starts with them."""

import ctypes
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from bench.server import descendants
from serving.settings import Settings
from tuning.setting import Setting
from tuning.stack import Stack, StackFailed
from tuning.tune import read_inputs

from .conftest import _GETPID, FANCY, PATIENCE_S, ROOT, semaphores, wait_until

SHIPPED = ROOT / "uwsgi.ini"
# so loose that a busy machine holds it, too
SLO = "p90=400ms"
RATE = 250
BRIEF = ("--minutes", "0.2")


def command(folder, *arguments, **environ):
    """`muleteer` from somewhere else, with a uwsgi.ini and a run folder of its own."""
    ini = folder / "uwsgi.ini"
    if not ini.exists():
        ini.write_text(SHIPPED.read_text())
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SERVING_")}
    own = {"INI": str(ini), "RUN_DIR": str(folder / "run")}
    return subprocess.Popen(
        [ROOT / "entrypoint.sh", *arguments],
        env=inherited | own | environ,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder, *arguments, **environ):
    process = command(folder, *arguments, **environ)
    out, told = process.communicate(timeout=4 * PATIENCE_S)
    return process.returncode, out, told


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A search for 250 a second, which is more than one mule of 5 ms can do."""
    folder = tmp_path_factory.mktemp("tuned")
    asked = ("tune", "--slo", SLO, "--rate", str(RATE), "--json", "--write", *BRIEF, str(FANCY))
    # far more than it needs
    (folder / "uwsgi.ini").write_text(SHIPPED.read_text().replace("\nmules = 2\n", "\nmules = 9\n"))
    status, out, told = run(folder, *asked)
    assert status == 0, out + told
    return folder, json.loads(out), told


def test_it_finds_a_count_that_holds_and_says_why(tuned):
    _, found, told = tuned
    chosen = found["chosen"]
    # each of them does so many a second at the most, and there were nine
    assert RATE * found["alone"][0]["line"]["overhead_s"] <= chosen["mules"] < 9
    assert found["changes"]["mules"] == chosen["mules"]
    trial = next(trial for trial in found["trials"] if trial["setting"] == chosen)
    point = next(point for point in trial["points"] if point["rate"] == RATE)
    runs = point["runs"]
    assert len(runs) == 3 and point["predicted_ms"] > 5
    # it held, and what is told of it is one of its runs
    assert point["measured_ms"] <= 400 and point["measured_ms"] in [run["percentile_ms"] for run in runs]
    for other in found["trials"]:
        at = [point["measured_ms"] for point in other["points"] if point["rate"] == RATE]
        # with fewer it did not
        assert other["setting"]["mules"] >= chosen["mules"] or all(ms is None or ms > 400 for ms in at)
    assert {round(point["rate"]) for point in trial["points"]} >= {RATE // 2, RATE, 2 * RATE}
    # the model alone waits 5 ms, and computes next to nothing
    alone = found["alone"][0]
    assert alone["line"]["overhead_s"] >= 0.005 and alone["line"]["busy"] < 0.5
    assert {reason["question"] for reason in found["rationale"]} >= {"What is recommended?", "Why that many mules?"}
    assert "the model alone" in told and "left" in told


def test_the_report_and_the_record_lie_in_the_run_folder(tuned):
    folder, found, _ = tuned
    report = folder / "run" / "tune.html"
    assert found["report"] == str(report)
    assert "<svg" in report.read_text() and "<script" not in report.read_text()
    assert json.loads(report.with_suffix(".json").read_text())["chosen"] == found["chosen"]
    assert report.stat().st_mode & 0o007 == 0


def test_what_it_wrote_is_what_a_server_starts_with(tuned, start):
    folder, found, _ = tuned
    ini = folder / "uwsgi.ini"
    kept = [line for line in SHIPPED.read_text().splitlines() if line.startswith(";")]
    assert [line for line in ini.read_text().splitlines() if line.startswith(";")] == kept
    settings = Settings.read(ini, {})
    assert settings.mules == found["chosen"]["mules"] and settings.prediction_workers == found["chosen"]["workers"]
    server = start(MODEL=FANCY, INI=ini).wait_ready()
    assert len(server.ready()["replicas"]) == settings.mules
    assert server.predict({"text": "tuned"}).status == 200


def test_capacity_answers_from_what_was_measured(tuned):
    folder, found, _ = tuned
    status, out, _ = run(folder, "capacity", "--slo", SLO, "--json", "--mules", "1", "8", "--", str(FANCY))
    told = json.loads(out)
    assert status == 0 and "tune.json" in told["source"]
    assert told["present"]["mules"] == found["chosen"]["mules"]
    assert told["rate"] == told["mules"][str(found["chosen"]["mules"])]["rate"] > 0
    assert told["mules"]["8"]["rate"] > told["mules"]["1"]["rate"] > 50
    # eight times 5 ms
    assert told["mules"]["8"]["at_the_most"] < 8 / 0.005


def test_capacity_measures_a_model_that_nobody_has_tuned(tmp_path):
    status, out, _ = run(tmp_path, "capacity", "--slo", SLO, str(FANCY))
    assert status == 0 and "p90 ≤ 400 ms holds for up to" in out and "build's default" in out
    status, out, _ = run(tmp_path, "capacity", "--slo", "p99=4ms", str(FANCY))
    assert status == 1 and "no rate at all" in out


def test_capacity_says_what_the_simulation_does_not_know(tmp_path):
    text = (FANCY / "model.py").read_text().replace("batched = False", "batched = True")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.py").write_text(text.replace("{inputs['text']}\"", "\" + inputs['text']"))
    status, out, told = run(tmp_path, "capacity", "--slo", SLO, str(tmp_path / "model"), SERVING_BATCH_WAIT_MS="5")
    assert status == 0 and "knows nothing of batch_wait_ms = 5" in out, told


def test_capacity_answers_for_more_mules_than_it_would_recommend(tmp_path):
    status, out, told = run(tmp_path, "capacity", "--slo", SLO, "--json", str(FANCY), MULES="40")
    assert status == 0, told
    assert list(json.loads(out)["mules"]) == ["1", "2", "3", "4", "6", "8", "12", "16", "40"]


def started(process):
    """The servers below a command, once there are some."""
    found = wait_until(
        lambda: [pid for pid in descendants(process.pid) if title(pid).startswith("uWSGI mule")], "a server is tried"
    )
    return found and descendants(process.pid)


def title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_ends_what_it_started_and_no_other_server(tmp_path, fancy, number):
    before, older = fancy.processes(), semaphores()
    process = command(tmp_path, "tune", "--slo", SLO, "--rate", "50", *BRIEF, str(FANCY))
    below = started(process)
    process.send_signal(number)
    out, told = process.communicate(timeout=PATIENCE_S)
    assert "on this machine, and what is found will be too low" in told
    wait_until(lambda: not any(alive(pid) for pid in below), "all of it has ended")
    libc = ctypes.CDLL(None)
    assert not [id for id in semaphores() - older if libc.semctl(id, 0, _GETPID) in below]
    if number == signal.SIGINT:
        assert process.returncode == 130 and "interrupted" in told and not out
        assert (tmp_path / "uwsgi.ini").read_text() == SHIPPED.read_text()
    assert fancy.processes() == before and fancy.predict({"text": "there"}).status == 200


def test_what_a_trial_does_is_told_to_nobody_but_to_whoever_tries(tmp_path):
    kept = tmp_path / "predictions"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.setblocking(False)
        environ = {key: value for key, value in os.environ.items() if not key.startswith("SERVING_")}
        environ |= {"SERVING_STATSD": f"127.0.0.1:{statsd.getsockname()[1]}", "SERVING_MONITOR_FROM": "192.0.2.1"}
        environ |= {"SERVING_PREDICTION_LOG_SAMPLE": "1", "SERVING_PREDICTION_LOG_DIR": str(kept)}
        settings = Settings.read(SHIPPED, environ)
        with Stack(Setting.of(settings), settings, SHIPPED, str(FANCY), environ) as stack:
            stack.wait_ready()
            with (stack._folder / "access.log").open("a") as log:
                log.write("x" * (1 << 20))
            run = stack.measure([b'{"text": "tried"}'], 0.5, 40.0)
            assert run.right > 0
            # what was logged is not kept: only what nginx had not yet written comes, at what is the end now
            assert (stack._folder / "access.log").stat().st_size < 1 << 20
            # what /metrics has of it
            assert stack._tasks_and_batches()[0] >= run.right
        with pytest.raises(BlockingIOError):
            statsd.recv(1)
    assert not kept.exists()


def test_a_server_that_ends_under_load_is_told_in_a_sentence(tmp_path):
    settings = Settings.read(SHIPPED, {})
    with Stack(Setting.of(settings), settings, SHIPPED, str(FANCY), dict(os.environ)) as stack:
        stack.wait_ready()
        pid = stack._process.pid
        below = descendants(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(alive(pid) for pid in below), "all of it has ended")
        with pytest.raises(StackFailed, match=r"2 mules.* has ended under load"):
            stack.measure([b'{"text": "tried"}'], 0.5, 40.0)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("tune",), 2, "--slo"),
        (("tune", "--slo", "fast"), 2, "'fast' is no promise: a percentile and a time, p99=50ms"),
        (("tune", "--slo", SLO, "--rate", "-3"), 2, "'-3' is not a number above 0"),
        (("tune", "--slo", SLO, "--inputs", "/none"), 2, "--inputs /none: No such file or directory"),
        (("tune", "--slo", SLO, "--report", "a.json", str(FANCY)), 2, "a.json: there all that was"),
        (("tune", "--slo", SLO, "/none/model"), 2, "the model folder /none/model does not exist"),
        (("capacity", "--slo", SLO, "/none/model"), 2, "the model folder /none/model does not exist"),
        (("tune", "--slo", "p99.99=9ms", "--rate", "9", "--minutes", "1", str(FANCY)), 2, "--minutes 1: at 9 requests"),
        (("capacity", "--slo", "p99=0ms"), 2, "is no promise"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(tmp_path, arguments, status, told):
    found, _, errors = run(tmp_path, *arguments)
    assert found == status and told in errors and "Traceback" not in errors


@pytest.mark.parametrize("asked", ["tune", "capacity"])
def test_a_model_that_nothing_can_be_measured_of_is_not_one_that_holds_nothing(tmp_path, asked):
    (tmp_path / "model").mkdir()
    text = (FANCY / "model.py").read_text().replace("time.sleep(0.05)", "raise RuntimeError('no weights')")
    (tmp_path / "model" / "model.py").write_text(text)
    found, out, errors = run(tmp_path, asked, "--slo", SLO, str(tmp_path / "model"))
    assert found == 2 and "no weights" in errors and "Traceback" not in errors and not out


def test_a_setting_that_is_wrong_is_told(tmp_path):
    (tmp_path / "uwsgi.ini").write_text(SHIPPED.read_text().replace("threads = 64", "threads = many"))
    found, _, errors = run(tmp_path, "tune", "--slo", SLO, str(FANCY))
    assert found == 2 and "threads = many: it must be a whole number" in errors


def test_recorded_requests_are_asked(tmp_path):
    inputs = tmp_path / "inputs"
    inputs.write_text('{"text": "a"}\n\n{"instances": ["b", "c"]}\n')
    assert read_inputs(inputs) == ((b'{"text": "a"}', b'{"instances": ["b", "c"]}'), (1, 2))
    inputs.write_text('{"text": "a"}\n{')
    found, _, errors = run(tmp_path, "tune", "--slo", SLO, "--inputs", str(inputs), str(FANCY))
    assert found == 2 and "line 2 is not JSON" in errors
