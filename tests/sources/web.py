"""A real web server on loopback, plain or with TLS, that answers each request as a test tells it to.

An answer is a function of the handler; the ones of a path are used one after another, the last one from then on.  It
can also stand before another server, and pass on what it is not told to answer itself.
"""

import hashlib
import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler"], None]


class Web(ThreadingHTTPServer):
    """What it serves is in answers: {path: [answer, …]}; before those come the ones in first, whatever the path is, and
    after them otherwise.  Whom it has answered is in asked.
    """

    daemon_threads = True
    answers: dict[str, list[Answer]]
    first: list[Answer]
    otherwise: Answer
    asked: list[tuple[str, dict[str, str]]]

    @property
    def url(self) -> str:
        return f"{'https' if isinstance(self.socket, ssl.SSLSocket) else 'http'}://localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or does not trust the certificate, is what tests want."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        answers = self.server.answers.get(self.path, [self.server.otherwise])
        if self.server.first:
            self.server.first.pop(0)(self)
        else:
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Web]:
    server = Web(("127.0.0.1", 0), Handler)
    server.answers, server.first, server.otherwise, server.asked = {}, [], status(404), []
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def whole(content: bytes, ranges: bool = True, **headers: str) -> Answer:
    """All of it, or the part that is asked for."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    def answer(handler: Handler) -> None:
        start = handler.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        if ranges and start and handler.headers.get("If-Range") == etag:
            rest = content[int(start) :]
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            handler.head(206, len(rest), ETag=etag, Content_Range=span, **headers)
            handler.wfile.write(rest)
        else:
            handler.head(200, len(content), ETag=etag, **headers)
            handler.wfile.write(content)

    return answer


def cut(content: bytes, after: int) -> Answer:
    """So many bytes, and then a closed connection."""

    def answer(handler: Handler) -> None:
        handler.head(200, len(content), ETag=f'"{hashlib.sha256(content).hexdigest()[:16]}"')
        handler.wfile.write(content[:after])
        handler.hang_up()

    return answer


def chunked(content: bytes) -> Answer:
    """Of a length that it does not tell."""

    def answer(handler: Handler) -> None:
        handler.head(200, None, Transfer_Encoding="chunked")
        for start in range(0, len(content), 65536):
            chunk = content[start : start + 65536]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def held(content: bytes, after: int, until: threading.Event) -> Answer:
    """The rest comes when the event does."""

    def answer(handler: Handler) -> None:
        handler.head(200, len(content))
        handler.wfile.write(content[:after])
        handler.wfile.flush()
        until.wait()
        handler.wfile.write(content[after:])

    return answer


def lying(content: bytes, length: int) -> Answer:
    """With another length than it has."""

    def answer(handler: Handler) -> None:
        handler.head(200, length)
        handler.wfile.write(content)
        handler.hang_up()

    return answer


def passed_on(port: int, body_bytes: int | None = None) -> Answer:
    """What another server on loopback answers, or only so many bytes of it."""

    def answer(handler: Handler) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        # the Host too, which a client may have signed
        connection.request(handler.command, handler.path, body, dict(handler.headers))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        handler.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", response.headers.get("Content-Length", str(len(content))))
        handler.end_headers()
        handler.wfile.write(content[:body_bytes])
        if body_bytes is not None:
            handler.hang_up()

    return answer


def status(number: int, **headers: str) -> Answer:
    return lambda handler: handler.head(number, 0, **headers)
