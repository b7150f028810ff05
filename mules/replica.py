"""The replica: one loaded model between the queue and the replies.

A step: take what is queued, up to max_batch_rows; drop what is past its deadline; write down that it is predicted;
predict; split; publish.  A step is one turn of the mule's loop, so that a test can drive it.

Runs in:  mule.
Shapes:   tensors are (rows, *spec.shape).
Units:    seconds, absolute, time.monotonic(); _ms in replies.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mules import engines
from mules.canary import Canary, check_outputs
from mules.pace import Pace
from serving import batching, sentry
from serving.counts import Batches
from serving.errors import ClientError, EngineError, ModelError, ModelNotFound, ServingError
from serving.ledger import ANY, Taken
from serving.model import ModelCard, ModelFolder
from serving.plan import Release
from serving.quarantine import Quarantine
from serving.settings import Settings
from serving.store import Record
from serving.task import Reply, Task, Tensors
from serving.transport import Transport
from serving.wire import decode_task, encode_replies, encode_reply

if TYPE_CHECKING:
    # where requests are traced; what it needs is not there otherwise
    from mules.traces import Traces

# how long a replica waits for more of a batch before it says again that it lives
_WAIT_S = 0.5
# a model that calls sys.exit has failed like any other; signals have handlers of their own
EXITS = (SystemExit, KeyboardInterrupt)

log = logging.getLogger("muleteer.replica")


class Replica:
    """One loaded model."""

    def __init__(
        self,
        engine: engines.Engine,
        card: ModelCard,
        transport: Transport,
        record: Record,
        batch_wait_ms: int = 0,
        canary: Canary | None = None,
        canary_s: float = 0.0,
        quarantine: Quarantine | None = None,
        end_by: Callable[[int], None] = lambda seconds: None,
        predict_timeout_s: int = 0,
        batches: Batches | None = None,
        traces: "Traces | None" = None,
    ) -> None:
        # by the name of a signature as a task has it
        self._engines = {"": engine, **engines.others(engine)}
        self.card = card
        self._version = card.version
        self._transport = transport
        self._record = record
        self._max_batch_rows = card.max_batch_rows
        self._batch_wait_s = batch_wait_ms / 1000 if card.max_batch_rows > 1 else 0.0
        self._canary = canary
        self._canary_s = canary_s
        self._quarantine = quarantine
        self._end_by = end_by
        self._predict_timeout_s = predict_timeout_s
        self._batches = batches
        self._traces = traces
        self._pace = Pace()
        self._last_predict = time.monotonic()
        self._taken: dict[bytes, Taken] = {}

    def warm_up(self) -> None:
        """Predict the sample, so that no request pays for the first time."""
        if self._canary is None:
            return
        for rows, took_s in self._canary.warm_up(self._max_batch_rows):
            self._measure(rows, took_s)
        for name, signature in self.card.others.items():
            same = signature.inputs == self.card.signature.inputs
            sample = self._canary.sample if same else signature.samples()
            try:
                check_outputs(self._engines[name].predict(sample), signature, 1)
            except (Exception, *EXITS) as error:
                log.warning("the signature %r has no warm-up: %s: %s", name, type(error).__name__, error)

    def check_signature(self, other: ModelCard | None) -> None:
        """Raise ModelError unless it takes and gives what replicas before it did, for which clients have come."""
        own = self.card
        if other is None or list(own.signatures.items()) == list(other.signatures.items()):
            return
        names = [*own.signatures, *other.signatures]
        name = next(name for name in names if own.signatures.get(name) != other.signatures.get(name))
        raise ModelError(
            f"version {own.version} takes and gives {own.told(name)}, and version {other.version}, which was loaded"
            f" before, {other.told(name)}: clients may not expect that; reload --all lets it take over all the same"
        )

    def describe(self, labels: tuple[str, ...]) -> None:
        """Put its card on the board, with these labels."""
        self._record.describe(replace(self.card, labels=labels))

    def step(self, wait_s: float) -> int:
        """One turn: take, predict, publish.  Returns how many tasks were taken.

        EngineError when it is idle, looks at its canary, and finds it wrong: the model is not to be trusted any more.
        """
        self._record.beat()
        taken = self._take(wait_s)
        if not taken:
            self._look_at_canary()
            return 0
        start = time.monotonic()
        self._taken = {one.ticket.uuid: one for one in taken}
        if self._transport.naming() and any(one.ticket.version not in (ANY, self._version) for one in taken):
            taken = self._refuse_strange(taken, start)
        if not taken:
            return 0
        for batch in batching.group([decode_task(one.frame) for one in taken if not one.ticket.alone]):
            self._answer(batch)
        for one in taken:
            if one.ticket.alone:
                self._answer([decode_task(one.frame)])
                if self._quarantine is not None:
                    self._quarantine.clear(one.frame, one.ticket.version)
        self._record.work(len(taken))
        # all of the turn but the wait: that is what others wait for
        self._measure(sum(one.ticket.rows for one in taken), time.monotonic() - start)
        return len(taken)

    def _take(self, wait_s: float) -> list[Taken]:
        taken = self._transport.take(wait_s, self._max_batch_rows, self._pace.shared_rows)
        if taken and self._batch_wait_s and not any(one.ticket.alone for one in taken):
            until = time.monotonic() + self._batch_wait_s
            while (room := self._max_batch_rows - sum(one.ticket.rows for one in taken)) > 0 and (
                left := until - time.monotonic()
            ) > 0:
                taken += self._transport.take(min(left, _WAIT_S), room)
                self._record.beat()
        return taken

    def _refuse_strange(self, taken: list[Taken], start: float) -> list[Taken]:
        """Tell those who named a version that is not served any more; gives the others."""
        known = []
        for one in taken:
            if one.ticket.version in (ANY, self._version):
                known.append(one)
            else:
                error = ModelNotFound(f"version {one.ticket.version} of the model is not served any more")
                self._publish_error(decode_task(one.frame), start, error)
        return known

    def _answer(self, tasks: batching.Batch) -> None:
        start = time.monotonic()
        # looked at again before each predict: the one before, of another shape or of a batch that failed, took its time
        batch = []
        for task in tasks:
            if task.deadline > start:
                batch.append(task)
            else:
                self._transport.drop(self._taken[task.uuid])
        if len(batch) < len(tasks):
            log.info("dropped %d tasks past their deadline", len(tasks) - len(batch))
        if not batch:
            return
        taken = [self._taken[task.uuid] for task in batch]
        self._transport.begin(taken)
        self._record.beat(busy=True)
        self._end_by(self._predict_timeout_s)
        try:
            outputs = self._predict(batch)
        except (Exception, *EXITS) as error:
            self._end_by(0)
            self._transport.end(taken)
            if self._traces is not None:
                self._traces.add(batch, self._version, start, time.monotonic(), type(error).__name__)
            if len(batch) > 1 and (isinstance(error, ClientError) or self._transport.attempts_left(taken[0])):
                # one bad input harms nobody else: each task once more, alone
                for task in batch:
                    self._answer([task])
            elif isinstance(error, ClientError):
                self._publish_error(batch[0], start, error)
            else:
                # what the model raised may hold anything: it goes to the log alone
                told = str(error) if isinstance(error, EngineError) else f"the model raised {type(error).__name__}"
                for task in batch:
                    log.error("the model raised", exc_info=error, extra={"request_id": task.request_id})
                    self._publish_error(task, start, EngineError(f"{told}; the log has more under this request id"))
            return
        self._end_by(0)
        predict_s = time.monotonic() - start
        if self._batches is not None:
            self._batches.count(sum(task.rows for task in batch), len(batch), self._version, predict_s)
        frames = encode_replies(batch, self._version, start, predict_s * 1000, outputs)
        for one, task, frame in zip(taken, batch, frames, strict=True):
            try:
                self._transport.publish(one, frame)
            except ServingError as error:
                log.error("%s: %s", error.code, error, extra={"request_id": task.request_id})
                self._publish_error(task, start, error)
        if self._traces is not None:
            self._traces.add(batch, self._version, start, start + predict_s)

    def _predict(self, batch: batching.Batch) -> Tensors:
        engine = self._engines.get(batch[0].signature)
        if engine is None:
            raise EngineError(f"version {self._version} of the model has no signature {batch[0].signature!r}")
        inputs, rows = batching.merge(batch), sum(task.rows for task in batch)
        parts = []
        for part in batching.slices(inputs, rows, min(self._max_batch_rows, engine.max_batch_rows or rows)):
            outputs = engine.predict(part)
            check_outputs(outputs, engine.signature, len(next(iter(part.values()))))
            parts.append(outputs)
        return batching.join(parts)

    def _publish_error(self, task: Task, start: float, error: ServingError) -> None:
        """Tell a task that it ended in an error."""
        queue_ms, predict_ms = (start - task.offered) * 1000, (time.monotonic() - start) * 1000
        reply = Reply(task.uuid, self._version, queue_ms, predict_ms, error=error)
        taken = self._taken[task.uuid]
        try:
            self._transport.publish(taken, encode_reply(reply))
        except ServingError as worse:
            log.error("%s: %s", worse.code, worse, extra={"request_id": task.request_id})
            self._transport.drop(taken)

    def _measure(self, rows: int, took_s: float) -> None:
        self._last_predict = time.monotonic()
        self._pace.measure(rows, took_s)
        self._record.overhead_s = self._pace.overhead_s
        self._record.row_s = self._pace.row_s

    def _look_at_canary(self) -> None:
        if self._canary is None or not self._canary_s or time.monotonic() - self._last_predict < self._canary_s:
            return
        self._record.beat(busy=True)
        self._end_by(self._predict_timeout_s)
        try:
            self._canary.sing()
        except EngineError:
            raise
        except (Exception, *EXITS) as error:
            raise EngineError(f"the canary is wrong: the model raised {type(error).__name__}: {error}") from error
        finally:
            self._end_by(0)
        self._record.beat()
        self._last_predict = time.monotonic()


def load(
    settings: Settings,
    release: Release,
    transport: Transport,
    record: Record,
    quarantine: Quarantine | None = None,
    end_by: Callable[[int], None] = lambda seconds: None,
    batches: Batches | None = None,
    traces: "Traces | None" = None,
) -> Replica:
    """The replica of a release, its model loaded and warm."""
    start = time.monotonic()
    folder = ModelFolder.open(release.path, release.root, release.version)
    sentry.tag(model=folder.name, version=folder.version)
    sentry.tag(engine=engines.find(folder))
    engine = engines.load(folder, settings.threads_per_replica)
    max_batch_rows = engines.most_rows(settings.max_batch_rows, folder, engine)
    loaded = time.monotonic()
    others = engines.signatures(engine)
    default = next(iter(others))
    del others[default]
    card = ModelCard(
        folder.name,
        folder.version,
        engines.find(folder),
        folder.sampled(engine.signature),
        max_batch_rows,
        release.labels,
        default,
        others,
    )
    for name, signature in card.signatures.items():
        for side in (signature.inputs, signature.outputs):
            # a frame counts both in one byte
            if len(side) > 255 or any(len(spec.name.encode()) > 255 for spec in side) or len(name.encode()) > 255:
                raise ModelError(f"{folder.path} has more than 255 inputs or outputs, or a name of more than 255 bytes")
    replica = Replica(
        engine,
        card,
        transport,
        record,
        settings.batch_wait_ms,
        Canary(engine, folder.sample(engine.signature), folder.answer(engine.signature)),
        settings.canary_s,
        quarantine,
        end_by,
        settings.longest_predict_s,
        batches,
        traces,
    )
    replica.warm_up()
    log.info(
        "replica ready: %s version %d, loaded in %.1f s, warm-up %.1f s",
        folder.name,
        folder.version,
        loaded - start,
        time.monotonic() - loaded,
    )
    return replica
