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


def ask(run_dir: Path, everything: bool) -> int:
    """Ask for a reload and follow it to its end.  Returns the exit status: 0 done, 1 failed, 2 nobody to ask."""
    pid = server_pid(run_dir)
    if not pid:
        return _refuse(2, f"no server runs in {run_dir}; set PORT or RUN_DIR as for serve")
    before = Progress.read(run_dir)
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
