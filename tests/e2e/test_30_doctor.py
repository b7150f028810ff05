"""`muleteer doctor`: what is wrong with a machine, a uwsgi.ini and a model, on real ones."""

import json
import re
import subprocess
import sys

import pytest

from .conftest import DIGITS, FANCY, ROOT, free_port, write_model
from .test_17_commands import DIES, muleteer

INI = (ROOT / "uwsgi.ini").read_text()
CARELESS = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
import %s
"""


def examine(*arguments, **environ):
    """The findings by what they are about, and the exit status."""
    out, _, status = muleteer("doctor", "--json", *arguments, PORT=free_port(), **environ)
    found = {}
    for finding in json.loads(out)["findings"]:
        found.setdefault(finding["about"], []).append(finding)
    return found, status


def ini(tmp_path, key, value):
    """A uwsgi.ini with another value."""
    text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", INI, flags=re.MULTILINE)
    assert count == 1
    (tmp_path / "uwsgi.ini").write_text(text)
    return tmp_path / "uwsgi.ini"


def test_nothing_is_wrong_with_this_machine_and_the_examples():
    for model, engine in ((FANCY, "python"), (DIGITS, "tensorflow")):
        found, status = examine("--model", model)
        assert [one for some in found.values() for one in some if one["level"] == "wrong"] == []
        assert status == 0
        assert f"version 1 ({engine}) loads in" in found["model"][0]["told"]
        assert ("tensorflow" in found["after the load"][0]["told"]) == (engine == "tensorflow")
        assert re.search(r"2 mules of \d+ MB, and \d+ MB that the settings map", found["memory"][0]["told"])
        assert found["before the fork"][0]["level"] == "ok"


def test_it_prints_a_line_for_each_finding():
    out, err, status = muleteer("doctor", "--model", FANCY, PORT=free_port())
    assert (err, status) == ("", 0)
    assert all(re.match(r"(ok|warning) +[\w ./]+: \S", line) for line in out.splitlines())
    assert f"ok       Python: {sys.version.split()[0]}" in out.splitlines()


def test_a_model_that_cannot_be_loaded_is_told(tmp_path):
    found, status = examine("--model", tmp_path / "none")
    assert status == 1 and "does not exist; set MODEL" in found["model"][0]["told"]
    found, status = examine("--model", write_model(tmp_path / "dies", DIES))
    assert status == 1 and "was killed by signal 11 (SIGSEGV)" in found["model"][0]["told"]


def test_a_setting_that_does_not_fit_is_told_with_its_fix(tmp_path):
    found, status = examine(INI=ini(tmp_path, "deadline_ms", 900000))
    assert status == 1
    assert "901 would do" in found["uwsgi.ini"][0]["told"]


@pytest.mark.parametrize("key", ["socket", "http11-socket"])
def test_a_socket_that_others_can_reach_is_told(tmp_path, key):
    found, status = examine("--model", FANCY, INI=ini(tmp_path, key, "0.0.0.0:3031"))
    (finding,) = found["uwsgi socket"]
    assert (status, finding["level"]) == (1, "wrong")
    assert finding["told"].startswith(f"{key} = 0.0.0.0:3031 opens uWSGI")


def test_a_running_servers_socket_that_is_open_to_all_is_told(start):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    found, status = examine("--model", FANCY, RUN_DIR=server.run_dir)
    assert status == 0 and found["uwsgi socket"][0]["level"] == "ok"
    (server.run_dir / "control.sock").chmod(0o666)
    found, status = examine("--model", FANCY, RUN_DIR=server.run_dir)
    assert status == 1 and "control.sock is open to all users" in found["uwsgi socket"][0]["told"]


def test_more_mules_than_cores_and_memory_are_told(tmp_path):
    model = write_model(
        tmp_path / "large", "import numpy\nDATA = numpy.ones(50_000_000)\n" + (FANCY / "model.py").read_text()
    )
    found, _ = examine("--model", model, MULES=64)
    (finding,) = found["cores"]
    assert finding["level"] == "warning" and "for 64 mules with 1 thread each" in finding["told"]
    (finding,) = found["memory"]
    one, needed, there = map(int, re.search(r"64 mules of (\d+) MB.* make (\d+) of (\d+) MB", finding["told"]).groups())
    assert 400 < one < 600 and needed > 64 * one
    full = "warning" if needed > 0.8 * there else "ok"
    assert finding["level"] == ("wrong" if needed + one > there else full)


@pytest.mark.parametrize("framework", ["sklearn", "onnxruntime"])
def test_what_would_not_outlive_a_fork_is_seen(tmp_path, framework):
    program = CARELESS % framework + "import doctor, json; print(json.dumps(doctor._state()))"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    state = json.loads(told)
    assert framework in state["frameworks"] and state["python_threads"] == 2 and state["threads"] >= 2


def test_a_frameworks_import_before_the_fork_is_wrong(tmp_path):
    # as a careless installation does
    (tmp_path / "sitecustomize.py").write_text("import sklearn")
    found, status = examine("--model", FANCY, PYTHONPATH=tmp_path)
    (finding,) = found["before the fork"]
    assert (status, finding["level"]) == (1, "wrong") and "sklearn is imported" in finding["told"]
