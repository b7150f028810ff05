"""What is kept of predictions: every dtype and shape, within its limits, whatever the disk says."""

import fcntl
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from app.prediction_log import Entry, Folder, PredictionLog
from serving.counts import Kept
from serving.settings import Settings
from serving.signature import NUMBERS
from serving.task import Reply, Task

SETTINGS = Settings.read(Path(__file__).parents[2] / "uwsgi.ini", {})


def entry(inputs, outputs, id="a-1", version=1):
    rows = len(next(iter(inputs.values())))
    return Entry(1.5, id, "m", version, Task(b"", id, 0.0, 0.0, rows, inputs), Reply(b"", version, outputs=outputs))


def numbers(rows=2):
    return entry({"x": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)}, {"y": np.arange(rows)})


@pytest.fixture
def settings(tmp_path):
    return replace(
        SETTINGS, prediction_log_sample=1.0, prediction_log_dir=str(tmp_path / "kept"), prediction_log_file_s=60
    )


def whole(settings):
    return sorted(Path(settings.prediction_log_dir).glob("*.parquet"))


def rows_of(settings):
    return [row for file in whole(settings) for row in pyarrow.parquet.read_table(file).to_pylist()]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4), (1, 1), (2, 0), (2, 0, 3), (2, 3, 0)])
def test_a_tensor_comes_back(settings, dtype, shape):
    tensor = (np.arange(np.prod(shape)) % 2).astype(dtype).reshape(shape)
    folder = Folder(settings)
    folder.write([entry({"x": tensor}, {"y": tensor.astype(tensor.dtype.newbyteorder(">"))})], 0)
    folder.finish(0, everything=True)
    found = rows_of(settings)
    assert [row["inputs.x"] for row in found] == [row["outputs.y"] for row in found] == tensor.tolist()
    assert [row["row"] for row in found] == [*range(shape[0])]
    assert (folder.written, folder.dropped) == (shape[0], 0)


@pytest.mark.parametrize(
    ("texts", "found"),
    [([b"a", "ž".encode()], ["a", "ž"]), ([b"a", b"\xff"], [b"a", b"\xff"]), (["a", "b"], ["a", "b"])],
)
def test_strings_are_text_where_all_of_them_are(settings, texts, found):
    folder = Folder(settings)
    folder.write([entry({"x": np.array(texts, object)}, {"y": np.zeros(2)})], 0)
    folder.finish(0, everything=True)
    assert [row["inputs.x"] for row in rows_of(settings)] == found


def test_what_has_other_columns_is_another_file(settings):
    folder = Folder(settings)
    folder.write([numbers(), entry({"text": np.array([b"a"], object)}, {"y": np.zeros(1)}), numbers(5)], 0)
    folder.finish(0, everything=True)
    assert sorted(pyarrow.parquet.read_table(file).num_rows for file in whole(settings)) == [1, 7]


def test_rows_of_other_lengths_are_in_one_file(settings):
    folder = Folder(settings)
    folder.write([entry({"x": np.ones((1, size))}, {"y": np.zeros(1)}) for size in (1, 4, 2, 4)], 0)
    folder.finish(0, everything=True)
    assert len(whole(settings)) == 1
    assert sorted(len(row["inputs.x"]) for row in rows_of(settings)) == [1, 2, 4, 4]


def test_a_file_is_whole_when_it_is_old_enough(settings):
    folder = Folder(settings)
    for now in (0, 30, 59.9):
        folder.write([numbers()], now)
        folder.finish(now)
        assert not whole(settings) and folder.written == 0
    folder.finish(60)
    assert folder.written == 6 and len(rows_of(settings)) == 6


def test_all_files_together_are_limited_and_the_oldest_go(settings):
    settings = replace(settings, prediction_log_max_mb=1)
    folders = [Folder(settings), Folder(settings)]
    rng = np.random.default_rng(0)
    path = Path(settings.prediction_log_dir)
    for number in range(40):
        for folder in folders:
            one = entry({"x": rng.random((10, 1000))}, {"y": np.zeros(10)}, id=str(number))
            folder.write([one], number)
            folder.finish(number)
            assert sum(file.stat().st_size for file in path.iterdir()) <= 1 << 20
    assert folders[0].dropped == folders[1].dropped == 0
    ids = {row["request_id"] for row in rows_of(settings)}
    assert {"39", "38"} <= ids and "0" not in ids


def test_the_folder_is_looked_at_when_much_was_added_and_not_for_each_row(settings, monkeypatch):
    looks = []
    make_room = Folder._make_room
    monkeypatch.setattr(Folder, "_make_room", lambda folder: (looks.append(folder), make_room(folder)))
    settings = replace(settings, prediction_log_max_mb=16)
    folder = Folder(settings)
    for now in range(20):
        folder.write([numbers()], now)
        folder.finish(now, everything=True)
    assert len(whole(settings)) == 20 and len(looks) == 1
    rng = np.random.default_rng(0)
    folder.write([entry({"x": rng.random((10, 1 << 17))}, {"y": np.zeros(10)})], 30)
    assert len(looks) == 2
    folder.finish(30, everything=True)


def test_what_cannot_be_removed_stays_and_the_next_one_goes(settings):
    path = Path(settings.prediction_log_dir)
    (path / "20200101.parquet").mkdir(parents=True)
    (path / "20200102.parquet").write_bytes(b"old")
    folder = Folder(replace(settings, prediction_log_max_mb=1))
    folder.write([entry({"x": np.random.default_rng(0).random((10, 20_000))}, {"y": np.zeros(10)})], 0)
    folder.finish(0, everything=True)
    folder.write([numbers()], 1)
    folder.finish(1, everything=True)
    assert (path / "20200101.parquet").is_dir() and not (path / "20200102.parquet").exists()


def test_half_files_of_the_dead_are_removed_and_those_of_the_living_are_not(settings):
    folder = Folder(settings)
    folder.write([numbers()], 0)
    path = Path(settings.prediction_log_dir)
    (own,) = path.glob("*.part")
    dead = path / "20200101T000000-1-0001.part"
    dead.write_bytes(b"half a file")
    Folder(settings).start()
    assert own.exists() and not dead.exists()
    with own.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    folder.finish(0, everything=True)


def test_what_does_not_fit_onto_the_disk_is_dropped_and_counted_and_told_once(settings, caplog):
    folder = Folder(settings)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        for now in range(3):
            large = entry({"x": np.random.default_rng(now).random((10, 10_000))}, {"y": np.zeros(10)})
            folder.write([large], now)
            folder.finish(now, everything=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (folder.written, folder.dropped) == (0, 30)
    assert not list(Path(settings.prediction_log_dir).iterdir())
    assert len([record for record in caplog.records if "rows are dropped" in record.message]) == 1
    folder.write([numbers()], 9)
    folder.finish(9, everything=True)
    assert folder.written == 2


def test_a_file_that_arrow_cannot_end_is_dropped_and_counted_and_the_next_one_is_written(settings, monkeypatch, caplog):
    counts = Kept(1)
    kept = PredictionLog(settings, counts)
    kept._hurry = os.eventfd(0, os.EFD_CLOEXEC)
    with monkeypatch.context() as broken:
        broken.setattr(pyarrow.parquet.ParquetWriter, "close", lambda _: raises(pyarrow.ArrowInvalid("no end")))
        kept.offer(numbers())
        kept._ends = True
        kept._turn(0)
        kept._ends = False
    assert not list(Path(settings.prediction_log_dir).iterdir()) and "rows are dropped: no end" in caplog.text
    kept.offer(numbers(3))
    kept._ends = True
    kept._turn(1)
    assert [counts.total(what) for what in range(3)] == [5, 3, 2] and len(rows_of(settings)) == 3


def test_what_nobody_foresaw_ends_the_log_and_all_that_waits_is_counted_as_dropped(settings, monkeypatch, caplog):
    counts = Kept(1)
    kept = PredictionLog(settings, counts)
    monkeypatch.setattr(Folder, "write", lambda *_: raises(RuntimeError("a fault")))
    kept.start_worker(1)
    kept.offer(numbers())
    kept._thread.join(60)
    kept.offer(numbers(3))
    assert [counts.total(what) for what in range(3)] == [5, 0, 5] and "the prediction log has ended" in caplog.text


def raises(error):
    raise error


def test_what_is_too_much_to_wait_is_dropped_at_once(settings):
    counts = Kept(2)
    kept = PredictionLog(settings, counts)
    # nobody reads it: what is offered waits
    kept._hurry = os.eventfd(0, os.EFD_CLOEXEC)
    large = entry({"x": np.zeros((1, 1 << 20))}, {"y": np.zeros(1)})
    for _ in range(10):
        kept.offer(large)
    # 64 MiB hold seven of 8 MiB and some bytes
    assert [counts.total(what) for what in range(3)] == [10, 0, 3]


def test_what_waits_is_limited_in_memory_however_small_its_tensors_are(settings):
    counts = Kept(2)
    kept = PredictionLog(settings, counts)
    kept._hurry = os.eventfd(0, os.EFD_CLOEXEC)
    tracemalloc.start()
    try:
        for number in range(20_000):
            kept.offer(
                entry({"x": np.full((1, 1), number)}, {"y": np.array([b"%d" % number], object)}, id=f"id-{number}")
            )
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert counts.total(Kept.DROPPED) == 0 and taken / 1.5 < kept._bytes < 3 * taken


def test_workers_that_hurry_leave_each_other_alone(settings):
    counts = Kept(3)
    kept = PredictionLog(settings, counts)
    # more than half of what may wait, so that it is written now
    large = entry({"x": np.zeros((1, 33 << 17))}, {"y": np.zeros(1)})

    def work(number):
        kept.start_worker(number)
        for _ in range(5):
            kept.offer(large)
            until = time.monotonic() + 20
            while kept._bytes and kept._thread.is_alive() and time.monotonic() < until:
                time.sleep(0.001)
        kept.end()

    workers = [multiprocessing.get_context("fork").Process(target=work, args=(number,)) for number in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [counts.total(what) for what in range(3)] == [15, 15, 0]


def test_a_process_that_ends_by_itself_writes_what_is_left(settings):
    # Python ends before the process, unlike in uWSGI
    program = f"""
import time
from tests.app.test_prediction_log import Kept, PredictionLog, numbers, replace, SETTINGS
kept = PredictionLog(
    replace(SETTINGS, prediction_log_sample=1.0, prediction_log_dir={settings.prediction_log_dir!r}), Kept(1)
)
kept.start_worker(1)
kept.offer(numbers())
while kept._folder.written == 0 and kept._bytes:
    time.sleep(0.01)
kept.offer(numbers())
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    assert len(rows_of(settings)) == 4


def test_a_worker_that_was_killed_has_lost_what_it_had_not_written():
    counts = Kept(2)
    counts.start_worker(2)
    for what, rows in ((Kept.MEANT, 10), (Kept.WRITTEN, 4), (Kept.DROPPED, 1)):
        counts.count(what, rows)
    counts.start_worker(2)
    assert [counts.total(what) for what in range(3)] == [10, 4, 6]
    counts.start_worker(2)
    assert counts.total(Kept.DROPPED) == 6


def test_a_request_is_kept_by_its_id(settings):
    kept = PredictionLog(replace(settings, prediction_log_sample=0.25), Kept(1))
    wanted = [kept.wants(f"id-{number}") for number in range(10_000)]
    assert wanted == [kept.wants(f"id-{number}") for number in range(10_000)] and 2300 < sum(wanted) < 2700
    assert all(PredictionLog(settings, Kept(1)).wants(os.urandom(8).hex()) for _ in range(1000))
