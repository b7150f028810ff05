"""What one request of a lone client costs, in counts that are the same on a slow machine and on a fast one.

For each role of a process (nginx, worker, mule): its system calls by name, of which semtimedop and semop are uWSGI's
locks, and its allocations.  A real server of the model that does nothing, with one mule, is asked one request after the
other over one connection, and between any two of them it comes to rest; what it does in between is counted for each.
What it does now and then, when it is idle as well, comes to some of the requests; the lower quartile has none of it.

KEPT holds the numbers that it is compared with; `make profile ARGS=--keep` writes them anew.

Units: seconds.
"""

import mmap
import platform
import re
import subprocess
import tempfile
import time
import tomllib
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import nginx
from bench import syscalls
from bench.client import Client, sample_request
from bench.server import Server
from bench.work import ROOT
from load import loadgen

KEPT = ROOT / "tests" / "e2e" / "cost.toml"
COMMENT = """\
# What one request of a lone client costs: system calls (semtimedop and semop are uWSGI's locks) and allocations, by
# the role of the process.  `make test` fails when one grows.  `make profile ARGS=--keep` writes this file anew: do it
# when a number fell, and when it grew for a reason that the commit tells.
"""
ROLES = ("nginx", "worker", "mule")
MODEL = ROOT / "bench" / "models" / "noop"
# one worker for predictions, one for health; two threads take turns as many do
ENVIRON: Mapping[str, object] = {"MODEL": MODEL, "MULES": 1, "WORKERS": 2, "THREADS": 2}
# until all sizes of caches and freelists are what they stay
WARM_UP_REQUESTS = 500
REQUESTS = 100
# longer than what the server looks at anew after a while (app/predict.py: 10 ms), so that it does so for each request
REST_S = 0.015
# that it comes to rest at all
MOST_RESTS = 40
# of uWSGI's ipcsem
LOCKS, LOCK_CALLS = "locks", {"semop", "semtimedop"}
ALLOCATIONS = "allocations"
# who is scheduled first decides whether one more is made
UNSTEADY = {
    ("nginx", ALLOCATIONS): 1,
    ("nginx", "epoll_wait"): 1,
    ("nginx", "epoll_pwait"): 1,
    ("worker", "futex"): 1,
}
# of the allocations; the sizes of numbers and texts vary a little
TOLERANCE = 0.02

SOURCE = ROOT / "bench" / "mallocs.c"
LIBRARY = ROOT / "build" / "mallocs.so"
OPTIONS = ("-shared", "-fPIC")
PIDS = 1 << 22

T = TypeVar("T")
# by role, and name
Footprint = dict[str, dict[str, int]]


def measure() -> Footprint:
    """Count what a request costs."""
    found = _system_calls()
    for role, count in _allocations().items():
        found[role][ALLOCATIONS] = count
    return found


def system() -> str:
    """What else the counts depend on."""
    told = subprocess.run([nginx.program(), "-v"], capture_output=True, text=True).stderr
    version = re.search(r"\d+\.\d+", told)
    python = ".".join(platform.python_version_tuple()[:2])
    libc = " ".join(platform.libc_ver())
    return f"{platform.machine()}, {libc}, Python {python}, nginx {version[0] if version else '?'}"


def grown(kept: Mapping[str, Mapping[str, int]], found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What a request costs more than it did, each from what to what."""
    kept, found = _joined(kept), _joined(found)
    return [
        f"{role}: {name} from {before} to {count}"
        for role, counts in found.items()
        for name, count in sorted(counts.items())
        if count > (before := kept.get(role, {}).get(name, 0)) + _tolerance(role, name, before)
    ]


def _joined(counts: Mapping[str, Mapping[str, int]]) -> Footprint:
    """Either call is a lock: which one, the C library decides."""
    found = {}
    for role, by_name in counts.items():
        found[role] = {name: count for name, count in by_name.items() if name not in LOCK_CALLS}
        if locks := sum(by_name.get(name, 0) for name in LOCK_CALLS):
            found[role][LOCKS] = locks
    return found


def _tolerance(role: str, name: str, before: int) -> float:
    share = before * TOLERANCE if name == ALLOCATIONS else 0.0
    return max(share, UNSTEADY.get((role, name), 0))


def read(file: Path = KEPT) -> tuple[str, Footprint]:
    """The numbers that were kept, and for which system."""
    told = tomllib.loads(file.read_text())
    return told.pop("system"), told


def write(found: Footprint, file: Path = KEPT) -> None:
    """Keep the numbers."""
    parts = [f'{COMMENT}\nsystem = "{system()}"\n']
    for role, counts in found.items():
        parts.append(f"[{role}]\n" + "".join(f"{name} = {count}\n" for name, count in sorted(counts.items())))
    file.write_text("\n".join(parts))


def lower_quartile(counts: Sequence[int]) -> int:
    """What all but a quarter of the requests cost at least."""
    return sorted(counts)[len(counts) // 4]


def by_request(moments: Sequence[float], calls: Sequence[syscalls.Call], roles: Mapping[int, str]) -> Footprint:
    """The calls of each role for a request.  moments: when each began, and when all were over; roles: by thread."""
    windows: list[Counter[tuple[str, str]]] = [Counter() for _ in moments[1:]]
    for call in calls:
        if moments[0] <= call.at < moments[-1] and call.thread in roles:
            windows[bisect(moments, call.at) - 1][roles[call.thread], call.name] += 1
    found: Footprint = {role: {} for role in ROLES}
    for role, name in sorted(set().union(*windows)):
        if count := lower_quartile([window[role, name] for window in windows]):
            found[role][name] = count
    return found


def serving(server: Server) -> dict[int, str]:
    """The processes that requests pass, and their roles."""
    found = {pid: role for pid, role in server.processes().items() if role in ROLES}
    return {
        pid: role for pid, role in found.items() if not Path(f"/proc/{pid}/cmdline").read_text().startswith("nginx: m")
    }


def _system_calls() -> Footprint:
    with tempfile.TemporaryDirectory(prefix="bench-trace-") as folder, _started() as (server, client):
        roles, out = serving(server), Path(folder, "trace")
        with syscalls.traced(roles, syscalls.EACH, out):
            moments = []
            for _ in range(REQUESTS):
                _rest(lambda: out.stat().st_size)
                moments.append(time.time())
                client.ask()
            _rest(lambda: out.stat().st_size)
            moments.append(time.time())
        threads = {thread: roles[pid] for thread, pid in syscalls.threads(roles).items()}
        return by_request(moments, syscalls.calls(out.read_text()), threads)


def _allocations() -> dict[str, int]:
    library = loadgen.compiled(SOURCE, LIBRARY, OPTIONS)
    with tempfile.NamedTemporaryFile(prefix="bench-mallocs-") as file:
        file.truncate(8 * PIDS)
        counts = memoryview(mmap.mmap(file.fileno(), 8 * PIDS)).cast("Q")
        environ = {"LD_PRELOAD": library, "MALLOC_COUNTS": file.name, "PYTHONMALLOC": "malloc"}
        with _started(environ) as (server, client):
            pids = serving(server)

            def look() -> list[int]:
                return [sum(counts[pid] for pid in pids if pids[pid] == role) for role in ROLES]

            rows = [_rest(look)]
            for _ in range(REQUESTS):
                client.ask()
                rows.append(_rest(look))
        return {
            role: lower_quartile([after[place] - before[place] for before, after in pairwise(rows)])
            for place, role in enumerate(ROLES)
        }


@contextmanager
def _started(environ: Mapping[str, object] | None = None) -> Iterator[tuple[Server, Client]]:
    """A server that is warm, and its client."""
    server = Server({**ENVIRON, **(environ or {})})
    try:
        server.wait_ready()
        with Client(server.port, sample_request(MODEL)) as client:
            for _ in range(WARM_UP_REQUESTS):
                client.ask()
            yield server, client
    finally:
        server.close()


def _rest(look: Callable[[], T]) -> T:
    """Wait until what is seen stays the same for a while."""
    seen = look()
    for _ in range(MOST_RESTS):
        time.sleep(REST_S)
        before, seen = seen, look()
        if seen == before:
            break
    return seen
