"""The uWSGI queue and cache between workers and replicas, with eventfds to sleep on.  The one file that imports uwsgi.

The way of a task: a worker's thread checks for a free slot and pushes under one lock, then rings the doorbell, one
eventfd that all replicas watch, each with EPOLLEXCLUSIVE so that one wakes.  The replica that reads the doorbell takes
a frame, and rings again when it leaves some behind.  It publishes the reply in the cache under the task's uuid and
writes to the eventfd of the task's seat, where the thread sleeps.  A thread looks in the cache only when it was woken.

Made before the fork (import in the master): eventfds and the seats' flags are shared by all processes.

Runs in:  both.
Shapes:   frames and replies are opaque bytes, at most max_frame_bytes and max_reply_bytes.
Units:    seconds; deadlines are absolute, time.monotonic().
Raises:   QueueFull, FrameTooLarge, ReplyTooLarge, DeadlineExceeded; SettingsError when uWSGI runs with other numbers.
Source:   uWSGI 2.0.31 core/queue.c (push does not check for a full ring), core/cache.c (update answers None when full).
"""

import itertools
import math
import mmap
import os
import select
import threading
import time
from collections.abc import Callable

import uwsgi

from serving.errors import DeadlineExceeded, FrameTooLarge, QueueFull, ReplyTooLarge, ServingError, SettingsError
from serving.settings import QUEUE_ITEM_HEADER_BYTES, Settings
from serving.transport import Full

# a reply that came too late for its thread leaves the cache by itself after this many seconds
_REPLY_TTL_S = 5
# what closes a hole in the queue; no frame is so short
_NO_FRAME = b"\0"
_FLAGS = os.EFD_NONBLOCK | os.EFD_CLOEXEC


class UwsgiTransport:
    """The transport inside one uWSGI instance."""

    def __init__(self, settings: Settings) -> None:
        _check_same(settings)
        self.max_frame_bytes = settings.queue_blocksize - QUEUE_ITEM_HEADER_BYTES
        self.max_reply_bytes = settings.cache_blocksize
        self._threads = settings.threads
        self._doorbell = os.eventfd(0, _FLAGS)
        self._wakers = [os.eventfd(0, _FLAGS) for _ in range(settings.seats)]
        # one byte a seat: 1 while its thread has a task somewhere between offer and reply
        self._busy = mmap.mmap(-1, max(settings.seats, 1))
        self._idle = bytes(settings.seats)
        self._local = threading.local()
        self._seats = itertools.count()
        self._epoll: select.epoll | None = None

    def start_worker(self) -> None:
        """In a fresh worker: its seats are its own, and free."""
        first = (uwsgi.worker_id() - 1) * self._threads
        self._seats = itertools.count(first)
        self._busy[first : first + self._threads] = bytes(self._threads)

    def start_replica(self) -> None:
        """In a fresh mule: watch the doorbell."""
        # the timer of a predecessor that died by itself may still be armed, and would kill this one
        uwsgi.set_user_harakiri(0)
        self._epoll = select.epoll()
        self._epoll.register(self._doorbell, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def seat(self) -> int:
        """The seat of the calling thread."""
        local = self._local
        if not hasattr(local, "seat"):
            local.seat = next(self._seats)
            local.poll = select.poll()
            local.poll.register(self._wakers[local.seat], select.POLLIN)
        seat: int = local.seat
        return seat

    def offer(self, frame: bytes, seat: int) -> None:
        """Push a frame where a slot is free, and ring; at once in any case."""
        if len(frame) > self.max_frame_bytes:
            raise FrameTooLarge(
                f"the decoded request has {len(frame)} bytes and a slot of the queue holds {self.max_frame_bytes}:"
                " queue-blocksize in uwsgi.ini, less its header"
            )
        self._busy[seat] = 1
        uwsgi.lock()
        try:
            # replicas only free slots: with the cursors apart there is one; on one slot the queue is empty or full
            slot = uwsgi.queue_slot()
            free = slot != uwsgi.queue_pull_slot() or uwsgi.queue_get(slot) is None
            accepted = free and uwsgi.queue_push(frame)
        finally:
            uwsgi.unlock()
        if not accepted:
            self._busy[seat] = 0
            raise QueueFull(f"all {uwsgi.queue_size} slots of the queue are taken (queue in uwsgi.ini)")
        os.eventfd_write(self._doorbell, 1)

    def await_reply(self, uuid: bytes, seat: int, deadline: float) -> bytes:
        """Sleep on the seat's eventfd until the reply is in the cache, then take it out."""
        waker, poll = self._wakers[seat], self._local.poll
        try:
            while (left := deadline - time.monotonic()) > 0:
                poll.poll(math.ceil(left * 1000))
                try:
                    os.eventfd_read(waker)
                except BlockingIOError:
                    continue
                # the wake-up may be for a reply that came too late for the request before
                if reply := _take_reply(uuid):
                    return reply
            # published by a replica that died before it woke anybody
            if reply := _take_reply(uuid):
                return reply
        finally:
            self._busy[seat] = 0
        raise DeadlineExceeded("no reply came before the deadline (deadline_ms, or X-Request-Timeout-Ms)")

    def take(self, wait_s: float, full: Full) -> list[bytes]:
        """Pull the oldest frames; sleep on the doorbell when there is none; ring again for what is left behind.

        Looks at the cursors before it pulls, for a pull takes the queue's lock even when there is nothing.  A frame
        that is pushed behind that look is no loss: its ring comes after it.
        """
        if wait_s > 0 and self._epoll is not None and not _apart() and self._epoll.poll(wait_s):
            try:
                os.eventfd_read(self._doorbell)
            except BlockingIOError:
                # another replica was faster
                return []
        frames = []
        # also when nobody rang: the ring may have woken a replica that died
        frame = _pull()
        while frame is not None:
            if frame != _NO_FRAME:
                frames.append(frame)
                if full(frame):
                    if self._queued():
                        os.eventfd_write(self._doorbell, 1)
                    break
            frame = _pull() if _apart() else None
        return frames

    def publish(self, uuid: bytes, seat: int, reply: bytes) -> None:
        """Put a reply into the cache, and wake its thread."""
        if len(reply) > self.max_reply_bytes:
            raise ReplyTooLarge(
                f"the reply has {len(reply)} bytes and a block of the cache holds {self.max_reply_bytes}:"
                " blocksize of cache2 in uwsgi.ini"
            )
        if not uwsgi.cache_update(uuid, reply, _REPLY_TTL_S):
            raise ServingError("the cache has no free item (items of cache2 in uwsgi.ini)")
        os.eventfd_write(self._wakers[seat], 1)

    def waiting(self) -> bool:
        """Whether a frame is queued or a thread still waits for its reply."""
        return self._busy[:] != self._idle or self._queued()

    def _queued(self) -> bool:
        return _apart() or uwsgi.queue_get(uwsgi.queue_pull_slot()) is not None


def _apart() -> bool:
    """Whether the cursors of the queue are on two slots.  On one slot it is empty or full."""
    return bool(uwsgi.queue_slot() != uwsgi.queue_pull_slot())


def _pull() -> bytes | None:
    """The oldest frame; None when the queue is empty."""
    frame: bytes | None = uwsgi.queue_pull()
    return _close_hole() if frame is None and _apart() else frame


def _close_hole() -> bytes | None:
    """Bring the cursors together again when they are apart over an empty slot; the frame found behind it, if any.

    A process that is killed inside a push or a pull leaves such a slot, and no pull gets past it.
    """
    uwsgi.lock()
    try:
        # nobody pushes now; a replica that pulls empties a slot and moves on in one, so that a slot which is empty and
        # still the one to pull from is a hole, which no pull moves over
        pull = uwsgi.queue_pull_slot()
        if _apart() and uwsgi.queue_get(pull) is None and uwsgi.queue_pull_slot() == pull:
            uwsgi.queue_set(pull, _NO_FRAME)
        frame: bytes | None = uwsgi.queue_pull()
        return frame
    finally:
        uwsgi.unlock()


def _take_reply(uuid: bytes) -> bytes | None:
    reply: bytes | None = uwsgi.cache_get(uuid)
    if reply is not None:
        uwsgi.cache_del(uuid)
    return reply


def replica_id() -> int:
    """The number of this mule, from 1; 0 in any other process."""
    return int(uwsgi.mule_id())


def after_fork(start: Callable[[], None]) -> None:
    """Call start in each new worker and mule; a mule's call need not return."""
    uwsgi.post_fork_hook = start


def config_file() -> str:
    """The ini file that uWSGI was started with."""
    return str(uwsgi.opt["ini"].decode())


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
