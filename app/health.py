"""Health: is the process up, can it predict.

nginx sends these to a worker of their own, which never waits behind a prediction.

Runs in:  worker.
"""

import orjson
from flask import Blueprint, Response, request

from serving.errors import ModelLoading
from serving.model import ModelCard
from serving.plan import PlanFile
from serving.settings import Settings
from serving.store import Board

# a variable of a request that does not come by way of nginx, which sets all that there are
SUPERVISOR = "SUPERVISOR"


def shows_samples(settings: Settings) -> bool:
    """Whether the answer to the request at hand may have the model's sample in it."""
    return settings.public_sample or SUPERVISOR in request.environ


def loaded(board: Board) -> ModelCard:
    """The card of the model; ModelLoading before any replica has loaded it."""
    card = board.card()
    if card is None:
        raise ModelLoading("no replica has loaded the model; /readyz shows how far they are, and why not")
    return card


def is_ready(board: Board) -> bool:
    """Whether a request that names no version can be predicted."""
    return any(record.default for record in board.ready())


def blueprint(settings: Settings, board: Board, plan: PlanFile) -> Blueprint:
    """GET /healthz and GET /readyz."""
    health = Blueprint("health", __name__)

    @health.get("/healthz")
    def healthz() -> Response:
        return _json(200, {"status": "up"})

    @health.get("/readyz")
    def readyz() -> Response:
        processes = board.statuses()
        replicas = [process for process, record in zip(processes, board.records, strict=True) if record.post]
        spare = next((process for process in processes if process.state == "spare"), None)
        card = board.card()
        found = plan.read()
        ready = sum(replica.ready and replica.default for replica in replicas)
        failed = not ready and board.failed()
        status = {
            "status": "ready" if ready else "failed" if failed else "not ready",
            "ready_replicas": sum(replica.ready for replica in replicas),
            "model": card.as_dict(samples=shows_samples(settings)) if card else None,
            "versions": [release.as_dict() for release in found.releases],
            "refused": {str(version): reason for version, reason in found.refused.items()},
            "replicas": [replica.as_dict() for replica in replicas],
            "spare": spare.as_dict() if spare else None,
        }
        return _json(200 if ready else 503, status)

    return health


def _json(status: int, value: object) -> Response:
    response = Response(orjson.dumps(value), status, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response
