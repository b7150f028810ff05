"""Counts in shared memory: one writer for each block, successors that go on, and no block that overflows."""

import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from serving import counts, memory
from serving.counts import BOUNDS_S, BUCKETS, HEAD, HISTOGRAM, Batches, Block, Counts, Names, Requests, Table
from serving.memory import Memory


def whole(requests):
    """Of all rows: what they count, how many, and the seconds."""
    return {
        (int(row[0]), int(row[1])): (
            int(row[HEAD + counts.WHOLE :][:BUCKETS].sum()),
            float(row[HEAD + counts.WHOLE + BUCKETS : HEAD + counts.WHOLE + HISTOGRAM].view(np.float64)[0]),
        )
        for row in requests.table.read()
    }


def test_nothing_is_counted_before_anything_happens():
    requests = Requests(4, 2)
    assert requests.table.read().shape == (0, HEAD + requests.table.numbers)


def test_a_request_is_counted_by_how_it_ended_and_by_its_version():
    requests = Requests(4, 2)
    for seat, end, version, total_s in [(0, 5, 1, 0.25), (0, 5, 1, 0.5), (0, 6, 1, 1.0), (0, 5, 2, 2.0)]:
        requests.count(seat, end, version, total_s, "a")
    assert whole(requests) == {(5, 1): (2, 0.75), (6, 1): (1, 1.0), (5, 2): (1, 2.0)}


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (1e-4, 0), (1.1e-4, 1), (0.01, 6), (10.0, BUCKETS - 2), (1e9, BUCKETS - 1)]
)
def test_a_bound_is_of_the_bucket_below_it(seconds, bucket):
    requests = Requests(1, 0)
    requests.count(0, 1, 1, seconds, "a", 3, [seconds] * len(counts.STAGES))
    (row,) = requests.table.read()
    numbers = row[HEAD:]
    assert numbers[counts.ROWS] == 3
    for histogram in range(1 + len(counts.STAGES)):
        start = counts.WHOLE + histogram * HISTOGRAM
        assert numbers[start : start + BUCKETS].tolist() == [int(place == bucket) for place in range(BUCKETS)]
        assert numbers[start + BUCKETS : start + HISTOGRAM].view(np.float64).tolist() == [seconds]


def test_bounds_grow_and_the_last_one_holds_all():
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S)) and BOUNDS_S[-1] == math.inf


def test_the_first_of_a_bucket_in_a_second_is_its_exemplar():
    requests = Requests(1, 0)
    requests.count(0, 1, 1, 0.3, "a" * counts.ID_BYTES)
    requests.count(0, 1, 1, 0.4, "late")
    (row,) = requests.table.read()
    start = HEAD + counts.EXEMPLARS + 11 * counts.EXEMPLAR
    slot = row[start : start + counts.EXEMPLAR]
    assert slot[1:2].view(np.float64)[0] == 0.3
    assert slot[2:].tobytes() == b"a" * counts.ID_BYTES


def test_who_follows_one_that_died_goes_on_where_it_stopped():
    requests = Requests(2, 1)
    child = os.fork()
    if not child:
        requests.count(1, 5, 1, 0.25, "a")
        requests.count(1, 6, 2, 0.25, "a")
        os._exit(0)
    os.waitpid(child, 0)
    requests.count(1, 6, 2, 0.5, "a")
    requests.count(1, 7, 2, 0.5, "a")
    assert whole(requests) == {(5, 1): (1, 0.25), (6, 2): (2, 0.75), (7, 2): (1, 0.5)}


def test_threads_of_a_worker_count_what_is_no_prediction_into_the_same_block():
    requests = Requests(2, 3)
    requests.start_worker(3)

    def count():
        for _ in range(2000):
            requests.count_other(9, 0.0, "a")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(requests) == {(9, counts.OTHER): (8000, 0.0)}
    assert requests.table.used.tolist() == [0, 0, 0, 0, 1]


def test_what_comes_when_a_block_is_full_is_counted_together():
    table = Table(2, 4, 1)
    block = Block(table, 1)
    for what in range(1, 8):
        table.integers[block.find(what, counts.OTHER)] += 1
    # its successor knows
    block = Block(table, 1)
    for what in (1, 7, 8):
        table.integers[block.find(what, counts.OTHER)] += 1
    rows = [[1, counts.OTHER, 2], [2, counts.OTHER, 1], [3, counts.OTHER, 1], [counts.OTHER, counts.OTHER, 6]]
    assert table.read().tolist() == rows
    assert table.used.tolist() == [0, 4]


def test_a_predict_is_counted_by_its_rows_and_by_its_tasks():
    batches = Batches(2)
    batches.count(1, 1, 1, 0.5)
    assert len(batches.table.read()) == 0
    batches.start(1)
    for rows, tasks in [(8, 2), (8, 3), (100, 3)]:
        batches.count(rows, tasks, 1, 0.5)
    found = {(int(row[0]), int(row[1])): (int(row[2]), row[3:].view(np.float64)[0]) for row in batches.table.read()}
    tasks = Batches.TASKS
    assert found == {(8, 1): (2, 1.0), (128, 1): (1, 0.5), (tasks | 2, 1): (1, 0.5), (tasks | 3, 1): (2, 1.0)}


def test_the_rows_of_large_batches_are_counted_to_the_row():
    batches = Batches(2)
    batches.start(1)
    for rows, tasks in [(8, 2), (100, 3), (65, 65), (1024, 1), (64, 64)]:
        batches.count(rows, tasks, 1, 0.5)
    assert batches.work(1) == (5, 8 + 100 + 65 + 1024 + 64, 2.5)
    assert counts.sums(batches.table.read()).sum() == 1261 + 135
    assert batches.work(0) == (0, 0, 0.0)


def test_when_many_versions_have_passed_what_happened_is_still_told():
    requests, batches = Requests(1, 0), Batches(1)
    batches.start(0)
    for version in range(1000):
        requests.count(0, 5, version, 0.5, "a", 1, [0.1] * len(counts.STAGES))
        requests.count(0, 6, counts.OTHER, 0.5, "a")
        for size in range(1, 33):
            batches.count(size, size, version, 0.5)
    ends = {}
    for row in requests.table.read():
        ends[int(row[0])] = ends.get(int(row[0]), 0) + int(row[HEAD + counts.WHOLE :][:BUCKETS].sum())
    assert ends == {5: 1000, 6: 1000}
    sizes = {}
    for row in batches.table.read():
        sizes[int(row[0])] = sizes.get(int(row[0]), 0) + int(row[HEAD])
    assert sizes == {size | kind: 1000 for size in range(1, 33) for kind in (0, Batches.TASKS)}


@pytest.fixture
def file():
    file = memory.make()
    yield file
    os.close(file)


def test_the_next_uwsgi_goes_on_and_each_has_a_side_of_its_own(file):
    first = Counts(2, 1, 1, Memory(file, 0))
    first.requests.count(1, 5, 1, 0.25, "a")
    second = Counts(2, 1, 1, Memory(file, 1))
    # both write while one takes over from the other
    second.requests.count(1, 5, 1, 0.5, "a")
    first.requests.count(1, 5, 1, 0.25, "a")
    both = [[0, 0, 1, 1, 0, 0], [(5, 1), (5, 1)]]
    for counts_ in (first, second):
        found = [counts_.requests.table.used.tolist(), [tuple(row[:2]) for row in counts_.requests.table.read()]]
        assert found == both
    third = Counts(2, 1, 1, Memory(file, 0))
    third.requests.count(1, 5, 1, 1.0, "a")
    assert sum(int(row[HEAD + counts.WHOLE :][:BUCKETS].sum()) for row in second.requests.table.read()) == 4
    assert third.requests.table.used.tolist() == both[0]


def test_the_next_uwsgi_may_have_more_blocks_or_fewer(file):
    def ends(known):
        return sorted(int(row[0]) for row in known.requests.table.read())

    first = Counts(2, 1, 1, Memory(file, 0))
    first.requests.start_worker(1)
    first.requests.count(1, 5, 1, 0.0, "a")
    first.requests.count_other(6, 0.0, "a")
    second = Counts(8, 4, 3, Memory(file, 1))
    second.requests.count(7, 7, 1, 0.0, "a")
    second.batches.start(2)
    second.batches.count(1, 1, 1, 0.5)
    assert ends(second) == [5, 6, 7]
    third = Counts(1, 1, 1, Memory(file, 0))
    third.requests.count(0, 8, 1, 0.0, "a")
    assert ends(third) == [5, 6, 7, 8]
    assert len(third.batches.table.read()) == 2


def test_code_that_counts_otherwise_begins_anew_and_leaves_the_other_alone(file, monkeypatch):
    first = Counts(1, 1, 1, Memory(file, 0))
    first.requests.count(0, 5, 1, 0.0, "a")
    monkeypatch.setattr(counts, "STAGES", (*counts.STAGES, "one more"))
    second = Counts(1, 1, 1, Memory(file, 1))
    assert len(second.requests.table.read()) == 0
    second.requests.count(0, 6, 1, 0.0, "a")
    first.requests.count(0, 7, 1, 0.0, "a")
    assert [int(row[0]) for row in first.requests.table.read()] == [5, 7]
    # and the one after it goes on with that
    third = Counts(1, 1, 1, Memory(file, 0))
    assert [int(row[0]) for row in third.requests.table.read()] == [6]


def test_when_there_is_no_part_left_memory_is_not_kept(file):
    for layout in range(memory._PARTS):
        Memory(file, 0).map("full", layout, 8, 1)[:8] = b"12345678"
    assert Memory(file, 1).map("full", 0, 8, 1)[:8] == b"12345678"
    assert Memory(file, 1).map("full", "one more", 8, 1)[:8] == bytes(8)


def test_without_a_file_memory_is_not_kept():
    Memory().map("a", "", 8, 1)[:8] = b"12345678"
    assert Memory.of({}).map("a", "", 8, 1)[:8] == bytes(8)


def test_memory_is_found_again_by_who_has_lost_the_file_and_nothing_else_is_taken_for_it(file):
    told = {memory.VARIABLE: f"{file},1"}
    at_its_end = "Memory.of(os.environ).map('a', '', 8, 1)[8:16] = b'12345678'"
    for between in ("pass", f"os.dup2(os.open('/dev/null', os.O_RDWR), {file})"):
        Memory(file, 1).map("a", "", 8, 1)[8:16] = bytes(8)
        program = f"import os; from serving.memory import Memory; {between}; {at_its_end}"
        subprocess.run([sys.executable, "-c", program], env=os.environ | told, check=True)
        assert Memory(file, 1).map("a", "", 8, 1)[8:16] == b"12345678"
    with Path(os.devnull).open("rb") as other:
        assert Memory.of({memory.VARIABLE: f"{other.fileno()},1"}).sides == 1


def test_a_text_keeps_its_number_in_code_that_has_others(file):
    first = Names(Memory(file, 0))
    first.know(["other", "", "/predict"])
    second = Names(Memory(file, 1))
    second.know(["other", "/new", "", "/predict"])
    assert [second.number(text, "other") for text in ("other", "", "/predict", "/new", "/none")] == [0, 1, 2, 3, 0]
    assert Names(Memory(file, 0)).texts == ["other", "", "/predict", "/new"]
    # the one before does not know it
    assert (first.text(3, "other"), first.text(2, "other")) == ("other", "/predict")


def test_a_text_for_which_there_is_no_room_is_told_as_another(file):
    names = Names(Memory(file, 0))
    names.know(["other", "x" * 65000, "y" * 65000, "z"])
    assert [names.number(text * 65000, "other") for text in "xy"] == [1, 0]
    assert Names(Memory(file, 1)).texts == ["other", "x" * 65000, "z"]
