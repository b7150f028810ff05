"""Where a task stands, in memory that all processes share: at its thread's seat, with a replica, or offered again.

A ticket says where the frame of a task is.  It is at its seat, whose number is on the queue, until a replica claims and
holds it, or among what is offered again; transport.py tells which step writes where, and why none of them can lose it.

Made before the fork, and so shared.

Runs in:  both.
"""

import mmap
import struct
import threading
import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

# uuid, rows, seat, attempts, alone, version
_TICKET = struct.Struct("<16sIHBBq")
TICKET_BYTES = _TICKET.size
# uuid, length of the frame, alone
_HEAD = struct.Struct("<16sIB3x")
_LENGTH = struct.Struct("<I")
_NOBODY = bytes(16)
# the version of a task that names none
ANY = -1
# the phase of a held ticket: 0 when its place is free, else this and how often this replica began to predict it
_HELD = 0x40
_PREDICTING = 0x80
_ATTEMPTS = 0x3F
DIGEST_BYTES = 24


def stride(most_bytes: int) -> int:
    """How far from each other places of so many bytes lie: whole pages."""
    return -(-most_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


class Ticket(NamedTuple):
    """Where a task's frame is, how often it has been predicted, and whether it must be predicted alone.

    version: of the model that must predict it, ANY where any that serves by default may.
    """

    uuid: bytes
    rows: int
    seat: int
    attempts: int = 0
    alone: bool = False
    version: int = ANY

    def encode(self) -> bytes:
        return _TICKET.pack(*self)

    @classmethod
    def decode(cls, item: bytes) -> "Ticket":
        uuid, rows, seat, attempts, alone, version = _TICKET.unpack(item)
        return cls(uuid, rows, seat, attempts, bool(alone), version)


class Taken(NamedTuple):
    """A ticket that a replica holds, the place where it is written down, and its frame."""

    place: int
    ticket: Ticket
    frame: bytes


class Seats:
    """The frames of those who wait.  Made before the fork.

    A seat is written by its own thread, but for what keeps the queue in order: queued, by whoever puts the seat onto
    the queue or takes it off; claimed, the uuid of the last task that left the queue for good, under the lock.
    """

    def __init__(self, seats: int, max_frame_bytes: int) -> None:
        self.count = seats
        self._rows_memory = mmap.mmap(-1, 4 * seats)
        # 0 where nobody waits
        self._rows = memoryview(self._rows_memory).cast("I")
        self._nobody = bytes(4 * seats)
        versions = mmap.mmap(-1, 8 * seats)
        versions[:] = struct.pack("q", ANY) * seats
        self._versions = memoryview(versions).cast("q")
        # 1 from before a task that names one waits there until its thread has left
        self._naming = mmap.mmap(-1, seats)
        self._heads = mmap.mmap(-1, _HEAD.size * seats)
        # mapped, and used only where a frame has been
        self._stride = stride(max_frame_bytes)
        self._frames = mmap.mmap(-1, self._stride * seats)
        self._queued = mmap.mmap(-1, seats)
        self._claimed = mmap.mmap(-1, 16 * seats)
        self._since = memoryview(mmap.mmap(-1, 8 * seats)).cast("d")
        self._mutex = threading.Lock()

    def sit(self, ticket: Ticket, frame: bytes) -> None:
        """Lay a frame down, and wait."""
        head, start = _HEAD.size * ticket.seat, self._stride * ticket.seat
        # whoever still reads the frame before this one sees that it is gone
        self._heads[head : head + 16] = _NOBODY
        self._frames[start : start + len(frame)] = frame
        self._versions[ticket.seat] = ticket.version
        if ticket.version != ANY:
            self._naming[ticket.seat] = 1
        written = _HEAD.pack(ticket.uuid, len(frame), ticket.alone)
        # the uuid last: all that is read with it is its own
        self._heads[head + 16 : head + _HEAD.size] = written[16:]
        self._heads[head : head + 16] = ticket.uuid
        self._since[ticket.seat] = time.monotonic()
        self._rows[ticket.seat] = ticket.rows

    def leave(self, seat: int) -> None:
        """Wait no longer."""
        self._rows[seat] = 0
        if self._naming[seat]:
            self._naming[seat] = 0

    def awaits(self, ticket: Ticket) -> bool:
        """Whether the thread that offered a ticket still waits."""
        head = _HEAD.size * ticket.seat
        return self._rows[ticket.seat] != 0 and self._heads[head : head + 16] == ticket.uuid

    def frame(self, ticket: Ticket) -> bytes | None:
        """The frame of a ticket, also when nobody waits for it any more; None when another lies at its seat."""
        head, start = _HEAD.size * ticket.seat, self._stride * ticket.seat
        uuid, length, _ = _HEAD.unpack(self._heads[head : head + _HEAD.size])
        frame = self._frames[start : start + length]
        # and did while it was read
        return frame if uuid == ticket.uuid == self._heads[head : head + 16] else None

    def rows(self, versions: Collection[int] | None = None) -> int:
        """The rows of all tasks that somebody waits for, or of those that name one of some versions (ANY: none)."""
        if versions is None or (ANY in versions and not self.naming()):
            return sum(self._rows)
        return sum(rows for rows, version in zip(self._rows, self._versions, strict=True) if version in versions)

    def taken(self, seats: range) -> int:
        """At how many of these seats somebody waits."""
        return len(seats) - self._rows[seats.start : seats.stop].tolist().count(0)

    def empty(self) -> bool:
        return self._rows_memory[:] == self._nobody

    def waiting(self) -> dict[bytes, float]:
        """The tasks that somebody waits for, and since when."""
        seats = [seat for seat, rows in enumerate(self._rows.tolist()) if rows]
        return {self._heads[_HEAD.size * seat : _HEAD.size * seat + 16]: self._since[seat] for seat in seats}

    # ---- the queue of seats

    def enqueue(self, seat: int) -> bool:
        """Whether the thread that sat down has to push its seat: not where it is queued since an earlier task."""
        if self._queued[seat]:
            # whoever takes it off right now looks at the seat after that: one of both sees the other
            self.fence()
            if self._queued[seat]:
                return False
        self._queued[seat] = 1
        return True

    def queued(self, seat: int) -> bool:
        """Whether a seat is on the queue."""
        return self._queued[seat] != 0

    def dequeue(self, seat: int) -> Ticket | None:
        """The seat is off the queue.  Returns the task that waits there, unless it was claimed before.  Locked."""
        self._queued[seat] = 0
        self.fence()
        return self.offered(seat)

    def offered(self, seat: int) -> Ticket | None:
        """The task that waits at a seat and has not been claimed.  Locked."""
        # the head before the rows: while it is written there are none
        head = self._heads[_HEAD.size * seat : _HEAD.size * (seat + 1)]
        rows = self._rows[seat]
        uuid, _, alone = _HEAD.unpack(head)
        if not rows or uuid == self._claimed[16 * seat : 16 * (seat + 1)]:
            return None
        return Ticket(uuid, rows, seat, 0, bool(alone), self._versions[seat])

    def naming(self) -> bool:
        """Whether any task that somebody waits for names a version."""
        return self._naming.find(b"\1") >= 0

    def named(self, first: int) -> list[int]:
        """The seats of tasks that name a version, beginning with a certain one."""
        naming, seats, seat = self._naming[:], [], -1
        while (seat := naming.find(1, seat + 1)) >= 0:
            seats.append(seat)
        return sorted(seats, key=lambda seat: seat < first)

    def claim(self, ticket: Ticket) -> None:
        """What stands somewhere else is no longer offered by its seat.  Locked."""
        self._claimed[16 * ticket.seat : 16 * (ticket.seat + 1)] = ticket.uuid

    def mark_queued(self, seats: Collection[int]) -> None:
        """These are on the queue, and no others.  Locked."""
        for seat, queued in enumerate(self._queued[:]):
            if queued != (seat in seats):
                self._queued[seat] = seat in seats
        self.fence()

    def fence(self) -> None:
        """What was written before is seen by all before anything is read after."""
        # by the locked instruction that a mutex takes on x86; on a processor with weaker order it is likely, not sure
        with self._mutex:
            pass


class Replies:
    """What each replica answered each seat, the last time.  Made before the fork.

    A replica writes to its own, and whoever recovers it once it is dead; nobody takes anything away.  So a reply that
    comes too late never lies where another one is waited for.
    """

    def __init__(self, seats: int, replicas: int, max_reply_bytes: int) -> None:
        self._replicas = replicas
        self._uuids = mmap.mmap(-1, 16 * seats * replicas)
        self._lengths = mmap.mmap(-1, 4 * seats * replicas)
        # mapped, and used only where a reply has been
        self._stride = stride(max_reply_bytes)
        self._data = mmap.mmap(-1, self._stride * seats * replicas)

    def put(self, ticket: Ticket, replica: int, reply: bytes) -> None:
        """Lay down what a replica answers."""
        place = ticket.seat * self._replicas + replica
        start = place * self._stride
        self._lengths[4 * place : 4 * place + 4] = _LENGTH.pack(len(reply))
        self._data[start : start + len(reply)] = reply
        # last, and x86 lets others see it so: what is found with it is whole
        self._uuids[16 * place : 16 * (place + 1)] = ticket.uuid

    def find(self, ticket: Ticket) -> bytes | None:
        """The reply to a task, whoever left it."""
        first = ticket.seat * self._replicas
        at = self._uuids[16 * first : 16 * (first + self._replicas)].find(ticket.uuid)
        if at % 16:
            return None
        place = first + at // 16
        (length,) = _LENGTH.unpack(self._lengths[4 * place : 4 * place + 4])
        return self._data[place * self._stride : place * self._stride + length]


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
        self._none = bytes(seats)

    def put(self, ticket: Ticket) -> None:
        start = ticket.seat * TICKET_BYTES
        # what lay here before is not read while it changes
        self._flags[ticket.seat] = 0
        self._tickets[start : start + TICKET_BYTES] = ticket.encode()
        self._flags[ticket.seat] = self.ALONE if ticket.alone else self.INNOCENT

    def wipe(self, seat: int) -> None:
        self._flags[seat] = 0

    def empty(self) -> bool:
        return self._flags[:] == self._none

    def tickets(self) -> list[Ticket]:
        """Those that must be predicted alone come last."""
        flags = self._flags[:]
        seats = [seat for kind in (self.INNOCENT, self.ALONE) for seat, flag in enumerate(flags) if flag == kind]
        return [Ticket.decode(self._tickets[seat * TICKET_BYTES : (seat + 1) * TICKET_BYTES]) for seat in seats]
