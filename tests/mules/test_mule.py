"""A mule's life, from the burial of its predecessor to its own end, over MemoryTransport."""

import math
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from mules import mule as mules
from mules.mule import Stop
from mules.pool import Pool
from serving.errors import DeadlineExceeded
from serving.memory_transport import MemoryTransport
from serving.quarantine import Quarantine
from serving.store import Board, State
from serving.wire import decode_reply
from tests.serving.memory_notes import MemoryNotes

from .bench import MODEL, SETTINGS, Bench, plan_file, release


@pytest.fixture(autouse=True)
def own_signals():
    """run() takes the signals over."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


class Signalled(MemoryTransport):
    """Sends signals to this process once tasks were taken so many times."""

    def __init__(self, *numbers, after=1, replicas=2):
        super().__init__(replicas=replicas)
        self._numbers = numbers
        self._left = after

    def take(self, wait_s, max_rows, shared_rows=math.inf):
        taken = super().take(wait_s, max_rows, shared_rows)
        if taken:
            self._left -= 1
            if not self._left:
                for number in self._numbers:
                    signal.raise_signal(number)
        return taken


class Life:
    """One mule of a pool of one replica and the spare."""

    def __init__(self, run_dir, id=1):
        self.board = Board(1, 3, 5)
        self.record = self.board.records[id - 1]
        self.run_dir = run_dir
        self.timers = []
        self._id = id

    def run(self, folder, transport=None, number=1, **settings):
        """Its exit status."""
        plan = plan_file(self.run_dir, release(folder, number))
        settings = replace(SETTINGS, **settings)
        transport = transport or Signalled()
        quarantine = Quarantine(MemoryNotes(), 60)
        self.pool = Pool(self._id, settings, self.board, transport, quarantine, plan)
        return mules.run(
            settings,
            transport,
            self.pool,
            quarantine,
            self._id,
            os.getpid(),
            self.board,
            self.timers.append,
        )


@pytest.fixture
def life(tmp_path_factory):
    return Life(tmp_path_factory.mktemp("run"))


def when(true, number=signal.SIGTERM):
    """Send this process a signal as soon as something is true."""
    main = threading.main_thread().ident

    def send():
        while not true():
            time.sleep(0.001)
        signal.pthread_kill(main, number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_is_held_and_leaves_the_rest(write, life, number):
    transport = Signalled(number)
    bench = Bench(transport=transport)
    first, second = bench.offer([1, 2]), bench.offer([3, 4])
    assert life.run(write(model_py=MODEL), transport, max_batch_rows=1) == 0
    assert bench.outputs(first) == [[1, 2]]
    assert [one.ticket for one in transport.take(0, 8)] == [second]
    with pytest.raises(DeadlineExceeded):
        bench.reply(second)
    assert (life.record.pid, life.record.state, life.record.post) == (0, State.GONE, 0)


def test_a_drain_answers_all_that_is_queued_and_waited_for(write, life):
    transport = Signalled(signal.SIGHUP)
    bench = Bench(transport=transport)

    def client(value):
        task = bench.offer([value, 0])
        offered.wait()
        return decode_reply(transport.await_reply(task, time.monotonic() + 30)).outputs["y"].tolist()

    offered = threading.Barrier(9, timeout=30)
    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(client, range(8))
        offered.wait()
        # without an end of its own it would last an hour
        assert life.run(write(model_py=MODEL), transport, max_batch_rows=1, stop_timeout_s=3600) == 0
        assert not transport.waiting()
        assert list(answers) == [[[value, 0]] for value in range(8)]
    assert life.record.state is State.GONE


@pytest.mark.parametrize(("numbers", "stop_timeout_s"), [([signal.SIGHUP], 0), ([signal.SIGHUP, signal.SIGTERM], 60)])
def test_a_drain_ends_at_its_timeout_or_with_a_stop(write, life, numbers, stop_timeout_s):
    transport = Signalled(*numbers)
    bench = Bench(transport=transport)
    # nobody takes the reply away: its seat stays taken
    bench.offer([1, 2])
    assert life.run(write(model_py=MODEL), transport, stop_timeout_s=stop_timeout_s) == 0
    assert transport.waiting()


@pytest.mark.parametrize(
    ("source", "state", "error"),
    [
        ("raise RuntimeError('the file is gone')", State.PAUSED, "the file is gone"),
        ("raise RuntimeError", State.PAUSED, "RuntimeError"),
        ("raise SystemExit('no licence')", State.PAUSED, "no licence"),
        ("model = (", State.PAUSED, "'(' was never closed"),
        ("import a_module_that_is_not_there", State.PAUSED, "No module named 'a_module_that_is_not_there'"),
        (MODEL.replace('"y": inputs["x"]', ""), State.PAUSED, "Model.predict returned no y"),
        # trying again cannot help
        ("", State.FAILED, "has no class Model"),
    ],
)
def test_a_load_that_fails_is_told_and_ends_the_process(write, life, caplog, source, state, error):
    before = time.monotonic()
    assert life.run(write(model_py=source)) == 1
    found = life.board.statuses()[0]
    assert (life.record.state, found.failures, found.ready) == (state, 1, False)
    assert error in found.last_error
    assert before + 1 <= life.record.not_before <= time.monotonic() + 1
    assert "replica cannot load" in caplog.text
    # its successor has nothing to bury
    assert found.pid == 0 and life.record.post


def test_the_last_of_load_attempts_is_a_failure_for_good(write, life):
    life.record.fail("once", pause_s=0)
    life.record.state = State.PAUSED
    assert life.run(write(model_py="raise RuntimeError('twice')"), load_attempts=2) == 1
    assert (life.record.state, life.record.failures, life.record.last_error) == (State.FAILED, 2, "twice")


def test_pauses_grow_up_to_a_minute(life, write):
    for pause_s in (1, 2, 4, 8, 16, 32, 60, 60):
        life.record.not_before = 0
        before = time.monotonic()
        assert life.run(write(model_py="raise RuntimeError")) == 1
        assert before + pause_s <= life.record.not_before <= time.monotonic() + pause_s


def test_a_pause_is_slept_in_short_turns_and_ends_with_a_stop(life, write):
    stop, slept = Stop(), []

    def sleep(seconds):
        slept.append(seconds)
        stop.now = len(slept) == 3

    life.run(write(model_py="raise RuntimeError"))
    life.record.not_before = time.monotonic() + 60
    mules._pause(life.record, stop, life.pool, sleep)
    assert slept == [mules.IDLE_S] * 3
    assert life.board.statuses()[0].heartbeat_age_s < 60


def test_a_pause_ends_where_what_could_not_be_loaded_is_not_to_be_served_any_more(life, write):
    stop, slept = Stop(), []

    def sleep(seconds):
        slept.append(seconds)
        stop.now = True

    folder = write(model_py="raise RuntimeError")
    life.run(folder, number=1)
    life.record.not_before = time.monotonic() + 60
    mules._pause(life.record, stop, life.pool, sleep)
    assert slept == [mules.IDLE_S]
    plan_file(life.run_dir, release(folder, 2))
    stop.now = False
    mules._pause(life.record, stop, life.pool, sleep)
    assert slept == [mules.IDLE_S]


def test_a_model_that_loads_again_is_ready_and_its_failures_are_forgotten(write, life):
    life.record.fail("once", pause_s=0)
    life.record.state = State.FAILED
    transport = Signalled(signal.SIGTERM)
    Bench(transport=transport).offer([1, 2])
    assert life.run(write(model_py=MODEL), transport) == 0
    assert life.record.ever_ready and life.record.failures == 0


def test_a_predecessor_that_died_while_loading_counts_as_a_failure(write, life):
    # killed, or taken down by its framework: it could not say so itself
    life.record.pid = 4711
    life.record.state = State.LOADING
    thread = when(lambda: life.record.state is State.PAUSED)
    assert life.run(write(model_py=MODEL)) == 0
    thread.join()
    assert (life.record.state, life.record.failures) == (State.GONE, 1)
    assert life.record.last_error == "the process died while it loaded the model"


def test_a_predecessor_that_died_before_any_answer_lets_its_successor_pause(write, life):
    life.record.pid = 4711
    life.record.succeed()
    thread = when(lambda: life.record.state is State.PAUSED)
    assert life.run(write(model_py=MODEL)) == 0
    thread.join()
    assert (life.record.failures, life.record.crashes, life.record.last_error) == (0, 1, "")
    assert life.record.last_death == "died"


def test_a_predecessor_that_was_of_use_is_followed_at_once(write, life):
    life.record.pid = 4711
    life.record.succeed()
    life.record.work(1)
    transport = Signalled(signal.SIGTERM)
    Bench(transport=transport).offer([1, 2])
    assert life.run(write(model_py=MODEL), transport) == 0
    assert (life.record.failures, life.record.crashes) == (0, 0)


def test_what_a_predecessor_held_is_answered_by_its_successor(write, life):
    transport = Signalled(signal.SIGTERM, after=2)
    bench = Bench(transport=transport)
    task = bench.offer([1, 2])
    transport.begin(transport.take(0, 1))
    life.record.pid = 4711
    life.record.succeed()
    life.record.work(1)
    assert life.run(write(model_py=MODEL), transport) == 0
    assert bench.outputs(task) == [[1, 2]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_load_that_nobody_waits_for_any_more_is_broken_off(write, life, number):
    source = (
        "import pathlib, time\npathlib.Path(__file__).with_name('loads').touch()\nwhile True:\n    time.sleep(0.01)"
    )
    folder = write(model_py=source)
    thread = when((folder.path / "loads").exists, number)
    assert life.run(folder) == 0
    thread.join()
    assert life.record.state is State.GONE and life.record.failures == 0


def test_the_timer_that_a_predecessor_left_is_stopped_first(write, life):
    assert life.run(write(model_py="raise RuntimeError")) == 1
    assert life.timers == [0]


def test_a_spare_that_is_stopped_leaves_without_a_model(write, tmp_path_factory):
    life = Life(tmp_path_factory.mktemp("run"), id=2)
    # the one replica is well
    life.board.records[0].succeed()
    thread = when(lambda: life.record.state is State.SPARE)
    assert life.run(write(model_py="raise RuntimeError")) == 0
    thread.join()
    assert (life.record.state, life.record.failures) == (State.GONE, 0)


def test_a_spare_takes_the_post_that_is_free_and_answers(write, tmp_path_factory):
    life = Life(tmp_path_factory.mktemp("run"), id=2)
    life.board.records[0].retire()
    transport = Signalled(signal.SIGTERM)
    bench = Bench(transport=transport)
    task = bench.offer([1, 2])
    assert life.run(write(model_py=MODEL), transport) == 0
    assert bench.outputs(task) == [[1, 2]]
    assert life.record.ever_ready


def test_a_replica_says_which_release_it_was_started_for(write, life):
    transport = Signalled(signal.SIGTERM)
    Bench(transport=transport).offer([1, 2])
    assert life.run(write(model_py=MODEL), transport, number=7) == 0
    assert (life.record.release, life.record.version, life.record.default) == (7, 1, 1)


class Watching(Signalled):
    """Notes at each take whether the replica wants to be replaced."""

    worn = ()

    def take(self, wait_s, max_rows, shared_rows=math.inf):
        self.worn = [*self.worn, self.record.worn]
        return super().take(wait_s, max_rows, shared_rows)


@pytest.mark.parametrize(
    ("settings", "worn"),
    [({}, [0, 0, 0]), ({"replica_max_tasks": 2}, [0, 0, 1]), ({"replica_max_tasks": 1}, [0, 1, 1])],
)
def test_a_replica_that_did_what_it_may_wants_to_be_replaced_and_serves_on(write, life, settings, worn):
    transport = Watching(signal.SIGTERM, after=3)
    transport.record = life.record
    bench = Bench(transport=transport)
    tasks = [bench.offer([row, 0]) for row in range(3)]
    assert life.run(write(model_py=MODEL), transport, max_batch_rows=1, **settings) == 0
    assert [bench.outputs(task) for task in tasks] == [[[row, 0]] for row in range(3)]
    assert list(transport.worn) == worn


def test_a_replica_that_has_grown_too_large_wants_to_be_replaced_and_serves_on(write, life):
    # it keeps 256 MiB from its first request on
    leak = """
        if len(self.seen) > 4:
            self.kept = bytearray(b"x") * (256 << 20)
        return"""
    limit = (mules.look(os.getpid()).rss >> 20) + 128
    transport = MemoryTransport(replicas=2)
    bench = Bench(transport=transport)
    task = bench.offer([1, 2])
    thread = when(lambda: life.record.worn)
    source = MODEL.replace("        return", leak)
    assert life.run(write(model_py=source), transport, replica_max_rss_mb=limit) == 0
    thread.join()
    assert life.record.rss > limit << 20
    assert bench.outputs(task) == [[1, 2]]


def test_a_model_that_takes_more_memory_than_a_replica_may_is_not_served(write, life):
    assert life.run(write(model_py=MODEL), replica_max_rss_mb=1) == 1
    assert life.record.state is State.FAILED
    assert "replica_max_rss_mb = 1: the model alone takes" in life.record.last_error


def test_a_replica_whose_canary_is_wrong_ends_and_keeps_its_post(write, life):
    rotten = MODEL.replace('return {"y": inputs["x"]}', 'return {"y": inputs["x"] + (len(self.seen) > 4)}')
    assert life.run(write(model_py=rotten), canary_s=1) == 1
    assert (life.record.state, life.record.failures, life.record.post) == (State.PAUSED, 1, 1)
    assert "output 'y' of the sample differs from the stored answer" in life.record.last_error
