"""The pool, on real processes: who is dead and of what, what becomes of what it held, and who takes whose post."""

import json
import os
import re
import resource
import select
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mules import oom
from mules import pool as pools
from mules.oom import oom_kills
from mules.pool import GONE, Pool, Post, look
from serving.errors import ModelError, ReplicaCrashed
from serving.memory_transport import MemoryTransport
from serving.plan import Plan, PlanFile, Release
from serving.quarantine import Quarantine, digest
from serving.store import Board, State
from serving.wire import decode_reply
from tests.serving.memory_notes import MemoryNotes

from .bench import SETTINGS, Bench, plan_file

# Python 3.12 and later warn when another test left a thread; children run nothing but what is written here
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
PATIENCE_S = 30.0


@pytest.fixture
def spawn():
    """Start a child that runs a function, or waits for a signal; all end with their test."""
    children = []

    def spawn(run=signal.pause):
        pid = os.fork()
        if not pid:
            status = 70
            try:
                # whoever dumps core takes its time
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                run()
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
        return pid

    yield spawn
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def until(true):
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def kill(pid, number=signal.SIGKILL):
    """End a child, and leave it as it lies."""
    os.kill(pid, number)
    dead(pid)


def dead(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


# ---- what the kernel says


def test_a_process_that_lives_is_told_with_its_parent_and_its_memory(spawn):
    process = look(spawn())
    assert process.state in "RS" and not process.dead
    assert (process.parent, process.status) == (os.getpid(), None)
    assert 1 << 20 < process.rss < 1 << 40


def test_a_process_that_is_stopped_is_not_dead(spawn):
    pid = spawn()
    os.kill(pid, signal.SIGSTOP)
    until(lambda: look(pid).state == "T")
    assert not look(pid).dead
    os.kill(pid, signal.SIGCONT)
    until(lambda: look(pid).state == "S")


def test_a_process_that_exited_is_dead_with_its_status_before_anybody_asks_for_it(spawn):
    pid = spawn(lambda: os._exit(3))
    dead(pid)
    process = look(pid)
    assert process.dead and os.waitstatus_to_exitcode(process.status) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, 40])
def test_a_process_that_was_killed_is_dead_with_its_signal(spawn, number):
    pid = spawn()
    kill(pid, number)
    process = look(pid)
    assert process.dead and os.waitstatus_to_exitcode(process.status) == -number


def test_a_process_that_nobody_knows_any_more_is_gone(spawn):
    pid = spawn()
    kill(pid)
    os.waitpid(pid, 0)
    assert look(pid) == GONE and GONE.dead


def test_whatever_a_process_calls_itself_it_is_read_right(spawn):
    def rename():
        Path("/proc/self/comm").write_text(") Z 1 (x")
        signal.pause()

    pid = spawn(rename)
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == ") Z 1 (x\n")
    assert look(pid).parent == os.getpid() and not look(pid).dead


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("nr_free_pages 1\noom_kill 17\ndrop_pagecache 0\n", 17),
        # a kernel that does not count them, a file that makes no sense, and none
        ("nr_free_pages 1\noom_kill_disable 2\n", 0),
        ("oom_kill many\n", 0),
        ("a line of many words\n", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_kills_for_want_of_memory_are_read_as_kernels_count_them(tmp_path, monkeypatch, text, count):
    vmstat = tmp_path / "vmstat"
    if text is not None:
        vmstat.write_text(text)
    monkeypatch.setattr(oom, "_VMSTAT", vmstat)
    assert oom_kills() == count


def test_this_machine_counts_its_kills_for_want_of_memory():
    counts = re.findall(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    # another process may be killed meanwhile
    assert oom_kills() >= sum(int(count) for count in counts)


def make_cgroup(name, limit_bytes):
    """A memory cgroup of our own, or None where nobody may make one."""
    for folder, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        cgroup = Path(folder, name)
        with suppress(OSError):
            cgroup.mkdir()
            if (cgroup / limit).exists():
                (cgroup / limit).write_text(str(limit_bytes))
                return cgroup
        with suppress(OSError):
            cgroup.rmdir()
    return None


def test_a_real_kill_for_want_of_memory_is_counted_where_a_cgroup_can_be_made(spawn):
    cgroup = make_cgroup(f"muleteer-test-{os.getpid()}", 64 << 20)

    def want():
        # the one that the kernel takes
        Path("/proc/self/oom_score_adj").write_text("1000")
        if cgroup is not None:
            bytearray(b"x") * (256 << 20)
            signal.pause()

    def count():
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        before = oom_kills()
        pid = os.fork()
        if not pid:
            try:
                want()
            finally:
                os._exit(0)
        return [before, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), oom_kills()]

    try:
        before, status, after = in_sibling(spawn, count)
        if cgroup is None:
            assert after >= before >= 0
        else:
            assert status == -signal.SIGKILL and after > before
    finally:
        if cgroup is not None:
            until(lambda: not (cgroup / "cgroup.procs").read_text().strip())
            cgroup.rmdir()


# ---- burials


class Grave:
    """A pool of two replicas and the spare, seen by the spare; the first replica is a real process."""

    def __init__(self, tmp_path, **settings):
        self.settings = replace(SETTINGS, **settings)
        self.board = Board(2, 3, 5)
        self.transport = MemoryTransport(replicas=3, max_attempts=self.settings.max_attempts)
        self.bench = Bench(transport=self.transport)
        self.quarantine = Quarantine(MemoryNotes(), self.settings.quarantine_s)
        self.plan = plan_file(tmp_path, self.release(1))
        self.victim, self.other, self.spare = self.board.records
        self.pool = self.make_pool(3)

    def make_pool(self, id):
        return Pool(id, self.settings, self.board, self.transport, self.quarantine, self.plan)

    def release(self, number, version=1, replicas=2, **options):
        return Release(number, version, Path("1"), Path(), replicas, **options)

    def serve(self, pid, record=None):
        """A process is a replica that is ready."""
        record = record or self.victim
        record.start(pid)
        record.release, record.version = 1, 1
        record.succeed()

    def watch(self, pool=None):
        pool = pool or self.pool
        pool._looked = 0.0
        pool.watch()

    def take(self, max_rows=8):
        self.transport.start_replica(1)
        return self.transport.take(0, max_rows)


@pytest.fixture
def grave(tmp_path):
    return Grave(tmp_path)


def test_what_a_dead_replica_held_is_offered_again(grave, spawn, caplog):
    grave.serve(pid := spawn())
    tasks = [grave.bench.offer([row]) for row in (1, 2)]
    grave.transport.begin(grave.take())
    grave.watch()
    assert grave.transport._again.tickets() == []
    kill(pid)
    grave.watch()
    assert [(ticket.uuid, ticket.alone) for ticket in grave.transport._again.tickets()] == [
        (task.uuid, True) for task in tasks
    ]
    assert "while it predicted 2 tasks: 2 tasks are offered again, 0 are not" in caplog.text


def test_a_dead_replica_is_buried_once_though_all_find_it(grave, spawn):
    grave.victim.start(pid := spawn())
    grave.victim.state = State.LOADING
    kill(pid)
    together = threading.Barrier(2)
    burying = [grave.make_pool(2), grave.pool]

    def watch(pool):
        together.wait()
        grave.watch(pool)

    threads = [threading.Thread(target=watch, args=(pool,)) for pool in burying]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pool in burying:
        grave.watch(pool)
    assert (grave.victim.failures, grave.victim.pid) == (1, 0)


def test_the_successor_is_not_buried_for_its_predecessor(grave, spawn, monkeypatch):
    grave.serve(old := spawn())
    kill(old)
    successor = spawn()

    def overtaken(pid):
        process = look(pid)
        # its successor starts between the look and the lock
        if process.dead:
            grave.serve(successor)
        return process

    monkeypatch.setattr(pools, "look", overtaken)
    grave.watch()
    assert grave.victim.pid == successor and grave.victim.state is State.READY


def test_nobody_buries_those_who_live(grave, spawn):
    grave.serve(pid := spawn())
    os.kill(pid, signal.SIGSTOP)
    until(lambda: look(pid).state == "T")
    grave.watch()
    assert (grave.victim.pid, grave.victim.state) == (pid, State.READY)


def test_a_look_is_taken_now_and_then(grave, spawn):
    grave.watch()
    grave.serve(pid := spawn())
    kill(pid)
    grave.pool.watch()
    assert grave.victim.pid == pid
    until(lambda: grave.pool.watch() or not grave.victim.pid)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGSEGV, "was killed by signal 11 (SIGSEGV) at 700 MiB"),
        (signal.SIGKILL, "was killed by signal 9 (SIGKILL) at 700 MiB"),
        (40, "was killed by signal 40 at 700 MiB"),
    ],
)
def test_a_death_by_a_signal_is_told_with_its_name(grave, spawn, number, told):
    grave.serve(pid := spawn())
    grave.victim.rss = 700 << 20
    kill(pid, number)
    grave.watch()
    assert grave.victim.last_death == told


def test_a_death_by_an_exit_is_told_with_its_status(grave, spawn):
    grave.serve(pid := spawn(lambda: os._exit(3)))
    dead(pid)
    grave.watch()
    assert grave.victim.last_death == "exited with status 3"


def test_a_death_that_nobody_saw_is_told_as_such(grave, spawn):
    grave.serve(pid := spawn())
    kill(pid)
    os.waitpid(pid, 0)
    grave.watch()
    assert grave.victim.last_death == "died"


def test_a_replica_that_was_killed_in_the_middle_of_a_long_predict_was_hung(grave, spawn):
    grave.serve(pid := spawn())
    grave.victim.beat(busy=True)
    grave.victim.busy_since -= 11
    kill(pid)
    grave.watch()
    assert grave.victim.last_death == (
        "was killed by signal 9 (SIGKILL): it had predicted for longer than predict_timeout_s = 10"
    )


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """What the kernel says of its kills, as a function that changes it."""
    vmstat = tmp_path / "vmstat"
    monkeypatch.setattr(oom, "_VMSTAT", vmstat)

    def count(kills):
        vmstat.write_text(f"nr_free_pages 1\noom_kill {kills}\n")

    count(3)
    return count


def test_a_replica_that_the_kernel_killed_for_its_memory_is_told_as_such(tmp_path, monkeypatch, kernel, spawn):
    # however slow this machine is
    monkeypatch.setattr(oom, "DYING_S", PATIENCE_S)
    grave = Grave(tmp_path)
    # two died between two looks
    for kills, told in ((4, True), (4, False), (6, True), (6, True), (6, False)):
        grave.serve(pid := spawn())
        kernel(kills)
        kill(pid)
        grave.watch()
        assert grave.victim.last_death == "was killed by signal 9 (SIGKILL)" + told * ", out of memory"


def test_whom_the_kernel_kills_for_his_memory_takes_a_while_to_be_gone(tmp_path, kernel, spawn):
    grave = Grave(tmp_path)
    now = time.monotonic()
    # of the second kill nobody here died
    for kills, looks_s, told in ((4, (0, 0.5), True), (5, (1, 1.5, 4), False)):
        grave.serve(pid := spawn())
        kernel(kills)
        for look_s in looks_s:
            grave.pool._oom_kills.look(now + look_s)
        kill(pid)
        grave.watch()
        assert grave.victim.last_death == "was killed by signal 9 (SIGKILL)" + told * ", out of memory"


def test_who_is_new_knows_which_kills_have_been_told(tmp_path, kernel, spawn):
    grave = Grave(tmp_path)
    for kills, told in ((4, True), (4, False), (5, True)):
        grave.serve(pid := spawn())
        kernel(kills)
        kill(pid)
        # it has been reaped: nobody knows by which signal it died
        grave.make_pool(1).start(os.getpid())
        assert grave.victim.last_death.partition(" at ")[0] == "died" + told * ", out of memory"
        grave.victim.retire()


@pytest.mark.parametrize(
    ("state", "post", "after"),
    [
        (State.STARTING, 1, State.PAUSED),
        (State.LOADING, 1, State.PAUSED),
        # its pause was given before
        (State.PAUSED, 1, State.PAUSED),
        (State.FAILED, 1, State.FAILED),
        (State.DRAINING, 1, State.GONE),
        (State.SPARE, 0, State.GONE),
    ],
)
def test_who_dies_before_it_serves_or_after(grave, spawn, state, post, after):
    grave.victim.start(pid := spawn())
    grave.victim.state, grave.victim.post = state, post
    kill(pid)
    grave.watch()
    assert (grave.victim.state, grave.victim.pid) == (after, 0)
    assert grave.victim.post == (0 if after is State.GONE else 1)
    failed = state in (State.STARTING, State.LOADING)
    assert grave.victim.failures == int(failed)
    if failed:
        assert grave.victim.last_error == "the process was killed by signal 9 (SIGKILL) while it loaded the model"


def test_a_replica_that_was_of_use_leaves_its_post_to_the_spare(grave, spawn):
    grave.serve(pid := spawn())
    grave.victim.work(1)
    kill(pid)
    grave.watch()
    assert (grave.victim.state, grave.victim.post, grave.victim.crashes) == (State.GONE, 0, 0)


def test_a_replica_that_had_nothing_to_do_for_long_was_of_use(grave, spawn):
    grave.serve(pid := spawn())
    grave.victim.ready_at -= pools.SOON_S + 1
    kill(pid, signal.SIGABRT)
    grave.watch()
    assert (grave.victim.state, grave.victim.post, grave.victim.crashes) == (State.GONE, 0, 0)


def test_replicas_that_die_before_any_answer_pause_longer_and_longer(grave, spawn):
    for crashes, pause_s in enumerate((1, 2, 4, 8, 16, 32, 60, 60), start=1):
        grave.serve(pid := spawn())
        kill(pid, signal.SIGABRT)
        before = time.monotonic()
        grave.watch()
        assert (grave.victim.state, grave.victim.post, grave.victim.crashes) == (State.PAUSED, 1, crashes)
        assert before + pause_s <= grave.victim.not_before <= time.monotonic() + pause_s
    grave.serve(pid := spawn())
    grave.victim.work(1)
    assert grave.victim.crashes == 0


@pytest.mark.parametrize("fault", ["busy", "starved", "reaped"])
def test_whom_another_kills_while_it_has_nothing_to_do_is_no_crash(kernel, grave, spawn, fault):
    def bury(fault):
        grave.serve(pid := spawn())
        if fault == "busy":
            grave.bench.offer([1])
            grave.transport.begin(grave.take())
        elif fault == "starved":
            kernel(4)
        kill(pid)
        if fault == "reaped":
            os.waitpid(pid, 0)
        grave.watch()
        return grave.victim.state, grave.victim.post, grave.victim.crashes

    # as often as somebody likes
    for _ in range(3):
        assert bury("") == (State.GONE, 0, 0)
        grave.victim.post = 1
    assert bury(fault) == (State.PAUSED, 1, 1)


# ---- judgements


def crash(grave, spawn, alone=True, hung=False, leave=False):
    """A replica dies while it predicts one task, or two.  Returns the task's ticket and its frame."""
    grave.serve(pid := spawn())
    ticket = grave.bench.offer([1])
    if not alone:
        grave.bench.offer([2])
    taken = grave.take()
    grave.transport.begin(taken)
    if hung:
        grave.victim.beat(busy=True)
        grave.victim.busy_since -= 11
    if leave:
        grave.transport.leave_digest(ticket, lambda: digest(taken[0].frame))
        grave.transport._seats.leave(ticket.seat)
    kill(pid)
    grave.watch()
    return ticket, taken[0].frame


def crash_again(grave, spawn, number=signal.SIGKILL):
    grave.serve(pid := spawn())
    grave.transport.begin(grave.take())
    kill(pid, number)
    grave.watch()


def admitted(grave, frame):
    """What the door says: "yes", "alone" or "no"."""
    try:
        return "alone" if grave.quarantine.admit(frame) else "yes"
    except ReplicaCrashed:
        return "no"


def test_an_input_that_killed_two_processes_is_answered_and_refused(grave, spawn, caplog):
    ticket, frame = crash(grave, spawn)
    assert admitted(grave, frame) == "yes"
    crash_again(grave, spawn, signal.SIGSEGV)
    reply = decode_reply(grave.transport.await_reply(ticket, time.monotonic()))
    assert type(reply.error) is ReplicaCrashed
    assert str(reply.error) == ("the process that predicted it was killed by signal 11 (SIGSEGV); 2 attempts were made")
    assert admitted(grave, frame) == "no"
    told = {record.request_id: record.message for record in caplog.records if hasattr(record, "request_id")}
    assert told["a-1"].startswith("answered 500 replica_crashed")


def test_an_input_is_spared_once_when_somebody_else_killed_its_process(grave, spawn):
    ticket, frame = crash(grave, spawn)
    crash_again(grave, spawn)
    assert [again.uuid for again in grave.transport._again.tickets()] == [ticket.uuid]
    assert admitted(grave, frame) == "yes"
    crash_again(grave, spawn)
    reply = decode_reply(grave.transport.await_reply(ticket, time.monotonic()))
    assert str(reply.error) == ("the process that predicted it was killed by signal 9 (SIGKILL); 3 attempts were made")
    assert admitted(grave, frame) == "no"


def test_an_input_that_was_not_alone_is_not_refused_for_what_another_did(tmp_path, spawn):
    grave = Grave(tmp_path, max_attempts=1)
    ticket, frame = crash(grave, spawn, alone=False)
    assert type(decode_reply(grave.transport.await_reply(ticket, time.monotonic())).error) is ReplicaCrashed
    assert admitted(grave, frame) == "alone"


@pytest.mark.parametrize(
    ("alone", "hung", "says"),
    [(True, True, "no"), (True, False, "alone"), (False, True, "alone"), (False, False, "alone")],
)
def test_an_input_whose_thread_left_is_judged_by_how_its_process_ended(grave, spawn, alone, hung, says):
    _, frame = crash(grave, spawn, alone, hung, leave=True)
    assert admitted(grave, frame) == says


def test_an_input_whose_thread_left_for_another_reason_is_not_judged(grave, spawn):
    grave.serve(pid := spawn())
    ticket = grave.bench.offer([1])
    (taken,) = grave.take()
    grave.transport.begin([taken])
    grave.transport._seats.leave(ticket.seat)
    kill(pid)
    grave.watch()
    assert admitted(grave, taken.frame) == "yes"


# ---- the guard


def in_sibling(spawn, run):
    """What a function gives that runs in a process beside the others."""
    read, write = os.pipe()

    def report():
        os.write(write, json.dumps(run()).encode())

    spawn(report)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        return json.loads(file.read())


def find_unwell(grave, spawn):
    return {int(pid): reason for pid, reason in in_sibling(spawn, grave.pool._find_unwell).items()}


@pytest.mark.parametrize("state", [State.READY, State.SPARE, State.PAUSED, State.LOADING, State.DRAINING])
def test_a_process_that_is_well_is_left_alone(grave, spawn, state):
    grave.serve(spawn())
    # a busy machine is no ailment
    grave.victim.heartbeat += 60
    grave.victim.state = state
    assert find_unwell(grave, spawn) == {}


def test_a_process_that_is_stopped_is_not_well_whatever_it_does(grave, spawn):
    grave.serve(pid := spawn())
    grave.victim.state = State.LOADING
    os.kill(pid, signal.SIGSTOP)
    until(lambda: look(pid).state == "T")
    assert find_unwell(grave, spawn) == {pid: "was stopped (SIGSTOP)"}


def test_a_process_that_predicts_for_too_long_is_not_well(grave, spawn):
    grave.serve(pid := spawn())
    grave.victim.beat(busy=True)
    grave.victim.heartbeat += 60
    grave.victim.busy_since += 60
    assert find_unwell(grave, spawn) == {}
    grave.victim.busy_since -= 70
    assert find_unwell(grave, spawn) == {pid: "has predicted for longer than predict_timeout_s = 10"}


def test_a_process_that_says_nothing_is_not_well_unless_it_loads(grave, spawn):
    grave.serve(pid := spawn())
    grave.victim.heartbeat -= 4
    ((found, reason),) = find_unwell(grave, spawn).items()
    assert found == pid and re.fullmatch(r"has said nothing for [\d.]+ s", reason)
    grave.victim.state = State.LOADING
    assert find_unwell(grave, spawn) == {}


def test_a_process_that_only_has_the_number_of_a_dead_one_is_left_alone(grave, spawn):
    grave.serve(os.getppid())
    grave.victim.heartbeat -= 4
    assert find_unwell(grave, spawn) == {}


def test_a_dead_process_is_not_killed_again(grave, spawn):
    grave.serve(pid := spawn())
    grave.victim.heartbeat -= 4
    kill(pid)
    assert find_unwell(grave, spawn) == {}


def test_a_worker_that_is_stopped_is_not_well(grave, spawn):
    pid = spawn()
    grave.transport.workers = lambda: [pid]
    assert find_unwell(grave, spawn) == {}
    os.kill(pid, signal.SIGSTOP)
    until(lambda: look(pid).state == "T")
    assert find_unwell(grave, spawn) == {pid: "is a worker and was stopped (SIGSTOP)"}


def test_a_process_that_is_not_well_is_killed_and_buried_with_the_reason(grave, spawn):
    def spare():
        grave.pool.start(os.getpid())
        until(lambda: (grave.pool.watch(), not grave.victim.pid)[1])

    grave.serve(pid := spawn())
    os.kill(pid, signal.SIGSTOP)
    spawn(spare)
    dead(pid)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    until(lambda: not grave.victim.pid)
    assert grave.victim.last_death.startswith("was killed: it was stopped (SIGSTOP)")


# ---- posts


def serve_both(grave, spawn):
    for record in (grave.victim, grave.other):
        grave.serve(spawn(), record)
        record.work(1)


def test_the_spare_claims_a_post_that_is_free_and_no_other(grave, spawn):
    serve_both(grave, spawn)
    assert grave.pool._claim() is None
    grave.other.retire()
    assert grave.pool._claim() == Post(None, 0)
    assert grave.spare.post == 1
    assert grave.pool._claim() is None


def test_of_two_that_claim_one_post_one_gets_it(grave, spawn):
    serve_both(grave, spawn)
    grave.victim.retire()
    grave.spare.state = State.SPARE
    claims = [pool._claim() for pool in (grave.make_pool(1), grave.pool)]
    assert claims == [Post(None, 0), None]


def test_a_spare_that_failed_to_load_claims_nothing_before_its_pause_is_over(grave, spawn):
    serve_both(grave, spawn)
    grave.other.retire()
    grave.spare.not_before = time.monotonic() + 60
    assert grave.pool._claim() is None
    grave.spare.not_before = time.monotonic()
    assert grave.pool._claim() == Post(None, 0)


def test_the_spare_wakes_for_a_death_and_takes_the_post(grave, spawn):
    serve_both(grave, spawn)
    grave.spare.start(os.getpid())
    pid, posts = grave.victim.pid, []
    thread = threading.Thread(target=lambda: posts.append(grave.pool.stand_by(lambda: False)))
    thread.start()
    until(lambda: grave.spare.state is State.SPARE and len(grave.pool._pidfds) == 2)
    kill(pid)
    thread.join()
    assert posts == [Post(None, 0)]
    assert grave.victim.last_death == "was killed by signal 9 (SIGKILL)"


def test_the_spare_is_told_by_the_kernel(grave, spawn):
    serve_both(grave, spawn)
    grave.spare.start(os.getpid())
    kill(grave.victim.pid)
    # a look has just been taken
    grave.pool._looked = time.monotonic()
    grave.pool._sleep()
    assert grave.pool._looked == 0.0
    grave.pool.watch()
    assert grave.victim.state is State.GONE
    # and keeps no file of one that is buried
    grave.pool._sleep()
    assert list(grave.pool._pidfds) == [grave.other.pid]


def test_a_spare_that_is_stopped_has_no_post(grave, spawn):
    serve_both(grave, spawn)
    answers = iter([False, False, True])
    assert grave.pool.stand_by(lambda: next(answers)) is None
    assert grave.spare.state is State.SPARE


@pytest.mark.parametrize("why", ["worn", "outdated"])
def test_replicas_are_replaced_one_after_the_other(grave, spawn, why):
    serve_both(grave, spawn)
    if why == "worn":
        grave.victim.worn = grave.other.worn = 1
    else:
        grave.plan.write(Plan((grave.release(2),)))
    old, next_one = grave.victim.pid, grave.other.pid
    post = grave.pool._claim()
    assert post == Post(grave.victim, old) and grave.spare.post == 1
    # while the new one loads nobody is replaced
    grave.spare.start(spawn())
    grave.spare.state = State.LOADING
    assert grave.pool._find_post() is None
    assert grave.pool.choose(post) == grave.pool.plan().releases[0]
    grave.spare.succeed()
    grave.pool.replace(post)
    dead(old)
    assert os.waitstatus_to_exitcode(look(old).status) == -signal.SIGTERM
    # until it is gone both serve
    assert len(grave.board.posts()) == 3
    grave.watch(grave.make_pool(2))
    assert (grave.victim.state, grave.victim.post) == (State.GONE, 0)
    # its successor is the spare now, and takes the next one's place
    successor = grave.make_pool(1)
    successor.record.start(spawn())
    assert successor._claim() == Post(grave.other, next_one)


def test_nobody_is_replaced_while_a_replica_is_missing(grave, spawn):
    serve_both(grave, spawn)
    grave.victim.worn = 1
    grave.other.state = State.LOADING
    assert grave.pool._claim() is None


def test_each_replica_takes_the_version_that_lacks_most(grave):
    stable, canary = grave.release(1, 1, replicas=2), grave.release(2, 2, replicas=1, default=False)
    grave.plan.write(Plan((stable, canary)))
    grave.spare.post = 1
    chosen = [grave.make_pool(id).choose(None) for id in (1, 2, 3)]
    assert chosen == [stable, canary, stable]
    assert [record.version for record in grave.board.records] == [1, 2, 1]
    assert [record.default for record in grave.board.records] == [1, 0, 1]
    # each again the one that it had, as the others stay
    assert [grave.make_pool(id).choose(None) for id in (1, 2, 3)] == chosen


def test_one_that_replaces_another_takes_its_version(grave, spawn):
    stable, canary = grave.release(1, 1, replicas=1), grave.release(2, 2, replicas=1, default=False)
    grave.plan.write(Plan((stable, canary)))
    serve_both(grave, spawn)
    assert grave.make_pool(2).choose(None) == canary
    grave.other.worn = 1
    assert grave.pool.choose(grave.pool._claim()) == canary
    assert grave.pool.knows(2) and not grave.pool.knows(3)


def test_where_a_version_has_too_many_replicas_some_are_replaced(grave, spawn):
    serve_both(grave, spawn)
    assert grave.pool._claim() is None
    grave.plan.write(Plan((grave.release(1, 1, replicas=1), grave.release(2, 2, replicas=1))))
    post = grave.pool._claim()
    assert post == Post(grave.other, grave.other.pid)
    assert grave.pool.choose(post).number == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"releases": [3]}', None])
def test_a_plan_that_cannot_be_read_replaces_nobody(grave, spawn, tmp_path, text):
    serve_both(grave, spawn)
    file = tmp_path / "plan.json"
    file.unlink()
    if text is not None:
        file.write_text(text)
    assert grave.pool._claim() is None
    fresh = Pool(3, grave.settings, grave.board, grave.transport, grave.quarantine, PlanFile(file))
    assert fresh._claim() is None
    with pytest.raises(ModelError, match="start it with entrypoint"):
        fresh.choose(None)


def test_a_replica_that_ended_meanwhile_is_not_told_to_go(grave, spawn):
    serve_both(grave, spawn)
    post = Post(grave.victim, grave.victim.pid)
    successor = spawn()
    kill(grave.victim.pid)
    grave.victim.start(successor)
    grave.pool.replace(post)
    grave.pool.replace(Post(None, 0))
    os.kill(successor, 0)
    assert not look(successor).dead


@pytest.mark.parametrize("old_lives", [True, False])
def test_a_replacement_that_failed_gives_its_post_back_if_it_is_not_needed(grave, spawn, old_lives):
    serve_both(grave, spawn)
    grave.victim.worn = 1
    assert grave.pool._claim().replaces is grave.victim
    grave.spare.start(pid := spawn())
    grave.spare.state = State.LOADING
    kill(pid)
    if not old_lives:
        kill(grave.victim.pid)
        grave.watch()
    # its successor buries it
    successor = grave.make_pool(3)
    successor.start(os.getpid())
    assert grave.spare.failures == 1 and grave.spare.state is State.PAUSED
    assert grave.spare.post == (0 if old_lives else 1)
    assert len(grave.board.posts()) == 2


def test_who_leaves_has_no_post(grave, spawn):
    serve_both(grave, spawn)
    grave.make_pool(1).leave()
    assert (grave.victim.state, grave.victim.post, grave.victim.pid) == (State.GONE, 0, 0)
    assert grave.pool._claim() == Post(None, 0)


def test_the_kernel_here_has_files_for_processes(spawn):
    # or else the spare hears of a death up to half a second later
    pidfd = os.pidfd_open(pid := spawn())
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(0) == []
        os.kill(pid, signal.SIGKILL)
        assert poll.poll(PATIENCE_S * 1000) == [(pidfd, select.POLLIN)]
    finally:
        os.close(pidfd)
