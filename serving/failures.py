"""The last requests that failed, by their ids, in memory that all processes share: each ring has one writer.

A ring is of a thread that predicts, or of all that is no prediction in a worker, as in serving/counts.py.  It outlives
its writer, and who follows goes on where that one stopped, in the next uWSGI too (serving/memory.py).  What came before
the newest of a ring is forgotten.

Made before the fork, and so shared.

Runs in:  both.
Units:    seconds; times are those of time.time().
"""

import threading
import time
from typing import NamedTuple

import numpy as np

from serving.memory import Memory

ID_BYTES = 64
# of each ring
PLACES = 32
# when, how long it took, how it ended, and the id
_NUMBERS = 3 + ID_BYTES // 8


class Failure(NamedTuple):
    """A request that failed; end: how, as a number says."""

    at: float
    took_s: float
    end: int
    id: str


class Failures:
    """A ring for each thread that predicts, and one for each worker's others."""

    def __init__(self, threads: int, workers: int, known: Memory | None = None) -> None:
        self._known = known or Memory()
        self._threads = self._others = threads
        layout = (PLACES, _NUMBERS)
        # mapped, and used only where something failed
        self._memory = self._known.map("failures", layout, 8 * PLACES * _NUMBERS, threads + workers)
        self._integers = memoryview(self._memory).cast("q")
        self._seconds = memoryview(self._memory).cast("d")
        # of each ring, how many there have been
        self._written = memoryview(self._known.map("failed", layout, 8, threads + workers)).cast("q")
        self._lock = threading.Lock()

    def start_worker(self, number: int) -> None:
        """In a fresh worker, counted from 1."""
        self._others = self._threads + number - 1

    def note_other(self, end: int, took_s: float, id: str) -> None:
        """Note one that was no prediction, in any thread of this worker."""
        with self._lock:
            self.note(self._others, end, took_s, id)

    def note(self, ring: int, end: int, took_s: float, id: str) -> None:
        """Note one that failed, in its thread."""
        ring = self._known.place(ring)
        written = self._written[ring]
        place = (ring * PLACES + written % PLACES) * _NUMBERS
        # nobody takes half of one: it has no time meanwhile
        self._seconds[place] = 0.0
        self._seconds[place + 1] = took_s
        self._integers[place + 2] = end
        start = 8 * (place + 3)
        self._memory[start : start + ID_BYTES] = id.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self._seconds[place] = time.time()
        self._written[ring] = written + 1

    def newest(self, most: int) -> list[Failure]:
        """The last ones of all rings, the newest first."""
        used = [ring for ring, written in enumerate(self._written) if written]
        places = np.frombuffer(self._memory, np.int64).reshape(-1, PLACES, _NUMBERS)
        found = places[used].reshape(-1, _NUMBERS)
        times = found[:, 0].view(np.float64)
        # one that was written meanwhile has another time now
        whole = (times > 0) & (found[:, 0] == places[used, :, 0].reshape(-1))
        found = found[whole][np.argsort(-times[whole], kind="stable")[:most]]
        failures = []
        for row in found:
            at, took_s = row[:2].view(np.float64).tolist()
            failures.append(Failure(at, took_s, int(row[2]), row[3:].tobytes().rstrip(b"\0").decode(errors="replace")))
        return failures
