"""The simulation comes to what queueing theory says, and a simulated mule takes what a real one takes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.ledger import Ticket
from serving.memory_transport import MemoryTransport
from serving.transport import _ASLEEP
from tuning.pool import Costs, Line, Pool, take
from tuning.promise import Promise
from tuning.setting import Setting

FREE = Costs(0, 0, 0, 0, 0)
P99 = Promise(99, 0.05)
MEDIAN = Promise(50, 0.05)


def pool(mules, line, costs=FREE, cores=math.inf, threads=10_000, batch_rows=1, workers=1, rows=(1,)):
    return Pool(Setting(mules, workers, threads, batch_rows, 1), line, costs, cores, rows)


def erlang_c(servers, offered):
    """The share of those that have to wait, M/M/c."""
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("mules", "load"), [(1, 0.5), (1, 0.8), (4, 0.7)])
def test_exponential_times_of_service_make_an_m_m_c_queue(mules, load):
    times = tuple(-math.log(1 - (place + 0.5) / 4000) for place in range(4000))
    rate = mules * load / 0.01
    found = pool(mules, Line(0.01, 0.0, 0.0, spread=times)).simulate(rate, 60_000, seed=3)
    mean = 0.01 + erlang_c(mules, mules * load) * 0.01 / (mules * (1 - load))
    assert found.latencies.mean() == pytest.approx(mean, rel=0.08)
    assert found.refused == 0 and found.mules_busy == pytest.approx(load, rel=0.03)


def test_constant_times_of_service_make_an_m_d_1_queue():
    found = pool(1, Line(0.01, 0.0, 0.0)).simulate(80, 60_000, seed=5)
    # Pollaczek and Khinchine: half of what exponential times wait
    assert found.latencies.mean() == pytest.approx(0.01 + 0.01 * 0.8 / (2 * 0.2), rel=0.05)

    # Erlang's distribution of the wait, at the 99th percentile, in times of service
    def waits_less(time, load=0.8):
        return (1 - load) * sum(
            (-load * (time - k)) ** k / math.factorial(k) * math.exp(load * (time - k)) for k in range(int(time) + 1)
        )

    percentile = next(step / 100 for step in range(2000) if waits_less(step / 100) >= 0.99)
    assert P99.of(found.latencies) == pytest.approx(0.01 * (1 + percentile), rel=0.08)


def test_constant_times_of_service_make_an_m_d_c_queue():
    # Cosmetatos's approximation from M/M/c
    mules, load = 4, 0.8
    found = pool(mules, Line(0.01, 0.0, 0.0)).simulate(mules * load / 0.01, 60_000, seed=7)
    exponential = erlang_c(mules, mules * load) * 0.01 / (mules * (1 - load))
    factor = 0.5 * (1 + (1 - load) * (mules - 1) * (math.sqrt(4 + 5 * mules) - 2) / (16 * mules * load))
    assert found.latencies.mean() - 0.01 == pytest.approx(exponential * factor, rel=0.08)


def test_what_finds_no_seat_is_refused_as_erlang_b_says():
    mules, offered = 3, 3.0
    found = pool(mules, Line(0.01, 0.0, 0.0), threads=mules).simulate(offered / 0.01, 60_000)
    terms = [offered**k / math.factorial(k) for k in range(mules + 1)]
    assert found.refused == pytest.approx(terms[-1] / sum(terms), rel=0.04)
    assert found.answered == pytest.approx(300 * (1 - found.refused))


def test_what_computes_shares_the_cores():
    # M/G/1 with processor sharing: the mean is that of M/M/1, whatever the times are
    found = pool(50, Line(0.01, 0.0, 1.0), cores=1).simulate(70, 60_000, seed=2)
    assert found.latencies.mean() == pytest.approx(0.01 / 0.3, rel=0.08)
    assert found.cores_busy == pytest.approx(0.7, rel=0.03)


def test_what_waits_takes_no_core():
    found = pool(50, Line(0.01, 0.0, 0.0), cores=1).simulate(700, 20_000)
    assert P99.of(found.latencies) == pytest.approx(0.01)


def test_a_worker_does_one_thing_at_a_time_and_two_do_two():
    costs = Costs(0, 0.01, 0, 0, 0)
    one = pool(50, Line(0, 0, 0.0), costs, cores=8).simulate(80, 60_000)
    two = pool(50, Line(0, 0, 0.0), costs, cores=8, workers=2).simulate(80, 60_000)
    assert one.latencies.mean() > 2 * two.latencies.mean()
    assert pool(50, Line(0, 0, 0.0), costs, cores=8, workers=2).limits()["workers"] == pytest.approx(200)


def test_batches_form_where_a_batch_is_cheaper():
    line = Line(0.01, 0.0001, 0.0)
    alone, together = pool(1, line), pool(1, line, batch_rows=32)
    assert alone.limit == pytest.approx(1 / 0.0101)
    # 32 rows in 13.2 ms
    assert together.limit == pytest.approx(32 / 0.0132, rel=0.01)
    assert together.simulate(1000, 20_000).refused == 0
    assert MEDIAN.of(together.simulate(1000, 20_000).latencies) < 0.03


def test_more_rows_than_one_call_takes_take_several():
    line = Line(0.01, 0.001, 0.0, most_rows=8)
    assert line.of(20, 32) == pytest.approx(3 * 0.01 + 20 * 0.001)


def test_a_model_of_one_row_is_given_one_though_more_are_allowed():
    line = Line(0.01, 0.0, 0.0, most_rows=1)
    one, many = pool(2, line), pool(2, line, batch_rows=32)
    assert many.batch_rows == 1 and many.limit == one.limit
    assert np.array_equal(one.simulate(180, 3000).latencies, many.simulate(180, 3000).latencies)


def test_the_highest_rate_holds_and_a_tenth_more_does_not():
    found = pool(4, Line(0.005, 0.0, 0.0))
    promise = Promise(99, 0.02)
    rate = found.highest_rate(promise)
    assert 500 < rate < 800
    assert promise.holds(promise.of(found.simulate(0.97 * rate).latencies))
    assert not promise.holds(promise.of(found.simulate(1.1 * rate).latencies))


def test_a_promise_below_the_model_itself_is_never_held():
    assert pool(4, Line(0.05, 0.0, 0.0)).highest_rate(Promise(99, 0.02)) == 0


def test_the_same_seed_gives_the_same():
    found = [pool(2, Line(0.01, 0.0, 0.5), cores=2).simulate(100, 3000, seed).latencies for seed in (1, 1, 2)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    most_rows=st.integers(1, 40),
    shared_rows=st.one_of(st.just(math.inf), st.floats(0, 40)),
    asleep=st.integers(0, 4),
)
def test_a_mule_takes_what_a_real_one_takes(rows, most_rows, shared_rows, asleep):
    transport = MemoryTransport(seats=len(rows), replicas=5)
    transport.start_replica(1, lambda: 5)
    for other in range(asleep):
        transport._asleep[other + 1] = _ASLEEP
    for number, count in enumerate(rows):
        uuid = b"u" + number.to_bytes(15)
        transport.offer(Ticket(uuid, count, number), uuid)
    taken = transport.take(0, most_rows, shared_rows)
    assert [one.ticket.rows for one in taken] == rows[: take(rows, most_rows, shared_rows, asleep)]
