"""The rules by which a search chooses, on servers that do exactly what is said of them."""

from dataclasses import replace

import numpy as np
import pytest

from serving.settings import Settings
from tuning import candidates, record
from tuning.alone import Alone
from tuning.candidates import Prediction
from tuning.pool import Line, Pool
from tuning.promise import Promise
from tuning.search import BETTER, Search, TooLittleTime, Watch, best
from tuning.stack import Measurement

from .conftest import COSTS, SHIPPED, measurement, trial
from .test_report import FANCY

SETTINGS = Settings.read(SHIPPED, {})
P99 = Promise(99, 0.025)


class Simulated:
    """A server that is as the truth says, whatever a search thinks of it."""

    started = []
    # of each run: rate and seconds
    asked = []

    def __init__(self, setting, line, costs, cores, others, behind):
        self.setting = setting
        self._pool = Pool(setting, line, costs, cores)
        self._others, self._behind = others, behind
        Simulated.started.append(setting)

    def __enter__(self):
        return self

    def __exit__(self, *error): ...

    def wait_ready(self):
        return self

    def measure(self, bodies, seconds, rate=0.0, clients=0, seed=1):
        assert bodies
        Simulated.asked.append((rate, seconds))
        # clients that wait for their answers get what the pool can do
        outcome = self._pool.simulate(rate or 0.95 * self._pool.limit, 6000, seed)
        latencies, right = outcome.latencies, np.isfinite(outcome.latencies)
        count, costs = int(right.sum()), self._pool.costs
        cpu = {"nginx": costs.nginx_s, "worker": costs.worker_s, "generator": costs.generator_s}
        cpu["mule"] = costs.turn_s + self._pool.line.of(1, 1) * self._pool.line.busy
        predict_s = np.full(len(latencies), self._pool.line.of(1, 1))
        seconds = len(latencies) / outcome.rate
        late = int(next(self._behind) * len(latencies))
        return Measurement(
            *(self.setting, rate, clients, seconds, seed, count, int((~right).sum()), 0, late, latencies),
            *(np.zeros(len(latencies)), predict_s, {role: count * one for role, one in cpu.items()}),
            *(next(self._others), 1.0),
        )


@pytest.fixture(scope="module")
def alone():
    return Alone.measure(FANCY, SETTINGS, 1)


@pytest.fixture
def search(alone, monkeypatch):
    """A search among servers whose model takes so long."""
    # once is enough
    monkeypatch.setattr(Alone, "measure", lambda *about: alone)
    Simulated.started, Simulated.asked = [], []

    def search(
        promise=P99,
        rate=0.0,
        predict_s=0.0051,
        settings=SETTINGS,
        seconds=10_000.0,
        others=(),
        behind=(),
        costs=COSTS,
        truth=None,
        later=None,
    ):
        """truth: of a predict by mules, and later in a server that is not the first with its setting."""

        def start(setting):
            truth_now = {**(truth or {}), **((later or {}) if setting in Simulated.started else {})}
            quiet = [iter([*shares, *[0.0] * 1000]) for shares in (others, behind)]
            line = Line(truth_now.get(setting.mules, predict_s), 0.0, 0.04, 1)
            return Simulated(setting, line, costs, 2.0, *quiet)

        return Search(FANCY, settings, start, promise, rate, seconds, Watch()).run()

    return search


def test_the_fewest_mules_that_hold_the_rate_are_chosen(search):
    found = search(rate=700)
    assert found.chosen.setting.mules == 5 and found.chosen.setting.workers == 1
    point = found.chosen.at(700)
    assert len(point.runs) == 3 and point.measured_s(P99) <= 0.025
    # it was predicted, and well
    assert point.predicted_s == pytest.approx(point.measured_s(P99), rel=0.25)
    assert found.present.at(700).measured_s(P99) > 0.025
    changes = {key: value for (_, key), value in record.changes(found).items()}
    assert changes == {
        "mules": 5,
        "processes": 2,
        "threads": found.chosen.setting.threads,
        "queue": found.chosen.setting.queue(SETTINGS),
    }
    # whoever has a seat is answered within 25 ms, also when all are taken
    assert 15 <= found.chosen.setting.seats <= 0.025 * found.chosen.full.answered
    full = found.chosen.pool.simulate(1400)
    assert full.refused > 0.25 and np.percentile(full.latencies[np.isfinite(full.latencies)], 99) <= 0.026
    assert changes["queue"] >= 4 * found.chosen.setting.seats and changes["queue"] * 64 % 4096 == 0
    assert {round(point.rate) for point in found.chosen.points} == {350, 525, 700, 770, 1400}


@pytest.mark.parametrize("rate", [150, 250, 450])
def test_fewer_mules_than_the_arithmetic_needs_are_never_chosen(search, rate):
    found = search(rate=rate)
    # of 5.1 ms each
    assert rate * 0.0051 <= found.chosen.setting.mules <= rate * 0.0051 + 2
    assert sum(P99.holds(P99.of(run.latencies)) for run in found.chosen.at(rate).runs) >= 2


def test_the_server_is_believed_where_the_simulation_is_wrong(search):
    # five are slower together than one is alone
    found = search(rate=700, truth={5: 0.0068})
    assert found.chosen.setting.mules == 6
    five = next(trial for trial in found.trials if trial.setting.mules == 5)
    assert five.at(700).measured_s(P99) > 0.025 > five.at(700).predicted_s


def test_the_present_settings_stay_where_they_are_enough(search):
    five = replace(SETTINGS, mules=5, processes=2, threads=32)
    found = search(rate=700, settings=five)
    assert found.chosen is found.present and record.changes(found) == {}


def test_what_nothing_holds_is_not_chosen(search):
    found = search(Promise(99, 0.004), rate=100)
    assert found.chosen is None and found.nearest is not None and record.changes(found) == {}


def test_without_a_rate_the_highest_wins_and_present_settings_are_compared(search):
    found = search()
    assert found.chosen is not found.present and found.chosen.held > BETTER * found.present.held > 0
    assert found.chosen.setting.mules > 5
    assert all(found.chosen.held >= trial.held for trial in found.trials)
    # of what it does at the most
    assert found.chosen.held <= found.chosen.full.answered * 1.06
    # it held that rate again, in a server started anew
    runs = [P99.of(run.latencies) for run in found.chosen.at(found.chosen.held).runs]
    assert len(runs) == 4 and sum(map(P99.holds, runs)) >= 3


@pytest.fixture
def three_and_four(monkeypatch):
    """Nothing else is tried."""

    def rank(evidence):
        pools = [evidence.seated(replace(evidence.present.setting, mules=mules, workers=1)) for mules in (3, 4)]
        return [Prediction(pool, pool.highest_rate(P99), P99.limit_s) for pool in pools]

    monkeypatch.setattr(candidates, "rank", rank)


@pytest.mark.parametrize(("later", "mules"), [({}, 4), ({4: 0.0056}, 4), ({4: 0.0105}, 3)])
def test_what_had_luck_once_is_worth_what_it_holds_in_a_server_started_anew(search, three_and_four, later, mules):
    found = search(later=later)
    assert found.chosen.setting.mules == mules
    point = found.chosen.at(found.chosen.held)
    assert len(point.runs) >= 3 and P99.holds(point.measured_s(P99))
    four = next(trial for trial in found.trials if trial.setting.mules == 4)
    above = [point for point in four.points if len(point.runs) > 1 and point.rate > four.held]
    assert bool(above) == bool(later)
    # it can do no more than its mules
    assert four.held <= 4 / later.get(4, 0.0051)


def test_of_two_runs_the_worse_counts(evidence):
    tried = trial(evidence, 5, at=700.0, took=0.02)
    tried.points[0].runs.append(measurement(tried.setting, 700.0, 0.03))
    assert tried.points[0].measured_s(P99) == 0.03
    # and of three, where others disturbed one
    tried.points[0].runs.append(measurement(tried.setting, 700.0, 0.001, others=0.5))
    assert tried.points[0].measured_s(P99) == 0.03
    tried.judge(P99)
    assert tried.held == 0


def test_what_is_better_by_no_more_than_chance_changes_nothing(evidence):
    present, other = trial(evidence, 2, at=200.0, took=0.01), trial(evidence, 5, at=204.0, took=0.01)
    assert best([present, other], present) is present
    assert best([present, trial(evidence, 5, at=300.0, took=0.01)], present) is not present
    assert best([trial(evidence, 2, at=300.0, took=0.9)], trial(evidence, 2, at=300.0, took=0.9)) is None


def test_time_that_is_up_ends_the_search_with_what_there_is(search):
    found = search(rate=700, seconds=4.0)
    assert len(found.chosen.at(700).runs) == 3 if found.chosen else found.trials


def test_runs_are_as_long_as_their_percentile_needs_and_the_first_is_not(search):
    search(Promise(99.9, 0.05), rate=100, seconds=280.0)
    (low, seconds), _, *others = Simulated.asked
    assert 200 / low <= seconds < 10
    # five thousand requests, of which five may be late
    assert {rate: seconds for rate, seconds in others if rate}[100] == pytest.approx(50, rel=0.01)


def test_less_time_than_its_percentile_needs_is_refused_before_anything_is_measured(search):
    told = (
        r"--minutes 2: at 700 requests a second p99\.99 takes runs of 71 s to be known, and one candidate 6\.6 minutes"
    )
    with pytest.raises(TooLittleTime, match=told):
        search(Promise(99.99, 0.05), rate=700, seconds=120.0)
    assert Simulated.started == []


def test_without_a_rate_it_is_refused_as_soon_as_a_rate_is_known(search):
    with pytest.raises(TooLittleTime, match=r"p99\.99 takes runs of 1\d\d s to be known"):
        search(Promise(99.99, 0.05), seconds=120.0)
    assert len(Simulated.started) == 1


def test_where_no_time_is_given_the_runs_that_a_percentile_needs_are_counted_in(search, monkeypatch):
    told = []
    monkeypatch.setattr(Watch, "tell", lambda self, text, left_s: told.append(left_s))
    search(Promise(99.9, 0.05), rate=100, seconds=0.0)
    # of three candidates each three runs of 50 s, one of twice and one of half of that
    assert max(told) > 3 * 5.5 * 50 + 160


def test_a_run_that_others_disturb_is_made_again(search):
    found = search(rate=700, others=(0.6, 0.0, 0.7, 0.8))
    assert found.low.others == 0.0 and found.full.others == 0.7
    point = found.chosen.at(700)
    assert all(run.others <= 0.1 for run in point.quiet)


def test_a_run_for_which_the_load_generator_was_too_slow_is_made_again(search, three_and_four):
    found = search(behind=(0.6, 0.0, 0.0, 0.8))
    assert found.low.behind == 0.0
    assert all(run.behind <= 0.1 for trial in found.trials for point in trial.points for run in point.runs)
