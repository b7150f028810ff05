"""Real servers for the story: entrypoint.sh on a free port, with its own run folder, stopped at the end.

Units: seconds.
"""

import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.server import descendants

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits"
FANCY = ROOT / "examples" / "fancy"
PATIENCE_S = 60.0
# of semctl: the process that touched a semaphore last
_GETPID = 11


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {patience_s} s: {what}")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def timing(self) -> dict[str, float]:
        parts = (part.strip().partition(";dur=") for part in self.headers["server-timing"].split(","))
        return {name: float(ms) for name, _, ms in parts}


class Server:
    """One running instance."""

    def __init__(self, **environ: str | int | Path) -> None:
        self.port = environ.get("PORT") or free_port()
        # a unix socket's path must be short
        self.run_dir = Path(tempfile.mkdtemp(prefix="muleteer-"))
        self._older_semaphores = semaphores()
        self.settings = settings = {"PORT": self.port, "RUN_DIR": self.run_dir, "LOG_DIR": self.run_dir, **environ}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SERVING_")}
        with (self.run_dir / "out").open("ab") as out:
            self.process = subprocess.Popen(
                [ROOT / "entrypoint.sh"],
                env=inherited | {key: str(value) for key, value in settings.items()},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return (self.run_dir / "out").read_text()

    @property
    def log(self) -> str:
        return (self.run_dir / "server.log").read_text()

    def access(self, request_id: str) -> dict[str, Any]:
        """The line of the access log for a request."""

        def line() -> Any:
            lines = map(json.loads, (self.run_dir / "access.log").read_text().splitlines())
            return next((line for line in lines if line["request_id"] == request_id), None)

        found: dict[str, Any] = wait_until(line, f"an access log line of {request_id}", 5)
        return found

    def wait_ready(self) -> "Server":
        wait_until(lambda: "  try " in self.output or self.process.poll() is not None, "the server is ready")
        assert self.process.poll() is None, self.output
        return self

    def connect(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", int(self.port), timeout=timeout)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        with closing(self.connect()) as connection:
            return ask(connection, method, path, body, headers)

    def predict(self, value: object, **headers: str) -> Answer:
        """POST value as JSON; headers with _ for -."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return self.request("POST", "/predict", json.dumps(value).encode(), named)

    def ready(self) -> Any:
        return self.request("GET", "/readyz").json

    def processes(self) -> dict[str, list[int]]:
        """Process ids by role: master, worker, mule, nginx."""
        roles: dict[str, list[int]] = {"master": [], "worker": [], "mule": [], "nginx": []}
        for pid in descendants(self.process.pid):
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                for role in roles:
                    if title.startswith(("uWSGI " + role, role + ":")):
                        roles[role].append(pid)
        return roles

    def prediction_workers(self) -> list[int]:
        """The workers in their order, but for the last one, which is for health."""
        order: dict[int, int] = {}
        for pid in self.processes()["worker"]:
            with suppress(OSError):
                order[pid] = int(re.sub(r"\D", "", Path(f"/proc/{pid}/cmdline").read_text()))
        return sorted(order, key=order.__getitem__)[:-1]

    def semaphores(self, pids: Collection[int]) -> set[int]:
        """Those of its semaphores that one of the processes was the last to touch, if only to make them."""
        libc = ctypes.CDLL(None)
        return {id for id in semaphores() - self._older_semaphores if libc.semctl(id, 0, _GETPID) in pids}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop, and give its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Whatever the test left, nothing of it stays."""
        pids = descendants(self.process.pid)
        with suppress(subprocess.TimeoutExpired):
            self.stop()
        for pid in (self.process.pid, *pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.run_dir, ignore_errors=True)


def reload(server: Server, *arguments: str) -> tuple[int, str, str]:
    """`entrypoint.sh reload` from somewhere else, as `docker exec` has it: its exit status, and what it said."""
    environ = os.environ | {"PORT": str(server.port), "RUN_DIR": str(server.settings["RUN_DIR"])}
    asked = [ROOT / "entrypoint.sh", "reload", *arguments]
    done = subprocess.run(asked, env=environ, cwd="/", capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stdout, done.stderr


def masters(server: Server, count: int) -> list[int]:
    """Waits until so many uWSGI run."""
    found: list[int] = wait_until(lambda: len(now := server.processes()["master"]) == count and now, f"{count} run")
    return found


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    connection.request(method, path, body, dict(headers or {}))
    answer = connection.getresponse()
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that the threads of the processes have used.

    Of the scheduler's nanoseconds: the ticks of /proc/PID/stat are 10 ms each, which is too coarse for the idle.
    """
    threads = [thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def semaphores() -> set[int]:
    """The ids of all System V semaphores of the machine."""
    return {int(line.split()[1]) for line in Path("/proc/sysvipc/sem").read_text().splitlines()[1:]}


def write_model(folder: Path, source: str) -> Path:
    """A model folder with this model.py."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(source)
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    servers: list[Server] = []

    def start(**environ: str | int | Path) -> Server:
        servers.append(Server(**environ))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def digits() -> Iterator[Server]:
    """The digits example, as shipped."""
    server = Server(MODEL=DIGITS)
    try:
        yield server.wait_ready()
    finally:
        server.close()


@pytest.fixture(scope="session")
def fancy() -> Iterator[Server]:
    """The fancy example with four mules."""
    server = Server(MODEL=FANCY, MULES=4)
    try:
        yield server.wait_ready()
    finally:
        server.close()
