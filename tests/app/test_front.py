"""What nginx writes, read as it comes; and what it must not be stopped by."""

import os
import threading
import time
from collections import Counter

import pytest

from app.front import Front

PATIENCE_S = 30.0
LINE = "503 queue_full 0.001 an-id /predict\n"


@pytest.fixture
def run_dir(tmp_path):
    yield tmp_path
    # so that the thread ends: it holds the file, and nothing else
    (tmp_path / "answers.log").unlink(missing_ok=True)


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write(run_dir, text):
    with (run_dir / "answers.log").open("a") as file:
        file.write(text)


def test_each_line_is_counted_once_and_given_back_to_the_disk(run_dir):
    found = []
    Front(run_dir).read(lambda *told: found.append(told))
    for _ in range(3):
        write(run_dir, LINE)
    until(lambda: len(found) == 3)
    assert set(found) == {("/predict", "503", "queue_full", 0.001, "an-id")}
    write(run_dir, LINE[:10])
    time.sleep(0.5)
    write(run_dir, LINE[10:] + LINE * 50_000)
    until(lambda: len(found) == 50_004)
    until(lambda: (run_dir / "answers.log").stat().st_blocks * 512 < 100_000)


def test_a_line_that_is_none_stops_nothing(run_dir):
    found = []
    Front(run_dir).read(lambda *told: found.append(told))
    write(run_dir, "503 queue_fu503 queue_full 0.001 id /predict\n\n\xff\n413 too_large x id /\n" + LINE)
    until(lambda: found)
    assert found == [("/predict", "503", "queue_full", 0.001, "an-id")]


def test_a_line_that_nobody_can_trace_is_told_once_and_the_next_ones_are_counted(run_dir, caplog):
    found, traced = [], []

    def trace(*told):
        traced.append(told)
        if len(traced) < 3:
            raise ValueError("a fault")

    Front(run_dir).read(lambda *told: found.append(told), trace)
    write(run_dir, "503 queue_full 0.001 an-id POST 1700000000.000 - /predict\n" * 4)
    until(lambda: len(traced) == 4)
    assert len(found) == 4 and caplog.text.count("ValueError: a fault") == 1


def test_the_next_worker_goes_on_where_the_one_before_stopped(run_dir):
    write(run_dir, LINE * 2)
    read, wrote = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        Front(run_dir).read(lambda *told: os.write(wrote, b"x"))
        threading.Event().wait()
    os.close(wrote)
    assert os.read(read, 1) + os.read(read, 1) == b"xx"
    until(lambda: int.from_bytes((run_dir / "answers.read").read_bytes()) == 2 * len(LINE))
    found = Counter()
    # it waits until that one has ended
    Front(run_dir).read(lambda *told: found.update([told]))
    time.sleep(0.5)
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(read)
    write(run_dir, LINE)
    until(lambda: found)
    time.sleep(0.5)
    assert sum(found.values()) == 1


def test_where_there_is_no_nginx_there_is_nothing_to_tell(tmp_path):
    assert Front().status() is None and Front(tmp_path).status() is None
    Front().read(lambda *told: None)
