"""Each target is judged by the numbers of a run, and only where they tell."""

import pytest

from bench import targets
from bench.measurement import Session
from tests.bench.test_ranking import measured

US = {"nginx": 10.0, "front": 20.0, "model": 30.0, "other": 0.0}


def judged(measurements=(), sessions=(), model_ms=()):
    found = targets.of(measurements, sessions, dict(model_ms), "muleteer")
    return {(target.text, target.asked): (target.found, target.met) for target in found}


@pytest.mark.parametrize(
    ("workload", "clients", "rates", "asked", "found", "met"),
    [
        ("digits", 16, (100, 100), "≥ 1.00", "1.00", True),
        ("digits", 16, (99, 100), "≥ 1.00", "0.99", False),
        ("cnn", 64, (199, 100), "≥ 2.00", "1.99", False),
        ("cnn", 64, (200, 100), "≥ 2.00", "2.00", True),
        ("image", 16, (150, 100), "≥ 1.50", "1.50", True),
    ],
)
def test_ours_is_held_to_a_ratio_of_the_best_peer_behind_nginx(workload, clients, rates, asked, found, met):
    own, other = rates
    measurements = [
        measured("muleteer", "nginx", clients, 0, own, workload=workload),
        measured("peer", "nginx", clients, 0, other, workload=workload),
        measured("slow", "nginx", clients, 0, other / 2, workload=workload),
        measured("peer", "bare", clients, 0, other * 9, workload=workload),
    ]
    ((told, verdict),) = judged(measurements).items()
    assert "of peer, the best peer" in told[0] and f", {clients} clients" in told[0]
    assert told[1] == asked and verdict == (found, met)


def test_at_one_client_the_latency_is_compared_and_held_to_the_model_s_own():
    measurements = [
        measured("muleteer", "nginx", 1, 0, 100, p50_ms=5.5, workload="sleep"),
        measured("peer", "nginx", 1, 0, 100, p50_ms=5.0, workload="sleep"),
    ]
    (ratio, (found, met)), (overhead, verdict) = judged(measurements, model_ms={"sleep": 5.06}).items()
    assert ratio[1] == "≥ 1.00" and (found, met) == ("0.91", False)
    assert overhead == ("W1 sleep, one client: p50; the model alone takes 5.06 ms", "≤ 5.51 ms")
    assert verdict == ("5.50 ms", True)


@pytest.mark.parametrize(("rate", "met"), [(767, False), (768, True)])
def test_the_sleeping_model_has_a_rate_of_its_own(rate, met):
    (verdict,) = judged([measured("muleteer", "nginx", 16, 0, rate, workload="sleep")]).items()
    assert verdict == (("W1 sleep, 16 clients: requests/s", "≥ 768"), (f"{rate}", met))


def test_the_cpu_of_a_request_is_held_to_each_setting_of_the_frugal_peer():
    measurements = [
        measured("muleteer", "nginx", 16, 0, 100, cpu_us=US),
        measured("mosec", "nginx", 16, 0, 100, cpu_us=US | {"front": 21.0}),
        measured("mosec-batch", "nginx", 16, 0, 100, cpu_us=US | {"front": 19.0}),
        measured("other", "nginx", 16, 0, 100, cpu_us=US | {"front": 0.0}),
    ]
    found = {text: verdict for (text, asked), verdict in judged(measurements).items() if "CPU" in text}
    assert found == {
        "W2 no-op, 16 clients: µs of CPU, as mosec at the most": ("60", True),
        "W2 no-op, 16 clients: µs of CPU, as mosec-batch at the most": ("60", False),
    }


def test_an_idle_server_is_held_to_next_to_nothing():
    sessions = [Session("muleteer", "noop", 0, idle_cores=cores) for cores in (0.002, 0.004, 0.012)]
    others = [Session("muleteer", "noop", 1), Session("peer", "noop", 0, idle_cores=1.0)]
    (verdict,) = judged(sessions=sessions + others).items()
    assert verdict == (("idle: of a core", "< 1.0%"), ("0.40%, 1.20% at the most", True))


def test_the_table_says_what_is_not_met():
    own = [measured("muleteer", "nginx", 16, 0, 1), measured("peer", "nginx", 16, 0, 2)]
    told = targets.table(own, [], {}, "muleteer").splitlines()
    assert len(told) == 3 and told[-1].split("|")[-2].strip() == "NO" and " 0.50 " in told[-1]
    assert targets.table([], [], {}, "muleteer") == ""
