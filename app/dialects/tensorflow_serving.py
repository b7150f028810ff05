"""TensorFlow Serving's REST API: predict by rows and by columns, classify, regress, status and metadata.

Its clients send any Content-Type, or none.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Source:   tensorflow/serving, g3doc/api_rest.md, model_servers/http_rest_api_util.cc and util/json_tensor.cc.
"""

import base64
import re
from typing import Any, ClassVar

import orjson
from flask import Blueprint, Response, request

from app import codec, forms
from app.dialects import example
from app.dialects.dialect import JSON, Asked, Call, Encoded, Route, answer
from app.health import loaded
from app.versions import Version, versions
from serving.errors import (
    ClientError,
    DecodeError,
    EngineError,
    ModelNotFound,
    ServingError,
    SignatureMismatch,
)
from serving.model import ModelCard
from serving.plan import PlanFile
from serving.signature import STRING, Signature, TensorSpec
from serving.store import Board
from serving.task import Reply, Tensor

PREFIX = "/v1"
_NAMED = ("", "/versions/<version>", "/labels/<label>")
RULES = tuple(f"/v1/models/<model>{named}:{verb}" for named in _NAMED for verb in ("predict", "classify", "regress"))
_PATH = re.compile(
    r"/v1/models/([^/]+)(?:/versions/([0-9]{1,18})|/labels/([^/:]+))?:(predict|classify|regress)",
    re.IGNORECASE | re.ASCII,
)
_NOT_JSON = re.compile(r"the body is not JSON: (.*) at offset ([0-9]+)", re.DOTALL)
_NO_SIGNATURE = re.compile(r"'signature_name' is (.*); the model has (.*), ", re.DOTALL)
_BAD_ROW = re.compile(r"'instances'\[([0-9]+)\]: (.*)", re.DOTALL)
_NO_INPUT = re.compile(r"'inputs': '([^']*)'.* is missing; (.*)", re.DOTALL)
TYPES = {
    "bool": "DT_BOOL",
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "string": "DT_STRING",
} | {f"{sign}int{bits}": f"DT_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def route(path: str) -> Route | None:
    """The route of a POST to a path, None where it is none of this dialect's."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    model, version, label, verb = match.groups()
    return Route(DIALECTS[verb.lower()], model, version or label or "")


def spelled(path: str) -> str:
    """A path with the words of this dialect as the routes have them: it takes them in any case, but for names."""
    parts = path.split("/")
    # /v1/models/NAME/versions/1/metadata
    return "/".join(part if place in (3, 5) else part.lower() for place, part in enumerate(parts))


class Predict:
    """Rows or columns in, rows or columns out."""

    name: ClassVar = "/v1/models/{model}:predict"

    def decode(self, call: Call) -> Asked:
        card = call.card
        # no name is the default's too
        signatures = {**card.signatures, "": card.signature}
        inputs, encode, signature = codec.decode(call.body, card.signature, call.max_rows, signatures, envelope=True)
        return Asked(inputs, _rows if encode is forms.encode_instances else _columns, signature)

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        return error.status, JSON[1], problem(error.status, _told(error, route))


class Regress(Predict):
    """Examples in, which the model takes serialized in its one string input, and a number for each out."""

    name: ClassVar = "/v1/models/{model}:regress"
    verb = "regress"
    gives: tuple[str, ...] = ("outputs",)

    def decode(self, call: Call) -> Asked:
        card = call.card
        if not any(map(self.fits, card.signatures.values())):
            raise self._mismatch(card.signature)
        value = codec.load(call.body)
        name = value.get("signature_name", "") if isinstance(value, dict) else ""
        if not isinstance(name, str):
            raise DecodeError("'signature_name' is not a string")
        self._signature(card, name)
        return self.asked(card, name, example.decode(value, call.max_rows, call.max_bytes))

    def asked(self, card: ModelCard, name: str, examples: Tensor) -> Asked:
        """What asks for examples by the name of a signature, "" for the default."""
        return Asked({self._signature(card, name).inputs[0].name: examples}, self.encode, name)

    def _signature(self, card: ModelCard, name: str) -> Signature:
        signature = card.signatures.get(name) if name else card.signature
        if signature is None:
            raise SignatureMismatch(f'Serving signature name: "{name[:64]}" not found in signature def')
        if not self.fits(signature):
            raise self._mismatch(signature)
        return signature

    def fits(self, signature: Signature) -> bool:
        """Whether it takes examples, and gives what is answered."""
        spec = signature.only
        takes = spec is not None and (spec.dtype, spec.shape) == (STRING, ())
        return takes and any(output.name in self.gives for output in signature.outputs)

    def _mismatch(self, signature: Signature) -> SignatureMismatch:
        return SignatureMismatch(
            f"tensorflow/serving/{self.verb} needs one string input, for serialized examples, and the output"
            f" {' or '.join(self.gives)}; the model has {signature}"
        )

    def encode(self, reply: Reply) -> Encoded:
        (found,) = (reply.outputs[name] for name in self.gives)
        if found.size != len(found):
            raise EngineError(
                f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1]; got {found.shape}"
            )
        return [JSON], forms.dump({"results": found.reshape(-1)}, reply.outputs)


class Classify(Regress):
    """Examples in, and labels with their scores for each out."""

    name: ClassVar = "/v1/models/{model}:classify"
    verb = "classify"
    gives = ("classes", "scores")

    def encode(self, reply: Reply) -> Encoded:
        outputs = reply.outputs
        found = [outputs.get(name) for name in self.gives]
        shape = next(tensor.shape for tensor in found if tensor is not None)
        if len(shape) != 2 or any(tensor is not None and tensor.shape != shape for tensor in found):
            raise EngineError("Expected classes and scores of shape [batch_size, number of classes]")
        classes, scores = found
        rows = [
            [
                [
                    "" if classes is None else forms.text(classes[row, column]),
                    0.0 if scores is None else scores[row, column].item(),
                ]
                for column in range(shape[1])
            ]
            for row in range(shape[0])
        ]
        return [JSON], forms.dump({"results": rows}, outputs)


DIALECTS = {"predict": Predict(), "classify": Classify(), "regress": Regress()}
NAMES = tuple(dialect.name for dialect in DIALECTS.values())


def problem(status: int, text: str) -> bytes:
    """The body that tells of an error."""
    return orjson.dumps({"error": text})


def _told(error: ServingError, route: Route) -> str:
    """An error in the words that its clients know, where they have some."""
    text = str(error)
    if isinstance(error, ModelNotFound):
        return f"Servable not found for request: {_asked(route.model, route.version)}; {text}"
    if match := _NO_SIGNATURE.fullmatch(text):
        return f"Serving signature name: {match[1]} not found in signature def; the model has {match[2]}"
    if match := _BAD_ROW.fullmatch(text):
        return f"Failed to process element: {match[1]} of 'instances' list. Error: {match[2]}"
    if match := _NO_INPUT.fullmatch(text):
        return f"Missing named input: {match[1]} in 'inputs' object; {match[2]}"
    if isinstance(error, SignatureMismatch) and text.partition("; ")[0].endswith("that is not base64"):
        return f"Unable to base64 decode; {text}"
    if isinstance(error, DecodeError):
        if match := _NOT_JSON.fullmatch(text):
            return f"JSON Parse error: {match[1]} at offset: {match[2]}"
        if text.startswith("the body is empty"):
            return "JSON Parse error: The document is empty"
    return text


def _asked(model: str, version: str) -> str:
    if version.isdecimal():
        return f"Specific({model}, {version})"
    return f"Label({model}, {version})" if version else f"Latest({model})"


def _rows(reply: Reply) -> Encoded:
    return [JSON], forms.encode_instances(reply.outputs, _values)


def _columns(reply: Reply) -> Encoded:
    outputs = reply.outputs
    if len(outputs) > 1:
        return [JSON], forms.encode_columns(outputs, _values)
    ((name, tensor),) = outputs.items()
    return [JSON], forms.dump({"outputs": _values(name, tensor)}, outputs)


def _values(name: str, tensor: Tensor) -> Any:
    if tensor.dtype.kind != "O" or not name.endswith("_bytes"):
        return forms.values(tensor)
    # the name says that it is no text
    items = [{"b64": base64.b64encode(item).decode()} for item in tensor.ravel().tolist()]
    return forms.nested(items, tensor.shape)


def blueprint(board: Board, plan: PlanFile) -> Blueprint:
    """GET /v1/models and below: status and metadata."""
    found = Blueprint("tensorflow_serving", __name__)

    def wanted(model: str, version: str, label: str) -> tuple[ModelCard, list[Version]]:
        card = loaded(board)
        if ":" in version + label or (":" in model and model != card.name):
            # its words for a verb with another method
            raise ClientError(f"Malformed request: GET {request.path}; it takes POST")
        some = [
            one
            for one in versions(board, plan)
            if (not version or str(one.number) == version) and (not label or label in one.labels)
        ]
        if model != card.name:
            raise ModelNotFound(f"Could not find any versions of model {model[:64]}; the model here is {card.name}")
        if not some:
            what = f"version {version[:64]}" if version else f"label {label[:64]}"
            raise ModelNotFound(f"Could not find {what} of model {model}; /v1/models/{model} tells what there is")
        return card, some

    @found.get("/v1/<path:_>")
    @found.post("/v1/<path:_>")
    def malformed(_: str) -> Response:
        raise ClientError(f"Malformed request: {request.method} {request.path}")

    @found.get("/v1/models")
    def models() -> Response:
        """The models that there are, which TensorFlow Serving cannot tell."""
        card = board.card()
        return answer({"models": [{"name": card.name}] if card else []})

    def status(model: str, version: str = "", label: str = "") -> Response:
        _, some = wanted(model, version, label)
        return answer({"model_version_status": [_status(one) for one in some]})

    def metadata(model: str, version: str = "", label: str = "") -> Response:
        card, some = wanted(model, version, label)
        signatures = {name: _signature(signature) for name, signature in card.signatures.items()}
        served = [one.number for one in some if one.ready] or [one.number for one in some if not one.refused]
        if not served:
            raise ModelNotFound(f"Servable not found for request: {_asked(model, version or label)}; {some[-1].reason}")
        spec = {"name": card.name, "signature_name": "", "version": str(served[-1])}
        return answer({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})

    for named in _NAMED:
        found.get(f"/v1/models/<model>{named}", endpoint=f"status{len(named)}")(status)
        found.get(f"/v1/models/<model>{named}/metadata", endpoint=f"metadata{len(named)}")(metadata)

    return found


def _status(version: Version) -> dict[str, Any]:
    state = "AVAILABLE" if version.ready else "END" if version.refused else "LOADING"
    code = "INTERNAL" if version.refused else "OK"
    return {
        "version": str(version.number),
        "state": state,
        "status": {"error_code": code, "error_message": version.reason if version.refused else ""},
    }


def _signature(signature: Signature) -> dict[str, Any]:
    sides = {
        side: {spec.name: _tensor(spec) for spec in specs}
        for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
    return {**sides, "method_name": "tensorflow/serving/predict", "defaults": {}}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    # the first axis is the rows
    sizes = [{"size": str(size), "name": ""} for size in (-1, *spec.shape)]
    shape = {"dim": sizes, "unknown_rank": False}
    return {"dtype": TYPES[spec.dtype], "tensor_shape": shape, "name": f"{spec.name}:0"}
