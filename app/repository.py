"""The model repository: have the server look for versions, as `reload` does.

Where `repository_api` allows it: whoever reaches the server may keep it loading then.

Runs in:  worker.
Source:   the model repository extension of the Open Inference Protocol, as Triton has it.
"""

from collections.abc import Callable

from flask import Blueprint, Response, jsonify

from serving.errors import Forbidden, LoadFailed, ModelNotFound
from serving.settings import Settings
from serving.store import Board


def blueprint(settings: Settings, board: Board, loads: Callable[[], tuple[bool, str]]) -> Blueprint:
    """POST /v2/repository/models/NAME/load; loads: does it, and gives whether all went well, and what happened."""
    repository = Blueprint("repository", __name__)

    @repository.post("/v2/repository/models/<name>/load")
    def load(name: str) -> Response:
        if not settings.repository_api:
            raise Forbidden("repository_api = false in uwsgi.ini: use `muleteer reload` there, or set it to true")
        card = board.card()
        if card is None or card.name != name:
            raise ModelNotFound(f"the model here is {card.name if card else 'being loaded'}, not {name[:64]!r}")
        well, told = loads()
        if not well:
            raise LoadFailed(told)
        return jsonify({"name": name, "detail": told})

    return repository
