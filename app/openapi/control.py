"""Health, and the model repository.

Runs in:  worker.
"""

from app.openapi.operation import JSON, Body, Example, Operation, Schema
from app.openapi.tensorflow_serving import ERROR
from app.openapi.tensors import Model, array

_TEXT: Schema = {"type": "string"}
_UP: Schema = {"type": "object", "properties": {"status": {"const": "up"}}, "required": ["status"]}
_READY: Schema = {
    "type": "object",
    "properties": {
        "status": {"enum": ["ready", "not ready", "failed"]},
        "ready_replicas": {"type": "integer", "minimum": 0},
        "model": {"type": ["object", "null"]},
        "versions": array({"type": "object"}),
        "refused": {"type": "object", "additionalProperties": _TEXT},
        "replicas": array({"type": "object"}),
        "spare": {"type": ["object", "null"]},
    },
    "required": ["status", "ready_replicas", "model", "versions", "refused", "replicas", "spare"],
}
_LOADED: Schema = {
    "type": "object",
    "properties": {"name": _TEXT, "detail": _TEXT},
    "required": ["name", "detail"],
}
_INDEX: Schema = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
_VERSION: Schema = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "version": _TEXT,
        "state": {"enum": ["READY", "LOADING", "UNAVAILABLE"]},
        "reason": _TEXT,
    },
    "required": ["name", "version", "state", "reason"],
}


def operations(model: Model) -> list[Operation]:
    """What is asked about the server, and not of the model."""
    return [
        Operation("health", "/healthz", "Whether the process is up", {JSON: Body(_UP)}),
        Operation("health", "/readyz", "Whether it can predict, and why not", {JSON: Body(_READY)}, not_ready=503),
        Operation(
            "repository",
            "/v2/repository/models/{model}/load",
            "Look for versions, as reload does",
            {JSON: Body(_LOADED)},
            method="post",
            description="Where repository_api allows it; answers when it is done.",
            errors=(ERROR,),
            statuses=(400, 403, 404, 413, 414, 500),
        ),
        Operation(
            "repository",
            "/v2/repository/models/{model}/unload",
            "Tell that the only model stays",
            {},
            method="post",
            errors=(ERROR,),
            statuses=(400, 403, 404, 413, 414),
        ),
        Operation(
            "repository",
            "/v2/repository/index",
            "The versions that there are",
            {JSON: Body(array(_VERSION))},
            {JSON: Body(_INDEX, {"all": Example({}), "those that serve": Example({"ready": True})})},
            method="post",
            errors=(ERROR,),
            statuses=(400, 413, 414),
        ),
    ]
