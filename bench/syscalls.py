"""System calls of running processes, by strace: how many of each, or each with its moment.

Units:  seconds since the epoch.
Raises: StartError, in one sentence, where strace is missing or may not attach.
Source: strace(1).
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bench.server import wait_until
from nginx import StartError

MISSING = "strace is missing: sudo apt-get install -y --no-install-recommends strace"
REFUSED = "strace may not attach to a running process: try as root, or with kernel.yama.ptrace_scope = 0"
COUNT = ("-c",)
# all calls, without what they are given: one that began, or as a whole; its end alone is "<... name resumed>"
EACH = ("-ttt", "-s0", "-esignal=none")
_BEGAN = re.compile(r"^(\d+) +(\d+\.\d+) (\w+)\(", re.M)


class Call(NamedTuple):
    """One system call, when it began."""

    thread: int
    at: float
    name: str


class Count(NamedTuple):
    """How often a system call was made, and failed."""

    calls: int
    errors: int


def program() -> str:
    """The path of strace."""
    found = shutil.which("strace")
    if found is None:
        raise StartError(MISSING)
    return found


def allowed() -> bool:
    """Whether this user may attach to processes that it has not started."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return os.geteuid() == 0 or not scope.exists() or scope.read_text().strip() == "0"


@contextmanager
def traced(pids: Collection[int], options: Collection[str], out: Path) -> Iterator[None]:
    """Attach to all threads of some processes, meanwhile, and write what strace tells."""
    targets = [f"-p{pid}" for pid in pids]
    command = [program(), "-f", "-qq", "-o", str(out), *options, *targets]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: process.poll() is not None or _attached(pids, process.pid), "strace has attached")
            if process.poll() is not None:
                assert process.stderr is not None
                said = process.stderr.read().strip()
                raise StartError(REFUSED if "Operation not permitted" in said else f"strace has ended: {said}")
            yield
        finally:
            # it lets go of them, and sums up
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
            process.kill()


def threads(pids: Collection[int]) -> dict[int, int]:
    """The threads of some processes, and of which each is."""
    found: dict[int, int] = {}
    for pid in pids:
        with suppress(OSError):
            found |= {int(entry.name): pid for entry in Path(f"/proc/{pid}/task").iterdir()}
    return found


def counted(text: str) -> dict[str, Count]:
    """What strace -c told, by name."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        # share, seconds, each, calls, errors (where there are), name
        if len(words) in (5, 6) and words[3].isdecimal() and words[-1] != "total":
            found[words[-1]] = Count(int(words[3]), int(words[4]) if len(words) == 6 else 0)
    return found


def calls(text: str) -> list[Call]:
    """All calls, as strace -ttt told of them."""
    return [Call(int(thread), float(at), name) for thread, at, name in _BEGAN.findall(text)]


def _attached(pids: Collection[int], tracer: int) -> bool:
    """Whether all threads of some processes are traced by another."""
    found = threads(pids)
    try:
        statuses = [Path(f"/proc/{pid}/task/{thread}/status").read_text() for thread, pid in found.items()]
    except OSError:
        # a thread has ended since
        return False
    return set(found.values()) == set(pids) and all(f"TracerPid:\t{tracer}\n" in status for status in statuses)
