"""The board: what each replica says of itself, in memory shared before the fork.

Each record has one writer, its own process, and outlives it; once that is dead, whoever buries it writes, under the
transport's lock.  Numbers are aligned and 8 bytes wide; a text carries its checksum, so that a reader never takes half
of one.

A record has a post while its process is to be a replica; there is one record more than posts, and its process is the
spare.

Runs in:  both.
Units:    seconds, absolute, time.monotonic(); memory in bytes.
"""

import json
import math
import mmap
import time
import zlib
from collections.abc import MutableSequence, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from serving.ledger import ANY
from serving.memory import Memory
from serving.model import ModelCard

_CARD_BYTES = 65536
_TEXT_BYTES = 2048
_TEXT_HEAD = 8


class State(IntEnum):
    """What a process is doing."""

    STARTING = 0
    LOADING = 1
    READY = 2
    PAUSED = 3  # the last load failed, or the process died before it did anything; the next follows after a pause
    FAILED = 4  # load_attempts failed one after the other; retried at the longest pause
    DRAINING = 5
    SPARE = 6
    GONE = 7  # ended or died, and was seen to be


class Death(StrEnum):
    """What a process died of."""

    KILLED = "killed"  # by somebody else
    OUT_OF_MEMORY = "out_of_memory"  # killed by the kernel
    CRASHED = "crashed"  # a signal of its own, as a segmentation fault
    EXITED = "exited"
    HUNG = "hung"  # killed, for it predicted for too long
    UNRESPONSIVE = "unresponsive"  # killed, for it was stopped, or said nothing
    LOADING = "loading"  # killed, for it loaded for too long
    UNKNOWN = "unknown"  # somebody else was told


@dataclass(frozen=True)
class ReplicaStatus:
    """One process as /readyz shows it."""

    id: int
    pid: int
    state: str
    ready: bool
    reason: str
    version: int | None
    labels: tuple[str, ...]
    default: bool
    release: int
    heartbeat_age_s: float | None
    busy_s: float
    tasks: int
    rss_mb: int
    failures: int
    crashes: int
    last_error: str
    last_death: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _number(index: int, doc: str) -> Any:
    return property(
        lambda self: self._integers[index], lambda self, value: self._integers.__setitem__(index, value), None, doc
    )


def _second(index: int, doc: str) -> Any:
    return property(
        lambda self: self._seconds[index], lambda self, value: self._seconds.__setitem__(index, value), None, doc
    )


class History:
    """What all processes that had a record have done, those of the uWSGI before too (memory.py)."""

    loads = _number(0, "which succeeded")
    failed_loads = _number(1, "")
    _FIRST_DEATH = 2
    NUMBERS = _FIRST_DEATH + len(Death)

    def __init__(self, integers: MutableSequence[int] | memoryview) -> None:
        self._integers = integers

    @classmethod
    def sum(cls, some: Sequence["History"]) -> "History":
        return cls([sum(numbers) for numbers in zip(*(one._integers for one in some), strict=True)])

    def bury(self, death: Death) -> None:
        self._integers[self._FIRST_DEATH + list(Death).index(death)] += 1

    def deaths(self) -> dict[Death, int]:
        """By what they died of."""
        return dict(zip(Death, self._integers[self._FIRST_DEATH :], strict=True))


class Record:
    """One process's part of the board."""

    stamp = _number(0, "of the card; never the same twice, 0 before there is one")
    pid = _number(1, "0 when the process is gone, and was seen to be")
    _state = _number(2, "")
    heartbeat = _second(3, "when the loop last went round")
    busy_since = _second(4, "when the present predict began; 0.0 when idle")
    failures = _number(5, "failed loads, one after the other")
    not_before = _second(6, "when the next load may begin")
    ever_ready = _number(7, "1 once a load has succeeded")
    _given_up = _number(8, "")
    post = _number(9, "1 while its process is to be a replica")
    release = _number(10, "which one of the plan it was started for")
    tasks = _number(11, "answered since the load")
    rss = _number(12, "bytes")
    worn = _number(13, "1 when it wants to be replaced")
    # predict takes overhead_s + rows x row_s
    overhead_s = _second(14, "of one predict")
    row_s = _second(15, "of one row")
    batch_rows = _number(16, "rows of one predict at the most")
    crashes = _number(17, "deaths in service, one after the other, without a single answer")
    ready_at = _second(18, "when the load succeeded")
    version = _number(19, "of the model that it has loaded, or is to load; -1 before that is known")
    default = _number(20, "1 when it answers requests that name no version")
    load_s = _second(21, "what the last load took")
    _NUMBERS = 22
    BYTES = 8 * _NUMBERS + _CARD_BYTES + 2 * _TEXT_BYTES

    def __init__(self, memory: memoryview, history: History | None = None) -> None:
        self.history = history or History([0] * History.NUMBERS)
        numbers = memory[: 8 * self._NUMBERS]
        self._integers = numbers.cast("q")
        self._seconds = numbers.cast("d")
        texts = memory[8 * self._NUMBERS :]
        self._card = texts[:_CARD_BYTES]
        self._error = texts[_CARD_BYTES : _CARD_BYTES + _TEXT_BYTES]
        self._death = texts[_CARD_BYTES + _TEXT_BYTES :]

    def start(self, pid: int) -> None:
        """A new process has taken over this record, and nothing its predecessor did is true of it."""
        if self.state not in (State.PAUSED, State.FAILED):
            self.state = State.STARTING
        self.pid = pid
        self.busy_since = 0.0
        self.tasks = self.rss = self.worn = 0
        self.heartbeat = time.monotonic()

    def beat(self, busy: bool = False) -> None:
        """Say that the process's loop goes round, and whether it is about to predict."""
        now = time.monotonic()
        self.heartbeat = now
        self.busy_since = now if busy else 0.0

    def describe(self, card: ModelCard) -> None:
        """Publish the model's card, with samples if they fit.  ValueError when the board has no room for it."""
        text = json.dumps(card.as_dict()).encode()
        if len(text) > _CARD_BYTES - _TEXT_HEAD:
            text = json.dumps(card.as_dict(samples=False)).encode()
        _write_text(self._card, text)
        self.batch_rows, self.version = card.max_batch_rows, card.version
        # never the same twice, whatever wrote before
        self.stamp = time.monotonic_ns()

    def fail(self, error: str, pause_s: float, for_good: bool = False) -> None:
        """Count a failed load, with its error and the pause before the next; for_good: nobody need wait for that."""
        self.last_error = error
        self.failures += 1
        self.history.failed_loads += 1
        self.not_before = time.monotonic() + pause_s
        self._given_up = int(for_good)
        self.state = State.FAILED if for_good else State.PAUSED

    def succeed(self) -> None:
        """The model is loaded and warm."""
        self.failures = 0
        self.history.loads += 1
        self.ever_ready = 1
        self._given_up = 0
        self.ready_at = time.monotonic()
        self.state = State.READY

    def work(self, tasks: int) -> None:
        """Count answered tasks: whatever its predecessors died of, this one is of use."""
        self.tasks += tasks
        if self.crashes:
            self.crashes = 0

    def crash(self, pause_s: float) -> None:
        """Count a death in service that came before any answer; its successor pauses, and keeps the post."""
        self.crashes += 1
        self.not_before = time.monotonic() + pause_s
        self.state = State.PAUSED
        self.pid = 0
        self.busy_since = 0.0

    def bury(self, death: Death, how: str) -> None:
        """Count what its process died of, and say how."""
        self.history.bury(death)
        self.last_death = how

    def retire(self) -> None:
        """Its process is gone, or as good as: the post is free."""
        self.state = State.GONE
        self.post = self.pid = 0
        self.busy_since = 0.0

    @property
    def state(self) -> State:
        return State(self._state)

    @state.setter
    def state(self, state: State) -> None:
        self._state = state

    @property
    def serves(self) -> bool:
        return bool(self._state == State.READY)

    @property
    def hopeless(self) -> bool:
        """Never ready, and nobody expects it to become so, though it is tried again."""
        return bool(self._given_up) and not self.ever_ready

    @property
    def last_error(self) -> str:
        """Of the last load that failed."""
        return (_read_text(self._error) or b"").decode(errors="replace")

    @last_error.setter
    def last_error(self, text: str) -> None:
        _write_text(self._error, text.encode(errors="replace")[: _TEXT_BYTES - _TEXT_HEAD])

    @property
    def last_death(self) -> str:
        """How the last process here died."""
        return (_read_text(self._death) or b"").decode(errors="replace")

    @last_death.setter
    def last_death(self, text: str) -> None:
        _write_text(self._death, text.encode(errors="replace")[: _TEXT_BYTES - _TEXT_HEAD])

    def card(self) -> ModelCard | None:
        """The card of the model, or None while there is none (or half of one)."""
        text = _read_text(self._card) if self.stamp else None
        return ModelCard.from_dict(json.loads(text)) if text else None

    def fresh(self, now: float, heartbeat_timeout_s: float, predict_timeout_s: float) -> bool:
        """Whether it lives, as far as its heartbeat tells: in the middle of a predict nothing beats."""
        # in this order: whoever ends a predict beats first
        busy = self.busy_since
        age = now - self.heartbeat
        return bool(age < (predict_timeout_s + heartbeat_timeout_s if busy else heartbeat_timeout_s))

    def done_s(self, now: float) -> float:
        """How much of the present predict is done, as far as it goes by its pace."""
        since = self.busy_since
        return float(min(max(0.0, now - since), self.overhead_s + self.batch_rows * self.row_s)) if since else 0.0


class Service(NamedTuple):
    """Those who serve the same tasks, all together: their model, how many they are, and the mean of their paces.

    versions: which ones these tasks name, ANY for none.
    """

    card: ModelCard | None
    replicas: int
    versions: set[int]
    batch_rows: int
    overhead_s: float
    row_s: float
    # of the present predicts
    done_s: float

    def drain_s(self, rows: int) -> float:
        """How long they need for so many rows; 0.0 when none serves, as nobody knows."""
        if not self.replicas:
            return 0.0
        share = rows / self.replicas
        return max(0.0, math.ceil(share / self.batch_rows) * self.overhead_s + share * self.row_s - self.done_s)


class Board:
    """The records of all replicas and of the spare.  Made before the fork, and so shared."""

    oom_told = _number(0, "how many of the kernel's kills for want of memory are no news; -1 before they are counted")

    def __init__(
        self, replicas: int, heartbeat_timeout_s: float, predict_timeout_s: float, known: Memory | None = None
    ) -> None:
        self._memory = memoryview(mmap.mmap(-1, (replicas + 1) * Record.BYTES))
        known = known or Memory()
        self._sides = known.sides
        told = memoryview(known.map("history", list(Death), 8 * History.NUMBERS, replicas + 1)).cast("q")
        self._histories = [
            History(told[start : start + History.NUMBERS]) for start in range(0, len(told), History.NUMBERS)
        ]
        self._integers = memoryview(mmap.mmap(-1, 8)).cast("q")
        self.oom_told = -1
        self._timeouts_s = heartbeat_timeout_s, predict_timeout_s
        self.replicas = replicas
        self.records = [
            Record(self._memory[number * Record.BYTES :][: Record.BYTES], self._histories[known.place(number)])
            for number in range(replicas + 1)
        ]
        for record in self.records:
            record.default, record.version = 1, ANY
        for record in self.records[:replicas]:
            record.post = 1
        self._card: ModelCard | None = None
        self._stamp = 0
        self._versions: tuple[list[int], dict[str, int]] = [], {}

    def card(self) -> ModelCard | None:
        """The card written last, None before any replica has loaded its model."""
        newest = max(self.records, key=lambda record: int(record.stamp))
        # read before the card: one that is written meanwhile is then read the next time
        stamp = newest.stamp
        if stamp != self._stamp and (card := newest.card()):
            self._card, self._stamp = card, stamp
        return self._card

    def histories(self) -> list[History]:
        """By number, those of all uWSGIs added up."""
        pairs = zip(*(self._histories[side :: self._sides] for side in range(self._sides)), strict=True)
        return [History.sum(both) for both in pairs]

    def ready(self, now: float | None = None) -> list[Record]:
        """The records of the replicas that serve."""
        moment = time.monotonic() if now is None else now
        return [record for record in self.records if record.serves and self.fresh(record, moment)]

    def fresh(self, record: Record, now: float) -> bool:
        """Whether a process lives, as far as its heartbeat tells."""
        return record.fresh(now, *self._timeouts_s)

    def posts(self) -> list[Record]:
        """The records whose processes are, or will be, replicas."""
        return [record for record in self.records if record.post]

    def hopeless(self, until: float, version: int = ANY) -> bool:
        """Whether each replica of a version, or that serves by default, pauses after a failure for longer than that."""
        posts = [record for record in self.posts() if (record.default if version == ANY else record.version == version)]
        return bool(posts) and all(
            record.state in (State.PAUSED, State.FAILED) and record.not_before > until for record in posts
        )

    def failed(self) -> bool:
        """Whether no replica that serves by default has ever been ready, and nobody expects one to become so."""
        posts = [record for record in self.posts() if record.default]
        return bool(posts) and all(record.hopeless for record in posts)

    def service(self, version: int = ANY) -> Service:
        """What those who serve a version can do now; without one, or where they do, those who serve by default."""
        now = time.monotonic()
        ready = self.ready(now)
        own = [record for record in ready if record.version == version] if version != ANY else []
        # they take what names their version from the same queue as what names none
        default = version == ANY or any(record.default for record in own)
        ready = [record for record in ready if record.default] if default else own
        versions = {ANY if default else version}
        for record in ready:
            versions.add(record.version)
        count = len(ready) or 1
        return Service(
            self.card(),
            len(ready),
            versions,
            max(1, min((record.batch_rows for record in ready), default=1)),
            sum(record.overhead_s for record in ready) / count,
            sum(record.row_s for record in ready) / count,
            sum(record.done_s(now) for record in ready) / count,
        )

    def versions(self) -> dict[str, int]:
        """The versions of those who serve, by their numbers and by their labels."""
        ready = self.ready()
        stamps = [record.stamp for record in ready]
        if stamps != self._versions[0]:
            cards = [card for record in ready if (card := record.card())]
            if len(cards) < len(ready):
                # one is being written: what was known before is true of the others
                return self._versions[1]
            names = {label: card.version for card in cards for label in card.labels}
            self._versions = stamps, names | {str(card.version): card.version for card in cards}
        return self._versions[1]

    def has_served(self, version: int) -> bool:
        """Whether any replica has loaded a version, though it may have died."""
        return any(card.version == version for record in self.records if (card := record.card()))

    def statuses(self, now: float | None = None) -> list[ReplicaStatus]:
        """The status of each process, the spare's too."""
        moment = time.monotonic() if now is None else now
        return [self._status(id, record, moment) for id, record in enumerate(self.records, start=1)]

    def _status(self, id: int, record: Record, now: float) -> ReplicaStatus:
        state, busy_since, heartbeat, card = record.state, record.busy_since, record.heartbeat, record.card()
        return ReplicaStatus(
            id=id,
            pid=record.pid,
            state=state.name.lower(),
            ready=state is State.READY and self.fresh(record, now),
            reason=self._reason(record, now),
            version=record.version if record.version >= 0 else None,
            labels=card.labels if card and record.serves else (),
            default=bool(record.default),
            release=record.release,
            heartbeat_age_s=round(max(0.0, now - heartbeat), 3) if heartbeat else None,
            busy_s=round(max(0.0, now - busy_since), 3) if busy_since else 0.0,
            tasks=record.tasks,
            rss_mb=record.rss >> 20,
            failures=record.failures,
            crashes=record.crashes,
            last_error=record.last_error,
            last_death=record.last_death,
        )

    def _reason(self, record: Record, now: float) -> str:
        """Why it is not ready; empty when it is, and for the spare."""
        state = record.state
        if state in (State.READY, State.SPARE):
            return "" if self.fresh(record, now) else f"it has said nothing for {now - record.heartbeat:.1f} s"
        if state in (State.PAUSED, State.FAILED):
            left_s = max(0.0, record.not_before - now)
            cause = record.last_error if record.failures else f"the process {record.last_death}"
            return f"{cause}; the next load is in {left_s:.0f} s"
        return "its process is gone" if state is State.GONE else f"it is {state.name.lower()}"


def _write_text(memory: memoryview, text: bytes) -> None:
    if len(text) > len(memory) - _TEXT_HEAD:
        raise ValueError(f"{len(text)} bytes do not fit {len(memory) - _TEXT_HEAD}")
    head = len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little")
    memory[: _TEXT_HEAD + len(text)] = head + text


def _read_text(memory: memoryview) -> bytes | None:
    length = int.from_bytes(memory[:4], "little")
    text = bytes(memory[_TEXT_HEAD : _TEXT_HEAD + length])
    return text if zlib.crc32(text) == int.from_bytes(memory[4:8], "little") else None
