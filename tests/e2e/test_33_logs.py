"""What the logs tell of a request and of the processes, on a terminal and in files; what is kept of predictions."""

import gzip
import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import brotli
import numpy as np
import pyarrow.parquet
import pytest
from tritonclient import grpc as triton

import nginx
from serving.settings import Settings

from .conftest import DIGITS, FANCY, ROOT, free_port, wait_until, write_model
from .test_28_metrics import scrape, total

STAGES = ("accept_ms", "decode_ms", "queue_ms", "predict_ms", "encode_ms")
NUMBERS = ("version", "rows", "batch_rows", *STAGES)
IMAGE = {"image": [[0] * 8] * 8}
ECHO = """
import os, sys
class Model:
    inputs = {"x": "float32[2]", "word": "string"}
    outputs = {"y": "float32[2]", "word": "string"}
    def __init__(self, path):
        print("the model prints", file=sys.stderr)
        os.write(2, b"W0131 12:00:00.123456   12 library.cc:7] of its own\\n")
    def predict(self, inputs):
        words = inputs["word"].ravel().tolist()
        if "raise" in words:
            secret = "a variable of the model"
            raise ValueError("unlucky")
        if "crash" in words:
            os.abort()
        return {"y": inputs["x"] * 2, "word": inputs["word"]}
"""


def row(word="a", x=1.0):
    return {"x": [x, x + 0.5], "word": word}


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "Écho", ECHO)


def lines(file):
    """Those of a log; each is JSON, whatever it tells of."""
    return [json.loads(line) for line in file.read_text().splitlines()]


# ---- the access log


def test_a_line_tells_all_of_a_prediction(start, echo):
    server = start(MODEL=echo, MULES=1).wait_ready()
    answer = server.predict({"instances": [row(), row("b")]}, X_Request_ID="well-1")
    assert answer.status == 200 and "x-log" not in answer.headers
    line = server.access("well-1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", line["time"])
    assert (line["client"], line["method"], line["path"]) == ("127.0.0.1", "POST", "/predict")
    assert (line["route"], line["model"], line["version"]) == ("/predict", "Écho", 1)
    assert (line["rows"], line["batch_rows"], line["status"], line["code"]) == (2, 2, 200, "")
    assert [line[f"{stage}_ms"] for stage in ("decode", "queue", "predict", "encode")] == [*answer.timing.values()]
    # nginx counts in whole milliseconds, and from before what it passes on
    assert sum(line[stage] for stage in STAGES) <= line["total_s"] * 1000 + 2
    assert line["bytes_out"] == len(answer.body)


def test_a_refusal_has_its_code_and_no_stages(start, echo):
    server = start(MODEL=echo, MULES=1, SERVING_MAX_BODY_BYTES=5000).wait_ready()
    asked = {
        "by the worker": ("POST", "/predict", b"{}", 400, "signature", "/predict"),
        "by the model": ("POST", "/predict", json.dumps(row("raise")).encode(), 500, "engine", "/predict"),
        "by nginx": ("POST", "/predict", b"x" * 9000, 413, "too_large", ""),
        "by Flask": ("GET", "/v2/models/none", None, 404, "model_not_found", ""),
        "no path": ("GET", "//predict", None, 404, "not_found", ""),
    }
    for name, (method, path, body, status, code, route) in asked.items():
        id = name.replace(" ", "-")
        assert server.request(method, path, body, {"X-Request-ID": id}).status == status
        line = server.access(id)
        assert (line["status"], line["code"], line["route"], line["path"]) == (status, code, route, path), name
        assert [line[number] for number in NUMBERS if number not in ("version", "accept_ms")] == [None] * 6


def test_those_who_were_predicted_together_have_the_same_batch(start, echo):
    server = start(MODEL=echo, MULES=1, SERVING_BATCH_WAIT_MS=500, SERVING_MAX_BATCH_ROWS=6).wait_ready()
    clients = [
        threading.Thread(target=server.predict, args=(row(),), kwargs={"X_Request_ID": f"t-{n}"}) for n in range(6)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    found = [server.access(f"t-{number}") for number in range(6)]
    assert [line["rows"] for line in found] == [1] * 6
    sizes = Counter(line["batch_rows"] for line in found)
    # so many say that they were so many
    assert all(count % size == 0 for size, count in sizes.items()) and max(sizes) > 1


def test_a_call_by_grpc_is_told_as_well(start):
    port = free_port()
    server = start(MODEL=FANCY, MULES=1, GRPC_PORT=port).wait_ready()
    with closing(triton.InferenceServerClient(f"127.0.0.1:{port}")) as client:
        text = triton.InferInput("text", [1], "BYTES")
        text.set_data_from_numpy(np.array(["x"], object))
        client.infer("fancy", [text], headers={"x-request-id": "call-1"})
        with pytest.raises(triton.InferenceServerException):
            client.infer("other", [text], headers={"x-request-id": "call-2"})
    line = server.access("call-1")
    assert (line["status"], line["grpc_status"], line["code"], line["rows"], line["model"]) == (200, 0, "", 1, "fancy")
    line = server.access("call-2")
    assert (line["status"], line["grpc_status"], line["code"]) == (200, 5, "model_not_found")


def test_every_line_is_json_whatever_a_client_sends(start, echo):
    server = start(MODEL=echo, MULES=1, SERVING_LOG_LEVEL="debug").wait_ready()
    sent = [
        b'GET /"quote"\\back\\u0000 HTTP/1.1\r\nHost: x\r\n\r\n',
        b"GET /\xff\xfe\xc3 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /tab\tand\x01\x02 HTTP/1.1\r\nHost: x\r\n\r\n",
        b'POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-ID: "},{"a":"\r\nContent-Length: 2\r\n\r\n{}',
        b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Log: 1;2\r\nServer-Timing: decode\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Model-Version: \xff;\x22\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/models/%22;%0a:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b'"G ET" \x00\r\n\r\n',
    ]
    for request in sent:
        with socket.create_connection(("127.0.0.1", int(server.port)), timeout=10) as client:
            client.sendall(request)
            client.recv(65536)
    server.predict(row("raise\n\x1b[31m\ud800"), X_Request_ID="last")
    server.access("last")
    found = lines(server.run_dir / "access.log")
    assert len(found) == len(sent) + 1
    assert all(line["status"] >= 400 for line in found)
    assert all(isinstance(line[number], float | int | None) for line in found for number in NUMBERS)
    assert lines(server.run_dir / "server.log")


def test_what_went_well_is_sampled_and_what_did_not_is_always_there(start):
    server = start(MODEL=FANCY, MULES=1, SERVING_ACCESS_LOG_SAMPLE=0.25).wait_ready()
    for number in range(400):
        assert server.predict({"text": "x"}, X_Request_ID=f"well-{number}").status == 200
        if number < 20:
            assert server.request("POST", "/predict", b"{}", {"X-Request-ID": f"bad-{number}"}).status == 400
            assert server.request("GET", "//x").status == 404
    server.request("POST", "/predict", b"{}", {"X-Request-ID": "last"})
    server.access("last")
    found = Counter(line["status"] for line in lines(server.run_dir / "access.log"))
    assert (found[400], found[404]) == (21, 20)
    # a quarter of 400, by the ids: it is the same in each run
    assert 60 < found[200] < 140


@pytest.mark.parametrize("part", ["0", "0.00001", "0.0001", "0.29", "0.99999", "1"])
def test_nginx_knows_each_part_that_may_be_set(tmp_path, part):
    settings = Settings.read(ROOT / "uwsgi.ini", {"SERVING_ACCESS_LOG_SAMPLE": part})
    conf = nginx.configuration(settings, "127.0.0.1:8080", tmp_path, tmp_path)
    nginx.check_configuration(conf, tmp_path)
    wanted = {"0": "* 0;", "0.00001": "0.01% 1; * 0;", "0.99999": "* 1;", "1": "* 1;"}
    assert wanted.get(part, f"{100 * float(part):.2f}% 1; * 0;") in conf


def test_what_a_console_asks_for_each_second_is_there_only_where_it_is_refused(start):
    asked = ("/console/state.json", "/console/history.json")
    server = start(MODEL=FANCY, MULES=1, SERVING_MONITOR_FROM="192.0.2.1").wait_ready()
    for path in asked:
        assert server.request("GET", path, headers={"X-Request-ID": path.replace("/", "-")}).status == 403
    assert server.access("-console-history.json")["code"] == "forbidden"
    assert server.access("-console-state.json")["status"] == 403
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    for path in (*asked, "/metrics"):
        assert server.request("GET", path, headers={"X-Request-ID": path.replace("/", "-")}).status == 200
    server.access("-metrics")
    assert [line["path"] for line in lines(server.run_dir / "access.log") if "console" in line["path"]] == []


# ---- what processes say


def test_all_processes_say_what_they_say_in_one_form(start, echo):
    server = start(MODEL=echo, MULES=1).wait_ready()
    server.predict(row("raise"), X_Request_ID="raised-1")
    os.kill(server.processes()["mule"][0], signal.SIGKILL)
    told = lambda text: [line for line in lines(server.run_dir / "server.log") if text in line["message"]]  # noqa: E731
    wait_until(lambda: told("was killed by signal 9"), "the death is told")
    found = lines(server.run_dir / "server.log")
    assert all({"time", "level", "process", "logger", "message"} <= line.keys() for line in found)
    processes = {line["process"] for line in found}
    assert {"supervisor", "uwsgi", "mule 1", "mule 2"} <= processes and processes & {"worker 1", "worker 2"}
    (raised,) = told("the model raised")
    assert (raised["level"], raised["request_id"]) == ("error", "raised-1")
    assert raised["exception"].startswith("Traceback") and "ValueError: unlucky" in raised["exception"]
    (dead,) = told("was killed by signal 9")
    assert (dead["reason"], dead["restarts"], dead["model"], dead["version"]) == ("killed", 1, "Écho", 1)
    # what is only printed is a line, too, and a library's own level is its level
    assert {line["level"] for line in told("the model prints")} == {"info"}
    assert {line["level"] for line in told("library.cc:7] of its own")} == {"warning"}


def test_a_log_that_nobody_can_write_stops_nobody(start):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    # the supervisor reads what others print: while it stands still, they go on
    server.process.send_signal(signal.SIGSTOP)
    try:
        assert all(server.predict({"text": "x"}).status == 200 for _ in range(50))
    finally:
        server.process.send_signal(signal.SIGCONT)


class Terminal:
    """A server on a terminal, and what can be read there."""

    def __init__(self, run_dir, **environ):
        self.port = free_port()
        self._text = b""
        main, terminal = pty.openpty()
        inherited = {key: value for key, value in os.environ.items() if key not in ("LOG_DIR", "NO_COLOR")}
        own = {"PORT": str(self.port), "RUN_DIR": str(run_dir), "MODEL": str(FANCY), "MULES": "1"}
        self.process = subprocess.Popen(
            [ROOT / "entrypoint.sh"],
            env=inherited | own | environ,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self._thread = threading.Thread(target=self._read, args=(main,))
        self._thread.start()
        wait_until(lambda: "  try " in self.text, "it serves")

    def _read(self, main):
        try:
            while found := os.read(main, 4096):
                self._text += found
        except OSError:
            # the last process has closed it
            pass
        os.close(main)

    @property
    def text(self):
        return self._text.decode()

    def ask(self, id):
        url = f"http://127.0.0.1:{self.port}/predict"
        command = ["curl", "-s", url, "-H", f"X-Request-ID: {id}", "-d", '{"text": "x"}']
        subprocess.run(command, check=True, capture_output=True)
        wait_until(lambda: id in self.text, "the request is told")

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self._thread.join()


@contextmanager
def terminal(run_dir, **environ):
    with closing(Terminal(run_dir, **environ)) as found:
        yield found


def test_on_a_terminal_the_logs_are_text_in_colours(tmp_path):
    with terminal(tmp_path / "run") as found:
        found.ask("seen-1")
    plain = re.sub(r"\x1b\[\d*m", "", found.text).replace("\r", "")
    assert plain != found.text.replace("\r", "")
    clock = r"\d\d:\d\d:\d\d\.\d{3}"
    assert re.search(rf"^{clock} INFO    mule 1  replica ready: fancy version 1", plain, re.M)
    assert re.search(rf"^{clock} INFO    uwsgi  spawned uWSGI master process", plain, re.M)
    request = r" 200 POST /predict \d\.\d{3} s  fancy 1, 1 of 1 rows, queue [\d.]+ ms, predict [\d.]+ ms \(seen-1\)$"
    assert re.search(f"^{clock}{request}", plain, re.M), plain
    assert re.search(r"^muleteer: stopped$", plain, re.M)


def test_colours_and_text_are_left_out_when_they_are_not_wanted(tmp_path):
    with terminal(tmp_path / "plain", NO_COLOR="1") as found:
        found.ask("seen-2")
    assert "\x1b" not in found.text and " 200 POST /predict " in found.text
    with terminal(tmp_path / "json", SERVING_LOG_FORMAT="json") as found:
        found.ask("seen-3")
    said = [json.loads(line) for line in found.text.splitlines() if line]
    assert "seen-3" in [line.get("request_id") for line in said]
    assert "stopped" in [line.get("message") for line in said]


# ---- the prediction log


def kept(folder):
    return [line for file in sorted(folder.glob("*.parquet")) for line in pyarrow.parquet.read_table(file).to_pylist()]


def counted(server):
    samples = scrape(server)
    return [int(total(samples, "prediction_log_rows_total", result=what)) for what in ("written", "dropped")]


def keeping(start, folder, model, **environ):
    environ = {"SERVING_PREDICTION_LOG_SAMPLE": 1, "SERVING_PREDICTION_LOG_FILE_S": 1, **environ}
    return start(MODEL=model, MULES=1, WORKERS=2, SERVING_PREDICTION_LOG_DIR=folder, **environ).wait_ready()


def test_what_was_asked_and_answered_is_kept_and_can_be_asked_again(start, tmp_path, echo):
    folder = tmp_path / "kept"
    server = keeping(start, folder, echo)
    for number in range(10):
        rows = [row(f"{number}", number), row("ü", 0.1)]
        assert server.predict({"instances": rows}, X_Request_ID=f"kept-{number}").status == 200
    assert server.predict({"instances": [row("raise")]}).status == 500
    wait_until(lambda: counted(server) == [20, 0], "they are written")
    found = kept(folder)
    assert len(found) == 20 and {line["request_id"] for line in found} == {f"kept-{number}" for number in range(10)}
    first = next(line for line in found if line["request_id"] == "kept-3" and line["row"] == 0)
    assert (first["model"], first["version"], first["signature"]) == ("Écho", 1, "")
    assert (first["inputs.x"], first["inputs.word"]) == ([3.0, 3.5], "3")
    assert (first["outputs.y"], first["outputs.word"]) == ([6.0, 7.0], "3")
    assert [oct(file.stat().st_mode & 0o777) for file in (folder, *folder.iterdir())][:2] == ["0o700", "0o600"]
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"^\.venv/bin/python (\S+) run/predictions \S+$", readme, re.M)
    replay = [ROOT / ".venv/bin/python", command[1], folder, server.url]
    told = subprocess.run(replay, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told == "20 rows, 0 of them answered otherwise\n"
    server.stop()
    other = write_model(tmp_path / "other" / "Écho", ECHO.replace("* 2", "+ 1"))
    another = start(MODEL=other, MULES=1).wait_ready()
    replay[-1] = another.url
    told = subprocess.run(replay, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # what was asked again has been kept, too
    assert told == "40 rows, 40 of them answered otherwise\n"


def test_a_stop_keeps_what_it_has(start, tmp_path):
    server = keeping(start, tmp_path / "kept", DIGITS, SERVING_PREDICTION_LOG_FILE_S=3600)
    assert server.predict(IMAGE).status == 200
    wait_until(lambda: list((tmp_path / "kept").glob("*.part")), "it is being written")
    # before those are written that come now
    for _ in range(6):
        assert server.predict(IMAGE).status == 200
    assert server.stop() == 0
    assert len(kept(tmp_path / "kept")) == 7
    assert not list((tmp_path / "kept").glob("*.part"))


def test_what_a_killed_worker_had_not_written_is_counted_and_its_half_file_goes(start, tmp_path):
    folder = tmp_path / "kept"
    server = keeping(start, folder, DIGITS, SERVING_PREDICTION_LOG_FILE_S=3600)
    for _ in range(5):
        assert server.predict(IMAGE).status == 200
    wait_until(lambda: list(folder.glob("*.part")), "a file is being written")
    (worker,) = server.prediction_workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not list(folder.glob("*.part")), "its half file is gone")
    assert counted(server) == [0, 5]
    for _ in range(3):
        assert server.predict(IMAGE).status == 200
    wait_until(lambda: list(folder.glob("*.part")), "its successor writes")
    assert server.stop() == 0
    assert len(kept(folder)) == 3


def test_a_part_of_the_requests_is_kept_and_of_one_id_all_or_none(start, tmp_path, echo):
    server = keeping(start, tmp_path / "kept", echo, SERVING_PREDICTION_LOG_SAMPLE=0.3)
    for number in range(200):
        assert server.predict(row(), X_Request_ID=f"part-{number % 100}").status == 200
    wait_until(lambda: list((tmp_path / "kept").glob("*")), "it is being written")
    assert server.stop() == 0
    found = Counter(line["request_id"] for line in kept(tmp_path / "kept"))
    assert set(found.values()) == {2} and 15 <= len(found) <= 45


def test_a_disk_that_is_full_stops_no_request(start, tmp_path):
    folder = tmp_path / "kept"
    server = keeping(start, folder, DIGITS)
    assert server.predict(IMAGE).status == 200
    wait_until(lambda: counted(server) == [1, 0], "one is written")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    # what stands there is no folder: nothing can be written
    folder.write_text("")
    for _ in range(5):
        assert server.predict(IMAGE).status == 200
    wait_until(lambda: counted(server) == [1, 5], "they are dropped, and counted")
    assert server.log.count("cannot be written, and rows are dropped") >= 1
    folder.unlink()
    assert server.predict(IMAGE).status == 200
    wait_until(lambda: counted(server) == [2, 5], "it goes on by itself")


def test_it_is_refused_at_the_start_where_it_cannot_be_kept(start, tmp_path):
    server = start(MODEL=FANCY, SERVING_PREDICTION_LOG_SAMPLE="0.5")
    assert server.process.wait(30) == 2
    assert "prediction_log_dir = : prediction_log_sample = 0.5 needs a folder" in server.output
    (tmp_path / "file").touch()
    server = start(MODEL=FANCY, SERVING_PREDICTION_LOG_SAMPLE="1", SERVING_PREDICTION_LOG_DIR=tmp_path / "file")
    assert server.process.wait(30) == 2
    assert "is no folder that this user may write to" in server.output


# ---- Sentry


class Receiver(ThreadingHTTPServer):
    """Takes envelopes as Sentry does: https://develop.sentry.dev/sdk/data-model/envelopes/"""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Envelope)
        self.events = []
        self.raw = b""
        threading.Thread(target=self.serve_forever).start()

    @property
    def dsn(self):
        return f"http://topsecret@127.0.0.1:{self.server_port}/7"


class Envelope(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        unpack = {"gzip": gzip.decompress, "br": brotli.decompress}.get(self.headers["Content-Encoding"], bytes)
        told = unpack(body)
        self.server.raw += told
        assert self.path == "/api/7/envelope/" and "sentry_key=topsecret" in self.headers["X-Sentry-Auth"]
        _, *items = told.rstrip(b"\n").split(b"\n")
        for head, payload in zip(items[::2], items[1::2], strict=True):
            assert json.loads(head)["type"] == "event" and json.loads(head)["length"] == len(payload)
            self.server.events.append(json.loads(payload))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *about):
        """Says nothing."""


@pytest.fixture
def receiver():
    with Receiver() as found:
        yield found
        found.shutdown()


def words(event):
    return event["logentry"]["formatted"]


def test_sentry_is_told_once_of_each_kind_and_never_of_inputs(start, echo, receiver):
    server = start(MODEL=echo, MULES=1, SENTRY_DSN=receiver.dsn).wait_ready()
    for number in range(20):
        assert server.predict(row("raise", 1234.5), X_Request_ID=f"raised-{number}").status == 500
    assert server.predict(row("crash", 1234.5), X_Request_ID="crashed").status == 500
    wait_until(lambda: any("tasks are offered again" in words(event) for event in receiver.events), "a death is told")
    (raised,) = [event for event in receiver.events if "exception" in event]
    assert (raised["exception"]["values"][0]["type"], words(raised)) == ("ValueError", "the model raised")
    about = {"process": "mule 1", "model": "Écho", "version": "1", "engine": "python", "request_id": "raised-0"}
    assert raised["tags"] == about
    dead = next(event for event in receiver.events if "tasks are offered again" in words(event))
    about = {"replica": "1", "reason": "crashed", "model": "Écho", "version": "1", "engine": "python", "restarts": "1"}
    assert dead["tags"].items() >= about.items()
    assert any(event["tags"].get("request_id") == "crashed" for event in receiver.events)
    assert b"a variable of the model" not in receiver.raw.replace(b'secret = \\"a variable of the model\\"', b"")
    assert b"1234.5" not in receiver.raw and b'"vars"' not in receiver.raw
    ready = server.request("GET", "/readyz").body + server.request("GET", "/openapi.json").body
    assert "topsecret" not in server.log + server.output + ready.decode()


def test_a_load_that_fails_is_told(start, tmp_path, receiver):
    broken = write_model(
        tmp_path / "broken", ECHO.replace("def __init__(self, path):", "def __init__(self, path): 1 / 0")
    )
    server = start(MODEL=broken, MULES=1, SENTRY_DSN=receiver.dsn)
    assert server.process.wait(60) == 1
    failed = next(event for event in receiver.events if "cannot load the model" in words(event))
    assert failed["tags"].items() >= {"model": "broken", "version": "1", "engine": "python"}.items()


def test_the_death_of_a_worker_is_told_and_its_end_is_not(start, echo, receiver):
    server = start(MODEL=echo, MULES=1, SENTRY_DSN=receiver.dsn).wait_ready()
    (health,) = set(server.processes()["worker"]) - set(server.prediction_workers())
    victims = [server.prediction_workers()[0], health]
    for victim in victims:
        os.kill(victim, signal.SIGSEGV if victim == health else signal.SIGKILL)
    wait_until(lambda: len(receiver.events) == 2, "both deaths are told")
    told = {(event["tags"]["process"], event["tags"]["worker"], words(event)) for event in receiver.events}
    assert {words.partition("(process ")[2].partition(")")[0] for _, _, words in told} == {*map(str, victims)}
    assert all(process == f"worker {number}" and " died " in words for process, number, words in told)
    assert server.stop() == 0
    assert len(receiver.events) == 2


def test_what_a_worker_says_last_is_told(start, echo, receiver, tmp_path):
    kept = tmp_path / "kept"
    prediction_log = {"SERVING_PREDICTION_LOG_SAMPLE": "1", "SERVING_PREDICTION_LOG_DIR": kept}
    server = start(MODEL=echo, MULES=1, SENTRY_DSN=receiver.dsn, **prediction_log).wait_ready()
    assert server.predict(row()).status == 200
    wait_until(lambda: [*kept.glob("*.part")], "a file is begun")
    # it gets no name when the worker ends
    kept.rename(tmp_path / "gone")
    assert server.stop() == 0
    (event,) = receiver.events
    assert "cannot be written, and rows are dropped" in words(event)


def test_nobody_waits_for_a_sentry_that_does_not_answer(start, echo):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        dsn = f"http://key@127.0.0.1:{deaf.getsockname()[1]}/1"
        server = start(MODEL=echo, MULES=1, SENTRY_DSN=dsn).wait_ready()
        assert server.predict(row("raise")).status == 500
        assert all(server.predict(row()).status == 200 for _ in range(20))
        assert server.stop() == 0


def test_a_dsn_that_is_none_is_refused_without_telling_it(start):
    server = start(MODEL=FANCY, SENTRY_DSN="https://topsecret/7")
    assert server.process.wait(30) == 2
    assert "sentry_dsn is no DSN" in server.output and "topsecret" not in server.output
