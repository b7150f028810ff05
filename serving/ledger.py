"""Where a task stands, in memory that all processes share: at its thread's seat, with a replica, or offered again.

A ticket says where the frame of a task is.  It is on the queue, held by a replica, or at its own seat again;
transport.py tells which step writes where, and why none of them can lose it.

Made before the fork, and so shared.

Runs in:  both.
"""

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

# uuid, rows, seat, attempts, alone
_TICKET = struct.Struct("<16sIHBB")
TICKET_BYTES = _TICKET.size
# uuid and length of the frame
_HEAD = struct.Struct("<16sQ")
_NOBODY = bytes(16)
# the phase of a held ticket: 0 when its place is free, else this and how often this replica began to predict it
_HELD = 0x40
_PREDICTING = 0x80
_ATTEMPTS = 0x3F
DIGEST_BYTES = 24


class Ticket(NamedTuple):
    """Where a task's frame is, how often it has been predicted, and whether it must be predicted alone."""

    uuid: bytes
    rows: int
    seat: int
    attempts: int = 0
    alone: bool = False

    def encode(self) -> bytes:
        return _TICKET.pack(*self)

    @classmethod
    def decode(cls, item: bytes) -> "Ticket":
        uuid, rows, seat, attempts, alone = _TICKET.unpack(item)
        return cls(uuid, rows, seat, attempts, bool(alone))


class Taken(NamedTuple):
    """A ticket that a replica holds, the place where it is written down, and its frame."""

    place: int
    ticket: Ticket
    frame: bytes


class Seats:
    """The frames of those who wait.  Made before the fork; each seat is written by its own thread alone."""

    def __init__(self, seats: int, max_frame_bytes: int) -> None:
        self._rows_memory = mmap.mmap(-1, 4 * seats)
        # 0 where nobody waits
        self._rows = memoryview(self._rows_memory).cast("I")
        self._nobody = bytes(4 * seats)
        self._heads = mmap.mmap(-1, _HEAD.size * seats)
        # mapped, and used only where a frame has been
        self._stride = -(-max_frame_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._frames = mmap.mmap(-1, self._stride * seats)

    def sit(self, ticket: Ticket, frame: bytes) -> None:
        """Lay a frame down, and wait."""
        head, start = _HEAD.size * ticket.seat, self._stride * ticket.seat
        # whoever still reads the frame before this one sees that it is gone
        self._heads[head : head + 16] = _NOBODY
        self._frames[start : start + len(frame)] = frame
        self._heads[head : head + _HEAD.size] = _HEAD.pack(ticket.uuid, len(frame))
        self._rows[ticket.seat] = ticket.rows

    def leave(self, seat: int) -> None:
        """Wait no longer."""
        self._rows[seat] = 0

    def awaits(self, ticket: Ticket) -> bool:
        """Whether the thread that offered a ticket still waits."""
        head = _HEAD.size * ticket.seat
        return self._rows[ticket.seat] != 0 and self._heads[head : head + 16] == ticket.uuid

    def frame(self, ticket: Ticket) -> bytes | None:
        """The frame of a ticket, also when nobody waits for it any more; None when another lies at its seat."""
        head, start = _HEAD.size * ticket.seat, self._stride * ticket.seat
        uuid, length = _HEAD.unpack(self._heads[head : head + _HEAD.size])
        frame = self._frames[start : start + length]
        # and did while it was read
        return frame if uuid == ticket.uuid == self._heads[head : head + 16] else None

    def rows(self) -> int:
        """The rows of all tasks that somebody waits for."""
        return sum(self._rows)

    def empty(self) -> bool:
        return self._rows_memory[:] == self._nobody


class Held:
    """What one replica took and has not answered: written by it alone, read when it is dead."""

    def __init__(self, places: int) -> None:
        self._phases = mmap.mmap(-1, places)
        self._tickets = mmap.mmap(-1, places * TICKET_BYTES)
        # a uuid and the digest of its input, written by its thread when that leaves
        self._left = mmap.mmap(-1, places * (16 + DIGEST_BYTES))
        self._batch = memoryview(mmap.mmap(-1, 8)).cast("q")
        self._places = places

    def add(self, item: bytes) -> int:
        """Write a ticket down.  Returns its place, -1 when all are taken."""
        place = self._phases[:].find(0)
        if place >= 0:
            self._tickets[place * TICKET_BYTES : (place + 1) * TICKET_BYTES] = item
            self._phases[place] = _HELD
        return place

    @property
    def batch(self) -> int:
        """How many were predicted together, the last time."""
        return self._batch[0]

    @batch.setter
    def batch(self, tasks: int) -> None:
        self._batch[0] = tasks

    def begin(self, place: int) -> None:
        """It is predicted from now on, once more."""
        self._phases[place] = (self._phases[place] & _ATTEMPTS) + 1 | _HELD | _PREDICTING

    def end(self, place: int) -> None:
        """It is not predicted now, and not answered."""
        self._phases[place] &= ~_PREDICTING

    def wipe(self, place: int) -> None:
        self._phases[place] = 0

    def tickets(self) -> Iterator[tuple[int, Ticket, bool]]:
        """Place and ticket of all that is held, with the attempts so far, and whether it is predicted now."""
        phases = self._phases[:]
        for place, phase in enumerate(phases):
            if phase:
                ticket = Ticket.decode(self._tickets[place * TICKET_BYTES : (place + 1) * TICKET_BYTES])
                attempts = ticket.attempts + (phase & _ATTEMPTS)
                yield place, ticket._replace(attempts=attempts), bool(phase & _PREDICTING)

    def leave_digest(self, place: int, uuid: bytes, digest: bytes) -> None:
        """Its thread leaves while it is predicted: should that never end, its frame will be gone by then."""
        start = place * (16 + DIGEST_BYTES)
        # the uuid last: half a digest is not taken for one
        self._left[start + 16 : start + 16 + DIGEST_BYTES] = digest
        self._left[start : start + 16] = uuid

    def left_digest(self, place: int, uuid: bytes) -> bytes | None:
        """The digest that the thread of a task has left."""
        start = place * (16 + DIGEST_BYTES)
        left = self._left[start : start + 16 + DIGEST_BYTES]
        return left[16:] if left[:16] == uuid else None

    def alone(self) -> bool:
        """Whether a task is held that must be predicted alone."""
        return any(ticket.alone for _, ticket, _ in self.tickets())


class Again:
    """Tickets that are offered again, or must be predicted alone, each at its own seat: there is always room."""

    INNOCENT, ALONE = 1, 2

    def __init__(self, seats: int) -> None:
        self._flags = mmap.mmap(-1, seats)
        self._tickets = mmap.mmap(-1, seats * TICKET_BYTES)

    def put(self, ticket: Ticket) -> bool:
        start = ticket.seat * TICKET_BYTES
        # what lay here before is not read while it changes
        self._flags[ticket.seat] = 0
        self._tickets[start : start + TICKET_BYTES] = ticket.encode()
        self._flags[ticket.seat] = self.ALONE if ticket.alone else self.INNOCENT
        return True

    def wipe(self, seat: int) -> None:
        self._flags[seat] = 0

    def any(self, kind: int) -> bool:
        return self._flags[:].find(kind) >= 0

    def tickets(self) -> list[Ticket]:
        """Those that must be predicted alone come last."""
        flags = self._flags[:]
        seats = [seat for kind in (self.INNOCENT, self.ALONE) for seat, flag in enumerate(flags) if flag == kind]
        return [Ticket.decode(self._tickets[seat * TICKET_BYTES : (seat + 1) * TICKET_BYTES]) for seat in seats]
