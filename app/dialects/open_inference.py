"""The Open Inference Protocol, version 2, over HTTP, with the binary tensor extension.

Whether a body is JSON alone is said by Inference-Header-Content-Length, not by its Content-Type, which clients leave
out.  `timeout` is in microseconds; `priority` is taken and means nothing, as there is one queue.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape); on the wire too, the rows are the first axis.
Source:   kserve/open-inference-protocol, specification/protocol/inference_rest.md; triton-inference-server/server,
          docs/protocol/extension_binary_data.md, extension_parameters.md, extension_model_repository.md.
"""

import importlib.metadata
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson
from flask import Blueprint, Response

from app import codec, forms, large
from app.dialects import datatypes
from app.dialects.dialect import JSON, Asked, Call, Encoded, Headers, Route, answer
from app.health import is_ready, loaded
from app.statistics import statistics
from app.versions import versions
from serving.counts import Counts
from serving.errors import ClientError, DecodeError, ModelNotFound, ServingError, SignatureMismatch
from serving.model import ModelCard
from serving.plan import PlanFile
from serving.signature import STRING, Signature, TensorSpec
from serving.store import Board
from serving.task import Reply, Tensors

PREFIX = "/v2"
_NAMED = ("", "/versions/<version>")
RULES = tuple(f"/v2/models/<model>{named}/infer" for named in _NAMED)
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters", "schedule_policy", "statistics")
_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
LENGTH = "Inference-Header-Content-Length"
# the quality of a coding that is refused
_NEVER = re.compile(r"q=0(\.0*)?")
_BINARY = ("Content-Type", "application/octet-stream")
# of a timeout: more is as good as none
_MOST_US = 2**53
# smaller ones gain nothing by it
_LEAST_PACKED_BYTES = 1024


def route(path: str) -> Route | None:
    """The route of a POST to a path, None where it is none of this dialect's."""
    match = _PATH.fullmatch(path)
    return Route(_INFER, match[1], match[2] or "") if match else None


class Infer:
    """Tensors in, tensors out."""

    name: ClassVar = "/v2/models/{model}/infer"

    def decode(self, call: Call) -> Asked:
        card, length = call.card, call.environ.get("HTTP_INFERENCE_HEADER_CONTENT_LENGTH")
        packing = call.environ.get("HTTP_ACCEPT_ENCODING", "")
        if length == "0":
            return Asked(_raw(call.body, card.signature), _Encoder(card, None, {}, True, packing))
        body, rest = call.body, memoryview(b"")
        if length is not None:
            size = int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else -1
            if not 0 < size <= len(body):
                raise DecodeError(f"{LENGTH} is {length[:32]!r}, and the body has {len(body)} bytes")
            body, rest = body[:size], memoryview(body)[size:]
        # {"inputs": [{"data": […]}]}; integers are exact only as they are
        if not body:
            raise DecodeError('the body is empty; expected JSON, {"inputs": [{"name": …, "data": […], …}]}')
        value = large.load(body, 3) if b'"FP' in body and b"INT" not in body else None
        if value is None:
            value = codec.load(body, (card.signature,), call.max_rows)
        if not isinstance(value, dict):
            raise DecodeError("the body is not a JSON object")
        id = value.get("id")
        if id is not None and not (isinstance(id, str) and _is_unicode(id)):
            raise DecodeError("'id' is not a string of Unicode")
        parameters = _parameters(value, "the request")
        inputs = tensors(value.get("inputs"), card.signature, call.max_rows, rest, body)
        binary = _flag(parameters, "binary_data_output")
        encode = _Encoder(card, id, requested(value.get("outputs"), card.signature, binary), binary, packing)
        return Asked(inputs, encode, "", timeout_s(parameters))

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        return error.status, JSON[1], problem(error.status, str(error))


_INFER = Infer()


def problem(status: int, text: str) -> bytes:
    """The body that tells of an error."""
    return orjson.dumps({"error": text})


def _is_unicode(text: str) -> bool:
    """Whether there is no half of a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parameters(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = value.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise DecodeError(f"'parameters' of {where} is not an object")
    return found or {}


def _flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    found = parameters.get(name, default)
    if not isinstance(found, bool):
        raise DecodeError(f"the parameter {name!r} is neither true nor false")
    return found


def timeout_s(parameters: Mapping[str, Any]) -> float:
    found = parameters.get("timeout", 0)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise DecodeError("the parameter 'timeout' is not a number of microseconds")
    return min(found, _MOST_US) / 1e6 if found else math.inf


def requested(outputs: Any, signature: Signature, binary: bool) -> dict[str, bool]:
    """The names of the outputs that are wanted, none for all, and whether each is to be binary."""
    if outputs is None:
        return {}
    known = [spec.name for spec in signature.outputs]
    if not isinstance(outputs, list):
        raise DecodeError("'outputs' is not a list")
    if len(outputs) > len(known):
        raise SignatureMismatch(
            f"'outputs' has {len(outputs)} elements, and the model gives {', '.join(map(repr, known))}"
        )
    found = {}
    for output in outputs:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str):
            raise DecodeError("an element of 'outputs' has no 'name'")
        if name not in known:
            raise SignatureMismatch(f"output {name[:64]!r} is unknown; the model gives {', '.join(map(repr, known))}")
        parameters = _parameters(output, f"output {name!r}")
        if parameters.get("classification"):
            raise ClientError(f"output {name!r} is wanted as a classification, which is not spoken here")
        found[name] = _flag(parameters, "binary_data", binary)
    return found


def tensors(listed: Any, signature: Signature, max_rows: int, rest: memoryview, body: bytes) -> Tensors:
    if not isinstance(listed, list) or not listed:
        raise DecodeError("'inputs' is missing, or no list, or empty")
    specs = {spec.name: spec for spec in signature.inputs}
    words = codec.has_words(body)
    found: Tensors = {}
    for item in listed:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise DecodeError("an element of 'inputs' has no 'name'")
        spec = specs.get(name)
        if spec is None:
            raise SignatureMismatch(f"input {name[:64]!r} is unknown; the model takes {', '.join(map(repr, specs))}")
        if name in found:
            raise DecodeError(f"input {name!r} is there twice")
        shape = datatypes.shape(item.get("shape"), name, max_rows)
        dtype = datatypes.dtype(item.get("datatype"), spec)
        size = _parameters(item, f"input {name!r}").get("binary_data_size")
        if size is None:
            tensor = datatypes.of_json(name, dtype, shape, item.get("data"), words)
        else:
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
                told = str(size)[:32] if isinstance(size, str | int) else "that is no number"
                raise DecodeError(f"input {name!r} has binary_data_size {told}, and {len(rest)} bytes are left")
            tensor, rest = datatypes.of_bytes(name, dtype, shape, rest[:size]), rest[size:]
        if tensor.dtype != spec.numpy:
            tensor = tensor.astype(spec.numpy)
        spec.check(tensor)
        found[name] = tensor
    if len(rest):
        raise DecodeError(f"the body has {len(rest)} bytes behind the last tensor")
    return signature.completed(found)


def _raw(body: bytes, signature: Signature) -> Tensors:
    """One row of the only input, without JSON."""
    spec = signature.only
    if spec is None or spec.shape.count(-1) > 1:
        raise SignatureMismatch(
            f"raw binary data ({LENGTH}: 0) is for a model with one input that has one size to be found at the most;"
            f" this one takes {signature}"
        )
    if spec.dtype == STRING:
        if math.prod(spec.shape) not in (1, -1):
            raise SignatureMismatch(f"input {spec.name!r}: one row is {spec}, and raw binary data is one string")
        sizes = tuple(1 for _ in spec.shape)
    else:
        sizes = spec.sizes(len(body) // spec.numpy.itemsize)
    return {spec.name: datatypes.of_bytes(spec.name, spec.dtype, (1, *sizes), memoryview(body))}


class _Encoder:
    """Makes the body of an answer."""

    def __init__(self, card: ModelCard, id: str | None, wanted: dict[str, bool], binary: bool, packing: str) -> None:
        self._card = card
        self._id = id
        self._wanted = wanted
        self._binary = binary
        self._packing = packing

    def __call__(self, reply: Reply) -> Encoded:
        told, parts = [], []
        wanted = self._wanted or dict.fromkeys(reply.outputs, self._binary)
        for name, binary in wanted.items():
            tensor = reply.outputs[name]
            dtype = STRING if tensor.dtype.kind == "O" else tensor.dtype.name
            output: dict[str, Any] = {"name": name, "datatype": datatypes.DATATYPES[dtype], "shape": list(tensor.shape)}
            if binary:
                parts.append(datatypes.raw(tensor))
                output["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                output["data"] = datatypes.listed(name, tensor)
            told.append(output)
        about: dict[str, Any] = {"model_name": self._card.name, "model_version": str(reply.version)}
        if self._id is not None:
            about["id"] = self._id
        head = forms.dump(
            {**about, "outputs": told}, {name: reply.outputs[name] for name, raw in wanted.items() if not raw}
        )
        headers: Headers = [JSON]
        body = head
        if parts:
            headers = [_BINARY, (LENGTH, str(len(head)))]
            body = b"".join([head, *parts])
        return _packed(headers, body, self._packing)


def _packed(headers: Headers, body: bytes, accepted: str) -> Encoded:
    """As the client accepts it."""
    if len(body) < _LEAST_PACKED_BYTES:
        return headers, body
    headers = [*headers, ("Vary", "Accept-Encoding")]
    # each coding with its quality, as an option
    asked = dict(coding.replace(" ", "").lower().partition(";")[::2] for coding in accepted.split(","))
    for name, header in (("gzip", 31), ("deflate", 15)):
        if name in asked and not _NEVER.fullmatch(asked[name]):
            packer = zlib.compressobj(1, wbits=header)
            return [*headers, ("Content-Encoding", name)], packer.compress(body) + packer.flush()
    return headers, body


def blueprint(board: Board, plan: PlanFile, counts: Counts) -> Blueprint:
    """GET /v2 and below: health, metadata and statistics."""
    found = Blueprint("open_inference", __name__)
    about = {"name": "muleteer", "version": importlib.metadata.version("muleteer"), "extensions": EXTENSIONS}

    def wanted(model: str, version: str) -> ModelCard:
        card = loaded(board)
        if model != card.name:
            raise ModelNotFound(
                f"Request for unknown model: '{model[:64]}' is not found; the model here is {card.name!r}"
            )
        if version and version not in {**board.versions(), **plan.read().versions}:
            raise ModelNotFound(f"Request for unknown model: '{model}' version {version[:64]} is not found")
        return card

    @found.get("/v2")
    @found.get("/v2/")
    def server() -> Response:
        return answer(about)

    @found.get("/v2/health/live")
    def live() -> Response:
        return answer({"live": True})

    @found.get("/v2/health/ready")
    def ready() -> Response:
        well = is_ready(board)
        return answer({"ready": well}, 200 if well else 503)

    def model_ready(model: str, version: str = "") -> Response:
        wanted(model, version)
        well = version in board.versions() if version else is_ready(board)
        return answer({"name": model, "ready": well}, 200 if well else 503)

    def metadata(model: str, version: str = "") -> Response:
        card = wanted(model, version)
        numbers = [str(one.number) for one in versions(board, plan) if not one.refused]
        return answer(
            {
                "name": card.name,
                "versions": [version] if version else numbers,
                "platform": _PLATFORMS.get(card.engine, f"{card.engine}_model"),
                "inputs": [_told(spec) for spec in card.signature.inputs],
                "outputs": [_told(spec) for spec in card.signature.outputs],
            }
        )

    def stats(model: str = "", version: str = "") -> Response:
        card = wanted(model, version) if model else loaded(board)
        known = {**board.versions(), **plan.read().versions}
        return answer(statistics(counts, card.name, {known[version]} if version else {*known.values()}))

    found.get("/v2/models/stats")(stats)
    for named in _NAMED:
        found.get(f"/v2/models/<model>{named}/stats", endpoint=f"stats{len(named)}")(stats)
        found.get(f"/v2/models/<model>{named}", endpoint=f"metadata{len(named)}")(metadata)
        found.get(f"/v2/models/<model>{named}/ready", endpoint=f"ready{len(named)}")(model_ready)

    return found


# as the specification spells them, <project>_<format>
_PLATFORMS = {"tensorflow": "tensorflow_savedmodel", "onnx": "onnx_onnxv1", "torch": "pytorch_torchscript"}


def _told(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatypes.DATATYPES[spec.dtype], "shape": [-1, *spec.shape]}
