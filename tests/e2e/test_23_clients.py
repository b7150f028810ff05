"""The clients of examples/clients, each by its own toolchain, against a server that is busy first."""

import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from .conftest import DIGITS, ROOT

CLIENTS = ROOT / "examples" / "clients"
SAMPLE = DIGITS / "sample.json"
COMMANDS = {
    "predict.sh": ["sh"],
    "predict_requests.py": [sys.executable],
    "predict_httpx.py": [sys.executable],
    "predict.mjs": ["node"],
    "predict.go": ["go", "run"],
    "Predict.java": ["java"],
}
# the others are run where their toolchain is
HERE = [name for name, (program, *_) in COMMANDS.items() if shutil.which(program)]
BUSY = b'{"title":"Not available now","status":503,"code":"queue_full","detail":"come back later","request_id":"busy"}'
WRONG = b'{"title":"Bad request","status":400,"code":"signature","detail":"this does not fit","request_id":"wrong"}'


def run(name, url):
    command = [*COMMANDS[name], CLIENTS / name, SAMPLE, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def answers():
    """A server that gives some answers, the last one for ever, and notes when it was asked."""
    servers = []

    def serve(*answers):
        waiting = list(answers)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                server.asked += 1
                status, headers, body = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                self.send_response(status)
                for header, text in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(header, text)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_): ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked = 0
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return server, f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_every_client_has_its_command():
    # replay.py is no example of a client: test_33 runs it
    assert {path.name for path in CLIENTS.iterdir() if path.is_file()} - {"replay.py"} == {*COMMANDS}
    assert {"predict.sh", "predict_requests.py", "predict_httpx.py"} <= {*HERE}


@pytest.mark.parametrize("name", HERE)
def test_a_client_prints_the_digit(digits, name):
    done = run(name, digits.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


@pytest.mark.parametrize("name", HERE)
def test_a_client_comes_back_when_it_is_told_to(answers, name):
    server, url = answers(
        *[(503, {"Retry-After": "1", "Content-Type": "application/problem+json"}, BUSY)] * 2,
        (200, {"Content-Type": "application/json"}, b'{"digit":4,"probabilities":[]}'),
    )
    done = run(name, url)
    assert (done.returncode, done.stdout, server.asked) == (0, "4\n", 3), done.stderr


@pytest.mark.parametrize("name", HERE)
def test_a_client_does_not_repeat_what_was_wrong_and_says_what_was(answers, name):
    server, url = answers((400, {"Content-Type": "application/problem+json"}, WRONG))
    done = run(name, url)
    assert done.returncode != 0 and server.asked == 1
    assert "this does not fit" in done.stderr and done.stdout == ""


def test_the_async_client_asks_for_many_at_once(digits):
    command = [sys.executable, CLIENTS / "predict_httpx.py", SAMPLE, digits.url, "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "4\n" * 20), done.stderr


def test_the_readme_names_every_client():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"examples/clients/{name}" not in readme] == []
