"""SageMaker's contract with an inference container, and the /invocations that it has in common with MLflow's server.

A JSON object that has one of MLflow's envelopes, CSV whose first line names its columns and Parquet are answered as
MLflow does; any other body as SageMaker's own containers do:

    {name: value, …}, one row                    → {name: value, …}
    [row, …] or row, bare                        → [row, …] or row
    CSV without names, npy, and what else there is in app/media/

The answer to any of them is in another media type where Accept asks for one; of CSV without names, as theirs is.

SageMaker hands the body of an error on as it is, so that there is one form of it, MLflow's.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Source:   docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html and -batch-code.html;
          aws/sagemaker-inference-toolkit, src/sagemaker_inference/decoder.py and encoder.py.
"""

from typing import Any, ClassVar

from flask import Blueprint, Response

from app import codec, forms, large, media
from app.dialects import mlflow
from app.dialects.dialect import JSON, Asked, Call, Encoded, Route, answer
from app.health import is_ready
from app.media import arrow, tables
from serving.errors import ServingError, SignatureMismatch
from serving.settings import Settings
from serving.store import Board
from serving.task import Reply, Tensors

PREFIX = "/invocations"
RULES = (PREFIX,)
problem = mlflow.problem
# inputs, the form of an answer in JSON, and the signature
Read = tuple[Tensors, forms.Encode, str]
# that a batch transform may send at once, in MB
_MOST_AT_ONCE_MB = 100


def route(path: str) -> Route | None:
    """The route of a POST to a path, None where it is none of this dialect's."""
    return _ROUTE if path == PREFIX else None


class Invocations:
    """Rows in, predictions out, in the form in which they were sent."""

    name: ClassVar = "/invocations"

    def decode(self, call: Call) -> Asked:
        sent, wanted = call.environ.get("CONTENT_TYPE", ""), call.environ.get("HTTP_ACCEPT", "")
        inputs, encode, name = self._json(call) if sent in media.PLAIN else self._media(call, sent)
        if wanted not in media.ANY:
            told = media.encoder(wanted, call.card.signatures[name or call.card.signature_name].outputs, header=False)
            if told is not None:
                return Asked(inputs, lambda reply: told(reply.outputs, encode), name)

        def encoded(reply: Reply) -> Encoded:
            return [JSON], encode(reply.outputs)

        return Asked(inputs, encoded, name)

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        return mlflow.refuse(error)

    def _media(self, call: Call, content_type: str) -> Read:
        card, rows, size = call.card, call.max_rows, call.max_bytes
        kind, options = media.parsed(content_type)
        match kind:
            case "json":
                return self._json(call)
            case "csv":
                told = {"present": True, "absent": False}.get(options.get("header", ""))
                header = tables.has_header(call.body, card.signature) if told is None else told
                inputs = tables.decode(call.body, card.signature, rows, size, header, others=True)
                return inputs, mlflow.encode if header else forms.encode_rows, ""
            case "parquet":
                return arrow.parquet(call.body, card.signature, rows, size, others=True), mlflow.encode, ""
            case "msgpack":
                return media.decode(call, content_type)
            case _:
                return media.decode(call, content_type)[0], forms.encode_rows, ""

    def _json(self, call: Call) -> Read:
        card, body, most = call.card, call.body, call.max_rows
        if not body.lstrip().startswith(b"{"):
            return *codec.decode_bare(body, card.signature, most), ""
        spec = card.signature.main
        read = large.decode(body, spec, most)
        found = read and read[:2]
        if found is None:
            value = codec.load(body, card.signatures.values(), most)
            if spec is not None and not codec.has_words(body):
                found = codec.decode_packed(value, spec, most)
            if found is None:
                return self._object(call, value)
        inputs, encode = found
        return card.signature.completed(inputs), encode if encode is forms.encode_instance else mlflow.encode, ""

    def _object(self, call: Call, value: dict[str, Any]) -> Read:
        card = call.card
        envelopes = [name for name in mlflow.ENVELOPES if name in value]
        if len(envelopes) == 1:
            name = value.get("signature_name", card.signature_name)
            if not isinstance(name, str) or name not in card.signatures:
                raise SignatureMismatch(f"'signature_name' is none of the model's: {', '.join(card.signatures)}")
            inputs = mlflow.decode(value, call.body, card.signatures[name], call.max_rows, call.max_bytes)
            return inputs, mlflow.encode, name
        if envelopes or not any(spec.name in value for spec in card.signature.inputs):
            raise mlflow.refuse_envelope(value)
        return card.signature.instance(value), forms.encode_instance, ""


_ROUTE = Route(Invocations())


def blueprint(settings: Settings, board: Board) -> Blueprint:
    """GET /ping and GET /execution-parameters."""
    found = Blueprint("sagemaker", __name__)

    @found.get("/ping")
    def ping() -> Response:
        """For SageMaker, MLflow's clients and TorchServe's: the first two look at the status alone."""
        well = is_ready(board)
        return answer({"status": "Healthy" if well else "Unhealthy"}, 200 if well else 503)

    @found.get("/execution-parameters")
    def execution_parameters() -> Response:
        payload_mb = min(max(1, settings.max_body_bytes >> 20), _MOST_AT_ONCE_MB)
        told = {
            "MaxConcurrentTransforms": min(settings.seats, _MOST_AT_ONCE_MB // payload_mb),
            "BatchStrategy": "MULTI_RECORD",
            "MaxPayloadInMB": payload_mb,
        }
        return answer(told)

    return found
