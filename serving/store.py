"""The board: what each replica says of itself, in memory shared before the fork.

Each record has one writer, the replica itself, and outlives it: a successor finds how often its predecessors failed.
Numbers are aligned and 8 bytes wide; a text carries its checksum, so that a reader never takes half of one.

Runs in:  both.
Units:    seconds, absolute, time.monotonic().
"""

import json
import mmap
import time
import zlib
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

from serving.model import ModelCard

_NUMBERS = 9
_CARD_BYTES = 65536
_ERROR_BYTES = 2048
_TEXT_HEAD = 8
_RECORD_BYTES = 8 * _NUMBERS + _CARD_BYTES + _ERROR_BYTES


class State(IntEnum):
    """What a replica is doing."""

    STARTING = 0
    LOADING = 1
    READY = 2
    PAUSED = 3  # the last load failed; the next follows after a pause
    FAILED = 4  # load_attempts failed one after the other; retried at the longest pause
    DRAINING = 5


@dataclass(frozen=True)
class ReplicaStatus:
    """One replica as /readyz shows it."""

    id: int
    pid: int
    state: str
    ready: bool
    version: int | None
    heartbeat_age_s: float | None
    busy_s: float
    failures: int
    last_error: str = field(default="")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Record:
    """One replica's part of the board.  Only that replica writes to it."""

    # the numbers: generation of the card, pid, state, heartbeat, busy since (0: idle), failed loads, no load before,
    # ever ready, given up
    _GENERATION, _PID, _STATE, _HEARTBEAT, _BUSY, _FAILURES, _NOT_BEFORE, _EVER_READY, _GIVEN_UP = range(_NUMBERS)

    def __init__(self, memory: memoryview) -> None:
        numbers = memory[: 8 * _NUMBERS]
        self._integers = numbers.cast("q")
        self._seconds = numbers.cast("d")
        self._card = memory[8 * _NUMBERS : 8 * _NUMBERS + _CARD_BYTES]
        self._error = memory[8 * _NUMBERS + _CARD_BYTES :]

    def start(self, pid: int) -> None:
        """A new process has taken over this record, and nothing its predecessor did is true of it."""
        if self.state not in (State.PAUSED, State.FAILED):
            self.state = State.STARTING
        self._integers[self._PID] = pid
        self._seconds[self._BUSY] = 0.0
        self._seconds[self._HEARTBEAT] = time.monotonic()

    def beat(self, busy: bool = False) -> None:
        """Say that the replica's loop goes round, and whether it is about to predict."""
        now = time.monotonic()
        self._seconds[self._HEARTBEAT] = now
        self._seconds[self._BUSY] = now if busy else 0.0

    def describe(self, card: ModelCard) -> None:
        """Publish the model's card.  ValueError when it is larger than the board's place for it."""
        _write_text(self._card, json.dumps(card.as_dict()).encode())
        # never the same twice, whatever wrote before
        self._integers[self._GENERATION] = time.monotonic_ns()

    def fail(self, error: str, pause_s: float, for_good: bool = False) -> None:
        """Count a failed load, with its error and the pause before the next; for_good: nobody need wait for that."""
        _write_text(self._error, error.encode(errors="replace")[: _ERROR_BYTES - _TEXT_HEAD])
        self._integers[self._FAILURES] += 1
        self._seconds[self._NOT_BEFORE] = time.monotonic() + pause_s
        self._integers[self._GIVEN_UP] = for_good
        self.state = State.FAILED if for_good else State.PAUSED

    def succeed(self) -> None:
        """The model is loaded and warm."""
        self._integers[self._FAILURES] = 0
        self._integers[self._EVER_READY] = 1
        self._integers[self._GIVEN_UP] = 0
        self.state = State.READY

    @property
    def generation(self) -> int:
        return self._integers[self._GENERATION]

    @property
    def state(self) -> State:
        return State(self._integers[self._STATE])

    @state.setter
    def state(self, state: State) -> None:
        self._integers[self._STATE] = state

    @property
    def failures(self) -> int:
        return self._integers[self._FAILURES]

    @property
    def not_before(self) -> float:
        return self._seconds[self._NOT_BEFORE]

    @property
    def ever_ready(self) -> bool:
        return bool(self._integers[self._EVER_READY])

    @property
    def hopeless(self) -> bool:
        """Never ready, and nobody expects it to become so, though it is tried again."""
        return bool(self._integers[self._GIVEN_UP]) and not self.ever_ready

    @property
    def last_error(self) -> str:
        return (_read_text(self._error) or b"").decode(errors="replace")

    def card(self) -> ModelCard | None:
        """The card of the model, or None while there is none (or half of one)."""
        text = _read_text(self._card) if self.generation else None
        return ModelCard.from_dict(json.loads(text)) if text else None

    def status(self, id: int, now: float, heartbeat_timeout_s: float, deadline_s: float) -> ReplicaStatus:
        """What the record says at a moment; ready means ready."""
        state = self.state
        heartbeat, busy = self._seconds[self._HEARTBEAT], self._seconds[self._BUSY]
        busy_s = max(0.0, now - busy) if busy else 0.0
        # in the middle of a predict nothing beats; past the deadline of its tasks it counts as hung
        fresh = now - heartbeat < (max(deadline_s, heartbeat_timeout_s) if busy else heartbeat_timeout_s)
        card = self.card()
        return ReplicaStatus(
            id=id,
            pid=self._integers[self._PID],
            state=state.name.lower(),
            ready=state is State.READY and fresh,
            version=card.version if card else None,
            heartbeat_age_s=round(max(0.0, now - heartbeat), 3) if heartbeat else None,
            busy_s=round(busy_s, 3),
            failures=self.failures,
            last_error=self.last_error,
        )


class Board:
    """The records of all replicas.  Made before the fork, and so shared."""

    def __init__(self, replicas: int, heartbeat_timeout_s: float, deadline_s: float) -> None:
        self._memory = memoryview(mmap.mmap(-1, replicas * _RECORD_BYTES))
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._deadline_s = deadline_s
        self.records = [
            Record(self._memory[start : start + _RECORD_BYTES])
            for start in range(0, replicas * _RECORD_BYTES, _RECORD_BYTES)
        ]
        self._card: ModelCard | None = None
        self._generation = 0

    def card(self) -> ModelCard | None:
        """The card written last, None before any replica has loaded its model."""
        newest = max(self.records, key=lambda record: record.generation)
        # read before the card: one that is written meanwhile is then read the next time
        generation = newest.generation
        if generation != self._generation and (card := newest.card()):
            self._card, self._generation = card, generation
        return self._card

    def statuses(self, now: float | None = None) -> list[ReplicaStatus]:
        """The status of each replica."""
        moment = time.monotonic() if now is None else now
        return [
            record.status(id, moment, self._heartbeat_timeout_s, self._deadline_s)
            for id, record in enumerate(self.records, start=1)
        ]


def _write_text(memory: memoryview, text: bytes) -> None:
    if len(text) > len(memory) - _TEXT_HEAD:
        raise ValueError(f"{len(text)} bytes do not fit {len(memory) - _TEXT_HEAD}")
    head = len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little")
    memory[: _TEXT_HEAD + len(text)] = head + text


def _read_text(memory: memoryview) -> bytes | None:
    length = int.from_bytes(memory[:4], "little")
    text = bytes(memory[_TEXT_HEAD : _TEXT_HEAD + length])
    return text if zlib.crc32(text) == int.from_bytes(memory[4:8], "little") else None
