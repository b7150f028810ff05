"""The parent of nginx and uWSGI: checks, starts, waits until the pool is ready, reloads, drains, and fails loudly.

Runs in:  its own process, PID 1 in the image.  Knows nothing of queues.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

import children
import nginx
import reload
import sources
from catalog import BrokenVersion
from children import Child
from instance import FOLDERS, SOCKETS, Instance
from nginx import StartError
from refusals import Refusals
from serving import logs
from serving.errors import ModelError, SettingsError, SourceError
from serving.logs import Form, Log, Pipe
from serving.model import ModelCard, request_body
from serving.plan import Plan, Release
from serving.settings import Settings

ROOT = Path(__file__).resolve().parent
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD}
# sun_path holds 108 bytes
MAX_SOCKET_PATH = 107
# a curl line longer than this is no line to paste
MAX_CURL_BODY = 1200
# how long an instance that serves no more has to be without a connection: nginx may be just about to make one
QUIET_S = 1.0
# between looks at replicas that could not load their version at the start
FAILURES_S = 0.5
# for a signal; the kernel has no longer time than some
LONGEST_WAIT_S = 3600.0
# where the log is open in all processes: above what uWSGI opens before our code runs
LOG_FD = 64
# for what a program has printed before its end
LAST_LINES_S = 0.5
LOG = logging.getLogger("muleteer")
T = TypeVar("T")
NOT_IN_PATHS = re.compile(r"""[$"'\\%:;{}\n]""")


class Ended(Exception):
    """It is over, with this exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class LoadError(Exception):
    """An instance does not become ready, or replicas are not replaced; release: by what was to be loaded."""

    def __init__(self, reason: str, release: Release | None = None) -> None:
        super().__init__(reason)
        self.release = release


class Supervisor:
    """nginx and uWSGI, from start to stop."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.host = (environ.get("HOST") or "127.0.0.1").strip("[]")
        self.port = _port(environ)
        environ["PORT"] = str(self.port)
        self.address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        self.ini = ini_of(environ)
        self.run_dir = run_dir_of(environ)
        self.log_dir = Path(environ["LOG_DIR"]).resolve() if environ.get("LOG_DIR") else None
        go_home(environ)
        # the one that serves, and the one that is to replace it or has been replaced
        self.instance = Instance(self.run_dir, FOLDERS[0], self.ini, environ, self._hear)
        self.other: Instance | None = None
        self.nginx: Child | None = None
        # what they print
        self.pipes: list[Pipe] = []
        self.aside: threading.Thread | None = None
        self.stops = 0
        # signals that ask for a reload which has not begun
        self.asked: set[int] = set()
        self.progress = reload.Progress(reload.Progress.read(self.run_dir).number)
        self.refused = Refusals(self.run_dir)
        # whether all that was to be served at the start is, or what is not is left to the mules, which try again
        self.complete = False
        # what the last look for versions found, and what it complained of
        self.found = Plan()
        self.complaint = ""
        self.terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _has_terminal()

    def run(self) -> int:
        """Start both, serve until a signal or a death.  Returns the exit status."""
        self._prepare()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.instance.adopt(self._first_plan())
            self.instance.catalog.keep(self.instance.plan)
            self._complain(self.instance.catalog.stale)
            self.instance.count()
            self._start(self.instance)
            self.instance.link()
            conf = str(self.run_dir / "nginx.conf")
            self.nginx = self._spawn("nginx", [nginx.program(), "-c", conf, "-p", str(self.run_dir)], self.environ)
            ready = self._until_ready(self.instance)
            while not nginx.listens(self.host, self.port):
                self._next_event(0.1)
            nginx.close_status(self.run_dir)
            self._announce(ready)
            self._loaded(self.instance.plan, Plan())
            looked = time.monotonic()
            while True:
                if not self.complete:
                    self._look_for_failures()
                poll_s = self.instance.settings.version_poll_s
                waits = [max(0.0, looked + poll_s - time.monotonic()), LONGEST_WAIT_S] if poll_s else []
                self._next_event(min([*waits, FAILURES_S] if not self.complete else waits, default=None))
                while self.asked:
                    self._reload(signal.SIGUSR1 in self.asked)
                if poll_s and time.monotonic() >= looked + poll_s:
                    self._look_for_versions()
                    looked = time.monotonic()
        except LoadError as error:
            self._say(str(error), logging.ERROR, self._see_log())
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
        self._check_grpc(self.instance.settings)
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
        self.log = self._open_log()
        nginx.clear(self.run_dir)
        (self.run_dir / "nginx.conf").write_text(self._nginx_conf(self.instance))
        # what was asked of a server before this one, and what it was at when it was killed
        reload.wish(self.run_dir)
        self.progress.write(self.run_dir)

    def _check_grpc(self, settings: Settings) -> None:
        if settings.grpc_port == self.port:
            raise StartError(f"grpc_port = {self.port} is the port for HTTP too; set GRPC_PORT to another")
        if settings.grpc_port:
            nginx.check_address(self.host, settings.grpc_port, "GRPC_PORT")

    def _nginx_conf(self, instance: Instance) -> str:
        return nginx.configuration(instance.settings, self.address, self.run_dir, self.log_dir, self.log.form)

    def _start(self, instance: Instance) -> None:
        instance.make_folder()
        files = [] if instance.counts is None else [instance.counts]
        instance.process = self._spawn("uwsgi", instance.command, instance.environ, files)

    def _spawn(self, program: str, command: list[str], environ: dict[str, str], files: Sequence[int] = ()) -> Child:
        """Start nginx or uWSGI.  What it prints becomes lines of the log; nginx writes its own to standard output."""
        pipe = Pipe(self.log, program)
        try:
            out = pipe.fd if program == "uwsgi" else None
            environ = environ | logs.told(self.log)
            return children.spawn(command, environ, ROOT, out, pipe.fd, [self.log.fd, *files])
        finally:
            pipe.start()
            self.pipes = [*(one for one in self.pipes if one.is_open()), pipe]

    def _open_log(self) -> Log:
        """server.log, or standard error; where others find it open, too."""
        if self.log_dir is None:
            fd = os.dup(2)
        else:
            fd = os.open(self.log_dir / "server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOG_FD)
        os.close(fd)
        terminal = self.log_dir is None and os.isatty(1) and os.isatty(2)
        form = logs.choose(self.instance.settings.log_format, terminal, self.environ)
        # libraries have their own words for what is said here, but for warnings
        log = logs.start(Log(form, high, "supervisor"), "warning")
        LOG.setLevel(logging.INFO)
        return log

    # ---- start

    def _until_ready(self, instance: Instance, complete: bool = False) -> dict[str, Any]:
        """Wait until no replica loads any more and one is ready; complete: until each of them is.  Gives /readyz."""
        start = time.monotonic()
        pause_s = 2.0
        next_word = start + pause_s
        while True:
            self._next_event(0.1)
            if instance.process and instance.process.poll() is not None:
                raise LoadError(f"uwsgi ended by itself with status {instance.process.returncode}")
            ready = instance.readyz()
            replicas = ready.get("replicas", [])
            states = {replica["state"] for replica in replicas}
            if ready.get("status") == "ready" and (
                all(replica["ready"] for replica in replicas) if complete else not states & {"starting", "loading"}
            ):
                return ready
            errors = sorted({replica["last_error"] for replica in replicas} - {""})
            # not those of a version that is refused by now
            failed = [one for one in replicas if one["state"] == "failed" and instance.plan.release(one["release"])]
            if failed and (complete or (ready.get("status") == "failed" and not self._refuse_failed(replicas))):
                worst = next((one for one in failed if one["default"]), failed[0])
                release = instance.plan.release(worst["release"]) or instance.plan.default
                raise LoadError(f"the model in {release.path} cannot be loaded: {worst['last_error']}")
            if time.monotonic() >= next_word:
                waited = f"loading {instance.model.name} … {time.monotonic() - start:.0f} s"
                self._tell("; ".join([waited, *errors]))
                pause_s = min(pause_s * 1.5, 30.0)
                next_word = time.monotonic() + pause_s

    def _first_plan(self) -> Plan:
        """What is to be served, without versions that are none where there are others beside them."""
        while True:
            try:
                return self._aside(lambda: self.instance.look(Plan(), refused=self.refused.reasons))
            except BrokenVersion as error:
                if error.lone:
                    raise
                self.refused.add(error.version, error.identity, str(error))
                self._tell_refused(error.version, str(error))

    def _look_for_failures(self) -> None:
        """Refuse what no replica can load, until each version has been served once."""
        replicas = self.instance.readyz().get("replicas", [])
        ready = {replica["release"] for replica in replicas if replica["ready"]}
        self.complete = ready >= {release.number for release in self.instance.plan.releases}
        if not self.complete:
            self._refuse_failed(replicas)

    def _refuse_failed(self, replicas: list[dict[str, Any]]) -> bool:
        """Serve the others without a version that all of its replicas have failed to load, one of them for good."""
        for release in self.instance.plan.releases:
            own = [replica for replica in replicas if replica["release"] == release.number]
            given_up = [replica["last_error"] for replica in own if replica["state"] == "failed"]
            if given_up and all(replica["failures"] and not replica["ready"] for replica in own):
                return self._serve_without(release, given_up[0])
        return False

    def _serve_without(self, release: Release, reason: str) -> bool:
        """Refuse a version; False where nothing else is to be served, or the settings say that it must be."""
        instance, plan = self.instance, self.instance.plan
        others = replace(plan, releases=tuple(one for one in plan.releases if one is not release))
        refused = {**self.refused.reasons, (release.version, release.identity): reason}
        self._loaded(plan, Plan())
        try:
            found = self._aside(lambda: instance.look(others, refused=refused)) if others.releases else None
        except (ModelError, SourceError, OSError):
            found = None
        if found is None:
            self.complete = True
            return False
        self.refused.add(release.version, release.identity, reason)
        self._tell_refused(release.version, reason)
        instance.serve(found)
        return True

    def _tell_refused(self, version: int, reason: str) -> None:
        self._say(f"version {version} is not served: {reason}", logging.ERROR)

    def _loaded(self, plan: Plan, before: Plan) -> None:
        """The models of a plan have been loaded, or could not be."""
        with contextlib.suppress(ModelError, OSError):
            self.instance.catalog.loaded(plan, before)

    def _announce(self, ready: dict[str, Any]) -> None:
        card = ModelCard.from_dict(ready["model"])
        url = f"http://{self.address}"
        self._say(f"ready at {url}")
        told = [f"model  {card.name}, {self.instance.plan} ({card.engine}), {self.instance.model.path}"]
        if policy := reload.pinned(self.run_dir):
            told.append(f"       pinned by `reload --version {policy}`; `reload --unpin` ends that")
        told.append(f"mules  {self.instance.settings.mules}, {ready['ready_replicas']} of them ready")
        if port := self.instance.settings.grpc_port:
            told.append(f"grpc   {self.address.rpartition(':')[0]}:{port}")
        if self.log_dir:
            told.append(f"logs   {self.log_dir}")
        self._print("\n".join(f"  {line}" for line in [*told, f"try    {self._curl(card, url)}"]))

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
        body = request_body(value).decode()
        if len(body) > MAX_CURL_BODY:
            path = self.run_dir / "sample.json"
            path.write_text(body)
            return f"curl -s {url}/predict -d @{path}"
        return f"curl -s {url}/predict -d '{body.replace(chr(39), chr(92) + 'u0027')}'"

    # ---- reload

    def _look_for_versions(self) -> None:
        """Serve what has appeared or changed, once two looks found the same: nobody is still writing it then."""
        instance = self.instance
        complaint = ""
        try:
            found = self._aside(lambda: instance.look(instance.plan, refused=self.refused.reasons))
            complaint = instance.catalog.stale
            self._forget()
            if found.releases == instance.plan.releases:
                if found != instance.plan:
                    instance.serve(found)
            elif found.serves_as(self.found):
                self._reload(anew=False)
            self.found = found
        except BrokenVersion as error:
            self._refuse(error.version, error.identity, str(error))
            complaint = str(error)
        except (ModelError, SourceError, OSError) as error:
            complaint = str(error)
        finally:
            instance.catalog.keep(instance.plan)
        self._complain(complaint)

    def _refuse(self, version: int, identity: str, reason: str) -> None:
        """A version with this identity is not tried again by itself, also after a new start."""
        self.refused.add(version, identity, reason)
        plan = self.instance.plan
        self.instance.serve(replace(plan, refused={**plan.refused, version: reason}))

    def _forget(self) -> None:
        """What could not be served matters as long as it is there, and is not served."""
        found = self.instance.catalog.found
        self.refused.keep(found.identities if found else None, self.instance.plan)

    def _complain(self, complaint: str) -> None:
        """Tell what is wrong with the source, once; empty: nothing."""
        if complaint and complaint != self.complaint:
            self._say(f"what was there before is served: {complaint}", logging.ERROR)
        self.complaint = complaint

    def _hear(self, text: str) -> None:
        """What a source tells of a fetch; a look for versions is silent."""
        if self.nginx is None or self.progress.state == reload.RUNNING:
            self._tell(text)

    def _aside(self, work: Callable[[], T]) -> T:
        """What a function gives that may take its time, as a fetch does: signals are heard meanwhile."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self.aside = threading.Thread(target=run, name="aside", daemon=True)
        self.aside.start()
        while not future.done():
            self._next_event(0.02)
        return future.result()

    def _reload(self, everything: bool = False, anew: bool = True) -> None:
        """Do what was asked for, and tell how it went.  What is asked for meanwhile is done after it.

        anew: whether it was asked for: then what could not be served is tried again, and where nothing has changed, all
        is loaded again.
        """
        self.asked.clear()
        # before anything is read: whoever asks from now on waits for the next one
        self.progress = reload.Progress(self.progress.number + 1, reload.RUNNING)
        self._tell("reloading")
        try:
            done = self._renew(everything) if anew else self._renew_replicas(self._plan())
        except LoadError as error:
            self._tell(f"not reloaded, and what served serves on: {error}{self._see_log()}", reload.FAILED)
        except BrokenVersion as error:
            self._refuse(error.version, error.identity, str(error))
            self._tell(f"not reloaded, and what served serves on: {error}", reload.FAILED)
        except (SettingsError, ModelError, SourceError, StartError, OSError) as error:
            self._tell(f"not reloaded, and what served serves on: {error}", reload.FAILED)
        else:
            self._tell(f"reloaded: {done}", reload.DONE)
            self._forget()
        self.instance.catalog.keep(self.instance.plan)

    def _renew(self, everything: bool) -> str:
        wish = reload.wish(self.run_dir)
        new = Instance(self.run_dir, self.instance.other_folder(), self.ini, self.environ, self._hear)
        if everything or not new.same_as(self.instance):
            try:
                new.adopt(self._aside(lambda: new.look(Plan(), False, self.refused.reasons, True, wish)))
                done = self._replace(new)
                self._loaded(new.plan, Plan())
            finally:
                if self.instance is not new:
                    # what it has fetched need not stay
                    new.catalog.keep(Plan())
        else:
            plan = self._plan(again=True, wish=wish)
            if plan.releases == self.instance.plan.releases:
                plan = self._plan(anew=True, again=True, wish=wish)
            done = self._renew_replicas(plan)
        if wish is not None:
            reload.pin(self.run_dir, wish)
        return done

    def _plan(self, anew: bool = False, again: bool = False, wish: str | None = None) -> Plan:
        instance = self.instance
        found = self._aside(lambda: instance.look(instance.plan, anew, self.refused.reasons, again, wish))
        self._complain(instance.catalog.stale)
        return found

    def _replace(self, new: Instance) -> str:
        """Start another uWSGI, let it take over once it is ready, and stop the one that served."""
        if new.settings.grpc_port != self.instance.settings.grpc_port:
            self._check_grpc(new.settings)
        nginx_conf = self._nginx_conf(new)
        nginx.check_configuration(nginx_conf, self.run_dir)
        self.other = new
        new.count(before=self.instance)
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
        return f"uWSGI anew, {new.model.name}, {new.plan}, {ready['ready_replicas']} replicas"

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
            self._stop([self.other.process] if self.other.process else [], signal.SIGTERM, deadline, self._next_event)
            self.other.remove_folder()
            self.other.forget_counts(self.instance)
            self.other.catalog.keep(Plan())
        self.other = None

    def _renew_replicas(self, plan: Plan) -> str:
        """Let the mules replace the replicas that do not fit a plan, one after another; go back where that fails."""
        instance, before = self.instance, self.instance.plan
        while not (ready := instance.readyz()):
            self._next_event(0.1)
        failures = (ready.get("spare") or {}).get("failures", 0)
        instance.serve(plan.beside(before))
        try:
            self._until_served(instance.plan, failures)
            # all that is new is there
            instance.serve(plan)
            return self._until_served(plan, failures)
        except (LoadError, OSError) as error:
            instance.serve(before)
            release = error.release if isinstance(error, LoadError) else None
            served = {(one.version, one.identity) for one in before.releases}
            if release and (release.version, release.identity) not in served:
                self._refuse(release.version, release.identity, str(error))
            self._until_back(instance.plan)
            raise
        finally:
            self._loaded(plan, before)

    def _until_back(self, plan: Plan) -> None:
        """Wait until the replicas that had a new version already have the one from before again."""
        try:
            self._until_served(plan, sys.maxsize)
        except LoadError as error:
            self._tell(f"the way back is not done: {error}")

    def _until_served(self, plan: Plan, failures: int) -> str:
        """Wait until a plan is fulfilled; failures: of the spare, before it was to be."""
        instance = self.instance
        total = instance.settings.mules
        while True:
            self._next_event(0.1)
            if not (ready := instance.readyz()):
                continue
            replicas, spare = ready["replicas"], ready["spare"] or {"failures": 0}
            surplus = plan.surplus(replica["release"] for replica in replicas)
            fits = [replica for replica, many in zip(replicas, surplus, strict=True) if not many]
            new = sum(replica["ready"] for replica in fits)
            # each looks at the plan now and then
            known = all(_as_planned(replica, plan) for replica in fits if replica["ready"])
            # one that is being replaced stands there beside the new one
            text = f"{instance.model.name}, {plan}, {new} of {total} replicas"
            if new == len(replicas) == total and known:
                return text
            # those of an earlier reload are forgotten at some time after this one has begun
            failures = min(failures, spare["failures"])
            stuck = [replica for replica in fits if replica["state"] in ("paused", "failed")]
            if stuck and new + len(stuck) == len(replicas):
                raise LoadError(
                    f"{new} replicas are new, and replica {stuck[0]['id']} is not: {stuck[0]['reason']}",
                    plan.release(stuck[0]["release"]),
                )
            if spare["failures"] > failures and (failed := plan.release(spare["release"])):
                raise LoadError(f"the model in {failed.path} cannot be loaded: {spare['last_error']}", failed)
            if text != self.progress.text:
                self._tell(text)

    def _tell(self, text: str, state: str = reload.RUNNING) -> None:
        """Say it; during a reload also to those who asked for it."""
        self._say(text, logging.ERROR if state == reload.FAILED else logging.INFO)
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
                told = f"{name} ended by itself with status {child.returncode}"
                self._say(told, logging.ERROR, self._see_log())
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

    def _children(self) -> list[Child]:
        uwsgi = [instance.process for instance in (self.instance, self.other) if instance]
        return [child for child in (self.nginx, *uwsgi) if child]

    def _reap(self) -> None:
        # a library that runs aside may have children, and waits for them
        children.reap(self._children(), others=not (self.aside and self.aside.is_alive()))

    # ---- stop

    def _end(self) -> None:
        """Stop nginx, which finishes what it accepted; then uWSGI, which answered it; at most stop_timeout_s."""
        timeout_s = self.instance.settings.stop_timeout_s
        deadline = time.monotonic() + timeout_s
        if self.stops:
            if sys.stdout.isatty():
                # below the ^C of the terminal
                print(flush=True)
            self._say(f"draining, for at most {timeout_s} s")
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
        for pipe in self.pipes:
            pipe.wait(LAST_LINES_S)
        if self.stops:
            self._say("stopped")

    def _stop(self, some: Sequence[Child], number: int, deadline: float, wait: Callable[[float], None]) -> None:
        # asked twice, it ends at once
        children.stop(some, number, deadline, wait, lambda: self.stops > 1)

    def _see_log(self) -> str:
        """The last lines of the log, or nothing where they are on the terminal already."""
        if self.log_dir is None:
            return ""
        for pipe in self.pipes:
            pipe.wait(LAST_LINES_S)
        log = self.log_dir / "server.log"
        try:
            lines = log.read_text(errors="replace").splitlines()[-8:]
        except OSError:
            return ""
        return "\n  | ".join([f"; the end of {log}:", *"\n".join(map(logs.read, lines)).splitlines()[-8:]])

    def _say(self, text: str, level: int = logging.INFO, more: str = "") -> None:
        """To who started it, and into the log; more: that this one has already."""
        if self.log_dir or self.log.form is Form.JSON:
            LOG.log(level, text)
        if self.log_dir or self.log.form is not Form.JSON:
            self._print(f"muleteer: {text}{more}", sys.stderr if level == logging.ERROR else sys.stdout)

    def _print(self, text: str, stream: TextIO = sys.stdout) -> None:
        if self.log_dir is None and self.log.form is Form.JSON:
            for line in text.splitlines():
                LOG.info(line)
            return
        try:
            print(text, file=stream, flush=True)
        except OSError:
            # whoever read it is gone; that ends no server
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def _as_planned(replica: dict[str, Any], plan: Plan) -> bool:
    """Whether a replica, as /readyz shows it, answers to what its release is to answer to."""
    release = plan.release(replica["release"])
    return release is None or (replica["default"], tuple(replica["labels"])) == (release.default, release.labels)


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


def go_home(environ: dict[str, str]) -> None:
    """To the folder of this file, to which all is relative but what the user names: that is to where the user is."""
    for key in ("MODEL", "SERVING_MODEL"):
        if environ.get(key) and not sources.is_url(environ[key]):
            environ[key] = str(Path(environ[key]).absolute())
    os.chdir(ROOT)


def ini_of(environ: dict[str, str]) -> Path:
    """The uwsgi.ini of a server with this environment."""
    return Path(environ.get("INI") or ROOT / "uwsgi.ini").resolve()


def run_dir_of(environ: dict[str, str]) -> Path:
    """The run folder of a server with this environment."""
    return Path(environ.get("RUN_DIR") or ROOT / "run" / str(_port(environ))).resolve()
