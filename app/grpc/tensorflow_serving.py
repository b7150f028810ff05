"""TensorFlow Serving's PredictionService and ModelService: predict, classify, regress, status and metadata.

Numbers come as tensor_content or in the fields of their types, and are answered in those, as its clients read them.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Source:   tensorflow/serving, tensorflow_serving/apis; tensorflow, core/framework/tensor.proto.
"""

import math
from functools import partial
from typing import Any, ClassVar

import numpy as np
from google.protobuf.json_format import ParseDict

from app import codec
from app.dialects import datatypes, dialect, tensorflow_serving
from app.dialects.dialect import Call, Encoded, Route
from app.grpc.call import CONTENT_TYPE, Asked, Control, Prediction, frame
from app.grpc.messages import Message, message
from app.grpc.open_inference import segment
from app.limits import check_bytes, check_rows, check_shape
from serving.errors import DecodeError, EngineError, FrameTooLarge, ServingError, SignatureMismatch
from serving.signature import STRING, Signature
from serving.task import Reply, Tensor

_SERVICE = "/tensorflow.serving.PredictionService/"
_Proto = message("tensorflow.serving.TensorProto")
_PredictResponse = message("tensorflow.serving.PredictResponse")
# where the elements of a tensor are, by its dtype
_FIELDS = {
    "bool": "bool_val",
    "float16": "half_val",
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    STRING: "string_val",
} | dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), "int_val")
_ENUM = _Proto.DESCRIPTOR.fields_by_name["dtype"].enum_type
_CODES = {dtype: _ENUM.values_by_name[name].number for dtype, name in tensorflow_serving.TYPES.items()}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class _Rows:
    """What all predictions have in common."""

    def __init__(self, request: Message) -> None:
        self._request = request

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        return error.status, CONTENT_TYPE[1], str(error).encode()

    def _answered(self, told: Message, model: str, reply: Reply) -> Encoded:
        spec = self._request.model_spec
        told.model_spec.name, told.model_spec.signature_name = model, spec.signature_name
        told.model_spec.version.value = reply.version
        return [CONTENT_TYPE], frame(told)


class Predict(_Rows):
    """Tensors by name in, tensors by name out."""

    name: ClassVar = f"{_SERVICE}Predict"

    def decode(self, call: Call) -> dialect.Asked:
        card, name = call.card, self._request.model_spec.signature_name
        signature = card.signatures.get(name) if name else card.signature
        if signature is None:
            known = ", ".join(map(repr, card.signatures))
            raise SignatureMismatch(
                f"Serving signature name: {name[:64]!r} not found in signature def; the model has {known}"
            )
        if not self._request.inputs:
            raise DecodeError("there are no inputs")
        for sent, specs, kind in (
            (self._request.inputs, signature.inputs, "inputs"),
            (self._request.output_filter, signature.outputs, "outputs"),
        ):
            if len(sent) > len(specs):
                raise SignatureMismatch(f"there are {len(sent)} {kind}, and the model has {signature}")
        inputs = signature.completed({name: _tensor(name, one, call) for name, one in self._request.inputs.items()})
        inputs = {spec.name: spec.cast(inputs[spec.name]) for spec in signature.inputs}
        return dialect.Asked(inputs, partial(self._encode, card.name, self._wanted(signature)), name)

    def _wanted(self, signature: Signature) -> list[str]:
        known = [spec.name for spec in signature.outputs]
        wanted = list(self._request.output_filter) or known
        if unknown := [name for name in wanted if name not in known]:
            raise SignatureMismatch(
                f"output {unknown[0][:64]!r} is unknown; the model gives {', '.join(map(repr, known))}"
            )
        return wanted

    def _encode(self, model: str, wanted: list[str], reply: Reply) -> Encoded:
        told = _PredictResponse()
        for name in wanted:
            tensor, proto = reply.outputs[name], told.outputs[name]
            dtype = STRING if tensor.dtype.kind == "O" else tensor.dtype.name
            proto.dtype = _CODES[dtype]
            for size in tensor.shape:
                proto.tensor_shape.dim.add(size=size)
            numbers = tensor.view(np.uint16) if dtype == "float16" else tensor
            getattr(proto, _FIELDS[dtype]).extend(numbers.ravel().tolist())
        return self._answered(told, model, reply)


class Regress(_Rows):
    """Examples in, and numbers or labels out, as over HTTP."""

    name: ClassVar = f"{_SERVICE}Regress"
    verb = "regress"
    Response = message("tensorflow.serving.RegressionResponse")

    def decode(self, call: Call) -> dialect.Asked:
        sent = self._request.input
        kind = sent.WhichOneof("kind")
        rows = len(getattr(sent, kind).examples) if kind else 0
        if not rows:
            raise DecodeError("the input has no examples")
        check_rows(rows, call.max_rows)
        listed = list(getattr(sent, kind).examples)
        if kind == "example_list_with_context":
            # two messages, one behind the other, are one
            context = sent.example_list_with_context.context
            check_bytes(len(context) * rows, call.max_bytes, "the context in each of the examples")
            listed = [context + one for one in listed]
        examples = np.empty(rows, object)
        examples[:] = listed
        over_http = tensorflow_serving.DIALECTS[self.verb]
        assert isinstance(over_http, tensorflow_serving.Regress)
        asked = over_http.asked(call.card, self._request.model_spec.signature_name, examples)
        return asked._replace(encode=partial(self._encode, call.card.name, asked))

    def _encode(self, model: str, asked: dialect.Asked, reply: Reply) -> Encoded:
        told = self.Response()
        self._tell(told.result, codec.load(asked.encode(reply)[1])["results"])
        return self._answered(told, model, reply)

    def _tell(self, result: Message, found: list[Any]) -> None:
        for value in found:
            result.regressions.add(value=value)


class Classify(Regress):
    name: ClassVar = f"{_SERVICE}Classify"
    verb = "classify"
    Response = message("tensorflow.serving.ClassificationResponse")

    def _tell(self, result: Message, found: list[Any]) -> None:
        for row in found:
            classes = result.classifications.add().classes
            for label, score in row:
                if not isinstance(label, str):
                    raise EngineError("a label is not UTF-8, as a message must have it")
                classes.add(label=label, score=score)


def _tensor(name: str, proto: Message, call: Call) -> Tensor:
    """A tensor as it was sent; its last element may stand for all that are left out."""
    dtype = _DTYPES.get(proto.dtype)
    if dtype is None:
        known = ", ".join(tensorflow_serving.TYPES.values())
        raise DecodeError(f"input {name[:64]!r} has dtype {proto.dtype}; it is one of {known}")
    shape = _shape(name, proto, call.max_rows)
    if proto.tensor_content:
        return _content(name, dtype, shape, proto.tensor_content)
    sent, count = getattr(proto, _FIELDS[dtype]), math.prod(shape)
    if len(sent) > count or (count and not sent):
        raise SignatureMismatch(
            f"input {name[:64]!r} has {len(sent)} elements in {_FIELDS[dtype]}, and shape {list(shape)}"
        )
    left_out = count - len(sent)
    if left_out and left_out * (8 + len(sent[-1]) if dtype == STRING else 8) > call.max_bytes:
        raise FrameTooLarge(
            f"input {name[:64]!r} has shape {list(shape)}, which is more than {call.max_bytes} bytes: max_body_bytes in"
            " uwsgi.ini"
        )
    values = [*sent, *(sent[-1:] * left_out)]
    if dtype == STRING:
        texts = np.empty(count, object)
        texts[:] = values
        return texts.reshape(shape)
    try:
        # of a float16 its bits are sent
        found = np.array(values, "uint16" if dtype == "float16" else dtype)
    except OverflowError as error:
        raise DecodeError(f"input {name[:64]!r} is {tensorflow_serving.TYPES[dtype]}: {error}") from None
    return found.view(dtype).reshape(shape)


def _shape(name: str, proto: Message, max_rows: int) -> tuple[int, ...]:
    axes = proto.tensor_shape.dim
    shape = tuple(axis.size for axis in axes) if len(axes) <= datatypes.MOST_AXES else (-1,)
    if proto.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise DecodeError(f"input {name[:64]!r} has no shape, a list of sizes")
    if not shape:
        raise SignatureMismatch(f"input {name[:64]!r} is a scalar; the first axis is the rows")
    check_rows(shape[0], max_rows, f"input {name[:64]!r}")
    check_shape(shape, f"input {name[:64]!r}")
    return shape


def _content(name: str, dtype: str, shape: tuple[int, ...], content: bytes) -> Tensor:
    """A tensor of raw data, little-endian and row by row."""
    size = 0 if dtype == STRING else math.prod(shape) * np.dtype(dtype).itemsize
    if len(content) != size:
        raise SignatureMismatch(
            f"input {name[:64]!r} has {len(content)} bytes in tensor_content, and shape {list(shape)} needs {size}"
        )
    if dtype == "bool" and np.frombuffer(content, np.uint8).max(initial=0) > 1:
        raise SignatureMismatch(f"input {name[:64]!r} is DT_BOOL and has bytes that are neither 0 nor 1")
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _version(spec: Message) -> str:
    return str(spec.version.value) if spec.HasField("version") else spec.version_label


def _path(request: Message, rest: str = "") -> Asked:
    spec = request.model_spec
    version = f"/versions/{spec.version.value}" if spec.HasField("version") else ""
    label = f"/labels/{segment(spec.version_label)}" if spec.version_label and not version else ""
    return Asked("GET", f"/v1/models/{segment(spec.name)}{version}{label}{rest}")


def _metadata(request: Message) -> Asked:
    if request.metadata_field[:2] != ["signature_def"]:
        fields = ", ".join(request.metadata_field[:2])
        raise DecodeError(f"metadata_field is {fields[:64]!r}; it must be signature_def")
    return _path(request, "/metadata")


def _prediction(kind: type[Predict | Regress], request: str) -> Prediction:
    return Prediction(
        message(f"tensorflow.serving.{request}"),
        lambda message: Route(kind(message), message.model_spec.name, _version(message.model_spec)),
    )


def _signatures(request: Message, status: int, value: Any) -> Message:
    told = message("tensorflow.serving.GetModelMetadataResponse")()
    told.model_spec.name, told.model_spec.version.value = (
        value["model_spec"]["name"],
        int(value["model_spec"]["version"]),
    )
    found = ParseDict(
        value["metadata"]["signature_def"],
        message("tensorflow.serving.SignatureDefMap")(),
        ignore_unknown_fields=True,
    )
    told.metadata["signature_def"].type_url = f"type.googleapis.com/{found.DESCRIPTOR.full_name}"
    told.metadata["signature_def"].value = found.SerializeToString()
    return told


def _status(request: Message, status: int, value: Any) -> Message:
    return ParseDict(value, message("tensorflow.serving.GetModelStatusResponse")())


CALLS: dict[str, Prediction | Control] = {
    f"{_SERVICE}Predict": _prediction(Predict, "PredictRequest"),
    f"{_SERVICE}Classify": _prediction(Classify, "ExamplesRequest"),
    f"{_SERVICE}Regress": _prediction(Regress, "ExamplesRequest"),
    f"{_SERVICE}GetModelMetadata": Control(
        message("tensorflow.serving.GetModelMetadataRequest"), _metadata, _signatures
    ),
    "/tensorflow.serving.ModelService/GetModelStatus": Control(
        message("tensorflow.serving.GetModelStatusRequest"), _path, _status
    ),
}
