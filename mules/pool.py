"""The pool, as one of its mules sees it: who is dead, stopped, hung or worn out, and who takes whose place.

Each mule looks at the others twice a second.  A thread of its own, the guard, kills those that are stopped or hung; it
never takes a lock, for they may hold it.  Whoever finds one dead buries it: under the transport's lock, what it held is
offered again, and its record says how it died.  The spare is told of a death at once, by the kernel, and takes the
post; it is also the new one when a replica is to be replaced, which goes only once the new one is ready.

Runs in:  mule.
Units:    seconds.
"""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from mules.oom import OomKills
from serving.errors import ReplicaCrashed
from serving.ledger import Ticket
from serving.plan import Plan, PlanFile, Release
from serving.quarantine import Quarantine, digest
from serving.settings import Settings
from serving.store import Board, Death, Record, State
from serving.task import Reply
from serving.transport import Transport
from serving.wire import encode_reply, peek_request_id

LONGEST_PAUSE_S = 60.0
# more than /proc/PID/stat has
_STAT_BYTES = 4096
_OWN_SIGNALS = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
# how often a mule looks at the others
LOOK_S = 0.5
# a death in service sooner than this, without one answer, is a crash loop
SOON_S = 60.0

log = logging.getLogger("muleteer.pool")


class Process(NamedTuple):
    """What the kernel says of a process."""

    state: str
    parent: int
    # as wait() gives it, None when it is not dead
    status: int | None
    rss: int

    @property
    def dead(self) -> bool:
        return self.state in "ZX"

    @property
    def fell(self) -> bool:
        """Whether it ended by itself: nobody sends these signals to another process."""
        status = self.status
        return status is not None and (os.WIFEXITED(status) or os.WTERMSIG(status) in _OWN_SIGNALS)

    @property
    def killed(self) -> bool:
        """Whether somebody else ended it, as far as is known."""
        return self.status is not None and not self.fell


UNKNOWN = Process("?", 0, None, 0)
GONE = Process("X", 0, None, 0)


class Pool:
    """One mule among the others."""

    def __init__(
        self,
        id: int,
        settings: Settings,
        board: Board,
        transport: Transport,
        quarantine: Quarantine,
        plan: PlanFile,
    ) -> None:
        self.record = board.records[id - 1]
        self._id = id
        self._settings = settings
        self._board = board
        self._transport = transport
        self._quarantine = quarantine
        self._plan = plan
        self._pidfds: dict[int, int] = {}
        self._deaths = select.poll()
        self._looked = 0.0
        self._killed: dict[int, str] = {}
        self._oom_kills = OomKills(board)

    def start(self, pid: int) -> None:
        """First thing in a fresh mule: bury the predecessor, unless somebody has, and take over the record."""
        with self._transport.locked():
            if self.record.pid:
                self._bury(self._id, GONE)
            if self.record.post and len(self._board.posts()) > self._board.replicas:
                # it was to replace another, and could not load: the other stays
                self.record.post = 0
            self.record.start(pid)

        threading.Thread(target=self._guard, name="guard", daemon=True).start()

    def watch(self) -> bool:
        """Bury the dead; looks at most every LOOK_S, and returns whether it did."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return False
        self._looked = now
        if not self._follow() or self._deaths.poll(0):
            self._bury_dead()
        # after the burials: what it forgets, they may have told
        self._oom_kills.look(now)
        return True

    def _bury_dead(self) -> None:
        for id, record in enumerate(self._board.records, start=1):
            pid = record.pid
            if id != self._id and pid and (process := look(pid)).dead:
                with self._transport.locked():
                    # perhaps another was faster, or its successor is there
                    if record.pid == pid:
                        self._bury(id, process)

    def _guard(self) -> None:
        """All of a thread's life: look at the others, and kill those that are not well on two looks."""
        unwell: dict[int, str] = {}
        while True:
            before = time.monotonic()
            time.sleep(LOOK_S)
            self.record.rss = look(os.getpid()).rss
            found = self._find_unwell()
            # whoever could not look for a while was perhaps stopped together with the others
            if time.monotonic() - before < 3 * LOOK_S:
                for pid, reason in found.items():
                    if pid in unwell:
                        log.error("pid %d %s: killed", pid, reason)
                        self._killed[pid] = reason
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
            unwell = found

    def _find_unwell(self) -> dict[int, str]:
        """What ails the others, by pid."""
        unwell = {}
        for record in self._board.records:
            pid = record.pid
            if pid in (0, os.getpid()):
                continue
            process = look(pid)
            if self._is_ours(process):
                record.rss = process.rss
                if reason := self._ailment(record, process):
                    unwell[pid] = reason
        for pid in self._transport.workers():
            # a stopped worker holds requests, and perhaps the lock; uWSGI starts another, nginx asks that one
            process = look(pid)
            if self._is_ours(process) and process.state == "T":
                unwell[pid] = "is a worker and was stopped (SIGSTOP)"
        return unwell

    def _is_ours(self, process: Process) -> bool:
        """Alive, and a child of uWSGI's master: no other process that has the number of a dead one."""
        return not process.dead and process.parent == os.getppid()

    def _ailment(self, record: Record, process: Process) -> str:
        if process.state == "T":
            return "was stopped (SIGSTOP)"
        state, now = record.state, time.monotonic()
        if state is State.LOADING:
            # nothing beats meanwhile
            limit_s = self._settings.load_timeout_s
            late = limit_s and now - record.heartbeat > limit_s
            return f"has been loading the model for longer than load_timeout_s = {limit_s}" if late else ""
        if state not in (State.READY, State.SPARE, State.PAUSED, State.FAILED):
            return ""
        if self._hung(record):
            return f"has predicted for longer than predict_timeout_s = {self._settings.longest_predict_s}"
        return "" if self._board.fresh(record, now) else f"has said nothing for {now - record.heartbeat:.1f} s"

    def _bury(self, id: int, process: Process) -> None:
        """All that is to be done for a dead process, once.  Locked."""
        record = self._board.records[id - 1]
        starved = self._starved(record, process)
        death, how = self._cause(record, process, starved)
        by_itself = self._hung(record) or process.fell
        # several may be killed at one moment, and a task come from one to the next
        spared = self._settings.max_attempts > 1 and process.killed and not (starved or by_itself)

        def verdict(ticket: Ticket, frame: bytes) -> bytes:
            guilty = self._judge(ticket, digest(frame, ticket.version), by_itself, spared)
            log.error(
                "answered 500 replica_crashed: its process %s, %d times; %s",
                how,
                ticket.attempts,
                f"refused for {self._settings.quarantine_s} s" if guilty else "it was not alone",
                extra={"request_id": peek_request_id(frame)},
            )
            error = ReplicaCrashed(f"the process that predicted it {how}; {ticket.attempts} attempts were made")
            return encode_reply(Reply(ticket.uuid, 0, error=error))

        recovery = self._transport.recover(id, verdict, by_itself, spared)
        for ticket, known in recovery.late:
            if known is not None and self._judge(ticket, known, by_itself, spared):
                log.error("an input for which nobody waits any more killed its process, alone: refused")
        log.error(
            "replica %d (pid %d) %s while %s: %d tasks are offered again, %d are not",
            id,
            record.pid,
            how,
            f"it predicted {recovery.predicting} tasks" if recovery.predicting else record.state.name.lower(),
            len(recovery.again),
            len(recovery.guilty) + len(recovery.late),
            extra={"about": self._about(id, record, death)},
        )
        record.bury(death, how)
        # somebody else killed it, with nothing to do: no crash
        faultless = process.killed and not starved and not recovery.predicting
        self._vacate(record, how, faultless)

    def _about(self, id: int, record: Record, death: Death) -> dict[str, object]:
        """A death in a few words; restarts: with this one."""
        card = self._board.card()
        return {
            "replica": id,
            "reason": death.name.lower(),
            "model": card.name if card else None,
            "version": record.version if record.release else None,
            "engine": card.engine if card else None,
            "restarts": sum(record.history.deaths().values()) + 1,
        }

    def _judge(self, ticket: Ticket, known: bytes, by_itself: bool, spared: bool) -> bool:
        """Refuse an input, by its digest, that killed its process alone; one that was not alone is a suspect.

        Of those that were not, as with max_attempts = 1 or after a batch that raised, another may be the guilty one.
        """
        guilty = ticket.alone and (by_itself or ticket.attempts >= self._settings.max_attempts + spared)
        if guilty:
            self._quarantine.refuse(known)
        else:
            self._quarantine.suspect(known)
        return guilty

    def _vacate(self, record: Record, how: str, faultless: bool) -> None:
        useless = not record.tasks and time.monotonic() - record.ready_at < SOON_S
        if record.state in (State.STARTING, State.LOADING):
            self.count_failure(record, f"the process {how} while it loaded the model")
        elif record.state is State.READY and useless and not faultless:
            record.crash(_pause_s(record.crashes + 1))
        elif record.state in (State.PAUSED, State.FAILED):
            record.pid = 0
        else:
            record.retire()

    def _hung(self, record: Record) -> bool:
        since = record.busy_since
        return bool(since and time.monotonic() - since >= self._settings.longest_predict_s)

    def _starved(self, record: Record, process: Process) -> bool:
        """Whether the kernel killed it for want of memory; where its status is gone it may have."""
        # a status is the number of the signal that killed
        killed = process.status in (None, signal.SIGKILL) and record.pid not in self._killed
        return killed and self._oom_kills.tell()

    def _cause(self, record: Record, process: Process, starved: bool) -> tuple[Death, str]:
        memory = f"at {record.rss >> 20} MiB" if record.rss else ""
        death = Death.OUT_OF_MEMORY if starved else Death.UNKNOWN
        if record.pid in self._killed:
            how = f"was killed: it {self._killed.pop(record.pid)}"
            death = Death.LOADING if record.state is State.LOADING else Death.UNRESPONSIVE
        elif process.status is None:
            # another process has reaped it, and its status with it
            how = "died, out of memory" if starved else "died"
        elif os.WIFEXITED(process.status):
            how = f"exited with status {os.WEXITSTATUS(process.status)}"
            death = Death.EXITED
        else:
            if not starved:
                death = Death.CRASHED if process.fell else Death.KILLED
            number = os.WTERMSIG(process.status)
            how = f"was killed by signal {number}"
            # those between SIGRTMIN and SIGRTMAX have no name
            with suppress(ValueError):
                how += f" ({signal.Signals(number).name})"
            if starved:
                how += ", out of memory"
            elif number == signal.SIGKILL and self._hung(record):
                how += f": it had predicted for longer than predict_timeout_s = {self._settings.longest_predict_s}"
        return Death.HUNG if self._hung(record) else death, f"{how} {memory}".strip()

    def count_failure(self, record: Record, error: str, permanent: bool = False) -> None:
        """A load has failed: how long its successor pauses, and whether anybody should wait for that."""
        failures = record.failures + 1
        record.fail(error, _pause_s(failures), for_good=permanent or failures >= self._settings.load_attempts)
        # all is said of this process
        record.pid = 0

    # ---- posts

    def stand_by(self, stopped: Callable[[], bool]) -> "Post | None":
        """The spare's loop, until it has a post; None when it is stopped before."""
        self.record.state = State.SPARE
        while not stopped():
            self.record.beat()
            self._sleep()
            self.watch()
            if post := self._claim():
                return post
        return None

    def _sleep(self) -> None:
        """Until somebody dies, at most LOOK_S."""
        self._follow()
        if self._deaths.poll(LOOK_S * 1000):
            self._looked = 0.0

    def _follow(self) -> bool:
        """Let the kernel tell of the deaths of the others; whether it can of all: not of the dead, nor an older one."""
        pids = {record.pid for record in self._board.records} - {0, self.record.pid}
        for pid in self._pidfds.keys() - pids:
            pidfd = self._pidfds.pop(pid)
            self._deaths.unregister(pidfd)
            os.close(pidfd)
        for pid in pids - self._pidfds.keys():
            with suppress(OSError):
                self._pidfds[pid] = pidfd = os.pidfd_open(pid)
                self._deaths.register(pidfd, select.POLLIN)
        return len(self._pidfds) == len(pids)

    def _claim(self) -> "Post | None":
        # only where there is one: whoever holds the lock may be stopped, and this one must go on looking
        if time.monotonic() < self.record.not_before or self._find_post() is None:
            return None
        with self._transport.locked():
            post = self._find_post()
            if post is not None:
                self.record.post = 1
            return post

    def _find_post(self) -> "Post | None":
        posts = self._board.posts()
        if len(posts) < self._board.replicas:
            return Post(None, 0)
        if any(record.state in (State.STARTING, State.LOADING) for record in posts):
            # one after the other; one that pauses after a failure is no reason to wait
            return None
        surplus = self.plan().surplus(record.release for record in posts)
        due = (record for record, many in zip(posts, surplus, strict=True) if record.serves and (record.worn or many))
        return next((Post(record, record.pid) for record in due), None)

    def plan(self) -> Plan:
        """What is to be served."""
        return self._plan.read()

    def choose(self, post: "Post | None") -> Release:
        """What this process is to load: the release that lacks most, without the replica that it replaces."""
        with self._transport.locked():
            others = [record for record in self._board.posts() if record is not self.record]
            if post is not None and post.replaces in others:
                others.remove(post.replaces)
            release = self.plan().lacking([record.release for record in others])
            self.record.release, self.record.version = release.number, release.version
            self.record.default = int(release.default)
            return release

    def comes_second(self) -> bool:
        """Whether another version answers who names none, and is being loaded: what that takes and gives is to hold."""
        return (
            not self.record.default
            and self._board.card() is None
            and any(
                record.default and record.state in (State.STARTING, State.LOADING) for record in self._board.posts()
            )
        )

    def knows(self, version: int) -> bool:
        """Whether a version is served, or is to be."""
        return any(release.version == version for release in self.plan().releases) or any(
            record.version == version for record in self._board.posts()
        )

    def replace(self, post: "Post") -> None:
        """The new one is ready: let the old one finish what it holds, and go."""
        if post.replaces is not None and post.replaces.pid == post.pid:
            log.info("replica (pid %d) is replaced by pid %d", post.pid, self.record.pid)
            with suppress(ProcessLookupError):
                os.kill(post.pid, signal.SIGTERM)

    def leave(self) -> None:
        """Nothing is held any more, and the process ends: the post is free."""
        with self._transport.locked():
            self.record.retire()


class Post(NamedTuple):
    """A post, free or that of a replica which is to be replaced, and that one's pid."""

    replaces: Record | None
    pid: int


def look(pid: int) -> Process:
    """What the kernel says of a process."""
    try:
        # each looks at all the others twice a second, and a file object takes four times as long
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            told = os.read(file, _STAT_BYTES)
        finally:
            os.close(file)
    except (FileNotFoundError, ProcessLookupError):
        return GONE
    except OSError:
        # no file can be opened: that tells of this process, not of that one
        return UNKNOWN
    # the name, in brackets, may hold anything
    fields = told.decode(errors="replace").rpartition(")")[2].split()
    state = fields[0]
    status = int(fields[49]) if state in "ZX" else None
    return Process(state, int(fields[1]), status, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))


def _pause_s(failures: int) -> float:
    return float(min(2.0 ** (failures - 1), LONGEST_PAUSE_S))
