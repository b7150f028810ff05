"""A real server under test: entrypoint.sh on a free port with a run folder of its own, and its processes.

Units: seconds.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.work import ROOT

PATIENCE_S = 90.0
# stop_timeout_s is 9, and the supervisor has the last word
STOP_PATIENCE_S = 20.0


class NotInTime(Exception):
    """Something that should have come about did not."""


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S, pause_s: float = 0.05) -> Any:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {patience_s:.0f} s: {what}")
        time.sleep(pause_s)
    return found


class Server:
    """One running instance."""

    def __init__(self, environ: Mapping[str, object], tree: Path = ROOT) -> None:
        """tree: of the code that is served, this or another commit's."""
        self._entrypoint = tree / "entrypoint.sh"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        # a unix socket's path must be short
        self.run_dir = Path(tempfile.mkdtemp(prefix="muleteer-bench-"))
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("SERVING_")
            and key not in ("MODEL", "MULES", "WORKERS", "THREADS", "QUEUE", "HOST", "INI")
        }
        own = {"PORT": self.port, "RUN_DIR": self.run_dir, "LOG_DIR": self.run_dir}
        self.environ = inherited | {key: str(value) for key, value in (own | dict(environ)).items()}
        with (self.run_dir / "out").open("ab") as out:
            self.process = subprocess.Popen(
                [self._entrypoint], env=self.environ, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_ready(self) -> "Server":
        wait_until(lambda: "  try " in self.output or self.process.poll() is not None, "the server is ready")
        if self.process.poll() is not None:
            raise NotInTime(f"the server did not start: {self.output}")
        return self

    @property
    def output(self) -> str:
        return (self.run_dir / "out").read_text()

    def command(self, *arguments: str, patience_s: float = PATIENCE_S) -> "subprocess.CompletedProcess[str]":
        """entrypoint.sh with another verb, for this server."""
        return subprocess.run(
            [self._entrypoint, *arguments], env=self.environ, capture_output=True, text=True, timeout=patience_s
        )

    def readyz(self) -> dict[str, Any]:
        """GET /readyz; empty where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            found = json.loads(connection.getresponse().read())
            return found if "replicas" in found else {}
        except (OSError, ValueError, http.client.HTTPException):
            return {}
        finally:
            connection.close()

    def processes(self) -> dict[int, str]:
        """All its processes: pid and role (supervisor, nginx, master, worker, mule)."""
        found = {self.process.pid: "supervisor"}
        for pid in descendants(self.process.pid):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
                # "uWSGI worker 1", "uWSGI mule 2", "nginx: worker process"; else a child of the model's, or a zombie
                role = words[1] if words[:1] == ["uWSGI"] else (words or ["ended"])[0].rstrip(":")
                found[pid] = role
        return found

    def of_role(self, role: str) -> list[int]:
        return [pid for pid, found in self.processes().items() if found == role]

    def lines_about(self, request_id: str) -> list[str]:
        """What the logs say about a request."""
        found = []
        for name in ("server.log", "access.log"):
            file = self.run_dir / name
            if file.exists():
                lines = file.read_text(errors="replace").splitlines()
                found += [f"{name}: {line}" for line in lines if _names(line, request_id)]
        return found

    def requests_read(self) -> set[str]:
        """The ids of all requests that nginx has read: it logs each, whatever became of it."""
        file = self.run_dir / "access.log"
        return {json.loads(line)["request_id"] for line in file.read_text().splitlines()} if file.exists() else set()

    def stop(self, patience_s: float = PATIENCE_S) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s)

    def close(self, keep: bool = False) -> None:
        """Nothing of it stays, but the run folder where it is to be looked at."""
        pids = descendants(self.process.pid)
        with suppress(subprocess.TimeoutExpired):
            # first the end that gives back semaphores
            self.stop(STOP_PATIENCE_S)
        if self.process.poll() is None:
            for pid in (self.process.pid, *pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        if not keep:
            shutil.rmtree(self.run_dir, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def _names(line: str, request_id: str) -> bool:
    place = line.find(request_id)
    end = place + len(request_id)
    return place >= 0 and not line[end : end + 1].isdigit()
