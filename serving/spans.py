"""Spans (OpenTelemetry), and their way to a collector: OTLP over HTTP.

What is measured in any case becomes spans when it is over: the SDK's tracer takes 37 µs for a span, and 4 µs do for one
that is made of times which are known.  The SDK's processor keeps them in a queue with a bound, from which a thread of
its own sends them; what is too many is dropped, and nobody waits for a collector.

Imported only where otlp_endpoint is set; the library starts its thread after the fork.

Runs in:  both.
Units:    seconds, absolute, time.monotonic(); in a span nanoseconds since 1970.
Source:   OpenTelemetry specification, Trace SDK; W3C Trace Context.
"""

import importlib.metadata
import logging
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

Attributes = Mapping[str, str | int]

_PATH = "/v1/traces"
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_FINE = Status(StatusCode.UNSET)
# an id of a trace, and one of a span
_TRACE_BYTES, _SPAN_BYTES = 16, 8
# how long a span waits for others to be sent with, where OTEL_BSP_SCHEDULE_DELAY does not say
_DELAY_MS = 1000
# how long a process that ends takes to send what it has
_LAST_S = 0.5
# of a collector that is gone, or too slow
_LOG_S = 60.0
_LOGS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
# the clock was set
_STEP_NS = 50_000_000

# no id is a secret
_random = random.Random()  # noqa: S311


class Spans:
    """What makes spans, and sends them.  Made before the fork, started after it."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        self._endpoint = endpoint.rstrip("/") + _PATH
        own = Resource.create({"service.name": "muleteer", "service.version": importlib.metadata.version("muleteer")})
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        self._resource = own.merge(OTELResourceDetector().detect())
        ours = None if os.environ.get("OTEL_TRACES_SAMPLER") else ParentBased(TraceIdRatioBased(ratio))
        self.sampler = TracerProvider(sampler=ours, shutdown_on_exit=False).sampler
        self._scope = InstrumentationScope("muleteer", importlib.metadata.version("muleteer"))
        self._processor: BatchSpanProcessor | None = None
        # the same in all processes: what one measured lies within what another did
        self._offset_ns = _offset_ns()

    def start(self, process: str) -> None:
        """In a fresh worker or mule, which is called so."""
        # uWSGI's fork has left the same numbers in all of them
        _random.seed()
        self._resource = self._resource.merge(Resource({"muleteer.process": process, "process.pid": os.getpid()}))
        seldom = _Seldom()
        for name in _LOGS:
            logging.getLogger(name).addFilter(seldom)
        delay_ms = None if os.environ.get("OTEL_BSP_SCHEDULE_DELAY") else _DELAY_MS
        self._processor = BatchSpanProcessor(OTLPSpanExporter(self._endpoint), schedule_delay_millis=delay_ms)

    def stop(self) -> None:
        """Send what there is, but not for long."""
        if self._processor is not None:
            last = threading.Thread(target=self._processor.shutdown, daemon=True)
            last.start()
            last.join(_LAST_S)

    def add(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        start: float,
        end: float,
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[SpanContext] = (),
        error: str = "",
    ) -> None:
        """A span that is over; error: what it ended in, if it failed."""
        if self._processor is None:
            return
        offset_ns = _offset_ns()
        if abs(offset_ns - self._offset_ns) > _STEP_NS:
            self._offset_ns = offset_ns
        if error:
            attributes = {**attributes, "error.type": error}
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._resource,
                attributes,
                links=[Link(link) for link in links],
                kind=kind,
                status=Status(StatusCode.ERROR) if error else _FINE,
                start_time=int(start * 1e9) + self._offset_ns,
                end_time=int(end * 1e9) + self._offset_ns,
                instrumentation_scope=self._scope,
            )
        )


def new_trace() -> int:
    """The id of a new trace."""
    return _random.getrandbits(8 * _TRACE_BYTES)


def new_span(trace_id: int, state: TraceState | None = None) -> SpanContext:
    """A span of a trace, to be sent."""
    return SpanContext(trace_id, _random.getrandbits(8 * _SPAN_BYTES), False, _SAMPLED, state)


def child(parent: SpanContext) -> SpanContext:
    """Another span of the same trace."""
    return new_span(parent.trace_id, parent.trace_state)


def encode(context: SpanContext) -> bytes:
    """A span as it goes in a task's frame."""
    ids = context.trace_id.to_bytes(_TRACE_BYTES) + context.span_id.to_bytes(_SPAN_BYTES)
    return ids + context.trace_state.to_header().encode()


def decode(trace: bytes) -> SpanContext:
    """The span that is in a task's frame."""
    trace_id, rest = trace[:_TRACE_BYTES], trace[_TRACE_BYTES:]
    state = TraceState.from_header([rest[_SPAN_BYTES:].decode()]) if len(rest) > _SPAN_BYTES else None
    return SpanContext(int.from_bytes(trace_id), int.from_bytes(rest[:_SPAN_BYTES]), True, _SAMPLED, state)


class _Seldom(logging.Filter):
    """Lets a line pass once in a while."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _LOG_S
        return True


def _offset_ns() -> int:
    return time.time_ns() - time.monotonic_ns()
