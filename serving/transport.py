"""The way of a task from a worker to a replica and back, and what no death may lose on it.

A worker's thread has a seat: the place in shared memory where its frame lies and where it sleeps.  It offers: the frame
goes to the seat, and the number of the seat onto the queue.  A replica takes: it pulls a seat, writes the task that
waits there down among what it holds, and claims it.  It publishes: the reply goes to where this replica's replies to
this seat lie, the seat is woken, and only then what was held is wiped.  A task that somebody waits for is thus

    offered          at its seat, unclaimed: the seat is on the queue
    held             in the memory of one replica, with how often it began to predict it
    offered again    its replica died: at its own seat, ahead of the queue; a suspect, which must be predicted alone,
                     waits there as well until it may be

A seat is put on the queue when it is not there, also for a task that came while an earlier one was given up; a recovery
may put it there once more where its thread is just pushing.  So a queue with room for all seats several times over
never overflows, and a worker needs no lock to push.  (It must not have one: it would hold it while its thread waits for
the interpreter, and all replicas would wait with it.)

A task may name the version of the model that must predict it.  Its seat goes onto the queue as any other; a replica of
another version that pulls it leaves the task at its seat, where those of the right one look as well.  A replica that
does not serve by default takes nothing but what names its version, and leaves the queue to the others.

When a replica is dead, whoever notices recovers what it held.  A task that the dead replica was predicting is offered
again alone; one that was predicted max_attempts times, or was alone when its process ended by itself, is answered.
What was on its way from a worker to the queue, or from there to a replica, is found by that it is offered and its seat
is not on the queue.  The seat is the one truth on whether anybody waits: a ticket whose uuid is not at its seat any
more is dropped wherever it turns up.

Takes and recoveries happen under one lock, which a killed process gives back; a worker writes to its own seats, and a
replica to its own places, without it.  Each step leaves the memory such that a kill behind it loses nothing.  A
subclass brings the queue, the lock and the sleep.

Runs in:  both.
Shapes:   frames are opaque bytes, at most max_frame_bytes; replies at most max_reply_bytes.
Units:    seconds; deadlines are absolute, time.monotonic().
Raises:   FrameTooLarge, ReplyTooLarge, DeadlineExceeded, ClientGone.
"""

import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from serving.errors import FrameTooLarge, ReplyTooLarge
from serving.ledger import ANY, Again, Held, Replies, Seats, Taken, Ticket

# how often a replica lets others run before it takes
_YIELDS = 3
# of a replica: for any task, or for those that name its version
_ASLEEP, _ASLEEP_NAMED = 1, 2


class Recovery(NamedTuple):
    """What became of the tickets that a dead replica held."""

    again: list[Ticket]
    guilty: list[Ticket]
    # was predicted when it died, and nobody waits for it any more; with the digest that its thread left
    late: list[tuple[Ticket, bytes | None]]
    # how many it was predicting
    predicting: int


class Queue(NamedTuple):
    """How many threads can wait, how many do, for how many of those no replica works yet, and the longest of these."""

    capacity: int
    waiting: int
    queued: int
    oldest_s: float


class Holding(NamedTuple):
    """Tasks that a replica has taken and not answered, their rows, and how many of them it is predicting."""

    tasks: int
    rows: int
    predicting: int


class Transport(ABC):
    """The protocol; a subclass brings queue, lock and sleep."""

    def __init__(
        self,
        seats: int,
        replicas: int,
        places: int,
        max_attempts: int,
        max_frame_bytes: int,
        max_reply_bytes: int,
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.max_reply_bytes = max_reply_bytes
        self._max_attempts = max_attempts
        self._seats = Seats(seats, max_frame_bytes)
        self._replies = Replies(seats, replicas, max_reply_bytes)
        self._held = [Held(places) for _ in range(replicas)]
        self._again = Again(seats)
        # of each replica: whether it sleeps, or is about to, and for what
        self._asleep = mmap.mmap(-1, replicas)
        # whether several tasks came with this replica's last take
        self._together = False
        self._id = 1
        self._own = self._held[0]
        self._alive: Callable[[], int] = lambda: 1
        self._version, self._default = ANY, True
        self._known: Callable[[int], bool] = lambda version: True
        # where this replica begins to look for those that name its version
        self._first_named = 0

    # ---- the worker's side

    @abstractmethod
    def seat(self) -> int:
        """The seat of the calling thread, the same in each call."""

    def start_seats(self, seats: Collection[int]) -> None:
        """In a fresh worker: what its predecessor offered from its seats is dropped wherever it is.

        What others offer is looked after as well: the death may have cost them a place on the queue.
        """
        for seat in seats:
            self._seats.leave(seat)
        with self.locked():
            self._offer_lost()

    def offer(self, ticket: Ticket, frame: bytes) -> None:
        """Put a task on the queue, or raise FrameTooLarge; waits for nobody."""
        if len(frame) > self.max_frame_bytes:
            raise FrameTooLarge(
                f"the decoded request has {len(frame)} bytes and the limit is {self.max_frame_bytes}:"
                " max_frame_bytes in uwsgi.ini"
            )
        self._seats.sit(ticket, frame)
        if self._seats.enqueue(ticket.seat):
            self._push(ticket.seat)
        self._rouse()
        if ticket.version != ANY and _ASLEEP_NAMED in self._asleep[:]:
            self._ring_all()

    @abstractmethod
    def await_reply(self, ticket: Ticket, deadline: float) -> bytes:
        """Sleep until the reply is there; DeadlineExceeded when it does not come in time."""

    def waiting(self) -> bool:
        """Whether a thread still waits for a reply."""
        return not self._seats.empty()

    def waiting_rows(self, versions: Collection[int] | None = None) -> int:
        """The rows of all tasks that somebody waits for, queued or held; of those that name one of some versions."""
        return self._seats.rows(versions)

    def queue(self, now: float) -> Queue:
        """How it stands: a look without the lock, and so a moment of each part."""
        waiting = self._seats.waiting()
        held = {ticket.uuid for held in self._held for _, ticket, _ in held.tickets()}
        queued = [since for uuid, since in waiting.items() if uuid not in held]
        return Queue(self._seats.count, len(waiting), len(queued), max(0.0, now - min(queued, default=now)))

    def holdings(self) -> list[Holding]:
        """What each replica holds, without the lock."""
        found = []
        for held in self._held:
            tickets = [(ticket.rows, busy) for _, ticket, busy in held.tickets()]
            found.append(Holding(len(tickets), sum(rows for rows, _ in tickets), sum(busy for _, busy in tickets)))
        return found

    def waiting_among(self, seats: range) -> int:
        """In how many of these seats a thread waits for its reply."""
        return self._seats.taken(seats)

    def crowded(self) -> bool:
        """Whether far more requests wait in this process than in another of its kind."""
        return False

    def leave_digest(self, ticket: Ticket, digest: Callable[[], bytes]) -> None:
        """The thread that offered a ticket leaves; where a replica is predicting it, the digest of its input stays."""
        for held in self._held:
            for place, other, busy in held.tickets():
                if busy and other.uuid == ticket.uuid:
                    held.leave_digest(place, ticket.uuid, digest())

    # ---- the replica's side

    def start_replica(self, id: int, alive: Callable[[], int] = lambda: 1) -> None:
        """In a fresh replica: its place among the others, and how many of them are alive.  It serves by default."""
        self._own = self._held[id - 1]
        self._alive = alive
        self._id = id
        self._version, self._default = ANY, True
        self._asleep[id - 1] = 0

    def serve(self, version: int, default: bool, known: Callable[[int], bool]) -> None:
        """What this replica takes: tasks that name its version; those that name none, where it serves by default.

        known: whether anybody serves a version, or will.  Where nobody does, a default replica takes what names it: the
        caller tells whoever waits.
        """
        self._version, self._default, self._known = version, default, known

    def naming(self) -> bool:
        """Whether any task that somebody waits for names a version."""
        return self._seats.naming()

    def take(self, wait_s: float, max_rows: int, shared_rows: float = math.inf) -> list[Taken]:
        """The oldest tasks, each given to one replica: those that wait now, until max_rows; [] when none came in time.

        One that must be predicted alone comes alone.  Where so many as shared_rows wait, and other replicas sleep, each
        has its share.
        """
        if wait_s > 0 and not self._tempting() and not self._nap(wait_s):
            return []
        if self._together:
            # so others are on their way: let them come too, as one batch costs less than two; nobody sleeps for it
            for _ in range(_YIELDS):
                os.sched_yield()
        held: list[tuple[int, Ticket]] = []
        self._lock()
        try:
            depth = self._depth()
            if depth and depth >= shared_rows and (others := self._asleep[:].count(_ASLEEP)):
                max_rows = min(max_rows, math.ceil(depth / (1 + others)))
            rows = 0 if self._again.empty() else self._take_again(held, max_rows)
            strange = False
            if self._seats.naming():
                rows += self._take_named(held, max_rows - rows)
            while rows < max_rows and self._default and (seat := self._pull()) is not None:
                ticket = self._seats.dequeue(seat)
                if ticket is None:
                    continue
                if ticket.version != ANY and not self._may_take(ticket):
                    # it stays at its seat, where those of its version look
                    strange = True
                elif ticket.alone:
                    # waits where others like it do
                    self._again.put(ticket)
                elif self._hold(held, ticket):
                    rows += ticket.rows
                else:
                    break
            if not held and not self._again.empty():
                self._take_again(held, max_rows)
            left = self._tempting()
        finally:
            self._unlock()
        self._together = len(held) > 1
        if strange and self._asleep[:].strip(b"\0"):
            self._ring_all()
        elif left:
            self._rouse()
        return self._with_frames(held)

    def _take_named(self, held: list[tuple[int, Ticket]], max_rows: int) -> int:
        """Hold what waits at its seat for this version.  Returns its rows."""
        rows = 0
        for ticket in self._named():
            if ticket.alone:
                # waits where others like it do
                self._again.put(ticket)
                self._seats.claim(ticket)
            elif rows < max_rows and self._hold(held, ticket):
                rows += ticket.rows
                # no seat has to wait for others for ever
                self._first_named = (ticket.seat + 1) % self._seats.count
        return rows

    def _may_take(self, ticket: Ticket) -> bool:
        """Whether a task is for this replica."""
        if ticket.version == self._version:
            return True
        return self._default and (ticket.version == ANY or not self._known(ticket.version))

    def _named(self) -> Iterator[Ticket]:
        """What waits at its seat for a version that is this replica's to take.  Locked, or else it is a guess.

        Where it serves by default, without what still is on the queue.
        """
        for seat in self._seats.named(self._first_named):
            if self._default and self._seats.queued(seat):
                continue
            ticket = self._seats.offered(seat)
            if ticket is not None and ticket.version != ANY and self._may_take(ticket):
                yield ticket

    def _nap(self, wait_s: float) -> bool:
        """Sleep until somebody rings; False when it rang for another."""
        self._asleep[self._id - 1] = _ASLEEP if self._default else _ASLEEP_NAMED
        try:
            self._seats.fence()
            # whoever has pushed before it could see that this one sleeps
            return self._tempting() or self._sleep(wait_s)
        finally:
            self._asleep[self._id - 1] = 0

    def _rouse(self) -> None:
        """Wake a replica if one sleeps: one that is awake looks before it sleeps."""
        if _ASLEEP in self._asleep[:]:
            self._ring()

    def _hold(self, held: list[tuple[int, Ticket]], ticket: Ticket) -> bool:
        """Write a ticket down, then claim it; False where there is no place left for it."""
        place = self._own.add(ticket.encode())
        if place < 0:
            self._again.put(ticket)
        else:
            held.append((place, ticket))
        self._seats.claim(ticket)
        return place >= 0

    def _take_again(self, held: list[tuple[int, Ticket]], max_rows: int) -> int:
        """Hold what is offered again.  Returns its rows; max_rows when no more may come with it."""
        rows = 0
        for ticket in self._again.tickets():
            if not self._may_take(ticket):
                continue
            if rows >= max_rows or (ticket.alone and (held or not self._may_risk())):
                break
            if self._seats.awaits(ticket):
                if not self._hold(held, ticket):
                    break
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
        if self._default and self._depth():
            return True
        if self._seats.naming() and any(self._named()):
            return True
        if self._again.empty():
            return False
        alone = [ticket.alone for ticket in self._again.tickets() if self._may_take(ticket)]
        return bool(alone) and (not all(alone) or self._may_risk())

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
                f"the reply has {len(reply)} bytes and the limit is {self.max_reply_bytes}:"
                " max_reply_bytes in uwsgi.ini"
            )
        if self._seats.awaits(taken.ticket):
            self._replies.put(taken.ticket, self._id - 1, reply)
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

    def recover(
        self, id: int, verdict: Callable[[Ticket, bytes], bytes], by_itself: bool = False, spared: bool = False
    ) -> Recovery:
        """Offer again what a dead replica held, and answer what may not be predicted again with a verdict.

        The ticket that a verdict is asked for is alone when nothing else was being predicted: then its task is guilty.
        So is, at once, the one task that was being predicted by a process that ended by_itself, killed by nobody; one
        whose process somebody else killed is spared once: it has an attempt more.
        Call it locked, once it is sure that the replica is dead.  May be killed and called again.
        """
        held = self._held[id - 1]
        recovery = Recovery([], [], [], sum(busy for _, _, busy in held.tickets()))
        for place, ticket, busy in held.tickets():
            alone = busy and held.batch == 1
            # in this order: others put their reply first, and wipe their place then, without the lock
            if self._elsewhere(ticket, held):
                pass
            elif self._replies.find(ticket) is not None:
                # it died before it woke the thread
                self._wake(ticket.seat)
            elif not self._seats.awaits(ticket):
                if busy:
                    late = ticket._replace(alone=alone)
                    recovery.late.append((late, held.left_digest(place, ticket.uuid)))
            elif ticket.attempts >= self._max_attempts + spared or (alone and by_itself):
                last = ticket._replace(alone=alone)
                self._answer(last, id, verdict)
                recovery.guilty.append(last)
            else:
                again = ticket._replace(alone=ticket.alone or ticket.attempts > 0)
                self._again.put(again)
                recovery.again.append(again)
            held.wipe(place)
        self._offer_lost()
        self._asleep[id - 1] = 0
        self._ring_all()
        return recovery

    def _offer_lost(self) -> None:
        """Offer again what waits at a seat that is not on the queue, as somebody died on the way.  Locked.

        What a living thread is about to push is taken in as well: it is claimed when its seat comes, which may be on
        the queue twice from then on.
        """
        seats = set(self._queue_of_seats())
        # first: what is pushed from now on is not lost
        self._seats.mark_queued(seats)
        for seat in range(self._seats.count):
            if seat not in seats and (ticket := self._seats.offered(seat)) is not None:
                self._again.put(ticket)
                self._seats.claim(ticket)
                self._ring_all()

    def _answer(self, ticket: Ticket, id: int, verdict: Callable[[Ticket, bytes], bytes]) -> None:
        """In the place of a dead replica."""
        frame = self._seats.frame(ticket)
        # its thread may have left just now
        if frame is not None:
            self._replies.put(ticket, id - 1, verdict(ticket, frame))
            self._wake(ticket.seat)

    def _elsewhere(self, ticket: Ticket, own: Held) -> bool:
        """Whether a ticket stands in another place as well: its replica died between two steps.

        A place that knows of fewer attempts is that of another dead replica, which was overtaken.
        """
        others = [other for held in self._held if held is not own for _, other, _ in held.tickets()]
        others += self._again.tickets()
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
    def _push(self, seat: int) -> None:
        """Put a seat on the queue, which has room for all."""

    @abstractmethod
    def _pull(self) -> int | None:
        """Take the oldest seat off the queue.  Locked."""

    @abstractmethod
    def _queue_of_seats(self) -> list[int]:
        """All seats on the queue, which stay there.  Locked."""

    @abstractmethod
    def _depth(self) -> int:
        """How many seats seem to be on the queue."""

    @abstractmethod
    def _ring(self) -> None:
        """Wake one replica that sleeps, and serves by default."""

    @abstractmethod
    def _ring_all(self) -> None:
        """Wake all replicas that sleep."""

    @abstractmethod
    def _wake(self, seat: int) -> None:
        """Wake the thread at a seat."""

    @abstractmethod
    def _sleep(self, wait_s: float) -> bool:
        """Sleep until somebody rings; False when it rang for another."""
