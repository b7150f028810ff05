"""What the instrument for the cost of being seen compares."""

import urllib.request

import pytest

from bench import counting, observe
from bench.observe import AGAIN, SHIPPED, UNCOUNTED, interval
from bench.server import Server
from bench.workload import WORKLOADS


@pytest.mark.parametrize(("count", "places"), [(3, (1, 3)), (6, (1, 6)), (24, (7, 18)), (100, (40, 61))])
def test_the_interval_of_a_median_is_that_of_the_tables(count, places):
    assert interval([float(place) for place in range(count, 0, -1)]) == places


@pytest.mark.parametrize(("way", "counted"), [(UNCOUNTED, False), (AGAIN, False), (SHIPPED, True)])
def test_only_the_server_as_shipped_counts(tmp_path, way, counted):
    server = Server({"MODEL": WORKLOADS["noop"].model, **observe.ways(tmp_path)[way]})
    try:
        server.wait_ready()
        url = f"http://127.0.0.1:{server.port}"
        body = next(iter(WORKLOADS["noop"].items())).request.partition(b"\r\n\r\n")[2]
        sent = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
        assert urllib.request.urlopen(sent).status == 200
        told = urllib.request.urlopen(f"{url}/metrics").read().decode()
        assert ('route="/predict"' in told) is counted
        assert ("muleteer_batch_rows_bucket" in told) is counted
    finally:
        server.close()


def test_all_servers_are_measured_in_turns(tmp_path):
    found = observe.measure(observe.ways(tmp_path), seconds=0.2, repeats=2)
    assert {name: len(taken) for name, taken in found.items()} == {UNCOUNTED: 2, AGAIN: 2, SHIPPED: 2}
    assert all(one.rate > 0 and one.cpu_us > 0 for taken in found.values() for one in taken)
    head, _, *rows = observe.table(found).splitlines()
    assert "of the first's rate" in head
    assert all(name in row for name, row in zip((UNCOUNTED, AGAIN, SHIPPED), rows, strict=True))


def test_what_is_timed_alone_takes_some_time():
    assert counting.took_us(calls=1000) > 0
