"""All settings: one frozen object, read from uwsgi.ini and the environment, and checked before anything starts.

`[uwsgi]` is read as uWSGI reads it (if-env, if-not-env, endif, %(_), $(NAME)); `[serving]` is the model server's own,
and SERVING_<NAME> in the environment overrides one of its keys (MODEL is short for SERVING_MODEL, and GRPC_PORT for
SERVING_GRPC_PORT, SENTRY_DSN for SERVING_SENTRY_DSN).

Runs in:  both, and in the supervisor before them.
Units:    in the names: _ms, _s, _bytes, _rows.
Raises:   SettingsError, which names the key, the value, the reason and a value that would do.
"""

import difflib
import importlib.metadata
import importlib.util
import ipaddress
import math
import mmap
import os
import re
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serving.errors import SettingsError
from serving.plan import POLICY

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "json", "text")
# Kubernetes puts these into every pod when a service is called "serving"
_FOREIGN = ("SERVING_SERVICE_", "SERVING_PORT")
_FIXED = {
    "lock_engine": ("ipcsem", "with any other a killed process can freeze all the rest"),
    "master": ("true", "mules, and processes that are replaced, need a master"),
}
# what uWSGI, Python and a model open beside the threads' own
_OTHER_FILES = 256
# a ticket has 16 bits for its seat
_MAX_SEATS = 65536
_MAX_MULES = 1024
# six bits of a held ticket's phase
_MAX_ATTEMPTS = 60
# uWSGI keeps the size of a request's variables in 16 bits
_MAX_BUFFER = 65535
# the variables that are no header of the client's
_OTHER_VARIABLES = 1024
# those of nginx that no prediction needs
_OTHER_CONNECTIONS = 64
_MAX_PORT = 65535
_OTLP_EXPORTER = "opentelemetry-exporter-otlp-proto-http"
# an IPv6 address stands in brackets
_ADDRESS = re.compile(r"([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})")
_DSN = re.compile(r"https?://[^/@\s]+@[^/@\s]+/(?:[^@\s]+/)?[0-9]+")
_PLACEHOLDER = re.compile(r"%\((\w+)\)|\$\((\w+)\)")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")


def _serving(default: Any, low: int | None = None, secret: bool = False) -> Any:
    return field(default=default, metadata={"section": "serving", "low": low}, repr=not secret)


def _uwsgi(low: int | None = None) -> Any:
    return field(metadata={"section": "uwsgi", "low": low})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every number of the server; no default stands anywhere else for [serving], and none at all for [uwsgi]."""

    # [uwsgi]
    processes: int = _uwsgi(2)
    threads: int = _uwsgi(1)
    mules: int = _uwsgi(1)
    queue: int = _uwsgi()
    queue_blocksize: int = _uwsgi(32)
    listen: int = _uwsgi(1)
    buffer_size: int = _uwsgi()
    worker_reload_mercy: int = _uwsgi()
    mule_reload_mercy: int = _uwsgi()
    cache_items: int = _uwsgi(64)
    cache_blocksize: int = _uwsgi(64)
    cache_keysize: int = _uwsgi(32)

    # [serving]
    model: str = _serving("models/digits")
    version_policy: str = _serving("latest")
    version_poll_s: int = _serving(0, 0)
    repository_api: bool = _serving(False)
    public_sample: bool = _serving(False)
    monitor_from: str = _serving("127.0.0.0/8 ::1")
    grpc_port: int = _serving(0, 0)
    store_max_gb: int = _serving(20, 1)
    deadline_ms: int = _serving(5000, 1)
    max_batch_rows: int = _serving(32, 1)
    batch_wait_ms: int = _serving(0, 0)
    max_request_rows: int = _serving(1024, 1)
    max_body_bytes: int = _serving(8 << 20, 1)
    max_frame_bytes: int = _serving(1 << 20, 1024)
    max_reply_bytes: int = _serving(256 << 10, 4096)
    pin_workers: bool = _serving(True)
    refuse_late: bool = _serving(True)
    predict_timeout_s: int = _serving(0, 0)
    max_attempts: int = _serving(2, 1)
    quarantine_s: int = _serving(60, 0)
    canary_s: int = _serving(30, 0)
    replica_max_rss_mb: int = _serving(0, 0)
    replica_max_tasks: int = _serving(0, 0)
    max_header_bytes: int = _serving(32768, 4096)
    max_connections: int = _serving(4096)
    client_timeout_s: int = _serving(30, 1)
    keepalive_timeout_s: int = _serving(75, 0)
    replica_threads: int = _serving(0, 0)
    load_attempts: int = _serving(3, 1)
    load_timeout_s: int = _serving(600, 0)
    heartbeat_timeout_ms: int = _serving(3000, 1000)
    stop_timeout_s: int = _serving(9)
    log_level: str = _serving("info")
    log_format: str = _serving("auto")
    access_log_sample: float = _serving(1, 0)
    prediction_log_sample: float = _serving(0, 0)
    prediction_log_dir: str = _serving("")
    prediction_log_max_mb: int = _serving(1024, 1)
    prediction_log_file_s: int = _serving(60, 1)
    otlp_endpoint: str = _serving("")
    trace_sample: float = _serving(1, 0)
    carbon: str = _serving("")
    statsd: str = _serving("")
    sentry_dsn: str = _serving("", secret=True)

    @classmethod
    def read(cls, file: Path, environ: Mapping[str, str] = os.environ) -> "Settings":
        """The settings of a file under an environment, checked."""
        sections = read_ini(file, environ)
        values: dict[str, Any] = {}
        values.update(_uwsgi_values(sections.get("uwsgi", {})))
        values.update(_serving_values(sections.get("serving", {}), environ))
        settings = cls(**values)
        settings.check()
        return settings

    @property
    def prediction_workers(self) -> int:
        """All worker processes but the last, which answers health alone."""
        return self.processes - 1

    @property
    def nginx_files(self) -> int:
        """Files that nginx may open: beside each connection, one for what does not fit into memory."""
        return 2 * self.max_connections

    @property
    def seats(self) -> int:
        """Places where a worker's thread can wait for a reply."""
        return self.prediction_workers * self.threads

    @property
    def mule_processes(self) -> int:
        """The replicas, and the spare."""
        return self.mules + 1

    @property
    def longest_predict_s(self) -> int:
        """Seconds after which a predict counts as hung: no answer can be in time then, unless the setting says less."""
        return self.predict_timeout_s or -(-self.deadline_ms // 1000) + 5

    @property
    def _least_connections(self) -> int:
        return 2 * self.seats + _OTHER_CONNECTIONS

    @property
    def mapped_bytes(self) -> int:
        """What the queue, the frames, the replies and the cache map, and use at the most."""
        cache = self.cache_items * (self.cache_blocksize + self.cache_keysize + 88)
        return self.queue * self.queue_blocksize + self._frames_bytes + self._replies_bytes + cache

    @property
    def monitors(self) -> list[str]:
        """The addresses and networks from which /metrics and /console may be seen."""
        return self.monitor_from.replace(",", " ").split()

    @property
    def _frames_bytes(self) -> int:
        return self.seats * _in_pages(self.max_frame_bytes)

    @property
    def _replies_bytes(self) -> int:
        return self.seats * self.mule_processes * _in_pages(self.max_reply_bytes)

    @property
    def threads_per_replica(self) -> int:
        """Threads of an ML framework in each replica: the cores, shared out, unless replica_threads says otherwise."""
        return self.replica_threads or max(1, cores() // self.mules)

    def check(self) -> None:
        """Raise SettingsError unless the settings fit each other and the machine."""
        for setting in fields(self):
            low, value = setting.metadata["low"], getattr(self, setting.name)
            if low is not None and value < low:
                raise _refusal(setting.name, value, f"it must be {low} or more", low)
        if self.mules > _MAX_MULES:
            raise _refusal("mules", self.mules, f"each is a process, and {_MAX_MULES} are the most", _MAX_MULES)
        if self.seats > _MAX_SEATS:
            reason = f"(processes - 1) x threads (= {self.seats}) may be {_MAX_SEATS} at the most"
            raise _refusal("threads", self.threads, reason, _MAX_SEATS // self.prediction_workers)
        if self.max_attempts > _MAX_ATTEMPTS:
            raise _refusal("max_attempts", self.max_attempts, f"{_MAX_ATTEMPTS} are the most", 2)
        if not POLICY.fullmatch(self.version_policy):
            reason = "it is latest, latest and how many (latest 2), all, or the numbers of versions (3, 4)"
            raise _refusal("version_policy", self.version_policy, reason, "latest")
        for address in self.monitors:
            try:
                ipaddress.ip_network(address)
            except ValueError as error:
                raise _refusal("monitor_from", self.monitor_from, str(error), "127.0.0.0/8 ::1") from error
        if self.grpc_port > _MAX_PORT:
            raise _refusal("grpc_port", self.grpc_port, f"{_MAX_PORT} is the highest port", 8081)
        if self.log_level not in LOG_LEVELS:
            raise _refusal("log_level", self.log_level, f"it is one of {', '.join(LOG_LEVELS)}", "info")
        if self.log_format not in LOG_FORMATS:
            raise _refusal("log_format", self.log_format, f"it is one of {', '.join(LOG_FORMATS)}", "auto")
        for key in ("access_log_sample", "prediction_log_sample", "trace_sample"):
            if getattr(self, key) > 1:
                reason = "it is a part of the requests, and 1 is all of them"
                raise _refusal(key, getattr(self, key), reason, getattr(Settings, key))
        self._check_telemetry()
        page = mmap.PAGESIZE
        step = page // math.gcd(page, self.queue_blocksize)
        least = 4 * self.seats
        fix = -(-max(self.queue, least) // step) * step
        if self.queue < least:
            reason = f"it must be {least} or more: four for each prediction thread ((processes - 1) x threads)"
            raise _refusal("queue", self.queue, reason, fix)
        if self.queue % step:
            reason = f"queue x queue-blocksize must be a multiple of the page size, {page}"
            raise _refusal("queue", self.queue, reason, fix)
        if self.batch_wait_ms >= self.deadline_ms:
            reason = f"a task that waits so long for others is past deadline_ms (= {self.deadline_ms})"
            raise _refusal("batch_wait_ms", self.batch_wait_ms, reason, 0)
        if self.max_header_bytes > _MAX_BUFFER - _OTHER_VARIABLES:
            reason = f"uWSGI takes no more than {_MAX_BUFFER} bytes, its own included"
            raise _refusal("max_header_bytes", self.max_header_bytes, reason, _MAX_BUFFER - _OTHER_VARIABLES)
        if not self.max_header_bytes + _OTHER_VARIABLES <= self.buffer_size <= _MAX_BUFFER:
            fix = self.max_header_bytes + _OTHER_VARIABLES
            reason = f"it must hold max_header_bytes (= {self.max_header_bytes}) and be at most {_MAX_BUFFER}"
            raise _refusal("buffer_size", self.buffer_size, reason, fix)
        if self.max_connections < self._least_connections:
            reason = (
                f"each of the {self.seats} prediction threads takes two, the client's and its own,"
                " and health needs some"
            )
            raise _refusal("max_connections", self.max_connections, reason, self._least_connections)
        stop = -(-self.deadline_ms // 1000) + 1
        for key in ("stop_timeout_s", "worker_reload_mercy", "mule_reload_mercy"):
            if getattr(self, key) < stop:
                reason = f"what is in flight may take deadline_ms (= {self.deadline_ms}) and needs a second more"
                raise _refusal(key, getattr(self, key), reason, stop)
        self._check_prediction_log()
        self._check_sentry()
        self._check_machine()

    def _check_sentry(self) -> None:
        # never with its value
        if self.sentry_dsn and not importlib.util.find_spec("sentry_sdk"):
            raise SettingsError(
                "[serving] sentry_dsn is set, and sentry-sdk is missing; pip install -c constraints.txt '.[sentry]', or"
                " leave it empty"
            )
        if self.sentry_dsn and not _DSN.fullmatch(self.sentry_dsn):
            raise SettingsError(
                "[serving] sentry_dsn is no DSN, which Sentry shows in the project's settings;"
                " https://KEY@HOST/NUMBER would do"
            )

    def _check_prediction_log(self) -> None:
        if not self.prediction_log_sample:
            return
        if not importlib.util.find_spec("pyarrow"):
            raise SettingsError(
                f"[serving] prediction_log_sample = {self.prediction_log_sample}: it writes Parquet files, for which"
                " pyarrow is missing; pip install -c constraints.txt '.[media]', or 0 would do"
            )
        if not self.prediction_log_dir:
            reason = f"prediction_log_sample = {self.prediction_log_sample} needs a folder for its files"
            raise _refusal("prediction_log_dir", "", reason, "run/predictions")
        folder = Path(self.prediction_log_dir).absolute()
        there = next(one for one in (folder, *folder.parents) if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            reason = f"{there} is no folder that this user may write to"
            raise _refusal("prediction_log_dir", self.prediction_log_dir, reason, "run/predictions")

    def _check_telemetry(self) -> None:
        for name, port in (("carbon", 2003), ("statsd", 8125)):
            if getattr(self, name) and self.address(name) is None:
                raise _refusal(name, getattr(self, name), "it is host:port, and empty for none", f"127.0.0.1:{port}")
        if not self.otlp_endpoint:
            return
        url = urlsplit(self.otlp_endpoint)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or "@" in url.netloc:
            reason = (
                "it is the URL of a collector for OTLP over HTTP; what is secret comes in OTEL_EXPORTER_OTLP_HEADERS"
            )
            # which may be there already
            raise _refusal("otlp_endpoint", url.scheme + "://…", reason, "http://127.0.0.1:4318")
        try:
            importlib.metadata.distribution(_OTLP_EXPORTER)
        except importlib.metadata.PackageNotFoundError:
            raise SettingsError(
                f"[serving] otlp_endpoint = {self.otlp_endpoint}: it needs the extra otel; pip install -c"
                " constraints.txt '.[otel]', or leave it empty"
            ) from None

    def address(self, name: str) -> tuple[str, int] | None:
        """Host and port of a setting; None where it is none."""
        match = _ADDRESS.fullmatch(getattr(self, name))
        return (match[1].strip("[]"), int(match[2])) if match and int(match[2]) <= _MAX_PORT else None

    def _check_machine(self) -> None:
        memory = memory_bytes()
        if self.mapped_bytes > memory:
            frames, replies = self._frames_bytes, self._replies_bytes
            key, count = "max_frame_bytes", self.seats
            if replies > frames:
                key, count = "max_reply_bytes", self.seats * self.mule_processes
            # a quarter for the larger one, or what the other leaves
            left = memory - min(frames, replies)
            room = min(memory // 4, left) if left > 0 else memory // 4
            fix = max(room // count // mmap.PAGESIZE - 1, 1) * mmap.PAGESIZE
            reason = (
                f"frames, replies and queue map up to {self.mapped_bytes >> 20} MiB and there are {memory >> 20} MiB"
                " of memory; make this one, or how many there are of it, smaller"
            )
            raise _refusal(key, getattr(self, key), reason, fix)
        limit = _first_line("/proc/sys/net/core/somaxconn")
        if limit and self.listen > int(limit):
            raise _refusal("listen", self.listen, f"net.core.somaxconn allows {limit}", limit)
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        # in each process a file for each seat, and in a worker another two for each of its own
        if self.seats + 2 * self.threads + _OTHER_FILES > files:
            reason = f"each of the {self.seats} prediction threads needs files, and `ulimit -Hn` allows {files} in all"
            fix = max(1, (files - _OTHER_FILES) // (self.prediction_workers + 2))
            raise _refusal("threads", self.threads, reason, fix)
        if self.nginx_files > files:
            reason = f"nginx may need two files for each, and `ulimit -Hn` allows {files} in all"
            raise _refusal("max_connections", self.max_connections, reason, files // 2)


def _in_pages(size: int) -> int:
    # as ledger.py maps each place
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def read_ini(file: Path, environ: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """The sections of a uWSGI ini file: {section: {key: [each value, in order]}}."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{file}: {reason}; give the path of a uwsgi.ini") from error
    sections: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    condition: str | None = None
    active = True
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text[0] in ";#":
            continue
        if text[0] == "[" and text[-1] == "]":
            section = sections.setdefault(text[1:-1], {})
            continue
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise SettingsError(f"{file}:{number}: {text!r} is not key = value")
        if key in ("if-env", "if-not-env"):
            active = (value in environ) == (key == "if-env")
            condition = environ.get(value)
        elif key == "endif":
            condition, active = None, True
        elif active:
            section.setdefault(key, []).append(_filled(value, condition, environ))
    return sections


def cores() -> int:
    """The cores this process may use: its affinity, and the CPU quota of its cgroup."""
    available = len(os.sched_getaffinity(0))
    for quota in (
        _first_line("/sys/fs/cgroup/cpu.max").split(),
        [_first_line(f"/sys/fs/cgroup/cpu/cpu.cfs_{part}_us") for part in ("quota", "period")],
    ):
        if len(quota) == 2 and quota[0].isdecimal():
            return max(1, min(available, int(quota[0]) // int(quota[1])))
    return available


def memory_bytes() -> int:
    """The memory this process may use: the machine's, or the limit of its cgroup."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if (line := _first_line(file)).isdecimal():
            limits.append(int(line))
    return min(limits)


def _first_line(file: str) -> str:
    try:
        return Path(file).read_text().partition("\n")[0]
    except OSError:
        return ""


def _filled(value: str, condition: str | None, environ: Mapping[str, str]) -> str:
    def fill(match: re.Match[str]) -> str:
        if match[1] == "_" and condition is not None:
            return condition
        return environ.get(match[2] or "", match[0])

    return _PLACEHOLDER.sub(fill, value)


def _uwsgi_values(section: Mapping[str, list[str]]) -> dict[str, int]:
    found = {key.replace("-", "_"): values[-1] for key, values in section.items()}
    # uWSGI adds them up: the replicas, and one more
    replicas, *spares = section.get("mules", [""])
    if replicas and spares != ["1"]:
        raise SettingsError(
            f"mules = {' and '.join([replicas, *spares])}: the first line is for the replicas, and a second one,"
            " mules = 1, for the spare that takes over from one that died; that second line would do"
        )
    found["mules"] = replicas
    # of several caches the first is uWSGI's default, and ours
    cache = dict(part.partition("=")[::2] for part in section.get("cache2", [""])[0].split(",") if part)
    found.update({f"cache_{key}": value for key, value in cache.items()})
    for key, (value, reason) in _FIXED.items():
        if found.get(key) != value:
            raise SettingsError(f"{key.replace('_', '-')} = {found.get(key, '')}: {reason}; {value} would do")
    for key in cache:
        if key not in ("name", "items", "blocksize", "keysize"):
            raise SettingsError(f"cache2 {key} = {cache[key]}: it may lose what is noted; leave it out")
    values = {}
    for setting in fields(Settings):
        if setting.metadata["section"] == "uwsgi":
            if not found.get(setting.name):
                raise SettingsError(f"[uwsgi] {_shown(setting.name)} is missing; the shipped uwsgi.ini has it")
            values[setting.name] = _integer(setting.name, found[setting.name])
    return values


def _serving_values(section: Mapping[str, list[str]], environ: Mapping[str, str]) -> dict[str, Any]:
    settings = {setting.name: setting for setting in fields(Settings) if setting.metadata["section"] == "serving"}
    found = {key: values[-1] for key, values in section.items()}
    for key in ("model", "grpc_port", "sentry_dsn"):
        # Kubernetes has a variable of this name for a service that is called "grpc"
        if (text := environ.get(key.upper(), "")) and not text.startswith("tcp://"):
            found[key] = text
    for name, value in environ.items():
        if name.startswith("SERVING_") and not name.startswith(_FOREIGN):
            found[name.removeprefix("SERVING_").lower()] = value
    values: dict[str, Any] = {}
    for key, text in found.items():
        if key not in settings:
            # never with its value: it may be a secret whose name is mistyped
            close = difflib.get_close_matches(key, settings, 1)
            fix = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(settings)}"
            raise SettingsError(f"[serving] {key}: there is no such setting; {fix}")
        kind = settings[key].type
        values[key] = _READ[kind](key, text)
    return values


def _integer(name: str, text: str) -> int:
    # int() also takes 1_000, which is 1 for uWSGI
    if not _INTEGER.fullmatch(text):
        raise SettingsError(f"{_shown(name)} = {text}: it must be a whole number, for example 8")
    return int(text)


def _number(name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise SettingsError(f"{_shown(name)} = {text}: it must be a number, for example 0.01")
    # told as it stands in the file
    return float(text) if "." in text else int(text)


def _boolean(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise SettingsError(f"{_shown(name)} = {text}: it is true or false; true would do")
    return text == "true"


_READ: dict[Any, Callable[[str, str], Any]] = {
    int: _integer,
    float: _number,
    bool: _boolean,
    str: lambda name, text: text,
}


def _shown(name: str) -> str:
    """A setting as it stands in the file."""
    if name.startswith("cache_"):
        return f"cache2 {name.removeprefix('cache_')}"
    section = next(setting.metadata["section"] for setting in fields(Settings) if setting.name == name)
    return f"[serving] {name}" if section == "serving" else name.replace("_", "-")


def _refusal(name: str, value: object, reason: str, fix: object) -> SettingsError:
    return SettingsError(f"{_shown(name)} = {value}: {reason}; {fix} would do")
