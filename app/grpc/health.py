"""gRPC's own health check: whether the server can predict.

Runs in:  worker.
Source:   grpc/grpc, doc/health-checking.md.
"""

from typing import Any

from app.grpc.call import Asked, Control
from app.grpc.messages import Message, message
from serving.errors import ModelNotFound

_SERVICES = ("", "inference.GRPCInferenceService", "tensorflow.serving.PredictionService")
_Response = message("grpc.health.v1.HealthCheckResponse")


def _ask(request: Message) -> Asked:
    if request.service not in _SERVICES:
        known = ", ".join(filter(None, _SERVICES))
        raise ModelNotFound(f"there is no service {request.service[:64]!r}; there are {known}")
    return Asked("GET", "/v2/health/ready")


def _answer(request: Message, status: int, value: Any) -> Message:
    return _Response(status=_Response.SERVING if status == 200 else _Response.NOT_SERVING)


CALLS = {"/grpc.health.v1.Health/Check": Control(message("grpc.health.v1.HealthCheckRequest"), _ask, _answer, True)}
