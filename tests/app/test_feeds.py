"""What StatsD is told: a real socket, and metrics that grow as a server's do."""

import socket
import threading
from collections import Counter

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from app import feeds
from app.feeds import Feeds, StatsD
from serving.memory import Memory

BOUNDS = ("0.001", "0.01", "0.1", "+Inf")


class Counts(Collector):
    """A few metrics, as app/metrics.py makes them."""

    def __init__(self):
        self.requests, self.seconds, self.depth, self.buckets, self.sum_s = Counter(), 0.0, 0, [0, 0, 0, 0], 0.0

    def collect(self):
        requests = CounterMetricFamily("muleteer_requests", "", labels=("route", "model", "code"))
        for (route, code), count in self.requests.items():
            requests.add_metric((route, "digits", code), count)
        latency = HistogramMetricFamily("muleteer_request_duration_seconds", "", labels=("route",))
        latency.add_metric(("/predict",), list(zip(BOUNDS, self.buckets, strict=True)), self.sum_s)
        yield from (requests, latency)
        yield CounterMetricFamily("muleteer_predict_seconds", "", value=self.seconds)
        yield GaugeMetricFamily("muleteer_queue_depth", "", value=self.depth)
        yield GaugeMetricFamily("muleteer_queue_oldest_seconds", "", value=self.depth / 4)


class Receiver:
    """A StatsD's socket; what comes in one send, by name and kind."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)

    def read(self):
        lines, self.sizes = [], []
        try:
            while packet := self.socket.recv(65536):
                self.sizes.append(len(packet))
                lines += packet.decode().split("\n")
        except BlockingIOError:
            pairs = [line.partition(":")[::2] for line in lines]
            assert len(dict(pairs)) == len(pairs), "no name is told twice"
            return {name.removeprefix("muleteer.here_80."): value for name, value in pairs}


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.socket.close()


@pytest.fixture
def counts():
    return Counts()


@pytest.fixture
def feed(receiver, counts):
    return StatsD(counts, "here:80", receiver.socket.getsockname())


def test_counts_are_told_as_they_grow_and_gauges_as_they_are(feed, counts, receiver):
    counts.requests["/predict", ""] = 5
    counts.depth = 3
    feed.send()
    told = receiver.read()
    assert told["requests_total.code.none.route._predict"] == "5|c"
    assert (told["queue_depth"], told["queue_oldest_ms"]) == ("3|g", "750|g")
    counts.requests["/predict", ""] = 7
    counts.requests["/predict", "signature"] = 1
    counts.depth = 0
    feed.send()
    told = receiver.read()
    assert told["requests_total.code.none.route._predict"] == "2|c"
    assert told["requests_total.code.signature.route._predict"] == "1|c"
    assert told["queue_depth"] == "0|g"
    feed.send()
    assert not [name for name in receiver.read() if name.startswith("requests")]


def test_what_is_rounded_off_is_told_later(feed, counts, receiver):
    told = []
    for _ in range(10):
        counts.seconds += 0.0004
        feed.send()
        told.append(int(receiver.read().get("predict_ms_total", "0|c").removesuffix("|c")))
    assert sum(told) == 4 and max(told) == 1


def test_quantiles_are_those_of_what_has_come_since(feed, counts, receiver):
    name = "request_duration_ms.route._predict"
    counts.buckets, counts.sum_s = [0, 100, 100, 100], 0.5
    feed.send()
    told = receiver.read()
    # evenly spread from 1 to 10 ms
    assert told[f"{name}.p50"] == "5.5|g" and told[f"{name}.p99"] == "9.91|g"
    assert told["request_duration_ms_count.route._predict"] == "100|c"
    assert told["request_duration_ms_sum.route._predict"] == "500|c"
    feed.send()
    assert not [name for name in receiver.read() if ".p" in name]
    counts.buckets, counts.sum_s = [10, 110, 110, 120], 20.5
    feed.send()
    told = receiver.read()
    # half of the twenty took less than a millisecond, and the others longer than any bound
    assert (told[f"{name}.p50"], told[f"{name}.p95"]) == ("1|g", "100|g")
    assert told["request_duration_ms_sum.route._predict"] == "20000|c"


def test_a_packet_is_as_large_as_any_network_takes(feed, counts, receiver):
    for number in range(200):
        counts.requests[f"/v2/models/{number}", ""] = number + 1
    feed.send()
    told = receiver.read()
    assert {told[f"requests_total.code.none.route._v2_models_{number}"] for number in range(200)} == {
        f"{number + 1}|c" for number in range(200)
    }
    assert max(receiver.sizes) <= 1432 and len(receiver.sizes) > 5


def test_what_another_has_told_is_skipped(feed, counts, receiver):
    counts.requests["/predict", ""] = 5
    feed.skip()
    counts.requests["/predict", ""] = 6
    feed.send()
    assert receiver.read()["requests_total.code.none.route._predict"] == "1|c"


@pytest.mark.parametrize("begun", [0, 1])
def test_metrics_that_cannot_be_made_once_are_told_later(counts, receiver, tmp_path, monkeypatch, caplog, begun):
    monkeypatch.setattr(feeds, "PERIOD_S", 0.001)
    over = threading.Event()

    class Broken(Collector):
        calls = 0

        def collect(self):
            self.calls += 1
            if self.calls < 3:
                raise KeyError("a fault")
            if self.calls == 6:
                over.set()
                threading.Event().wait()
            yield from counts.collect()

    counts.depth = 7
    told = Feeds(Broken(), "here:80", None, receiver.socket.getsockname(), Memory(), tmp_path / "turn")
    told._begun[0] = begun
    told.start()
    assert over.wait(60)
    receiver.socket.setblocking(True)
    assert b"queue_depth:7|g" in receiver.socket.recv(65536)
    assert caplog.text.count("no metrics can be made for statsd") == 1
