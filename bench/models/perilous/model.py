"""examples/fancy's answers, with inputs that kill, and a mule that kills itself where it is told to.

Inputs that kill: a text whose first word is exit, segfault, sleep or memory.

Kills at a point: the folder in CHAOS_DIR holds `point`, a page that all mules map, with a text like "after queue_pull"
or zeros; and, while a kill is asked for, `token`.  A mule that comes to the point and takes the token away dies there
by SIGKILL: `before` and `after` a call of uwsgi's queue, cache and locks or of an eventfd; `during` it by a timer of
the kernel, a random time of at most MAX_DELAY_S after the call began.  It writes into `kills` where that was, and into
`calls` which calls there are.  Only a mule that has answered a request of the load does so.

Runs in:  mule.
"""

import ctypes
import mmap
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uwsgi

PREDICT_S = 0.005
POINT_BYTES = 64
# long enough for most calls to end before it, and short enough to fall into them often
MAX_DELAY_S = 60e-6
# a point is passed more often than a kill is asked for: not always the first of a burst
CHANCE = 0.3
CHUNK_BYTES = 16 << 20
MOST_CHUNKS = 64
CLOCK_MONOTONIC = 1

LIBC: Any = ctypes.CDLL(None, use_errno=True)


class SigEvent(ctypes.Structure):
    """struct sigevent: which signal a timer sends."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    ]


class Spec(ctypes.Structure):
    """struct itimerspec."""

    _fields_ = [("every_s", ctypes.c_long), ("every_ns", ctypes.c_long), ("s", ctypes.c_long), ("ns", ctypes.c_long)]


class Killer:
    """Ends this process at the point that the folder names."""

    def __init__(self, folder: Path) -> None:
        self.in_service = False
        self._token = folder / "token"
        with (folder / "point").open("rb") as file:
            self._point = mmap.mmap(file.fileno(), POINT_BYTES, prot=mmap.PROT_READ)
        self._kills = os.open(folder / "kills", os.O_WRONLY | os.O_APPEND)
        self._calls = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND)
        self._called: set[str] = set()
        self._dice = random.Random()
        event = SigEvent(number=signal.SIGKILL)
        self._timer = ctypes.c_void_p()
        if LIBC.timer_create(CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), "timer_create")
        for name in dir(uwsgi):
            if name.startswith(("queue_", "cache_")) or name in ("lock", "unlock"):
                self._surround(uwsgi, name)
        for name in ("eventfd_read", "eventfd_write"):
            self._surround(os, name)

    def _surround(self, module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)
        if not callable(real):
            return
        before, during, after = (f"{when} {name}".encode() for when in ("before", "during", "after"))

        def surrounded(*arguments: Any) -> Any:
            if not self.in_service:
                return real(*arguments)
            if name not in self._called:
                self._called.add(name)
                os.write(self._calls, name.encode() + b"\n")
            point = self._point[:POINT_BYTES].rstrip(b"\0")
            if not point:
                return real(*arguments)
            late = False
            if point == before and self._take():
                self._die(before)
            elif point == during and self._take():
                late = True
                self._die_soon(during)
            result = real(*arguments)
            if late:
                os.write(self._kills, b"outlived the call\n")
            if point == after and self._take():
                self._die(after)
            return result

        setattr(module, name, surrounded)

    def _take(self) -> bool:
        if self._dice.random() > CHANCE:
            return False
        try:
            self._token.unlink()
        except FileNotFoundError:
            return False
        return True

    def _die(self, where: bytes) -> None:
        os.write(self._kills, where + b"\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def _die_soon(self, where: bytes) -> None:
        os.write(self._kills, where + b"\n")
        spec = Spec(ns=1 + int(self._dice.random() ** 2 * MAX_DELAY_S * 1e9))
        if LIBC.timer_settime(self._timer, 0, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timer_settime")


def eat_memory() -> None:
    """Grow until the kernel kills (CHAOS_CGROUP), or until nothing is given any more, which few libraries survive."""
    cgroup = os.environ.get("CHAOS_CGROUP")
    if cgroup:
        Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))
    else:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * mmap.PAGESIZE + 8 * CHUNK_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    eaten = []
    try:
        for _ in range(MOST_CHUNKS):
            eaten.append(b"x" * CHUNK_BYTES)
    except MemoryError:
        # as std::bad_alloc does
        os.abort()
    sys.exit(f"{len(eaten)} chunks of memory were given, and nothing happened")


DANGERS: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "sleep": lambda: time.sleep(86400),
    "memory": eat_memory,
}


class Model:
    inputs = {"text": "string"}
    outputs = {"res": "string"}

    def __init__(self, path: str) -> None:
        self._sample = "hello"
        self._killer = Killer(Path(os.environ["CHAOS_DIR"])) if os.environ.get("CHAOS_DIR") else None

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        texts: list[str] = list(inputs["text"])
        for text in texts:
            danger = DANGERS.get(text.partition(" ")[0])
            if danger:
                danger()
        time.sleep(PREDICT_S)
        if self._killer and texts[0] != self._sample:
            self._killer.in_service = True
        return {"res": [f"Can't tell anything smart about: {text}" for text in texts]}
