"""GET /metrics: what the pool does and has done, as Prometheus and OpenMetrics have it.

What has been counted since the server started is in serving/counts.py and on the board; all else is as it is when
somebody asks.

Runs in:  worker.
Units:    seconds and bytes, as Prometheus wants them.
Source:   https://prometheus.io/docs/instrumenting/exposition_formats/, the OpenMetrics specification 1.0.
"""

import importlib.metadata
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from flask import Blueprint, Flask, Response, g, request
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from app import dialects, front
from app.front import Front
from app.problems import request_id
from serving import counts
from serving.counts import Batches, Counts, Rows
from serving.errors import CODES
from serving.quarantine import Quarantine
from serving.store import Board, State
from serving.transport import Transport

# of tasks and of rows in one predict
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Ends:
    """How requests end, counted: by the route, the status, and the code of what was refused."""

    def __init__(self, known: Counts, routes: Iterable[str]) -> None:
        self._requests = known.requests
        self._failures = known.failures
        self._names = known.names
        self._predictions = set(routes)
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._names.know(("other", "", *CODES, *front.CODES, *routes))

    def know(self, routes: Iterable[str], predict: bool = False) -> None:
        """Before the fork: these are routes, too; predict: of predictions."""
        if predict:
            self._predictions |= set(routes)
        self._names.know(routes)

    def count(
        self,
        seat: int,
        route: str,
        status: str,
        code: str,
        version: int,
        total_s: float,
        id: str,
        rows: int,
        stages: tuple[float, ...],
    ) -> None:
        """Count a prediction.  status: its line, or its number alone."""
        end = self._numbers.get((route, status, code))
        if end is None:
            end = self._numbers[route, status, code] = self._encode(route, status, code)
        self._requests.count(seat, end, version, total_s, id, rows, stages)
        if code:
            self._failures.note(seat, end, total_s, id)

    def count_other(self, route: str, status: str, code: str, total_s: float, id: str, failed: str = "") -> None:
        """Count what no thread has a seat for.  failed: the code of what is told by its status alone."""
        self._requests.count_other(self._encode(route, status, code), total_s, id)
        if code or failed:
            self._failures.note_other(self._encode(route, status, code or failed), total_s, id)

    def _encode(self, route: str, status: str, code: str) -> int:
        known = self._names.number
        return known(route, "other") << 32 | int(status[:3]) << 16 | known(code, "other")

    def decode(self, number: int) -> tuple[str, str, str]:
        """The route, the status and the code."""
        if number == counts.OTHER:
            return "other", "0", "other"
        text = self._names.text
        return text(number >> 32, "other"), str(number >> 16 & 0xFFFF), text(number & 0xFFFF, "other")

    def predicts(self, number: int) -> bool:
        """Whether it is of a prediction, or was to be one."""
        return self.decode(number)[0] in self._predictions


class Metrics(Collector):
    """What a scrape reads, as it is then."""

    def __init__(
        self,
        transport: Transport,
        board: Board,
        known: Counts,
        nginx: Front,
        deadline_s: float,
        quarantine: Quarantine,
        cache_items: int,
    ) -> None:
        self._transport = transport
        self._board = board
        self.counts = known
        self.nginx = nginx
        self._deadline_s = deadline_s
        self._quarantine = quarantine
        self._cache_items = cache_items
        self._version = importlib.metadata.version("muleteer")
        self.ends = Ends(known, dialects.NAMES)
        # what else the worker that no prediction goes to has to start
        self.in_control: list[Callable[[], None]] = []

    def start_worker(self, number: int, control: bool, trace: front.Trace | None = None) -> None:
        """In a fresh worker, counted from 1.  control: it is the one that no prediction goes to.

        trace: whom to tell of what nginx answers by itself.
        """
        self.counts.start_worker(number)
        if control:
            self.nginx.read(self._count_own, trace)
            for start in self.in_control:
                start()

    def _count_own(self, path: str, status: str, code: str, total_s: float, id: str) -> None:
        route = dialects.find(path)
        self.ends.count_other(route.dialect.name if route else path, status, code, total_s, id)

    def describe(self) -> list[Metric]:
        """None: what there is depends on the model."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        card = self._board.card()
        model = card.name if card else ""
        about = {"version": self._version, "model": model, "engine": card.engine if card else ""}
        yield InfoMetricFamily("muleteer", "The server and its model", value=about)
        yield from self._requests(model)
        yield from self._batches(model)
        yield from self._queue()
        yield from self._cache()
        yield from self._replicas()
        yield from self._front()

    def _requests(self, model: str) -> Iterator[Metric]:
        found = self.counts.requests.table.read()
        ends = [(*self.ends.decode(int(row[0])), _version(int(row[1]))) for row in found]
        requests = CounterMetricFamily(
            "muleteer_requests",
            "Requests that ended, and how; code is that of the error",
            labels=("route", "model", "version", "status", "code"),
        )
        rows = CounterMetricFamily("muleteer_rows", "Rows that were predicted", labels=("route", "model", "version"))
        whole = HistogramMetricFamily(
            "muleteer_request_duration_seconds",
            "From nginx to the end of the answer",
            labels=("route", "model", "version"),
        )
        stage = HistogramMetricFamily(
            "muleteer_stage_duration_seconds",
            "Of answered requests: until a thread accepts, decode, wait for a replica, predict, encode",
            labels=("stage", "model", "version"),
        )
        for (route, status, code, version), some in _grouped(found, ends):
            requests.add_metric((route, model, version, status, code), _sum(some, counts.WHOLE, counts.BUCKETS))
        for (route, version), some in _grouped(found, [(route, version) for route, _, _, version in ends]):
            if rows_of := int(some[:, counts.HEAD + counts.ROWS].sum()):
                rows.add_metric((route, model, version), rows_of)
            _add(whole, (route, model, version), some, counts.WHOLE, _exemplars(some))
        for (version,), some in _grouped(found, [(version,) for *_, version in ends]):
            if some[:, counts.HEAD + counts.ROWS].any():
                for number, name in enumerate(counts.STAGES, start=1):
                    _add(stage, (name, model, version), some, counts.WHOLE + number * counts.HISTOGRAM)
        yield from (requests, rows, whole, stage)
        kept = CounterMetricFamily(
            "muleteer_prediction_log_rows", "Rows for the prediction log, and what became of them", labels=("result",)
        )
        kept.add_metric(("written",), self.counts.kept.total(counts.Kept.WRITTEN))
        kept.add_metric(("dropped",), self.counts.kept.total(counts.Kept.DROPPED))
        yield kept

    def _batches(self, model: str) -> Iterator[Metric]:
        found = self.counts.batches.table.read()
        families = {
            kind: HistogramMetricFamily(
                f"muleteer_batch_{kind}", f"{kind.capitalize()} of one predict", labels=("model", "version")
            )
            for kind in ("rows", "tasks")
        }
        took = CounterMetricFamily(
            "muleteer_predict_seconds", "That replicas have spent in predicts", labels=("model", "version")
        )
        kinds = [("tasks" if row[0] & Batches.TASKS else "rows", _version(int(row[1]))) for row in found]
        for (kind, version), some in _grouped(found, kinds):
            sizes = some[:, 0] & (Batches.TASKS - 1)
            times = some[:, counts.HEAD]
            buckets = [(str(float(size)), float(times[sizes <= size].sum())) for size in _SIZES]
            families[kind].add_metric(
                (model, version), [*buckets, ("+Inf", float(times.sum()))], float(counts.sums(some).sum())
            )
            if kind == "rows":
                took.add_metric((model, version), float(some[:, counts.HEAD + 1].view(np.float64).sum()))
        yield from (*families.values(), took)

    def _queue(self) -> Iterator[Metric]:
        queue = self._transport.queue(time.monotonic())
        yield _gauge("requests_in_flight", "Requests that wait for their answer, queued or predicted", queue.waiting)
        yield _gauge("queue_depth", "Requests that no replica has taken yet", queue.queued)
        yield _gauge("queue_oldest_seconds", "How long the first of these has waited", queue.oldest_s)
        yield _gauge("queue_capacity", "Requests that can wait for their answers, one in each thread", queue.capacity)
        yield _gauge("deadline_seconds", "Until a request is answered at the latest", self._deadline_s)

    def _cache(self) -> Iterator[Metric]:
        yield _gauge(
            "cache_items", "Inputs of which uWSGI's cache notes that they kill, or may", self._quarantine.count()
        )
        # one place is uWSGI's own
        yield _gauge("cache_capacity", "Of how many it can", self._cache_items - 1)

    def _replicas(self) -> Iterator[Metric]:
        label = ("replica",)
        state = GaugeMetricFamily("muleteer_replica_state", "1 for what it does", labels=("replica", "state"))
        ready = GaugeMetricFamily("muleteer_replica_ready", "Whether it serves", labels=label)
        rss = GaugeMetricFamily("muleteer_replica_resident_memory_bytes", "Memory of its process", labels=label)
        load = GaugeMetricFamily("muleteer_replica_load_seconds", "What its last load took", labels=label)
        age = GaugeMetricFamily(
            "muleteer_replica_heartbeat_age_seconds", "Since it last said that it lives", labels=label
        )
        busy = GaugeMetricFamily("muleteer_replica_busy_seconds", "Of its present predict", labels=label)
        loads = CounterMetricFamily("muleteer_replica_loads", "Loads of the model", labels=("replica", "result"))
        deaths = CounterMetricFamily(
            "muleteer_replica_deaths", "Deaths of its processes, by what they died of", labels=("replica", "reason")
        )
        pairs = zip(self._board.statuses(), self._board.records, strict=True)
        for status, record in pairs:
            replica = str(status.id)
            for one in State:
                state.add_metric((replica, one.name.lower()), float(status.state == one.name.lower()))
            ready.add_metric((replica,), float(status.ready))
            if not record.pid:
                # what a dead process has is nothing
                continue
            rss.add_metric((replica,), record.rss)
            if record.load_s:
                load.add_metric((replica,), record.load_s)
            if status.heartbeat_age_s is not None:
                age.add_metric((replica,), status.heartbeat_age_s)
            busy.add_metric((replica,), status.busy_s)
        for number, history in enumerate(self._board.histories(), start=1):
            loads.add_metric((str(number), "ready"), history.loads)
            loads.add_metric((str(number), "failed"), history.failed_loads)
            for death, count in history.deaths().items():
                deaths.add_metric((str(number), death), count)
        yield from (state, ready, rss, load, age, busy, loads, deaths)

    def _front(self) -> Iterator[Metric]:
        status = self.nginx.status()
        if status is None:
            return
        connections = GaugeMetricFamily("muleteer_nginx_connections", "Clients' connections", labels=("state",))
        for state, count in status.connections.items():
            connections.add_metric((state,), count)
        yield connections
        yield CounterMetricFamily("muleteer_nginx_accepted_connections", "Since nginx started", value=status.accepted)


def _gauge(name: str, told: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"muleteer_{name}", told, value=value)


def _version(version: int) -> str:
    return "" if version < 0 else str(version)


def _grouped(rows: Rows, labels: Sequence[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], Rows]]:
    """The rows that have the same labels."""
    places: dict[tuple[str, ...], list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    for label, some in sorted(places.items()):
        yield label, rows[some]


def _sum(rows: Rows, first: int, count: int) -> float:
    return float(rows[:, counts.HEAD + first : counts.HEAD + first + count].sum())


def _add(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    rows: Rows,
    first: int,
    exemplars: Sequence[Exemplar | None] = (None,) * counts.BUCKETS,
) -> None:
    """The sum of the histograms that begin at a number of the rows."""
    first += counts.HEAD
    buckets = rows[:, first : first + counts.BUCKETS].sum(axis=0).cumsum().tolist()
    bounds = [*(str(bound) for bound in counts.BOUNDS_S[:-1]), "+Inf"]
    seconds = rows[:, first + counts.BUCKETS].view(np.float64).sum()
    told = [
        (bound, bucket) if exemplar is None else (bound, bucket, exemplar)
        for bound, bucket, exemplar in zip(bounds, buckets, exemplars, strict=True)
    ]
    family.add_metric(labels, told, float(seconds))


def _exemplars(rows: Rows) -> list[Exemplar | None]:
    """The newest of each bucket."""
    first = counts.HEAD + counts.EXEMPLARS
    slots = np.ascontiguousarray(rows[:, first:]).reshape(len(rows), counts.BUCKETS, counts.EXEMPLAR)
    times = slots[:, :, 0].view(np.float64)
    found: list[Exemplar | None] = []
    for bucket, row in enumerate(times.argmax(axis=0)):
        at = float(times[row, bucket])
        slot = slots[row, bucket]
        id = slot[2:].tobytes().rstrip(b"\0").decode(errors="replace")
        found.append(Exemplar({"request_id": id}, float(slot[1:2].view(np.float64)[0]), at) if at else None)
    return found


def blueprint(found: Metrics) -> Blueprint:
    """GET /metrics."""
    metrics = Blueprint("metrics", __name__)
    registry = CollectorRegistry()
    registry.register(found)

    @metrics.get("/metrics")
    def scrape() -> Response:
        encode, media_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), content_type=media_type)

    return metrics


def register(app: Flask, ends: Ends) -> None:
    """Count what is no prediction, on the routes that there are by now."""
    ends.know(sorted({rule.rule for rule in app.url_map.iter_rules()} - {*dialects.RULES}))

    @app.before_request
    def start() -> None:
        g.start = time.monotonic()

    @app.after_request
    def count(response: Response) -> Response:
        rule = request.url_rule.rule if request.url_rule else "other"
        if "counted" not in g:
            took_s = time.monotonic() - g.start
            id = request_id(request.environ)
            ends.count_other(rule, str(response.status_code), "", took_s, id, g.get("failed", ""))
        return response
