"""A mule's life: bury the predecessor, stand by until there is a post, load the model, serve, leave.

Runs in:  mule.
Units:    seconds.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from mules.pool import LOOK_S, Pool, look
from mules.replica import EXITS, Replica, load
from serving.counts import Batches
from serving.errors import EngineError, ModelError
from serving.plan import Release
from serving.quarantine import Quarantine
from serving.settings import Settings
from serving.store import Board, Record, State
from serving.transport import Transport

if TYPE_CHECKING:
    from mules.traces import Traces

# how long an idle replica sleeps at the most before it looks at its flags and says that it lives
IDLE_S = LOOK_S
# how long it sleeps until it looks again whether the version that answers who names none has been loaded
SECOND_S = 0.05
# a replica serves for so long before it counts as too large
LEAST_AGE_S = 10.0

log = logging.getLogger("muleteer.mule")


class Stopped(BaseException):
    """A signal came while the model was being loaded, and nothing is held."""


class Stop:
    """What signals ask of a mule: flags for its loop.

    SIGTERM and SIGINT: finish what is held, then exit; SIGHUP (uWSGI stops or reloads everything): go on until no
    thread waits, at most stop_timeout_s.
    """

    def __init__(self) -> None:
        self.now = False
        self.drain_since: float | None = None
        self.loading = False

    def install(self) -> None:
        """Take the three signals over from uWSGI, which would exit inside its handler."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._drain)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.now = True
        self._leave_load()

    def _drain(self, number: int, frame: FrameType | None) -> None:
        self.drain_since = self.drain_since or time.monotonic()
        self._leave_load()

    def _leave_load(self) -> None:
        # a load may take a minute, and nobody waits for it now
        if self.loading:
            self.loading = False
            raise Stopped

    def asked(self) -> bool:
        return self.now or self.drain_since is not None

    def due(self, transport: Transport, stop_timeout_s: float) -> bool:
        """Whether the loop ends now."""
        if self.now or self.drain_since is None:
            return self.now
        return not transport.waiting() or time.monotonic() - self.drain_since > stop_timeout_s


def run(
    settings: Settings,
    transport: Transport,
    pool: Pool,
    quarantine: Quarantine,
    id: int,
    pid: int,
    board: Board,
    end_by: Callable[[int], None],
    batches: Batches | None = None,
    traces: "Traces | None" = None,
) -> int:
    """All of a mule's life.  Returns its exit status; the caller ends the process with it."""
    stop = Stop()
    stop.install()
    # the timer of a predecessor that died by itself may still be armed, and would kill this one
    end_by(0)
    pool.start(pid)
    record = pool.record
    post = None
    if not record.post:
        post = pool.stand_by(lambda: stop.due(transport, settings.stop_timeout_s))
        if post is None:
            pool.leave()
            return 0
    _pause(record, stop, pool)
    if stop.asked():
        pool.leave()
        return 0
    record.beat()
    began = time.monotonic()
    record.state = State.LOADING
    try:
        release = pool.choose(post)
        stop.loading = True
        replica = load(settings, release, transport, record, quarantine, end_by, batches, traces)
        stop.loading = False
        _check_memory(settings)
        while pool.comes_second() and not stop.asked():
            record.beat()
            time.sleep(SECOND_S)
        transport.start_replica(id, lambda: len(board.ready()))
        transport.serve(release.version, release.default, pool.knows)
        with transport.locked():
            # one after the other: two that differ are not both on the board
            replica.check_signature(board.card())
            replica.describe(release.labels)
            record.beat()
            record.load_s = time.monotonic() - began
            record.succeed()
    except Stopped:
        pool.leave()
        return 0
    except (Exception, *EXITS) as error:
        permanent = isinstance(error, ModelError)
        log.error("replica cannot load the model: %s", error, exc_info=None if permanent else error)
        pool.count_failure(record, str(error) or type(error).__name__, permanent)
        return 1
    if post is not None:
        pool.replace(post)
    try:
        serve(replica, release, pool, stop, transport, settings)
    except EngineError as error:
        log.error("replica %d is not well, and is replaced: %s", id, error)
        pool.count_failure(record, str(error))
        return 1
    record.state = State.DRAINING
    pool.leave()
    return 0


def serve(replica: Replica, release: Release, pool: Pool, stop: Stop, transport: Transport, settings: Settings) -> None:
    """Turn after turn, until it is stopped.  EngineError when the canary is wrong."""
    max_rss = settings.replica_max_rss_mb << 20
    max_tasks = settings.replica_max_tasks
    record = pool.record
    while not stop.due(transport, settings.stop_timeout_s):
        replica.step(IDLE_S if stop.drain_since is None else 0.02)
        if pool.watch() and (planned := pool.plan().release(release.number)) not in (None, release):
            # another label, or another default
            release = planned
            replica.describe(release.labels)
            record.default = int(release.default)
            transport.serve(release.version, release.default, pool.knows)
        # a limit that each is over at once must not replace one after the other without a pause
        large = max_rss and record.rss > max_rss and time.monotonic() - record.ready_at > LEAST_AGE_S
        if large or (max_tasks and record.tasks >= max_tasks):
            # it serves on until the spare has loaded the model
            record.worn = 1


def _check_memory(settings: Settings) -> None:
    needs = look(os.getpid()).rss >> 20
    if settings.replica_max_rss_mb and needs > settings.replica_max_rss_mb:
        raise ModelError(
            f"replica_max_rss_mb = {settings.replica_max_rss_mb}: the model alone takes {needs} MiB;"
            f" {2 * needs} would do"
        )


def _pause(record: Record, stop: Stop, pool: Pool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until the record allows the next load, or there is another plan."""
    plan = pool.plan()
    if record.release and plan.release(record.release) is None:
        # what could not be loaded is not to be served any more
        return
    while (left := record.not_before - time.monotonic()) > 0 and not stop.asked() and pool.plan() is plan:
        record.beat()
        sleep(min(left, IDLE_S))
        pool.watch()
