"""The pool as a queueing model: a discrete-event simulation of nginx, workers, queue and mules on so many cores.

Requests arrive as a Poisson process.  Each takes a connection, and with it a worker, or is refused where none is free;
nginx and each worker do one thing at a time; a mule that is free takes what waits by the rules of the real ones, but
for batch_wait_ms, of which this knows nothing; and all that computes shares the cores evenly, and takes longer where it
wants more of them than there are.  What it is fed with was measured: the model by itself, and the cost of a request
around it.

Runs in:  the command line.
Units:    seconds.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuning.promise import Promise
from tuning.setting import Setting

Floats = npt.NDArray[np.float64]

# of the requests of a simulation, the first ones find it emptier than it will be
_WARM_UP = 0.1
# a search for the highest rate ends when it knows it so well
_PRECISION = 0.03
_SEARCH_REQUESTS = 5000
REQUESTS = 30000
# what a simulated request goes through, one after the other
_NGINX, _DECODE, _PREDICT, _ENCODE, _ASIDE = range(5)


@dataclass(frozen=True)
class Line:
    """What a predict takes by its rows, overhead_s + rows x row_s, and how much of that is CPU."""

    overhead_s: float
    row_s: float
    # of CPU in a second of a predict: 0 for one that waits, above 1 for one with several threads
    busy: float
    # of one call at the most: as the model or its engine says, or as it has shown
    most_rows: int | None = None
    # measured by predicted, of single predicts
    spread: tuple[float, ...] = (1.0,)

    def of(self, rows: int, batch_rows: int) -> float:
        """A predict of so many rows, in calls of at most batch_rows."""
        calls = -(-rows // min(batch_rows, self.most_rows or batch_rows))
        return calls * self.overhead_s + rows * self.row_s

    @property
    def shared_rows(self) -> float:
        """From so many rows on they are shared out among mules that sleep: the real ones' rule (mules/pace.py)."""
        return 2 * self.overhead_s / self.row_s if self.row_s > 0 else math.inf


@dataclass(frozen=True)
class Costs:
    """CPU of one request around the model, and what it waits for besides: sampled where nobody else was there."""

    nginx_s: float
    worker_s: float
    generator_s: float
    # of a mule: for each batch, and for each task in it
    turn_s: float
    task_s: float
    floor: tuple[float, ...] = (0.0,)

    @property
    def request_s(self) -> float:
        """CPU of one request without the model and its mule."""
        return self.nginx_s + self.worker_s + self.generator_s


@dataclass(frozen=True)
class Outcome:
    """What a simulation comes to.  latencies: of all, inf for one that was refused."""

    rate: float
    latencies: Floats
    # of the time, in which the mules predict, and in which the cores compute
    mules_busy: float
    cores_busy: float

    @property
    def refused(self) -> float:
        """The share of all."""
        return float(np.isinf(self.latencies).mean())

    @property
    def answered(self) -> float:
        """Requests a second."""
        return self.rate * (1 - self.refused)


@dataclass(frozen=True)
class Pool:
    """A setting, and all that is known of what it is to do."""

    setting: Setting
    line: Line
    costs: Costs
    cores: float
    # of the requests that come, each as likely as the others
    rows: tuple[int, ...] = (1,)

    @property
    def batch_rows(self) -> int:
        """Of a batch at the most: as the setting says, or the model."""
        return min(self.setting.batch_rows, self.line.most_rows or self.setting.batch_rows)

    def limits(self) -> dict[str, float]:
        """What each part could do alone, requests a second: the least of them is what the whole can."""
        mean_rows = sum(self.rows) / len(self.rows)
        tasks = max(1.0, min(self.setting.seats / self.setting.mules, self.batch_rows / mean_rows))
        predict_s = self.line.of(max(1, round(tasks * mean_rows)), self.batch_rows)
        mule_s = self.costs.turn_s + tasks * self.costs.task_s
        cpu_s = self.costs.request_s + (mule_s + predict_s * self.line.busy) / tasks
        needs = {
            "mules": (predict_s + mule_s) / self.setting.mules / tasks,
            "cores": cpu_s / self.cores,
            "workers": self.costs.worker_s / self.setting.workers,
            "nginx": self.costs.nginx_s,
        }
        return {part: 1 / seconds if seconds else math.inf for part, seconds in needs.items()}

    @property
    def limit(self) -> float:
        """Requests a second that it can do at the most."""
        return min(self.limits().values())

    def simulate(self, rate: float, requests: int = REQUESTS, seed: int = 1) -> Outcome:
        """So many requests at a rate."""
        return _Run(self, rate, requests, seed).outcome()

    def highest_rate(self, promise: Promise, requests: int = _SEARCH_REQUESTS) -> float:
        """The highest rate that holds a promise, by halving; 0 where none does."""
        requests = max(requests, 4 * promise.least_requests)
        low, high = 0.0, 1.1 * self.limit
        while high - low > _PRECISION * high:
            rate = (low + high) / 2
            if promise.holds(promise.of(self.simulate(rate, requests).latencies)):
                low = rate
            else:
                high = rate
            if high < 0.02 * self.limit:
                return 0.0
        return low


def take(waiting: Sequence[int], most_rows: int, shared_rows: float, asleep: int) -> int:
    """How many of those that wait a mule takes, by their rows: the rules of serving/transport.py.

    asleep: other mules that sleep.
    """
    if len(waiting) >= shared_rows and asleep:
        most_rows = min(most_rows, math.ceil(len(waiting) / (1 + asleep)))
    taken = rows = 0
    while taken < len(waiting) and rows < most_rows:
        rows += waiting[taken]
        taken += 1
    return taken


class _Run:
    """One simulation.  What computes is ordered by how much of the cores it still needs: all get as much."""

    def __init__(self, pool: Pool, rate: float, requests: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self._pool = pool
        self._rate = rate
        self._arrivals = np.cumsum(random.exponential(1 / rate, requests)).tolist()
        self._rows = random.choice(pool.rows, requests).tolist()
        self._spread = random.choice(pool.line.spread, requests).tolist()
        self._floor = random.choice(pool.costs.floor, requests)
        self._ends = np.full(requests, np.inf)
        setting = pool.setting
        # the connection that was used last is taken first, as nginx does
        self._connections = [seat % setting.workers for seat in range(setting.seats)]
        self._worker = [0] * requests
        # nginx, then each worker: what waits for it, and whether it is at work
        self._lines: list[deque[tuple[int, int]]] = [deque() for _ in range(setting.workers + 1)]
        self._at_work = [False] * (setting.workers + 1)
        self._waiting: deque[int] = deque()
        self._asleep = setting.mules
        self._now = self._spent = self._weight = 0.0
        self._speed = 1.0
        # (when as much was spent on each, order, weight, stage, batch; of all but a predict that is one request)
        self._computing: list[tuple[float, int, float, int, list[int]]] = []
        # (when, order, batch): those that wait for something else than a core
        self._idling: list[tuple[float, int, list[int]]] = []
        self._order = self._batches = 0
        self._mule_s = self._core_s = 0.0

    def outcome(self) -> Outcome:
        arrivals, computing, idling = self._arrivals, self._computing, self._idling
        place, count = 0, len(arrivals)
        while place < count or computing or idling:
            arrives = arrivals[place] if place < count else math.inf
            woken = idling[0][0] if idling else math.inf
            done = self._now + (computing[0][0] - self._spent) / self._speed if computing else math.inf
            if done <= arrives and done <= woken:
                self._advance(done)
                _, _, weight, stage, batch = heapq.heappop(computing)
                self._weigh(-weight)
                self._next(stage, batch)
            elif arrives <= woken:
                self._advance(arrives)
                if self._connections:
                    self._worker[place] = self._connections.pop()
                    self._queue(0, _NGINX, place)
                place += 1
            else:
                self._advance(woken)
                batch = heapq.heappop(idling)[2]
                self._compute(_PREDICT, batch, self._busy_s(batch))
        begin = int(count * _WARM_UP)
        latencies = self._ends - np.array(arrivals) + self._floor
        time = self._now or 1.0
        return Outcome(
            self._rate,
            latencies[begin:],
            self._mule_s / time / self._pool.setting.mules,
            self._core_s / time / self._pool.cores,
        )

    def _advance(self, time: float) -> None:
        self._spent += (time - self._now) * self._speed
        self._now = time

    def _weigh(self, weight: float) -> None:
        self._weight += weight
        self._speed = min(1.0, self._pool.cores / self._weight) if self._weight > 1e-9 else 1.0

    def _compute(self, stage: int, batch: list[int], needs_s: float, weight: float = 1.0) -> None:
        self._order += 1
        self._core_s += needs_s * weight
        heapq.heappush(self._computing, (self._spent + needs_s, self._order, weight, stage, batch))
        self._weigh(weight)

    def _queue(self, line: int, stage: int, request: int) -> None:
        """To one that does one thing at a time."""
        if self._at_work[line]:
            self._lines[line].append((stage, request))
        else:
            self._begin(line, stage, request)

    def _begin(self, line: int, stage: int, request: int) -> None:
        costs = self._pool.costs
        self._at_work[line] = True
        self._compute(stage, [request], costs.nginx_s if stage == _NGINX else costs.worker_s / 2)

    def _next(self, stage: int, batch: list[int]) -> None:
        """What follows when a stage is done."""
        if stage == _PREDICT:
            for request in batch:
                self._queue(1 + self._worker[request], _ENCODE, request)
            self._take()
            return
        if stage == _ASIDE:
            return
        request = batch[0]
        line = 0 if stage == _NGINX else 1 + self._worker[request]
        self._at_work[line] = False
        if self._lines[line]:
            self._begin(line, *self._lines[line].popleft())
        if stage == _NGINX:
            if self._pool.costs.generator_s:
                self._compute(_ASIDE, [], self._pool.costs.generator_s)
            self._queue(1 + self._worker[request], _DECODE, request)
        elif stage == _DECODE:
            self._waiting.append(request)
            if self._asleep:
                self._asleep -= 1
                self._take()
        else:
            self._ends[request] = self._now
            self._connections.append(self._worker[request])

    def _take(self) -> None:
        """A mule is free."""
        waiting, pool = self._waiting, self._pool
        if not waiting:
            self._asleep += 1
            return
        if len(waiting) == 1:
            batch = [waiting.popleft()]
        else:
            rows = [self._rows[request] for request in waiting]
            many = take(rows, pool.batch_rows, pool.line.shared_rows, self._asleep)
            batch = [waiting.popleft() for _ in range(many)]
        if waiting and self._asleep:
            # it rings for what it leaves
            self._asleep -= 1
            self._predict(batch)
            self._take()
        else:
            self._predict(batch)

    def _predict(self, batch: list[int]) -> None:
        predict_s, line = self._predict_s(batch), self._pool.line
        self._mule_s += predict_s
        if line.busy < 1:
            self._order += 1
            heapq.heappush(self._idling, (self._now + predict_s * (1 - line.busy), self._order, batch))
        else:
            self._compute(_PREDICT, batch, predict_s + self._turn_s(batch), line.busy)

    def _predict_s(self, batch: list[int]) -> float:
        rows = sum(self._rows[request] for request in batch)
        spread: float = self._spread[batch[0]]
        return self._pool.line.of(rows, self._pool.setting.batch_rows) * spread

    def _turn_s(self, batch: list[int]) -> float:
        self._mule_s += (turn_s := self._pool.costs.turn_s + len(batch) * self._pool.costs.task_s)
        return turn_s

    def _busy_s(self, batch: list[int]) -> float:
        return self._predict_s(batch) * self._pool.line.busy + self._turn_s(batch)
