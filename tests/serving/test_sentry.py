"""How often Sentry is told of what is the same."""

import logging
import sys

from serving.sentry import Limit, kind


def failure(raises, message="the model raised"):
    try:
        raises()
    except Exception:
        return logging.LogRecord("muleteer.replica", logging.ERROR, "", 0, message, None, sys.exc_info())


def test_the_first_of_a_kind_is_told_and_the_next_after_a_pause():
    limit = Limit(pause_s=60)
    assert [limit.take("a", now) for now in (0, 1, 59, 60, 61, 120)] == [0, None, None, 2, None, 1]
    assert limit.take("b", 61) == 0


def test_of_too_many_kinds_the_later_ones_are_one():
    limit = Limit(pause_s=60)
    assert [limit.take(number, 0) for number in range(256)] == [0] * 256
    assert [limit.take(number, 0) for number in range(256, 259)] == [0, None, None]
    assert limit.take(3, 61) == 0


def test_a_kind_is_what_was_raised_and_where_and_not_what_was_said():
    def one():
        raise ValueError("an input")

    def other():
        raise ValueError("an input")

    assert kind(failure(one)) == kind(failure(one)) != kind(failure(other))
    assert kind(failure(one)) != kind(failure(one, "another message"))
    plain = [logging.LogRecord("muleteer.pool", logging.ERROR, "", 0, "replica %d", (id,), None) for id in (1, 2)]
    assert kind(plain[0]) == kind(plain[1])
