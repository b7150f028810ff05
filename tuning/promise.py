"""The promise that is to be held: of a hundred requests, how many are answered within which time.

Units:    seconds.
Raises:   PromiseError, in one sentence.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_FORM = re.compile(r"p(\d{1,2}(?:\.\d{1,3})?)=(\d+(?:\.\d+)?)(us|ms|s)")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
# so many are to lie beyond a percentile for it to say something
_BEYOND = 5


class PromiseError(ValueError):
    """It is no promise, in one sentence."""


@dataclass(frozen=True)
class Promise:
    """So many of a hundred within limit_s; a request that is refused, or fails, is as one that comes too late."""

    percent: float
    limit_s: float

    @classmethod
    def parse(cls, text: str) -> "Promise":
        """Of p99=50ms."""
        match = _FORM.fullmatch(text)
        if not match or not float(match[1]) or not float(match[2]):
            raise PromiseError(f"{text!r} is no promise: a percentile and a time, p99=50ms or p99.9=0.2s")
        return cls(float(match[1]), float(match[2]) * _UNITS[match[3]])

    def __str__(self) -> str:
        return f"{self.name} ≤ {self.limit_s * 1000:g} ms"

    @property
    def name(self) -> str:
        """Of its percentile."""
        return f"p{self.percent:g}"

    @property
    def least_requests(self) -> int:
        """With fewer its percentile says nothing."""
        return math.ceil(_BEYOND / (1 - self.percent / 100))

    def of(self, latencies: npt.NDArray[np.float64]) -> float:
        """The percentile of latencies; inf where that one was refused."""
        if not len(latencies):
            return math.inf
        ordered = np.sort(latencies)
        return float(ordered[min(len(ordered) - 1, math.ceil(len(ordered) * self.percent / 100) - 1)])

    def allows(self, refused: float) -> bool:
        """Whether a share of refusals leaves half of what may come too late to chance."""
        return refused <= (1 - self.percent / 100) / 2

    def holds(self, found_s: float) -> bool:
        """Whether a percentile is within the limit."""
        return found_s <= self.limit_s
