"""Traces: the spans of a prediction that a worker knows of, made when it is over.

    POST /predict     what nginx received, until the answer is made        the client's span, if any, is its parent
      handler         in a thread of the worker
        decode        until it is offered to the replicas
        queue         until a replica predicts it; wait, where no reply came
        encode        from the reply to the answer

Between queue and encode lies what mules/traces.py adds.  A client's traceparent says in which trace, and whether it is
sampled; one that is broken is as none.

Runs in:  worker.
Units:    seconds, absolute, time.monotonic().
Source:   W3C Trace Context; OpenTelemetry's semantic conventions for HTTP and gRPC servers.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import SpanContext, SpanKind, TraceState, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app import dialects
from serving import spans
from serving.ledger import ANY
from serving.spans import Spans
from serving.task import Reply, Task

_W3C = TraceContextTextMapPropagator()
# by the status that HTTP has, as app/grpc/call.py answers
_GRPC = {
    200: "OK",
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    406: "INVALID_ARGUMENT",
    413: "RESOURCE_EXHAUSTED",
    415: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Traces:
    """Which requests are traced."""

    def __init__(self, sent: Spans) -> None:
        self._spans = sent
        self._calls: set[str] = set()

    def know(self, calls: Iterable[str]) -> None:
        """Before the fork: these calls by gRPC are predictions, too."""
        self._calls |= {*calls}

    def begin(self, environ: Mapping[str, Any]) -> "Trace | None":
        """The trace of a request; None where it is not sampled."""
        context = Context()
        if header := environ.get("HTTP_TRACEPARENT"):
            carried = {"traceparent": header, "tracestate": environ.get("HTTP_TRACESTATE", "")}
            context = _W3C.extract(carried, context)
        client = get_current_span(context).get_span_context()
        trace_id = client.trace_id if client.is_valid else spans.new_trace()
        sampled = self._spans.sampler.should_sample(context, trace_id, "predict", SpanKind.SERVER)
        if sampled.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        return Trace(self._spans, client if client.is_valid else None, trace_id, sampled.trace_state)

    def add_own(
        self, path: str, status: str, code: str, took_s: float, id: str, method: str, at: float, traceparent: str
    ) -> None:
        """What nginx answered by itself, at a second since 1970, where a prediction was asked for."""
        route = dialects.find(path)
        if route is None and path not in self._calls:
            return
        trace = self.begin({"HTTP_TRACEPARENT": traceparent})
        if trace is not None:
            asked = {"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_TE": "" if route else "trailers"}
            end = time.monotonic() - (time.time() - at)
            trace.add_server(asked, route.dialect.name if route else path, end - took_s, end, int(status), code, id)


class Trace:
    """One request's."""

    def __init__(self, sent: Spans, client: SpanContext | None, trace_id: int, state: TraceState | None) -> None:
        self._spans = sent
        self._client = client
        self._server = spans.new_span(trace_id, state)
        self._handler = spans.new_span(trace_id, state)
        self._task: Task | None = None
        self._reply: Reply | None = None
        self._replied = 0.0

    def offer(self, task: Task) -> None:
        """It is offered from now on, and tells whoever predicts it where its spans belong."""
        task.trace = spans.encode(self._handler)
        self._task = task

    def reply(self, reply: Reply) -> None:
        """Its reply is there."""
        self._reply, self._replied = reply, time.monotonic()

    def end(
        self,
        environ: Mapping[str, Any],
        route: str,
        start: float,
        accept_s: float,
        status_line: str,
        code: str,
        request_id: str,
        version: int,
        rows: int,
    ) -> None:
        """All that there is to tell: what it was asked at, when it was accepted, and how it was answered."""
        end = time.monotonic()
        status = int(status_line[:3])
        error = code if status >= 500 else ""
        # nginx knows how long it was reading
        received = start - accept_s - float(environ.get("HTTP_X_READ_S") or 0.0)
        self.add_server(environ, route, received, end, status, code, request_id, version, rows)
        self._spans.add("handler", self._handler, self._server, start, end, {}, error=error)
        task, reply = self._task, self._reply
        if task is None:
            return
        self._add("decode", start, task.offered)
        if reply is None:
            self._add("wait", task.offered, end, error)
            return
        self._add("queue", task.offered, task.offered + reply.queue_ms / 1000)
        if reply.error is None:
            self._add("encode", self._replied, end)

    def add_server(
        self,
        environ: Mapping[str, Any],
        route: str,
        start: float,
        end: float,
        status: int,
        code: str,
        request_id: str,
        version: int = ANY,
        rows: int = 0,
    ) -> None:
        """The whole request, as nginx had it."""
        name, about = _about(environ, route, status)
        about["muleteer.request_id"] = request_id
        if version != ANY:
            about["muleteer.model.version"] = version
        if rows:
            about["muleteer.rows"] = rows
        if code:
            about["muleteer.code"] = code
        error = code if status >= 500 else ""
        self._spans.add(name, self._server, self._client, start, end, about, SpanKind.SERVER, error=error)

    def _add(self, name: str, start: float, end: float, error: str = "") -> None:
        self._spans.add(name, spans.child(self._handler), self._handler, start, end, {}, error=error)


def _about(environ: Mapping[str, Any], route: str, status: int) -> tuple[str, dict[str, str | int]]:
    """The name of nginx's span, and what the conventions want to be known of it."""
    if environ.get("HTTP_TE") == "trailers":
        method = route.removeprefix("/")
        known: dict[str, str | int] = {
            "rpc.system.name": "grpc",
            "rpc.method": method,
            "rpc.response.status_code": _GRPC.get(status, "INTERNAL"),
        }
        return method, known
    method = environ["REQUEST_METHOD"]
    return f"{method} {route}", {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "url.path": environ["PATH_INFO"],
        "url.scheme": "http",
    }
