"""Problem bodies (RFC 9457) and request ids.

Runs in:  worker.
"""

import re
import uuid
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import orjson
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from serving.errors import ServingError

MEDIA_TYPE = "application/problem+json"
# nginx.conf has the same pattern: what it lets pass is kept, anything else gets an id of our own
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+=@-]{1,64}")
# the paths of dialects that have another form; nginx.conf has the same pattern
_CODES = {404: "not_found", 405: "method_not_allowed"}


def request_id(environ: Mapping[str, Any]) -> str:
    """What the client (or nginx) calls this request, or a fresh UUID."""
    given: str = environ.get("HTTP_X_REQUEST_ID", "")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


def status_line(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase}"


def body(status: int, code: str, title: str, detail: str, request_id: str) -> bytes:
    """One problem as JSON."""
    problem = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id,
    }
    return orjson.dumps(problem)


def of_error(error: ServingError, request_id: str) -> bytes:
    """The problem body of an error of ours."""
    return body(error.status, error.code, error.title, str(error), request_id)


def register(app: Flask, form: Callable[[str, int, str], bytes | None]) -> None:
    """Answer what Flask or a route refuses with a problem body, and name the request in every answer.

    form: the body for a path, a status and a text where its dialect has one of its own.
    """

    @app.after_request
    def name_request(response: Response) -> Response:
        if "X-Request-ID" not in response.headers:
            response.headers["X-Request-ID"] = request_id(request.environ)
        return response

    def answer(status: int, code: str, title: str, detail: str) -> Response:
        id, g.failed = request_id(request.environ), code
        own = form(request.path, status, detail)
        told = body(status, code, title, detail, id) if own is None else own
        about = {"X-Request-ID": id, "X-Log": f";null;null;null;null;{code};"}
        return Response(told, status, about, mimetype=MEDIA_TYPE if own is None else "application/json")

    @app.errorhandler(ServingError)
    def refusal(error: ServingError) -> Response:
        return answer(error.status, error.code, error.title, str(error))

    @app.errorhandler(HTTPException)
    def problem(error: HTTPException) -> Response:
        status = error.code or 500
        response = error.get_response(request.environ)
        code = _CODES.get(status, "bad_request" if status < 500 else "internal")
        detail = {
            404: f"there is nothing at {request.path}; predictions are POST /predict",
            405: f"{request.method} is not for {request.path}; it takes {response.headers.get('Allow', 'others')}",
        }.get(status, error.description or error.name)
        told = answer(status, code, error.name, detail)
        if "Allow" in response.headers:
            told.headers["Allow"] = response.headers["Allow"]
        return told
