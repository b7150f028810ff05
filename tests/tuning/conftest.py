"""A search's findings without a search: a model that waits 5 ms, on two cores."""

from pathlib import Path

import numpy as np
import pytest

from serving.settings import Settings
from tuning.alone import Alone
from tuning.candidates import Evidence, Prediction
from tuning.pool import Costs, Line
from tuning.promise import Promise
from tuning.search import Found, Point, Trial
from tuning.setting import Setting
from tuning.stack import Measurement

SHIPPED = Path(__file__).parents[2] / "uwsgi.ini"
LINE = Line(0.005, 0.0, 0.04, 1, (0.99, 1.0, 1.02))
COSTS = Costs(50e-6, 120e-6, 30e-6, 40e-6, 0.0, (100e-6, 300e-6))


@pytest.fixture
def evidence():
    alone = {1: Alone(1, LINE, {1: 0.005}, 0.1, 40, 2, "python", (b'{"text":"hello"}',))}
    return Evidence(Settings.read(SHIPPED, {}), Promise(99, 0.025), alone, {1: LINE}, COSTS, 2.0, (1,))


def measurement(setting, rate, seconds_each, refused=0, others=0.0, batches=1.0, late=0):
    """A run of a thousand requests."""
    latencies = np.concatenate([np.full(1000 - refused, seconds_each), np.full(refused, np.inf)])
    right = np.isfinite(latencies)
    cpu = {"nginx": 0.05, "worker": 0.12, "mule": 0.24, "generator": 0.03}
    spans = (np.where(right, 0.0001, np.nan), np.where(right, 0.005, np.nan))
    counts = (1000 - refused, refused, 0, late)
    return Measurement(setting, rate, 64, 2.0, 1, *counts, latencies, *spans, cpu, others, batches)


def trial(evidence, mules, **measured):
    """A setting that was tried: at=rate, took=seconds."""
    tried = Trial(evidence.seated(Setting(mules, 1, 64, 32, 1)))
    tried.full = measurement(tried.setting, 0.0, 0.06)
    add(tried, evidence, **measured)
    return tried


def add(tried, evidence, at, took, **about):
    outcome = tried.pool.simulate(at, 8000)
    point = Point(at, evidence.promise.of(outcome.latencies), outcome.refused)
    point.runs.append(measurement(tried.setting, at, took, **about))
    tried.points.append(point)
    if evidence.promise.holds(took):
        tried.held = max(tried.held, at)


@pytest.fixture
def found(evidence):
    """Five mules hold what four do not."""
    five, four = trial(evidence, 5, at=700.0, took=0.014), trial(evidence, 4, at=700.0, took=0.04)
    for at, took in ((350.0, 0.006), (1400.0, 0.024)):
        add(five, evidence, at, took, refused=300 * (at > 1000))
    present = Trial(evidence.present, measurement(evidence.present.setting, 0.0, 0.16))
    add(present, evidence, 700.0, 0.3, refused=450)
    ranked = [Prediction(one.pool, 700.0, one.points[0].predicted_s) for one in (present, four, five)]
    low = measurement(present.setting, 40.0, 0.0055)
    return Found(
        evidence, 700.0, 1, low, measurement(present.setting, 0.0, 0.16), ranked, [present, four, five], five, present
    )
