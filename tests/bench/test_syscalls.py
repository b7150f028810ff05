"""What strace tells, of text that it wrote and of a process that makes known calls."""

import os
import shutil
import subprocess
import sys

import pytest

from bench import syscalls
from bench.syscalls import Call, Count
from nginx import StartError

# of a mule, and of two threads at the same time
SUMMARY = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 61.20    0.000513           1       400           semtimedop
 38.80    0.000325          32        10         3 read
------ ----------- ----------- --------- --------- ----------------
100.00    0.000838           2       410         3 total
"""
EACH = """\
16778 1795282290.327282 read(22, ""..., 8) = 8
16783 1795282290.327156 epoll_wait(18,  <unfinished ...>
16778 1795282290.327575 write(25, ""..., 8) = 8
16783 1795282290.327600 <... epoll_wait resumed>[{events=EPOLLIN, data={u32=25, u64=25}}], 1, 100) = 1
16782 1795282290.327877 +++ exited with 0 +++
16783 1795282290.327900 epoll_wait(18,  <detached ...>
"""
# asks for its parent as often as it is told to
ASKS = """
import os, sys
for line in sys.stdin:
    for _ in range(int(line)):
        os.getppid()
    print(flush=True)
"""


@pytest.fixture
def asks():
    """Has a process ask so often."""
    with subprocess.Popen([sys.executable, "-c", ASKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def ask(times):
            process.stdin.write(b"%d\n" % times)
            process.stdin.flush()
            process.stdout.readline()
            return process.pid

        ask(1)
        yield ask
        process.stdin.close()


def test_a_summary_is_read():
    assert syscalls.counted(SUMMARY) == {"semtimedop": Count(400, 0), "read": Count(10, 3)}


def test_each_call_counts_when_it_began():
    assert syscalls.calls(EACH) == [
        Call(16778, 1795282290.327282, "read"),
        Call(16783, 1795282290.327156, "epoll_wait"),
        Call(16778, 1795282290.327575, "write"),
        Call(16783, 1795282290.3279, "epoll_wait"),
    ]


def test_the_calls_of_a_process_are_counted(asks, tmp_path):
    with syscalls.traced([asks(1)], syscalls.COUNT, tmp_path / "count"):
        asks(7)
    assert syscalls.counted((tmp_path / "count").read_text())["getppid"] == Count(7, 0)
    # nobody traces it any more
    assert asks(3)


def test_each_call_of_a_process_is_told(asks, tmp_path):
    with syscalls.traced([asks(1)], syscalls.EACH, tmp_path / "each"):
        pid = asks(5)
    found = [call for call in syscalls.calls((tmp_path / "each").read_text()) if call.name == "getppid"]
    assert len(found) == 5 and {call.thread for call in found} == {pid}
    assert found == sorted(found, key=lambda call: call.at)


def test_the_threads_of_a_process_are_its_own():
    assert syscalls.threads([os.getpid()])[os.getpid()] == os.getpid()
    assert syscalls.threads([0]) == {}


def test_a_process_that_is_gone_cannot_be_traced(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(StartError, match="strace has ended"), syscalls.traced([process.pid], (), tmp_path / "out"):
        pass


def test_a_missing_strace_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(StartError, match="strace is missing: sudo apt-get install"):
        syscalls.program()
