"""Health, and the model repository.

Runs in:  worker.
"""

from app.openapi.operation import JSON, TEXT, Body, Example, Operation, Schema
from app.openapi.predict import PROBLEM
from app.openapi.tensorflow_serving import ERROR
from app.openapi.tensors import Model, array, object_of

_COUNT: Schema = {"type": "integer", "minimum": 0}
_UP = object_of({"status": {"const": "up"}})
_READY = object_of(
    {
        "status": {"enum": ["ready", "not ready", "failed"]},
        "ready_replicas": {"type": "integer", "minimum": 0},
        "model": {"type": ["object", "null"]},
        "versions": array({"type": "object"}),
        "refused": {"type": "object", "additionalProperties": TEXT},
        "replicas": array({"type": "object"}),
        "spare": {"type": ["object", "null"]},
    }
)
_STATE = object_of(
    {
        "at": {"type": "number"},
        "since": {"type": "number"},
        "muleteer": TEXT,
        "ready": {"type": "boolean"},
        "failed": {"type": "boolean"},
        "deadline_ms": _COUNT,
        "max_body_bytes": _COUNT,
        "model": {"type": ["object", "null"]},
        "nginx": {"type": ["object", "null"]},
        "workers": array({"type": "object"}),
        "queue": {"type": "object"},
        "mules": array({"type": "object"}),
        "cache": {"type": "object"},
        "requests": _COUNT,
        "answered": _COUNT,
        "rows": _COUNT,
        "refused": array({"type": "object"}),
        "latency": {"type": "object"},
        "failures": array({"type": "object"}),
    }
)
_HISTORY = object_of({"every_s": {"type": "number"}, "points": array({"type": "object"})})
_LOADED = object_of({"name": TEXT, "detail": TEXT})
_INDEX: Schema = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
_VERSION = object_of(
    {
        "name": TEXT,
        "version": TEXT,
        "state": {"enum": ["READY", "LOADING", "UNAVAILABLE"]},
        "reason": TEXT,
    }
)


def operations(model: Model) -> list[Operation]:
    """What is asked about the server, and not of the model."""
    return [
        Operation("health", "/healthz", "Whether the process is up", {JSON: Body(_UP)}),
        Operation("health", "/readyz", "Whether it can predict, and why not", {JSON: Body(_READY)}, not_ready=503),
        Operation(
            "health",
            "/metrics",
            "What the pool does and has done, for Prometheus",
            {"text/plain": Body(TEXT), "application/openmetrics-text": Body(TEXT)},
            description="For the addresses in monitor_from.",
            errors=(PROBLEM,),
            statuses=(403,),
        ),
        Operation(
            "health",
            "/console/state.json",
            "The pool as it is, for the page /console",
            {JSON: Body(_STATE)},
            description="For the addresses in monitor_from.",
            errors=(PROBLEM,),
            statuses=(403,),
        ),
        Operation(
            "health",
            "/console/history.json",
            "The last minutes, for the same page",
            {JSON: Body(_HISTORY)},
            description="For the addresses in monitor_from.",
            errors=(PROBLEM,),
            statuses=(403,),
        ),
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
