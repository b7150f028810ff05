"""The server whose metrics are on in some tenths of a second and off in others: what uWSGI loads in place of wsgi.py.

How many predictions ended in each of them lies in the file that SWITCHED names: (WORKERS, SLICES) of int64.

Runs in:  master, and all that is forked from it.
"""

import mmap
import os
import time
from pathlib import Path
from typing import Any

from app.metrics import Ends
from serving.counts import Batches

SLICE_S = 0.1
# enough for a quarter of an hour; what comes later fails
SLICES = 9_000
# told apart by their process numbers, which follow each other
WORKERS = 16

_began = time.monotonic()
_count_end, _count_batch = Ends.count, Batches.count
with Path(os.environ["SWITCHED"]).open("w+b") as _file:
    _file.truncate(8 * WORKERS * SLICES)
    _ended = memoryview(mmap.mmap(_file.fileno(), 0)).cast("q", (WORKERS, SLICES))


def _slice() -> int:
    return int((time.monotonic() - _began) / SLICE_S)


def _on(slice: int) -> bool:
    # off, on, on, off: what grows or falls steadily meanwhile does not matter
    return (slice + 1) // 2 & 1 == 1


def _count_end_or_not(*of_one: Any) -> None:
    slice = _slice()
    _ended[os.getpid() % WORKERS, slice] += 1
    if _on(slice):
        _count_end(*of_one)


def _count_batch_or_not(*of_one: Any) -> None:
    if _on(_slice()):
        _count_batch(*of_one)


Ends.count = _count_end_or_not  # type: ignore[assignment, method-assign]
Batches.count = _count_batch_or_not  # type: ignore[assignment, method-assign]

from wsgi import application  # noqa: E402, F401
