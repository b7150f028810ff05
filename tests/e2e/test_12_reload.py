"""Reloads under load: not one request fails, and what cannot be loaded changes nothing."""

import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from .conftest import PATIENCE_S, ROOT, ask, descendants, free_port, masters, reload, wait_until, write_model

# answers with the word that its folder held when it was loaded; a file `hold` keeps it loading
WORDS = """
import time
from pathlib import Path

class Model:
    inputs = {"text": "string"}
    outputs = {"res": "string"}
    batched = False

    def __init__(self, path):
        while (Path(path) / "hold").exists():
            (Path(path) / "held").touch()
            time.sleep(0.05)
        self.word = (Path(path) / "word").read_text()

    def predict(self, inputs):
        if inputs["text"].startswith("slow"):
            time.sleep(1.5)
        return {"res": f"{self.word} {inputs['text']}"}
"""
SHORT = {"SERVING_DEADLINE_MS": 4000, "SERVING_STOP_TIMEOUT_S": 5}


def write_version(model, version, word, hold=False):
    """A version folder that appears as a whole."""
    new = write_model(model / f"new-{version}", WORDS)
    if word:
        (new / "word").write_text(word)
    if hold:
        (new / "hold").touch()
    return new.rename(model / str(version))


@pytest.fixture
def model(tmp_path):
    write_version(tmp_path / "model", 1, "one")
    return tmp_path / "model"


def write_ini(tmp_path, **changes):
    """A copy of uwsgi.ini with other numbers."""
    lines = (ROOT / "uwsgi.ini").read_text().splitlines()
    for key, value in changes.items():
        number = next(number for number, line in enumerate(lines) if line.startswith(f"{key} = "))
        lines[number] = f"{key} = {value}"
    (tmp_path / "uwsgi.ini").write_text("\n".join(lines))
    return tmp_path / "uwsgi.ini"


@contextmanager
def load(server, *words, clients=6, again=False, text=""):
    """Clients that do not cease to ask.  Gives how often each word was said; each answer was right, in the end.

    again: a client asks once more when its connection was closed without an answer.
    """
    said = Counter()
    wrong = []
    over = threading.Event()

    def client(number):
        connection = server.connect()
        turn = 0
        while not over.is_set():
            turn += 1
            sent = f"{text}{number}/{turn}"
            try:
                answer = ask(connection, "POST", "/predict", json.dumps({"text": sent}).encode())
                word, _, rest = answer.json.get("res", "").partition(" ")
                if (answer.status, rest) != (200, sent) or word not in words:
                    wrong.append((sent, answer))
                said[word] += 1
                ready = ask(connection, "GET", "/readyz")
                if ready.status != 200:
                    wrong.append(("/readyz", ready))
            except Exception as error:
                if not (again and isinstance(error, ConnectionError)):
                    wrong.append((sent, error))
                connection.close()
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        try:
            wait_until(lambda: sum(said.values()) >= clients or wrong, "all clients ask")
            yield said
            count = sum(said.values())
            wait_until(lambda: sum(said.values()) >= count + clients or wrong, "all clients still ask")
        finally:
            over.set()
        for one in running:
            one.result()
    assert wrong == []


def says(server):
    """The words that the replicas answer with."""
    with closing(server.connect()) as connection:
        return {ask(connection, "POST", "/predict", b'{"text": ""}').json["res"].strip() for _ in range(20)}


def assert_stops(server, pids):
    """It stops with 0, and nothing of it is left."""
    pids = {server.process.pid, *pids, *descendants(server.process.pid)}
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all processes have ended", 10)
    assert server.semaphores(pids) == set()
    assert [file.name for file in server.run_dir.iterdir() if file.is_socket() or file.is_symlink()] == []
    assert list(server.run_dir.glob("uwsgi-*")) == []


def test_a_new_uwsgi_ini_takes_force_and_no_request_fails(start, tmp_path, model):
    ini = write_ini(tmp_path, mules=1, max_batch_rows=4)
    server = start(MODEL=model, INI=ini).wait_ready()
    pids = descendants(server.process.pid)
    nginx = server.processes()["nginx"]
    with load(server, "one") as said:
        write_ini(tmp_path, mules=3, max_batch_rows=4)
        assert reload(server)[::2] == (0, "")
        count = said["one"]
        wait_until(lambda: said["one"] > count + 20, "the new one serves")
    assert len(server.ready()["replicas"]) == 3
    (master,) = masters(server, 1)
    assert master not in pids and server.processes()["nginx"] == nginx
    assert "reloaded: uWSGI anew, model, version 1, 3 replicas" in server.output
    assert_stops(server, pids)


def test_a_new_version_of_the_model_takes_over_and_no_request_fails(start, model):
    server = start(MODEL=model, MULES=2).wait_ready()
    pids = descendants(server.process.pid)
    before = masters(server, 1)
    with load(server, "one", "two") as said:
        write_version(model, 2, "two")
        status, out, err = reload(server)
        assert (status, err) == (0, "")
        assert out.splitlines()[-1] == "muleteer: reloaded: model, version 2, 2 of 2 replicas"
        assert says(server) == {"two"}
        assert set(said) == {"one", "two"}
        # and back: the highest there is
        (model / "2").rename(model / "old")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.output.count("reloaded: ") == 2, "the signal does the same")
    assert says(server) == {"one"}
    assert masters(server, 1) == before
    assert server.predict({"text": ""}).headers["x-model-version"] == "1"
    assert_stops(server, pids)


def test_limits_that_nginx_keeps_take_force_too(start, tmp_path, model):
    ini = write_ini(tmp_path, deadline_ms=5000)
    server = start(MODEL=model, INI=ini, MULES=2).wait_ready()
    assert server.predict({"text": "slow"}).status == 200
    # nginx closes connections on which it has read no request yet; each request that it has read is answered
    with load(server, "one", again=True):
        write_ini(tmp_path, deadline_ms=1000, max_body_bytes=2000)
        assert reload(server)[::2] == (0, "")
    statuses = Counter(json.loads(line)["status"] for line in (server.run_dir / "access.log").read_text().splitlines())
    assert set(statuses) == {200}
    assert server.predict({"text": "slow"}).status == 504
    refused = wait_until(lambda: (found := server.predict({"text": "x" * 3000})).status == 413 and found, "a refusal")
    assert "2000 bytes" in refused.json["detail"]
    assert_stops(server, ())


def test_what_waits_in_the_backlog_is_answered(start, model):
    """As many clients as threads, and so often some that wait in the socket when the old uWSGI gives up its place."""
    server = start(MODEL=model, MULES=4, WORKERS=2, THREADS=4).wait_ready()
    with load(server, "one", clients=4):
        for _ in range(3):
            assert reload(server, "--all")[::2] == (0, "")
    with load(server, "one", clients=4, text="slow"):
        assert reload(server, "--all")[::2] == (0, "")
    assert_stops(server, ())


def test_a_model_that_cannot_be_loaded_changes_nothing(start, model):
    server = start(MODEL=model, MULES=2, SERVING_LOAD_ATTEMPTS=1, **SHORT).wait_ready()
    before = masters(server, 1)
    with load(server, "one", "three"):
        write_version(model, 2, word=None)
        status, _, err = reload(server)
        assert status == 1
        assert f"not reloaded, and what served serves on: the model in {model / '2'} cannot be loaded: " in err
        assert "No such file" in err
        assert masters(server, 1) == before
        (model / "3").mkdir()
        status, _, err = reload(server)
        assert (status, err.count("\n")) == (1, 1) and f"{model / '3'}" in err
        # and the next one is as good as any
        (model / "3").rmdir()
        write_version(model, 3, "three")
        assert reload(server)[0] == 0
    assert says(server) == {"three"}
    assert_stops(server, before)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"threads": 0}, "threads = 0: it must be 1 or more; 1 would do"),
        (
            {"stop_timeout_s": 10**17},
            'nginx refuses its configuration: "worker_shutdown_timeout" directive',
        ),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_started(start, tmp_path, model, changes, sentence):
    server = start(MODEL=model, INI=write_ini(tmp_path), MULES=1).wait_ready()
    pids = sorted(descendants(server.process.pid))
    starts = server.log.count("*** Starting uWSGI")
    with load(server, "one"):
        write_ini(tmp_path, **changes)
        status, _, err = reload(server)
        assert (status, err.count("\n")) == (1, 1) and sentence in err
    assert sorted(descendants(server.process.pid)) == pids
    assert server.log.count("*** Starting uWSGI") == starts == 1
    assert_stops(server, ())


def test_a_uwsgi_that_dies_at_its_start_changes_nothing(start, tmp_path, model):
    ini = write_ini(tmp_path)
    server = start(MODEL=model, INI=ini, MULES=1).wait_ready()
    before = masters(server, 1)
    with load(server, "one"):
        ini.write_text(ini.read_text().replace("single-interpreter", "single-interpretor"))
        status, _, err = reload(server)
        assert status == 1 and "uwsgi ended by itself with status 1" in err and "single-interpretor" in err
        assert masters(server, 1) == before
    assert_stops(server, before)


def asking(server):
    """`entrypoint.sh reload` in a process that goes on."""
    environ = os.environ | {"RUN_DIR": str(server.settings["RUN_DIR"])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([ROOT / "entrypoint.sh", "reload"], env=environ, text=True, **pipes)


def test_what_is_asked_for_during_a_reload_is_done_after_it(start, model):
    server = start(MODEL=model, MULES=1).wait_ready()
    pids = set(descendants(server.process.pid))
    with load(server, "one", "two", "three"):
        held = write_version(model, 2, "two", hold=True)
        server.process.send_signal(signal.SIGHUP)
        wait_until((held / "held").exists, "it waits for version 2")
        # too late for the one that runs
        write_version(model, 3, "three")
        asked = [asking(server) for _ in range(2)]
        for client in asked:
            assert client.stdout.readline().startswith("muleteer: another reload runs, and this one comes after it: ")
        pids |= set(descendants(server.process.pid))
        (held / "hold").unlink()
        for client in asked:
            out, err = client.communicate(timeout=PATIENCE_S)
            assert (client.returncode, err) == (0, "") and "version 3" in out
        assert says(server) == {"three"}
    # one for both, as both had asked before the first was done
    assert server.output.count("reloaded: ") == 2
    assert_stops(server, pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_new_one_loads_ends_both(start, model, number):
    server = start(MODEL=model, MULES=1, **SHORT).wait_ready()
    write_version(model, 2, "two", hold=True)
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(reload, server, "--all")
        masters(server, 2)
        wait_until((model / "2" / "held").exists, "the new model loads")
        pids = {server.process.pid, *descendants(server.process.pid)}
        answer = pool.submit(server.predict, {"text": "slow"})
        wait_until(lambda: server.ready()["replicas"][0]["busy_s"] > 0, "it is busy", 5)
        assert server.stop(number) == 0, server.output
        assert answer.result().json == {"res": "one slow"}
        status, _, err = asked.result()
        assert (status, err) == (1, "muleteer: not reloaded: the server stops\n")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all processes have ended", 10)
    assert server.semaphores(pids) == set()
    assert list(server.run_dir.glob("uwsgi-*")) == []


def test_a_stop_while_the_old_one_finishes_ends_both_and_loses_nothing(start, model):
    server = start(MODEL=model, MULES=1, **SHORT).wait_ready()
    write_version(model, 2, "two", hold=True)
    server.process.send_signal(signal.SIGUSR1)
    masters(server, 2)
    with ThreadPoolExecutor(2) as clients:
        (model / "2" / "hold").unlink()

        # both are asked as long as the old one answers, so that one of them is under way at the switch
        def ask_old():
            while (answer := server.predict({"text": "slow"})).json == {"res": "one slow"}:
                if "the old one finishes" in server.output:
                    break
            return answer.status

        answers = [clients.submit(ask_old) for _ in range(2)]
        wait_until(lambda: "the old one finishes" in server.output, "the switch")
        pids = {server.process.pid, *descendants(server.process.pid)}
        assert server.stop() == 0, server.output
        assert [answer.result() for answer in answers] == [200, 200]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all processes have ended", 10)
    assert server.semaphores(pids) == set()


@pytest.mark.parametrize("mules", [1, 3])
def test_replicas_load_the_model_anew_one_after_another_and_no_request_fails(start, model, mules):
    server = start(MODEL=model, MULES=mules).wait_ready()
    before = masters(server, 1)
    with load(server, "one", "two"):
        (model / "1" / "word").write_text("two")
        status, out, err = reload(server)
        assert (status, err) == (0, "")
        assert out.splitlines()[-1] == f"muleteer: reloaded: model, version 1, {mules} of {mules} replicas"
        assert says(server) == {"two"}
    assert masters(server, 1) == before
    assert [replica["release"] for replica in server.ready()["replicas"]] == [2] * mules
    assert_stops(server, ())


@pytest.mark.parametrize("mules", [1, 3])
def test_replicas_that_cannot_load_the_model_anew_serve_on(start, model, mules):
    server = start(MODEL=model, MULES=mules, SERVING_LOAD_ATTEMPTS=1).wait_ready()
    with load(server, "one", "two"):
        (model / "1" / "word").rename(model / "word")
        status, _, err = reload(server)
        assert status == 1 and "No such file" in err
        assert says(server) == {"one"}
        (model / "1" / "word").write_text("two")
        assert reload(server)[::2] == (0, "")
        assert says(server) == {"two"}
    assert_stops(server, ())


def test_where_no_server_runs_nobody_is_asked(start, model, tmp_path):
    environ = os.environ | {"RUN_DIR": str(tmp_path)}
    asked = subprocess.run([ROOT / "entrypoint.sh", "reload"], env=environ, capture_output=True, text=True)
    sentence = f"muleteer: no server runs in {tmp_path}; set PORT or RUN_DIR as for serve\n"
    assert (asked.returncode, asked.stdout, asked.stderr) == (2, "", sentence)
    server = start(MODEL=model, MULES=1).wait_ready()
    server.process.kill()
    server.process.wait()
    # its lock file is left, and the lock is not
    assert (server.run_dir / "lock").exists()
    assert reload(server)[0] == 2


def test_a_server_that_dies_during_a_reload_is_missed(start, model):
    server = start(MODEL=model, MULES=1).wait_ready()
    write_version(model, 2, "two", hold=True)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(reload, server)
        wait_until((model / "2" / "held").exists, "the new model loads")
        server.process.kill()
        server.process.wait()
        status, _, err = asked.result()
    assert (status, err) == (1, f"muleteer: the server in {server.run_dir} ended before the reload was done\n")
    # what it was at is over
    (model / "2" / "hold").unlink()
    again = start(MODEL=model, MULES=1, RUN_DIR=server.run_dir, LOG_DIR=server.run_dir).wait_ready()
    status, out, err = reload(again)
    assert (status, err) == (0, "") and "another reload runs" not in out


def test_a_terminal_that_is_closed_stops_it(model, tmp_path):
    """The kernel tells of that by the same signal."""
    environ = {
        "PORT": str(free_port()),
        "RUN_DIR": str(tmp_path / "run"),
        "LOG_DIR": str(tmp_path),
        "MODEL": str(model),
    }
    pid, terminal = pty.fork()
    if not pid:
        os.execve(ROOT / "entrypoint.sh", [ROOT / "entrypoint.sh"], os.environ | environ | {"MULES": "1"})
    told = b""
    while b"  try " not in told:
        told += os.read(terminal, 4096)
    pids = descendants(pid)
    os.close(terminal)
    deadline = time.monotonic() + PATIENCE_S
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (found[0], os.waitstatus_to_exitcode(found[1])) == (pid, 0)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
