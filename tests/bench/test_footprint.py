"""What one request costs in counts: how they are taken from all that a server does, kept and compared."""

import subprocess
import sys

from bench import footprint
from bench.syscalls import Call
from load import loadgen

WORKER, MULE, GUARD, OTHER = 10, 20, 21, 30
ROLES = {WORKER: "worker", MULE: "mule", GUARD: "mule"}


def test_what_comes_now_and_then_is_not_of_a_request():
    moments = [float(place) for place in range(13)]
    calls = []
    for at in moments[:-1]:
        calls += [Call(WORKER, at + 0.1, "read"), Call(WORKER, at + 0.2, "write"), Call(WORKER, at + 0.3, "write")]
        calls.append(Call(MULE, at + 0.2, "read"))
        # nobody knows this one
        calls.append(Call(OTHER, at + 0.2, "read"))
    # what others do beside, and before and after all of it
    calls += [Call(GUARD, at + 0.5, "openat") for at in moments[3:8]]
    calls += [Call(MULE, at + 0.5, "read") for at in moments[1:9]]
    calls += [Call(WORKER, -1.0, "accept4"), Call(WORKER, 12.0, "accept4")]
    assert footprint.by_request(moments, calls, ROLES) == {
        "nginx": {},
        "worker": {"read": 1, "write": 2},
        "mule": {"read": 1},
    }


def test_what_slips_into_the_next_request_is_counted_once():
    moments = [float(place) for place in range(13)]
    # of the third alone
    late = {2.0: 1.1}
    calls = [Call(WORKER, at + late.get(at, 0.1), "close") for at in moments[:-1]]
    assert footprint.by_request(moments, calls, ROLES)["worker"] == {"close": 1}


def test_what_grew_is_named_from_what_to_what():
    kept = {"worker": {"semtimedop": 2, "futex": 2, "allocations": 200}, "mule": {"semtimedop": 4}}
    assert footprint.grown(kept, kept) == []
    found = {"worker": {"semtimedop": 4, "futex": 2, "allocations": 205, "openat": 1}, "mule": {"semtimedop": 4}}
    assert footprint.grown(kept, found) == [
        "worker: allocations from 200 to 205",
        "worker: locks from 2 to 4",
        "worker: openat from 0 to 1",
    ]
    # which call a lock is, the C library decides
    assert footprint.grown(kept, {"mule": {"semop": 4}}) == []
    assert footprint.grown(kept, {"mule": {"semop": 1, "semtimedop": 4}}) == ["mule: locks from 4 to 5"]


def test_what_fell_or_varies_is_no_growth():
    kept = {"nginx": {"epoll_wait": 3}, "worker": {"semtimedop": 2, "futex": 2, "allocations": 200}}
    found = {"nginx": {"epoll_wait": 4}, "worker": {"futex": 3, "allocations": 204}}
    assert footprint.grown(kept, found) == []
    assert footprint.grown(kept, {"nginx": {"epoll_wait": 5}}) == ["nginx: epoll_wait from 3 to 5"]


def test_what_is_kept_is_read_again(tmp_path):
    found = {"nginx": {}, "worker": {"read": 1, "allocations": 200}, "mule": {"semtimedop": 4}}
    footprint.write(found, tmp_path / "cost.toml")
    assert footprint.read(tmp_path / "cost.toml") == (footprint.system(), found)
    # who finds it knows how to write it anew
    assert "make profile ARGS=--keep" in (tmp_path / "cost.toml").read_text().partition("[")[0]


def test_allocations_are_counted_for_each_process(tmp_path):
    library = loadgen.compiled(footprint.SOURCE, footprint.LIBRARY, footprint.OPTIONS)
    counts = tmp_path / "counts"
    with counts.open("wb") as file:
        file.truncate(8 * footprint.PIDS)
    # the child has a number of its own from where it was made
    told = subprocess.run(
        [sys.executable, "-c", "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
         "child = os.fork()\n"
         "for _ in range(1000 if child else 3000): libc.malloc(1)\n"
         "print(os.getpid(), flush=True)\n"
         "child and os.waitpid(child, 0)"],
        env={"LD_PRELOAD": str(library), "MALLOC_COUNTS": str(counts)},
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    pids = sorted(map(int, told.stdout.split()))
    seen = memoryview(counts.read_bytes()).cast("Q")
    parent, child = (seen[pid] for pid in pids)
    assert 3000 <= child < 3300 and parent >= 1000
    assert sum(seen[pid] for pid in pids) == sum(seen)
