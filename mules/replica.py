"""The replica: one mule's loop from the queue to the cache.

Load the model, warm it up, then, until told to stop: take what is queued, up to max_batch_rows; drop what is past its
deadline; predict; split; publish.  A step is one turn of the loop, so that a test can drive it.

Runs in:  mule.
Shapes:   tensors are (rows, *spec.shape).
Units:    seconds, absolute, time.monotonic(); _ms in replies.
"""

import logging
import signal
import time
from collections.abc import Callable
from types import FrameType

from mules import engines
from serving import batching
from serving.errors import EngineError, ModelError, ServingError
from serving.model import ModelCard, ModelFolder
from serving.settings import Settings
from serving.signature import STRING, Signature
from serving.store import Record, State
from serving.task import Reply, Task, Tensors
from serving.transport import Transport
from serving.wire import decode_task, encode_reply, peek_rows

LONGEST_PAUSE_S = 60.0
# how long an idle replica sleeps at the most before it looks at its flags and says that it lives
IDLE_S = 0.5
# a model that calls sys.exit has failed like any other; signals have handlers of their own
EXITS = (SystemExit, KeyboardInterrupt)

log = logging.getLogger("muleteer.replica")


class Replica:
    """One loaded model between the queue and the cache."""

    def __init__(
        self,
        engine: engines.Engine,
        version: int,
        transport: Transport,
        record: Record,
        max_batch_rows: int,
        batch_wait_ms: int = 0,
    ) -> None:
        self._engine = engine
        self._version = version
        self._transport = transport
        self._record = record
        self._max_batch_rows = max_batch_rows
        self._batch_wait_s = batch_wait_ms / 1000 if max_batch_rows > 1 else 0.0

    def step(self, wait_s: float) -> int:
        """One turn: take, predict, publish.  Returns how many tasks were taken."""
        self._record.beat()
        frames = self._take(wait_s)
        if not frames:
            return 0
        for batch in batching.group([decode_task(frame) for frame in frames]):
            self._answer(batch)
        return len(frames)

    def _take(self, wait_s: float) -> list[bytes]:
        rows = 0

        def full(frame: bytes) -> bool:
            nonlocal rows
            rows += peek_rows(frame)
            return rows >= self._max_batch_rows

        frames = self._transport.take(wait_s, full)
        if frames and self._batch_wait_s:
            until = time.monotonic() + self._batch_wait_s
            while rows < self._max_batch_rows and (left := until - time.monotonic()) > 0:
                frames += self._transport.take(left, full)
        return frames

    def _answer(self, tasks: batching.Batch) -> None:
        start = time.monotonic()
        # looked at again before each predict: the one before, of another shape or of a batch that failed, took its time
        batch = [task for task in tasks if task.deadline > start]
        if len(batch) < len(tasks):
            log.info("dropped %d tasks past their deadline", len(tasks) - len(batch))
        if not batch:
            return
        self._record.beat(busy=True)
        try:
            outputs = self._predict(batch)
        except (Exception, *EXITS) as error:
            if len(batch) > 1:
                # one bad input harms nobody else: each task once more, alone
                for task in batch:
                    self._answer([task])
            else:
                self._publish_error(batch[0], start, error)
            return
        predict_ms = (time.monotonic() - start) * 1000
        for task, part in zip(batch, batching.split(outputs, batch), strict=True):
            queue_ms = (start - task.offered) * 1000
            self._publish(task, Reply(task.uuid, self._version, queue_ms, predict_ms, part))

    def _predict(self, batch: batching.Batch) -> Tensors:
        inputs, rows = batching.merge(batch), sum(task.rows for task in batch)
        parts = []
        for part in batching.slices(inputs, rows, self._max_batch_rows):
            outputs = self._engine.predict(part)
            check_outputs(outputs, self._engine.signature, len(next(iter(part.values()))))
            parts.append(outputs)
        return batching.join(parts)

    def _publish(self, task: Task, reply: Reply) -> None:
        if time.monotonic() >= task.deadline:
            # its thread has gone, and nobody would take the reply out of the cache
            return
        try:
            self._transport.publish(task.uuid, task.seat, encode_reply(reply))
        except ServingError as error:
            log.error("request=%s %s: %s", task.request_id, error.code, error)
            if reply.error is None:
                self._publish(task, Reply(task.uuid, self._version, reply.queue_ms, reply.predict_ms, error=error))

    def _publish_error(self, task: Task, start: float, error: BaseException) -> None:
        log.error("request=%s the model raised", task.request_id, exc_info=error)
        # what the model raised may hold anything: it goes to the log alone
        detail = str(error) if isinstance(error, EngineError) else f"the model raised {type(error).__name__}"
        reply = Reply(
            task.uuid,
            self._version,
            (start - task.offered) * 1000,
            (time.monotonic() - start) * 1000,
            error=EngineError(f"{detail}; the log has more under this request id"),
        )
        self._publish(task, reply)


def check_outputs(outputs: Tensors, signature: Signature, rows: int) -> None:
    """Raise EngineError unless a model gave what its signature says, a row for each row."""
    for spec in signature.outputs:
        tensor = outputs[spec.name]
        if tensor.ndim == 0 or len(tensor) != rows:
            raise EngineError(f"output {spec.name!r} has shape {list(tensor.shape)} for {rows} rows")
        dtype = STRING if tensor.dtype.kind == "O" else tensor.dtype.name
        fits = len(tensor.shape) == len(spec.shape) + 1 and all(
            want in (-1, size) for want, size in zip(spec.shape, tensor.shape[1:], strict=True)
        )
        if dtype != spec.dtype or not fits:
            raise EngineError(f"output {spec.name!r} is {dtype}{list(tensor.shape[1:])} for one row, not {spec}")


class Stop:
    """What signals ask of a replica: flags for its loop.

    SIGTERM and SIGINT: finish what is held, then exit; SIGHUP (uWSGI stops or reloads everything): go on until nothing
    is queued and no thread waits, at most stop_timeout_s.
    """

    def __init__(self) -> None:
        self.now = False
        self.drain_since: float | None = None

    def install(self) -> None:
        """Take the three signals over from uWSGI, which would exit inside its handler."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._drain)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.now = True

    def _drain(self, number: int, frame: FrameType | None) -> None:
        self.drain_since = self.drain_since or time.monotonic()

    def asked(self) -> bool:
        return self.now or self.drain_since is not None


def run(settings: Settings, folder: ModelFolder, transport: Transport, record: Record, pid: int) -> int:
    """All of a mule's life.  Returns its exit status; the caller ends the process with it."""
    stop = Stop()
    stop.install()
    crashed = record.state is State.LOADING
    record.start(pid)
    if crashed:
        # its predecessor left no error: it was killed, or the framework took the process down
        _count_failure(record, settings, "the process died while it loaded the model")
    _pause(record, stop)
    if stop.asked():
        return 0
    record.state = State.LOADING
    try:
        replica = load(settings, folder, transport, record)
    except (Exception, *EXITS) as error:
        permanent = isinstance(error, ModelError)
        log.error("replica cannot load %s", folder.path, exc_info=None if permanent else error)
        _count_failure(record, settings, str(error) or type(error).__name__, permanent)
        return 1
    record.succeed()
    while not stop.now and not _drained(stop, transport, settings.stop_timeout_s):
        replica.step(IDLE_S if stop.drain_since is None else 0.02)
    record.state = State.DRAINING
    return 0


def load(settings: Settings, folder: ModelFolder, transport: Transport, record: Record) -> Replica:
    """The replica of a folder, its model loaded and warm, its card on the board."""
    start = time.monotonic()
    engine = engines.load(folder, settings.threads_per_replica)
    limits = (settings.max_batch_rows, folder.options.get("max_batch_rows"), engine.max_batch_rows)
    max_batch_rows = min(limit for limit in limits if limit is not None)
    for side in (engine.signature.inputs, engine.signature.outputs):
        # a frame counts both in one byte
        if len(side) > 255 or any(len(spec.name.encode()) > 255 for spec in side):
            raise ModelError(f"{folder.path} has more than 255 inputs or outputs, or a name of more than 255 bytes")
    loaded = time.monotonic()
    warm_up(engine, folder, max_batch_rows)
    card = ModelCard(folder.name, folder.version, engines.find(folder), engine.signature, max_batch_rows)
    record.describe(card)
    log.info(
        "replica ready: %s version %d, loaded in %.1f s, warm-up %.1f s",
        folder.name,
        folder.version,
        loaded - start,
        time.monotonic() - loaded,
    )
    return Replica(engine, folder.version, transport, record, max_batch_rows, settings.batch_wait_ms)


def warm_up(engine: engines.Engine, folder: ModelFolder, max_batch_rows: int) -> None:
    """Predict one row and a full batch of the folder's sample, so that no request pays for the first time."""
    sample = folder.sample(engine.signature)
    for rows in sorted({1, max_batch_rows}):
        inputs = {name: tensor.repeat(rows, axis=0) for name, tensor in sample.items()}
        check_outputs(engine.predict(inputs), engine.signature, rows)


def _count_failure(record: Record, settings: Settings, error: str, permanent: bool = False) -> None:
    failures = record.failures + 1
    pause_s = min(2.0 ** (failures - 1), LONGEST_PAUSE_S)
    record.fail(error, pause_s, for_good=permanent or failures >= settings.load_attempts)


def _pause(record: Record, stop: Stop, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until the record allows the next load."""
    while (left := record.not_before - time.monotonic()) > 0 and not stop.asked():
        record.beat()
        sleep(min(left, IDLE_S))


def _drained(stop: Stop, transport: Transport, stop_timeout_s: float) -> bool:
    if stop.drain_since is None:
        return False
    return not transport.waiting() or time.monotonic() - stop.drain_since > stop_timeout_s
