"""The uWSGI queue between workers and replicas, with eventfds to sleep on.  The one file that imports uwsgi.

A worker's thread pushes its seat, then rings the doorbell where a replica sleeps: one eventfd that all replicas watch,
each with EPOLLEXCLUSIVE so that one wakes.  (Another one, the gong, wakes all: for what not every one may take.)  The
replica that reads the doorbell takes, and rings again when it leaves something behind and another sleeps.  It leaves
the reply in shared memory and writes to the eventfd of the task's seat, where the thread sleeps.  A thread looks for
its reply only when it was woken.

Replies do not go through uWSGI's cache: each of its calls takes uWSGI's lock and lets the interpreter go, which all
threads of a worker want, and that costs more than the rest of the wait.  What processes note for each other does.

Made before the fork (import in the master): eventfds and the shared memory of transport.py are common to all processes.

Runs in:  both.
Units:    seconds; deadlines are absolute, time.monotonic().
Raises:   FrameTooLarge, ReplyTooLarge, DeadlineExceeded, ClientGone; SettingsError when uWSGI runs with other numbers.
Source:   uWSGI 2.0.31 core/queue.c (push does not check for a full ring, moves its cursor last, and brings it round in
          a step of its own; pull empties the slot last, and moves its cursor in one step, as gcc builds it).
"""

import ctypes
import itertools
import mmap
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uwsgi

from serving.errors import ClientGone, DeadlineExceeded, SettingsError
from serving.ledger import Ticket
from serving.settings import Settings
from serving.transport import Transport

# a seat on the queue
_SEAT = struct.Struct("<I")
# fills a slot that must not be empty; no seat is so short
_NO_SEAT = b"\0"
# so many more requests than another worker has are too many; or half of the mean, where that is more
_CROWD = 8
# how often a thread that waits looks whether its client is still there
_LOOK_S = 0.1
_FLAGS = os.EFD_NONBLOCK | os.EFD_CLOEXEC
# linux/ipc.h and linux/sem.h; struct semid_ds begins with struct ipc_perm: key, uid, gid, cuid, cgid, mode
_IPC_SET, _IPC_STAT, _GETPID = 1, 2, 11
_MODE_OFFSET = 20
# more than it has on any machine
_SEMID_DS_BYTES = 256


class UwsgiTransport(Transport):
    """The transport inside one uWSGI instance."""

    def __init__(self, settings: Settings) -> None:
        _check_same(settings)
        super().__init__(
            settings.seats,
            settings.mule_processes,
            settings.max_batch_rows,
            settings.max_attempts,
            settings.max_frame_bytes,
            settings.max_reply_bytes,
        )
        _close_semaphores()
        self._slots = settings.queue
        threads = settings.threads
        # of each worker; the last one, which answers health, has none
        self._seats_of = [range(first, first + threads) for first in range(0, settings.seats, threads)]
        self._doorbell = os.eventfd(0, _FLAGS)
        self._gong = os.eventfd(0, _FLAGS)
        self._wakers = [os.eventfd(0, _FLAGS) for _ in range(settings.seats)]
        self._local = threading.local()
        self._numbers = itertools.count()
        # of a worker that predicts
        self._own_seats = range(0)
        self._epoll: select.epoll | None = None
        self._pids = memoryview(mmap.mmap(-1, 8 * settings.processes)).cast("q")

    def start_worker(self) -> int:
        """In a fresh worker: its seats are its own, and nobody waits there.

        Gives the pid of the one before it if that has died, and 0 otherwise.
        """
        number = worker_id() - 1
        died = self._pids[number]
        self._pids[number] = os.getpid()
        self._own_seats = self._seats_of[number] if number < len(self._seats_of) else range(0)
        self._numbers = itertools.count(self._own_seats.start)
        self.start_seats(self._own_seats)
        for seat in self._own_seats:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wakers[seat])
        return died

    def end_worker(self) -> None:
        """In a worker that ends in good order: it does not die."""
        self._pids[worker_id() - 1] = 0

    def start_replica(self, id: int, alive: Callable[[], int] = lambda: 1) -> None:
        """In a mule that is a replica now: watch the doorbell."""
        super().start_replica(id, alive)
        self._epoll = select.epoll()
        self._epoll.register(self._doorbell, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        # each write is one event for each of them: nobody reads it
        self._epoll.register(self._gong, select.EPOLLIN | select.EPOLLET)

    def serve(self, version: int, default: bool, known: Callable[[int], bool]) -> None:
        """What this replica takes; the doorbell is for those that serve by default."""
        if self._epoll is not None and default != self._default:
            if default:
                self._epoll.register(self._doorbell, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            else:
                self._epoll.unregister(self._doorbell)
        super().serve(version, default, known)

    def seat(self) -> int:
        """The seat of the calling thread."""
        try:
            seat: int = self._local.seat
        except AttributeError:
            seat = self._first_seat()
        return seat

    def _first_seat(self) -> int:
        """In a thread that has none yet."""
        if worker_id() and not self._own_seats:
            raise RuntimeError("this worker has no seats: no prediction should have come to it")
        seat = next(self._numbers)
        epoll = select.epoll()
        # each write is one event: nobody needs to read it
        epoll.register(self._wakers[seat], select.EPOLLIN | select.EPOLLET)
        self._local.epoll, self._local.seat = epoll, seat
        return seat

    def await_reply(self, ticket: Ticket, deadline: float) -> bytes:
        """Sleep on the seat's eventfd until the reply is there."""
        epoll = self._local.epoll
        try:
            while (left := deadline - time.monotonic()) > 0:
                if epoll.poll(left if left < _LOOK_S else _LOOK_S, 1):
                    reply = self._replies.find(ticket)
                    # the wake-up may be for a reply that came too late for the request before
                    if reply is not None:
                        return reply
                elif self._client_is_gone():
                    raise ClientGone("the client went away before its answer was there")
            # published by a replica that died before it woke anybody
            reply = self._replies.find(ticket)
            if reply is not None:
                return reply
        finally:
            self._seats.leave(ticket.seat)
        raise DeadlineExceeded("no reply came before the deadline (deadline_ms, or X-Request-Timeout-Ms)")

    def crowded(self) -> bool:
        """Whether far more requests wait in this worker than in another.

        Any worker accepts a connection of nginx, and keeps it: one may come to have nearly all of them, and no worker
        can use more than one processor.
        """
        taken = [self._seats.taken(seats) for seats in self._seats_of]
        return self._seats.taken(self._own_seats) - min(taken) > max(_CROWD, sum(taken) // (2 * len(taken)))

    def _client_is_gone(self) -> bool:
        """Whether nginx has closed the connection, as it does when its client went away."""
        client = uwsgi.connection_fd() if self._own_seats else -1
        if client < 0:
            return False
        poll = select.poll()
        poll.register(client, select.POLLRDHUP)
        return bool(poll.poll(0))

    def workers(self) -> list[int]:
        return [pid for pid in self._pids if pid]

    def _lock(self) -> None:
        uwsgi.lock()

    def _unlock(self) -> None:
        uwsgi.unlock()

    def _push(self, seat: int) -> None:
        if uwsgi.queue_slot() >= self._slots:
            # killed before the cursor came round: the next item goes behind the last slot, where nobody looks.  (The
            # queue's memory ends with a header's bytes on a page of their own.)
            uwsgi.queue_push(_NO_SEAT)
        uwsgi.queue_push(_SEAT.pack(seat))

    def _pull(self) -> int | None:
        while (first := uwsgi.queue_pull_slot()) != self._end():
            if first >= self._slots:
                raise RuntimeError("uWSGI's queue is broken: it was killed in the middle of a step; restart the server")
            item: bytes | None = uwsgi.queue_pull()
            if item is None:
                # no pull gets past an empty slot
                uwsgi.queue_set(uwsgi.queue_pull_slot(), _NO_SEAT)
            elif len(item) == _SEAT.size:
                return int(_SEAT.unpack(item)[0])
        return None

    def _queue_of_seats(self) -> list[int]:
        first = uwsgi.queue_pull_slot()
        items = [uwsgi.queue_get((first + place) % self._slots) for place in range(self._depth())]
        return [int(_SEAT.unpack(item)[0]) for item in items if item is not None and len(item) == _SEAT.size]

    def _depth(self) -> int:
        return (self._end() - int(uwsgi.queue_pull_slot())) % self._slots

    def _end(self) -> int:
        """The slot behind the newest seat."""
        slot: int = uwsgi.queue_slot()
        return slot if slot < self._slots else 0

    def _ring(self) -> None:
        os.eventfd_write(self._doorbell, 1)

    def _ring_all(self) -> None:
        os.eventfd_write(self._gong, 1)

    def _wake(self, seat: int) -> None:
        os.eventfd_write(self._wakers[seat], 1)

    def _sleep(self, wait_s: float) -> bool:
        rung = self._epoll.poll(wait_s) if self._epoll is not None else []
        if len(rung) == 1 and rung[0][0] == self._doorbell:
            try:
                os.eventfd_read(self._doorbell)
            except BlockingIOError:
                # another replica was faster
                return False
        # also when nobody rang: the ring may have woken a replica that died
        return True


class Notes:
    """What processes tell each other for a while, under keys that are no uuid."""

    def put(self, key: bytes, value: bytes, seconds: int) -> None:
        uwsgi.cache_update(key, value, seconds)

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = uwsgi.cache_get(key)
        return value

    def delete(self, key: bytes) -> None:
        uwsgi.cache_del(key)

    def count(self) -> int:
        # holds the cache's lock, and the interpreter, for a tenth of a millisecond
        return len(uwsgi.cache_keys())


def end_by(seconds: int) -> None:
    """Have the master kill this mule unless it is called again within so many seconds; 0: never mind."""
    uwsgi.set_user_harakiri(seconds)


def worker_id() -> int:
    """The number of this worker, from 1; 0 in any other process."""
    return int(uwsgi.worker_id())


def mule_id() -> int:
    """The number of this mule, from 1; 0 in any other process."""
    return int(uwsgi.mule_id())


def after_fork(start: Callable[[], None]) -> None:
    """Call start in each new worker and mule; a mule's call need not return."""
    uwsgi.post_fork_hook = start


def at_exit(end: Callable[[], None]) -> None:
    """Call end in each worker that has finished."""
    uwsgi.atexit = end


def config_file() -> str:
    """The ini file that uWSGI was started with."""
    return str(uwsgi.opt["ini"].decode())


def _close_semaphores() -> None:
    """Keep other users from uWSGI's locks: it makes them with mode 666, and who holds one stops the server."""
    libc = ctypes.CDLL(None)
    about = ctypes.create_string_buffer(_SEMID_DS_BYTES)
    for line in Path("/proc/sysvipc/sem").read_text().splitlines()[1:]:
        id = int(line.split()[1])
        if libc.semctl(id, 0, _GETPID) == os.getpid() and libc.semctl(id, 0, _IPC_STAT, about) == 0:
            struct.pack_into("I", about, _MODE_OFFSET, 0o600)
            libc.semctl(id, 0, _IPC_SET, about)


def _check_same(settings: Settings) -> None:
    # Settings reads the file by itself, so that it can refuse before uWSGI runs: the two readers must agree
    running = {
        "processes": uwsgi.numproc,
        "threads": uwsgi.cores,
        "queue": uwsgi.queue_size,
    }
    for key, value in running.items():
        if value != getattr(settings, key):
            raise SettingsError(f"{key}: uwsgi.ini says {getattr(settings, key)}, and uWSGI runs with {value}")
