"""The way of a task from a worker to a replica and back, and what no death may lose on it.

A worker's thread has a seat: the place in shared memory where its frame lies and where it sleeps.  It offers: the frame
goes to the seat, and a ticket, which says where the frame is, onto the queue.  A replica takes: it writes the ticket
down among what it holds, and only then takes it off the queue.  It publishes a reply, which wakes the seat, and only
then wipes the ticket.  So there is no moment at which a task that somebody waits for stands nowhere:

    offered          the ticket is on the queue
    held             the ticket is in the memory of one replica, with how often it began to predict it
    offered again    its replica died: the ticket lies at its own seat, ahead of the queue; a suspect, which must be
                     predicted alone, is offered there in the first place

When a replica is dead, whoever notices recovers what it held.  A task that the dead replica was predicting is offered
again alone; one that was predicted max_attempts times is answered, and guilty if it was alone.  The seat is the one
truth on whether anybody waits: a ticket whose uuid is not at its seat any more is dropped wherever it turns up.

Everything here happens under one lock, which a killed process gives back; each step leaves the memory such that a
kill behind it loses nothing.  A subclass brings the queue, the lock, the replies and the sleep.

Runs in:  both.
Shapes:   frames are opaque bytes, at most max_frame_bytes; replies at most max_reply_bytes.
Units:    seconds; deadlines are absolute, time.monotonic().
Raises:   QueueFull, FrameTooLarge, ReplyTooLarge, DeadlineExceeded, ClientGone.
"""

import itertools
import mmap
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from serving.errors import DeadlineExceeded, FrameTooLarge, QueueFull, ReplyTooLarge, ServingError

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
        # in this order: half a digest is never read
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


class Recovery(NamedTuple):
    """What became of the tickets that a dead replica held."""

    again: list[Ticket]
    guilty: list[Ticket]
    # was predicted when it died, and nobody waits for it any more; with the digest that its thread left
    late: list[tuple[Ticket, bytes | None]]
    # how many it was predicting
    predicting: int


class Transport(ABC):
    """The protocol; a subclass brings queue, lock, replies and sleep."""

    def __init__(
        self,
        slots: int,
        seats: int,
        replicas: int,
        places: int,
        max_attempts: int,
        max_frame_bytes: int,
        max_reply_bytes: int,
    ) -> None:
        self._slots = slots
        self.max_frame_bytes = max_frame_bytes
        self.max_reply_bytes = max_reply_bytes
        self._max_attempts = max_attempts
        self._seats = Seats(seats, max_frame_bytes)
        self._held = [Held(places) for _ in range(replicas)]
        self._again = Again(seats)
        self._own = self._held[0]
        self._alive: Callable[[], int] = lambda: 1

    # ---- the worker's side

    @abstractmethod
    def seat(self) -> int:
        """The seat of the calling thread, the same in each call."""

    def offer(self, ticket: Ticket, frame: bytes) -> None:
        """Put a task on the queue, or raise QueueFull or FrameTooLarge at once; never blocks for room."""
        if len(frame) > self.max_frame_bytes:
            raise FrameTooLarge(
                f"the decoded request has {len(frame)} bytes and the limit is {self.max_frame_bytes}:"
                " max_frame_bytes in uwsgi.ini"
            )
        self._seats.sit(ticket, frame)
        self._lock()
        try:
            # one that must be predicted alone waits where others like it do, and needs no slot
            accepted = self._again.put(ticket) if ticket.alone else self._push_past_gone(ticket.encode())
        finally:
            self._unlock()
        if not accepted:
            self._seats.leave(ticket.seat)
            raise QueueFull(f"all {self._slots} slots of the queue are taken (queue in uwsgi.ini)")
        self._ring()

    def _push_past_gone(self, item: bytes) -> bool:
        """Push; where the queue is full, past those at its head for whom nobody waits."""
        while not self._push(item):
            head = self._head()
            if head is not None and self._seats.awaits(Ticket.decode(head)):
                return False
            if head is not None:
                self._drop_head()
        return True

    @abstractmethod
    def await_reply(self, ticket: Ticket, deadline: float) -> bytes:
        """Sleep until the reply is there and take it away; DeadlineExceeded when it does not come in time."""

    def waiting(self) -> bool:
        """Whether a thread still waits for a reply."""
        return not self._seats.empty()

    def waiting_rows(self) -> int:
        """The rows of all tasks that somebody waits for, queued or held."""
        return self._seats.rows()

    def leave_digest(self, ticket: Ticket, digest: Callable[[], bytes]) -> None:
        """The thread that offered a ticket leaves; where a replica is predicting it, the digest of its input stays."""
        for held in self._held:
            for place, other, busy in held.tickets():
                if busy and other.uuid == ticket.uuid:
                    held.leave_digest(place, ticket.uuid, digest())

    # ---- the replica's side

    def start_replica(self, id: int, alive: Callable[[], int] = lambda: 1) -> None:
        """In a fresh replica: its place among the others, and how many of them are alive."""
        self._own = self._held[id - 1]
        self._alive = alive

    def take(self, wait_s: float, max_rows: int) -> list[Taken]:
        """The oldest tasks, each given to one replica: those that wait now, until max_rows; [] when none came in time.

        One that must be predicted alone comes alone.
        """
        if wait_s > 0 and not self._tempting() and not self._sleep(wait_s):
            return []
        held: list[tuple[int, Ticket]] = []
        self._lock()
        try:
            rows = self._take_again(held, max_rows)
            while rows < max_rows and (item := self._head()) is not None:
                ticket = Ticket.decode(item)
                if self._seats.awaits(ticket):
                    # before it leaves the queue
                    place = self._own.add(item)
                    if place < 0:
                        break
                    held.append((place, ticket))
                    rows += ticket.rows
                self._drop_head()
            left = self._tempting()
        finally:
            self._unlock()
        if left:
            self._ring()
        return self._with_frames(held)

    def _take_again(self, held: list[tuple[int, Ticket]], max_rows: int) -> int:
        """Hold what is offered again.  Returns its rows; max_rows when no more may come with it."""
        rows = 0
        for ticket in self._again.tickets():
            if rows >= max_rows or (ticket.alone and (held or not self._may_risk())):
                break
            if self._seats.awaits(ticket):
                place = self._own.add(ticket.encode())
                if place < 0:
                    break
                held.append((place, ticket))
                rows += ticket.rows
            self._again.wipe(ticket.seat)
            if held and ticket.alone:
                return max_rows
        return rows

    def _with_frames(self, held: list[tuple[int, Ticket]]) -> list[Taken]:
        # copied outside the lock: a frame may be large
        taken = []
        for place, ticket in held:
            frame = self._seats.frame(ticket)
            if frame is None:
                self._own.wipe(place)
            else:
                taken.append(Taken(place, ticket, frame))
        return taken

    def _may_risk(self) -> bool:
        """Whether a replica may predict a suspect: one is kept away from them while more than one is alive."""
        risked = sum(held.alone() for held in self._held if held is not self._own)
        return risked < max(1, self._alive() - 1)

    def _tempting(self) -> bool:
        """Whether there may be something to take."""
        again = self._again
        return self._queued() or again.any(again.INNOCENT) or (again.any(again.ALONE) and self._may_risk())

    def begin(self, batch: list[Taken]) -> None:
        """Write down that a batch is being predicted."""
        self._own.batch = len(batch)
        for taken in batch:
            self._own.begin(taken.place)

    def end(self, batch: list[Taken]) -> None:
        """Write down that it no longer is, and not answered either."""
        for taken in batch:
            self._own.end(taken.place)

    def attempts_left(self, taken: Taken) -> bool:
        """Whether a task may be predicted once more."""
        return any(
            place == taken.place and ticket.attempts < self._max_attempts for place, ticket, _ in self._own.tickets()
        )

    def publish(self, taken: Taken, reply: bytes) -> None:
        """Leave a reply for the thread that waits and wake it; ReplyTooLarge when it does not fit."""
        if len(reply) > self.max_reply_bytes:
            raise ReplyTooLarge(
                f"the reply has {len(reply)} bytes and a block of the cache holds {self.max_reply_bytes}:"
                " blocksize of cache2 in uwsgi.ini"
            )
        if self._seats.awaits(taken.ticket):
            self._put_reply(taken.ticket.uuid, reply)
            self._wake(taken.ticket.seat)
        self._own.wipe(taken.place)

    def drop(self, taken: Taken) -> None:
        """Nobody waits for it any more."""
        self._own.wipe(taken.place)

    # ---- after a death

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The lock under which all is taken and recovered.  Do not nest."""
        self._lock()
        try:
            yield
        finally:
            self._unlock()

    def recover(self, id: int, verdict: Callable[[Ticket, bytes], bytes], by_itself: bool = False) -> Recovery:
        """Offer again what a dead replica held, and answer what may not be predicted again with a verdict.

        The ticket that a verdict is asked for is alone when nothing else was being predicted: then its task is guilty.
        So is, at once, the one task that was being predicted by a process that ended by_itself, killed by nobody.
        Call it locked, once it is sure that the replica is dead.  May be killed and called again.
        """
        held = self._held[id - 1]
        recovery = Recovery([], [], [], sum(busy for _, _, busy in held.tickets()))
        for place, ticket, busy in held.tickets():
            alone = busy and held.batch == 1
            # in this order: others put their reply first, and wipe their place then, without the lock
            if self._elsewhere(ticket, held):
                pass
            elif self._has_reply(ticket.uuid):
                # it died before it woke the thread
                self._wake(ticket.seat)
            elif not self._seats.awaits(ticket):
                if busy:
                    late = ticket._replace(alone=alone)
                    recovery.late.append((late, held.left_digest(place, ticket.uuid)))
            elif ticket.attempts >= self._max_attempts or (alone and by_itself):
                last = ticket._replace(alone=alone)
                self._answer(last, verdict)
                recovery.guilty.append(last)
            else:
                again = ticket._replace(alone=ticket.alone or ticket.attempts > 0)
                self._again.put(again)
                recovery.again.append(again)
            held.wipe(place)
        if recovery.again:
            self._ring()
        return recovery

    def _answer(self, ticket: Ticket, verdict: Callable[[Ticket, bytes], bytes]) -> None:
        frame = self._seats.frame(ticket)
        # its thread may have left just now
        if frame is not None:
            # without room for it the thread waits until its deadline; whoever recovers must not die of it
            with suppress(ServingError):
                self._put_reply(ticket.uuid, verdict(ticket, frame))
            self._wake(ticket.seat)

    def _elsewhere(self, ticket: Ticket, own: Held) -> bool:
        """Whether a ticket stands in another place as well: its replica died between two steps.

        A place that knows of fewer attempts is that of another dead replica, which was overtaken.
        """
        others = [other for held in self._held if held is not own for _, other, _ in held.tickets()]
        others += self._again.tickets()
        head = self._head()
        if head is not None:
            others.append(Ticket.decode(head))
        return any(other.uuid == ticket.uuid and other.attempts >= ticket.attempts for other in others)

    # ---- what a subclass brings

    def workers(self) -> list[int]:
        """The pids of the workers, where they are processes of their own."""
        return []

    @abstractmethod
    def _lock(self) -> None:
        """Given back when its holder is killed."""

    @abstractmethod
    def _unlock(self) -> None: ...

    @abstractmethod
    def _push(self, item: bytes) -> bool:
        """Put an item on the queue; False when it is full.  Locked."""

    @abstractmethod
    def _head(self) -> bytes | None:
        """The oldest item of the queue, left where it is.  Locked."""

    @abstractmethod
    def _drop_head(self) -> None:
        """Take the oldest item off the queue.  Locked."""

    @abstractmethod
    def _queued(self) -> bool:
        """Whether the queue seems to hold something."""

    @abstractmethod
    def _put_reply(self, uuid: bytes, reply: bytes) -> None:
        """Keep a reply for a while."""

    @abstractmethod
    def _has_reply(self, uuid: bytes) -> bool: ...

    @abstractmethod
    def _ring(self) -> None:
        """Wake one replica that sleeps."""

    @abstractmethod
    def _wake(self, seat: int) -> None:
        """Wake the thread at a seat."""

    @abstractmethod
    def _sleep(self, wait_s: float) -> bool:
        """Sleep until somebody rings; False when it rang for another."""


class MemoryTransport(Transport):
    """Queue and replies in the memory of one process, for tests and notebooks."""

    def __init__(
        self,
        slots: int = 64,
        max_frame_bytes: int = 1 << 20,
        max_reply_bytes: int = 1 << 20,
        seats: int = 64,
        replicas: int = 1,
        places: int = 64,
        max_attempts: int = 2,
    ) -> None:
        super().__init__(slots, seats, replicas, places, max_attempts, max_frame_bytes, max_reply_bytes)
        self._queue: deque[bytes] = deque()
        self._replies: dict[bytes, bytes] = {}
        self._mutex = threading.Lock()
        self._rung = threading.Semaphore(0)
        self._changed = threading.Condition()
        self._seat_numbers = itertools.count()
        self._thread = threading.local()

    def seat(self) -> int:
        if not hasattr(self._thread, "seat"):
            self._thread.seat = next(self._seat_numbers)
        seat: int = self._thread.seat
        return seat

    def await_reply(self, ticket: Ticket, deadline: float) -> bytes:
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: ticket.uuid in self._replies, deadline - time.monotonic()):
                    raise DeadlineExceeded("no reply came before the deadline")
        finally:
            self._seats.leave(ticket.seat)
        # only now: whoever recovers finds the reply, or nobody who waits
        return self._replies.pop(ticket.uuid)

    def _lock(self) -> None:
        self._mutex.acquire()

    def _unlock(self) -> None:
        self._mutex.release()

    def _push(self, item: bytes) -> bool:
        if len(self._queue) >= self._slots:
            return False
        self._queue.append(item)
        return True

    def _head(self) -> bytes | None:
        return self._queue[0] if self._queue else None

    def _drop_head(self) -> None:
        self._queue.popleft()

    def _queued(self) -> bool:
        return bool(self._queue)

    def _put_reply(self, uuid: bytes, reply: bytes) -> None:
        with self._changed:
            self._replies[uuid] = reply

    def _has_reply(self, uuid: bytes) -> bool:
        return uuid in self._replies

    def _ring(self) -> None:
        self._rung.release()

    def _wake(self, seat: int) -> None:
        with self._changed:
            self._changed.notify_all()

    def _sleep(self, wait_s: float) -> bool:
        self._rung.acquire(timeout=wait_s)
        return True
