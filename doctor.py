"""What is wrong with a machine, a uwsgi.ini and a model, in sentences: each with what to do.

Runs in:  the command line, and the processes that it starts.
Units:    MB of 2**20 bytes.
"""

import importlib
import os
import platform
import re
import resource
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import nginx
import trial
from catalog import Catalog
from instance import SOCKETS
from serving.errors import ModelError, SettingsError, SourceError
from serving.model import ModelFolder
from serving.settings import Settings, cores, memory_bytes, read_ini
from trial import TrialFailed

FRAMEWORKS = ("tensorflow", "torch", "onnxruntime", "sklearn", "xgboost", "lightgbm", "jax")
# os.pidfd_open
_PIDFD = (5, 3)
# uWSGI makes a set for each of its locks
_SETS = 32
# of the memory there is, more is too near to the edge
_FULL = 0.8
_LEAST_SHM_MB = 64
# keys of uwsgi.ini that open a socket
_OPENS = {"socket", "uwsgi-socket", "http", "https", "stats", "stats-server"}
_OPENS |= {f"{protocol}-socket" for protocol in ("http", "http11", "https", "fastcgi", "scgi", "raw", "suwsgi")}
_PORT = re.compile(r"[^/]*:\d+(,.*)?")


class Level(StrEnum):
    """How bad it is."""

    FINE = "ok"
    DOUBTFUL = "warning"
    WRONG = "wrong"


class Finding(NamedTuple):
    """What was looked at, how it is, and what to do where it is not fine."""

    about: str
    level: Level
    told: str
    fix: str = ""

    def line(self) -> str:
        """As it is printed."""
        return f"{self.level:<8} {self.about}: {self.told}" + (f"; {self.fix}" if self.fix else "")


Findings = Iterator[Finding]


def examine(ini: Path, run_dir: Path, environ: Mapping[str, str]) -> Findings:
    """Look at all of it, the slow part last."""
    yield from _programs()
    yield from _kernel()
    try:
        settings = Settings.read(ini, environ)
    except SettingsError as error:
        yield Finding("uwsgi.ini", Level.WRONG, str(error))
        return
    yield Finding("uwsgi.ini", Level.FINE, f"{ini} fits itself and this machine")
    yield from _sockets(ini, run_dir, environ)
    yield from _limits(settings)
    yield from _processors(settings)
    yield from _before_the_fork()
    yield from _model(settings, run_dir, environ)


def _programs() -> Findings:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Finding("Python", Level.FINE, version)
    else:
        yield Finding("Python", Level.WRONG, version, "install 3.11, 3.12 or 3.13")
    try:
        yield Finding("nginx", Level.FINE, nginx.program())
    except nginx.StartError as error:
        yield Finding("nginx", Level.WRONG, str(error))


def _kernel() -> Findings:
    release = platform.release()
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if numbers >= _PIDFD:
        yield Finding("kernel", Level.FINE, release)
    else:
        told = f"{release} has no pidfds, and a mule's death is seen within half a second, not at once"
        yield Finding("kernel", Level.DOUBTFUL, told, "5.3 or later has them")
    sets = _numbers("/proc/sys/kernel/sem")
    used = max(0, len(_text("/proc/sysvipc/sem").splitlines()) - 1)
    if len(sets) == 4 and sets[3] - used < _SETS:
        told = f"{used} of {sets[3]} sets are used, and a server needs some {_SETS}"
        yield Finding("semaphores", Level.WRONG, told, "remove those of the dead (ipcs -s, ipcrm) or raise kernel.sem")
    elif len(sets) == 4:
        yield Finding("semaphores", Level.FINE, f"{used} of {sets[3]} sets are used")
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    free_mb = shm.f_bavail * shm.f_frsize >> 20 if shm else 0
    if free_mb < _LEAST_SHM_MB:
        told = f"{free_mb} MB are free: the server needs none, but PyTorch's and other frameworks' processes may"
        yield Finding("/dev/shm", Level.DOUBTFUL, told, "docker run --shm-size=1g")
    else:
        yield Finding("/dev/shm", Level.FINE, f"{free_mb} MB are free")


def _sockets(ini: Path, run_dir: Path, environ: Mapping[str, str]) -> Findings:
    """Whoever can write to uWSGI's sockets can run code."""
    exposed = [
        f"{key} = {value}"
        for key, values in read_ini(ini, environ).get("uwsgi", {}).items()
        for value in values
        if key in _OPENS and _PORT.fullmatch(value)
    ]
    if exposed:
        told = f"{exposed[0]} opens uWSGI to whoever reaches that, who can run code by it"
        yield Finding("uwsgi socket", Level.WRONG, told, "use a path in $(RUN_DIR), and let nginx listen")
    paths = [path for name in SOCKETS if (path := run_dir / name).is_socket()]
    open_to_all = [path for path in paths if path.stat().st_mode & stat.S_IRWXO]
    if open_to_all:
        told = f"{open_to_all[0]} is open to all users of this machine, who can run code by it"
        yield Finding("uwsgi socket", Level.WRONG, told, "chmod-socket = 660 in uwsgi.ini")
    elif not exposed:
        yield Finding("uwsgi socket", Level.FINE, "for this user and group alone")


def _limits(settings: Settings) -> Findings:
    allowed = _numbers("/proc/sys/net/core/somaxconn")
    if allowed and allowed[0] < settings.max_connections:
        told = f"{allowed[0]} connections can wait for nginx, and max_connections is {settings.max_connections}"
        fix = f"sysctl -w net.core.somaxconn={settings.max_connections}"
        yield Finding("net.core.somaxconn", Level.DOUBTFUL, told, fix)
    elif allowed:
        yield Finding("net.core.somaxconn", Level.FINE, f"{allowed[0]}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = f"{hard} may be open in a process (ulimit -Hn), and nginx needs {settings.nginx_files}"
    yield Finding("files", Level.FINE, told)
    left_mb, mapped_mb = (_kilobytes("CommitLimit") - _kilobytes("Committed_AS")) >> 10, settings.mapped_bytes >> 20
    if _numbers("/proc/sys/vm/overcommit_memory") == [2] and left_mb < mapped_mb:
        told = f"{left_mb} MB more may be mapped, and {mapped_mb} are (vm.overcommit_memory = 2)"
        yield Finding("memory", Level.WRONG, told, "sysctl -w vm.overcommit_memory=0, or fewer threads")


def _processors(settings: Settings) -> Findings:
    machine, own = os.cpu_count() or 1, cores()
    told = f"{own} of {machine} may be used" if own < machine else f"there are {own}"
    threads = settings.threads_per_replica
    wanted = f"{settings.mules} mules with {threads} {'thread' if threads == 1 else 'threads'} each"
    if settings.mules * threads > own:
        fix = "fewer mules, unless the model waits for something else" if threads == 1 else "replica_threads = 0"
        yield Finding("cores", Level.DOUBTFUL, f"{told}, for {wanted}", fix)
    else:
        yield Finding("cores", Level.FINE, f"{told}, for {wanted}")


def _before_the_fork() -> Findings:
    """What the master imports is there in each process that it forks: no threads, and no framework."""
    found = trial.apart(_import_app)
    if found["frameworks"] or found["python_threads"] > 1 or found["cuda"]:
        told = (
            f"{', '.join(found['frameworks']) or 'no framework'} is imported, and {found['python_threads']} threads run"
        )
        yield Finding("before the fork", Level.WRONG, told, "nothing that app/ imports may import a framework")
    else:
        yield Finding("before the fork", Level.FINE, "no framework is imported, no thread started, and CUDA untouched")


def _import_app() -> dict[str, Any]:
    importlib.import_module("app")
    return _state()


def _state() -> dict[str, Any]:
    """Of this process: what would not outlive a fork."""
    return {
        "frameworks": [name for name in FRAMEWORKS if name in sys.modules],
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "python_threads": threading.active_count(),
        "cuda": any("libcuda" in line for line in _text("/proc/self/maps").splitlines()),
    }


def _model(settings: Settings, run_dir: Path, environ: Mapping[str, str]) -> Findings:
    def say(text: str) -> None:
        print(f"muleteer: {text}", file=sys.stderr)

    try:
        catalog = Catalog(settings, dict(environ), run_dir, say)
        found = catalog.look().identities
        version = max(found)
        placed = catalog.place(version, found[version])
        folder = ModelFolder.open(placed.path, placed.root, version)
        tried = trial.apart(_try_out, folder, settings)
    except (ModelError, SourceError, TrialFailed) as error:
        yield Finding("model", Level.WRONG, str(error))
        return
    told = (
        f"{tried['name']} version {tried['version']} ({tried['engine']}) loads in {tried['load_s']:.1f} s and answers"
    )
    yield Finding("model", Level.FINE, told if tried["compared"] else f"{told}; no answer.json says what is right")
    state = tried["state"]
    told = f"{', '.join(state['frameworks']) or 'no framework'}, {state['threads']} threads" + ", CUDA" * state["cuda"]
    yield Finding(
        "after the load", Level.FINE, f"{told}: none of it outlives a fork, and each mule loads after its own"
    )
    needs = settings.mules * tried["mb"] + (settings.mapped_bytes >> 20)
    there = memory_bytes() >> 20
    told = (
        f"{settings.mules} mules of {tried['mb']} MB, and {settings.mapped_bytes >> 20} MB that the settings map, make"
        f" {needs} of {there} MB"
    )
    if needs + tried["mb"] > there:
        yield Finding("memory", Level.WRONG, f"{told}, with no room for one more while it is replaced", "fewer mules")
    elif needs > _FULL * there:
        yield Finding("memory", Level.DOUBTFUL, told, "fewer mules, or fewer threads")
    else:
        yield Finding("memory", Level.FINE, told)


def _try_out(folder: ModelFolder, settings: Settings) -> dict[str, Any]:
    return trial.try_out(folder, settings) | {"state": _state()}


def _text(file: str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""


def _numbers(file: str) -> list[int]:
    return [int(number) for number in _text(file).split()]


def _kilobytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) if match else 0
