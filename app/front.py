"""What nginx tells: its connections, and each request that it answered by itself.

It writes a line for each of those, and for no other, to answers.log in the run folder; one worker reads them, and gives
the disk back what it has read.

Runs in:  worker.
Units:    seconds.
Source:   https://nginx.org/en/docs/http/ngx_http_stub_status_module.html
"""

import ctypes
import fcntl
import http.client
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# those of nginx.conf that are no errors of ours
CODES = ("queue_full", "not_found", "method_not_allowed", "bad_gateway", "not_implemented")
# path, status, code, seconds and request id
Count = Callable[[str, str, str, float, str], None]
# the same; and the method, when it was answered, and its traceparent
Trace = Callable[[str, str, str, float, str, str, float, str], None]
# a line: status, code, seconds, request id, what traces need where there are any, and path
_LINE = re.compile(r"(\d{3}) (\w+) (\d+\.\d+) (\S+) (?:(\S+) (\d+\.\d+) (\S+) )?(.*)")
# nginx writes them together, once a second
_LOOK_S = 0.2
_MOST_BYTES = 1 << 18
_PATIENCE_S = 1.0
# linux/falloc.h: the size stays, and the blocks are free
_PUNCH_HOLE = 0x01 | 0x02

log = logging.getLogger("muleteer.front")


@dataclass(frozen=True)
class Status:
    """Its connections now, by what they do, and how many it has accepted."""

    connections: dict[str, int]
    accepted: int


class Front:
    """nginx, by what it has in the run folder."""

    def __init__(self, run_dir: Path | None = None) -> None:
        self._run_dir = run_dir

    def status(self) -> Status | None:
        """None while it gives no answer."""
        if self._run_dir is None:
            return None
        connection = _Connection(self._run_dir / "status.sock")
        try:
            connection.request("GET", "/")
            told = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        numbers = re.findall(r"(Reading|Writing|Waiting): (\d+)", told)
        accepted = re.search(r"^ (\d+) ", told, re.MULTILINE)
        return Status({name.lower(): int(count) for name, count in numbers}, int(accepted[1]) if accepted else 0)

    def read(self, count: Count, trace: Trace | None = None) -> None:
        """From now on, count what it answers by itself, and trace it."""
        if self._run_dir is not None:
            threading.Thread(target=self._read, args=(self._run_dir, count, trace), name="front", daemon=True).start()

    def _read(self, run_dir: Path, count: Count, trace: Trace | None) -> None:
        lines = os.open(run_dir / "answers.log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # until the one before has ended: what one has counted is none of another's
        fcntl.flock(lines, fcntl.LOCK_EX)
        mark = os.open(run_dir / "answers.read", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        start = int.from_bytes(os.pread(mark, 8, 0))
        fails = False
        while True:
            read, _, _ = os.pread(lines, _MOST_BYTES, start).rpartition(b"\n")
            if not read:
                time.sleep(_LOOK_S)
                continue
            for line in read.decode(errors="replace").split("\n"):
                # where the disk was full, a line may be half of one
                if match := _LINE.fullmatch(line):
                    status, code, seconds, id, method, at, traceparent, path = match.groups()
                    try:
                        count(path, status, code, float(seconds), id)
                        if trace is not None and at:
                            trace(path, status, code, float(seconds), id, method, float(at), traceparent)
                        fails = False
                    except Exception:
                        # once, until another goes well: there may be many
                        if not fails:
                            log.exception("what nginx answered was not counted or traced", extra={"request_id": id})
                        fails = True
            start += len(read) + 1
            with suppress(OSError):
                os.pwrite(mark, start.to_bytes(8), 0)
            # where that cannot be, the file grows
            _libc.fallocate(lines, _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(start))


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE_S)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_PATIENCE_S)
        self.sock.connect(self._path)


_libc = ctypes.CDLL(None)
