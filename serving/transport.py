"""The contract of a transport, and the one that lives in memory.

A worker's thread has a seat: the place where it sleeps until a replica wakes it.  It offers a frame, then awaits the
reply of its uuid.  A replica takes frames, and publishes a reply to a uuid and a seat.

Runs in:  both.
Shapes:   frames are opaque bytes, at most max_frame_bytes; replies at most max_reply_bytes.
Units:    seconds; deadlines are absolute, time.monotonic().
Raises:   QueueFull, FrameTooLarge, ReplyTooLarge, DeadlineExceeded.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from serving.errors import DeadlineExceeded, FrameTooLarge, QueueFull, ReplyTooLarge

# told of each frame that was taken, says whether to stop taking
Full = Callable[[bytes], bool]


class Transport(Protocol):
    """Two methods on the worker's side, two on the replica's."""

    max_frame_bytes: int
    max_reply_bytes: int

    def seat(self) -> int:
        """The seat of the calling thread, the same in each call."""
        ...

    def offer(self, frame: bytes, seat: int) -> None:
        """Put a frame on the queue, or raise QueueFull or FrameTooLarge at once; never blocks for room."""
        ...

    def await_reply(self, uuid: bytes, seat: int, deadline: float) -> bytes:
        """Sleep until the reply is there and take it away; DeadlineExceeded when it does not come in time."""
        ...

    def take(self, wait_s: float, full: Full) -> list[bytes]:
        """The oldest frames, each given to one replica: what is queued now, until full; [] when none came in wait_s."""
        ...

    def publish(self, uuid: bytes, seat: int, reply: bytes) -> None:
        """Leave a reply for the thread at the seat and wake it; ReplyTooLarge when it does not fit."""
        ...

    def waiting(self) -> bool:
        """Whether a task is queued or a thread still waits for a reply."""
        ...


class MemoryTransport:
    """Queue and replies in the memory of one process, for tests and notebooks."""

    def __init__(self, slots: int = 64, max_frame_bytes: int = 1 << 20, max_reply_bytes: int = 1 << 20) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.max_reply_bytes = max_reply_bytes
        self._slots = slots
        self._queue: deque[bytes] = deque()
        self._replies: dict[bytes, bytes] = {}
        self._seated: set[int] = set()
        self._changed = threading.Condition()
        self._seats = itertools.count()
        self._thread = threading.local()

    def seat(self) -> int:
        if not hasattr(self._thread, "seat"):
            self._thread.seat = next(self._seats)
        seat: int = self._thread.seat
        return seat

    def offer(self, frame: bytes, seat: int) -> None:
        if len(frame) > self.max_frame_bytes:
            raise FrameTooLarge(f"the frame has {len(frame)} bytes; a slot holds {self.max_frame_bytes}")
        with self._changed:
            if len(self._queue) == self._slots:
                raise QueueFull(f"all {self._slots} slots of the queue are taken")
            self._queue.append(frame)
            self._seated.add(seat)
            self._changed.notify_all()

    def await_reply(self, uuid: bytes, seat: int, deadline: float) -> bytes:
        with self._changed:
            there = self._changed.wait_for(lambda: uuid in self._replies, deadline - time.monotonic())
            self._seated.discard(seat)
            if not there:
                raise DeadlineExceeded("no reply came before the deadline")
            return self._replies.pop(uuid)

    def take(self, wait_s: float, full: Full) -> list[bytes]:
        frames: list[bytes] = []
        with self._changed:
            self._changed.wait_for(lambda: self._queue, wait_s)
            while self._queue:
                frames.append(self._queue.popleft())
                if full(frames[-1]):
                    break
        return frames

    def publish(self, uuid: bytes, seat: int, reply: bytes) -> None:
        if len(reply) > self.max_reply_bytes:
            raise ReplyTooLarge(f"the reply has {len(reply)} bytes; a block holds {self.max_reply_bytes}")
        with self._changed:
            self._replies[uuid] = reply
            while len(self._replies) > 4 * self._slots:
                # the oldest came too late for anybody to take it
                del self._replies[next(iter(self._replies))]
            self._changed.notify_all()

    def waiting(self) -> bool:
        with self._changed:
            return bool(self._queue or self._seated)
