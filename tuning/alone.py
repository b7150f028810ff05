"""The model by itself: what a predict of so many rows takes, what of that is CPU, and what one more mule costs.

Runs in:  the command line, and a process that ends with the model.
Units:    seconds, MB of 2**20 bytes.
Raises:   TrialFailed, in one sentence.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import trial
from serving.model import ModelFolder, request_body
from serving.settings import Settings
from serving.task import Tensors
from tuning.pool import Line

# rows of a predict, as far as the model goes
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# for each size: so long, and so many calls
_LONG_S, _FEWEST, _MOST = 0.25, 4, 400
_WARM_UP = 2
# of what single predicts took, so many are kept
_SPREAD = 200
_BODIES = 64
# how much the variations of a sample differ from it
_VARIATION = 0.05


@dataclass(frozen=True)
class Alone:
    """A model, measured by itself with so many framework threads."""

    threads: int
    line: Line
    # by rows: the median of a predict
    points: dict[int, float]
    load_s: float
    # of a process with the model, and of the model with its framework in it
    mb: int
    model_mb: int
    engine: str
    # requests to load a server with
    bodies: tuple[bytes, ...] = ()

    @classmethod
    def measure(cls, folder: ModelFolder, settings: Settings, threads: int) -> "Alone":
        """Load it in a process of its own, and let it predict."""
        found = trial.apart(_measure, folder, settings, threads)
        rows = [count for count, took in found["took"].items() for _ in took]
        took = [seconds for all_s in found["took"].values() for seconds in all_s]
        overhead_s, row_s = fit(rows, took)
        spread = [seconds / (overhead_s + count * row_s) for count, seconds in zip(rows, took, strict=True)]
        places = np.linspace(0, len(spread) - 1, min(_SPREAD, len(spread))).astype(int)
        line = Line(
            overhead_s,
            row_s,
            found["busy"],
            found["most_rows"],
            tuple(float(one) for one in np.sort(spread)[places]),
        )
        points = {count: float(np.median(all_s)) for count, all_s in found["took"].items()}
        about = {key: found[key] for key in ("load_s", "mb", "model_mb", "engine")}
        return cls(threads, line, points, **about, bodies=tuple(found["bodies"]))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        line: dict[str, Any] = {"overhead_s": self.line.overhead_s, "row_s": self.line.row_s, "busy": self.line.busy}
        line |= {"most_rows": self.line.most_rows, "spread": list(self.line.spread)}
        about = {key: getattr(self, key) for key in ("threads", "load_s", "mb", "model_mb", "engine")}
        return about | {"line": line, "points": {str(rows): seconds for rows, seconds in self.points.items()}}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Alone":
        line = Line(**{**value["line"], "spread": tuple(value["line"]["spread"])})
        points = {int(rows): seconds for rows, seconds in value["points"].items()}
        return cls(**{**value, "line": line, "points": points})


def fit(rows: Iterable[int], took: Iterable[float]) -> tuple[float, float]:
    """The line overhead + rows x row through what was measured, neither below nothing.

    Least squares over the medians of each size, each by its share: a call of many rows counts no more than one of few.
    """
    by_rows: dict[int, list[float]] = {}
    for count, seconds in zip(rows, took, strict=True):
        by_rows.setdefault(count, []).append(seconds)
    sizes = np.array(sorted(by_rows), dtype=float)
    medians = np.array([np.median(by_rows[int(size)]) for size in sizes])
    if len(sizes) == 1:
        return float(medians[0]), 0.0
    row, overhead = np.polyfit(sizes, medians, 1, w=1 / np.maximum(medians, 1e-9))
    if overhead < 0:
        return 0.0, float(np.mean(medians / sizes))
    if row < 0:
        return float(medians.mean()), 0.0
    return float(overhead), float(row)


def _measure(folder: ModelFolder, settings: Settings, threads: int) -> dict[str, Any]:
    """In the model's own process."""
    from mules import engines
    from mules.canary import Canary

    before_mb, start = trial.rss_mb(), time.perf_counter()
    engine = engines.load(folder, threads)
    load_s = time.perf_counter() - start
    limits = (folder.options.get("max_batch_rows"), engine.max_batch_rows)
    most = min((rows for rows in limits if rows is not None), default=None)
    within = engines.most_rows(settings.max_batch_rows, folder, engine)
    sizes = [rows for rows in _SIZES if rows <= (most or max(_SIZES))]
    sample = folder.sample(engine.signature)
    Canary(engine, sample, folder.answer(engine.signature)).warm_up(within)
    random = np.random.default_rng(1)
    took: dict[int, list[float]] = {}
    wall_s = cpu_s = 0.0
    for rows in sizes:
        inputs = _varied(sample, rows, random)
        try:
            for _ in range(_WARM_UP):
                engine.predict(inputs)
        except Exception:
            # larger batches than those of the settings may be better, or more than it can take
            if rows <= within:
                raise
            most = max(took)
            break
        cpu_before, begin = time.process_time(), time.perf_counter()
        took[rows] = list(_calls(engine, inputs))
        wall_s += time.perf_counter() - begin
        cpu_s += time.process_time() - cpu_before
        if rows > 1 and took[rows][-1] > 4 * _LONG_S:
            break
    return {
        "took": took,
        "busy": cpu_s / wall_s,
        "most_rows": most,
        "load_s": load_s,
        "mb": trial.rss_mb(),
        "model_mb": trial.rss_mb() - before_mb,
        "engine": engines.find(folder),
        "bodies": [one_row(_varied(sample, 1, random)) for _ in range(_BODIES)],
    }


def _calls(engine: Any, inputs: Tensors) -> Iterator[float]:
    end, calls = time.perf_counter() + _LONG_S, 0
    while calls < _FEWEST or (calls < _MOST and time.perf_counter() < end):
        start = time.perf_counter()
        engine.predict(inputs)
        yield time.perf_counter() - start
        calls += 1


def _varied(sample: Tensors, rows: int, random: np.random.Generator) -> Tensors:
    """Rows like the sample's: fractions a little more or less, whole numbers and texts as they are."""
    found: Tensors = {}
    for name, tensor in sample.items():
        repeated = tensor.repeat(rows, axis=0)
        if repeated.dtype.kind == "f":
            factors = 1 + _VARIATION * random.standard_normal(repeated.shape)
            repeated = (repeated.astype(float) * factors).astype(repeated.dtype)
        found[name] = repeated
    return found


def one_row(inputs: Tensors) -> bytes:
    """The first of them, as POST /predict takes it."""
    return request_body({name: tensor[0] for name, tensor in inputs.items()})
