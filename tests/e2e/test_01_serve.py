"""A stranger starts it: what is printed works, and what is wrong is said in one sentence."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from .conftest import FANCY, ROOT, descendants, free_port, wait_until, write_model


def test_the_printed_curl_line_works_when_pasted(digits):
    line = next(line for line in digits.output.splitlines() if line.startswith("  try "))
    answer = subprocess.run(["bash", "-c", line.removeprefix("  try ")], capture_output=True, text=True, check=True)
    assert '"digit":4' in answer.stdout


def test_the_banner_names_the_url_the_model_and_the_mules(digits):
    assert f"ready at http://127.0.0.1:{digits.port}" in digits.output
    assert "model  digits, version 1 (tensorflow)" in digits.output
    assert "mules  2, " in digits.output


def test_a_long_sample_becomes_a_file(start, tmp_path):
    source = 'class Model:\n    inputs = outputs = {"x": "float64[1000]"}\n'
    source += "    def __init__(self, path): pass\n    def predict(self, inputs): return inputs\n"
    server = start(MODEL=write_model(tmp_path / "wide", source), MULES=1).wait_ready()
    line = next(line for line in server.output.splitlines() if line.startswith("  try "))
    assert "-d @" in line
    answer = subprocess.run(["bash", "-c", line.removeprefix("  try ")], capture_output=True, text=True, check=True)
    assert answer.stdout.count("0.0") == 1000


def test_two_instances_run_side_by_side(start):
    one = start(MODEL=FANCY, MULES=1)
    two = start(MODEL=FANCY, MULES=2)
    for server, mules in ((one, 1), (two, 2)):
        server.wait_ready()
        assert len(server.ready()["replicas"]) == mules
        assert server.predict({"text": "hello"}).json == {"res": "Can't tell anything smart about: hello"}
    assert one.stop() == 0
    assert two.predict({"text": "hello"}).status == 200


def test_ctrl_c_stops_it_and_leaves_nothing_running(start):
    server = start(MODEL=FANCY, MULES=2).wait_ready()
    pids = descendants(server.process.pid)
    assert len(pids) >= 8
    assert server.stop(signal.SIGINT) == 0
    assert "stopped" in server.output
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all processes have ended", 5)
    assert not list(server.run_dir.glob("*.sock"))


def test_a_kill_of_the_supervisor_leaves_nothing_running(start):
    server = start(MODEL=FANCY, MULES=2).wait_ready()
    pids = descendants(server.process.pid)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all processes have ended", 15)


@pytest.mark.parametrize("role", ["master", "nginx"])
def test_the_death_of_nginx_or_uwsgi_ends_it_with_an_error(start, role):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    pids = descendants(server.process.pid)
    master = server.processes()[role][0]
    subprocess.run(["kill", "-9", str(master)], check=True)
    assert server.process.wait(20) == 1
    assert "ended by itself" in server.output
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all processes have ended", 15)


def test_two_servers_never_share_a_run_folder(start):
    first = start(MODEL=FANCY, MULES=1).wait_ready()
    second = start(MODEL=FANCY, MULES=1, RUN_DIR=first.run_dir, LOG_DIR="")
    assert f"another server runs in {first.run_dir}; set RUN_DIR to a folder of its own" in refused(second)
    assert first.predict({"text": "still here"}).status == 200


@pytest.mark.parametrize("name", ["with space", "über"])
def test_a_run_folder_may_have_any_usual_name(start, name, request):
    with tempfile.TemporaryDirectory(prefix="m-") as folder:
        run_dir = Path(folder) / name
        server = start(MODEL=FANCY, MULES=1, RUN_DIR=run_dir, LOG_DIR=run_dir).wait_ready()
        assert server.predict({"text": "x"}).status == 200
        assert server.stop() == 0
        assert (run_dir / "access.log").read_text()


def test_a_model_is_found_from_where_the_user_is():
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="m-") as folder:
        environ = os.environ | {"PORT": str(port), "RUN_DIR": folder, "LOG_DIR": folder, "MODEL": "fancy", "MULES": "1"}
        with subprocess.Popen(
            ["../entrypoint.sh"], cwd=FANCY.parent, env=environ, stdout=subprocess.PIPE, text=True
        ) as process:
            lines = iter(process.stdout.readline, "")
            assert any("  try " in line for line in lines)
            process.terminate()
            assert process.wait(20) == 0


@pytest.mark.parametrize("pause_s", [0.02, 0.1, 0.3, 0.6])
def test_a_ctrl_c_at_any_moment_of_the_start_stops_it(start, pause_s):
    server = start(MODEL=FANCY, MULES=2)
    time.sleep(pause_s)
    status = server.stop(signal.SIGINT)
    # it ends a shell that has not found Python yet, as it ends any program
    assert status == 0 or (status == -signal.SIGINT and not server.output)
    assert "Traceback" not in server.output
    assert not descendants(server.process.pid)


def test_a_model_whose_inputs_are_called_like_a_form_has_a_curl_line_that_works(start, tmp_path):
    source = 'class Model:\n    inputs = {"inputs": "float32[2]", "instances": "string"}\n'
    source += '    outputs = {"y": "float32[2]"}\n'
    source += "    def __init__(self, path): pass\n    def predict(self, inputs): return {'y': inputs['inputs']}\n"
    server = start(MODEL=write_model(tmp_path / "named", source), MULES=1).wait_ready()
    line = next(line for line in server.output.splitlines() if line.startswith("  try "))
    answer = subprocess.run(["bash", "-c", line.removeprefix("  try ")], capture_output=True, text=True, check=True)
    assert answer.stdout == '{"predictions":[[0.0,0.0]]}'


def test_a_stop_that_takes_too_long_leaves_no_semaphores_and_no_sockets(start):
    server = start(MODEL=FANCY, MULES=1, SERVING_DEADLINE_MS=1000, SERVING_STOP_TIMEOUT_S=2).wait_ready()
    pids = descendants(server.process.pid)
    assert server.semaphores(pids)
    with socket.create_connection(("127.0.0.1", int(server.port))) as connection:
        connection.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"text"')
        time.sleep(0.2)
        assert server.stop() == 0
    assert not server.semaphores(pids)
    assert not list(server.run_dir.glob("*.sock"))


def refused(server) -> str:
    """The one sentence with which a start was refused."""
    status = server.process.wait(60)
    assert status not in (0, None), server.output
    assert not descendants(server.process.pid)
    return server.output


def test_a_taken_port_is_refused(start):
    first = start(MODEL=FANCY, MULES=1).wait_ready()
    output = refused(start(MODEL=FANCY, PORT=first.port))
    assert output == (
        f"muleteer: cannot listen on 127.0.0.1:{first.port}: Address already in use; set PORT (or HOST) to another\n"
    )
    assert first.predict({"text": "still here"}).status == 200


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"PORT": "http"}, "PORT = http: it must be a number from 1 to 65535; 8080 would do"),
        ({"HOST": "no.such.host.invalid"}, "HOST=no.such.host.invalid is no address of this machine"),
        ({"MODEL": "/nowhere"}, "the model folder /nowhere does not exist; set MODEL to a folder that holds a model"),
        ({"MULES": "two"}, "mules = two: it must be a whole number, for example 8"),
        ({"WORKERS": "1"}, "processes = 1: it must be 2 or more; 2 would do"),
        ({"QUEUE": "64"}, "queue = 64: it must be 512 or more: four for each prediction thread"),
        ({"SERVING_DEADLINE_MS": "60000"}, "[serving] stop_timeout_s = 9: what is in flight may take deadline_ms"),
        ({"SERVING_DEDLINE_MS": "1"}, "[serving] dedline_ms: there is no such setting; did you mean deadline_ms?"),
        ({"INI": "/nowhere.ini"}, "/nowhere.ini: No such file or directory; give the path of a uwsgi.ini"),
        ({"RUN_DIR": "/tmp/a$b"}, "RUN_DIR=/tmp/a$b has a '$', which nginx and uWSGI read as something else"),
        (
            {"SERVING_BATCH_WAIT_MS": "5000"},
            "[serving] batch_wait_ms = 5000: a task that waits so long for others is past",
        ),
        ({"RUN_DIR": "/tmp/" + "x" * 100}, "is too long for a unix socket; set RUN_DIR to a shorter path"),
    ],
)
def test_a_bad_setting_is_refused_in_one_sentence(start, environ, sentence):
    output = refused(start(**{"MODEL": FANCY, **environ}))
    assert output.startswith("muleteer: ") and sentence in output
    assert output.count("\n") == 1


def test_a_typo_in_uwsgi_ini_is_refused(start, tmp_path):
    ini = tmp_path / "uwsgi.ini"
    ini.write_text((ROOT / "uwsgi.ini").read_text().replace("single-interpreter", "single-interpretor"))
    output = refused(start(MODEL=FANCY, INI=ini))
    assert "single-interpretor" in output


def test_a_model_that_cannot_be_served_says_why_and_ends(start, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"1")
    output = refused(start(MODEL=tmp_path))
    assert f"nothing in {tmp_path} can be served (found weights.bin)" in output


def failed_once(server):
    assert server.process.poll() is None, server.output
    with suppress(OSError, HTTPException):
        answer = server.request("GET", "/readyz")
        if answer.status == 503 and b'"paused"' in answer.body:
            return answer.json
    return None


def test_a_model_that_raises_while_it_loads_is_tried_again_and_then_given_up(start, tmp_path):
    source = "class Model:\n    inputs = outputs = {'x': 'int64'}\n"
    source += "    def __init__(self, path):\n        raise OSError('the weights are not mounted')\n"
    server = start(MODEL=write_model(tmp_path / "broken", source), MULES=1, SERVING_LOAD_ATTEMPTS=2)
    paused = wait_until(lambda: failed_once(server), "the first load failed")
    assert paused["replicas"][0]["last_error"] == "the weights are not mounted"
    output = refused(server)
    assert "cannot be loaded: the weights are not mounted" in output


def test_the_same_server_starts_again_where_it_was(start):
    first = start(MODEL=FANCY, MULES=1).wait_ready()
    assert first.stop() == 0
    again = start(MODEL=FANCY, MULES=1, PORT=first.port, RUN_DIR=first.run_dir).wait_ready()
    assert again.predict({"text": "x"}).status == 200


def test_help_tells_the_environment_and_an_unknown_argument_is_refused():
    told = subprocess.run([ROOT / "entrypoint.sh", "--help"], capture_output=True, text=True, check=True)
    assert all(name in told.stdout for name in ("HOST", "PORT", "MODEL", "RUN_DIR", "SERVING_<NAME>"))
    refused = subprocess.run([ROOT / "entrypoint.sh", "train"], capture_output=True, text=True)
    assert refused.returncode == 2 and "'train'" in refused.stderr
    for command in ("serve", "reload", "status", "models", "models list", "models verify", "predict"):
        arguments = [ROOT / "entrypoint.sh", *command.split(), "--help"]
        assert (
            f"usage: muleteer {command}" in subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        )
