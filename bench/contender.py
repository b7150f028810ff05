"""The servers that are compared, ours and the peers: each started as a user would, and the roles of its processes.

A server has doors: behind nginx, and bare, where it takes HTTP itself.

Roles:  nginx; front, which speaks HTTP and holds no model; model, which holds one (and speaks HTTP as well, where one
        process does all); other.
Units:  seconds.
"""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import nginx
from bench import arena, report
from bench.peer import Peer
from bench.server import NotInTime, Server
from bench.work import ROOT
from bench.workload import Workload

NGINX, BARE = "nginx", "bare"
ROLES = ("nginx", "front", "model", "other")
START_PATIENCE_S = 60.0
STOP_PATIENCE_S = 10.0
RIGHT = ("HTTP/1.1 200", "HTTP/1.0 200")
# of Muleteer's processes; the spare mule is among the models, for it looks after them
_OWN_ROLES = {"nginx": "nginx", "worker": "front", "mule": "model"}


class Contender(Protocol):
    """One server in one setting, that can be started again and again."""

    name: str
    ours: bool
    doors: tuple[str, ...]
    # it wants each input in a list of one
    listed: bool
    # it is set to wait for batches, which only some workloads have a use for
    batching: bool

    # how it is set
    setting: str

    @property
    def version(self) -> str: ...

    def start(self, workload: Workload, request: bytes, environ: Mapping[str, object]) -> "Running":
        """Start it, and come back when it has answered a request.  environ: beyond what the workload says."""
        ...


class Running(Protocol):
    """A server that answers."""

    ports: dict[str, int]
    startup_s: float

    def roles(self) -> dict[int, str]:
        """Each of its processes."""
        ...

    def stop(self) -> None: ...


class Muleteer:
    """Ours, from a tree of its own: this one, or another commit's."""

    ours = True
    doors: tuple[str, ...] = (NGINX,)
    listed = False
    # by itself, and without waiting
    batching = False
    setting = "as a user starts it: uwsgi.ini as shipped, but for the number of mules; orjson"

    def __init__(self, name: str = "muleteer", tree: Path = ROOT) -> None:
        self.name = name
        self._tree = tree

    @property
    def version(self) -> str:
        return report.commit(self._tree)

    def start(self, workload: Workload, request: bytes, environ: Mapping[str, object]) -> "RunningMuleteer":
        return RunningMuleteer(
            self._tree, {"MODEL": workload.model, "MULES": workload.processes} | dict(environ), request
        )


class RunningMuleteer:
    def __init__(self, tree: Path, environ: Mapping[str, object], request: bytes) -> None:
        began = time.monotonic()
        self.server = Server(environ, tree)
        try:
            self.server.wait_ready()
            self.ports = {NGINX: self.server.port}
            _await_answer(self.server.port, request, self.server.process, began)
        except BaseException:
            self.stop()
            raise
        self.startup_s = time.monotonic() - began

    def roles(self) -> dict[int, str]:
        return {pid: _OWN_ROLES.get(role, "other") for pid, role in self.server.processes().items()}

    def stop(self) -> None:
        self.server.close()
        arena.clear(STOP_PATIENCE_S)


class Hosted:
    """A peer, bare and behind nginx at the same time."""

    ours = False
    doors: tuple[str, ...] = (BARE, NGINX)

    def __init__(self, peer: Peer) -> None:
        self.name = peer.name
        self.listed = peer.listed
        self.batching = peer.batch_wait_ms is not None
        self.setting = peer.setting
        self._peer = peer

    @property
    def version(self) -> str:
        return f"{self._peer.package} {self._peer.version}"

    def start(self, workload: Workload, request: bytes, environ: Mapping[str, object]) -> "RunningPeer":
        return RunningPeer(self._peer, workload, request)


class RunningPeer:
    def __init__(self, peer: Peer, workload: Workload, request: bytes) -> None:
        self._peer = peer
        # sockets lie below it, and their paths must be short
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        # nginx's worker is another user, where its master is root
        self._folder.chmod(0o755)
        self._models = self._folder / "models"
        self._models.mkdir()
        self.ports = {BARE: _free_port(), NGINX: _free_port()}
        began = time.monotonic()
        self._process = self._start(workload)
        try:
            _await_answer(self.ports[BARE], request, self._process, began)
            self.startup_s = time.monotonic() - began
            front = self._start_nginx()
            _await_answer(self.ports[NGINX], request, front, time.monotonic())
        except NotInTime as error:
            said = (self._folder / "log").read_text(errors="replace").strip()
            self.stop()
            raise NotInTime(f"{error}; its last words: {said.rpartition(chr(10))[2][:300]}\n{said[-2000:]}") from error
        except BaseException:
            self.stop()
            raise

    def _start(self, workload: Workload) -> "subprocess.Popen[bytes]":
        peer, programs = self._peer, self._peer.folder / "bin"
        # the cores, shared out, as Muleteer's replica_threads does
        threads = str(max(1, len(os.sched_getaffinity(0)) // workload.processes))
        mule = f"--mule={ROOT}/bench/peers/naive_mule.py"
        command = peer.command.format(
            bin=programs,
            port=self.ports[BARE],
            processes=workload.processes,
            root=ROOT,
            mules=" ".join([mule] * workload.processes),
        )
        environ = {
            "MODEL": str(workload.model),
            "MODEL_PIDS": str(self._models),
            "PROCESSES": str(workload.processes),
            "PORT": str(self.ports[BARE]),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{programs}:{os.environ.get('PATH', '')}",
            "HOME": str(self._folder),
            "TMPDIR": str(self._folder),
            "DO_NOT_TRACK": "1",
            "BENTOML_DO_NOT_TRACK": "True",
            "THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
        }
        own = {name: value.format(folder=self._folder) for name, value in peer.environ.items()}
        if peer.batch_wait_ms is not None:
            environ |= {"BATCH_WAIT_MS": str(peer.batch_wait_ms), "BATCH_ROWS": str(peer.batch_rows)}
        return self._run(command.split(), os.environ | environ | own)

    def _start_nginx(self) -> "subprocess.Popen[bytes]":
        values = {"folder": str(self._folder), "port": str(self.ports[NGINX]), "behind": str(self.ports[BARE])}
        text = (ROOT / "bench" / "peers" / "nginx.conf").read_text()
        file = self._folder / "nginx.conf"
        file.write_text(re.sub(r"@\{(\w+)\}", lambda match: values[match[1]], text))
        return self._run([nginx.program(), "-c", str(file), "-p", str(self._folder)], os.environ)

    def _run(self, command: list[str], environ: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=environ,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def roles(self) -> dict[int, str]:
        models = {int(file.name) for file in self._models.iterdir()}
        return {pid: "model" if pid in models else self._role(pid) for pid in arena.children()}

    def _role(self, pid: int) -> str:
        command = ""
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if command.startswith(("nginx: ", nginx.program())):
            return "nginx"
        return "front" if self._peer.front and re.search(self._peer.front, command) else "other"

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(self._peer.stop_signal)
        for pid, role in self.roles().items():
            if role == "nginx":
                with suppress(ProcessLookupError):
                    os.kill(pid, self._peer.stop_signal)
        arena.clear(STOP_PATIENCE_S)
        shutil.rmtree(self._folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_answer(port: int, request: bytes, process: "subprocess.Popen[bytes]", began: float) -> None:
    while not (answer := _answer(port, request)).startswith(RIGHT):
        if process.poll() is not None:
            raise NotInTime(f"the server ended with {process.returncode}")
        if time.monotonic() - began > START_PATIENCE_S:
            raise NotInTime(f"no right answer within {START_PATIENCE_S:.0f} s, but {answer or 'none'}")
        time.sleep(0.05)


def _answer(port: int, request: bytes) -> str:
    """The status line; empty where nobody answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(request)
            return connection.recv(65536).partition(b"\r")[0].decode(errors="replace")
    except OSError:
        return ""
