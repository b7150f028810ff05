"""Feeds: the metrics, sent to a Graphite or a StatsD that does not ask for them.

What /metrics tells goes out every ten seconds, from a thread for each receiver: one that is slow, or gone, costs the
others nothing.  Graphite is told the numbers as they are; StatsD what has been counted since the last time, gauges as
they are, and of latencies the counts, the sums and three quantiles.  uWSGI's own way to Carbon tells what uWSGI counts,
and knows only whole numbers whose names are declared at the start, where ours have versions and codes in them.

Runs in:  worker, the one for health.
Units:    seconds; for StatsD milliseconds where /metrics has seconds.
Source:   https://graphite.readthedocs.io/en/latest/tags.html, statsd/statsd docs/metric_types.md.
"""

import fcntl
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.bridge.graphite import GraphiteBridge
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from serving.counts import quantile
from serving.memory import Memory

PERIOD_S = 10.0
# of a receiver that does not take what it is sent
_PATIENCE_S = 5.0
# how long a process that ends takes to send the rest
_LAST_S = 0.5
# how often it is said that there is nobody
_LOG_S = 60.0
# one packet on any network
_PACKET_BYTES = 1432
_QUANTILES = (0.5, 0.95, 0.99)
# no sign that Graphite, StatsD or a file's name gives a meaning to
_ODD = re.compile(r"[^A-Za-z0-9_-]")

# a server has one model, but none before that is loaded: what has been counted by then would be told twice
_LEFT_OUT = ("le", "model")

Address = tuple[str, int]
Send = Callable[[], None]
log = logging.getLogger("muleteer.feeds")


class Feeds:
    """The receivers that there are, and what is sent to them."""

    def __init__(
        self,
        metrics: Collector,
        server: str,
        carbon: Address | None,
        statsd: Address | None,
        known: Memory,
        turn: Path,
    ) -> None:
        """server: which of several it is, as the receivers have it; turn: held by who tells StatsD, one at a time."""
        self._sends: dict[str, Send] = {}
        if carbon is not None:
            told = _Tagged(metrics, server)
            self._sends["carbon"] = GraphiteBridge(carbon, told, _PATIENCE_S, tags=True).push
        self._statsd = None if statsd is None else StatsD(metrics, server, statsd)
        # whether StatsD has been told of what is counted there
        self._begun = known.map("statsd", "", 1, 1)
        self._turn = turn
        self._turn_file: int | None = None
        self._started = False

    def start(self) -> None:
        """In a fresh worker, from now on."""
        self._started = True
        for name, send in self._sends.items():
            threading.Thread(target=_keep_sending, args=(name, send), name=name, daemon=True).start()
        if (statsd := self._statsd) is not None:
            args = ("statsd", lambda: self._tell_statsd(statsd))
            threading.Thread(target=_keep_sending, args=args, name="statsd", daemon=True).start()

    def _tell_statsd(self, statsd: "StatsD") -> None:
        """Who told it before, and another uWSGI that still finishes, has to end first."""
        if "statsd" not in self._sends:
            if self._turn_file is None:
                self._turn_file = os.open(self._turn, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._turn_file, fcntl.LOCK_EX)
            if self._begun[0]:
                # that one has told nearly all of it
                statsd.skip()
            self._begun[0] = 1
            self._sends["statsd"] = statsd.send
        statsd.send()

    def stop(self) -> None:
        """What has come since the last time, but not for long."""
        if not self._started:
            return
        lasts = [threading.Thread(target=_try, args=(send,), daemon=True) for send in [*self._sends.values()]]
        for last in lasts:
            last.start()
        until = time.monotonic() + _LAST_S
        for last in lasts:
            last.join(max(0.0, until - time.monotonic()))


def _keep_sending(name: str, send: Send) -> None:
    """All of a thread's life."""
    logged = -_LOG_S
    while True:
        try:
            send()
        except Exception as error:
            if time.monotonic() - logged > _LOG_S:
                logged = time.monotonic()
                if isinstance(error, OSError):
                    log.warning("%s takes no metrics (%s in uwsgi.ini): %s", name, name, error)
                else:
                    log.exception("no metrics can be made for %s (%s in uwsgi.ini)", name, name)
        time.sleep(PERIOD_S)


def _try(send: Send) -> None:
    with suppress(OSError):
        send()


class _Tagged(Collector):
    """The metrics with a tag for the server, and without labels that are empty, which Carbon does not take."""

    def __init__(self, metrics: Collector, server: str) -> None:
        self._metrics, self._server = metrics, server

    def collect(self) -> Iterator[Metric]:
        for metric in self._metrics.collect():
            metric.samples = [
                sample._replace(labels={"server": self._server, **_filled(sample)}) for sample in metric.samples
            ]
            yield metric


class StatsD:
    """What is sent to a StatsD, in its own words."""

    def __init__(self, metrics: Collector, server: str, address: Address) -> None:
        self._metrics, self._address = metrics, address
        self._prefix = f"muleteer.{_ODD.sub('_', server)}."
        # what has been told of each count, in whole numbers: what is rounded off is told later
        self._told: dict[str, int] = {}
        # how many had been in each bucket
        self._buckets: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def skip(self) -> None:
        """Tell nothing of what has been counted so far."""
        for _ in self._lines():
            pass

    def send(self) -> None:
        """All of it; OSError where it has no address."""
        family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
        with self._lock, socket.socket(family, kind, protocol) as out:
            packet = b""
            for line in self._lines():
                told = line.encode()
                if packet and len(packet) + 1 + len(told) > _PACKET_BYTES:
                    out.sendto(packet, address)
                    packet = b""
                packet = packet + b"\n" + told if packet else told
            if packet:
                out.sendto(packet, address)

    def _lines(self) -> Iterator[str]:
        """A line for each number."""
        for metric in self._metrics.collect():
            buckets: dict[str, list[tuple[float, float]]] = {}
            for sample in metric.samples:
                if sample.name.endswith("_bucket"):
                    bound = float(sample.labels["le"])
                    buckets.setdefault(self._name(sample), []).append((bound, sample.value))
                elif metric.type in ("counter", "histogram"):
                    yield from self._count(sample)
                else:
                    yield f"{self._name(sample)}:{_value(sample):.9g}|g"
            # of sizes the mean does
            if metric.name.endswith("_seconds"):
                for name, found in buckets.items():
                    yield from self._quantiles(name, found)

    def _name(self, sample: Sample) -> str:
        """muleteer.SERVER.NAME.LABEL.VALUE…, with the same labels each time."""
        name = sample.name.removeprefix("muleteer_").removesuffix("_bucket").replace("_seconds", "_ms")
        labels = [pair for pair in sorted(sample.labels.items()) if pair[0] not in _LEFT_OUT]
        parts = [part for label, value in labels for part in (label, _ODD.sub("_", value) or "none")]
        return self._prefix + ".".join([name, *parts])

    def _count(self, sample: Sample) -> Iterator[str]:
        name = self._name(sample)
        whole = round(_value(sample))
        if grown := whole - self._told.get(name, 0):
            self._told[name] = whole
            yield f"{name}:{grown}|c"

    def _quantiles(self, name: str, buckets: list[tuple[float, float]]) -> Iterator[str]:
        """Of what has come since the last time."""
        bounds, totals = [bound for bound, _ in buckets], [total for _, total in buckets]
        before = self._buckets.get(name, [0.0] * len(totals))
        self._buckets[name] = totals
        grown = [now - then for now, then in zip(totals, before, strict=True)]
        for share in _QUANTILES:
            if (found := quantile(share, bounds, grown)) is not None:
                yield f"{name}.p{share * 100:.0f}:{found * 1000:.6g}|g"


def _value(sample: Sample) -> float:
    """In milliseconds, if it is a time."""
    return sample.value * 1000 if "_seconds" in sample.name and not sample.name.endswith("_count") else sample.value


def _filled(sample: Sample) -> dict[str, str]:
    return {label: value for label, value in sample.labels.items() if value}
