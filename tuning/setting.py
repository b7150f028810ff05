"""The counts that are tuned, together: as variables of a server's environment, and as lines of uwsgi.ini.

Runs in:  the command line.
"""

import math
import mmap
from dataclasses import asdict, dataclass, replace
from typing import Any

from serving.settings import Settings


@dataclass(frozen=True)
class Setting:
    """One choice of all of them.  workers: those that predict, without the one for health."""

    mules: int
    workers: int
    threads: int
    batch_rows: int
    replica_threads: int

    @classmethod
    def of(cls, settings: Settings) -> "Setting":
        """What a uwsgi.ini says."""
        return cls(
            settings.mules,
            settings.prediction_workers,
            settings.threads,
            settings.max_batch_rows,
            settings.threads_per_replica,
        )

    @property
    def seats(self) -> int:
        """Requests that can be inside at a time."""
        return self.workers * self.threads

    def queue(self, settings: Settings) -> int:
        """Slots: four for each seat, in whole pages."""
        step = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, settings.queue_blocksize)
        return -(-4 * self.seats // step) * step

    def lines(self, settings: Settings) -> dict[tuple[str, str], int]:
        """What is to stand in uwsgi.ini, by section and key, where that says otherwise."""
        wanted = {
            ("uwsgi", "mules"): (self.mules, settings.mules),
            ("uwsgi", "processes"): (self.workers + 1, settings.processes),
            ("uwsgi", "threads"): (self.threads, settings.threads),
            ("uwsgi", "queue"): (self.queue(settings), settings.queue),
            ("serving", "max_batch_rows"): (self.batch_rows, settings.max_batch_rows),
            ("serving", "replica_threads"): (self.replica_threads, settings.replica_threads),
        }
        if self.seats == settings.seats:
            # larger than it needs to be is no fault
            del wanted["uwsgi", "queue"]
        if replace(settings, mules=self.mules).threads_per_replica == self.replica_threads:
            # as with 0, which shares the cores out among the mules
            del wanted["serving", "replica_threads"]
        return {key: new for key, (new, old) in wanted.items() if new != old}

    def environ(self, settings: Settings) -> dict[str, str]:
        """For a server of its own."""
        return {
            "MULES": str(self.mules),
            "WORKERS": str(self.workers + 1),
            "THREADS": str(self.threads),
            "QUEUE": str(self.queue(settings)),
            "SERVING_MAX_BATCH_ROWS": str(self.batch_rows),
            "SERVING_REPLICA_THREADS": str(self.replica_threads),
        }

    def told(self) -> str:
        """In words."""
        parts = [
            _many(self.mules, "mule"),
            f"{self.workers} + 1 workers",
            _many(self.threads, "thread"),
            f"batches of {self.batch_rows}",
        ]
        if self.replica_threads > 1:
            parts.append(f"{self.replica_threads} framework threads")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def threads(seats: float, workers: int) -> int:
    """Threads of each worker, for so many seats at the most."""
    return max(1, int(seats / workers))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
