"""Medians, ratios within a repeat, and who is the best peer."""

import pytest

from bench import ranking
from bench.measurement import Measurement, Session
from bench.ranking import Spread

FIELDS = {
    "workload": "noop",
    "processes": 2,
    "body_bytes": 10,
    "seconds": 4.0,
    "refused": 0,
    "wrong": 0,
    "cut": 0,
    "failed": 0,
    "stuck": 0,
    "reopened": 0,
    "p90_ms": 1.0,
    "p99_ms": 2.0,
    "max_ms": 3.0,
    "cpu_s": 0.4,
    "first_wrong": "",
    "cpu_us": {"nginx": 10.0, "front": 20.0, "model": 30.0, "other": 0.0},
    "client_cores": 0.1,
    "other_cores": 0.0,
    "others": {},
    "steal_cores": 0.0,
}


def measured(server, door, clients, repeat, rate, p50_ms=1.0, **others):
    own = {"server": server, "door": door, "clients": clients, "repeat": repeat, "p50_ms": p50_ms}
    return Measurement(**FIELDS | own | {"right": round(rate * FIELDS["seconds"])} | others)


MEASUREMENTS = [
    measured(server, door, 16, repeat, rate)
    for server, door, rates in [
        ("muleteer", "nginx", [300, 200, 100]),
        ("fast", "nginx", [200, 100, 50]),
        ("fast", "bare", [400, 200, 100]),
        ("slow", "nginx", [10, 500, 20]),
    ]
    for repeat, rate in enumerate(rates)
]


def test_a_spread_is_told_with_its_ends():
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of([3.0, 1.0, 2.0]).text("%.1f") == "2.0 [1.0–3.0]"
    assert Spread.of([2.0]).text("%.0f") == "2"


def test_repeats_are_joined():
    found = ranking.cells([*MEASUREMENTS, measured("muleteer", "nginx", 1, 0, 1)], "noop")
    assert len(found) == 5 and ranking.cells(MEASUREMENTS, "sleep") == []
    assert [cell.rate for cell in found] == [200, 100, 200, 20, 1]


def test_the_best_peer_is_the_one_with_the_best_median_at_the_same_door():
    found = ranking.cells(MEASUREMENTS, "noop")
    assert ranking.best(found, "nginx", 16, ["muleteer"]).server == "fast"
    assert ranking.best(found, "bare", 16, ["muleteer"]).rate == 200
    assert ranking.best(found, "bare", 1, ["muleteer"]) is None
    assert ranking.best(found, "nginx", 16, ["muleteer", "fast"]).server == "slow"


def test_a_ratio_is_taken_within_each_repeat():
    own, other, bare, slow = ranking.cells(MEASUREMENTS, "noop")
    assert ranking.ratio(own, other) == Spread(2.0, 1.5, 2.0)
    assert ranking.ratio(own, bare) == Spread(1.0, 0.75, 1.0)
    assert ranking.ratio(own, slow) == Spread(5.0, 0.4, 30.0)


def test_who_is_far_behind_everywhere_is_out_of_reach():
    found = [*MEASUREMENTS, measured("far", "nginx", 16, 0, 40), measured("far", "bare", 16, 0, 99)]
    # half of the best one is 50 behind nginx, and 100 bare
    assert not ranking.in_reach(found, "noop", "far", ["muleteer"])
    assert ranking.in_reach([*found, measured("far", "bare", 16, 1, 110)], "noop", "far", ["muleteer"])
    assert ranking.in_reach(found, "noop", "unmeasured", ["muleteer"])
    assert ranking.in_reach(found, "noop", "muleteer", ["muleteer"])


def test_at_one_client_latencies_are_compared():
    found = [measured("muleteer", "nginx", 1, 0, 100, p50_ms=2.0), measured("fast", "nginx", 1, 0, 1, p50_ms=3.0)]
    own, other = ranking.cells(found, "noop")
    assert ranking.best([own, other], "nginx", 1, ["muleteer"]) is other
    assert ranking.ratio(own, other).median == pytest.approx(1.5)


def test_a_peer_without_a_right_answer_has_no_ratio():
    own, other = ranking.cells([measured("muleteer", "nginx", 16, 0, 100), measured("dead", "nginx", 16, 0, 0)], "noop")
    assert ranking.ratio(own, other).median == 0


def test_the_summary_has_a_line_for_each_cell():
    lines = ranking.summary(MEASUREMENTS, ["noop", "sleep"], ["muleteer"]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert len(lines) == 3
    assert cells == [
        "W2 no-op",
        "16",
        "muleteer",
        "200 [100–300]",
        "fast",
        "100 [50–200]",
        "2.00 [1.50–2.00]",
        "fast",
        "200 [100–400]",
        "1.00 [0.75–1.00]",
    ]


def test_the_details_tell_of_errors_refusals_disturbance_and_memory():
    found = [
        measured("muleteer", "nginx", 16, 0, 100, wrong=2, cut=1, refused=7),
        measured("fast", "bare", 16, 0, 50, other_cores=0.3, others={"stranger": 0.3}),
    ]
    # two processes of the model
    memory = {"model": 3 << 20, "nginx": 1 << 20}
    sessions = [
        Session(server, "noop", 0, 1.5, memory, memory, {"model": 2, "nginx": 1}) for server in ("muleteer", "fast")
    ]
    _, _, own, other = ranking.details(found, sessions, "noop").splitlines()
    assert [cell.strip() for cell in own.strip("|").split("|")] == [
        *("muleteer", "behind nginx", "100", "1.00, 2.00", "60"),
        *("4, 4", "nginx 1, 1; model 2, 2", "3", "1.5", "3; 7 × 503"),
    ]
    assert [cell.strip() for cell in other.strip("|").split("|")] == [
        *("fast", "bare", "50†", "1.00, 2.00", "60", "3, 3", "model 2, 2", "2", "1.5", "0")
    ]
    assert "disturbed by stranger 30%" in str(found[1]) and "3 ERRORS" in str(found[0])
