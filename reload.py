"""The command `reload`: asks the server of a run folder for a reload, shows how far it is and tells how it ended.

The server keeps RUN_DIR/reload.json, and replaces it as a whole: the number of the reload, its state, and a sentence.
The next reload that begins has a higher number than the one found before asking, and reads what is on disk only then:
so that number, or any above it, answers.

Runs in:  a process of its own; Progress also in the supervisor.
"""

import fcntl
import json
import os
import signal
import struct
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

RUNNING, DONE, FAILED = "running", "done", "failed"
PIN = "version"
_POLL_S = 0.1
# struct flock: type, whence, start, length, pid
_FLOCK = "hhqqi0q"


@dataclass(frozen=True)
class Progress:
    """How far a reload is, as the server tells it."""

    number: int = 0
    state: str = DONE
    text: str = ""

    @classmethod
    def read(cls, run_dir: Path) -> "Progress":
        """What the server told last; also what a server before it told."""
        try:
            return cls(**json.loads((run_dir / "reload.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, run_dir: Path) -> None:
        file = run_dir / "reload.json.new"
        file.write_text(json.dumps(asdict(self)))
        file.replace(run_dir / "reload.json")


def server_pid(run_dir: Path) -> int:
    """The process that holds the lock of a run folder, as the kernel says; 0 when none does."""
    try:
        with (run_dir / "lock").open("rb") as lock:
            question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(lock, fcntl.F_GETLK, question))
            return 0 if kind == fcntl.F_UNLCK else int(pid)
    except OSError:
        return 0


def pinned(run_dir: Path) -> str:
    """The version policy that `reload --version` has put before that of the settings; empty where it has not."""
    try:
        return (run_dir / PIN).read_text().strip()
    except OSError:
        return ""


def pin(run_dir: Path, policy: str) -> None:
    """Serve these versions from the next reload on, also after a new start; empty: as the settings say."""
    if policy:
        new = run_dir / f"{PIN}.new"
        new.write_text(f"{policy}\n")
        new.replace(run_dir / PIN)
    else:
        (run_dir / PIN).unlink(missing_ok=True)


def ask(run_dir: Path, everything: bool, version: str | None = None) -> int:
    """Ask for a reload and follow it to its end.  Returns the exit status: 0 done, 1 failed, 2 nobody to ask.

    version: what to serve from now on, also after a new start, instead of what version_policy says; empty: that again.
    """
    pid = server_pid(run_dir)
    if not pid:
        return _refuse(2, f"no server runs in {run_dir}; set PORT or RUN_DIR as for serve")
    before = Progress.read(run_dir)
    former = pinned(run_dir)
    try:
        if version is not None:
            pin(run_dir, version)
    except OSError as error:
        return _refuse(2, f"{error.filename} cannot be written: {error.strerror}")
    try:
        os.kill(pid, signal.SIGUSR1 if everything else signal.SIGHUP)
    except OSError as error:
        return _refuse(2, f"the server in {run_dir}, process {pid}, cannot be asked: {error.strerror}")
    shown = ""
    while True:
        # looked at before its last words are
        lives = server_pid(run_dir) == pid
        progress = Progress.read(run_dir)
        if progress.number > before.number:
            if progress.state == FAILED:
                if version is not None:
                    pin(run_dir, former)
                return _refuse(1, progress.text)
            if progress.text != shown:
                shown = progress.text
                print(f"muleteer: {shown}", flush=True)
            if progress.state == DONE:
                return 0
        if not lives:
            return _refuse(1, f"the server in {run_dir} ended before the reload was done")
        time.sleep(_POLL_S)


def _refuse(status: int, text: str) -> int:
    print(f"muleteer: {text}", file=sys.stderr)
    return status
