"""The last minutes: percentiles of buckets, and points that are differences."""

import threading

import numpy as np
import pytest

from app.console import history as module
from app.console.history import STAGES, History, Look, percentile
from serving import counts
from serving.counts import BOUNDS_S, BUCKETS


def buckets(**found):
    """Counts by the number of the bucket: b3=5."""
    made = np.zeros(BUCKETS, np.int64)
    for name, count in found.items():
        made[int(name[1:])] = count
    return made


def look(at, ends=None, rows=0, **found):
    latency = np.zeros((len(STAGES), BUCKETS), np.int64)
    latency[0] = buckets(**found)
    return Look(at, ends or {}, rows, latency, in_flight=3, queued=1)


def test_of_nothing_there_is_no_percentile():
    assert percentile(buckets(), 0.5) is None


@pytest.mark.parametrize(
    ("found", "share", "seconds"),
    [
        # from the bound below to its own, evenly
        ({"b3": 10}, 0.5, (BOUNDS_S[2] + BOUNDS_S[3]) / 2),
        ({"b3": 10}, 1.0, BOUNDS_S[3]),
        ({"b0": 4}, 0.5, BOUNDS_S[0] / 2),
        # nine of ten are in the first of them
        ({"b2": 90, "b5": 10}, 0.9, BOUNDS_S[2]),
        ({"b2": 90, "b5": 10}, 0.95, (BOUNDS_S[4] + BOUNDS_S[5]) / 2),
        # of what is over the last bound no more is known
        ({f"b{BUCKETS - 1}": 3}, 0.5, BOUNDS_S[-2]),
    ],
)
def test_a_percentile_is_read_off_its_bucket(found, share, seconds):
    assert percentile(buckets(**found), share) == pytest.approx(seconds)


def test_percentiles_are_within_a_bucket_of_the_true_ones():
    times = np.random.default_rng(7).lognormal(-5, 1.5, 20000)
    made = np.bincount(np.searchsorted(BOUNDS_S, times), minlength=BUCKETS)
    for share in (0.5, 0.9, 0.99):
        true = np.searchsorted(BOUNDS_S, np.quantile(times, share))
        assert BOUNDS_S[true - 1] <= percentile(made, share) <= BOUNDS_S[true]


def test_a_point_is_what_happened_between_two_looks():
    history = History(lambda: look(0))
    good, bad = ("/predict", "200", ""), ("/predict", "503", "overloaded")
    history.add(look(100.0, {good: 10, bad: 1}, 20, b3=10))
    assert history.points() == []
    history.add(look(105.0, {good: 60, bad: 11}, 120, b3=10, b5=50))
    (point,) = history.points()
    assert point["at"] == 105.0
    assert (point["answered"], point["refused"], point["rows"]) == (10.0, {"overloaded": 2.0}, 20.0)
    assert (point["in_flight"], point["queued"]) == (3, 1)
    # of the new ones alone
    assert BOUNDS_S[4] < point["latency_ms"]["total"]["p50"] / 1000 < BOUNDS_S[5]
    assert point["latency_ms"]["encode"] == {"p50": None, "p90": None, "p99": None}


def test_the_oldest_points_go():
    history = History(lambda: look(0))
    for second in range(500):
        history.add(look(float(second)))
    points = history.points()
    assert len(points) == 120 and [points[0]["at"], points[-1]["at"]] == [380.0, 499.0]


def test_the_latency_of_now_is_that_of_the_last_seconds():
    history = History(lambda: look(0))
    for second in (0, 5, 10, 15):
        history.add(look(float(second), b2=1000))
    told = history.latency(look(17.0, b2=1000, b8=4))
    assert told["over_s"] == 12.0
    assert BOUNDS_S[7] < told["stages"]["total"]["p50"] / 1000 < BOUNDS_S[8]
    assert History(lambda: look(0)).latency(look(1.0, b2=5))["stages"]["total"]["p50"] is None


def test_the_stages_are_those_that_are_counted():
    assert ("total", *counts.STAGES) == STAGES


def test_a_look_that_fails_is_told_once_and_the_next_ones_are_taken(monkeypatch, caplog):
    monkeypatch.setattr(module, "EVERY_S", 0.001)
    looks, over = iter([look(0.0), None, None, look(5.0), None, look(10.0)]), threading.Event()

    def take():
        found = next(looks, over)
        if found is over:
            over.set()
            threading.Event().wait()
        return found if found is not None else {}["a fault"]

    history = History(take)
    history.start()
    assert over.wait(60)
    assert [point["at"] for point in history.points()] == [5.0, 10.0]
    assert caplog.text.count("has no points of these seconds") == 2 and "KeyError: 'a fault'" in caplog.text
