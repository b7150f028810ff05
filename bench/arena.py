"""The place where servers are compared: a network of its own, enough files, and no process that gets away.

Runs in:  the main thread of a bench, around all that it starts.
"""

import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from load import cost

CLONE_NEWNET = 0x40000000
PR_SET_CHILD_SUBREAPER = 36
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def isolate() -> bool:
    """Leave the network of the machine for one that has nothing but the loopback; False where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    return True


@contextmanager
def entered() -> Iterator[None]:
    """As many files as are allowed; SIGTERM and SIGHUP end it as Ctrl-C does; and nothing started outlives it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    before = {number: signal.signal(number, _interrupt) for number in INTERRUPTS}
    try:
        yield
    finally:
        clear(0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # once: what ends now is not to be interrupted in that
    for other in INTERRUPTS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def children() -> set[int]:
    """All processes that this one has started, and theirs."""
    return cost.read().below(os.getpid()) - {os.getpid()}


def clear(patience_s: float) -> None:
    """Wait until all children have ended; kill those that have not in time."""
    deadline = time.monotonic() + patience_s
    while _reap() and time.monotonic() < deadline:
        time.sleep(0.05)
    while pids := _reap():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _reap() -> set[int]:
    """The children that are left, after all who have ended were taken notice of."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return children()
