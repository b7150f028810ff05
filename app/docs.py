"""The docs that the server gives itself: /openapi.json, and /docs, a page to read and try it.

The page is Swagger UI; its files come from a package, its settings from docs.js, and nothing from anywhere else.

Runs in:  worker.
Raises:   ModelLoading.
"""

import hashlib
from importlib.resources import files
from pathlib import Path

from flask import Blueprint, Response, abort, request

from app.health import loaded, shows_samples
from app.openapi import Document, document
from app.openapi.tensors import Model
from serving.model import ModelCard
from serving.settings import Settings
from serving.store import Board

_OURS = Path(__file__).parent / "page"
_THEIRS = Path(str(files("flask_swagger_ui"))) / "dist"
_FILES = {
    "docs.css": (_OURS, "text/css"),
    "docs.js": (_OURS, "text/javascript"),
    "swagger-ui.css": (_THEIRS, "text/css"),
    "swagger-ui-bundle.js": (_THEIRS, "text/javascript"),
    "favicon-32x32.png": (_THEIRS, "image/png"),
}


def blueprint(settings: Settings, board: Board) -> Blueprint:
    """GET /openapi.json, /docs and the files of that page."""
    docs = Blueprint("docs", __name__)
    known: dict[bool, tuple[ModelCard, Document]] = {}

    def told() -> Document:
        card = loaded(board)
        samples = shows_samples(settings)
        # the board gives the same card until another is written
        if samples not in known or known[samples][0] is not card:
            known[samples] = card, document(Model(card, samples, settings.max_request_rows))
        return known[samples][1]

    @docs.get("/openapi.json")
    def openapi() -> Response:
        return tagged(told().text, "application/json")

    @docs.get("/docs/examples/<name>")
    def example(name: str) -> Response:
        """One that is not in the document itself."""
        found = told().examples.get(name)
        if found is None:
            abort(404)
        media_type, body = found
        return tagged(body, media_type)

    @docs.get("/docs")
    def page() -> Response:
        return tagged((_OURS / "index.html").read_bytes(), "text/html")

    @docs.get("/docs/<name>")
    def part(name: str) -> Response:
        if name not in _FILES:
            abort(404)
        folder, media_type = _FILES[name]
        return tagged((folder / name).read_bytes(), media_type)

    return docs


def tagged(body: bytes, media_type: str) -> Response:
    """A body that is asked for again, and sent when it has changed."""
    response = Response(body, mimetype=media_type)
    response.set_etag(hashlib.sha256(body).hexdigest()[:32])
    response.headers["Cache-Control"] = "no-cache"
    response.make_conditional(request)
    return response
