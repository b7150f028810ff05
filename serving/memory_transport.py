"""The transport in the memory of one process, for tests and notebooks.

Runs in:  one process that plays both sides.
Raises:   FrameTooLarge, ReplyTooLarge, DeadlineExceeded.
"""

import itertools
import threading
import time
from collections import deque

from serving.errors import DeadlineExceeded
from serving.ledger import Ticket
from serving.transport import Transport


class MemoryTransport(Transport):
    """A queue in the memory of one process, for tests and notebooks."""

    def __init__(
        self,
        max_frame_bytes: int = 1 << 20,
        max_reply_bytes: int = 1 << 20,
        seats: int = 64,
        replicas: int = 1,
        places: int = 64,
        max_attempts: int = 2,
    ) -> None:
        super().__init__(seats, replicas, places, max_attempts, max_frame_bytes, max_reply_bytes)
        self._queue: deque[int] = deque()
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
                reply = self._changed.wait_for(lambda: self._replies.find(ticket), deadline - time.monotonic())
        finally:
            self._seats.leave(ticket.seat)
        if reply is None:
            raise DeadlineExceeded("no reply came before the deadline")
        return reply

    def _lock(self) -> None:
        self._mutex.acquire()

    def _unlock(self) -> None:
        self._mutex.release()

    def _push(self, seat: int) -> None:
        self._queue.append(seat)

    def _pull(self) -> int | None:
        return self._queue.popleft() if self._queue else None

    def _queue_of_seats(self) -> list[int]:
        return list(self._queue)

    def _depth(self) -> int:
        return len(self._queue)

    def _ring(self) -> None:
        self._rung.release()

    def _ring_all(self) -> None:
        self._rung.release(len(self._held))

    def _wake(self, seat: int) -> None:
        with self._changed:
            self._changed.notify_all()

    def _sleep(self, wait_s: float) -> bool:
        self._rung.acquire(timeout=wait_s)
        return True
