"""Errors, told to Sentry: models that raise, faults of the server, deaths of mules and workers, and loads that fail.

What our own loggers log as an error becomes an event: the first of each kind at once, then one a minute.  It has the
traceback without its variables, and no input; but what a model says as it raises may quote one.  A thread makes and
sends the events, so that nobody waits for them.

Runs in:  worker and mule, after the fork; sentry_sdk is imported where sentry_dsn is set alone.
Units:    seconds.
"""

import importlib.metadata
import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener

# between two events of one kind
_PAUSE_S = 60.0
# kinds that are told apart; the later ones are one
_MOST_KINDS = 256
# events that wait to be made
_MOST_EVENTS = 100
# for what is not sent yet when a process ends
_LAST_S = 2.0


class Limit:
    """How often something of a kind may be told."""

    def __init__(self, pause_s: float = _PAUSE_S) -> None:
        self._pause_s = pause_s
        self._lock = threading.Lock()
        # when the last was told, and how many have not been since
        self._known: dict[Hashable, tuple[float, int]] = {}

    def take(self, kind: Hashable, now: float) -> int | None:
        """None: not now.  Otherwise how many have not been told since the last one."""
        with self._lock:
            if kind not in self._known and len(self._known) >= _MOST_KINDS:
                kind = None
            last, left_out = self._known.get(kind, (-self._pause_s, 0))
            told = now - last >= self._pause_s
            self._known[kind] = (now, 0) if told else (last, left_out + 1)
            return left_out if told else None


def kind(record: logging.LogRecord) -> Hashable:
    """What records have in common that tell of the same: the words, and where what was raised was raised."""
    if not record.exc_info or record.exc_info[0] is None:
        return record.name, record.msg
    traceback = record.exc_info[2]
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno) if traceback else None
    return record.name, record.msg, record.exc_info[0], place


class _Queue(QueueHandler):
    """Takes what may be told, as it is."""

    def __init__(self, events: "queue.Queue[logging.LogRecord]", limit: Limit) -> None:
        super().__init__(events)
        self._limit = limit

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        left_out = self._limit.take(kind(record), time.monotonic())
        if left_out is not None:
            record.left_out = left_out
            with suppress(queue.Full):
                self.queue.put_nowait(record)


# what is true of all that this process tells
_tags: dict[str, str] = {}


def tag(**tags: object) -> None:
    """From now on, what is told is of this model, version or engine."""
    _tags.update({name: str(value) for name, value in tags.items()})


def start(dsn: str, process: str) -> Callable[[], None]:
    """Tell from now on.  Gives what has to be called at the end, so that the last word is sent."""
    import sentry_sdk
    from sentry_sdk.integrations.logging import EventHandler

    sentry_sdk.init(
        dsn,
        release=f"muleteer@{importlib.metadata.version('muleteer')}",
        # it hooks into nothing
        default_integrations=False,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        send_client_reports=False,
        send_default_pii=False,
        include_local_variables=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
    )

    class Events(EventHandler):
        def emit(self, record: logging.LogRecord) -> None:
            about = {"request_id": getattr(record, "request_id", None), **getattr(record, "about", {})}
            with sentry_sdk.new_scope() as scope:
                for name, value in {"process": process, **_tags, **about}.items():
                    if value is not None:
                        scope.set_tag(name, str(value))
                super().emit(record)

    events: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_EVENTS)
    listener = QueueListener(events, Events(logging.ERROR))
    listener.start()
    handler = _Queue(events, Limit())
    handler.setLevel(logging.ERROR)
    logging.getLogger("muleteer").addHandler(handler)

    def end() -> None:
        with suppress(queue.Full):
            listener.stop()
        sentry_sdk.flush(_LAST_S)

    return end
