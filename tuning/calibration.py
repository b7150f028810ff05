"""What a request costs around the model, from two runs of a real server: one with hardly a request, one with its fill.

None of them is a point that is predicted from it.

Runs in:  the command line.
Units:    seconds.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tuning.pool import Costs, Line
from tuning.stack import Measurement

# of what waits in the queue at the low rate, more than so many of a hundred do waits for others, and not to be woken
_WOKEN = 75
_SAMPLES = 400
# of what single requests took, the longest are accidents of the machine, of which a short run has too many or none
_KEPT = 0.98
# a model that computes less than so waits for something else
WAITS = 0.5


def costs(low: Measurement, full: Measurement, line: Line, rows: Sequence[int]) -> Costs:
    """Of a request, from both runs."""
    turn_s, task_s = _mule_costs((low, full), line, sum(rows) / len(rows))
    nginx_s, worker_s = full.of_request("nginx"), full.of_request("worker")
    known = np.isfinite(low.latencies)
    queue_s = low.queue_s[known]
    woken_s = np.minimum(queue_s, np.percentile(queue_s, _WOKEN))
    around_s = low.latencies[known] - low.predict_s[known] - queue_s + woken_s
    floor = np.sort(np.maximum(around_s - nginx_s - worker_s - turn_s - task_s, 0.0))
    return Costs(nginx_s, worker_s, full.of_request("generator"), turn_s, task_s, _thinned(floor))


def corrected(line: Line, low: Measurement, rows: Sequence[int]) -> Line:
    """A model that waits takes among other processes what it takes there; one that computes is told by its CPU."""
    if line.busy >= WAITS:
        return line
    found = low.predict_s[np.isfinite(low.predict_s)]
    expected = np.mean([line.of(count, max(rows)) for count in rows])
    spread = np.sort(found / expected)
    return replace(line, spread=_thinned(spread))


def _mule_costs(runs: Sequence[Measurement], line: Line, mean_rows: float) -> tuple[float, float]:
    """CPU of a mule beside its model: of a batch, and of each task in it."""
    points = []
    for run in runs:
        # a batch of so many tasks costs so much more than its predict
        predict_s = line.of(max(1, round(run.batches * mean_rows)), run.setting.batch_rows) * line.busy
        points.append((run.batches, run.of_request("mule") * run.batches - predict_s))
    (few, few_s), (many, many_s) = points
    if many - few < 0.5:
        return max(0.0, many_s), 0.0
    task_s = max(0.0, (many_s - few_s) / (many - few))
    return max(0.0, few_s - task_s * few), task_s


def _thinned(ordered: npt.NDArray[np.float64]) -> tuple[float, ...]:
    ordered = ordered[: max(1, int(len(ordered) * _KEPT))]
    places = np.linspace(0, len(ordered) - 1, min(_SAMPLES, len(ordered))).round().astype(int)
    return tuple(float(one) for one in ordered[places])
