"""The model repository: what there is, and having the server look for versions, as `reload` does.

Loading is where `repository_api` allows it: whoever reaches the server may keep it loading then.

Runs in:  worker.
Source:   the model repository extension of the Open Inference Protocol, as Triton has it.
"""

from collections.abc import Callable

from flask import Blueprint, Response, jsonify, request

from app import body, codec
from app.versions import Version, versions
from serving.errors import ClientError, Forbidden, LoadFailed, ModelNotFound
from serving.plan import PlanFile
from serving.settings import Settings
from serving.store import Board


def blueprint(settings: Settings, board: Board, plan: PlanFile, loads: Callable[[], tuple[bool, str]]) -> Blueprint:
    """POST /v2/repository/…; loads: does it, and gives whether all went well, and what happened."""
    repository = Blueprint("repository", __name__)

    @repository.post("/v2/repository/index")
    def index() -> Response:
        sent = body.read(request.environ, settings.max_body_bytes)
        asked = codec.load(sent) if sent else {}
        if not isinstance(asked, dict) or not isinstance(asked.get("ready", False), bool):
            raise ClientError("the body is not a JSON object, or its 'ready' neither true nor false")
        card = board.card()
        found = versions(board, plan) if card else []
        return jsonify(
            [
                {"name": card.name, "version": str(one.number), "state": _state(one), "reason": one.reason}
                for one in found
                if card and (one.ready or not asked.get("ready"))
            ]
        )

    @repository.post("/v2/repository/models/<name>/load")
    def load(name: str) -> Response:
        check(name)
        well, told = loads()
        if not well:
            raise LoadFailed(told)
        return jsonify({"name": name, "detail": told})

    @repository.post("/v2/repository/models/<name>/unload")
    def unload(name: str) -> Response:
        check(name)
        raise ClientError("the model here is the only one, and is served as long as the server runs: stop that instead")

    def check(name: str) -> None:
        if not settings.repository_api:
            raise Forbidden("repository_api = false in uwsgi.ini: use `muleteer reload` there, or set it to true")
        card = board.card()
        if card is None or card.name != name:
            raise ModelNotFound(f"the model here is {card.name if card else 'being loaded'}, not {name[:64]!r}")

    return repository


def _state(version: Version) -> str:
    return "READY" if version.ready else "UNAVAILABLE" if version.refused else "LOADING"
