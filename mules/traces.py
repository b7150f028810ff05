"""Traces: the spans of a predict, which belong to the requests that it answers.

    predict           a child of each member's handler
    batch             of a lone member, in its trace; of several in one of its own.  It is linked with the handlers of
                      its members, and their predicts are linked with it

Members that are not sampled have none, and a batch without any that is has none either.

Runs in:  mule.
Units:    seconds, absolute, time.monotonic().
"""

from opentelemetry.trace import SpanKind

from serving import spans
from serving.batching import Batch
from serving.spans import Spans


class Traces:
    """Those of one replica."""

    def __init__(self, sent: Spans) -> None:
        self._spans = sent

    def add(self, batch: Batch, version: int, start: float, end: float, error: str = "") -> None:
        """A predict is over; error: the kind of what the model raised."""
        members = [(spans.decode(task.trace), task.rows) for task in batch if task.trace]
        if not members:
            return
        handlers = [handler for handler, _ in members]
        lone = handlers[0] if len(handlers) == 1 else None
        own = spans.child(lone) if lone else spans.new_span(spans.new_trace())
        about = {
            "muleteer.model.version": version,
            "muleteer.batch.tasks": len(batch),
            "muleteer.batch.rows": sum(task.rows for task in batch),
        }
        self._spans.add("batch", own, lone, start, end, about, SpanKind.INTERNAL, handlers, error)
        for handler, rows in members:
            about = {"muleteer.model.version": version, "muleteer.rows": rows}
            self._spans.add("predict", spans.child(handler), handler, start, end, about, links=[own], error=error)
