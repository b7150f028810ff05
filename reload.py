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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RUNNING, DONE, FAILED = "running", "done", "failed"
PIN, WISH = "version", "version.asked"
_POLL_S = 0.1
# struct flock: type, whence, start, length, pid
_FLOCK = "hhqqi0q"


class NoServer(Exception):
    """Nobody runs there, or none that can be asked."""


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


def pin(run_dir: Path, policy: str, name: str = PIN) -> None:
    """Serve these versions, also after a new start; empty: as the settings say."""
    new = run_dir / f"{name}.new"
    new.write_text(f"{policy}\n")
    new.replace(run_dir / name)


def wish(run_dir: Path) -> str | None:
    """What `reload --version` asked for and nobody has done yet; None where it did not.  It is asked for once."""
    try:
        policy = (run_dir / WISH).read_text().strip()
        (run_dir / WISH).unlink()
    except OSError:
        return None
    return policy


def follow(run_dir: Path, everything: bool = False) -> Iterator[Progress]:
    """Ask for a reload.  Gives how far it is, each time that it is further, up to its end; NoServer where none runs.

    Where one runs already, that comes first.
    """
    pid = server_pid(run_dir)
    if not pid:
        raise NoServer(f"no server runs in {run_dir}; set PORT or RUN_DIR as for serve")
    before = seen = Progress.read(run_dir)
    try:
        os.kill(pid, signal.SIGUSR1 if everything else signal.SIGHUP)
    except OSError as error:
        raise NoServer(f"the server in {run_dir}, process {pid}, cannot be asked: {error.strerror}") from error
    if before.state == RUNNING:
        yield Progress(before.number, RUNNING, f"another reload runs, and this one comes after it: {before.text}")
    while seen.number == before.number or seen.state == RUNNING:
        # looked at before its last words are
        lives = server_pid(run_dir) == pid
        progress = Progress.read(run_dir)
        if progress.number > before.number and progress != seen:
            seen = progress
            yield progress
        elif not lives:
            yield Progress(before.number + 1, FAILED, f"the server in {run_dir} ended before the reload was done")
            return
        else:
            time.sleep(_POLL_S)


def ask(run_dir: Path, everything: bool, version: str | None = None, in_json: bool = False) -> int:
    """Ask for a reload and tell how it goes.  Returns the exit status: 0 done, 1 failed, 2 nobody to ask.

    version: what to serve from now on, also after a new start, instead of what version_policy says; empty: that again.
    in_json: tell how it ended, and nothing before.
    """
    try:
        if version is not None and run_dir.is_dir() and not server_pid(run_dir):
            pin(run_dir, version)
            told = f"the next server in {run_dir} serves {version or 'what version_policy says'}"
            print(json.dumps({"state": DONE, "text": told}) if in_json else f"muleteer: {told}")
            return 0
        if version is not None:
            # before the reload that it is for is asked for; the server remembers it once that is done
            pin(run_dir, version, WISH)
        for progress in follow(run_dir, everything):
            if in_json:
                if progress.state != RUNNING:
                    print(json.dumps({"state": progress.state, "text": progress.text}))
                    return int(progress.state == FAILED)
            elif progress.state == FAILED:
                return _refuse(1, progress.text)
            else:
                print(f"muleteer: {progress.text}", flush=True)
    except NoServer as error:
        return _refuse(2, str(error))
    except OSError as error:
        return _refuse(2, f"{error.filename} cannot be written: {error.strerror}")
    return 0


def _refuse(status: int, text: str) -> int:
    print(f"muleteer: {text}", file=sys.stderr)
    return status
