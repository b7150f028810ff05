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
from pathlib import Path
from typing import Any

from serving.model import ModelFolder
from serving.settings import Settings

SOCKETS = ("predict.sock", "control.sock")
FOLDERS = ("uwsgi-1", "uwsgi-2")
# of a line in /proc/net/unix, a socket that listens
_LISTENS = b"00010000"


class Instance:
    """One uWSGI, from the files that it is started from to its last connection."""

    def __init__(self, run_dir: Path, folder: str, ini: Path, environ: dict[str, str]) -> None:
        self.path = run_dir / folder
        self.settings = Settings.read(ini, environ)
        self.model = ModelFolder.find(self.settings.model)
        self.process: subprocess.Popen[bytes] | None = None
        workers = self.settings.prediction_workers
        self.command = [str(Path(sys.executable).with_name("uwsgi")), "--ini", str(ini)]
        self.environ = environ | {
            "RUN_DIR": str(self.path),
            "PREDICTION_WORKERS": ",".join(map(str, range(1, workers + 1))),
            "CONTROL_WORKER": str(workers + 1),
            "PYTHONUNBUFFERED": "1",
        }
        self._run_dir = run_dir
        self._ini = ini.read_text()
        self._generation = 0

    def same_as(self, other: "Instance") -> bool:
        """Whether both are started from the same uwsgi.ini and the same version of the model."""
        return (self._ini, self.model) == (other._ini, other.model)

    def other_folder(self) -> str:
        """The folder for the instance that comes after this one."""
        return next(folder for folder in FOLDERS if folder != self.path.name)

    def make_folder(self) -> None:
        """Its folder, without what a killed one left there."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()

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
        """What GET /readyz says, asked at its own socket; {} while there is no answer."""
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/readyz", "QUERY_STRING": "", "SERVER_PROTOCOL": "HTTP/1.1"}
        # with what only the supervisor is told
        environ |= {"SERVER_NAME": "localhost", "SERVER_PORT": "80", "SUPERVISOR": "1"}
        pairs = b"".join(_sized(text.encode()) for pair in environ.items() for text in pair)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(str(self.path / "control.sock"))
                # the uwsgi protocol: modifier 0, the size of the pairs, modifier 0
                connection.sendall(b"\0" + len(pairs).to_bytes(2, "little") + b"\0" + pairs)
                response = http.client.HTTPResponse(connection)
                response.begin()
                ready = json.loads(response.read())
                return ready if isinstance(ready, dict) else {}
        except (OSError, ValueError, http.client.HTTPException):
            return {}

    def renew_replicas(self) -> int:
        """Ask the mules to replace the replicas one after another; the generation that the new ones will have."""
        self._generation += 1
        file = self.path / "reload.new"
        file.write_text(str(self._generation))
        file.replace(self.path / "reload")
        return self._generation


def _sized(text: bytes) -> bytes:
    return len(text).to_bytes(2, "little") + text
