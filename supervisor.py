"""The parent of nginx and uWSGI: checks, starts, waits until the pool is ready, reloads, drains, and fails loudly.

usage: entrypoint.sh [serve]
       entrypoint.sh reload [--all]

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

reload asks the server of PORT or RUN_DIR to take what has changed without losing a request, and follows it.  A new
uwsgi.ini or version of the model: a second uWSGI starts beside the first, takes over when all of its replicas are
ready, and the first one finishes.  Else the replicas load the model anew, one after another.  --all: everything anew,
the code too.  When it fails, what served serves on.  Exits with 0 when it is done, 1 when it failed, 2 when no server
runs there.  SIGHUP does the same, and SIGUSR1 as --all.  The environment is that of the start.

Runs in:  its own process, PID 1 in the image.  Knows nothing of queues.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import orjson

import nginx
import reload
from instance import FOLDERS, SOCKETS, Instance
from nginx import StartError
from serving.errors import ModelError, SettingsError
from serving.model import ModelCard

ROOT = Path(__file__).resolve().parent
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD}
# sun_path holds 108 bytes
MAX_SOCKET_PATH = 107
# a curl line longer than this is no line to paste
MAX_CURL_BODY = 1200
PR_SET_PDEATHSIG = 1
# for a child that did not stop in time, before it is killed
LAST_WORDS_S = 0.8
# how long an instance that serves no more has to be without a connection: nginx may be just about to make one
QUIET_S = 1.0
NOT_IN_PATHS = re.compile(r"""[$"'\\%:;{}\n]""")


class Ended(Exception):
    """It is over, with this exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class LoadError(Exception):
    """An instance does not become ready, or replicas are not replaced."""


class Supervisor:
    """nginx and uWSGI, from start to stop."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.host = (environ.get("HOST") or "127.0.0.1").strip("[]")
        self.port = _port(environ)
        self.address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        self.ini = Path(environ.get("INI") or ROOT / "uwsgi.ini").resolve()
        self.run_dir = _run_dir(environ)
        self.log_dir = Path(environ["LOG_DIR"]).resolve() if environ.get("LOG_DIR") else None
        # what the user names is relative to where the user is; all else is to where this file is
        for key in ("MODEL", "SERVING_MODEL"):
            if environ.get(key):
                environ[key] = str(Path(environ[key]).absolute())
        os.chdir(ROOT)
        # the one that serves, and the one that is to replace it or has been replaced
        self.instance = Instance(self.run_dir, FOLDERS[0], self.ini, environ)
        self.other: Instance | None = None
        self.nginx: subprocess.Popen[bytes] | None = None
        self.stops = 0
        # signals that ask for a reload which has not begun
        self.asked: set[int] = set()
        self.progress = reload.Progress(reload.Progress.read(self.run_dir).number)
        self.terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _has_terminal()

    def run(self) -> int:
        """Start both, serve until a signal or a death.  Returns the exit status."""
        self._prepare()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._start(self.instance)
            self.instance.link()
            self.nginx = self._spawn(
                [nginx.program(), "-c", str(self.run_dir / "nginx.conf"), "-p", str(self.run_dir)], self.environ
            )
            ready = self._until_ready(self.instance)
            while not nginx.listens(self.host, self.port):
                self._next_event(0.1)
            self._announce(ready)
            while True:
                self._next_event(None)
                while self.asked:
                    self._reload()
        except LoadError as error:
            _say(str(error), sys.stderr)
            return 1
        except Ended as ended:
            return ended.status
        finally:
            self._end()

    def _prepare(self) -> None:
        """Check what can be checked before anything runs, and write the run folder."""
        nginx.program()
        # all of its sockets have paths of one length
        if len(os.fsencode(self.instance.path / SOCKETS[0])) > MAX_SOCKET_PATH:
            raise StartError(f"RUN_DIR={self.run_dir} is too long for a unix socket; set RUN_DIR to a shorter path")
        nginx.check_address(self.host, self.port)
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
        # held until this process ends, whatever ends it; the kernel tells `reload` which process that is
        self.lock = (self.run_dir / "lock").open("w")
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(f"another server runs in {self.run_dir}; set RUN_DIR to a folder of its own") from None
        (self.run_dir / "nginx.conf").write_text(self._nginx_conf(self.instance))

    def _nginx_conf(self, instance: Instance) -> str:
        return nginx.configuration(instance.settings, self.address, self.run_dir, self.log_dir)

    def _start(self, instance: Instance) -> None:
        instance.make_folder()
        instance.process = self._spawn(instance.command, instance.environ)

    def _spawn(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._log() as log:
            return subprocess.Popen(
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

    # ---- start

    def _until_ready(self, instance: Instance, complete: bool = False) -> dict[str, Any]:
        """Wait until no replica loads any more and one is ready; complete: until each of them is.  Gives /readyz."""
        start = time.monotonic()
        pause_s = 2.0
        next_word = start + pause_s
        while True:
            self._next_event(0.1)
            if instance.process and instance.process.poll() is not None:
                raise LoadError(f"uwsgi ended by itself with status {instance.process.returncode}{self._see_log()}")
            ready = instance.readyz()
            replicas = ready.get("replicas", [])
            states = {replica["state"] for replica in replicas}
            if ready.get("status") == "ready" and (
                all(replica["ready"] for replica in replicas) if complete else not states & {"starting", "loading"}
            ):
                return ready
            errors = sorted({replica["last_error"] for replica in replicas} - {""})
            if ready.get("status") == "failed" or (complete and "failed" in states):
                reason = f"the model in {instance.model.path} cannot be loaded: {''.join(errors[:1])}"
                raise LoadError(reason + self._see_log())
            if time.monotonic() >= next_word:
                waited = f"loading {instance.model.name} … {time.monotonic() - start:.0f} s"
                self._tell("; ".join([waited, *errors]))
                pause_s = min(pause_s * 1.5, 30.0)
                next_word = time.monotonic() + pause_s

    def _announce(self, ready: dict[str, Any]) -> None:
        card = ModelCard.from_dict(ready["model"])
        url = f"http://{self.address}"
        _say(f"ready at {url}")
        print(f"  model  {card.name}, version {card.version} ({card.engine}), {self.instance.model.path}")
        print(f"  mules  {self.instance.settings.mules}, {ready['ready_replicas']} of them ready")
        if self.log_dir:
            print(f"  logs   {self.log_dir}")
        print(f"  try    {self._curl(card, url)}", flush=True)

    def _curl(self, card: ModelCard, url: str) -> str:
        """A line to paste: one real sample, from a file when it is long."""
        model = self.instance.model
        file = model.sample_file()
        if file is None:
            value = {
                spec.name: spec.samples()[0] if spec.sample is None else spec.sample for spec in card.signature.inputs
            }
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

    # ---- reload

    def _reload(self) -> None:
        """Do what was asked for, and tell how it went.  What is asked for meanwhile is done after it."""
        everything = signal.SIGUSR1 in self.asked
        self.asked.clear()
        # before anything is read: whoever asks from now on waits for the next one
        self.progress = reload.Progress(self.progress.number + 1, reload.RUNNING)
        self._tell("reloading")
        try:
            new = Instance(self.run_dir, self.instance.other_folder(), self.ini, self.environ)
            done = self._replace(new) if everything or not new.same_as(self.instance) else self._renew_replicas()
        except (SettingsError, ModelError, StartError, LoadError, OSError) as error:
            self._tell(f"not reloaded, and what served serves on: {error}", reload.FAILED)
        else:
            self._tell(f"reloaded: {done}", reload.DONE)

    def _replace(self, new: Instance) -> str:
        """Start another uWSGI, let it take over once it is ready, and stop the one that served."""
        nginx_conf = self._nginx_conf(new)
        nginx.check_configuration(nginx_conf, self.run_dir)
        self.other = new
        try:
            self._start(new)
            ready = self._until_ready(new, complete=True)
            new.link()
        except (LoadError, OSError):
            with contextlib.suppress(OSError):
                # one of the two links may be switched already
                self.instance.link()
            self._stop_other()
            raise
        self.instance, self.other = new, self.instance
        try:
            if self.nginx and nginx_conf != (file := self.run_dir / "nginx.conf").read_text():
                # only then, for nginx closes the connections on which it has read no request yet
                file.write_text(nginx_conf)
                self.nginx.send_signal(signal.SIGHUP)
            self._drain(self.other)
        except OSError as error:
            # a full disk, say: the new one serves all the same
            self._tell(f"the new uWSGI serves, and nginx keeps its limits: {error}")
        self._stop_other()
        card = ModelCard.from_dict(ready["model"])
        return f"uWSGI anew, {card.name}, version {card.version}, {ready['ready_replicas']} replicas"

    def _drain(self, old: Instance) -> None:
        """Wait until it has answered all that it was given: a stop resets what still waits in its backlog."""
        self._tell("the new uWSGI serves, the old one finishes")
        old.drain()
        start = quiet_since = time.monotonic()
        # past its deadlines nobody waits for it
        longest_s = old.settings.deadline_ms / 1000 + QUIET_S
        while (now := time.monotonic()) - start < longest_s and now - quiet_since < QUIET_S:
            self._next_event(0.1)
            if old.connections():
                quiet_since = time.monotonic()

    def _stop_other(self) -> None:
        if self.other:
            deadline = time.monotonic() + self.other.settings.stop_timeout_s
            children = [self.other.process] if self.other.process else []
            self._stop(children, signal.SIGTERM, deadline, self._next_event)
            self.other.remove_folder()
        self.other = None

    def _renew_replicas(self) -> str:
        """Let the mules replace the replicas one after another."""
        failures = (self.instance.readyz().get("spare") or {}).get("failures", 0)
        generation = self.instance.renew_replicas()
        while True:
            self._next_event(0.1)
            ready = self.instance.readyz()
            replicas = ready.get("replicas", [])
            new = sum(replica["ready"] and replica["generation"] >= generation for replica in replicas)
            # one that is being replaced stands there beside the new one
            text = f"{min(new, self.instance.settings.mules)} of {self.instance.settings.mules} replicas"
            if replicas and new == len(replicas):
                return text
            spare = ready.get("spare") or {}
            # those of an earlier reload are forgotten at some time after this one has begun
            failures = min(failures, spare.get("failures", 0))
            stuck = [replica for replica in replicas if replica["state"] in ("paused", "failed")]
            if stuck and new + len(stuck) == len(replicas):
                raise LoadError(f"{new} replicas are new, and replica {stuck[0]['id']} is not: {stuck[0]['reason']}")
            if spare.get("failures", 0) > failures:
                reason = f"the model in {self.instance.model.path} cannot be loaded: {spare['last_error']}"
                raise LoadError(reason + self._see_log())
            if replicas and text != self.progress.text:
                self._tell(text)

    def _tell(self, text: str, state: str = reload.RUNNING) -> None:
        """Say it; during a reload also to those who asked for it."""
        _say(text, sys.stderr if state == reload.FAILED else None)
        if self.progress.state == reload.RUNNING:
            self.progress = reload.Progress(self.progress.number, state, text)
            # a full disk is no reason to end what serves
            with contextlib.suppress(OSError):
                self.progress.write(self.run_dir)

    # ---- signals

    def _next_event(self, wait_s: float | None) -> None:
        """Wait for a signal.  Raises Ended when that, or the death of a child, means the end."""
        self._take_signal(wait_s)
        if self.stops:
            raise Ended(0)
        for name, child in (("uwsgi", self.instance.process), ("nginx", self.nginx)):
            if child and child.returncode is not None:
                _say(f"{name} ended by itself with status {child.returncode}{self._see_log()}", sys.stderr)
                raise Ended(1)

    def _take_signal(self, wait_s: float | None) -> None:
        """Wait for a signal, note what it asks for, and bury the dead."""
        found = signal.sigwaitinfo(SIGNALS) if wait_s is None else signal.sigtimedwait(SIGNALS, wait_s)
        number = found.si_signo if found else None
        if number in (signal.SIGTERM, signal.SIGINT):
            self.stops += 1
        elif number == signal.SIGHUP and self.terminal and not _has_terminal():
            # this one is the kernel's: the terminal was closed, and nobody can see it or stop it there any more
            self.stops += 1
        elif number in (signal.SIGHUP, signal.SIGUSR1):
            self.asked.add(number)
        self._reap()

    def _children(self) -> list[subprocess.Popen[bytes]]:
        uwsgi = [instance.process for instance in (self.instance, self.other) if instance]
        return [child for child in (self.nginx, *uwsgi) if child]

    def _reap(self) -> None:
        # also what other processes left behind, as PID 1 has to
        for child in self._children():
            child.poll()
        mine = {child.pid for child in self._children()}
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid not in mine:
                os.waitpid(found.si_pid, os.WNOHANG)

    # ---- stop

    def _end(self) -> None:
        """Stop nginx, which finishes what it accepted; then uWSGI, which answered it; at most stop_timeout_s."""
        timeout_s = self.instance.settings.stop_timeout_s
        deadline = time.monotonic() + timeout_s
        if self.stops:
            if sys.stdout.isatty():
                # below the ^C of the terminal
                print(flush=True)
            _say(f"draining, for at most {timeout_s} s")
        if self.progress.state == reload.RUNNING:
            self._tell("not reloaded: the server stops", reload.FAILED)
        uwsgi = [child for child in self._children() if child is not self.nginx]
        self._stop([self.nginx] if self.nginx else [], signal.SIGQUIT, deadline, self._take_signal)
        self._stop(uwsgi, signal.SIGTERM, deadline, self._take_signal)
        for name in SOCKETS:
            (self.run_dir / name).unlink(missing_ok=True)
        for instance in (self.instance, self.other):
            if instance:
                instance.remove_folder()
        if self.stops:
            _say("stopped")

    def _stop(
        self,
        children: Sequence[subprocess.Popen[bytes]],
        number: int,
        deadline: float,
        wait: Callable[[float], None],
    ) -> None:
        """Ask them to end; those that have not by the deadline are ended."""
        while any(child.poll() is None for child in children) and time.monotonic() < deadline and self.stops < 2:
            for child in children:
                # more than once, for uWSGI ignores it until it has started; while it stops, another changes nothing
                child.send_signal(number)
            # a child's end may have been noticed before this wait: look again now and then
            wait(min(0.2, max(0.0, deadline - time.monotonic())))
        # the quick end, which still gives back sockets and semaphores; what loads a model does not hear of it
        last = time.monotonic() + LAST_WORDS_S
        while (late := [child for child in children if child.poll() is None]) and time.monotonic() < last:
            for child in late:
                # also wakes uWSGI's master, which looks for its dead once a second
                child.send_signal(signal.SIGINT)
                for pid in _group(child.pid) - {child.pid}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

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


def _group(leader: int) -> set[int]:
    """The processes of a process group."""
    found = set()
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the name in parentheses may hold anything: state, parent and group come after it
            if int(stat_file.read_text().rpartition(")")[2].split()[2]) == leader:
                found.add(int(stat_file.parent.name))
    return found


def _json(value: Any) -> Any:
    # strings, as tensors hold them
    return value.decode() if isinstance(value, bytes) else value.tolist()


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal; one that was closed is none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _port(environ: dict[str, str]) -> int:
    text = environ.get("PORT") or "8080"
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise SettingsError(f"PORT = {text}: it must be a number from 1 to 65535; 8080 would do")
    return int(text)


def _run_dir(environ: dict[str, str]) -> Path:
    return Path(environ.get("RUN_DIR") or ROOT / "run" / str(_port(environ))).resolve()


def _say(text: str, stream: TextIO | None = None) -> None:
    try:
        print(f"muleteer: {text}", file=stream, flush=True)
    except OSError:
        # whoever read it is gone; that ends no server
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), (stream or sys.stdout).fileno())


def _serve(environ: dict[str, str]) -> int:
    # each thread that can wait needs a file
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return Supervisor(environ).run()


def _ask_for_reload(environ: dict[str, str], everything: bool) -> int:
    # Ctrl-C ends the asking, and not what was asked for
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return reload.ask(_run_dir(environ), everything)


def main(arguments: list[str]) -> int:
    """Run with the command line's arguments."""
    for stream in (1, 2):
        # several processes write to them: where they are files, each line goes to the end
        fcntl.fcntl(stream, fcntl.F_SETFL, fcntl.fcntl(stream, fcntl.F_GETFL) | os.O_APPEND)
    if arguments in (["-h"], ["--help"]):
        print(__doc__.partition("\n\nRuns in:")[0])
        return 0
    try:
        if arguments in ([], ["serve"]):
            return _serve(dict(os.environ))
        if arguments in (["reload"], ["reload", "--all"]):
            return _ask_for_reload(dict(os.environ), everything="--all" in arguments)
    except (SettingsError, ModelError, StartError) as error:
        _say(str(error), sys.stderr)
        return 2
    _say(
        f"unknown arguments {' '.join(arguments)!r}; the commands are serve and reload (--help tells more)", sys.stderr
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
