"""What the instrument for the cost of being seen compares."""

import ast
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from bench import counting, observe
from bench.observe import interval
from bench.server import Server
from bench.workload import WORKLOADS

SWITCHED = Path(observe.__file__).with_name("switched.py")


@pytest.mark.parametrize(
    ("count", "places"), [(3, (1, 3)), (6, (1, 6)), (24, (7, 18)), (100, (40, 61)), (3000, (1446, 1555))]
)
def test_the_interval_of_a_median_is_that_of_the_tables(count, places):
    assert interval([float(place) for place in range(count, 0, -1)]) == places


def test_both_know_the_same_slices():
    nodes = ast.parse(SWITCHED.read_text()).body
    values = {
        node.targets[0].id: node.value.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert (values["SLICE_S"], values["SLICES"]) == (observe.SLICE_S, observe.SLICES)


def test_whole_turns_are_taken():
    before, after = np.zeros(32, np.int64), np.zeros(32, np.int64)
    # load since slice 3; the looks are in slices 5 and 18
    before[3:6] = 7
    after[3:19] = range(3, 19)
    assert observe.turns(before, after).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_the_table_tells_how_far_counting_slows_down():
    found = np.array([[100, 90, 90, 100], [200, 180, 180, 200], [300, 270, 270, 300]])
    head, _, counted, same = observe.table(found).splitlines()
    assert "ratio" in head
    assert "| 1800 | 2000 | 0.900 (0.900 to 0.900) |" in " ".join(counted.split())
    assert "1.000 (1.000 to 1.000)" in same


def test_a_server_counts_in_half_of_the_time(tmp_path):
    server = Server({"MODEL": WORKLOADS["noop"].model, **observe.environ(tmp_path)})
    try:
        server.wait_ready()
        url = f"http://127.0.0.1:{server.port}"
        body = next(iter(WORKLOADS["noop"].items())).request.partition(b"\r\n\r\n")[2]
        for _ in range(300):
            sent = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
            assert urllib.request.urlopen(sent).status == 200
        told = urllib.request.urlopen(f"{url}/metrics").read().decode().splitlines()
        ended = observe.read(tmp_path / "ended")
        on = sum(int(ended[slice]) for slice in range(len(ended)) if slice % 4 in (1, 2))
        assert ended.sum() == 300 and 0 < on < 300
        (counted,) = [line for line in told if line.startswith("muleteer_requests_total") and "/predict" in line]
        assert float(counted.rpartition(" ")[2]) == on
    finally:
        server.close()


def test_a_load_is_measured():
    found = observe.measure(seconds=2)
    assert found.shape[1] == 4 and len(found) >= 2 and (found.sum(1) > 0).all()


def test_what_is_timed_alone_takes_some_time():
    assert counting.took_us(calls=1000) > 0
