"""The board: shared by processes, read whole or not at all, and never ready for longer than it beats."""

import os
import time

import pytest

from serving.model import ModelCard
from serving.signature import Signature, TensorSpec
from serving.store import Board, Record, State

TIMEOUT_S, DEADLINE_S = 3.0, 5.0


def card(version=1, name="digits"):
    return ModelCard(name, version, "python", Signature((TensorSpec("x", "float32", (8, -1)),), ()), 32)


@pytest.fixture
def board():
    return Board(2, TIMEOUT_S, DEADLINE_S)


@pytest.fixture
def record(board):
    record = board.records[0]
    record.start(os.getpid())
    return record


def status(board, after_s=0.0, replica=0):
    """What the board says of a replica some seconds from now."""
    return board.statuses(time.monotonic() + after_s)[replica]


# Python 3.12 and later warn when another test left a thread; the child runs nothing but what is written here
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_a_child_writes_its_parent_reads(board):
    pid = os.fork()
    if pid == 0:
        record = board.records[1]
        record.start(os.getpid())
        record.fail("no memory", 60)
        record.fail("no memory – again", 60)
        record.describe(card(7))
        record.state = State.PAUSED
        record.beat(busy=True)
        os._exit(0)
    assert os.waitpid(pid, 0) == (pid, 0)
    other, replica = board.statuses()
    assert (replica.id, replica.pid, replica.state, replica.version) == (2, pid, "paused", 7)
    assert (replica.failures, replica.last_error) == (2, "no memory – again")
    assert board.records[1].not_before > time.monotonic() + 30
    assert board.card() == card(7)
    assert (other.pid, other.state, other.version, other.heartbeat_age_s) == (0, "starting", None, None)


def test_a_fresh_board_has_no_card_and_nobody_is_ready(board):
    assert board.card() is None
    assert [(each.id, each.ready, each.failures, each.last_error) for each in board.statuses()] == [
        (1, False, 0, ""),
        (2, False, 0, ""),
    ]


@pytest.mark.parametrize(
    ("busy", "after_s", "ready"),
    [
        (False, 0, True),
        (False, TIMEOUT_S - 0.5, True),
        (False, TIMEOUT_S + 0.5, False),
        # in the middle of a predict nothing beats, until the deadline of its tasks
        (True, TIMEOUT_S + 0.5, True),
        (True, DEADLINE_S - 0.5, True),
        (True, DEADLINE_S + 0.5, False),
    ],
)
def test_ready_means_a_heartbeat_that_is_fresh(board, record, busy, after_s, ready):
    record.succeed()
    record.beat(busy)
    found = status(board, after_s)
    assert found.ready is ready
    assert found.heartbeat_age_s >= after_s - 0.001
    assert found.busy_s == pytest.approx(found.heartbeat_age_s if busy else 0, abs=0.002)


def test_a_deadline_shorter_than_the_heartbeat_makes_nobody_stale():
    board = Board(1, TIMEOUT_S, 0.1)
    board.records[0].succeed()
    board.records[0].beat(busy=True)
    assert status(board, TIMEOUT_S - 0.5).ready and not status(board, TIMEOUT_S + 0.5).ready


@pytest.mark.parametrize("state", State)
def test_only_a_replica_that_is_ready_is_ready(board, record, state):
    record.succeed()
    record.state = state
    assert status(board).ready is (state is State.READY)
    assert status(board).state == state.name.lower()


@pytest.mark.parametrize(
    ("before", "after"),
    [(state, state if state in (State.PAUSED, State.FAILED) else State.STARTING) for state in State],
)
def test_failures_and_pauses_outlive_their_process(board, record, before, after):
    record.fail("first", 60)
    record.fail("second", 60)
    record.beat(busy=True)
    record.state = before
    record.start(4711)
    found = status(board)
    assert (found.pid, found.state, found.failures, found.last_error) == (4711, after.name.lower(), 2, "second")
    assert record.not_before > time.monotonic() + 30
    # what its predecessor was predicting it is not
    assert found.busy_s == 0 and not found.ready


def test_a_success_ends_the_count_of_failures_and_is_remembered(record):
    record.fail("first", 60)
    assert not record.ever_ready
    record.succeed()
    assert (record.failures, record.state, record.ever_ready) == (0, State.READY, True)
    record.start(4711)
    assert record.ever_ready


@pytest.mark.parametrize(
    ("error", "told"), [("ä" * 5000, "ä" * 1020), ("a" + "ä" * 5000, "a" + "ä" * 1019 + "�"), ("\ud800", "?"), ("", "")]
)
def test_no_error_is_too_long_or_too_odd(record, error, told):
    record.fail(error, 0)
    assert record.last_error == told


@pytest.fixture
def raw():
    """The memory of a record whose card and error are written."""
    memory = memoryview(bytearray(8 * 8 + 65536 + 2048))
    record = Record(memory)
    record.describe(card(1, "one"))
    record.fail("an error", 0)
    return memory


def test_half_of_a_text_is_never_read(raw):
    record = Record(raw)
    before = raw.tobytes()
    record.describe(card(2, "another"))
    after = raw.tobytes()
    found = []
    # a writer that is read, or killed, after any of its bytes
    for end in range(72, 72 + 400):
        raw[72:] = after[72:end] + before[end:]
        found.append(record.card())
    assert (found[0], found[-1]) == (card(1, "one"), card(2, "another"))
    assert [each for each in found if each not in (None, found[0], found[-1])] == []
    assert found.count(None) > 100


@pytest.mark.parametrize("start", [72, 72 + 65536])
@pytest.mark.parametrize("offset", [0, 3, 4, 7, 8, 12])
def test_a_byte_that_is_wrong_makes_a_text_unread(raw, start, offset):
    raw[start + offset] ^= 0xFF
    record = Record(raw)
    assert (record.card() is None) == (start == 72)
    assert (record.last_error == "") == (start != 72)


def test_a_new_card_of_any_replica_is_noticed(board):
    first, second = board.records
    first.describe(card(1))
    assert board.card() == card(1)
    assert board.card() is board.card()
    second.describe(card(2))
    assert board.card() == card(2)
    first.describe(card(3))
    assert board.card() == card(3)
    # the same card again is another generation
    before = first.generation
    first.describe(card(3))
    assert first.generation > before


def test_a_card_that_is_half_written_leaves_the_last_whole_one(board):
    first, second = board.records
    first.describe(card(1))
    assert board.card() == card(1)
    second.describe(card(2))
    second._card[9] ^= 0xFF
    assert board.card() == card(1)
    second._card[9] ^= 0xFF
    assert board.card() == card(2)


def test_a_card_that_is_written_while_the_one_before_is_read_is_noticed(board):
    class Overtaken(Record):
        """Publishes its next card just after its present one was read."""

        def card(self):
            found = super().card()
            if found.version == 1:
                self.describe(card(2))
            return found

    board.records[0] = overtaken = Overtaken(board._memory)
    overtaken.describe(card(1))
    assert board.card() == card(1)
    assert board.card() == card(2)


def test_a_card_that_is_too_large_is_refused_and_the_last_one_stays(board):
    record = board.records[0]
    record.describe(card(1))
    with pytest.raises(ValueError, match="do not fit 65528"):
        record.describe(card(2, "x" * 65536))
    assert board.card() == card(1)
