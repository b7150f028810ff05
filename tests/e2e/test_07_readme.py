"""The README's commands as they stand, in a clean copy of the tree, by somebody who has nothing yet."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from .conftest import ROOT, descendants, free_port, wait_until

README = (ROOT / "README.md").read_text()
BLOCKS = [block.strip().splitlines() for block in re.findall(r"^```sh\n(.*?)^```", README, re.S | re.M)]
COMMANDS = [command for block in BLOCKS for command in block]
INSTALL_PATIENCE_S = 1200


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What git knows of the tree, and nothing that was built in it."""
    folder = tmp_path_factory.mktemp("clone")
    listed = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def serve(clone):
    """Runs a `make serve` of the README, on a free port where the README has one of its own."""
    started = []

    def serve(command):
        port = free_port()
        environ = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        out = clone / f"out.{port}"
        with out.open("wb") as stream:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {re.sub(r'PORT=[0-9]+', '', command)}"],
                cwd=clone,
                # a Python of the user's choice is for the environment that is made, and for nothing else
                env=environ | {"PORT": str(port), "PYTHON": str(Path(sys.base_prefix) / "bin" / "python3")},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        ended = lambda: process.poll() is not None  # noqa: E731
        wait_until(lambda: "  try " in out.read_text() or ended(), "it is serving", INSTALL_PATIENCE_S)
        assert not ended(), out.read_text()
        return process, port, out

    yield serve
    for process in started:
        for pid in (process.pid, *descendants(process.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()


def run(command, clone, port):
    """The output of a command of the README, with its port replaced."""
    found = subprocess.run(
        ["bash", "-c", re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", command)],
        cwd=clone,
        env=os.environ | {"PORT": str(port)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def ctrl_c(process):
    """What a terminal does: SIGINT to all of the foreground process group."""
    pids = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(30)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all processes have ended", 10)


def test_two_commands_serve_the_example_from_a_clean_clone(clone, serve):
    start, ask = COMMANDS[:2]
    assert start == "make serve"
    process, port, out = serve(start)
    told = out.read_text()
    assert "installing into .venv" in told and "accuracy on 360 held-out images" in told
    answer = json.loads(run(ask, clone, port))
    shown = json.loads(re.search(r"^```json\n(.*?)^```", README, re.S | re.M)[1])
    assert answer["digit"] == shown["digit"] and set(answer) == set(shown)
    assert json.loads(run(told.partition("  try ")[2], clone, port)) == answer
    rows, metadata = (json.loads(run(one, clone, port)) for one in COMMANDS if "8080/v" in one)
    assert rows == {"predictions": [answer]}
    assert [one["name"] for one in metadata["inputs"]] == ["image"]
    scrape = next(one for one in COMMANDS if "8080/metrics" in one)
    # the second command, and what the start says to try
    counted = 'muleteer_requests_total{code="",model="digits",route="/predict",status="200",version="1"}'
    assert counted in README and f"{counted} 2.0\n" in run(scrape, clone, port)
    install = next(one for one in COMMANDS if one.endswith("'.[conform]'"))
    run(install, clone, port)
    conform = run(COMMANDS[COMMANDS.index(install) + 1], clone, port)
    assert "  pass  flat data (POST /v2/models/digits/infer)" in conform and "  FAIL  " not in conform
    ctrl_c(process)
    assert "stopped" in out.read_text()


def test_an_own_model_is_served_with_its_own_numbers(clone, serve):
    start, curl, client = COMMANDS[2:5]
    assert start.startswith("make serve MODEL=examples/fancy MULES=4")
    process, port, out = serve(start)
    assert "installing" not in out.read_text()
    assert "mules  4, " in out.read_text()
    assert json.loads(run(curl, clone, port)) == {"res": "Can't tell anything smart about: hello"}
    assert "Can't tell anything smart about: hello" in run(client, clone, port)
    table = next(command for command in COMMANDS if "text/csv" in command)
    assert run(table, clone, port).splitlines() == ["res", "Can't tell anything smart about: hello"]
    ctrl_c(process)


def test_an_engine_is_an_extra_of_the_package(clone, serve, tmp_path):
    install = COMMANDS[5]
    assert install.endswith("'.[onnx]'")
    echo_in_onnx(tmp_path / "echo.onnx")
    start = f"make serve MODEL={tmp_path}"
    environ = os.environ | {"PORT": str(free_port())}
    told = subprocess.run(["bash", "-c", start], cwd=clone, env=environ, capture_output=True, text=True)
    assert told.returncode != 0
    assert "is for the engine onnx, and onnxruntime is not installed: pip install '.[onnx]'" in told.stderr
    run(install, clone, 0)
    process, port, out = serve(start)
    assert json.loads(run(out.read_text().partition("  try ")[2], clone, port)) == {"y": [0, 0]}
    ctrl_c(process)


def echo_in_onnx(file):
    """A model that gives its input again."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)


def test_a_reload_takes_what_has_changed(clone, serve):
    process, port, out = serve(COMMANDS[2])
    ini = clone / "uwsgi.ini"
    shipped = ini.read_text()
    ini.write_text(shipped.replace("threads = 64", "threads = 32"))
    assert ini.read_text() != shipped
    told = run(COMMANDS[COMMANDS.index("make reload")], clone, port)
    assert told.splitlines()[-1] == "muleteer: reloaded: uWSGI anew, fancy, version 1, 4 replicas"
    assert told.splitlines()[-1] in out.read_text()
    ini.write_text(shipped)
    back = run(next(command for command in COMMANDS if "reload --version" in command), clone, port)
    assert back.splitlines()[-1] == "muleteer: reloaded: uWSGI anew, fancy, version 1, 4 replicas"
    status = run(".venv/bin/muleteer status", clone, port)
    assert status.startswith("ready: fancy (python)") and "pinned by `reload --version 1`" in status
    ctrl_c(process)


def test_a_model_is_looked_at_without_a_server(clone):
    port = free_port()
    check, verify, predict = (
        command for command in COMMANDS if command.startswith(".venv/bin/muleteer") and "models" in command
    )
    assert "model: digits version 1 (tensorflow) loads in" in run(check, clone, port)
    assert "takes   image float32[8, 8]" in run(verify, clone, port)
    shown = json.loads(re.search(r"^```json\n(.*?)^```", README, re.S | re.M)[1])
    assert json.loads(run(predict, clone, port))["digit"] == shown["digit"]
    modules = run(".venv/bin/python -m muleteer models list", clone, port)
    assert "version_policy = latest" in modules
    capacity = next(command for command in COMMANDS if " capacity " in command)
    assert re.search(r"p99 ≤ 25 ms holds for up to \d+ requests a second", run(capacity, clone, port))
    completes = next(command for command in COMMANDS if "completion" in command)
    assert "muleteer" in run(f"{completes}; complete -p muleteer", clone, port)


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("cc", "a C compiler is missing, and uWSGI is built from source: apt-get install gcc libc6-dev"),
        ("python3", "python3 is not Python 3.11, 3.12 or 3.13: make serve PYTHON=/path/to/python3.11"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(clone, tmp_path, missing, told):
    tools = {name: shutil.which(name) for name in ("bash", "sh", "make", "cc", "touch", "test")}
    tools["python3"] = Path(sys.base_prefix) / "bin" / "python3"
    for name, path in tools.items():
        if name != missing:
            (tmp_path / name).symlink_to(path)
    bare = tmp_path / "bare"
    shutil.copytree(clone, bare, ignore=shutil.ignore_patterns(".venv", "models", "run", "out.*", "*.egg-info"))
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    made = subprocess.run(["make", "serve"], cwd=bare, env=environ, capture_output=True, text=True)
    assert made.returncode != 0
    assert [line for line in made.stderr.splitlines() if line.startswith("muleteer: ")] == [f"muleteer: {told}"]
    assert not (bare / ".venv").exists()


def test_make_help_lists_the_verbs(clone):
    told = run("make help", clone, 0)
    assert [line.split()[1] for line in told.splitlines() if line.startswith("  make ")] == [
        "help",
        "serve",
        "reload",
        "test",
        "check",
        "chaos",
        "soak",
        "overload",
        "bench",
        "bench-peers",
        "profile",
        "image",
        "clean",
    ]


def test_every_other_command_is_run_by_ci():
    image = (ROOT / "tests" / "image" / "check.sh").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    rest = COMMANDS[6:]
    own = [command for command in rest if not command.startswith(("docker", ".venv/bin/", "curl", "eval"))]
    assert own == ["make reload", "make test"]
    assert "make check" in ci and "image/check.sh" in ci
    for command in rest:
        if command.startswith("docker run"):
            # its parts: the port, and the model that is mounted
            for part in re.findall(r"-p \S+:(\d+)|(-e MODEL=/models/\w+)", command):
                assert "".join(part) in image, command
        if command.startswith("docker exec CONTAINER "):
            assert command.removeprefix("docker exec CONTAINER ") in image
