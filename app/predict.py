"""Predictions: decode and check, offer, await, encode, whatever dialect they are asked for in.

Runs in:  worker.
Units:    seconds, absolute, time.monotonic(); Server-Timing and X-Request-Timeout-Ms in milliseconds.
"""

import itertools
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from app import body, problems
from app.dialects.dialect import Call, Route
from app.metrics import Ends
from app.prediction_log import Entry, PredictionLog
from serving.errors import (
    ClientError,
    ClientGone,
    DeadlineExceeded,
    EngineError,
    ModelLoading,
    ModelNotFound,
    Overloaded,
    ServingError,
)
from serving.ledger import ANY, Ticket
from serving.plan import PlanFile
from serving.quarantine import Quarantine, digest
from serving.settings import Settings
from serving.store import Board, Service
from serving.task import Reply, Task
from serving.transport import Transport
from serving.wire import decode_reply, encode_task

if TYPE_CHECKING:
    # where requests are traced; what it needs is not there otherwise
    from app.traces import Trace, Traces

# status line, headers, body
Answer = tuple[str, list[tuple[str, str]], bytes]
# seconds, in the order of counts.STAGES; none of what was refused
Stages = tuple[float, ...]
_NONE: Stages = ()

# how long a look at those who serve, and at what waits, is good for
_LOOK_S = 0.01
# what has been measured is a mean
MARGIN = 1.25

log = logging.getLogger("muleteer.predict")


class Predict:
    """The one function behind both doors, the Flask view and the WSGI short cut, and behind all dialects."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        board: Board,
        quarantine: Quarantine,
        plan: PlanFile,
        drains: Callable[[], bool],
        ends: Ends,
        prediction_log: PredictionLog | None = None,
        traces: "Traces | None" = None,
    ) -> None:
        self._prediction_log = prediction_log
        self._ends = ends
        self._traces = traces
        self._settings = settings
        self._drains = drains
        # whether nginx's connections end, each after its answer; or only one of them
        self._draining = self._crowded = False
        self._transport = transport
        self._board = board
        self._quarantine = quarantine
        self._plan = plan
        self._deadline_s = settings.deadline_ms / 1000
        # those who serve, and by version those who serve one that was named, as of the last look
        self._served = board.service()
        self._named: dict[int, Service] = {}
        self._look_at = 0.0
        # the model's, as WSGI spells what is not ASCII
        self._name = ""
        # who has more time than this is not late, even if a row came to each seat since the last look
        self._most_s = 0.0
        self._pid = 0
        # a random one for each process, and counted up from there: no other task has the same
        self._uuids = itertools.count()

    def answer(self, environ: Mapping[str, Any], route: Route) -> Answer:
        """The answer to one request, whatever happens to it."""
        start = time.monotonic()
        request_id = problems.request_id(environ)
        version, rows, batch_rows, code, stages, accept_s = ANY, 0, 0, "", _NONE, 0.0
        trace = None
        try:
            try:
                if self._traces is not None:
                    trace = self._traces.begin(environ)
                if passed_on := environ.get("HTTP_X_PASSED_ON"):
                    # it may have waited in the socket's backlog since nginx passed it on, by the clock of the host
                    accept_s = max(0.0, time.time() - float(passed_on))
                answer, version, rows, batch_rows, stages = self._predict(
                    environ, route, start, request_id, accept_s, trace
                )
            except ServingError as error:
                code, answer = error.code, _refusal(route, error, request_id)
                version = ANY if error.version is None else error.version
        except Exception:
            log.exception("the handler failed", extra={"request_id": request_id, "about": {"model": self._name}})
            failed = ServingError("the server failed; the log has more under this request id")
            code, answer = failed.code, _refusal(route, failed, request_id)
        if self._draining or self._crowded:
            # nginx opens its next connection to the uWSGI that serves now, or to whichever worker is free
            answer[1].append(("Connection", "close"))
            self._crowded = False
        # for nginx, whose log has all of the request
        if code:
            asked = "null" if version == ANY else version
            told = f"{route.dialect.name};{asked};null;null;{accept_s * 1000:.3f};{code};{self._name}"
        else:
            # half of what an f-string takes
            told = "%s;%d;%d;%d;%.3f;;%s" % (  # noqa: UP031
                route.dialect.name,
                version,
                rows,
                batch_rows,
                accept_s * 1000,
                self._name,
            )
        answer[1].append(("X-Log", told))
        total_s = time.monotonic() - start + accept_s
        self._ends.count(
            self._transport.seat(), route.dialect.name, answer[0], code, version, total_s, request_id, rows, stages
        )
        if trace is not None:
            try:
                trace.end(environ, route.dialect.name, start, accept_s, answer[0], code, request_id, version, rows)
            except Exception:
                # the client has its answer all the same
                log.exception("a request was not traced", extra={"request_id": request_id})
        return answer

    def _predict(
        self,
        environ: Mapping[str, Any],
        route: Route,
        start: float,
        request_id: str,
        accept_s: float,
        trace: "Trace | None",
    ) -> tuple[Answer, int, int, int, Stages]:
        """The answer, the version that gave it, the rows, those of the batch, and the seconds of each stage."""
        if start >= self._look_at:
            self._look(start)
        deadline = start + self._deadline_s - accept_s
        if "HTTP_X_REQUEST_TIMEOUT_MS" in environ:
            deadline -= self._deadline_s - self._timeout_s(environ)
        wanted = route.version or environ.get("HTTP_X_MODEL_VERSION")
        version = ANY if wanted is None else self._version(wanted)
        service = self._served if version == ANY else self._named.get(version) or self._service(version)
        card = service.card
        if route.model and card is not None and route.model != card.name:
            raise ModelNotFound(f"the model here is {card.name!r}, not {route.model[:64]!r}")
        if card is None or (not service.replicas and self._board.hopeless(deadline, version)):
            raise ModelLoading("no replica has loaded the model; /readyz shows how far they are, and why not")
        short = deadline - start <= self._most_s or ANY not in service.versions
        if short:
            if deadline <= start:
                raise DeadlineExceeded("no thread was free before the deadline (deadline_ms, or X-Request-Timeout-Ms)")
            self._refuse_late(1, deadline, service)
        limits = self._settings
        sent = body.read(environ, limits.max_body_bytes)
        inputs, encode, signature, timeout_s = route.dialect.decode(
            Call(environ, route, card, sent, limits.max_request_rows, limits.max_body_bytes)
        )
        if timeout_s < deadline - start:
            deadline = start + timeout_s
            short = True
        if signature == card.signature_name:
            signature = ""
        rows = card.signature.rows(inputs)
        if short or rows > 1:
            # others have been admitted meanwhile
            self._refuse_late(rows, deadline, service)
        if rows > 1 and self._settings.refuse_late:
            # more than the row at each seat that the last look allowed for
            self._most_s += service.drain_s(rows) * MARGIN
        offered = time.monotonic()
        task = Task(next(self._uuids).to_bytes(16), request_id, offered, deadline, rows, inputs, signature)
        if trace is not None:
            trace.offer(task)
        reply = self._ask(task, version)
        if reply.error is not None and wanted is not None and isinstance(reply.error, ModelNotFound):
            # its last replica has gone meanwhile; a label is for another version now
            version = self._version(wanted)
            task.uuid = next(self._uuids).to_bytes(16)
            reply = self._ask(task, version)
        if trace is not None:
            trace.reply(reply)
        if reply.error is not None:
            reply.error.version = reply.version
            raise reply.error
        if self._prediction_log is not None and self._prediction_log.wants(request_id):
            self._prediction_log.offer(Entry(time.time(), request_id, card.name, reply.version, task, reply))
        replied = time.monotonic()
        about, told = encode(reply)
        decode_s, encode_s = offered - start, time.monotonic() - replied
        answer = (
            "200 OK",
            [
                *about,
                ("Content-Length", str(len(told))),
                ("X-Request-ID", request_id),
                ("X-Model-Version", str(reply.version)),
                (
                    "Server-Timing",
                    f"decode;dur={decode_s * 1000:.3f}, queue;dur={reply.queue_ms:.3f},"
                    f" predict;dur={reply.predict_ms:.3f}, encode;dur={encode_s * 1000:.3f}",
                ),
            ],
            told,
        )
        return (
            answer,
            reply.version,
            rows,
            reply.batch_rows,
            (accept_s, decode_s, reply.queue_ms / 1000, reply.predict_ms / 1000, encode_s),
        )

    def _ask(self, task: Task, version: int) -> Reply:
        """The reply to a task."""
        transport = self._transport
        frame = encode_task(task)
        # a seat without rows is empty
        alone = self._quarantine.admit(frame, version)
        ticket = Ticket(task.uuid, task.rows or 1, transport.seat(), 0, alone, version)
        transport.offer(ticket, frame)
        try:
            return decode_reply(transport.await_reply(ticket, task.deadline))
        except (DeadlineExceeded, ClientGone):
            # it may have hung the replica
            transport.leave_digest(ticket, lambda: digest(frame, version))
            raise

    def _version(self, name: str) -> int:
        """The version that a request names, by its number or a label.

        ModelNotFound where nobody is to serve it, ModelLoading where nobody has loaded it yet.
        """
        served = self._board.versions()
        version = served.get(name)
        if version is None:
            planned = self._plan.read().versions
            version = planned.get(name)
            if version is None:
                known = ", ".join(sorted({*served, *planned})) or "none"
                raise ModelNotFound(f"no version {name[:64]!r} of the model is served; there is {known}")
            # one whose replicas have died is served again soon
            if not self._board.has_served(version):
                raise ModelLoading(f"no replica has loaded version {version}; /readyz shows how far they are")
        return version

    def _service(self, version: int) -> Service:
        """Those who serve a version that has not been named since the last look."""
        service = self._named[version] = self._board.service(version)
        return service

    def _look(self, now: float) -> None:
        """Look at who serves, and at what waits."""
        if self._pid != os.getpid():
            self._uuids = itertools.count(uuid.uuid4().int >> 1)
            self._pid = os.getpid()
        service = self._served = self._board.service()
        self._named, self._look_at = {}, now + _LOOK_S
        self._name = service.card.name.encode().decode("latin-1") if service.card else ""
        self._draining, self._crowded = self._drains(), self._transport.crowded()
        if self._settings.refuse_late:
            waiting = self._transport.waiting_rows(service.versions)
            self._most_s = service.drain_s(waiting + self._settings.seats) * MARGIN

    def _refuse_late(self, rows: int, deadline: float, service: Service) -> None:
        """Raise Overloaded when what waits already takes longer than there is time.

        Where a replica is free it is tried in any case: only that tells when the model is faster again.
        """
        waiting = self._transport.waiting_rows(service.versions) if self._settings.refuse_late else 0
        needs_s = service.drain_s(waiting + rows) * MARGIN
        left_s = deadline - time.monotonic()
        if waiting >= max(1, service.replicas) and needs_s > max(0.0, left_s):
            error = Overloaded(
                f"what waits takes {needs_s / MARGIN * 1000:.0f} ms, or a quarter more, and the deadline leaves"
                f" {left_s * 1000:.0f} ms (deadline_ms, or X-Request-Timeout-Ms); come back later, or add replicas"
                " (mules in uwsgi.ini)"
            )
            # when half of what waits now will be done
            error.retry_after_s = max(1, math.ceil(service.drain_s(waiting) / 2))
            raise error

    def _timeout_s(self, environ: Mapping[str, Any]) -> float:
        limit: int = self._settings.deadline_ms
        text = environ.get("HTTP_X_REQUEST_TIMEOUT_MS")
        if text:
            if not (text.isascii() and text.isdecimal() and text.strip("0")):
                raise ClientError(f"X-Request-Timeout-Ms is {text[:32]!r}; expected a whole number of milliseconds")
            # ten digits are more than any deadline_ms
            limit = min(limit, int(text.lstrip("0")[:10]))
        return limit / 1000


def _refusal(route: Route, error: ServingError, request_id: str) -> Answer:
    status, media_type, told = route.dialect.refuse(error, request_id, route)
    headers = [
        ("Content-Type", media_type),
        ("Content-Length", str(len(told))),
        ("X-Request-ID", request_id),
    ]
    if error.retry_after_s is not None:
        headers.append(("Retry-After", str(error.retry_after_s)))
    if isinstance(error, EngineError):
        log.info("answered %d %s", status, error.code, extra={"request_id": request_id})
    return problems.status_line(status), headers, told
