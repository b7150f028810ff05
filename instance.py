"""One uWSGI: what it is started from, its folder with its sockets, and what it says of itself.

Its folder is one of two in RUN_DIR, so that a new instance can start beside the one that serves.  nginx connects to
RUN_DIR/predict.sock and RUN_DIR/control.sock, which are links into the folder of the instance that serves.

Runs in:  the supervisor.
Raises:   SettingsError and ModelError, before anything is started.
"""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import reload
from catalog import BrokenVersion, Catalog, Reasons
from serving import memory
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.plan import Plan, PlanFile
from serving.settings import Settings

SOCKETS = ("predict.sock", "control.sock")
FOLDERS = ("uwsgi-1", "uwsgi-2")
# of a line in /proc/net/unix, a socket that listens
_LISTENS = b"00010000"


class Instance:
    """One uWSGI, from the files that it is started from to its last connection."""

    def __init__(
        self, run_dir: Path, folder: str, ini: Path, environ: dict[str, str], say: Callable[[str], None]
    ) -> None:
        self.path = run_dir / folder
        self.settings = Settings.read(ini, environ)
        self._run_dir = run_dir
        self._ini = ini.read_text()
        self.catalog = Catalog(self.settings, environ, run_dir, say)
        self.plan = Plan()
        # that answers those who name no version
        self.model: ModelFolder
        self.process: subprocess.Popen[bytes] | None = None
        # the file in which it counts
        self.counts: int | None = None
        workers = self.settings.prediction_workers
        self.command = [str(Path(sys.executable).with_name("uwsgi")), "--ini", str(ini)]
        self.environ = environ | {
            "RUN_DIR": str(self.path),
            "PREDICTION_WORKERS": ",".join(map(str, range(1, workers + 1))),
            "CONTROL_WORKER": str(workers + 1),
            "PYTHONUNBUFFERED": "1",
        }

    def look(
        self,
        before: Plan,
        anew: bool = False,
        refused: Reasons = MappingProxyType({}),
        again: bool = False,
        wish: str | None = None,
    ) -> Plan:
        """What is to be served of what there is now, fetched if need be; as Catalog.plan, which says more.

        wish: the versions to serve instead of those that were pinned, if any; empty: as the settings say.
        """
        pinned = reload.pinned(self._run_dir) if wish is None else wish
        try:
            policy = pinned or self.settings.version_policy
            return self.catalog.plan(policy, before, anew, refused, again, bool(pinned))
        except BrokenVersion:
            raise
        except ModelError as error:
            if not pinned:
                raise
            told = f"it is pinned by `reload --version {pinned}`, which `reload --unpin` ends"
            raise ModelError(f"{error}; {told}") from error

    def adopt(self, plan: Plan) -> None:
        """What it serves from its start on.  ModelError when that is no model."""
        self.plan, self.model = plan, _default_model(plan)

    def count(self, before: "Instance | None" = None) -> None:
        """Before it starts: it goes on with what the one before has counted, unless that was another model."""
        self.counts = before.counts if before and before.model.name == self.model.name else memory.make()
        if self.counts is not None:
            self.environ[memory.VARIABLE] = f"{self.counts},{FOLDERS.index(self.path.name)}"

    def forget_counts(self, other: "Instance") -> None:
        """When it has ended, and the other serves."""
        if self.counts is not None and self.counts != other.counts:
            os.close(self.counts)
        self.counts = None

    def same_as(self, other: "Instance") -> bool:
        """Whether both are started from the same uwsgi.ini and the same folder."""
        return (self._ini, self.settings) == (other._ini, other.settings)

    def other_folder(self) -> str:
        """The folder for the instance that comes after this one."""
        return next(folder for folder in FOLDERS if folder != self.path.name)

    def make_folder(self) -> None:
        """Its folder, without what a killed one left there."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        self.serve(self.plan)

    def remove_folder(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def link(self) -> None:
        """Let nginx's next connections come here.

        connect() follows the link each time, so that nginx notices nothing: no connection is cut, and none refused.
        """
        links = {self._run_dir / f"{name}.new": self._run_dir / name for name in SOCKETS}
        for new, link in links.items():
            new.unlink(missing_ok=True)
            new.symlink_to(Path(self.path.name, link.name))
        for new, link in links.items():
            new.replace(link)

    def drain(self) -> None:
        """End each connection that nginx keeps, after the next answer on it."""
        (self.path / "drain").touch()

    def connections(self) -> int:
        """Connections to its sockets, with those that wait in the backlog: all that it still has to answer."""
        paths = {os.fsencode(self.path / name) for name in SOCKETS}
        # number, references, protocol, flags, type, state, inode, path
        sockets = (line.split(None, 7) for line in Path("/proc/net/unix").read_bytes().splitlines())
        return sum(fields[-1] in paths and fields[3] != _LISTENS for fields in sockets)

    def readyz(self) -> dict[str, Any]:
        """What GET /readyz says of it; {} while there is no answer."""
        return readyz(self.path / "control.sock")

    def serve(self, plan: Plan) -> None:
        """Tell the mules what is to be served: they replace, one after another, the replicas that do not fit."""
        PlanFile(self.path / "plan.json").write(plan)
        # the way back is open, though its files may be gone
        with suppress(ModelError):
            self.model = _default_model(plan)
        self.plan = plan


def _default_model(plan: Plan) -> ModelFolder:
    release = plan.default
    return ModelFolder.open(release.path, release.root, release.version)


def readyz(control: Path) -> dict[str, Any]:
    """What GET /readyz says, asked at the socket for health; {} while there is no answer."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/readyz", "QUERY_STRING": "", "SERVER_PROTOCOL": "HTTP/1.1"}
    # with what only the supervisor is told
    environ |= {"SERVER_NAME": "localhost", "SERVER_PORT": "80", "SUPERVISOR": "1"}
    pairs = b"".join(_sized(text.encode()) for pair in environ.items() for text in pair)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(control))
            # the uwsgi protocol: modifier 0, the size of the pairs, modifier 0
            connection.sendall(b"\0" + len(pairs).to_bytes(2, "little") + b"\0" + pairs)
            response = http.client.HTTPResponse(connection)
            response.begin()
            ready = json.loads(response.read())
            return ready if isinstance(ready, dict) else {}
    except (OSError, ValueError, http.client.HTTPException):
        return {}


def _sized(text: bytes) -> bytes:
    return len(text).to_bytes(2, "little") + text
