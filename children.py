"""Child processes with all that they start: how they begin, how they end, and who buries them.

Runs in:  the supervisor.
Units:    seconds; deadlines are absolute, time.monotonic().
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
# for a child that did not stop in time, before it is killed
LAST_WORDS_S = 0.8
Child = subprocess.Popen[bytes]


def spawn(
    command: Sequence[str], environ: dict[str, str], folder: Path, out: int | None, err: int, files: Sequence[int]
) -> Child:
    """Start a program there, which prints to these two files, and to which the others stay open."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        # Ctrl-C is for the parent alone: it knows the order of a stop
        start_new_session=True,
        pass_fds=files,
        preexec_fn=_in_child,
    )


def stop(
    children: Sequence[Child],
    number: int,
    deadline: float,
    wait: Callable[[float], object],
    hurry: Callable[[], bool],
) -> None:
    """Ask them to end by a signal; those that have not by the deadline, or when there is no time, are ended.

    wait: for so long, or until something has happened.
    """
    while any(child.poll() is None for child in children) and time.monotonic() < deadline and not hurry():
        for child in children:
            # more than once, for uWSGI ignores it until it has started; while it stops, another changes nothing
            child.send_signal(number)
        # a child's end may have been noticed before this wait: look again now and then
        wait(min(0.2, max(0.0, deadline - time.monotonic())))
    # the quick end, which still gives back sockets and semaphores; what loads a model does not hear of it
    last = time.monotonic() + LAST_WORDS_S
    while (late := [child for child in children if child.poll() is None]) and time.monotonic() < last:
        for child in late:
            # also wakes uWSGI's master, which looks for its dead once a second
            child.send_signal(signal.SIGINT)
            for pid in _group(child.pid) - {child.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def reap(children: Sequence[Child], others: bool) -> None:
    """Bury the dead; others: also what other processes left behind, as PID 1 has to."""
    for child in children:
        child.poll()
    if not others:
        return
    mine = {child.pid for child in children}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid not in mine:
            os.waitpid(found.si_pid, os.WNOHANG)


def _in_child() -> None:
    """Between fork and exec: signals as usual, and an end with the parent, however that ends."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _group(leader: int) -> set[int]:
    """The processes of a process group."""
    found = set()
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the name in parentheses may hold anything: state, parent and group come after it
            if int(stat_file.read_text().rpartition(")")[2].split()[2]) == leader:
                found.add(int(stat_file.parent.name))
    return found
