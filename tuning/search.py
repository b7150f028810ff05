"""The search: the model alone, the cost of a request around it, what the simulation finds, and real servers to judge.

Each prediction is made before its point is measured, and kept beside it.

Runs in:  the command line.
Units:    seconds.
Raises:   TrialFailed, StackFailed, TooLittleTime, in one sentence.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serving.model import ModelFolder
from serving.settings import Settings, cores
from tuning import calibration, candidates
from tuning.alone import Alone
from tuning.candidates import Evidence, Prediction, price
from tuning.pool import Pool
from tuning.promise import Promise
from tuning.setting import Setting
from tuning.stack import Measurement, Stack

# clients of a closed loop: enough that nobody waits for one, few enough that each has a seat
_CLIENTS = 64
# of the rate that it could do, hardly a request; and the bounds of what is sent then
_LOW, _LOW_RATES = 0.1, (20.0, 300.0)
# a run in which other programs took more of the cores, or the generator was late with more, is made again, so often
DISTURBED, _AGAIN = 0.1, 1
_REPEATS = 3
# the simulation agrees where it is no further from the promise than it is exact
AGREES = 1.25
# a setting that is better by less than two runs of the same differ is no better
BETTER = 1.05
_STEP = 1.1
_STAIRS = 4
_LEAST_RUN_S, _LONGEST_RUN_S = 2.0, 10.0
_CLOSED_S = 3.0
# of the choice, whatever time is left: shares of its rate
_LAST = (0.5, 2.0)
# so many are judged where each needs longer runs than the others
_JUDGED = 3
# of a search: what one that loads at once takes, each second of loading costs so many, and the most it may take
_BUDGET_S, _BUDGET_OF_LOADING, _LONGEST_BUDGET_S = 180.0, 40.0, 540.0


class TooLittleTime(Exception):
    """A percentile needs longer runs than there is time for, in one sentence."""


@dataclass
class Point:
    """A rate: what was predicted for it, and then measured."""

    rate: float
    predicted_s: float
    predicted_refused: float
    runs: list[Measurement] = field(default_factory=list)

    def measured_s(self, promise: Promise) -> float:
        """The percentile: the median of the runs that were disturbed the least, of two the worse."""
        found = [promise.of(run.latencies) for run in self.quiet]
        return statistics.median_high(found) if found else math.inf

    @property
    def quiet(self) -> list[Measurement]:
        """The runs without those that were disturbed, or else the one that was disturbed the least."""
        least = sorted(self.runs, key=lambda run: run.disturbance)
        return [run for run in self.runs if run.disturbance <= DISTURBED] or least[:1]


@dataclass
class Trial:
    """A setting that was tried on a real server."""

    pool: Pool
    # what it does at the most: as simulated, and as clients got who wait for each answer
    full: Measurement | None = None
    points: list[Point] = field(default_factory=list)
    # the highest rate that held the promise
    held: float = 0.0

    @property
    def setting(self) -> Setting:
        """What is tried."""
        return self.pool.setting

    def at(self, rate: float) -> Point | None:
        """What is known of a rate."""
        return next((point for point in self.points if point.rate == rate), None)

    def judge(self, promise: Promise) -> None:
        """Find the highest rate that held below any that did not."""
        self.held = 0.0
        for point in sorted((point for point in self.points if point.runs), key=lambda point: point.rate):
            if not promise.holds(point.measured_s(promise)):
                break
            self.held = point.rate


@dataclass
class Found:
    """All that came of a search."""

    evidence: Evidence
    rate: float
    seed: int
    low: Measurement
    full: Measurement
    ranked: list[Prediction]
    trials: list[Trial]
    chosen: Trial | None
    present: Trial | None
    # what holds the promise in the simulation, where nothing did on real servers
    wanted: Prediction | None = None
    seconds: float = 0.0

    @property
    def promise(self) -> Promise:
        """What was to be held."""
        return self.evidence.promise

    @property
    def nearest(self) -> Trial | None:
        """Of those that were tried, the one that came nearest."""

        def distance(trial: Trial) -> float:
            point = trial.at(self.rate)
            return point.measured_s(self.promise) if point else math.inf

        return min(self.trials, key=distance if self.rate else lambda trial: -trial.held, default=None)


class Watch:
    """Who is told how far a search is."""

    def tell(self, text: str, left_s: float) -> None:
        """What begins now, and how long all of it will still take."""


class Search:
    """One search, from the model to the choice."""

    def __init__(
        self,
        folder: ModelFolder,
        settings: Settings,
        start: Callable[[Setting], Stack],
        promise: Promise,
        rate: float,
        seconds: float,
        watch: Watch,
        seed: int = 1,
    ) -> None:
        """start: a server with a setting.  rate: to be held, or 0 for the highest.  seconds: of all, or 0."""
        self._folder, self._settings, self._start = folder, settings, start
        self._promise, self._rate, self._watch, self._seed = promise, rate, watch, seed
        self._began = time.monotonic()
        self._given_s = self._budget_s = seconds
        self._judged_rate = rate
        self._load_s = 1.0
        self._bodies: Sequence[bytes] = ()
        self._runs = 0

    def run(self, bodies: Sequence[bytes] = (), rows: Sequence[int] = (1,)) -> Found:
        """bodies: recorded, or those of the sample; rows: of each."""
        if self._rate:
            self._afford(self._rate)
        alone = self._measure_alone()
        self._bodies = bodies or next(iter(alone.values())).bodies
        evidence, low, full, present = self._calibrate(alone, tuple(rows))
        self._afford(self._rate or full.answered)
        self._watch.tell("simulating the pool", self._left_s)
        if self._rate:
            ranked = candidates.rank_at(evidence, self._rate)
            trials, chosen = self._hold(evidence, ranked, present)
        else:
            ranked = candidates.rank(evidence)
            trials, chosen = self._climb(evidence, ranked, present)
        found = Found(evidence, self._rate, self._seed, low, full, ranked, trials, chosen, present)
        if chosen is None:
            found.wanted = next((one for one in ranked if self._promise.holds(one.percentile_s) and one.rate), None)
        else:
            self._round_off(found, chosen)
        found.seconds = time.monotonic() - self._began
        return found

    def _afford(self, rate: float) -> None:
        """Refuse where the runs of one candidate are longer than all that was given; without --minutes allow them."""
        run_s = self._promise.least_requests / rate
        needs_s = (_REPEATS + sum(1 / share for share in _LAST)) * run_s
        if 0 < self._given_s < needs_s:
            raise TooLittleTime(
                f"--minutes {self._given_s / 60:g}: at {rate:.4g} requests a second {self._promise.name} takes runs of"
                f" {run_s:.0f} s to be known, and one candidate {math.ceil(needs_s / 6) / 10:g} minutes; set --minutes"
                " to more, or ask for a lower percentile"
            )
        self._judged_rate = rate
        if not self._given_s and self._budget_s and run_s > self._run_s:
            self._budget_s += _JUDGED * needs_s

    # ---- what is known

    def _measure_alone(self) -> dict[int, Alone]:
        present = Setting.of(self._settings).replica_threads
        self._watch.tell("the model alone", self._budget_s or _BUDGET_S)
        first = Alone.measure(self._folder, self._settings, present)
        self._load_s = first.load_s
        if not self._budget_s:
            self._budget_s = min(_BUDGET_S + _BUDGET_OF_LOADING * first.load_s, _LONGEST_BUDGET_S)
        found = {present: first}
        if first.line.busy >= calibration.WAITS:
            for threads in sorted({1, cores()} - {present}):
                self._watch.tell(f"the model alone, with {threads} framework threads", self._left_s)
                found[threads] = Alone.measure(self._folder, self._settings, threads)
        return found

    def _calibrate(
        self, alone: dict[int, Alone], rows: tuple[int, ...]
    ) -> tuple[Evidence, Measurement, Measurement, Trial]:
        """One run with hardly a request, one with its fill, of the setting that there is."""
        setting = Setting.of(self._settings)
        line = alone[setting.replica_threads].line
        could = setting.mules / line.of(max(1, round(sum(rows) / len(rows))), setting.batch_rows)
        rate = min(max(_LOW * could, _LOW_RATES[0]), _LOW_RATES[1])
        self._watch.tell(f"the server as it is ({setting.told()})", self._left_s)
        with self._start(setting) as stack:
            stack.wait_ready()
            low = self._quietest(stack, rate, max(self._run_s, 200 / rate))
            full = self._quietest(stack, 0.0, _CLOSED_S)
        lines = {
            threads: calibration.corrected(one.line, low, rows) if threads == setting.replica_threads else one.line
            for threads, one in alone.items()
        }
        costs = calibration.costs(low, full, lines[setting.replica_threads], rows)
        evidence = Evidence(self._settings, self._promise, alone, lines, costs, float(cores()), rows)
        return evidence, low, full, Trial(evidence.present, full)

    # ---- a rate is to be held, by as little as can be

    def _hold(
        self, evidence: Evidence, ranked: Sequence[Prediction], present: Trial
    ) -> tuple[list[Trial], Trial | None]:
        """The fewest mules that hold the rate in repeated runs, where the simulation agrees."""
        trials = [present]
        chosen = None
        hopeful = [one for one in ranked if one.percentile_s <= AGREES * self._promise.limit_s]
        # where it knows of none, the one that comes nearest shows whether it is right
        hopeful = hopeful or sorted(ranked, key=lambda one: one.percentile_s)[:1]
        place = next((place for place, one in enumerate(hopeful) if self._promise.holds(one.percentile_s)), 0)
        tried: set[int] = set()
        judging_s = _REPEATS * self._judging_s(self._rate) + _CLOSED_S
        while 0 <= place < len(hopeful) and place not in tried and (not tried or self._has_time(judging_s)):
            tried.add(place)
            trial = present if hopeful[place].pool == present.pool else Trial(hopeful[place].pool)
            if trial not in trials:
                trials.append(trial)
            if self._try_at(trial, self._rate):
                chosen = trial
                # perhaps with fewer
                place -= 1
            elif chosen is not None:
                break
            else:
                place += 1
        if present.at(self._rate) is None and self._has_time(self._judging_s(self._rate) + _CLOSED_S):
            self._try_at(present, self._rate, repeats=1)
        if (
            chosen is not None
            and chosen is not present
            and present.held
            and price(present.pool, present.setting) <= price(chosen.pool, present.setting)
            # it has had one run
            and self._try_at(present, self._rate, repeats=_REPEATS - 1)
        ):
            chosen = present
        return trials, chosen

    def _try_at(self, trial: Trial, rate: float, repeats: int = _REPEATS) -> bool:
        """Whether a setting holds the promise at a rate, by its median run."""
        point = self._point(trial, rate)
        self._watch.tell(f"{trial.setting.told()} at {rate:g} a second", self._left_s)
        with self._start(trial.setting) as stack:
            stack.wait_ready()
            for _ in range(repeats):
                point.runs.append(self._quietest(stack, rate, self._judging_s(rate)))
            if trial.full is None:
                trial.full = self._quietest(stack, 0.0, _CLOSED_S)
        trial.judge(self._promise)
        return self._promise.holds(point.measured_s(self._promise))

    # ---- the highest rate is wanted

    def _climb(
        self, evidence: Evidence, ranked: Sequence[Prediction], present: Trial
    ) -> tuple[list[Trial], Trial | None]:
        """The setting with the highest rate that holds; the present one where none is better by more than chance."""
        trials: list[Trial] = []
        best_full = 0.0
        ordered = sorted(ranked, key=lambda one: one.pool.setting != present.setting)
        for one in ordered:
            stairs_s = _STAIRS * self._judging_s(one.rate or self._judged_rate)
            # and of the best of all its runs in a server started anew
            if trials and not self._has_time(stairs_s + self._load_s + _CLOSED_S + _REPEATS * stairs_s / _STAIRS):
                break
            trial = present if one.pool.setting == present.setting else Trial(one.pool)
            trials.append(trial)
            self._watch.tell(f"the highest rate of {trial.setting.told()}", self._left_s)
            with self._start(trial.setting) as stack:
                stack.wait_ready()
                full = trial.full = self._quietest(stack, 0.0, _CLOSED_S)
                best_full = max(best_full, full.answered)
                # what has a tenth less with all the clients there are will not have more with fewer
                if full.answered >= 0.9 * best_full:
                    self._climb_stairs(trial, stack, min(one.rate or full.answered, full.answered))
        return trials, self._confirmed(trials, present)

    def _confirmed(self, trials: Sequence[Trial], present: Trial) -> Trial | None:
        """The best that held its rate in a server started anew, too: the best of single runs is one that had luck."""
        sure: set[tuple[Setting, float]] = set()
        while (chosen := best(trials, present)) is not None and (chosen.setting, chosen.held) not in sure:
            rate = chosen.held
            repeats = _REPEATS if self._has_time(_REPEATS * self._judging_s(rate)) else 1
            if not self._try_at(chosen, rate, repeats) and not chosen.held and self._has_time(self._judging_s(rate)):
                # nothing lower is known of it
                rate = _rounded(rate / _STEP)
                self._try_at(chosen, rate)
            sure.add((chosen.setting, rate))
        return chosen

    def _climb_stairs(self, trial: Trial, stack: Stack, rate: float) -> None:
        """The highest rate that holds, by steps up or down, then between what held and what did not."""
        low, high = 0.0, math.inf
        rate *= 0.9
        for _ in range(_STAIRS):
            point = self._point(trial, _rounded(rate))
            point.runs.append(self._quietest(stack, point.rate, self._judging_s(point.rate)))
            if self._promise.holds(point.measured_s(self._promise)):
                low = point.rate
                rate = rate * _STEP if high == math.inf else (low + high) / 2
            else:
                high = point.rate
                rate = (low + high) / 2 if low else rate * 0.6
        trial.judge(self._promise)

    # ---- what else is told of the choice

    def _round_off(self, found: Found, chosen: Trial) -> None:
        """Points for its curve, and what it does at twice the rate."""
        rate = self._rate or chosen.held
        wanted = [_rounded(share * rate) for share in (*_LAST, 0.75, 1.1)]
        wanted = [one for one in wanted if chosen.at(one) is None]
        self._watch.tell(f"{chosen.setting.told()} at half and at twice the rate", self._left_s)
        with self._start(chosen.setting) as stack:
            stack.wait_ready()
            for one in wanted:
                # the others are for the curve alone
                if one in [_rounded(share * rate) for share in _LAST] or self._left_s > self._judging_s(one):
                    point = self._point(chosen, one)
                    point.runs.append(self._quietest(stack, one, self._judging_s(one)))

    # ---- runs

    def _point(self, trial: Trial, rate: float) -> Point:
        """A rate, with what is predicted for it."""
        if (point := trial.at(rate)) is not None:
            return point
        outcome = trial.pool.simulate(rate, max(20_000, 10 * self._promise.least_requests))
        point = Point(rate, self._promise.of(outcome.latencies), outcome.refused)
        trial.points.append(point)
        return point

    def _quietest(self, stack: Stack, rate: float, seconds: float) -> Measurement:
        """A run that nothing but the server had a part in, or the one that was disturbed the least."""
        clients = min(_CLIENTS, stack.setting.seats)
        runs: list[Measurement] = []
        while not runs or (len(runs) <= _AGAIN and runs[-1].disturbance > DISTURBED and self._has_time(seconds)):
            self._runs += 1
            runs.append(stack.measure(self._bodies, seconds, rate, clients, self._seed + self._runs))
        return min(runs, key=lambda run: run.disturbance)

    @property
    def _run_s(self) -> float:
        return min(max(self._budget_s / 36, _LEAST_RUN_S), _LONGEST_RUN_S)

    def _judging_s(self, rate: float) -> float:
        """A run that is to say something of the percentile, as far as its rate is known."""
        return max(self._run_s, self._promise.least_requests / rate) if rate else self._run_s

    @property
    def _left_s(self) -> float:
        return max(0.0, self._began + self._budget_s - time.monotonic())

    def _has_time(self, seconds: float) -> bool:
        """Whether there is so much, and what a server takes that is started for it, and the last points after it."""
        last_s = sum(self._judging_s(share * self._judged_rate) for share in _LAST)
        return self._left_s > seconds + 2 * self._load_s + last_s


def best(trials: Sequence[Trial], present: Trial) -> Trial | None:
    """The one that held the highest rate; the present one where that is no more than chance."""
    chosen = max(trials, key=lambda trial: trial.held)
    if chosen.held < BETTER * present.held:
        chosen = present
    return chosen if chosen.held else None


def _rounded(rate: float) -> float:
    """To three digits: more of a rate are chance."""
    return float(f"{rate:.3g}")


def others_of(found: Found) -> float:
    """Of the cores: what other programs took at the most in the runs that count."""
    return max(run.others for run in _counted(found))


def behind_of(found: Found) -> float:
    """Of the requests of a run that counts: how many at the most the load generator wrote too late."""
    return max(run.behind for run in _counted(found))


def _counted(found: Found) -> list[Measurement]:
    runs = [run for trial in found.trials for point in trial.points for run in point.quiet]
    return [found.low, found.full, *runs]
