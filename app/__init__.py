"""HTTP alone: routes, codecs, health, problem bodies.

Every route is a Flask route.  A POST on a prediction route goes through a second door as well: WSGI middleware around
`app.wsgi_app` that calls the very function the Flask view calls, without Flask's request machinery, which costs more
than the whole way to a mule and back.

Runs in:  worker.
"""

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response, request

from app import health, problems, repository
from app.predict import Answer, Predict
from serving.plan import PlanFile
from serving.quarantine import Quarantine
from serving.settings import Settings
from serving.store import Board
from serving.transport import Transport

View = Callable[[dict[str, Any]], Answer]


def create_app(
    settings: Settings,
    transport: Transport,
    board: Board,
    quarantine: Quarantine,
    plan: PlanFile,
    drains: Callable[[], bool] = lambda: False,
    loads: Callable[[], tuple[bool, str]] = lambda: (False, "nobody can be asked"),
) -> Flask:
    """The Flask application of a worker.

    drains: whether nginx's connections are to end, each after its answer; loads: has the server look for versions, and
    gives whether all went well, and what happened.
    """
    app = Flask("muleteer", static_folder=None)
    predictions: dict[str, View] = {"/predict": Predict(settings, transport, board, quarantine, plan, drains).answer}
    for path, answer in predictions.items():
        app.add_url_rule(path, f"POST {path}", _flask_view(answer), methods=["POST"])
    app.register_blueprint(health.blueprint(board, plan))
    app.register_blueprint(repository.blueprint(settings, board, loads))
    problems.register(app)
    app.wsgi_app = ShortCut(app.wsgi_app, predictions)  # type: ignore[method-assign]
    return app


class ShortCut:
    """WSGI middleware: the door past Flask for predictions."""

    def __init__(self, wsgi_app: Callable[..., Iterable[bytes]], predictions: dict[str, View]) -> None:
        self.flask_door = wsgi_app
        self._predictions = predictions

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self._predictions.get(environ["PATH_INFO"]) if environ["REQUEST_METHOD"] == "POST" else None
        if answer is None:
            return self.flask_door(environ, start_response)
        status, headers, body = answer(environ)
        start_response(status, headers)
        return (body,)


def _flask_view(answer: View) -> Callable[[], Response]:
    def view() -> Response:
        status, headers, body = answer(request.environ)
        return Response(body, status, headers)

    return view
