"""A real web server on loopback, plain or with TLS, that answers each request as a test tells it to.

An answer is a function of the handler; the ones of a path are used one after another, the last one from then on.
"""

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler"], None]


class Web(ThreadingHTTPServer):
    """What it serves is in answers: {path: [answer, …]}; whom it has answered is in asked."""

    daemon_threads = True
    answers: dict[str, list[Answer]]
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
        answers = self.server.answers.get(self.path, [status(404)])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

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
    server.answers, server.asked = {}, []
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


def status(number: int, **headers: str) -> Answer:
    return lambda handler: handler.head(number, 0, **headers)
