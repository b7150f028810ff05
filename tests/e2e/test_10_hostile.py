"""Hostile clients: refused or cut off, and nobody else notices.  After each test the same processes answer."""

import contextlib
import gzip
import io
import json
import re
import socket
import stat
import tempfile
import time
from pathlib import Path

import pytest

from .conftest import FANCY, Server, wait_until

GOOD = b'{"text": "a"}'
ANSWER = b'{"res":"Can\'t tell anything smart about: a"}'
HOST = b"Host: x\r\n"
CLOSE = b"Connection: close\r\n"
SIZED = b"Content-Length: %d\r\n" % len(GOOD)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"5\r\n" + GOOD[:5] + b"\r\n" + b"8\r\n" + GOOD[5:] + b"\r\n0\r\n\r\n"
PROMISED = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "server": "nginx",
}


@pytest.fixture(scope="module")
def server():
    server = Server(MODEL=FANCY, MULES=2, SERVING_CLIENT_TIMEOUT_S=2)
    try:
        yield server.wait_ready()
    finally:
        server.close()


@pytest.fixture(autouse=True)
def unharmed(server):
    def pids():
        return {role: sorted(found) for role, found in server.processes().items()}

    before = pids()
    yield
    answer = server.predict({"text": "a"})
    assert (answer.status, answer.body) == (200, ANSWER)
    assert pids() == before
    assert "Traceback" not in server.log


def post(headers=HOST + CLOSE + SIZED, body=GOOD, line=b"POST /predict HTTP/1.1"):
    return line + b"\r\n" + headers + b"\r\n" + body


def talk(server, *parts, pause_s=0.0):
    """What the server says until it closes, and whether it cut the connection."""
    said = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            while part := connection.recv(1 << 16):
                said += part
        except (ConnectionResetError, BrokenPipeError):
            return said, True
    return said, False


def answers(said):
    """Each answer in what the server said: its status, headers and body."""
    found = []
    stream = io.BytesIO(said)
    while line := stream.readline():
        status = int(re.fullmatch(rb"HTTP/1\.1 (\d{3}) [\w -]+\r\n", line)[1])
        headers = {}
        while (line := stream.readline()) != b"\r\n":
            name, colon, value = line.decode().partition(": ")
            assert colon and value.endswith("\r\n") and name.lower() not in headers, line
            headers[name.lower()] = value[:-2]
        body = stream.read(int(headers.get("content-length", 0)))
        found.append((status, headers, body))
    return found


def check_problem(answer, status):
    found, headers, body = answer
    problem = json.loads(body)
    assert (found, headers["content-type"]) == (status, "application/problem+json"), answer
    assert set(problem) == {"type", "title", "status", "code", "detail", "request_id"}
    assert (problem["status"], problem["request_id"]) == (status, headers["x-request-id"])
    assert headers.items() >= PROMISED.items()
    return problem


REFUSED = {
    "a length and chunks": (post(HOST + SIZED + CHUNKED, CHUNKS), 400),
    "chunks and a length": (post(HOST + CHUNKED + SIZED, CHUNKS), 400),
    "two lengths": (post(HOST + SIZED + b"Content-Length: 2\r\n"), 400),
    "the same length twice": (post(HOST + SIZED + SIZED), 400),
    "a length with a sign": (post(HOST + b"Content-Length: +13\r\n"), 400),
    "a negative length": (post(HOST + b"Content-Length: -1\r\n"), 400),
    "a length in hex": (post(HOST + b"Content-Length: 0xd\r\n"), 400),
    "a list of lengths": (post(HOST + b"Content-Length: 13, 13\r\n"), 400),
    "a length past all numbers": (post(HOST + b"Content-Length: 99999999999999999999\r\n"), 400),
    "a length past the limit": (post(HOST + b"Content-Length: 8388609\r\n"), 413),
    "two encodings": (post(HOST + CHUNKED + CHUNKED, CHUNKS), 400),
    "an encoding like chunked": (post(HOST + b"Transfer-Encoding: xchunked\r\n", CHUNKS), 501),
    "chunked before identity": (post(HOST + b"Transfer-Encoding: chunked, identity\r\n", CHUNKS), 501),
    "chunks in HTTP/1.0": (post(HOST + CHUNKED, CHUNKS, b"POST /predict HTTP/1.0"), 400),
    "a chunk of no size": (post(HOST + CHUNKED, b"zz\r\n" + GOOD), 400),
    "a chunk past all numbers": (post(HOST + CHUNKED, b"F" * 20 + b"\r\n" + GOOD), 400),
    "a chunk past the limit": (post(HOST + CHUNKED, b"800001\r\n" + GOOD), 413),
    "a folded header": (post(HOST + b"X-A: b\r\n c\r\n" + SIZED), 400),
    "a space before the colon": (post(HOST + b"Content-Length : 13\r\n"), 400),
    "a header without a name": (post(HOST + b": x\r\n" + SIZED), 400),
    "a header with a zero byte": (post(HOST + b"X-A: a\0b\r\n" + SIZED), 400),
    "a path with a zero byte": (post(line=b"POST /predict\0 HTTP/1.1"), 400),
    "a path with %00": (post(line=b"POST /predict%00 HTTP/1.1"), 400),
    "a path with half an escape": (post(line=b"POST /predict%2 HTTP/1.1"), 400),
    "a path above the root, encoded": (post(line=b"POST /x/..%2f..%2fpredict HTTP/1.1"), 400),
    "a path above the root": (post(line=b"POST /../predict HTTP/1.1"), 400),
    "no path": (post(line=b"POST predict HTTP/1.1"), 400),
    "a password in the target": (post(line=b"POST http://u:p@x/predict HTTP/1.1"), 400),
    "a method in small letters": (post(line=b"post /predict HTTP/1.1"), 400),
    "CONNECT": (post(line=b"CONNECT x:80 HTTP/1.1"), 400),
    "no host": (post(SIZED), 400),
    "two hosts": (post(HOST + HOST + SIZED), 400),
    "a host with a slash": (post(b"Host: x/predict\r\n" + SIZED), 400),
    "another version": (post(line=b"POST /predict HTTP/3.0"), 505),
    "the start of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"a" * 500, 400),
    "a header over a quarter of the limit": (post(HOST + b"X: " + b"y" * 8192 + b"\r\n" + SIZED), 400),
    "headers over the limit": (post(HOST + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + SIZED), 400),
    "a path over a quarter of the limit": (post(line=b"POST /" + b"y" * 8192 + b" HTTP/1.1"), 414),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_sound_http_is_refused_and_the_connection_closed(server, what):
    data, status = REFUSED[what]
    # a second request behind it must not be served: it may be what was smuggled
    said, _ = talk(server, data + post(line=b"POST /predict?smuggled HTTP/1.1"))
    (answer,) = answers(said)
    check_problem(answer, status)
    assert answer[1]["connection"] == "close"


ODD_PATHS = (
    "//predict /./predict /x/../predict /x/..%2fpredict /%70redict /predict/ /predict%20 /predict#a"
    " /predict;a=b /PREDICT /predict. /predict%3f /predict%ff /predict\xff /problem //healthz /healthz/"
    " /x/.. /predict/. /%2e/predict /v1%2fmodels"
)
# where others have another form
OF_DIALECTS = (
    "/v1/models/a%2Fb:predict /v2/models/a/%2e%2E/b/infer /v2/models/%6d/infer /predictions/%41 /predictions//a"
)


@pytest.mark.parametrize("path", ODD_PATHS.split())
def test_a_path_has_one_spelling(server, path):
    said, _ = talk(server, post(line=b"POST %s HTTP/1.1" % path.encode("latin-1")))
    (answer,) = answers(said)
    assert check_problem(answer, 404)["code"] == "not_found"


@pytest.mark.parametrize("path", OF_DIALECTS.split())
def test_a_path_of_a_dialect_has_one_spelling(server, path):
    said, _ = talk(server, post(line=b"POST %s HTTP/1.1" % path.encode()))
    assert b"there is nothing here" in said and said.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("line", "headers", "body"),
    [
        (b"POST http://elsewhere/predict HTTP/1.1", HOST + CLOSE + SIZED, GOOD),
        (b"POST /predict?a=b HTTP/1.1", HOST + CLOSE + SIZED, GOOD),
        (b"POST /predict HTTP/1.0", SIZED, GOOD),
        (b"POST /predict HTTP/1.1", HOST + CLOSE + CHUNKED, CHUNKS),
        (b"POST /predict HTTP/1.1", HOST + CLOSE + CHUNKED, b"d;a=b\r\n" + GOOD + b"\r\n0\r\nX-Trailer: a\r\n\r\n"),
        (b"POST /predict HTTP/1.1", HOST + CLOSE + SIZED + b"Upgrade: h2c\r\n", GOOD),
        # a header with an underscore is as if it were not there
        (b"POST /predict HTTP/1.1", HOST + CLOSE + SIZED + b"Content_Length: 2\r\nX_Request_Timeout_Ms: a\r\n", GOOD),
        (b"POST /predict HTTP/1.1", HOST + CLOSE + SIZED + b"If-Match: a\r\nRange: bytes=0-1\r\n", GOOD),
    ],
)
def test_what_is_odd_and_sound_is_answered(server, line, headers, body):
    said, _ = talk(server, post(headers, body, line))
    ((status, headers, body),) = answers(said)
    assert (status, body) == (200, ANSWER)
    assert headers.items() >= PROMISED.items()


def test_a_client_that_expects_100_is_told_to_go_on(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(post(HOST + CLOSE + SIZED + b"Expect: 100-continue\r\n", b""))
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(GOOD)
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert [answer[::2] for answer in answers(said)] == [(200, ANSWER)]


def test_requests_in_one_write_are_answered_one_after_the_other(server):
    texts = [b'{"text": "%d"}' % number for number in range(20)]
    requests = [post(HOST + b"Content-Length: %d\r\n" % len(text), text) for text in texts]
    said, _ = talk(server, b"".join(requests) + post())
    told = [json.loads(body)["res"].rpartition(" ")[2] for status, _, body in answers(said) if status == 200]
    assert told == [str(number) for number in range(20)] + ["a"]


@pytest.mark.parametrize("kind", ["sized", "chunked"])
def test_a_body_of_any_size_is_the_same_in_chunks(server, kind):
    text = b'{"text": "%s"}' % (b"x" * 200_000)
    if kind == "sized":
        sent = post(HOST + CLOSE + b"Content-Length: %d\r\n" % len(text), text)
    else:
        chunks = (text[start : start + 1000] for start in range(0, len(text), 1000))
        sent = post(
            HOST + CLOSE + CHUNKED, b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n"
        )
    ((status, _, body),) = answers(talk(server, sent)[0])
    assert status == 200 and json.loads(body)["res"].count("x") == 200_000


def test_a_bomb_is_not_unpacked_past_the_limit(server):
    bomb = gzip.compress(bytes(100 << 20))
    for coding in ("gzip", "GZIP"):
        assert server.request("POST", "/predict", bomb, {"Content-Encoding": coding}).json["code"] == "too_large"
    assert server.request("POST", "/predict", bomb).json["code"] == "bad_body"
    for coding in ("br", "gzip, gzip", "identity, gzip", "\xff"):
        assert server.request("POST", "/predict", bomb, {"Content-Encoding": coding}).status == 415


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /pre",
        b"POST /predict HTTP/1.1\r\nHost: ",
        post(HOST + SIZED, b'{"te'),
        post(HOST + CHUNKED, b"5\r\n"),
        post(HOST + CHUNKED, b"ffff"),
        post(HOST + SIZED) + b"GET",
    ],
)
def test_a_client_that_stops_halfway_is_cut_off(server, sent):
    said, cut = talk(server, sent)
    assert cut
    assert [answer[0] for answer in answers(said)] == ([200] if sent.endswith(b"GET") else [])


def test_headers_that_trickle_are_cut_off_and_a_body_that_trickles_is_read(server):
    request = post()
    body = len(request) - len(GOOD)
    _, cut = talk(server, *(request[at : at + 1] for at in range(body)), pause_s=0.1)
    assert cut
    said, _ = talk(server, request[:body], *(request[at : at + 1] for at in range(body, len(request))), pause_s=0.3)
    assert [answer[::2] for answer in answers(said)] == [(200, ANSWER)]


def test_a_client_that_does_not_read_is_cut_off(server):
    text = b'{"text": "%s"}' % (b"x" * 200_000)
    request = post(HOST + b"Content-Length: %d\r\n" % len(text), text)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            # it is read one after the other, and each answer waits for its reader
            for _ in range(1000):
                connection.sendall(request)


@contextlib.contextmanager
def connections(server, count, sent):
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            connection.sendall(sent)
        yield


@pytest.mark.parametrize("sent", [b"", b"POST /predict HTTP/1.1\r\n", post(HOST + SIZED, b'{"te')])
def test_a_thousand_connections_that_wait_do_no_harm(server, sent):
    with connections(server, 1000, sent):
        for _ in range(20):
            assert server.predict({"text": "a"}).status == 200
        assert server.request("GET", "/readyz").status == 200


@pytest.mark.parametrize("sent", [b"", b"POST /predict HTTP/1.1\r\n", post(HOST + SIZED, b'{"te')])
def test_more_connections_than_there_may_be_hold_the_place_of_others_no_longer_than_their_time(start, sent):
    environ = {"SERVING_MAX_CONNECTIONS": 66, "SERVING_CLIENT_TIMEOUT_S": 2}
    server = start(MODEL=FANCY, MULES=1, WORKERS=2, THREADS=1, **environ).wait_ready()

    def answered():
        with contextlib.suppress(OSError):
            answer = server.predict({"text": "a"})
            assert answer.status == 200 or (answer.status == 503 and "max_connections" in answer.json["detail"]), answer
            return answer.status == 200
        return False

    with connections(server, 64, sent), contextlib.suppress(OSError), connections(server, 200, sent):
        wait_until(answered, "a good request is answered", 20)
    assert answered()


def test_every_answer_has_the_headers_that_were_promised_and_no_version(server):
    def get(path, method=b"GET"):
        return post(HOST + CLOSE, b"", method + b" " + path + b" HTTP/1.1")

    asked = {
        "prediction": (post(), 200),
        "refused by the app": (post(body=b'{"text": 123}'), 400),
        "refused by nginx": (post(HOST), 400),
        "not http": (b"nonsense\r\n\r\n", 400),
        "too large": (post(HOST + CLOSE + b"Content-Length: 99999999\r\n"), 413),
        "compressed": (post(HOST + CLOSE + SIZED + b"Content-Encoding: br\r\n"), 415),
        "no such path": (get(b"/nowhere"), 404),
        "an odd path": (get(b"//nowhere"), 404),
        "the wrong method": (get(b"/predict"), 405),
        "TRACE": (get(b"/predict", b"TRACE"), 405),
        "OPTIONS": (get(b"/predict", b"OPTIONS"), 200),
        "HEAD": (get(b"/readyz", b"HEAD"), 200),
        "healthz": (get(b"/healthz"), 200),
        "readyz": (get(b"/readyz"), 200),
    }
    for what, (data, expected) in asked.items():
        said, _ = talk(server, data)
        status, headers, _ = answers(said.replace(b"Content-Length", b"X-Length") if what == "HEAD" else said)[0]
        assert status == expected, what
        assert headers.items() >= PROMISED.items(), what
        assert re.fullmatch("[A-Za-z0-9._:+=@-]{1,64}", headers["x-request-id"])
        assert not re.search(rb"nginx/|werkzeug|flask|uwsgi/|python/", said, re.IGNORECASE), what


def test_no_secret_of_a_client_is_logged(server):
    hush = b"hush-" + bytes(str(time.time_ns()), "ascii")
    secret = b"Authorization: Bearer %s\r\nCookie: session=%s\r\nReferer: http://x/?%s\r\n" % (hush, hush, hush)
    secret += b"X-Request-ID: %s /\r\n" % hush
    big = b'{"text": "%s"}' % (b"x" * 500_000)
    for path in (b"/predict", b"/readyz", b"/nowhere", b"//predict", b"/problem", b"http://x/predict"):
        line = b"POST %s?token=%s HTTP/1.1" % (path, hush)
        for headers, body in [
            (SIZED, GOOD),
            (SIZED, b"x" * len(GOOD)),
            (SIZED + SIZED, GOOD),
            (b"Content-Length: 99999999\r\n", GOOD),
            # written to a file on its way
            (b"Content-Length: %d\r\n" % len(big), big),
            (CHUNKED, b"zz"),
            (b"Content-Encoding: gzip\r\n" + SIZED, GOOD),
            (b"X-Request-Timeout-Ms: 1\r\n" + SIZED, GOOD),
            (b"X-Request-Timeout-Ms: soon\r\n" + SIZED, GOOD),
            (b"X: " + b"y" * 9000 + b"\r\n", b""),
        ]:
            talk(server, post(HOST + CLOSE + secret + headers, body, line))
    talk(server, post(HOST + secret + SIZED, b"{", b"POST http://%s:%s@x/predict HTTP/1.1" % (hush, hush)))
    talk(server, post(HOST + secret + SIZED, b"{", b"POST /predict?%s HTTP/9" % hush))
    # half a request, by clients that go away or are cut off
    for sent in (b"POST /predict?" + hush, post(HOST + secret + SIZED, b"{", b"POST /predict?%s HTTP/1.1" % hush)):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(sent)
        talk(server, sent)
    server.predict({"text": "a"}, X_Request_ID="after-the-secrets")
    server.access("after-the-secrets")
    logs = [file for file in server.run_dir.rglob("*") if file.is_file()]
    assert {"access.log", "server.log", "out"} <= {file.name for file in logs}
    assert [file.name for file in logs if hush in file.read_bytes()] == []


def test_sockets_logs_and_the_run_folder_are_not_open_to_others(start):
    folder = Path(tempfile.mkdtemp(prefix="muleteer-"))
    folder.chmod(0o755)
    server = start(MODEL=FANCY, MULES=1, RUN_DIR=folder / "run", LOG_DIR=folder / "run" / "log").wait_ready()
    server.predict({"text": "a"})
    modes = {file: stat.S_IMODE(file.stat().st_mode) for file in [folder / "run", *(folder / "run").rglob("*")]}
    assert {"predict.sock", "control.sock", "access.log", "server.log", "nginx.conf"} <= {file.name for file in modes}
    assert {oct(mode) for file, mode in modes.items() if file.suffix == ".sock"} == {"0o660"}
    assert [file.name for file, mode in modes.items() if mode & 0o007] == []


def test_the_locks_are_not_open_to_others(start):
    server = start(MODEL=FANCY, MULES=1).wait_ready()
    mine = server.semaphores(server.processes()["master"])
    lines = [line.split() for line in Path("/proc/sysvipc/sem").read_text().splitlines()[1:]]
    assert mine and {line[2] for line in lines if int(line[1]) in mine} == {"600"}
