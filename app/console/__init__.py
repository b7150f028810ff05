"""GET /console: a page that shows the pool as it is, and tries the model.

The page asks for state.json each second and for history.json every few; both are answered by the worker that no
prediction goes to.  Its files are here, made by hand, and load nothing from anywhere else.  nginx lets those see it
whose address is in monitor_from.

Runs in:  worker.
"""

from pathlib import Path

import orjson
from flask import Blueprint, Response, abort, redirect
from werkzeug.wrappers import Response as BaseResponse

from app.console.history import EVERY_S
from app.console.pool import Pool
from app.docs import tagged

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def blueprint(pool: Pool) -> Blueprint:
    """The page, its files, and what it asks for."""
    console = Blueprint("console", __name__)
    files = {file.name: file for file in _PAGE.iterdir() if file.suffix in _TYPES and file.name != "index.html"}

    @console.get("/console")
    def page() -> Response:
        return tagged((_PAGE / "index.html").read_bytes(), _TYPES[".html"])

    @console.get("/console/")
    def page_of_a_folder() -> BaseResponse:
        # relative: a proxy may have another path for it
        return redirect("../console", 308)

    @console.get("/console/<name>")
    def part(name: str) -> Response:
        if name not in files:
            abort(404)
        return tagged(files[name].read_bytes(), _TYPES[files[name].suffix])

    @console.get("/console/state.json")
    def state() -> Response:
        return _json(pool.state())

    @console.get("/console/history.json")
    def history() -> Response:
        return _json({"every_s": EVERY_S, "points": pool.history.points()})

    return console


def _json(value: object) -> Response:
    response = Response(orjson.dumps(value), mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response
