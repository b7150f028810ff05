"""nginx: its program, its configuration, and whether it may listen where it is told to.

Runs in:  the supervisor.
Raises:   StartError, in one sentence.
"""

import grp
import os
import pwd
import re
import shutil
import socket
import subprocess
from pathlib import Path

from serving.logs import Form
from serving.settings import Settings

TEMPLATE = Path(__file__).resolve().parent / "nginx.conf"
# in the run folder, as nginx.conf has it
STATUS = "status.sock"
GRPC_TEMPLATE = TEMPLATE.with_name("grpc.conf")
_TRACES = " ".join(
    f"proxy_set_header {name} ${value};"
    for name, value in (
        ("traceparent", "http_traceparent"),
        ("tracestate", "http_tracestate"),
        ("X-Read-S", "read_s"),
    )
)

_COLOURS = {"plain": "\x1b[0m", "faint": "\x1b[2m", "good": "\x1b[32m", "odd": "\x1b[33m", "bad": "\x1b[31m"}


class StartError(Exception):
    """It cannot start, in one sentence."""


def program() -> str:
    """The path of nginx."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise StartError("nginx is not installed: apt-get install nginx")
    return found


def check_address(host: str, port: int, name: str = "PORT") -> None:
    """Raise StartError unless nginx can listen there; name: of the variable that says the port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise StartError(f"HOST={host} is no address of this machine: {error.strerror}") from error
    except PermissionError as error:
        raise StartError(f"port {port} is for root alone; set {name} to one above 1023") from error
    except OSError as error:
        raise StartError(
            f"cannot listen on {host}:{port}: {error.strerror}; set {name} (or HOST) to another"
        ) from error


def clear(run_dir: Path) -> None:
    """Remove what one before has left: what was counted, and a socket beside which the next could not listen."""
    for name in ("answers.log", "answers.read", STATUS):
        (run_dir / name).unlink(missing_ok=True)


def close_status(run_dir: Path) -> None:
    """Keep others from the socket where a running nginx tells of its connections, which it makes with mode 666."""
    (run_dir / STATUS).chmod(0o660)


def listens(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def configuration(settings: Settings, listen: str, run_dir: Path, log_dir: Path | None, form: Form = Form.JSON) -> str:
    """nginx.conf with each @{name} filled in; the dollar is nginx's own."""
    user = pwd.getpwuid(os.getuid()).pw_name if os.getuid() == 0 else ""
    values = {
        "run_dir": run_dir,
        "access_log": log_dir / "access.log" if log_dir else "/dev/stdout",
        "log_format": "json" if form is Form.JSON else "text",
        "grpc_log_format": "json_grpc" if form is Form.JSON else "text",
        **(_COLOURS if form is Form.COLOUR else dict.fromkeys(_COLOURS, "")),
        "sampled": _part(settings.access_log_sample),
        # nginx's processes are of the user that uWSGI's socket is for
        "user": f"user {user} {grp.getgrgid(os.getgid()).gr_name};" if user else "",
        "listen": listen,
        "port": listen.rpartition(":")[2],
        # which trace a request belongs to, and how long nginx was reading it
        "traces": _TRACES if settings.otlp_endpoint else "",
        "traced": "$method $msec $traceparent " if settings.otlp_endpoint else "",
        # as a pattern, and as nginx has the name that was asked for
        "hostname": re.escape(socket.gethostname().lower()),
        "monitors": "".join(f"allow {address}; " for address in settings.monitors),
        "max_body_bytes": settings.max_body_bytes,
        "max_header_bytes": settings.max_header_bytes,
        # of four buffers, each for the request line or for whole headers
        "header_buffer_bytes": settings.max_header_bytes // 4,
        "max_connections": settings.max_connections,
        "nginx_files": settings.nginx_files,
        "client_timeout_s": settings.client_timeout_s,
        "keepalive_timeout_s": settings.keepalive_timeout_s,
        "seats": settings.seats,
        # the last second is for uWSGI
        "nginx_stop_timeout_s": settings.stop_timeout_s - 1,
        "read_timeout_s": -(-settings.deadline_ms // 1000) + 2,
    }

    def filled(template: Path) -> str:
        return re.sub(r"@\{(\w+)\}", lambda match: str(values[match[1]]), template.read_text())

    values["grpc"] = ""
    if settings.grpc_port:
        values["grpc_listen"] = f"{listen.rpartition(':')[0]}:{settings.grpc_port}"
        values["grpc_port"] = settings.grpc_port
        values["grpc"] = filled(GRPC_TEMPLATE)
    return filled(TEMPLATE)


def _part(sample: float) -> str:
    """What split_clients makes 1 of a part, and 0 of the rest: it knows ten thousandths, but neither none nor all."""
    parts = max(round(10_000 * sample), int(sample > 0))
    return f"* {parts // 10_000};" if parts in (0, 10_000) else f"{parts / 100:.2f}% 1; * 0;"


def check_configuration(text: str, run_dir: Path) -> None:
    """Raise StartError unless nginx takes this configuration; one that runs says so in its log alone."""
    file = run_dir / "nginx.conf.new"
    file.write_text(text)
    command = [program(), "-t", "-q", "-c", str(file), "-p", str(run_dir)]
    tested = subprocess.run(command, capture_output=True, text=True)
    file.unlink()
    if tested.returncode:
        # 2026/01/31 12:00:00 [emerg] 1#1: reason in file:line
        reason = re.sub(r"^[^\[]*\[\w+\] [\d#]+: ", "", tested.stderr.partition("\n")[0])
        raise StartError(f"nginx refuses its configuration: {reason}")
