"""TorchServe's inference API, by POST and by PUT, which `curl -T` sends.

    {"instances": [row, …]}, as its JSON envelope has it     → {"predictions": [row, …]}
    row, bare, or {name: value, …}                           → row, bare
    [row, …]                                                 → [row, …]

The body may be a form with the field `data` or `body`, an image, which is one row, a form of images, or what else
app/media/ reads.  Where the model takes one string, a body that is not said to be JSON is that string; an answer that
is one string is that text, and no JSON.

GET /ping is in app/dialects/sagemaker.py.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Source:   pytorch/serve, docs/inference_api.md, frontend/server's InferenceRequestHandler.java and NettyUtils.java,
          ts/torch_handler/base_handler.py and request_envelope/json.py.
"""

import re
import string
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import orjson

from app import codec, forms, media
from app.dialects.dialect import JSON, Asked, Call, Encoded, Route
from serving.errors import DecodeError, ModelNotFound, ServingError
from serving.signature import STRING
from serving.task import Reply

PREFIX = "/predictions/"
RULES = ("/predictions/<model>", "/predictions/<model>/<version>")
_PATH = re.compile(r"/predictions/([^/]+)(?:/([^/]+))?")
# its own versions are 1.0, 2.0, …; ours are 1, 2, …
_WHOLE = re.compile(r"([0-9]+)\.0")
_FORM, _PARTS = "application/x-www-form-urlencoded", "multipart/form-data"
# what PNG, JPEG and WebP begin with, and no JSON
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
_MOST_FIELDS = 64
# what each sign is worth as a hexadecimal digit, 16 where it is none
_DIGITS = np.array([int(chr(sign), 16) if chr(sign) in string.hexdigits else 16 for sign in range(256)], np.uint8)
_BAD = "BadRequestException"
_TYPES = {
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
    504: "RequestTimeoutException",
}


def route(path: str) -> Route | None:
    """The route of a POST to a path, None where it is none of this dialect's."""
    match = _PATH.fullmatch(path)
    return Route(_PREDICTIONS, match[1], _WHOLE.sub(r"\1", match[2] or "")) if match else None


def problem(status: int, text: str) -> bytes:
    """The body that tells of an error."""
    return _problem(status, _TYPES.get(status, _BAD), text)


def _problem(status: int, kind: str, text: str) -> bytes:
    return orjson.dumps({"code": status, "type": kind, "message": text})


class Predictions:
    """What a handler takes, and what it returns."""

    name: ClassVar = "/predictions/{model}"

    def decode(self, call: Call) -> Asked:
        signature, body = call.card.signature, call.body
        sent = call.environ.get("CONTENT_TYPE", "")
        type = sent.partition(";")[0].strip().lower()
        if type == _FORM:
            body = _field(body)
        spec = signature.main
        if spec is not None and (spec.dtype, spec.shape) == (STRING, ()) and type not in (JSON[1], _PARTS):
            text = np.empty(1, object)
            text[0] = body
            return Asked(signature.completed({spec.name: text}), _encoded(forms.encode_row))
        if type in ("", "application/octet-stream") and body.startswith(_IMAGES):
            # curl -T does not say what it sends; which image it is, is found out later
            sent = "image/jpeg"
        kind = "json" if sent in media.PLAIN else media.parsed(sent)[0]
        name = ""
        if kind != "json":
            inputs, encode, name = media.decode(call, sent)
            if kind != "msgpack":
                single = kind in ("image", "form") and signature.rows(inputs) == 1
                encode = forms.encode_row if single else forms.encode_rows
        elif body.lstrip().startswith(b"{"):
            inputs, encode, name = codec.decode(body, signature, call.max_rows, call.card.signatures)
        else:
            inputs, encode = codec.decode_bare(body, signature, call.max_rows)
        return Asked(inputs, _encoded(forms.encode_row if encode is forms.encode_instance else encode), name)

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        kind, text = _TYPES.get(error.status, _BAD), str(error)
        if isinstance(error, ModelNotFound):
            about, kind = f"Model not found: {route.model}", "ModelNotFoundException"
            if text.startswith("no version"):
                about = f"Model version: {route.version} does not exist for model: {route.model}"
                kind = "ModelVersionNotFoundException"
            text = f"{about}; {text}"
        return error.status, JSON[1], _problem(error.status, kind, text)


_PREDICTIONS = Predictions()


def _field(body: bytes) -> bytes:
    """The field of a form that is the body; the body itself where there is no form, whatever its Content-Type says."""
    if b"data=" not in body and b"body=" not in body:
        return body
    parts = body.split(b"&", _MOST_FIELDS)
    if len(parts) > _MOST_FIELDS:
        raise DecodeError(f"the form has more than {_MOST_FIELDS} fields; it needs one, data")
    fields = {name: value for name, _, value in (part.partition(b"=") for part in parts)}
    found = fields.get(b"data", fields.get(b"body"))
    return body if found is None else _unquoted(found)


def _unquoted(text: bytes) -> bytes:
    """What a field of a form holds, of any bytes; urllib takes a second for a body of escapes."""
    signs = np.frombuffer(text.replace(b"+", b" "), np.uint8)
    places = np.flatnonzero(signs == ord("%"))
    high, low = (_DIGITS[signs.take(places + offset, mode="clip")] for offset in (1, 2))
    if ((high | low) > 15).any() or (len(places) and places[-1] + 2 >= len(signs)):
        raise DecodeError("the form has a % that no two hexadecimal digits follow; the sign itself is %25")
    found = signs.copy()
    found[places] = high << 4 | low
    within = np.ones(len(found), bool)
    within[places + 1] = within[places + 2] = False
    return found[within].tobytes()


def _encoded(encode: forms.Encode) -> Callable[[Reply], Encoded]:
    def encoded(reply: Reply) -> Encoded:
        outputs = list(reply.outputs.values())
        if encode is forms.encode_row and len(outputs) == 1 and outputs[0].dtype.kind == "O" and outputs[0].ndim == 1:
            return [("Content-Type", "text/plain; charset=utf-8")], bytes(outputs[0][0])
        return [JSON], encode(reply.outputs)

    return encoded
