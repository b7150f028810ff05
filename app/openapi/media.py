"""The media types of app/media/ that suit the model: what is told of them is what they have read and written.

Runs in:  worker.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from app import forms
from app import media as types
from app.dialects.dialect import Call, Route
from app.dialects.plain import Plain
from app.limits import need
from app.media import arrays, arrow, images, messages, tables
from app.openapi.operation import BINARY, TEXT, Body, Schema
from app.openapi.tensors import Model, one
from serving.errors import ClientError
from serving.signature import Signature
from serving.task import Tensors

ASKS = ("X-Tensor-Shape", "X-Tensor-Dtype")
_ROUTE = Route(Plain())
_BOUNDARY = "boundary"
# of an image that is made to be told of
_MOST_BYTES = 1 << 26
Headers = dict[str, str]


def taken(model: Model) -> dict[str, Body]:
    """The bodies that there may be beside JSON, each with an example that was read."""
    card = model.card
    found: dict[str, Body] = {}
    for media_type, write in _WRITERS.items():
        try:
            body, headers = write(model.inputs(card.signature), card.signature)
            environ = {
                "CONTENT_TYPE": media_type,
                **{f"HTTP_{_variable(name)}": text for name, text in headers.items()},
            }
            types.decode(Call(environ, _ROUTE, card, body, model.max_rows, _MOST_BYTES), media_type)
        except (ClientError, ValueError, TypeError, KeyError, OSError):
            # this model takes none such, or nobody here reads it
            continue
        text = media_type.startswith("text/")
        found[media_type] = Body(TEXT if text else BINARY, model.example(body.decode() if text else body, **headers))
    if "image/png" in found:
        (image,) = found["image/png"].examples.values()
        body, schema = _form(image.value, model.inputs(card.signature), card.signature)
        about = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        found["multipart/form-data"] = Body(schema, model.example(body, **about))
    return found


def given(model: Model) -> dict[str, Body]:
    """The bodies that an answer may have beside JSON."""
    signature = model.card.signature
    found: dict[str, Body] = {}
    for media_type in _WRITERS:
        try:
            encode = types.encoder(media_type, signature.outputs)
        except ClientError:
            continue
        if encode is not None:
            found[media_type] = Body(TEXT if media_type.startswith("text/") else BINARY)
    return found


def _npy(inputs: Tensors, signature: Signature) -> tuple[bytes, Headers]:
    return arrays.npy_of(inputs), {}


def _npz(inputs: Tensors, signature: Signature) -> tuple[bytes, Headers]:
    return arrays.npz_of(inputs), {}


def _raw(inputs: Tensors, signature: Signature) -> tuple[bytes, Headers]:
    headers, body = arrays.raw_of(inputs)
    return body, dict(headers)


def _csv(inputs: Tensors, signature: Signature) -> tuple[bytes, Headers]:
    return tables.encode(inputs), {}


def _arrow(inputs: Tensors, signature: Signature) -> tuple[bytes, Headers]:
    return arrow.stream_of(inputs), {}


def _parquet(inputs: Tensors, signature: Signature) -> tuple[bytes, Headers]:
    return arrow.parquet_of(inputs), {}


def _msgpack(inputs: Tensors, signature: Signature) -> tuple[bytes, Headers]:
    return messages.encode(inputs, forms.encode_instance), {}


def _image(format: str) -> Callable[[Tensors, Signature], tuple[bytes, Headers]]:
    def written(inputs: Tensors, signature: Signature) -> tuple[bytes, Headers]:
        spec = images.wanted(signature)
        tensor = inputs[spec.name]
        if tensor.dtype.kind == "O":
            # the file itself, of one grey pixel
            pixels: Any = np.zeros((1, 1), np.uint8)
        else:
            pixels = np.clip(np.nan_to_num(tensor[0].astype(np.float64)), 0, 255).astype(np.uint8)
            if pixels.ndim == 3:
                pixels = pixels.transpose(1, 2, 0) if pixels.shape[-1] not in (1, 3) else pixels
                pixels = pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels
        file = io.BytesIO()
        need("PIL.Image").fromarray(np.ascontiguousarray(pixels)).save(file, format)
        return file.getvalue(), {}

    return written


_WRITERS: dict[str, Callable[[Tensors, Signature], tuple[bytes, Headers]]] = {
    "application/x-npy": _npy,
    "application/x-npz": _npz,
    "application/octet-stream": _raw,
    "text/csv": _csv,
    "application/vnd.apache.arrow.stream": _arrow,
    "application/vnd.apache.parquet": _parquet,
    "application/vnd.msgpack": _msgpack,
    "image/png": _image("PNG"),
    "image/jpeg": _image("JPEG"),
    "image/webp": _image("WEBP"),
}


def _variable(header: str) -> str:
    return header.upper().replace("-", "_")


def _form(file: bytes, inputs: Tensors, signature: Signature) -> tuple[bytes, Schema]:
    """A form of an image, and of the other inputs as JSON."""
    image = images.wanted(signature)
    parts = [b'; name="%s"; filename="image.png"\r\n\r\n%s' % (image.name.encode(), file)]
    others = [name for name in inputs if name != image.name]
    for name in others:
        told = orjson.dumps(one(inputs[name]), option=orjson.OPT_SERIALIZE_NUMPY)
        parts.append(b'; name="%s"\r\n\r\n%s' % (name.encode(), told))
    head = b"--%s\r\nContent-Disposition: form-data" % _BOUNDARY.encode()
    body = b"".join(b"%s%s\r\n" % (head, part) for part in parts) + b"--%s--\r\n" % _BOUNDARY.encode()
    properties = {image.name: {"contentMediaType": "image/png"}, **dict.fromkeys(others, TEXT)}
    return body, {"type": "object", "properties": properties}
