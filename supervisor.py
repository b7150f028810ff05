"""The parent of nginx and uWSGI: checks, starts, waits until the pool is ready, says so, drains, and fails loudly.

usage: entrypoint.sh [serve]

Environment:
  HOST        address to listen on (127.0.0.1)
  PORT        port to listen on (8080)
  MODEL       folder of the model (model in uwsgi.ini)
  INI         the uwsgi.ini to use (the one beside this file)
  RUN_DIR     folder for sockets, pid files and nginx's own files (run/PORT)
  LOG_DIR     folder for access.log and server.log (unset: standard output and error)
  MULES, WORKERS, THREADS, QUEUE, SERVING_<NAME>   override uwsgi.ini

SIGTERM and SIGINT drain: nginx stops accepting and finishes, then uWSGI does; a second one ends it at once.  Exits with
0 after a stop, 2 when a setting is wrong, 1 when nginx or uWSGI ends by itself or no replica can load the model.

Runs in:  its own process, PID 1 in the image.  Knows nothing of queues.
"""

import contextlib
import ctypes
import fcntl
import grp
import http.client
import json
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import orjson

from serving.errors import ModelError, SettingsError
from serving.model import ModelCard, ModelFolder
from serving.settings import Settings

ROOT = Path(__file__).resolve().parent
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
# sun_path holds 108 bytes
MAX_SOCKET_PATH = 107
# a curl line longer than this is no line to paste
MAX_CURL_BODY = 1200
PR_SET_PDEATHSIG = 1
# for a child that did not stop in time, before it is killed
LAST_WORDS_S = 0.8
NOT_IN_PATHS = re.compile(r"""[$"'\\%:;{}\n]""")


class StartError(Exception):
    """It cannot start, in one sentence."""


class Supervisor:
    """nginx and uWSGI, from start to stop."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.host = (environ.get("HOST") or "127.0.0.1").strip("[]")
        self.port = _port(environ.get("PORT") or "8080")
        self.address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        self.ini = Path(environ.get("INI") or ROOT / "uwsgi.ini").resolve()
        self.run_dir = Path(environ.get("RUN_DIR") or ROOT / "run" / str(self.port)).resolve()
        self.log_dir = Path(environ["LOG_DIR"]).resolve() if environ.get("LOG_DIR") else None
        # what the user names is relative to where the user is; all else is to where this file is
        for key in ("MODEL", "SERVING_MODEL"):
            if environ.get(key):
                environ[key] = str(Path(environ[key]).absolute())
        os.chdir(ROOT)
        self.settings = Settings.read(self.ini, environ)
        self.folder = ModelFolder.find(self.settings.model)
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.stops = 0

    def run(self) -> int:
        """Start both, serve until a signal or a death.  Returns the exit status."""
        nginx = self._prepare()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._spawn("uwsgi", [str(Path(sys.executable).with_name("uwsgi")), "--ini", str(self.ini)])
            self._spawn("nginx", [nginx, "-c", str(self.run_dir / "nginx.conf"), "-p", str(self.run_dir)])
            status = self._until_ready()
            while status is None:
                status = self._next_event(None)
            return status
        finally:
            self._end()

    def _prepare(self) -> str:
        """Check what can be checked before anything runs, and write the run folder.  Returns nginx's path."""
        nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if nginx is None:
            raise StartError("nginx is not installed: apt-get install nginx")
        if len(str(self.run_dir / "control.sock")) > MAX_SOCKET_PATH:
            raise StartError(f"RUN_DIR={self.run_dir} is too long for a unix socket; set RUN_DIR to a shorter path")
        _check_port(self.host, self.port)
        if self.log_dir is None and stat.S_ISSOCK(os.fstat(1).st_mode):
            raise StartError("nginx cannot log to standard output, which is a socket; set LOG_DIR to a folder")
        for name, folder in (("RUN_DIR", self.run_dir), ("LOG_DIR", self.log_dir)):
            if folder is None:
                continue
            if found := NOT_IN_PATHS.search(str(folder)):
                raise StartError(f"{name}={folder} has a {found[0]!r}, which nginx and uWSGI read as something else")
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StartError(f"cannot make {folder}: {error.strerror}; set {name}") from error
        # held until this process ends, whatever ends it
        self.lock = (self.run_dir / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another server runs in {self.run_dir}; set RUN_DIR to a folder of its own") from None
        (self.run_dir / "nginx.conf").write_text(self._nginx_conf())
        return nginx

    def _nginx_conf(self) -> str:
        """nginx.conf with each @{name} filled in; the dollar is nginx's own."""
        settings = self.settings
        user = pwd.getpwuid(os.getuid()).pw_name if os.getuid() == 0 else ""
        values = {
            "run_dir": self.run_dir,
            "access_log": self.log_dir / "access.log" if self.log_dir else "/dev/stdout",
            "error_log": self.log_dir / "server.log" if self.log_dir else "stderr",
            # nginx's processes are of the user that uWSGI's socket is for
            "user": f"user {user} {grp.getgrgid(os.getgid()).gr_name};" if user else "",
            "listen": self.address,
            "port": self.port,
            "max_body_bytes": settings.max_body_bytes,
            "max_header_bytes": settings.max_header_bytes,
            # of four buffers, each for the request line or for whole headers
            "header_buffer_bytes": settings.max_header_bytes // 4,
            "max_connections": settings.max_connections,
            "nginx_files": settings.nginx_files,
            "client_timeout_s": settings.client_timeout_s,
            "keepalive_timeout_s": settings.keepalive_timeout_s,
            "prediction_threads": settings.prediction_threads,
            # the last second is for uWSGI
            "nginx_stop_timeout_s": settings.stop_timeout_s - 1,
            "read_timeout_s": -(-settings.deadline_ms // 1000) + 2,
        }
        return re.sub(r"@\{(\w+)\}", lambda match: str(values[match[1]]), (ROOT / "nginx.conf").read_text())

    def _spawn(self, name: str, command: list[str]) -> None:
        workers = self.settings.prediction_workers
        environ = self.environ | {
            "RUN_DIR": str(self.run_dir),
            "PREDICTION_WORKERS": ",".join(map(str, range(1, workers + 1))),
            "CONTROL_WORKER": str(workers + 1),
            "PYTHONUNBUFFERED": "1",
        }
        with self._log() as log:
            self.children[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the supervisor alone: it knows the order of a stop
                start_new_session=True,
                preexec_fn=_in_child,
            )

    @contextlib.contextmanager
    def _log(self) -> Iterator[TextIO | None]:
        if self.log_dir is None:
            yield None
            return
        with (self.log_dir / "server.log").open("a") as log:
            yield log

    def _until_ready(self) -> int | None:
        """Wait until the pool is ready.  Returns an exit status when that will not happen."""
        start = time.monotonic()
        pause_s = 2.0
        next_word = start + pause_s
        while True:
            if (status := self._next_event(0.1)) is not None:
                return status
            ready = self._readyz()
            if ready.get("status") == "ready" and not {"starting", "loading"} & _states(ready):
                self._announce(ready)
                return None
            if ready.get("status") == "failed":
                error = next((replica["last_error"] for replica in ready["replicas"] if replica["last_error"]), "")
                _say(f"the model in {self.folder.path} cannot be loaded: {error}{self._see_log()}", sys.stderr)
                return 1
            if time.monotonic() >= next_word:
                errors = {replica["last_error"] for replica in ready.get("replicas", [])} - {""}
                waited = f"loading {self.folder.name} … {time.monotonic() - start:.0f} s"
                _say("; ".join([waited, *sorted(errors)]))
                pause_s = min(pause_s * 1.5, 30.0)
                next_word = time.monotonic() + pause_s

    def _readyz(self) -> dict[str, Any]:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        connection = http.client.HTTPConnection(host, self.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            ready = json.loads(connection.getresponse().read())
            return ready if isinstance(ready, dict) else {}
        except (OSError, ValueError, http.client.HTTPException):
            return {}
        finally:
            connection.close()

    def _announce(self, ready: dict[str, Any]) -> None:
        card = ModelCard.from_dict(ready["model"])
        url = f"http://{self.address}"
        _say(f"ready at {url}")
        print(f"  model  {card.name}, version {card.version} ({card.engine}), {self.folder.path}")
        print(f"  mules  {self.settings.mules}, {ready['ready_replicas']} of them ready")
        if self.log_dir:
            print(f"  logs   {self.log_dir}")
        print(f"  try    {self._curl(card, url)}", flush=True)

    def _curl(self, card: ModelCard, url: str) -> str:
        """A line to paste: one real sample, from a file when it is long."""
        file = self.folder.sample_file()
        if file is None:
            value = {name: tensor[0] for name, tensor in self.folder.sample(card.signature).items()}
        else:
            value = json.loads(file.read_bytes())
        if {"instances", "inputs"} & set(value):
            # a model whose inputs are called like the forms of a body takes rows alone
            value = {"instances": [value]}
        body = orjson.dumps(value, default=_json, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        if len(body) > MAX_CURL_BODY:
            path = self.run_dir / "sample.json"
            path.write_text(body)
            return f"curl -s {url}/predict -d @{path}"
        return f"curl -s {url}/predict -d '{body.replace(chr(39), chr(92) + 'u0027')}'"

    def _next_event(self, wait_s: float | None) -> int | None:
        """Wait for a signal.  Returns an exit status when it means the end."""
        if wait_s is None:
            event: int | None = signal.sigwait(SIGNALS)
        else:
            found = signal.sigtimedwait(SIGNALS, wait_s)
            event = found.si_signo if found else None
        if event in (signal.SIGTERM, signal.SIGINT):
            self.stops += 1
            return 0
        self._reap()
        for name, child in self.children.items():
            if child.returncode is not None:
                _say(f"{name} ended by itself with status {child.returncode}{self._see_log()}", sys.stderr)
                return 1
        return None

    def _reap(self) -> None:
        # also what other processes left behind, as PID 1 has to
        for child in self.children.values():
            child.poll()
        mine = {child.pid for child in self.children.values()}
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid not in mine:
                os.waitpid(found.si_pid, os.WNOHANG)

    def _end(self) -> None:
        """Stop nginx, which finishes what it accepted; then uWSGI, which answered it; at most stop_timeout_s."""
        deadline = time.monotonic() + self.settings.stop_timeout_s
        if self.stops:
            if sys.stdout.isatty():
                # below the ^C of the terminal
                print(flush=True)
            _say(f"draining, for at most {self.settings.stop_timeout_s} s")
        for name, number in (("nginx", signal.SIGQUIT), ("uwsgi", signal.SIGTERM)):
            child = self.children.get(name)
            if child is None:
                continue
            if child.poll() is None:
                self._stop(child, number, deadline)
            if child.poll() is None:
                # the quick end, which still gives back sockets and semaphores
                child.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(LAST_WORDS_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if self.stops:
            _say("stopped")

    def _stop(self, child: subprocess.Popen[bytes], number: int, deadline: float) -> None:
        while child.poll() is None and (left := deadline - time.monotonic()) > 0 and self.stops < 2:
            # more than once, for uWSGI ignores it until it has started; while it stops, another changes nothing
            child.send_signal(number)
            # a child's end may have been noticed before this wait: look again now and then
            found = signal.sigtimedwait(SIGNALS, min(left, 0.2))
            if found and found.si_signo != signal.SIGCHLD:
                self.stops += 1

    def _see_log(self) -> str:
        """The last lines of the log, or nothing where they are on the terminal already."""
        if self.log_dir is None:
            return ""
        log = self.log_dir / "server.log"
        lines = log.read_text(errors="replace").splitlines()[-8:]
        return "\n  | ".join([f"; the end of {log}:", *lines])


def _in_child() -> None:
    """Between fork and exec: signals as usual, and an end with the supervisor, however that ends."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _json(value: Any) -> Any:
    # strings, as tensors hold them
    return value.decode() if isinstance(value, bytes) else value.tolist()


def _states(ready: dict[str, Any]) -> set[str]:
    return {replica["state"] for replica in ready["replicas"]}


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise SettingsError(f"PORT = {text}: it must be a number from 1 to 65535; 8080 would do")
    return int(text)


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise StartError(f"HOST={host} is no address of this machine: {error.strerror}") from error
    except PermissionError as error:
        raise StartError(f"port {port} is for root alone; set PORT to one above 1023") from error
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; set PORT (or HOST) to another") from error


def _say(text: str, stream: TextIO | None = None) -> None:
    print(f"muleteer: {text}", file=stream, flush=True)


def main(arguments: list[str]) -> int:
    """Run with the command line's arguments."""
    for stream in (1, 2):
        # several processes write to them: where they are files, each line goes to the end
        fcntl.fcntl(stream, fcntl.F_SETFL, fcntl.fcntl(stream, fcntl.F_GETFL) | os.O_APPEND)
    if arguments in (["-h"], ["--help"]):
        print(__doc__.partition("\n\nRuns in:")[0])
        return 0
    if arguments not in ([], ["serve"]):
        _say(f"unknown argument {arguments[0]!r}; the one command is serve (--help tells more)", sys.stderr)
        return 2
    # each thread that can wait needs a file
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return Supervisor(dict(os.environ)).run()
    except (SettingsError, ModelError, StartError) as error:
        _say(str(error), sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
