"""A whole server of one's own under load: started as `serve` starts it, asked, looked at from outside, and ended.

It has a port and a run folder of its own, and ends with the process that started it, however that ends.

Runs in:  the command line.
Units:    seconds, MB of 2**20 bytes.
Raises:   StackFailed, in one sentence.
"""

import http.client
import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import children
from instance import readyz
from load import cost, loadgen
from load.cost import Reading
from load.loadgen import Item
from serving.settings import Settings, cores
from tuning.setting import Setting

ROOT = Path(__file__).resolve().parents[1]
# for a server that does not become ready, and one that does not stop
_PATIENCE_S, _STOP_S = 300.0, 15.0
_WARM_UP_S = 0.5
# connections beyond those that the server takes requests on: what comes on them it refuses
_SPARE_CONNECTIONS = 64
# what another server on this machine has in the environment
_OWN = ("MODEL", "HOST", "PORT", "GRPC_PORT", "RUN_DIR", "LOG_DIR", "INI", "MULES", "WORKERS", "THREADS", "QUEUE")
# nobody is to hear of trials but us, or to keep what they are asked
QUIET = {
    "SERVING_GRPC_PORT": "0",
    "SERVING_VERSION_POLL_S": "0",
    "SERVING_MONITOR_FROM": "127.0.0.1",
    "SERVING_PREDICTION_LOG_SAMPLE": "0",
    "SERVING_OTLP_ENDPOINT": "",
    "SERVING_CARBON": "",
    "SERVING_STATSD": "",
    "SERVING_SENTRY_DSN": "",
}
# of its folder, before the process that it is of
_PREFIX = "muleteer-tune-"
_ROLES = {"nginx:": "nginx", "uWSGI worker": "worker", "uWSGI mule": "mule"}


class StackFailed(Exception):
    """It does not start, or does not answer rightly, in one sentence."""


@dataclass(frozen=True)
class Measurement:
    """One run of the load.  latencies: of all requests that fell due, inf for one that was refused or failed."""

    setting: Setting
    # asked for; 0: as many as clients that wait for each answer get
    rate: float
    clients: int
    seconds: float
    seed: int
    right: int
    refused: int
    failed: int
    # written too late by the generator, or for want of a connection
    late: int
    latencies: npt.NDArray[np.float64]
    queue_s: npt.NDArray[np.float64]
    predict_s: npt.NDArray[np.float64]
    # CPU seconds by role: nginx, worker, mule, generator
    cpu_s: dict[str, float]
    # of all cores: what other programs took meanwhile
    others: float
    batches: float

    @property
    def answered(self) -> float:
        """Right answers a second."""
        return self.right / self.seconds

    @property
    def asked(self) -> int:
        """All that fell due."""
        return len(self.latencies)

    @property
    def behind(self) -> float:
        """The share that the load generator wrote too late; as many as are refused found no connection free."""
        return max(0, self.late - self.refused) / max(1, self.asked)

    @property
    def disturbance(self) -> float:
        """How far it says something of others than the server."""
        return max(self.others, self.behind)

    def of_request(self, role: str) -> float:
        """CPU of one request."""
        return self.cpu_s.get(role, 0.0) / max(1, self.right)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without the single requests, but with their percentiles."""
        left_out = ("latencies", "queue_s", "predict_s", "setting")
        about = {key: value for key, value in asdict(self).items() if key not in left_out}
        finite = self.latencies[np.isfinite(self.latencies)]
        ms = {
            f"p{percent:g}": round(float(np.percentile(finite, percent)) * 1000, 3)
            for percent in (50, 90, 95, 99, 99.9)
            if len(finite)
        }
        return about | {"setting": self.setting.as_dict(), "answered": self.answered, "ms": ms}


class Stack:
    """One running server."""

    def __init__(self, setting: Setting, settings: Settings, ini: Path, model: str, environ: Mapping[str, str]) -> None:
        self.setting = setting
        self._settings = settings
        # a unix socket's path must be short
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        own = {"MODEL": model, "HOST": "127.0.0.1", "PORT": str(self._port), "INI": str(ini)}
        own |= {"RUN_DIR": str(self._folder), "LOG_DIR": str(self._folder)}
        inherited = {key: value for key, value in environ.items() if key not in _OWN}
        try:
            with (self._folder / "out").open("w") as out:
                command = [str(ROOT / "entrypoint.sh"), "serve"]
                own |= QUIET | setting.environ(settings)
                self._process = children.spawn(command, inherited | own, ROOT, out.fileno(), out.fileno(), ())
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def wait_ready(self) -> "Stack":
        """Until each replica is."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            ready = readyz(self._folder / "control.sock")
            if ready.get("status") == "ready" and all(one["ready"] for one in ready["replicas"]):
                self._roles = self._find_roles()
                return self
            if self._process.poll() is not None:
                told = (self._folder / "out").read_text().strip().splitlines()
                raise StackFailed(f"a server with {self.setting.told()} did not start: {(told or ['no word'])[-1]}")
            time.sleep(0.05)
        raise StackFailed(f"a server with {self.setting.told()} was not ready within {_PATIENCE_S:.0f} s")

    def measure(
        self, bodies: Sequence[bytes], seconds: float, rate: float = 0.0, clients: int = 0, seed: int = 1
    ) -> Measurement:
        """So much load: rate requests a second, or as many as clients get."""
        work, samples = self._folder / "work", self._folder / "samples"
        loadgen.write_work(work, [Item(loadgen.request(body), *loadgen.contains("")) for body in bodies])
        if rate:
            clients = min(self.setting.seats + _SPARE_CONNECTIONS, self._settings.max_connections // 2)
        try:
            before = self._tasks_and_batches()
            ran = loadgen.run(self._port, clients, seconds, _WARM_UP_S, work, cost.read, rate, seed, samples)
            after = self._tasks_and_batches()
        except (OSError, http.client.HTTPException) as error:
            raise StackFailed(f"a server with {self.setting.told()} has ended under load: {error}") from error
        finally:
            # nobody reads it, and it may lie in memory; nginx goes on at its end, which then is here
            with suppress(FileNotFoundError):
                os.truncate(self._folder / "access.log", 0)
        counts, found = ran.counts, loadgen.read_samples(samples)
        if counts.wrong or not counts.right:
            raise StackFailed(f"a server with {self.setting.told()} answers wrongly: {counts.first_wrong or 'nothing'}")
        assert ran.before is not None and ran.after is not None
        right = found["status"] == 200
        tasks, batches = (new - old for new, old in zip(after, before, strict=True))
        return Measurement(
            self.setting,
            rate,
            clients,
            counts.seconds,
            seed,
            counts.right,
            counts.refused,
            counts.cut + counts.failed + counts.stuck,
            counts.late,
            np.where(right, found["took_us"] / 1e6, np.inf),
            np.where(right, found["queue_us"] / 1e6, np.nan),
            np.where(right, found["predict_us"] / 1e6, np.nan),
            self._spent(ran.before, ran.after, counts.cpu_s),
            self._others(ran.before, ran.after, counts.seconds, ran.pid),
            tasks / batches if batches else 1.0,
        )

    def end(self) -> None:
        """Nothing of it stays."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        # what is left of it, if anything
        children.stop([self._process], signal.SIGTERM, time.monotonic(), time.sleep, lambda: True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _find_roles(self) -> dict[int, str]:
        found = {}
        for pid in cost.read().below(self._process.pid):
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                for beginning, role in _ROLES.items():
                    if title.startswith(beginning):
                        found[pid] = role
        return found

    def _spent(self, before: Reading, after: Reading, generator_s: float) -> dict[str, float]:
        spent = {"generator": generator_s}
        for pid, seconds in cost.spent(before, after, self._roles).items():
            spent[self._roles[pid]] = spent.get(self._roles[pid], 0.0) + seconds
        return spent

    def _others(self, before: Reading, after: Reading, seconds: float, generator: int) -> float:
        """Of all that the cores could have done: what neither this server nor its load has had."""
        ours = before.below(self._process.pid) | after.below(self._process.pid) | {generator, os.getpid()}
        used = sum(cost.by_name(before, after, ours).values()) + after.steal_s - before.steal_s
        return used / seconds / cores()

    def _tasks_and_batches(self) -> tuple[float, float]:
        """How many tasks were predicted, and in how many batches, as /metrics has it."""
        found: dict[str, float] = {}
        for line in _get(self._port, "/metrics").splitlines():
            name, _, value = line.rpartition(" ")
            key = name.partition("{")[0]
            if key in ("muleteer_batch_tasks_sum", "muleteer_batch_tasks_count"):
                found[key] = found.get(key, 0.0) + float(value)
        return found.get("muleteer_batch_tasks_sum", 0.0), found.get("muleteer_batch_tasks_count", 0.0)


def _get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def sweep() -> None:
    """Remove what those left behind that could not end: killed, or with the machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        with suppress(OSError, ValueError):
            about = folder.lstat()
            pid = int(folder.name.removeprefix(_PREFIX).partition("-")[0])
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder, ignore_errors=True)


def others() -> list[int]:
    """The masters of other servers on this machine."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if file.read_bytes().startswith(b"uWSGI master"):
                found.append(int(file.parent.name))
    return found
