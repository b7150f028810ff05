"""The tree of errors: what its docstring draws, and the way of an error through a reply."""

import re

import pytest

from serving import errors
from serving.errors import ServingError, Unavailable, by_code


def tree(root=ServingError):
    return [root, *(leaf for branch in root.__subclasses__() for leaf in tree(branch))]


def drawn():
    """Each class of the docstring's drawing: {name: (depth, status, code or None)}."""
    lines = re.findall(r"^ {4}([ │├└─]*)(\w+) +(\d{3}) ?(\w+)?", errors.__doc__, re.MULTILINE)
    return {name: (len(branch) // 3, int(status), code or None) for branch, name, status, code in lines}


@pytest.mark.parametrize("error", tree())
def test_each_error_is_what_the_docstring_draws(error):
    depth, status, code = drawn()[error.__name__]
    assert (len(error.__mro__) - len(ServingError.__mro__), error.status) == (depth, status)
    # where the drawing has no code the class is only a branch
    assert (error.code == code) if code else error.__subclasses__()


def test_the_docstring_draws_nothing_else():
    assert sorted(drawn()) == sorted(error.__name__ for error in tree())


def test_no_two_errors_share_a_code_or_a_title():
    assert len({error.code for error in tree()}) == len({error.title for error in tree()}) == len(tree())


@pytest.mark.parametrize("error", tree())
def test_only_a_request_that_may_succeed_later_is_told_when(error):
    assert bool(error.retry_after_s) == issubclass(error, Unavailable) == (error.status == 503)


@pytest.mark.parametrize("error", tree())
def test_an_error_comes_back_by_its_code_with_its_detail(error):
    again = by_code(error.code, "what happened")
    assert (type(again), str(again)) == (error, "what happened")


def test_an_unknown_code_is_a_fault_of_the_server():
    assert type(by_code("from_the_future", "")) is ServingError
