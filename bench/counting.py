"""What it takes to count an answer, by itself.

Units: µs.
"""

import timeit

from app.metrics import Ends
from serving.counts import STAGES, Counts


def took_us(calls: int = 100_000) -> float:
    """What is counted of one answer that was predicted alone, timed without a server around it."""
    counts = Counts(threads=1, workers=1, replicas=1)
    ends = Ends(counts, ["/predict"])
    counts.batches.start(0)
    stages = (1e-4,) * len(STAGES)

    def count() -> None:
        ends.count(0, "/predict", "200 OK", "", 1, 1e-3, "of-no-request", 1, stages)
        counts.batches.count(rows=1, tasks=1, version=1, took_s=1e-4)

    return min(timeit.repeat(count, number=calls // 5, repeat=5)) / (calls // 5) * 1e6
