"""SageMaker's contract with an inference container, and the /invocations that it has in common with MLflow's server.

A JSON object that has one of MLflow's envelopes is answered as MLflow does; any other body as SageMaker's own
containers do:

    {name: value, …}, one row          → {name: value, …}
    [row, …] or row, bare              → [row, …] or row

SageMaker hands the body of an error on as it is, so that there is one form of it, MLflow's.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Source:   docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html and -batch-code.html;
          aws/sagemaker-inference-toolkit, src/sagemaker_inference/decoder.py and encoder.py.
"""

from collections.abc import Callable

import orjson
from flask import Blueprint, Response

from app import codec
from app.dialects import mlflow
from app.dialects.dialect import JSON, Asked, Call, Encoded, Route
from serving.errors import ServingError, SignatureMismatch
from serving.settings import Settings
from serving.store import Board
from serving.task import Reply

RULES = ("/invocations",)
# that a batch transform may send at once, in MB
_MOST_AT_ONCE_MB = 100


def route(path: str) -> Route | None:
    """The route of a POST to a path, None where it is none of this dialect's."""
    return _ROUTE if path == RULES[0] else None


class Invocations:
    """Rows in, predictions out, in the form in which they were sent."""

    def decode(self, call: Call) -> Asked:
        if not call.body.lstrip().startswith(b"{"):
            inputs, encode = codec.decode_bare(call.body, call.card.signature, call.max_rows)
            return Asked(inputs, _json(encode))
        return self._object(call)

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        return mlflow.refuse(error)

    def _object(self, call: Call) -> Asked:
        card, spec = call.card, call.card.signature.main
        if spec is not None and (large := codec.decode_large(call.body, spec, call.max_rows)) is not None:
            inputs, encode = card.signature.completed(large[0]), large[1]
            return Asked(inputs, _json(encode) if encode is codec.encode_instance else mlflow.encode)
        value = codec.load(call.body)
        envelopes = [name for name in mlflow.ENVELOPES if name in value]
        if len(envelopes) == 1:
            name = value.get("signature_name", card.signature_name)
            if not isinstance(name, str) or name not in card.signatures:
                raise SignatureMismatch(f"'signature_name' is none of the model's: {', '.join(card.signatures)}")
            return Asked(mlflow.decode(value, call.body, card.signatures[name], call.max_rows), mlflow.encode, name)
        if envelopes or not any(spec.name in value for spec in card.signature.inputs):
            raise mlflow.refuse_envelope(value)
        return Asked(card.signature.instance(value), _json(codec.encode_instance))


_ROUTE = Route(Invocations())


def _json(encode: codec.Encode) -> Callable[[Reply], Encoded]:
    def encoded(reply: Reply) -> Encoded:
        return [JSON], encode(reply.outputs)

    return encoded


def blueprint(settings: Settings, board: Board) -> Blueprint:
    """GET /ping and GET /execution-parameters."""
    found = Blueprint("sagemaker", __name__)

    @found.get("/ping")
    def ping() -> Response:
        """For SageMaker, MLflow's clients and TorchServe's: the first two look at the status alone."""
        ready = any(record.default for record in board.ready())
        told = {"status": "Healthy" if ready else "Unhealthy"}
        return Response(orjson.dumps(told), 200 if ready else 503, mimetype=JSON[1])

    @found.get("/execution-parameters")
    def execution_parameters() -> Response:
        payload_mb = min(max(1, settings.max_body_bytes >> 20), _MOST_AT_ONCE_MB)
        told = {
            "MaxConcurrentTransforms": min(settings.seats, _MOST_AT_ONCE_MB // payload_mb),
            "BatchStrategy": "MULTI_RECORD",
            "MaxPayloadInMB": payload_mb,
        }
        return Response(orjson.dumps(told), mimetype=JSON[1])

    return found
