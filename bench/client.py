"""One client in Python, which asks the same over one kept connection, one request after the other.

Units: seconds, but for the milliseconds of Server-Timing.
"""

import re
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from load import loadgen

STAGES = ("decode", "queue", "predict", "encode")
PATIENCE_S = 30.0
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.I | re.M)
_STAGE = re.compile(rb"(\w+);dur=([\d.]+)")


class Refused(Exception):
    """An answer that is no prediction."""


class Client:
    """One connection, and one request."""

    def __init__(self, port: int, request: bytes) -> None:
        self._request = request
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def ask(self) -> bytes:
        """The head of the answer; Refused unless that is a prediction."""
        self._socket.sendall(self._request)
        got = self._received()
        while (end := got.find(b"\r\n\r\n")) < 0:
            got += self._received()
        head, body = got[: end + 2], got[end + 4 :]
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise Refused(got[:300].decode(errors="replace"))
        left = int(length[1]) - len(body)
        while left > 0:
            left -= len(self._received())
        return head

    def time(self) -> dict[str, float]:
        """Milliseconds of one request: each stage, what is left, and the total."""
        began = time.perf_counter()
        head = self.ask()
        total = (time.perf_counter() - began) * 1000
        line = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"server-timing:"))
        found = {name.decode(): float(ms) for name, ms in _STAGE.findall(line)}
        return found | {"rest": total - sum(found.values()), "total": total}

    def _received(self) -> bytes:
        got = self._socket.recv(1 << 16)
        if not got:
            raise Refused("the connection was closed")
        return got


def sample_request(model: Path) -> bytes:
    """The request for what a model's sample.json holds."""
    return loadgen.request((model / "sample.json").read_bytes())
