"""The replica, step by step over MemoryTransport, and its life from load to stop."""

import signal
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mules import replica as replicas
from mules.replica import Replica, Stop
from serving.errors import DeadlineExceeded, EngineError, ModelError, ReplyTooLarge
from serving.settings import Settings
from serving.signature import Signature, TensorSpec
from serving.store import Board, State
from serving.task import Task
from serving.transport import MemoryTransport
from serving.wire import decode_reply, encode_task

SETTINGS = Settings.read(Path(__file__).parents[2] / "uwsgi.ini", {})
SIGNATURE = Signature((TensorSpec("x", "float32", (-1,)),), (TensorSpec("y", "float32", (-1,)),))


class Engine:
    """Gives twice its input, raises where it holds a 13, and keeps what it was given."""

    signature = SIGNATURE
    max_batch_rows = None

    def __init__(self, outputs=None):
        self.seen = []
        self.outputs = outputs

    def predict(self, inputs):
        self.seen.append(inputs["x"].tolist())
        if (inputs["x"] == 13).any():
            raise ValueError("the secret is 42")
        return {"y": inputs["x"] * 2} if self.outputs is None else self.outputs


class Bench:
    """A replica between a queue and replies, and one client of it."""

    def __init__(self, engine=None, transport=None, max_batch_rows=4, batch_wait_ms=0):
        self.engine = engine or Engine()
        self.transport = transport or MemoryTransport()
        self.record = Board(1, 3, 5).records[0]
        self.replica = Replica(self.engine, 7, self.transport, self.record, max_batch_rows, batch_wait_ms)

    def offer(self, *rows, left_s=60.0, id="a-1"):
        """Put rows on the queue.  Returns the uuid of the task."""
        uuid_, now = uuid.uuid4().bytes, time.monotonic()
        seat = self.transport.seat()
        task = Task(uuid_, id, seat, now, now + left_s, len(rows), {"x": np.array(rows, np.float32)})
        self.transport.offer(encode_task(task), seat)
        return uuid_

    def reply(self, uuid_):
        """The reply that is there, or DeadlineExceeded."""
        return decode_reply(self.transport.await_reply(uuid_, self.transport.seat(), time.monotonic()))

    def outputs(self, uuid_):
        reply = self.reply(uuid_)
        assert reply.error is None and reply.uuid == uuid_
        return reply.outputs["y"].tolist()

    def error(self, uuid_):
        reply = self.reply(uuid_)
        assert reply.outputs == {}
        return reply.error


def test_a_step_with_nothing_queued_takes_nothing_and_says_that_the_replica_lives():
    bench = Bench()
    bench.record.succeed()
    assert bench.replica.step(0) == 0
    assert bench.record.status(1, time.monotonic(), 3, 5).ready
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
    assert [record.message for record in caplog.records] == ["request=b-1 the model raised"]
    assert "ValueError: the secret is 42" in caplog.text


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
        """A frame comes after each that was taken; with the third the wait is over."""

        def take(self, wait_s, full):
            frames = super().take(wait_s, full)
            clock.ahead_s += 60
            bench.offer([clock.ahead_s / 60 + 1], left_s=1000)
            return frames

    bench = Bench(transport=Trickle(), max_batch_rows=max_batch_rows, batch_wait_ms=batch_wait_ms)
    bench.offer([1], left_s=1000)
    bench.replica.step(0)
    assert bench.engine.seen == seen


def test_a_full_batch_waits_for_nothing():
    bench = Bench(max_batch_rows=2, batch_wait_ms=3_600_000)
    tasks = [bench.offer([1], [2]), bench.offer([3])]
    assert bench.replica.step(0) == 1
    assert bench.outputs(tasks[0]) == [[2], [4]]


def test_a_replica_counts_as_ready_while_it_predicts_until_the_deadline_of_its_tasks():
    class Observed(Engine):
        def predict(self, inputs):
            self.seen = [bench.record.status(1, time.monotonic() + age, 3, 5).ready for age in (4, 6)]
            return super().predict(inputs)

    bench = Bench(Observed())
    bench.record.succeed()
    bench.offer([1])
    bench.replica.step(0)
    assert bench.engine.seen[:2] == [True, False]
    bench.replica.step(0)
    assert not bench.record.status(1, time.monotonic() + 4, 3, 5).ready


MODEL = """
class Model:
    inputs = {"x": "float32[2]"}
    outputs = {"y": "float32[2]"}
    seen = []

    def __init__(self, path):
        pass

    def predict(self, inputs):
        self.seen.append(inputs["x"].tolist())
        return {"y": inputs["x"]}
"""


@pytest.fixture
def record():
    return Board(1, 3, 5).records[0]


def load(folder, record, **settings):
    return replicas.load(replace(SETTINGS, **settings), folder, MemoryTransport(), record)


@pytest.mark.parametrize(
    ("files", "row"), [({}, [0.0, 0.0]), ({"sample_json": '{"x": [3, 4]}'}, [3.0, 4.0])], ids=["zeros", "sample"]
)
def test_a_model_is_warmed_up_with_one_row_and_a_full_batch(write, record, files, row):
    load(write(model_py=MODEL, **files), record, max_batch_rows=3)
    assert sys.modules["model"].Model.seen == [[row], [row] * 3]


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
    load(folder, record)
    card = record.card()
    assert (card.name, card.version, card.engine, card.max_batch_rows) == ("mine", 1, "python", limit)
    assert card.signature.inputs == (TensorSpec("x", "float32", (2,)),)


@pytest.mark.parametrize(
    ("files", "error", "told"),
    [
        ({"sample_json": '{"x": [1]}'}, ModelError, "sample.json: input 'x': one row has shape [1]"),
        ({"model_toml": '[outputs]\ny = "float32[3]"'}, EngineError, "not float32[3]"),
        ({"model_toml": "[inputs]\n" + "".join(f'i{n} = "int8"\n' for n in range(256))}, ModelError, "255"),
    ],
)
def test_a_model_that_does_not_do_what_its_folder_says_is_not_served(write, record, files, error, told):
    with pytest.raises(error) as raised:
        load(write(model_py=MODEL, **files), record)
    assert told in str(raised.value)
    assert record.card() is None


@pytest.fixture(autouse=True)
def own_signals():
    """run() takes the signals over."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


class Signalled(MemoryTransport):
    """Sends signals to this process once a frame was taken."""

    numbers = ()

    def take(self, wait_s, full):
        frames = super().take(wait_s, full)
        if frames:
            for number in self.numbers:
                signal.raise_signal(number)
        return frames


def run(folder, record, transport=None, **settings):
    return replicas.run(replace(SETTINGS, **settings), folder, transport or MemoryTransport(), record, pid=4711)


def status(record):
    return record.status(1, time.monotonic(), 3, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_is_held_and_leaves_the_rest(write, record, number):
    transport = Signalled()
    transport.numbers = [number]
    bench = Bench(transport=transport)
    first, second = bench.offer([1, 2]), bench.offer([3, 4])
    assert run(write(model_py=MODEL), record, transport, max_batch_rows=1) == 0
    assert bench.outputs(first) == [[1, 2]]
    assert len(transport.take(0, lambda frame: False)) == 1
    with pytest.raises(DeadlineExceeded):
        bench.reply(second)
    assert (status(record).pid, record.state) == (4711, State.DRAINING)


def test_a_drain_answers_all_that_is_queued_and_waited_for(write, record):
    transport = Signalled()
    transport.numbers = [signal.SIGHUP]
    bench = Bench(transport=transport)

    def client(value):
        task = bench.offer([value, 0])
        offered.wait()
        return decode_reply(transport.await_reply(task, transport.seat(), time.monotonic() + 30)).outputs["y"].tolist()

    offered = threading.Barrier(9, timeout=30)
    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(client, range(8))
        offered.wait()
        # without an end of its own it would last an hour
        assert run(write(model_py=MODEL), record, transport, max_batch_rows=1, stop_timeout_s=3600) == 0
        assert not transport.waiting()
        assert list(answers) == [[[value, 0]] for value in range(8)]
    assert record.state is State.DRAINING


@pytest.mark.parametrize(("numbers", "stop_timeout_s"), [([signal.SIGHUP], 0), ([signal.SIGHUP, signal.SIGTERM], 60)])
def test_a_drain_ends_at_its_timeout_or_with_a_stop(write, record, numbers, stop_timeout_s):
    transport = Signalled()
    transport.numbers = numbers
    bench = Bench(transport=transport)
    # nobody takes the reply away: its seat stays taken
    bench.offer([1, 2])
    assert run(write(model_py=MODEL), record, transport, stop_timeout_s=stop_timeout_s) == 0
    assert transport.waiting()


@pytest.mark.parametrize(
    ("source", "state", "error"),
    [
        ("raise RuntimeError('the file is gone')", State.PAUSED, "the file is gone"),
        ("raise RuntimeError", State.PAUSED, "RuntimeError"),
        ("model = (", State.PAUSED, "'(' was never closed"),
        ("import a_module_that_is_not_there", State.PAUSED, "No module named 'a_module_that_is_not_there'"),
        (MODEL.replace('"y": inputs["x"]', ""), State.PAUSED, "Model.predict returned no y"),
        # trying again cannot help
        ("", State.FAILED, "has no class Model"),
    ],
)
def test_a_load_that_fails_is_told_and_ends_the_process(write, record, caplog, source, state, error):
    before = time.monotonic()
    assert run(write(model_py=source), record) == 1
    found = status(record)
    assert (record.state, found.failures, found.ready) == (state, 1, False)
    assert error in found.last_error
    assert before + 1 <= record.not_before <= time.monotonic() + 1
    assert "replica cannot load" in caplog.text


def test_the_last_of_load_attempts_is_a_failure_for_good(write, record):
    record.fail("once", pause_s=0)
    record.state = State.PAUSED
    assert run(write(model_py="raise RuntimeError('twice')"), record, load_attempts=2) == 1
    assert (record.state, record.failures, record.last_error) == (State.FAILED, 2, "twice")


def test_pauses_grow_up_to_a_minute(record):
    for pause_s in (1, 2, 4, 8, 16, 32, 60, 60):
        before = time.monotonic()
        replicas._count_failure(record, SETTINGS, "again")
        assert before + pause_s <= record.not_before <= time.monotonic() + pause_s


def test_a_pause_is_slept_in_short_turns_and_ends_with_a_stop(record):
    stop, slept = Stop(), []

    def sleep(seconds):
        slept.append(seconds)
        stop.now = len(slept) == 3

    record.fail("again", pause_s=60)
    replicas._pause(record, stop, sleep)
    assert slept == [replicas.IDLE_S] * 3
    assert status(record).heartbeat_age_s < 60


def test_a_model_that_loads_again_is_ready_and_its_failures_are_forgotten(write, record):
    record.fail("once", pause_s=0)
    record.state = State.FAILED
    transport = Signalled()
    transport.numbers = [signal.SIGTERM]
    Bench(transport=transport).offer([1, 2])
    assert run(write(model_py=MODEL), record, transport) == 0
    assert record.ever_ready and record.failures == 0


def test_a_predecessor_that_died_while_loading_counts_as_a_failure(write, record):
    # killed, or taken down by its framework: it could not say so itself
    record.state = State.LOADING
    main = threading.main_thread().ident

    def stop_when_paused():
        while record.state is not State.PAUSED:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGTERM)

    thread = threading.Thread(target=stop_when_paused, daemon=True)
    thread.start()
    assert run(write(model_py=MODEL), record) == 0
    thread.join()
    assert (record.state, record.failures) == (State.PAUSED, 1)
    assert record.last_error == "the process died while it loaded the model"


def test_a_predecessor_that_died_while_it_served_does_not(write, record):
    record.succeed()
    transport = Signalled()
    transport.numbers = [signal.SIGTERM]
    Bench(transport=transport).offer([1, 2])
    assert run(write(model_py=MODEL), record, transport) == 0
    assert (record.failures, record.last_error) == (0, "")
