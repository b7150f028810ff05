"""The servers that people would pick instead: which there are, how each is started, and their environments.

usage: python -m bench.peer [NAME…]     installs all, or these, each into build/peers/NAME, as bench/peers/NAME.txt says

bench/peers/ has an app for each, whose docstring says in which setting it runs and why.  What is installed already is
skipped; where one cannot be installed the others are, and the exit status is 1.
"""

import argparse
import hashlib
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

from bench.report import say
from bench.work import ROOT

FOLDER = ROOT / "build" / "peers"
REQUIREMENTS = ROOT / "bench" / "peers"
APPS = "bench.peers"


@dataclass(frozen=True)
class Peer:
    """One server in one setting.

    In command, {bin} is where its programs are, {port} and {processes} are numbers; in environ, {folder} is its own.
    """

    name: str
    # the environment, and the package whose version is told
    environment: str
    package: str
    command: str
    # how it is set, and who reads its JSON; its app tells why
    setting: str
    # how long it waits for a batch to fill, and how many rows fill it; None: no batches
    batch_wait_ms: int | None = None
    batch_rows: int = 32
    environ: Mapping[str, str] = field(default_factory=dict)
    # of the command lines of the processes that speak HTTP and hold no model
    front: str = ""
    # it wants each input in a list of one
    listed: bool = False
    # it listens on all addresses: only for a network of its own
    isolated: bool = False
    stop_signal: int = signal.SIGTERM

    @property
    def folder(self) -> Path:
        return FOLDER / self.environment

    @property
    def installed(self) -> bool:
        return _mark(self.environment).exists()

    @property
    def version(self) -> str:
        """Of the package that it is known by."""
        paths = [str(path) for path in self.folder.glob("lib/python*/site-packages")]
        return next((found.version for found in distributions(name=self.package, path=paths)), "?")


_UVICORN = "{bin}/uvicorn --workers {processes} --host 127.0.0.1 --port {port} --log-level warning --no-access-log"
_GUNICORN = (
    "{bin}/gunicorn -k gthread --threads 4 -w {processes} -b 127.0.0.1:{port} --backlog 2048 --keep-alive 75"
    " --worker-tmp-dir /dev/shm --log-level warning"
)
_MOSEC = "{bin}/python -m bench.peers.mosec_app --address 127.0.0.1 --port {port} --log-level warning --timeout 30000"
_LITSERVE = "{bin}/python -m bench.peers.litserve_app"
_BENTOML = "{bin}/bentoml serve --working-dir {root} --host 127.0.0.1 --port {port} bench.peers.bento_app"
_RAY = "{bin}/python -m bench.peers.ray_app"
# one thread for HAProxy, for there are few cores
_RAY_ENVIRON = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "{folder}/haproxy/haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "{folder}/haproxy/admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "{folder}/haproxy",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "{folder}/haproxy/server-state",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_RAY_FRONT = r"haproxy|Proxy"
_NAIVE = (
    "{bin}/uwsgi --master --die-on-term --need-app --enable-threads --disable-logging --listen 128 --lazy-apps"
    " --http 127.0.0.1:{port} --http-keepalive --add-header Connection:Keep-Alive --buffer-size 32768 --processes 4"
    " --queue 64 --queue-blocksize 2097152 --cache2 name=default,items=4096,blocksize=16384"
    " --pythonpath {root} --module bench.peers.naive_app:app {mules}"
)

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "gunicorn",
            "gunicorn",
            "gunicorn",
            f"{_GUNICORN} {APPS}.flask_app:app",
            "Flask, gthread, 4 threads for each model; orjson",
        ),
        Peer(
            "fastapi",
            "fastapi",
            "fastapi",
            f"{_UVICORN} {APPS}.fastapi_app:app",
            "uvicorn with uvloop and httptools; orjson in, pydantic out",
        ),
        Peer("mosec", "mosec", "mosec", _MOSEC, "no batches; orjson", front="mosec"),
        Peer(
            "mosec-batch",
            "mosec",
            "mosec",
            _MOSEC,
            "batches of 32 that wait for 1 ms; orjson",
            batch_wait_ms=1,
            front="mosec",
        ),
        Peer(
            "mosec-batch-8",
            "mosec",
            "mosec",
            _MOSEC,
            "batches of 8 that wait for 1 ms; orjson",
            batch_wait_ms=1,
            batch_rows=8,
            front="mosec",
        ),
        Peer("litserve", "litserve", "litserve", _LITSERVE, "no batches; its own JSON", front="litserve"),
        Peer(
            "litserve-batch",
            "litserve",
            "litserve",
            _LITSERVE,
            "batches of 32 that wait for 1 ms; its own JSON",
            batch_wait_ms=1,
            front="litserve",
        ),
        Peer("bentoml", "bentoml", "bentoml", f"{_BENTOML}:Plain", "no batches; its own JSON", front="bentoml"),
        Peer(
            "bentoml-batch",
            "bentoml",
            "bentoml",
            f"{_BENTOML}:Batched",
            "adaptive batches of 32; its own JSON",
            batch_wait_ms=0,
            front="bentoml",
            listed=True,
        ),
        Peer(
            "ray",
            "ray",
            "ray",
            _RAY,
            "Ray Serve, throughput mode, HAProxy, no batches; orjson",
            environ=_RAY_ENVIRON,
            front=_RAY_FRONT,
            isolated=True,
        ),
        Peer(
            "ray-batch",
            "ray",
            "ray",
            _RAY,
            "the same, batches of 32 that wait for 1 ms; orjson",
            batch_wait_ms=1,
            environ=_RAY_ENVIRON,
            front=_RAY_FRONT,
            isolated=True,
        ),
        Peer("naive", "naive", "uWSGI", _NAIVE, "mules as one first writes them; Python's json", front="uwsgi"),
    )
}
ENVIRONMENTS = tuple(dict.fromkeys(peer.environment for peer in PEERS.values()))


def install(name: str) -> bool:
    """Make an environment, and say how it went."""
    folder, mark = FOLDER / name, _mark(name)
    if mark.exists():
        say(f"{name}: installed already")
        return True
    began = time.monotonic()
    say(f"{name}: installing into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar",
        "on",
    ]
    if subprocess.run([*pip, "-r", REQUIREMENTS / f"{name}.txt"]).returncode:
        say(f"{name}: not installed")
        return False
    mark.touch()
    say(f"{name}: installed in {time.monotonic() - began:.0f} s")
    return True


def _mark(name: str) -> Path:
    # of these very requirements
    pinned = (REQUIREMENTS / f"{name}.txt").read_bytes()
    return FOLDER / name / f".installed-{hashlib.sha256(pinned).hexdigest()[:12]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Install, and name what could not be."""
    parser = argparse.ArgumentParser(prog="bench.peer", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; default: all")
    names = parser.parse_args(arguments).names or list(ENVIRONMENTS)
    if unknown := [name for name in names if name not in ENVIRONMENTS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    failed = [name for name in names if not install(name)]
    if failed:
        say(f'not installed: {", ".join(failed)}; pip says why above (make bench-peers PEERS="{" ".join(failed)}")')
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
