"""The Open Inference Protocol, version 2, over gRPC: tensors as app/dialects/open_inference.py has them.

Raw tensors are answered raw, typed ones typed; but for FP16, which has no typed form, and makes all of an answer raw.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape); on the wire too, the rows are the first axis.
Source:   kserve/open-inference-protocol, specification/protocol/inference_grpc.md; triton-inference-server/server,
          docs/protocol/extension_model_repository.md.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from google.protobuf.json_format import ParseDict

from app.dialects import datatypes, dialect, open_inference
from app.dialects.dialect import Call, Encoded, Route
from app.grpc.call import CONTENT_TYPE, Asked, Control, Prediction, frame
from app.grpc.messages import Message, message
from serving.errors import DecodeError, ModelNotFound, ServingError, SignatureMismatch
from serving.signature import STRING
from serving.task import Reply, Tensor

_Response = message("inference.ModelInferResponse")
# where typed contents are, by datatype
_FIELDS = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_FIELDS |= {f"{sign}INT{bits}": f"{sign.lower()}int_contents" for sign in ("", "U") for bits in (8, 16, 32)}


class Infer:
    """Tensors in, tensors out."""

    name: ClassVar = "/inference.GRPCInferenceService/ModelInfer"

    def __init__(self, request: Message) -> None:
        self._request = request

    def decode(self, call: Call) -> dialect.Asked:
        request, card = self._request, call.card
        for sent, specs, kind in (
            (request.inputs, card.signature.inputs, "inputs"),
            (request.outputs, card.signature.outputs, "outputs"),
        ):
            if len(sent) > len(specs):
                raise SignatureMismatch(f"there are {len(sent)} {kind}, and the model has {card.signature}")
        raw = request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            raise DecodeError(f"there are {len(request.inputs)} inputs, and {len(raw)} in raw_input_contents")
        if raw and any(tensor.HasField("contents") for tensor in request.inputs):
            raise DecodeError("an input has contents, and there are raw_input_contents too")
        parts = list(raw) or [_typed(tensor) for tensor in request.inputs]
        listed = [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {"binary_data_size": len(part)},
            }
            for tensor, part in zip(request.inputs, parts, strict=True)
        ]
        # one of them alone is not copied
        rest = memoryview(b"".join(parts))
        inputs = open_inference.tensors(listed, card.signature, call.max_rows, rest, b"")
        outputs = [
            {"name": output.name, "parameters": _parameters(output.parameters, "classification")}
            for output in request.outputs
        ]
        wanted = open_inference.requested(outputs or None, card.signature, False)
        timeout_s = open_inference.timeout_s(_parameters(request.parameters, "timeout"))
        return dialect.Asked(inputs, partial(self._encode, card.name, list(wanted)), "", timeout_s)

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        return error.status, CONTENT_TYPE[1], str(error).encode()

    def _encode(self, model: str, wanted: list[str], reply: Reply) -> Encoded:
        told = _Response(model_name=model, model_version=str(reply.version), id=self._request.id)
        outputs = {name: reply.outputs[name] for name in wanted} if wanted else reply.outputs
        raw = bool(self._request.raw_input_contents) or any(one.dtype == np.float16 for one in outputs.values())
        for name, tensor in outputs.items():
            datatype = datatypes.DATATYPES[STRING if tensor.dtype.kind == "O" else tensor.dtype.name]
            output = told.outputs.add(name=name, datatype=datatype, shape=tensor.shape)
            if raw:
                told.raw_output_contents.append(datatypes.raw(tensor))
            else:
                getattr(output.contents, _FIELDS[datatype]).extend(tensor.ravel().tolist())
        return [CONTENT_TYPE], frame(told)


def _parameters(found: Mapping[str, Message], known: str) -> dict[str, Any]:
    """The one parameter that means something here."""
    choice = found[known].WhichOneof("parameter_choice") if known in found else None
    return {known: getattr(found[known], choice)} if choice else {}


def _typed(tensor: Message) -> bytes:
    """Typed contents as raw ones."""
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        if tensor.datatype == "FP16":
            raise DecodeError(f"input {tensor.name!r} is FP16, which has no typed contents: send it raw")
        # it is refused as unknown
        return b""
    if others := [one.name for one, _ in tensor.contents.ListFields() if one.name != field]:
        raise DecodeError(
            f"input {tensor.name!r} is {tensor.datatype}, and has contents in {others[0]}, not in {field}"
        )
    values = getattr(tensor.contents, field)
    # of more axes than a tensor can have it is refused for that
    if len(tensor.shape) <= datatypes.MOST_AXES and len(values) != math.prod(tensor.shape):
        raise SignatureMismatch(
            f"input {tensor.name!r} has {len(values)} elements of {field}, and shape {list(tensor.shape)}"
        )
    if field == "bytes_contents":
        found: Tensor = np.empty(len(values), object)
        found[:] = list(values)
        return datatypes.raw(found)
    try:
        return datatypes.raw(np.array(list(values), datatypes.DTYPES[tensor.datatype]))
    except OverflowError as error:
        raise DecodeError(f"input {tensor.name!r} is {tensor.datatype}: {error}") from None


def _route(request: Message) -> Route:
    return Route(Infer(request), request.model_name, request.model_version)


def segment(text: str) -> str:
    """A name as a part of a path."""
    if not text or "/" in text:
        raise ModelNotFound(f"there is no model, version or label {text[:64]!r}")
    return text


def _model(request: Message) -> str:
    version = f"/versions/{segment(request.version)}" if request.version else ""
    return f"/v2/models/{segment(request.name)}{version}"


def _answer(kind: Message, request: Message, status: int, value: Any) -> Message:
    return ParseDict(value, kind(), ignore_unknown_fields=True)


def _control(name: str, ask: Callable[[Message], Asked], answer: Callable[..., Message] = _answer) -> Control:
    kind = message(f"inference.{name}Response")
    return Control(message(f"inference.{name}Request"), ask, partial(answer, kind))


def _probe(name: str, ask: Callable[[Message], Asked]) -> Control:
    kind = message(f"inference.{name}Response")

    def answer(request: Message, status: int, value: Any) -> Message:
        return kind(ready=status == 200)

    return Control(message(f"inference.{name}Request"), ask, answer, True)


def _models(kind: Message, request: Message, status: int, value: Any) -> Message:
    return ParseDict({"models": value}, kind())


def _loaded(kind: Message, request: Message, status: int, value: Any) -> Message:
    return kind()


_SERVICE = "/inference.GRPCInferenceService/"
CALLS: dict[str, Prediction | Control] = {
    f"{_SERVICE}ModelInfer": Prediction(message("inference.ModelInferRequest"), _route),
    f"{_SERVICE}ServerLive": _control("ServerLive", lambda request: Asked("GET", "/v2/health/live")),
    f"{_SERVICE}ServerReady": _probe("ServerReady", lambda request: Asked("GET", "/v2/health/ready")),
    f"{_SERVICE}ModelReady": _probe("ModelReady", lambda request: Asked("GET", f"{_model(request)}/ready")),
    f"{_SERVICE}ServerMetadata": _control("ServerMetadata", lambda request: Asked("GET", "/v2")),
    f"{_SERVICE}ModelMetadata": _control("ModelMetadata", lambda request: Asked("GET", _model(request))),
    f"{_SERVICE}RepositoryIndex": _control(
        "RepositoryIndex", lambda request: Asked("POST", "/v2/repository/index", {"ready": request.ready}), _models
    ),
    f"{_SERVICE}RepositoryModelLoad": _control(
        "RepositoryModelLoad",
        lambda request: Asked("POST", f"/v2/repository/models/{segment(request.model_name)}/load", {}),
        _loaded,
    ),
    f"{_SERVICE}RepositoryModelUnload": _control(
        "RepositoryModelUnload",
        lambda request: Asked("POST", f"/v2/repository/models/{segment(request.model_name)}/unload", {}),
        _loaded,
    ),
}
