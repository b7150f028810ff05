"""The pace: what was a line comes out as that line, whatever was measured."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mules.pace import Pace

SECONDS = st.floats(0, 100)
ROWS = st.integers(1, 1000)


@given(SECONDS, st.floats(0, 1), st.lists(ROWS, min_size=2, max_size=50).filter(lambda rows: len(set(rows)) > 1))
def test_predicts_that_lie_on_a_line_give_that_line(overhead_s, row_s, batches):
    pace = Pace()
    # the last two tell the line whatever came before
    for rows in (*batches, min(batches), 2 * max(batches)):
        pace.measure(rows, overhead_s + rows * row_s)
    assert pace.row_s == pytest.approx(row_s, rel=1e-3, abs=1e-6)
    assert pace.overhead_s == pytest.approx(overhead_s, rel=1e-3, abs=1e-3)


@given(st.lists(st.tuples(ROWS, SECONDS), min_size=1, max_size=50))
def test_no_predict_is_ever_said_to_take_less_than_nothing(measured):
    pace = Pace()
    for rows, took_s in measured:
        pace.measure(rows, took_s)
        assert pace.row_s >= 0 and pace.overhead_s >= -1e-9


@given(ROWS, st.lists(SECONDS, min_size=1, max_size=20))
def test_predicts_of_one_size_are_told_by_their_mean(rows, measured):
    pace = Pace()
    for took_s in measured:
        pace.measure(rows, took_s)
    told = pace.overhead_s + rows * pace.row_s
    assert min(measured) - 1e-6 <= told <= max(measured) + 1e-6


def test_the_slope_stays_when_all_that_comes_is_of_one_size():
    pace = Pace()
    for rows in (1, 32) * 5:
        pace.measure(rows, 0.1 + rows * 0.01)
    for _ in range(500):
        pace.measure(8, 0.1 + 8 * 0.01)
    assert pace.row_s == pytest.approx(0.01)
    assert pace.overhead_s == pytest.approx(0.1)


def test_what_was_long_ago_is_forgotten():
    pace = Pace()
    for rows in (1, 32) * 50:
        pace.measure(rows, 1 + rows)
    for rows in (1, 32) * 100:
        pace.measure(rows, 0.1 + rows * 0.01)
    assert pace.row_s == pytest.approx(0.01, rel=0.01)
    assert pace.overhead_s == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(
    ("overhead_s", "row_s", "rows"), [(0.0013, 0.0007, 26 / 7), (0.0004, 0.00001, 80), (0, 0.001, 0)]
)
def test_a_second_predict_of_half_the_rows_pays_where_they_take_longer_than_it_costs(overhead_s, row_s, rows):
    pace = Pace()
    assert pace.shared_rows == math.inf
    for count in (1, 32, 1, 32):
        pace.measure(count, overhead_s + count * row_s)
    assert pace.shared_rows == pytest.approx(rows, abs=1e-6)
    # half of them less, and the call once more
    assert rows / 2 * row_s == pytest.approx(overhead_s)
