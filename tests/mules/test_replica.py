"""The replica, step by step over MemoryTransport, and what it does with a folder."""

import math
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mules import replica as replicas
from mules.canary import Canary
from serving.errors import DeadlineExceeded, EngineError, ModelError, ModelNotFound, ReplyTooLarge, SignatureMismatch
from serving.memory_transport import MemoryTransport
from serving.quarantine import Quarantine, digest
from serving.signature import TensorSpec
from serving.store import Board
from tests.serving.memory_notes import MemoryNotes

from .bench import MODEL, SETTINGS, Bench, Engine, release


def test_a_step_with_nothing_queued_takes_nothing_and_says_that_the_replica_lives():
    bench = Bench()
    bench.record.succeed()
    assert bench.replica.step(0) == 0
    assert bench.ready()
    assert bench.engine.seen == []


def test_a_reply_tells_the_version_and_where_the_time_went():
    bench = Bench()
    task = bench.offer([1, 2])
    assert bench.replica.step(0) == 1
    reply = bench.reply(task)
    assert reply.outputs["y"].tolist() == [[2, 4]]
    assert reply.version == 7 and reply.queue_ms >= 0 and reply.predict_ms >= 0


def test_an_expired_task_never_reaches_the_model():
    bench = Bench()
    late, alive = bench.offer([1], left_s=0), bench.offer([2])
    assert bench.replica.step(0) == 2
    assert bench.engine.seen == [[[2]]]
    assert bench.outputs(alive) == [[4]]
    with pytest.raises(DeadlineExceeded):
        bench.reply(late)


class Slow(Engine):
    def predict(self, inputs):
        time.sleep(0.1)
        return super().predict(inputs)


def test_a_reply_that_nobody_waits_for_any_more_is_not_published():
    bench = Bench(Slow())
    for task in (bench.offer([1], left_s=0.05), bench.offer([13], left_s=0.05)):
        assert bench.replica.step(0) in (0, 2)
        with pytest.raises(DeadlineExceeded):
            bench.reply(task)
    assert bench.engine.seen


def test_a_batch_is_what_is_queued_up_to_max_batch_rows_counted_in_rows():
    bench = Bench()
    tasks = [bench.offer([1]), bench.offer([2], [3]), bench.offer([4]), bench.offer([5])]
    assert [bench.replica.step(0) for _ in range(3)] == [3, 1, 0]
    assert bench.engine.seen == [[[1], [2], [3], [4]], [[5]]]
    assert [bench.outputs(task) for task in tasks] == [[[2]], [[4], [6]], [[8]], [[10]]]


@pytest.mark.parametrize(("sizes", "calls"), [([10], [4, 4, 2]), ([3, 3], [4, 2]), ([8], [4, 4]), ([1, 5], [4, 2])])
def test_the_model_never_sees_more_than_a_batch_and_each_task_gets_all_of_its_rows(sizes, calls):
    bench = Bench()
    tasks = [(bench.offer(*([row] for row in range(size))), size) for size in sizes]
    bench.replica.step(0)
    assert [len(rows) for rows in bench.engine.seen] == calls
    for task, size in tasks:
        assert bench.outputs(task) == [[2 * row] for row in range(size)]


def test_tasks_of_different_shapes_are_predicted_by_themselves():
    bench = Bench()
    tasks = [bench.offer([1, 2]), bench.offer([3, 4, 5]), bench.offer([6, 7])]
    bench.replica.step(0)
    assert bench.engine.seen == [[[1, 2], [6, 7]], [[3, 4, 5]]]
    assert [bench.outputs(task) for task in tasks] == [[[2, 4]], [[6, 8, 10]], [[12, 14]]]


def test_one_bad_task_of_a_batch_fails_alone(caplog):
    bench = Bench()
    good, bad, other = bench.offer([1], id="a-1"), bench.offer([13], id="b-1"), bench.offer([2], id="c-1")
    bench.replica.step(0)
    assert bench.engine.seen == [[[1], [13], [2]], [[1]], [[13]], [[2]]]
    assert (bench.outputs(good), bench.outputs(other)) == ([[2]], [[4]])
    error = bench.error(bad)
    assert type(error) is EngineError
    assert str(error) == "the model raised ValueError; the log has more under this request id"
    assert [(record.message, record.request_id) for record in caplog.records] == [("the model raised", "b-1")]
    assert "ValueError: the secret is 42" in caplog.text


class Picky(Engine):
    """Takes no 13, and says whose fault that is."""

    def predict(self, inputs):
        if (inputs["x"] == 13).any():
            raise SignatureMismatch("input 'x': found 13")
        return super().predict(inputs)


@pytest.mark.parametrize("max_attempts", [1, 2])
def test_what_the_model_cannot_take_is_the_fault_of_who_sent_it_alone(caplog, max_attempts):
    bench = Bench(Picky(), MemoryTransport(max_attempts=max_attempts))
    tasks = [bench.offer([1]), bench.offer([13]), bench.offer([2])]
    bench.replica.step(0)
    error = bench.error(tasks[1])
    assert (type(error), str(error)) == (SignatureMismatch, "input 'x': found 13")
    # the others had no attempt before
    assert [bench.outputs(task) for task in tasks[::2]] == [[[2]], [[4]]]
    assert caplog.text == ""


class Clock:
    """The replica's clock, which a test can put forward."""

    ahead_s = 0.0

    def monotonic(self):
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(replicas, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.mark.parametrize("second", [[2], [2, 3]], ids=["a batch that failed", "a group of another shape"])
def test_a_task_that_expires_while_others_are_predicted_never_reaches_the_model(clock, second):
    # each task of a batch that failed was once tried alone even when its client had long had a 504
    class Slow(Engine):
        def predict(self, inputs):
            clock.ahead_s += 100
            self.seen.append(inputs["x"].tolist())
            raise ValueError

    bench = Bench(Slow())
    tasks = [bench.offer([1]), bench.offer(second)]
    assert bench.replica.step(0) == 2
    assert len(bench.engine.seen) == 1
    with pytest.raises(DeadlineExceeded):
        bench.reply(tasks[1])


@pytest.mark.parametrize(
    ("y", "told"),
    [
        (np.zeros((2, 2), np.float32), "'y' has shape [2, 2] for 1 rows"),
        (np.zeros((0, 2), np.float32), "'y' has shape [0, 2] for 1 rows"),
        (np.float32(1), "'y' has shape [] for 1 rows"),
        (np.zeros((1, 2), np.float64), "'y' is float64[2] for one row, not float32[-1]"),
        (np.zeros((1, 2, 2), np.float32), "'y' is float32[2, 2] for one row, not float32[-1]"),
        (np.zeros(1, np.float32), "'y' is float32[] for one row, not float32[-1]"),
        (np.full((1, 2), b"", object), "'y' is string[2] for one row, not float32[-1]"),
    ],
)
def test_what_the_signature_does_not_promise_is_an_engine_error(y, told):
    bench = Bench(Engine({"y": np.asarray(y)}))
    task = bench.offer([1, 2])
    bench.replica.step(0)
    error = bench.error(task)
    assert type(error) is EngineError and told in str(error)


def test_a_reply_that_is_too_large_is_answered_as_such_and_the_others_of_its_batch_are_not_harmed():
    bench = Bench(transport=MemoryTransport(max_reply_bytes=512), max_batch_rows=400)
    small, large, other = bench.offer([1]), bench.offer(*[[2]] * 200), bench.offer([3])
    bench.replica.step(0)
    assert len(bench.engine.seen) == 1
    error = bench.error(large)
    assert type(error) is ReplyTooLarge and "512" in str(error)
    assert (bench.outputs(small), bench.outputs(other)) == ([[2]], [[6]])


@pytest.mark.parametrize(
    ("batch_wait_ms", "max_batch_rows", "seen"),
    [(100_000, 8, [[[1], [2], [3]]]), (0, 8, [[[1]]]), (100_000, 1, [[[1]]])],
)
def test_a_batch_waits_to_be_filled_when_it_is_told_to(clock, batch_wait_ms, max_batch_rows, seen):
    class Trickle(MemoryTransport):
        """A task comes after each that was taken; with the third the wait is over."""

        def take(self, wait_s, max_rows, shared_rows=math.inf):
            taken = super().take(wait_s, max_rows)
            clock.ahead_s += 60
            bench.offer([clock.ahead_s / 60 + 1], left_s=1000)
            return taken

    bench = Bench(transport=Trickle(), max_batch_rows=max_batch_rows, batch_wait_ms=batch_wait_ms)
    bench.offer([1], left_s=1000)
    bench.replica.step(0)
    assert bench.engine.seen == seen


def test_a_full_batch_waits_for_nothing():
    bench = Bench(max_batch_rows=2, batch_wait_ms=3_600_000)
    tasks = [bench.offer([1], [2]), bench.offer([3])]
    assert bench.replica.step(0) == 1
    assert bench.outputs(tasks[0]) == [[2], [4]]


def test_a_replica_counts_as_ready_while_it_predicts_until_it_counts_as_hung():
    class Observed(Engine):
        def predict(self, inputs):
            self.seen = [bench.ready(age) for age in (7, 9)]
            return super().predict(inputs)

    bench = Bench(Observed())
    bench.record.succeed()
    bench.offer([1])
    bench.replica.step(0)
    assert bench.engine.seen[:2] == [True, False]
    bench.replica.step(0)
    assert not bench.ready(4)


def test_what_was_answered_is_counted():
    bench = Bench()
    bench.record.succeed()
    for row in range(3):
        bench.offer([row])
    bench.replica.step(0)
    bench.replica.step(0)
    assert bench.record.tasks == 3


def test_a_predict_is_timed_from_outside_whatever_becomes_of_it():
    calls = []

    class Timed(Engine):
        def predict(self, inputs):
            calls.append("predict")
            return super().predict(inputs)

    bench = Bench(Timed(), end_by=calls.append, predict_timeout_s=10)
    bench.offer([1])
    bench.replica.step(0)
    assert calls == [10, "predict", 0]
    bench.offer([13])
    bench.replica.step(0)
    assert calls == [10, "predict", 0] * 2
    bench.replica.step(0)
    assert len(calls) == 6


def test_while_it_is_predicted_a_task_is_held_as_such_and_then_no_more():
    class Looking(Engine):
        def predict(self, inputs):
            self.held = [(ticket.attempts, busy) for _, ticket, busy in bench.transport._held[0].tickets()]
            return super().predict(inputs)

    bench = Bench(Looking())
    bench.offer([1])
    bench.offer([2])
    bench.replica.step(0)
    assert bench.engine.held == [(1, True), (1, True)]
    assert [*bench.transport._held[0].tickets()] == []
    # one that raises, and is answered with its error
    bench.offer([13])
    bench.replica.step(0)
    assert [*bench.transport._held[0].tickets()] == []


def test_a_batch_that_raised_is_not_predicted_again_when_its_attempts_are_used_up():
    bench = Bench(transport=MemoryTransport(max_attempts=1))
    tasks = [bench.offer([1]), bench.offer([13])]
    bench.replica.step(0)
    assert bench.engine.seen == [[[1], [13]]]
    assert [type(bench.error(task)) for task in tasks] == [EngineError, EngineError]


def test_a_task_that_must_be_predicted_alone_is_and_clears_itself():
    notes = MemoryNotes()
    quarantine = Quarantine(notes, 60)
    bench = Bench(quarantine=quarantine, batch_wait_ms=3_600_000)
    suspect, other = bench.offer([1]), bench.offer([2])
    # it was predicted by one that died
    dead = bench.transport.take(0, 1)
    bench.transport.begin(dead)
    frame = dead[0].frame
    with bench.transport.locked():
        bench.transport.recover(1, None)
    quarantine.suspect(digest(frame))
    bench.replica.step(0)
    assert bench.engine.seen == [[[1]]]
    assert bench.outputs(suspect) == [[2]]
    assert quarantine.admit(frame) is False
    bench.replica._batch_wait_s = 0
    bench.replica.step(0)
    assert bench.outputs(other) == [[4]]


def test_suspects_that_came_together_with_others_are_predicted_alone_after_them():
    bench = Bench()
    tasks = [bench.offer([1]), bench.offer([2], alone=True), bench.offer([3]), bench.offer([4], alone=True)]
    while bench.replica.step(0):
        pass
    assert [[2]] in bench.engine.seen and [[4]] in bench.engine.seen
    assert [bench.outputs(task) for task in tasks] == [[[2]], [[4]], [[6]], [[8]]]


def test_a_suspect_that_raises_has_done_no_harm():
    quarantine = Quarantine(MemoryNotes(), 60)
    bench = Bench(quarantine=quarantine)
    task = bench.offer([13])
    dead = bench.transport.take(0, 1)
    bench.transport.begin(dead)
    with bench.transport.locked():
        bench.transport.recover(1, None)
    quarantine.suspect(digest(dead[0].frame))
    bench.replica.step(0)
    assert type(bench.error(task)) is EngineError
    assert quarantine.admit(dead[0].frame) is False


def test_the_pace_of_a_replica_is_on_the_board(clock):
    class Paced(Engine):
        def predict(self, inputs):
            clock.ahead_s += 0.5 + 0.25 * len(inputs["x"])
            return super().predict(inputs)

    bench = Bench(Paced())
    for rows in (1, 4, 2, 3):
        bench.offer(*[[1]] * rows, left_s=1000)
        bench.replica.step(0)
    assert bench.record.overhead_s == pytest.approx(0.5, abs=0.02)
    assert bench.record.row_s == pytest.approx(0.25, abs=0.02)


def test_an_idle_replica_looks_at_its_canary_now_and_then(clock):
    calls = []
    bench = Bench(canary_s=30, end_by=calls.append, predict_timeout_s=10)
    bench.replica._canary = Canary(bench.engine, {"x": np.array([[3]], np.float32)})
    bench.replica.warm_up()
    warm = len(bench.engine.seen)
    bench.replica.step(0)
    assert len(bench.engine.seen) == warm
    clock.ahead_s += 31
    # one that is busy is well
    bench.offer([1], left_s=1000)
    bench.replica.step(0)
    bench.replica.step(0)
    assert len(bench.engine.seen) == warm + 1
    clock.ahead_s += 31
    bench.replica.step(0)
    assert bench.engine.seen[warm + 1 :] == [[[3]]]
    assert calls[-2:] == [10, 0] and not bench.record.busy_since
    bench.replica.step(0)
    assert len(bench.engine.seen) == warm + 2


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({"y": np.array([[7]], np.float32)}, "output 'y' of the sample differs from the stored answer"),
        ({"y": np.array([[np.nan]], np.float32)}, "output 'y' of the sample differs from the stored answer"),
        ({"y": np.array([[7, 7]], np.float64)}, "is float64"),
        (ValueError("the GPU is gone"), "the canary is wrong: the model raised ValueError: the GPU is gone"),
        (SystemExit(3), "the canary is wrong: the model raised SystemExit: 3"),
    ],
)
def test_a_replica_whose_canary_is_wrong_is_not_trusted_any_more(clock, outputs, told):
    class Rotten(Engine):
        def predict(self, inputs):
            if isinstance(self.outputs, BaseException):
                raise self.outputs
            return super().predict(inputs)

    calls = []
    bench = Bench(Rotten(), canary_s=30, end_by=calls.append, predict_timeout_s=10)
    bench.replica._canary = Canary(bench.engine, {"x": np.array([[3]], np.float32)})
    bench.replica.warm_up()
    bench.engine.outputs = outputs
    clock.ahead_s += 31
    with pytest.raises(EngineError) as raised:
        bench.replica.step(0)
    assert told in str(raised.value)
    assert calls == [10, 0]


def test_without_canary_s_nothing_is_predicted_that_nobody_asked_for(clock):
    bench = Bench(canary_s=0)
    bench.replica._canary = Canary(bench.engine, {"x": np.array([[3]], np.float32)})
    clock.ahead_s += 10_000
    bench.replica.step(0)
    assert bench.engine.seen == []


def test_who_named_a_version_that_is_served_no_more_is_told():
    bench = Bench()
    bench.transport.serve(7, True, lambda version: version == 7)
    mine, gone = bench.offer([1], version=7), bench.offer([2], version=6)
    assert bench.replica.step(0) == 1
    assert bench.outputs(mine) == [[2]]
    reply = bench.reply(gone)
    assert isinstance(reply.error, ModelNotFound) and "version 6 of the model is not served any more" in str(
        reply.error
    )
    assert bench.engine.seen == [[[1]]]


@pytest.fixture
def record():
    return Board(1, 3, 5).records[0]


def load(folder, record, **settings):
    return replicas.load(replace(SETTINGS, **settings), release(folder), MemoryTransport(), record)


@pytest.mark.parametrize(
    ("files", "row"), [({}, [0.0, 0.0]), ({"sample_json": '{"x": [3, 4]}'}, [3.0, 4.0])], ids=["zeros", "sample"]
)
def test_a_model_is_warmed_up_with_one_row_and_a_full_batch(write, record, files, row):
    load(write(model_py=MODEL, **files), record, max_batch_rows=3)
    # each twice: the first predict of a size may compile
    assert sys.modules["model"].Model.seen == [[row]] * 2 + [[row] * 3] * 2
    assert record.overhead_s + record.row_s > 0


def test_the_sample_of_the_folder_is_on_the_card(write, record):
    card = load(write(model_py=MODEL, sample_json='{"x": [3, 4]}'), record).card
    assert [spec.sample for spec in card.signature.inputs] == [[3, 4]]


@pytest.mark.parametrize(
    ("source", "toml", "limit"),
    [
        (MODEL, "", 32),
        (MODEL, "max_batch_rows = 8", 8),
        (MODEL, "max_batch_rows = 64", 32),
        (MODEL + "    batched = False", "", 1),
    ],
)
def test_the_lowest_batch_limit_is_the_one_on_the_card(write, record, source, toml, limit):
    folder = write(model_py=source, model_toml=f'name = "mine"\n{toml}')
    card = load(folder, record).card
    assert (card.name, card.version, card.engine, card.max_batch_rows) == ("mine", 1, "python", limit)
    assert card.signature.inputs == (TensorSpec("x", "float32", (2,)),)


@pytest.mark.parametrize(
    ("files", "error", "told"),
    [
        ({"sample_json": '{"x": [1]}'}, ModelError, "sample.json: input 'x': one row has shape [1]"),
        ({"model_toml": '[outputs]\ny = "float32[3]"'}, EngineError, "not float32[3]"),
        ({"answer_json": '{"y": [0, 1]}'}, EngineError, "output 'y' of the sample differs from answer.json"),
        ({"answer_json": '{"y": [0]}'}, ModelError, "answer.json: input 'y': one row has shape [1]"),
        ({"model_toml": "[inputs]\n" + "".join(f'i{n} = "int8"\n' for n in range(256))}, ModelError, "255"),
    ],
)
def test_a_model_that_does_not_do_what_its_folder_says_is_not_served(write, record, files, error, told):
    with pytest.raises(error) as raised:
        load(write(model_py=MODEL, **files), record)
    assert told in str(raised.value)
    assert record.card() is None


class Many(Engine):
    """One more signature, of batches of two rows; it gives three times its input."""

    def __init__(self):
        super().__init__()
        self.triple = Engine()
        self.triple.max_batch_rows = 2
        self.triple.predict = lambda inputs: {"y": self.seen.append(inputs["x"].tolist()) or inputs["x"] * 3}
        self.others = {"triple": self.triple}


def test_each_signature_is_predicted_by_its_own_and_no_batch_mixes_two():
    bench = Bench(Many())
    one, two, three = bench.offer([1]), bench.offer([2], signature="triple"), bench.offer([3])
    four = bench.offer([4], [5], [6], signature="triple")
    strange = bench.offer([1], signature="none")
    while bench.replica.step(0):
        pass
    assert [bench.outputs(task) for task in (one, two, three, four)] == [[[2]], [[6]], [[6]], [[12], [15], [18]]]
    assert bench.engine.seen[0] == [[1], [3]] and all(len(rows) <= 2 for rows in bench.engine.seen)
    assert "version 7 of the model has no signature 'none'" in str(bench.error(strange))


def test_a_version_with_other_signatures_is_refused_by_their_names():
    bench = Bench(Many())
    replica = bench.replica
    with pytest.raises(ModelError, match=r"takes and gives x .* by the signature .triple., and version 7, .*triple"):
        replica.check_signature(replace(replica.card, others={"triple": replace(replica.card.signature, outputs=())}))
    with pytest.raises(ModelError, match="before, nothing by the signature 'triple': clients may"):
        replica.check_signature(replace(replica.card, others={}))
