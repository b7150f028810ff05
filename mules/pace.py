"""How long a predict takes, as a line over its rows: overhead_s + rows x row_s.

A least-squares fit over the last predicts, older ones counting less and less; with all of them of one size the slope
stays what it was.

Runs in:  mule.
Units:    seconds.
"""

import math

# what a predict still counts after the next one
_FADE = 0.95
# below this variance of the rows there is no slope to see
_SAME_SIZE = 1e-3


class Pace:
    """The line through what was measured."""

    def __init__(self) -> None:
        self.overhead_s = 0.0
        self.row_s = 0.0
        self._weight = self._rows = self._time = self._rows_rows = self._rows_time = 0.0

    @property
    def shared_rows(self) -> float:
        """From so many rows on, a second predict of half of them at the same time saves more than it costs."""
        return 2 * self.overhead_s / self.row_s if self.row_s else math.inf

    def measure(self, rows: int, took_s: float) -> None:
        """One predict took so long."""
        self._weight = self._weight * _FADE + 1
        self._rows = self._rows * _FADE + rows
        self._time = self._time * _FADE + took_s
        self._rows_rows = self._rows_rows * _FADE + rows * rows
        self._rows_time = self._rows_time * _FADE + rows * took_s
        mean_rows, mean_time = self._rows / self._weight, self._time / self._weight
        variance = self._rows_rows / self._weight - mean_rows * mean_rows
        if variance > _SAME_SIZE * mean_rows * mean_rows:
            self.row_s = max(0.0, (self._rows_time / self._weight - mean_rows * mean_time) / variance)
        # never below nothing, and through the mean in any case
        self.row_s = min(self.row_s, mean_time / mean_rows)
        self.overhead_s = mean_time - self.row_s * mean_rows
