"""gRPC: the Open Inference Protocol's and TensorFlow Serving's calls, by the workers and the way that HTTP has.

A unary call is a POST over HTTP/2 whose status follows its answer.  nginx speaks HTTP/2, passes a call on as it does
any other request, and puts into trailers what the answer's headers say of its status: grpc.conf.  So there is no
process, queue or limit here that HTTP does not have, and what keeps the promises there keeps them here.  What streams
is refused by nginx, which reads a request whole before it passes it on.

Predictions go through app/predict.py, with a message instead of a body; all else is asked of the app's own routes.

Runs in:  worker.
Source:   grpc/grpc, doc/PROTOCOL-HTTP2.md.
"""

import io
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from werkzeug.wrappers import Response

from app import problems
from app.dialects.dialect import Headers, Route
from app.grpc import call, health, open_inference, tensorflow_serving
from app.grpc.call import Control, Prediction
from app.grpc.messages import Message
from app.predict import Answer
from serving.errors import ServingError

CALLS: dict[str, Prediction | Control] = {**open_inference.CALLS, **tensorflow_serving.CALLS, **health.CALLS}

# those that are predictions, as metrics have them
NAMES = [path for path, found in CALLS.items() if isinstance(found, Prediction)]

log = logging.getLogger("muleteer.grpc")


class Door:
    """WSGI middleware: the door for calls, which nginx opens where clients speak gRPC."""

    def __init__(
        self,
        wsgi_app: Callable[..., Iterable[bytes]],
        predict: Callable[[dict[str, Any], Route], Answer],
        max_body_bytes: int,
        count: Callable[[str, str, str, float, str], None],
    ) -> None:
        self._count = count
        self.http_door = wsgi_app
        self._predict = predict
        self._max_body_bytes = max_body_bytes

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # who asks for trailers; no client of HTTP can, for nginx does not pass that header on
        if environ.get("HTTP_TE") != "trailers":
            return self.http_door(environ, start_response)
        request_id = environ["HTTP_X_REQUEST_ID"] = problems.request_id(environ)
        start, refused = time.monotonic(), None
        try:
            headers, told = self._answer(environ)
        except ServingError as error:
            refused = error
        except Exception:
            log.exception("the handler failed", extra={"request_id": request_id})
            refused = ServingError("the server failed; the log has more under this request id")
        if refused is not None:
            headers, told = call.outcome(refused.status, str(refused)), b""
            # what has come further has been counted there
            took_s = time.monotonic() - start
            self._count(environ["PATH_INFO"], str(refused.status), refused.code, took_s, request_id)
        if not any(name == "X-Request-ID" for name, _ in headers):
            headers.append(("X-Request-ID", request_id))
        start_response("200 OK", [*headers, call.CONTENT_TYPE, ("Content-Length", str(len(told)))])
        return (told,)

    def _answer(self, environ: dict[str, Any]) -> tuple[Headers, bytes]:
        found = CALLS.get(environ["PATH_INFO"])
        if found is None:
            return [(call.STATUS, str(call.UNIMPLEMENTED))], b""
        message = call.read(environ, self._max_body_bytes, found.request)
        if isinstance(found, Control):
            return self._control(environ, found, message)
        if text := environ.get("HTTP_GRPC_TIMEOUT"):
            environ["HTTP_X_REQUEST_TIMEOUT_MS"] = str(call.timeout_ms(text))
        # the body has been read
        environ["CONTENT_LENGTH"] = ""
        status, headers, told = self._predict(environ, found.route(message))
        known = [(name, value) for name, value in headers if name not in ("Content-Length", "Content-Type")]
        code = int(status.partition(" ")[0])
        if code < 400:
            return [*known, (call.STATUS, str(call.OK))], told
        # by the client's own policy of retries, too
        seconds = dict(known).get("Retry-After")
        again = [(call.PUSHBACK, f"{seconds}000")] if seconds else []
        return [*known, *again, *call.outcome(code, told.decode())], b""

    def _control(self, environ: dict[str, Any], found: Control, message: Message) -> tuple[Headers, bytes]:
        asked = found.ask(message)
        sent = orjson.dumps(asked.value) if asked.value is not None else b""
        request = environ | {
            "REQUEST_METHOD": asked.method,
            # as WSGI spells what is not ASCII
            "PATH_INFO": asked.path.encode().decode("latin-1"),
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(sent)),
            "wsgi.input": io.BytesIO(sent),
        }
        answer = Response.from_app(self.http_door, request, buffered=True)
        value, status = orjson.loads(answer.get_data()), answer.status_code
        if status >= 400 and not found.probes:
            return call.outcome(status, value.get("error") or value.get("detail") or answer.status), b""
        return [(call.STATUS, str(call.OK))], call.frame(found.answer(message, status, value))
