"""Real servers on loopback, each of its own package: OpenStack Swift, which speaks S3, and MLflow; and an emulator of
Google's storage, of which there is no other server to be had.

Each is started in a folder, says no more than its log there, and is gone after stop().
"""

import getpass
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

BIN = Path(sys.executable).parent
PATIENCE_S = 120.0
# MLflow tells its makers of each start
ENVIRON = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
# the user who owns the buckets, and one who may see none of them
OWNER = ("test:owner", "owning")
GUEST = ("test:guest", "guesting")

# names and ports of servers, of which each has one device; in a process of its own, for it brings eventlet with it
_RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    ring = RingBuilder(1, 1, 1)
    device = {"id": 0, "region": 1, "zone": 1, "weight": 1, "ip": "127.0.0.1", "port": port, "device": "device"}
    ring.add_dev(device | {"replication_ip": "127.0.0.1", "replication_port": port})
    ring.rebalance()
    ring.get_ring().save(f"{name}.ring.gz")
"""
_SWIFT = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}
mount_check = false
fallocate_reserve = 0

[pipeline:main]
pipeline = {pipeline}

[app:{name}-server]
use = egg:swift#{name}
"""
_PROXY = f"""
account_autocreate = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:s3api]
use = egg:swift#s3api
max_bucket_listing = 10

[filter:tempauth]
use = egg:swift#tempauth
user_{OWNER[0].replace(":", "_")} = {OWNER[1]} .admin
user_{GUEST[0].replace(":", "_")} = {GUEST[1]}
"""


class Server:
    """Processes that serve one URL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str | Path) -> None:
        with (self.folder / "log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(command, cwd=self.folder, env=ENVIRON, stdout=log, stderr=log, start_new_session=True)
            )

    def wait(self, path: str) -> None:
        """Until it answers there, with whatever status."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and all(process.poll() is None for process in self._processes):
            try:
                urllib.request.urlopen(self.url + path, timeout=5).close()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500:
                    return
            except OSError:
                pass
            else:
                return
            time.sleep(0.1)
        self.stop()
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
        self._processes.clear()


class Swift(Server):
    """One object server, with the two that list it, behind a proxy that speaks S3."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = muleteer\n")
        (folder / "device").mkdir()
        ports = {name: free_port() for name in ("account", "container", "object")}
        named = [str(word) for pair in ports.items() for word in pair]
        subprocess.run([sys.executable, "-c", _RINGS, *named], cwd=folder, check=True)
        for name, port in ports.items():
            self._start(name, port, f"{name}-server")
        self._start("proxy", self.port, "catch_errors s3api tempauth proxy-server", _PROXY)
        self.wait("/")

    def _start(self, name: str, port: int, pipeline: str, more: str = "") -> None:
        file = self.folder / f"{name}.conf"
        user = getpass.getuser()
        file.write_text(_SWIFT.format(name=name, port=port, user=user, folder=self.folder, pipeline=pipeline) + more)
        self.run(BIN / f"swift-{name}-server", file, "--verbose")


class GoogleEmulator(Server):
    """No real one: it lists and gives objects as Google's does, and lets everybody read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.run(BIN / "gcp-storage-emulator", "start", "--host=127.0.0.1", f"--port={self.port}", "--in-memory")
        self.wait("/")


class MLflow(Server):
    """A tracking server with its registry in SQLite, which passes the artifacts on itself."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        places = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
        self.run(BIN / "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1", *places)
        self.wait("/health")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
