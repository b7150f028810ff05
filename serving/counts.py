"""What the processes count, in memory that all share: each block has one writer, so nothing is lost and nobody waits.

A table has a block for each thread or process that writes; a block has rows, each found by two numbers that say what it
counts.  Who reads adds up the blocks.  They outlive their writers, and who follows one that died goes on where it
stopped: no count ever goes back.  They outlive their uWSGI too, when a reload starts another (memory.py).

Made before the fork, and so shared.

Runs in:  both.
Units:    seconds.
"""

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.failures import ID_BYTES, Failures
from serving.memory import Memory

# the upper bounds of a latency's buckets, from the fastest model to the longest deadline
BOUNDS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, math.inf)
BUCKETS = len(BOUNDS_S)
# of a request, one after the other
STAGES = ("accept", "decode", "queue", "predict", "encode")
# what says what a row counts
HEAD = 2
# both, in the row of all that came when a block was full
OTHER = -2
Rows = npt.NDArray[np.int64]
# of each thread: routes, ends and versions that it has seen
_REQUEST_ROWS = 256
# of each replica: sizes of batches, and versions
_BATCH_ROWS = 512
_NAME_BYTES = 1 << 16
# up to so many at once have a row each
_EACH = 64
# a histogram has a number for each bucket, and the sum
HISTOGRAM = BUCKETS + 1
# of a bucket: when, how long, and the id of the request
EXEMPLAR = 2 + ID_BYTES // 8
# one is kept for so long
_EXEMPLAR_S = 1.0
# the rows that were predicted, when the last request ended, the whole, its stages, the exemplars of the whole
ROWS, LAST, WHOLE = range(3)
EXEMPLARS = WHOLE + HISTOGRAM * (1 + len(STAGES))
_REQUEST_NUMBERS = EXEMPLARS + BUCKETS * EXEMPLAR


def quantile(share: float, bounds: Sequence[float], totals: Sequence[float]) -> float | None:
    """How long a share of requests took at the most, as if those of a bucket were spread evenly; None where none are.

    totals: (buckets,), how many took no longer than each bound.  What took longer than the last but one, which is
    followed by infinity, is told as that.  Source: Prometheus, histogram_quantile.
    """
    if not totals[-1]:
        return None
    rank = share * totals[-1]
    place = bisect_left(totals, rank)
    low, below = (bounds[place - 1], totals[place - 1]) if place else (0.0, 0.0)
    if place == len(bounds) - 1:
        return low
    return low + (bounds[place] - low) * (rank - below) / (totals[place] - below)


class Table:
    """Blocks of rows, each of two numbers that say what it counts, and of numbers that count."""

    def __init__(self, blocks: int, rows: int, numbers: int, known: Memory | None = None, layout: object = "") -> None:
        self.rows, self.numbers = rows, numbers
        self._known = known or Memory()
        # the last row of a block says how many of the others are used, the first ones
        block = (rows + 1) * (HEAD + numbers)
        # mapped, and used only where a row is
        self.memory = self._known.map("table", (rows, numbers, layout), 8 * block, blocks)
        self.integers = memoryview(self.memory).cast("q")
        self.seconds = memoryview(self.memory).cast("d")
        self.used = self.integers[rows * (HEAD + numbers) :: block]

    def place(self, number: int) -> int:
        """Where this uWSGI has a block."""
        return self._known.place(number)

    def start(self, block: int, row: int) -> int:
        """Where a row of a block begins."""
        return (block * (self.rows + 1) + row) * (HEAD + self.numbers)

    def read(self, numbers: int | None = None) -> Rows:
        """All rows of all blocks, those of other uWSGIs too: (rows, HEAD + numbers); numbers: the first ones."""
        return np.concatenate([self._rows(block, numbers) for block in range(len(self.used))])

    def read_block(self, number: int) -> Rows:
        """Those of one writer, and of the same one of other uWSGIs."""
        return np.concatenate([self._rows(block, None) for block in self._known.places(number)])

    def _rows(self, block: int, numbers: int | None) -> Rows:
        all = np.frombuffer(self.memory, np.int64).reshape(-1, self.rows + 1, HEAD + self.numbers)
        return all[block, : self.used[block], : HEAD + (self.numbers if numbers is None else numbers)]


class Block:
    """A writer's part of a table, in the process that writes."""

    def __init__(self, table: Table, number: int) -> None:
        self._table, self._number = table, table.place(number)
        # its predecessor's
        starts = [table.start(self._number, row) for row in range(table.used[self._number])]
        self._places = {(table.integers[start], table.integers[start + 1]): start + HEAD for start in starts}

    def find(self, what: int, version: int) -> int:
        """Where the numbers of a row begin."""
        place = self._places.get((what, version))
        return self._add(what, version) if place is None else place

    def _add(self, what: int, version: int) -> int:
        table, row = self._table, len(self._places)
        if version != OTHER and row >= table.rows * 3 // 4:
            # many versions have passed: what happened is told of all the later ones together
            return self.find(what, OTHER)
        if row >= table.rows - 1:
            what = version = OTHER
            if (OTHER, OTHER) in self._places:
                return self._places[OTHER, OTHER]
        start = table.start(self._number, row)
        table.integers[start], table.integers[start + 1] = what, version
        # last: whoever reads it finds the whole row
        table.used[self._number] = row + 1
        place = self._places[what, version] = start + HEAD
        return place


class Requests:
    """What became of requests: a block for each thread that predicts, and one for each worker's others."""

    def __init__(self, threads: int, workers: int, known: Memory | None = None) -> None:
        self._threads = self._others = threads
        self.table = Table(threads + workers, _REQUEST_ROWS, _REQUEST_NUMBERS, known, ("requests", BOUNDS_S, STAGES))
        self._blocks: list[Block | None] = [None] * (threads + workers)
        self._lock = threading.Lock()

    def start_worker(self, number: int) -> None:
        """In a fresh worker, counted from 1."""
        self._others = self._threads + number - 1

    def count_other(self, end: int, total_s: float, id: str) -> None:
        """Count one that was no prediction, in any thread of this worker."""
        with self._lock:
            self.count(self._others, end, OTHER, total_s, id)

    def count(
        self,
        thread: int,
        end: int,
        version: int,
        total_s: float,
        id: str,
        rows: int = 0,
        stages: Collection[float] = (),
    ) -> None:
        """Count one that ended, as a number says; with its rows and the seconds of its stages where it was answered."""
        block = self._blocks[thread]
        if block is None:
            block = self._blocks[thread] = Block(self.table, thread)
        place = block.find(end, version)
        integers, seconds = self.table.integers, self.table.seconds
        bucket = bisect_left(BOUNDS_S, total_s)
        now = time.time()
        exemplar = place + EXEMPLARS + bucket * EXEMPLAR
        if now - seconds[exemplar] > _EXEMPLAR_S:
            # nobody takes half of one: it has no time meanwhile
            seconds[exemplar] = 0.0
            start = 8 * (exemplar + 2)
            self.table.memory[start : start + ID_BYTES] = id.encode().ljust(ID_BYTES, b"\0")
            seconds[exemplar + 1] = total_s
            seconds[exemplar] = now
        integers[place + ROWS] += rows
        seconds[place + LAST] = now
        place += WHOLE
        integers[place + bucket] += 1
        seconds[place + BUCKETS] += total_s
        for stage_s in stages:
            place += HISTOGRAM
            integers[place + bisect_left(BOUNDS_S, stage_s)] += 1
            seconds[place + BUCKETS] += stage_s


class Work(NamedTuple):
    """Predicts, the rows in them, and the seconds that they took."""

    batches: int
    rows: int
    took_s: float


class Batches:
    """What replicas predicted together: a block for each of them.

    A row is found by how many rows, or by how many tasks, were predicted at once (of many, the next power of two), and
    says how often, how long it took, and by how many the sum of these sizes is not that of the true ones.
    """

    NUMBERS = 3
    # the bit by which tasks are told from rows
    TASKS = 1 << 32

    def __init__(self, replicas: int, known: Memory | None = None) -> None:
        self.table = Table(replicas, _BATCH_ROWS, self.NUMBERS, known, "batches")
        self._block: Block | None = None

    def start(self, number: int) -> None:
        """In a fresh replica."""
        self._block = Block(self.table, number)

    def count(self, rows: int, tasks: int, version: int, took_s: float) -> None:
        """Count one predict."""
        if self._block is None:
            return
        self._count(self._block, _size(rows), rows, version, took_s)
        self._count(self._block, _size(tasks) | self.TASKS, tasks, version, took_s)

    def _count(self, block: Block, what: int, count: int, version: int, took_s: float) -> None:
        place = block.find(what, version)
        self.table.integers[place] += 1
        self.table.seconds[place + 1] += took_s
        if count > _EACH:
            self.table.integers[place + 2] += count - (what & (self.TASKS - 1))

    def work(self, number: int) -> Work:
        """What a replica has done, with all who were there before it."""
        found = self.table.read_block(number)
        found = found[found[:, 0] & self.TASKS == 0]
        seconds = found[:, HEAD + 1].view(np.float64)
        return Work(int(found[:, HEAD].sum()), int(sums(found).sum()), float(seconds.sum()))


def sums(batches: Rows) -> Rows:
    """Of rows of batches, how many rows or tasks there were in all: (rows,)."""
    found: Rows = (batches[:, 0] & (Batches.TASKS - 1)) * batches[:, HEAD] + batches[:, HEAD + 2]
    return found


def _size(count: int) -> int:
    """Of many, the next power of two: a block has no row for each."""
    return count if count <= _EACH else 1 << (count - 1).bit_length()


class Kept:
    """What became of the rows that each worker meant for the prediction log: written, or dropped."""

    MEANT, WRITTEN, DROPPED = range(3)

    def __init__(self, workers: int, known: Memory | None = None) -> None:
        self._known = known or Memory()
        self._numbers = memoryview(self._known.map("kept", "", 8 * 3, workers)).cast("q")
        self._first = 0

    def start_worker(self, number: int) -> None:
        """In a fresh worker, counted from 1: what its predecessor had not written is lost."""
        self._first = 3 * self._known.place(number - 1)
        self.drop_rest()

    def drop_rest(self) -> None:
        """What this worker meant and has not written by now is lost."""
        meant, written, dropped = self._numbers[self._first : self._first + 3]
        self.count(self.DROPPED, meant - written - dropped)

    def count(self, what: int, rows: int) -> None:
        """Count rows of this worker; one thread at a time."""
        self._numbers[self._first + what] += rows

    def total(self, what: int) -> int:
        """Of all workers."""
        return sum(self._numbers[what::3])


class Names:
    """Texts that rows tell by a number, which no text ever loses: a uWSGI adds to those of the one before."""

    def __init__(self, known: Memory | None = None) -> None:
        # of both sides; it begins with how many bytes are used
        self._memory = (known or Memory()).map("names", "", _NAME_BYTES, 1)
        self._used = int.from_bytes(self._memory[:8], "little")
        self.texts = self._memory[8 : 8 + self._used].decode().split("\n")[:-1]
        self._numbers = {text: number for number, text in enumerate(self.texts)}

    def know(self, texts: Iterable[str]) -> None:
        """Before the fork: these have numbers, too."""
        for text in texts:
            line = f"{text}\n".encode()
            if text in self._numbers or 8 + self._used + len(line) > _NAME_BYTES:
                continue
            self._memory[8 + self._used : 8 + self._used + len(line)] = line
            self._used += len(line)
            # last: who is killed before has added nothing
            self._memory[:8] = self._used.to_bytes(8, "little")
            self._numbers[text] = len(self.texts)
            self.texts.append(text)

    def number(self, text: str, otherwise: str) -> int:
        """Of a text, or of another that is known."""
        number = self._numbers.get(text)
        return self._numbers[otherwise] if number is None else number

    def text(self, number: int, otherwise: str) -> str:
        """By its number; another where a uWSGI after this one has added it."""
        return self.texts[number] if number < len(self.texts) else otherwise


class Counts:
    """All of them."""

    def __init__(self, threads: int, workers: int, replicas: int, known: Memory | None = None) -> None:
        self.requests = Requests(threads, workers, known)
        self.batches = Batches(replicas, known)
        self.names = Names(known)
        self.failures = Failures(threads, workers, known)
        self.kept = Kept(workers, known)

    def start_worker(self, number: int) -> None:
        """In a fresh worker, counted from 1."""
        self.requests.start_worker(number)
        self.failures.start_worker(number)
