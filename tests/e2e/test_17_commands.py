"""The command line beside serve and reload: what it tells of servers and models, and how it ends."""

import json
import os
import pty
import signal
import subprocess

import pytest

from .conftest import FANCY, PATIENCE_S, ROOT, wait_until, write_model
from .test_16_versions import label, source, write_version

DIES = """
class Model:
    inputs = outputs = {"x": "int64"}
    def __init__(self, path):
        import os
        os.kill(os.getpid(), 11)
"""


def muleteer(*arguments, cwd="/", **environ):
    """What it printed and complained of, and its exit status."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SERVING_")}
    done = subprocess.run(
        [ROOT / "entrypoint.sh", *map(str, arguments)],
        env=inherited | {key: str(value) for key, value in environ.items()},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return done.stdout, done.stderr, done.returncode


@pytest.fixture
def model(tmp_path):
    write_version(tmp_path / "model", 1)
    write_version(tmp_path / "model", 2, mib=50)
    return tmp_path / "model"


def test_status_is_kept_live_on_a_terminal(start, model):
    server = start(MODEL=model, MULES=1).wait_ready()
    terminal, theirs = pty.openpty()
    command = [ROOT / "entrypoint.sh", "status", "--watch"]
    environ = os.environ | {"RUN_DIR": str(server.run_dir), "TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen(command, env=environ, cwd="/", stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""

        def shows(what):
            def found():
                nonlocal seen
                seen += os.read(terminal, 65536)
                return what in seen

            return found

        wait_until(shows(b"spare"), "the replica and the spare are shown")
        assert b"ready: model (python)" in seen and b"a second" in seen and b"busy" in seen
        (pid,) = (one["pid"] for one in server.ready()["replicas"])
        os.kill(pid, signal.SIGKILL)
        wait_until(shows(b"the one before was killed by signal 9"), "its death is shown")
        process.send_signal(signal.SIGINT)
        # the cursor is there again
        wait_until(shows(b"\x1b[?25h"), "it ends")
        assert process.wait(10) == 0
    os.close(terminal)


def test_status_tells_what_is_served(start, model):
    label(model, stable=1, canary=2)
    server = start(MODEL=model, MULES=3, SERVING_VERSION_POLICY="all").wait_ready()
    wait_until(lambda: all(one["ready"] for one in server.ready()["replicas"]), "all are ready")
    out, err, status = muleteer("status", RUN_DIR=server.run_dir)
    assert (err, status) == ("", 0)
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["ready:", "model", "(python)"]
    assert lines[1:4] == [
        ["version", "labels", "replicas"],
        ["1", "stable,", "answers", "who", "names", "none", "2"],
        ["2", "canary", "1"],
    ]
    assert lines[4] == ["replica", "pid", "version", "state", "tasks", "memory"]
    assert sorted(line[2] for line in lines[5:]) == ["1", "1", "2"] and {line[3] for line in lines[5:]} == {"ready"}
    out, err, status = muleteer("status", "--json", RUN_DIR=server.run_dir)
    assert (json.loads(out)["status"], json.loads(out)["ready_replicas"], err, status) == ("ready", 3, "", 0)


def test_status_tells_of_a_server_that_is_not_ready_and_of_none(start, tmp_path):
    holds = "import time\nwhile True:\n    time.sleep(0.1)\n"
    server = start(MODEL=write_model(tmp_path / "model", holds), MULES=1)
    found = wait_until(
        lambda: (found := muleteer("status", RUN_DIR=server.run_dir))[2] == 1 and "loading" in found[0] and found,
        "it loads",
    )
    assert found[0].startswith("not ready\n") and found[1] == ""
    assert muleteer("status", "--port", "1", cwd=ROOT)[2] == 2
    _, err, status = muleteer("status", RUN_DIR=tmp_path)
    assert (err, status) == (f"muleteer: no server runs in {tmp_path}; set PORT or RUN_DIR as for serve\n", 2)


def test_the_versions_of_a_model_are_listed(model):
    label(model, stable=1)
    out, err, status = muleteer("models", "list", "--model", "model", cwd=model.parent)
    assert (err, status) == ("", 0)
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == [f"{model},", "version_policy", "=", "latest"]
    assert lines[1] == ["version", "labels", "identity"]
    assert [line[:-1] for line in lines[2:]] == [["1", "stable"], ["2"]]
    out, _, _ = muleteer("models", "list", "--json", MODEL=model)
    found = json.loads(out)
    assert [(one["version"], one["labels"]) for one in found["versions"]] == [(1, ["stable"]), (2, [])]
    assert found["stale"] == ""
    out, _, status = muleteer("models", "fetch", "--model", "model", "--version", "1", cwd=model.parent)
    assert (out, status) == (f"{model / '1'}\n", 0)
    _, err, status = muleteer("models", "list", "--model", "there is none", cwd=model.parent)
    assert (err.count("\n"), status) == (1, 2) and "there is none does not exist; set MODEL" in err


def test_a_model_is_verified_in_a_process_of_its_own(model):
    out, err, status = muleteer("models", "verify", MODEL=model)
    assert (err, status) == ("", 0)
    told = [line.split() for line in out.splitlines()]
    assert told[0] == ["model,", "version", "2", "(python),", str(model / "2")]
    assert told[1:3] == [["takes", "text", "string"], ["gives", "res", "string"]]
    assert "for 1 row" in out and "not compared: there is no answer.json" in out
    found = json.loads(muleteer("models", "verify", "--json", "--version", "1", MODEL=model)[0])
    assert (found["version"], found["inputs"], found["compared"]) == (1, ["text string"], False)
    # version 2 has 50 MB more
    heavier = json.loads(muleteer("models", "verify", "--json", MODEL=model)[0])
    assert 40 < heavier["model_mb"] - found["model_mb"] < 60


@pytest.mark.parametrize(
    ("text", "answer", "arguments", "told"),
    [
        (DIES, None, [], "the process that loaded the model was killed by signal 11 (SIGSEGV)"),
        ("raise SystemExit(3)", None, [], "the model raised SystemExit: 3"),
        ("raise RuntimeError('the weights are gone')", None, [], "the model raised RuntimeError: the weights are gone"),
        ("print('no class')", None, [], "has no class Model"),
        (source(1), "other", [], "output 'res' of the sample differs from answer.json"),
        (source(1), None, ["--version", "3"], "there is no version 3 in "),
    ],
)
def test_a_model_that_cannot_be_served_is_told(tmp_path, text, answer, arguments, told):
    folder = write_model(tmp_path / "model", text)
    if answer:
        (folder / "answer.json").write_text(json.dumps({"res": answer}))
    out, err, status = muleteer("models", "verify", *arguments, MODEL=folder)
    assert (out, status) == ("", 1)
    assert told in err.splitlines()[-1] and err.splitlines()[-1].startswith("muleteer: ")


def test_a_file_is_answered_as_the_server_answers_it(fancy, tmp_path):
    body = (FANCY / "sample.json").read_bytes() if (FANCY / "sample.json").exists() else b'{"text": "a wild mule"}'
    (tmp_path / "body.json").write_bytes(body)
    out, err, status = muleteer("predict", "body.json", "--model", FANCY, cwd=tmp_path)
    assert (err, status) == ("", 0)
    assert out == fancy.request("POST", "/predict", body).body.decode() + "\n"
    for name, content, told in [
        ("none.json", None, "none.json: No such file or directory"),
        ("bad.json", "{", "JSON"),
        ("other.json", '{"y": 1}', "the model takes"),
    ]:
        if content is not None:
            (tmp_path / name).write_text(content)
        out, err, status = muleteer("predict", name, "--model", FANCY, cwd=tmp_path)
        assert (out, status) == ("", 1) and told in err, name


def test_a_shell_completes_commands_options_and_files(tmp_path):
    (tmp_path / "a model").mkdir()
    (tmp_path / "body.json").write_text("{}")
    terminal, theirs = pty.openpty()
    environ = {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}", "TERM": "dumb", "HOME": str(tmp_path)}
    bash = ["bash", "--norc", "--noprofile", "-i"]
    with subprocess.Popen(
        bash, env=environ, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)

        def types(keys, what):
            os.write(terminal, keys)
            seen = b""
            while what not in seen:
                seen += os.read(terminal, 65536)

        types(b"eval \"$(muleteer completion bash)\"; echo re''ady\r", b"ready\r\n")
        # what it would have been given
        types(b'muleteer() { printf "<%s>" "$@"; echo .; }; echo de\'\'fined\r', b"defined\r\n")
        types(b"muleteer rel\t--ver\t2\r", b"<reload><--version><2>.")
        types(b"muleteer models ver\t--js\t--model a\t\r", b"<models><verify><--json><--model><a model/>.")
        types(b"muleteer pred\tbo\t\r", b"<predict><body.json>.")
        types(b"muleteer completion z\t\r", b"<completion><zsh>.")
        types(b"muleteer tune --inp\tbo\t\r", b"<tune><--inputs><body.json>.")
        os.write(terminal, b"exit\r")
        process.wait(PATIENCE_S)
    os.close(terminal)


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_are_told_all_commands(shell):
    out, err, status = muleteer("completion", shell)
    assert (err, status) == ("", 0)
    assert all(word in out for word in ("serve", "reload", "verify", "unpin", "json", "predict"))


def test_a_shell_that_nobody_knows_is_told():
    out, err, status = muleteer("completion", "cmd")
    assert (out, status) == ("", 2) and "bash, zsh, fish, tcsh" in err.replace("'", "")


def test_a_reload_tells_in_json_how_it_ended(start, model):
    server = start(MODEL=model, MULES=1, RUN_DIR=model.parent / "run").wait_ready()
    out, err, status = muleteer("reload", "--json", RUN_DIR=server.settings["RUN_DIR"])
    assert (json.loads(out)["state"], err, status) == ("done", "", 0)
    assert "reloaded: model" in json.loads(out)["text"]
    out, err, status = muleteer("reload", "--json", "--version", "3", RUN_DIR=server.settings["RUN_DIR"])
    assert (json.loads(out)["state"], err, status) == ("failed", "", 1) and "3" in json.loads(out)["text"]
    assert server.stop() == 0
    out, err, status = muleteer("reload", "--json", "--version", "1", RUN_DIR=server.settings["RUN_DIR"])
    assert (json.loads(out)["state"], err, status) == ("done", "", 0)
