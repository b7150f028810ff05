"""The board: shared by processes, read whole or not at all, and never ready for longer than it beats."""

import os
import time
from dataclasses import replace

import pytest

from serving import memory
from serving.ledger import ANY
from serving.memory import Memory
from serving.model import ModelCard
from serving.signature import Signature, TensorSpec
from serving.store import Board, Death, Record, State

HEARTBEAT_S, PREDICT_S = 3.0, 5.0


# where the texts of a record begin
CARD = 8 * Record._NUMBERS
ERROR = CARD + 65536


def card(version=1, name="digits"):
    return ModelCard(name, version, "python", Signature((TensorSpec("x", "float32", (8, -1)),), ()), 32)


@pytest.fixture
def board():
    return Board(2, HEARTBEAT_S, PREDICT_S)


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
    other, replica, _ = board.statuses()
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
        # the spare's
        (3, False, 0, ""),
    ]
    assert board.posts() == board.records[:2]


@pytest.mark.parametrize(
    ("busy", "after_s", "ready"),
    [
        (False, 0, True),
        (False, HEARTBEAT_S - 0.5, True),
        (False, HEARTBEAT_S + 0.5, False),
        # in the middle of a predict nothing beats, until it counts as hung
        (True, HEARTBEAT_S + 0.5, True),
        (True, HEARTBEAT_S + PREDICT_S - 0.5, True),
        (True, HEARTBEAT_S + PREDICT_S + 0.5, False),
    ],
)
def test_ready_means_a_heartbeat_that_is_fresh(board, record, busy, after_s, ready):
    record.succeed()
    record.beat(busy)
    found = status(board, after_s)
    assert found.ready is ready
    assert (board.ready(time.monotonic() + after_s) == [record]) is ready
    assert found.heartbeat_age_s >= after_s - 0.001
    assert found.busy_s == pytest.approx(found.heartbeat_age_s if busy else 0, abs=0.002)


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


def test_what_a_process_did_is_not_said_of_its_successor(board, record):
    record.succeed()
    record.work(5)
    record.rss, record.worn = 700 << 20, 1
    assert (status(board).tasks, status(board).rss_mb) == (5, 700)
    record.start(4711)
    assert (record.tasks, record.rss, record.worn) == (0, 0, 0)


def test_a_process_that_is_gone_has_left_its_post_and_what_it_died_of(board, record):
    record.succeed()
    record.beat(busy=True)
    record.last_death = "was killed by signal 9 (SIGKILL)"
    record.retire()
    found = status(board)
    assert (found.state, found.pid, found.busy_s, found.ready) == ("gone", 0, 0.0, False)
    assert found.last_death == "was killed by signal 9 (SIGKILL)"
    assert board.posts() == [board.records[1]]


def test_crashes_are_counted_until_something_is_answered(board, record):
    for count in (1, 2):
        record.succeed()
        record.crash(60)
        assert (record.crashes, record.state, record.pid, record.post) == (count, State.PAUSED, 0, 1)
        assert record.not_before > time.monotonic() + 30
    record.work(1)
    assert (status(board).crashes, record.tasks) == (0, 1)


@pytest.mark.parametrize(
    ("states", "hopeless"),
    [
        ((State.PAUSED, State.PAUSED), True),
        ((State.PAUSED, State.FAILED), True),
        ((State.PAUSED, State.LOADING), False),
        ((State.READY, State.FAILED), False),
        ((State.STARTING, State.FAILED), False),
    ],
)
def test_waiting_is_in_vain_while_each_replica_pauses(board, states, hopeless):
    now = time.monotonic()
    for record, state in zip(board.records, states, strict=False):
        record.fail("the file is gone", 60)
        record.state = state
    # the spare's part in it is none
    board.records[2].state = State.SPARE
    assert board.hopeless(now + 5) is hopeless
    # the next load begins before the deadline
    assert not board.hopeless(now + 70)


def test_without_any_post_nobody_has_failed(board):
    for record in board.records[:2]:
        record.fail("the file is gone", 60, for_good=True)
    assert board.failed() and board.hopeless(time.monotonic())
    for record in board.records[:2]:
        record.retire()
    assert not board.failed() and not board.hopeless(time.monotonic())


def test_a_pool_has_failed_when_each_replica_has_and_none_was_ever_ready(board):
    first, second, _ = board.records
    first.fail("the file is gone", 60, for_good=True)
    second.fail("the file is gone", 60)
    assert not board.failed()
    second.fail("the file is gone", 60, for_good=True)
    assert board.failed()
    second.succeed()
    second.fail("the file is gone", 60, for_good=True)
    assert not board.failed()


@pytest.mark.parametrize(("for_good", "once_ready", "hopeless"), [(1, 0, True), (0, 0, False), (1, 1, False)])
def test_a_replica_is_hopeless_that_failed_for_good_and_was_never_ready(record, for_good, once_ready, hopeless):
    if once_ready:
        record.succeed()
    record.fail("the file is gone", 0, for_good=bool(for_good))
    # also while it is tried again
    record.state = State.LOADING
    assert record.hopeless is hopeless


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.STARTING, "it is starting"),
        (State.LOADING, "it is loading"),
        (State.DRAINING, "it is draining"),
        (State.GONE, "its process is gone"),
        (State.PAUSED, "the file is gone; the next load is in 60 s"),
        (State.FAILED, "the file is gone; the next load is in 60 s"),
        (State.READY, ""),
        (State.SPARE, ""),
    ],
)
def test_a_replica_that_is_not_ready_says_why(board, record, state, reason):
    record.fail("the file is gone", 60)
    record.state = state
    assert status(board).reason == reason


def test_a_replica_that_says_nothing_and_one_whose_process_died_say_so(board, record):
    record.succeed()
    assert status(board, HEARTBEAT_S + 1).reason == "it has said nothing for 4.0 s"
    record.last_death = "was killed by signal 11 (SIGSEGV)"
    record.crash(1)
    assert status(board).reason == "the process was killed by signal 11 (SIGSEGV); the next load is in 1 s"


def serve(record, overhead_s, row_s, batch_rows, version=1, default=True):
    record.describe(replace(card(version), max_batch_rows=batch_rows))
    record.default = int(default)
    record.overhead_s, record.row_s = overhead_s, row_s
    record.beat()
    record.succeed()


@pytest.mark.parametrize(
    ("replicas", "rows", "needs_s"),
    [
        ([(0.5, 0.1, 10)], 0, 0.0),
        ([(0.5, 0.1, 10)], 1, 0.6),
        ([(0.5, 0.1, 10)], 10, 1.5),
        ([(0.5, 0.1, 10)], 11, 2 * 0.5 + 1.1),
        # they share what there is
        ([(0.5, 0.1, 10), (0.5, 0.1, 10)], 20, 1.5),
        ([(0.2, 0.1, 10), (0.4, 0.3, 5)], 20, 2 * 0.3 + 10 * 0.2),
        # nobody knows how fast the first will be
        ([], 1000, 0.0),
    ],
)
def test_the_time_that_what_waits_will_take_is_told_by_the_pace_of_those_who_serve(board, replicas, rows, needs_s):
    for record, pace in zip(board.records, replicas, strict=False):
        serve(record, *pace)
    assert board.service().drain_s(rows) == pytest.approx(needs_s)


def test_a_replica_that_says_nothing_has_no_part_in_the_pace(board):
    first, second, _ = board.records
    serve(first, 0.5, 0.1, 10)
    serve(second, 0.0, 0.0, 10)
    second.heartbeat -= HEARTBEAT_S + 1
    assert board.service().drain_s(10) == pytest.approx(1.5)


def test_who_serves_a_version_is_told_from_those_who_serve_others(board):
    first, second, third = board.records
    serve(first, 0.5, 0.1, 10)
    serve(second, 0.0, 0.2, 10, version=2, default=False)
    serve(third, 0.0, 0.4, 10, version=2, default=False)
    for version, replicas, versions, needs_s in [
        (ANY, 1, {ANY, 1}, 1.5),
        (1, 1, {ANY, 1}, 1.5),
        (2, 2, {2}, 5 * 0.3),
        (3, 0, {3}, 0.0),
    ]:
        service = board.service(version)
        assert (service.replicas, service.versions) == (replicas, versions)
        assert service.drain_s(10) == pytest.approx(needs_s)
    # as while one version follows another: all of them share one queue
    third.default = 1
    for version in (ANY, 1, 2):
        assert board.service(version).versions == {ANY, 1, 2} and board.service(version).replicas == 2


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
    memory = memoryview(bytearray(Record.BYTES))
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
    for end in range(CARD, CARD + 400):
        raw[CARD:] = after[CARD:end] + before[end:]
        found.append(record.card())
    assert (found[0], found[-1]) == (card(1, "one"), card(2, "another"))
    assert [each for each in found if each not in (None, found[0], found[-1])] == []
    assert found.count(None) > 100


@pytest.mark.parametrize("start", [CARD, ERROR])
@pytest.mark.parametrize("offset", [0, 3, 4, 7, 8, 12])
def test_a_byte_that_is_wrong_makes_a_text_unread(raw, start, offset):
    raw[start + offset] ^= 0xFF
    record = Record(raw)
    assert (record.card() is None) == (start == CARD)
    assert (record.last_error == "") == (start != CARD)


def test_a_new_card_of_any_replica_is_noticed(board):
    first, second, _ = board.records
    first.describe(card(1))
    assert board.card() == card(1)
    assert board.card() is board.card()
    second.describe(card(2))
    assert board.card() == card(2)
    first.describe(card(3))
    assert board.card() == card(3)
    # the same card again has another stamp
    before = first.stamp
    first.describe(card(3))
    assert first.stamp > before


def test_a_card_that_is_half_written_leaves_the_last_whole_one(board):
    first, second, _ = board.records
    first.describe(card(1))
    assert board.card() == card(1)
    second.describe(card(2))
    second._card[9] ^= 0xFF
    assert board.card() == card(1)
    second._card[9] ^= 0xFF
    assert board.card() == card(2)


def test_a_version_is_known_also_while_its_card_is_written_anew(board):
    first, second, _ = board.records
    for version, record in ((1, first), (2, second)):
        serve(record, 0.0, 0.1, 10, version)
    assert board.versions() == {"1": 1, "2": 2}
    # both get other labels, and one has just got them
    first.describe(replace(card(1), labels=("stable",)))
    second._card[9] ^= 0xFF
    assert board.versions() == {"1": 1, "2": 2}
    second.describe(replace(card(2), labels=("canary",)))
    assert board.versions() == {"1": 1, "2": 2, "stable": 1, "canary": 2}


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


def test_a_card_that_samples_make_too_large_is_told_without_them(board):
    found = ModelCard("m", 1, "python", Signature((TensorSpec("x", "string").with_sample("x" * 65536),), ()), 32)
    board.records[0].describe(found)
    assert board.card() == found and board.card().signature.inputs[0].sample is None


def test_what_processes_did_outlives_their_uwsgi():
    file = memory.make()
    first = Board(2, HEARTBEAT_S, PREDICT_S, Memory(file, 0))
    first.records[0].succeed()
    first.records[1].bury(Death.KILLED, "died")
    # with one replica less
    second = Board(1, HEARTBEAT_S, PREDICT_S, Memory(file, 1))
    assert second.records[0].last_death == second.records[1].last_death == ""
    second.records[0].succeed()
    second.records[0].fail("no model", 1.0)
    for board in (first, second):
        found = board.histories()
        assert [(one.loads, one.failed_loads, sum(one.deaths().values())) for one in found] == [
            (2, 1, 0),
            (0, 0, 1),
            (0, 0, 0),
        ]
    assert found[1].deaths()[Death.KILLED] == 1
    os.close(file)
