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
    """Queue and replies in the memory of one process, for tests and notebooks."""

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

    def _push(self, seat: int) -> None:
        self._queue.append(seat)

    def _pull(self) -> int | None:
        return self._queue.popleft() if self._queue else None

    def _queue_of_seats(self) -> list[int]:
        return list(self._queue)

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
