"""Which settings could be right: what the model, the cores and the memory leave, and how the simulation ranks them.

Runs in:  the command line.
Units:    seconds, MB of 2**20 bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from serving.errors import SettingsError
from serving.settings import Settings, memory_bytes
from tuning.alone import Alone
from tuning.calibration import WAITS
from tuning.pool import Costs, Line, Pool
from tuning.promise import Promise
from tuning.setting import Setting, threads

# seats, by what is drained in the time that is promised: with a tenth less whoever has one is answered in time even
# when all are taken; with a quarter more some come late then, but fewer are refused in a burst
SEATS = (0.9, 1.25)
_MOST_MULES = 32
_BATCHES = (8, 32, 128)
# of the memory, more is too near to the edge
_FULL = 0.8
# as much as of a kind as are worth simulating
_OF_A_KIND = 2
_SIMULATED = 6
# counts of mules that hold the promise, or that bring no more: so many tell enough
_ENOUGH, _WORTH = 3, 0.95


@dataclass(frozen=True)
class Evidence:
    """All that is known before a candidate is tried."""

    settings: Settings
    promise: Promise
    # by framework threads, with their lines as the real stack showed them
    alone: Mapping[int, Alone]
    lines: Mapping[int, Line]
    costs: Costs
    cores: float
    rows: tuple[int, ...]

    def pool(self, setting: Setting) -> Pool:
        """A setting, as it is simulated."""
        line = self.lines.get(setting.replica_threads) or self.lines[min(self.lines)]
        return Pool(setting, line, self.costs, self.cores, self.rows)

    @property
    def present(self) -> Pool:
        """As uwsgi.ini has it."""
        return self.pool(Setting.of(self.settings))

    @property
    def computes(self) -> bool:
        """Whether a predict is work for the cores."""
        return next(iter(self.lines.values())).busy >= WAITS

    @property
    def most_mules(self) -> int:
        """That there is memory for, with one more while it is replaced."""
        mb = max(1, max(alone.mb for alone in self.alone.values()))
        room = int(_FULL * (memory_bytes() >> 20) / mb) - 1
        return max(1, min(room, _MOST_MULES))

    def seated(self, setting: Setting, share: float = SEATS[0]) -> Pool:
        """With as many seats as the longest wait that still keeps the promise has, more or less a little."""
        inside = share * self.promise.limit_s * self.pool(setting).limit
        # each mule at work, and what it takes next
        return self.pool(replace(setting, threads=threads(max(inside, 2 * setting.mules), setting.workers)))

    def fits(self, pool: Pool) -> bool:
        """Whether the server would start with it."""
        wanted = pool.setting
        try:
            replace(
                self.settings,
                mules=wanted.mules,
                processes=wanted.workers + 1,
                threads=wanted.threads,
                queue=wanted.queue(self.settings),
                max_batch_rows=wanted.batch_rows,
                replica_threads=wanted.replica_threads,
            ).check()
        except SettingsError:
            return False
        return True

    def all(self) -> Iterator[Pool]:
        """Every setting that could be right, the present one among them."""
        present = Setting.of(self.settings)
        yield self.pool(present)
        for mules in range(1, self._mules_worth_trying() + 1):
            for workers in sorted({*range(1, min(4, math.ceil(self.cores)) + 1), present.workers}):
                for batch_rows in self._batches(present):
                    for replica_threads in self._threads(present, mules):
                        setting = Setting(mules, workers, present.threads, batch_rows, replica_threads)
                        pools = [self.seated(setting, share) for share in SEATS]
                        yield from (pool for pool in dict.fromkeys(pools) if self.fits(pool))

    def _mules_worth_trying(self) -> int:
        if self.computes:
            # one more than cores works while others answer
            return min(self.most_mules, 2 * math.ceil(self.cores))
        # each waits, and what they cost the cores ends it
        line = next(iter(self.lines.values()))
        cpu_s = self.costs.request_s + self.costs.turn_s + line.of(1, 1) * line.busy
        return min(self.most_mules, math.ceil(1.2 * self.cores / cpu_s * line.of(1, 1)) + 1)

    def _batches(self, present: Setting) -> list[int]:
        line = next(iter(self.lines.values()))
        if line.most_rows == 1:
            return [present.batch_rows]
        # one that takes half of the time, so that who has just missed it is in the next
        longest_s = self.promise.limit_s / 2
        most = line.most_rows or max(_BATCHES)
        others = (rows for rows in _BATCHES if rows <= most and line.of(rows, rows) <= longest_s)
        return sorted({present.batch_rows, *others})

    def _threads(self, present: Setting, mules: int) -> list[int]:
        if not self.computes:
            return [present.replica_threads if mules == present.mules else max(1, int(self.cores) // mules)]
        return [count for count in sorted(self.lines) if count == 1 or count * mules <= self.cores]


def price(pool: Pool, present: Setting) -> tuple[float, ...]:
    """What comes first where several hold the promise: few mules, then few of all else, then what is there already."""
    setting = pool.setting
    return (
        setting.mules,
        setting.mules * setting.replica_threads,
        setting.workers,
        setting.batch_rows != present.batch_rows,
        setting.threads != present.threads,
        setting.threads,
    )


@dataclass(frozen=True)
class Prediction:
    """Of a candidate: the percentile at a rate, or the highest rate that holds the promise."""

    pool: Pool
    rate: float
    percentile_s: float


def rank_at(evidence: Evidence, rate: float) -> list[Prediction]:
    """For each count of mules the best that the simulation finds at a rate, the fewest mules first."""
    present = Setting.of(evidence.settings)
    by_mules: dict[int, list[Pool]] = {}
    for pool in evidence.all():
        by_mules.setdefault(pool.setting.mules, []).append(pool)
    found = []
    holding = 0
    for _, pools in sorted(by_mules.items()):
        pools = [pool for pool in pools if pool.limit > 0.9 * rate] or [max(pools, key=lambda pool: pool.limit)]
        tried, holds = [], None
        for pool in sorted(pools, key=lambda pool: price(pool, present))[: 2 * _OF_A_KIND]:
            outcome = pool.simulate(rate, _requests(evidence.promise))
            percentile_s = evidence.promise.of(outcome.latencies)
            tried.append(one := Prediction(pool, rate, percentile_s))
            if evidence.promise.holds(percentile_s) and evidence.promise.allows(outcome.refused):
                holds = one
                break
        # one that is all but full, and holds by what it refuses, is hoped for by nobody
        found.append(holds or min(tried, key=lambda one: (-one.pool.setting.seats, one.percentile_s)))
        holding += holds is not None
        # with more mules than those it gets no cheaper; nor better, where the last few were not
        if holding == _ENOUGH or (len(found) > _ENOUGH and not _improves([one.percentile_s for one in found])):
            break
    return found


def _improves(percentiles: Sequence[float]) -> bool:
    """Whether the last ones are better than all before them, or none was ever good for anything."""
    before = min(percentiles[:-_ENOUGH])
    return before == math.inf or min(percentiles[-_ENOUGH:]) < _WORTH * before


def rank(evidence: Evidence) -> list[Prediction]:
    """The candidates that promise most, the highest rate first, the present setting among them."""
    present = Setting.of(evidence.settings)
    pools = sorted(evidence.all(), key=lambda pool: (-pool.limit, price(pool, present)))
    chosen: list[Pool] = []
    for pool in pools:
        # settings that differ in little are tried once
        alike = [one for one in chosen if one.setting.mules == pool.setting.mules]
        if len(alike) < _OF_A_KIND and len(chosen) < _SIMULATED:
            chosen.append(pool)
    if all(pool.setting != present for pool in chosen):
        chosen.append(evidence.present)
    found = [Prediction(pool, pool.highest_rate(evidence.promise), evidence.promise.limit_s) for pool in chosen]
    return sorted(found, key=lambda one: (-one.rate, price(one.pool, present)))


def _requests(promise: Promise) -> int:
    return max(8000, 4 * promise.least_requests)


def capacities(evidence: Evidence, counts: Sequence[int]) -> list[Prediction]:
    """What other counts of mules could do, all else as it is."""
    present = Setting.of(evidence.settings)
    pools = []
    for mules in counts:
        # with 0 the cores are shared out among so many
        replica_threads = replace(evidence.settings, mules=mules).threads_per_replica
        pools.append(evidence.pool(replace(present, mules=mules, replica_threads=replica_threads)))
    return [Prediction(pool, pool.highest_rate(evidence.promise), evidence.promise.limit_s) for pool in pools]
