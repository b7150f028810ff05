"""HTTP alone: routes, codecs, health, problem bodies.

Every route is a Flask route.  A POST on a prediction route goes through a second door as well: WSGI middleware around
`app.wsgi_app` that calls the very function the Flask view calls, without Flask's request machinery, which costs more
than the whole way to a mule and back.

Runs in:  worker.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, abort, g, request

from app import console, dialects, docs, health, metrics, problems, repository
from app.console.pool import Pool
from app.dialects import mlflow, open_inference, sagemaker, tensorflow_serving
from app.dialects.dialect import Route
from app.predict import Answer, Predict
from app.prediction_log import PredictionLog
from serving.plan import PlanFile
from serving.quarantine import Quarantine
from serving.settings import Settings
from serving.store import Board
from serving.transport import Transport

if TYPE_CHECKING:
    from app.traces import Traces

View = Callable[[dict[str, Any], Route], Answer]


def create_app(
    settings: Settings,
    transport: Transport,
    board: Board,
    quarantine: Quarantine,
    plan: PlanFile,
    found: metrics.Metrics,
    drains: Callable[[], bool] = lambda: False,
    loads: Callable[[], tuple[bool, str]] = lambda: (False, "nobody can be asked"),
    prediction_log: PredictionLog | None = None,
    traces: "Traces | None" = None,
) -> Flask:
    """The Flask application of a worker.

    drains: whether nginx's connections are to end, each after its answer; loads: has the server look for versions, and
    gives whether all went well, and what happened.
    """
    app = Flask("muleteer", static_folder=None)
    predict = Predict(settings, transport, board, quarantine, plan, drains, found.ends, prediction_log, traces).answer
    for rule in dialects.RULES:
        methods = ["POST", "PUT"] if rule in dialects.PUT else ["POST"]
        app.add_url_rule(rule, f"POST {rule}", _flask_view(predict), methods=methods)
    app.register_blueprint(health.blueprint(settings, board, plan))
    app.register_blueprint(docs.blueprint(settings, board))
    app.register_blueprint(open_inference.blueprint(board, plan, found.counts))
    app.register_blueprint(tensorflow_serving.blueprint(board, plan))
    app.register_blueprint(sagemaker.blueprint(settings, board))
    app.register_blueprint(mlflow.blueprint(board))
    app.register_blueprint(repository.blueprint(settings, board, plan, loads))
    app.register_blueprint(metrics.blueprint(found))
    pool = Pool(settings, transport, board, quarantine, found)
    found.in_control.append(pool.history.start)
    app.register_blueprint(console.blueprint(pool))
    problems.register(app, dialects.problem)
    metrics.register(app, found.ends)
    flask_door = app.wsgi_app
    if settings.grpc_port:
        # protobuf is imported where it is used
        from app import grpc

        found.ends.know(grpc.NAMES, predict=True)
        if traces is not None:
            traces.know(grpc.NAMES)
        flask_door = grpc.Door(flask_door, predict, settings.max_body_bytes, found.ends.count_other)
    app.wsgi_app = ShortCut(flask_door, predict)  # type: ignore[method-assign]
    return app


class ShortCut:
    """WSGI middleware: the door past Flask for predictions."""

    def __init__(self, wsgi_app: Callable[..., Iterable[bytes]], predict: View) -> None:
        self.flask_door = wsgi_app
        self._predict = predict

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if not path.isascii():
            # PEP 3333: bytes as Latin-1; Flask reads them so
            path = path.encode("latin-1").decode(errors="replace")
        route = dialects.find(path) if environ["REQUEST_METHOD"] == "POST" else None
        if route is None:
            environ["PATH_INFO"] = dialects.spelled(environ["PATH_INFO"])
            return self.flask_door(environ, start_response)
        status, headers, body = self._predict(environ, route)
        start_response(status, headers)
        return (body,)


def _flask_view(predict: View) -> Callable[..., Response]:
    def view(**_: str) -> Response:
        route = dialects.find(request.path)
        if route is None:
            abort(404)
        # by the prediction itself
        g.counted = True
        status, headers, body = predict(request.environ, route)
        return Response(body, status, headers)

    return view
