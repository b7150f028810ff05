"""What happened in the last minutes: requests, refusals and latencies, a point every few seconds.

A point is the difference of two looks at what has been counted since the server started.  Its percentiles are read off
the buckets of serving/counts.py, as if the requests of a bucket were spread evenly between its bounds; of what took
longer than the last bound, that bound is told.

Runs in:  worker, the one that no prediction goes to; another one in its place begins anew.
Units:    seconds; milliseconds in points, whose names say so.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.metrics import Metrics
from serving import counts
from serving.transport import Transport

EVERY_S = 5.0
_POINTS = 120
# the latency of now is that of so many points
_NOW_POINTS = 3
# the whole, and the parts of what was answered
STAGES = ("total", *counts.STAGES)
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

log = logging.getLogger("muleteer.console")


@dataclass(frozen=True)
class Look:
    """What has been counted of predictions since the server started, and what waits.

    ends: by route, status and code.  latency: (stages, buckets).
    """

    at: float
    ends: Mapping[tuple[str, str, str], int]
    rows: int
    latency: npt.NDArray[np.int64]
    in_flight: int
    queued: int

    @classmethod
    def take(cls, metrics: Metrics, transport: Transport) -> "Look":
        """As it is now."""
        # without exemplars
        found = metrics.counts.requests.table.read(counts.EXEMPLARS)
        kinds = {end: metrics.ends.decode(end) for end in found[:, 0].tolist() if metrics.ends.predicts(end)}
        found = found[np.isin(found[:, 0], list(kinds))]
        histograms = found[:, counts.HEAD + counts.WHOLE :].reshape(len(found), len(STAGES), counts.HISTOGRAM)
        buckets = histograms[:, :, : counts.BUCKETS]
        ends: Counter[tuple[str, str, str]] = Counter()
        for end, count in zip(found[:, 0].tolist(), buckets[:, 0].sum(axis=1).tolist(), strict=True):
            ends[kinds[end]] += count
        queue = transport.queue(time.monotonic())
        rows = int(found[:, counts.HEAD + counts.ROWS].sum())
        return cls(time.time(), ends, rows, buckets.sum(axis=0), queue.waiting, queue.queued)


class History:
    """The last minutes."""

    def __init__(self, take: Callable[[], Look]) -> None:
        self._take = take
        self._points: deque[dict[str, Any]] = deque(maxlen=_POINTS)
        self._looks: deque[Look] = deque(maxlen=_NOW_POINTS)

    def start(self) -> None:
        """Look every few seconds from now on."""
        self.add(self._take())
        threading.Thread(target=self._look, name="history", daemon=True).start()

    def _look(self) -> None:
        """All of the thread's life."""
        fails = False
        while True:
            time.sleep(EVERY_S)
            try:
                self.add(self._take())
                fails = False
            except Exception:
                # once, until it can look again
                if not fails:
                    log.exception("the live page has no points of these seconds")
                fails = True

    def add(self, look: Look) -> None:
        """One look more, and what has happened since the one before."""
        if self._looks:
            self._points.append(_point(self._looks[-1], look))
        self._looks.append(look)

    def points(self) -> list[dict[str, Any]]:
        """The oldest first."""
        return list(self._points)

    def latency(self, look: Look) -> dict[str, Any]:
        """Of what ended in the last seconds until a look, by stage."""
        before = self._looks[0] if self._looks else look
        told = _latency_ms(look.latency - before.latency)
        return {"over_s": round(max(0.0, look.at - before.at), 1), "stages": told}


def _point(before: Look, after: Look) -> dict[str, Any]:
    took_s = max(1e-3, after.at - before.at)
    ends = {end: count - before.ends.get(end, 0) for end, count in after.ends.items()}
    refused: Counter[str] = Counter()
    for (_, _, code), count in ends.items():
        if code and count:
            refused[code] += count
    return {
        "at": round(after.at, 1),
        "answered": round((sum(ends.values()) - refused.total()) / took_s, 2),
        "refused": {code: round(count / took_s, 2) for code, count in refused.items()},
        "rows": round((after.rows - before.rows) / took_s, 2),
        "in_flight": after.in_flight,
        "queued": after.queued,
        "latency_ms": _latency_ms(after.latency - before.latency),
    }


def _latency_ms(buckets: npt.NDArray[np.int64]) -> dict[str, dict[str, float | None]]:
    return {
        stage: {name: _ms(percentile(some, share)) for name, share in _QUANTILES.items()}
        for stage, some in zip(STAGES, buckets, strict=True)
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 4)


def percentile(buckets: npt.NDArray[np.int64], share: float) -> float | None:
    """How long a share of the requests took at the most; None where there were none."""
    return counts.quantile(share, counts.BOUNDS_S, buckets.cumsum().tolist())
