"""Images, alone or in a form, into the input that has their shape.

[h, w] and [h, w, 1] are grey, [h, w, 3] and [3, h, w] are red, green and blue, 0 to 255; an image of another size is
resized where the model has a certain one.  What has a form's other fields are inputs in JSON.  A model with one string
takes the file as it is.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape), a row for each image.
Raises:   DecodeError, FrameTooLarge, SignatureMismatch, UnsupportedMedia.
"""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser

from app import codec
from app.limits import check_bytes, check_rows, need
from app.media import segments
from serving.errors import DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import STRING, Signature, TensorSpec
from serving.task import Tensor, Tensors

_FORMATS = ("PNG", "JPEG", "WEBP")
_UNREADABLE = (OSError, SyntaxError, ValueError, ArithmeticError, IndexError, KeyError, EOFError, TypeError)


def image(body: bytes, signature: Signature, max_bytes: int) -> Tensors:
    """One row of one image."""
    spec = wanted(signature)
    return signature.completed({spec.name: _tensor([body], spec, max_bytes)})


def form(body: bytes, signature: Signature, max_rows: int, max_bytes: int, boundary: str) -> Tensors:
    """Images that are fields with a file name, and other inputs that are fields without; each field is a row's."""
    fields, files = _parts(body, signature, max_rows, boundary)
    found: Tensors = {}
    specs = {spec.name: spec for spec in signature.inputs}
    for name, texts in fields.items():
        if name not in specs:
            raise SignatureMismatch(f"the field {name[:64]!r} is unknown; the model takes {signature}")
        check_rows(len(texts), max_rows)
        found[name] = specs[name].array([_value(name, text) for text in texts])
    grouped: dict[str, list[bytes]] = {}
    for name, sent in files.items():
        grouped.setdefault(_spec(signature, name).name, []).extend(sent)
    for name, images in grouped.items():
        if name in found:
            raise DecodeError(f"the form has {name!r} as a file and as a text")
        check_rows(len(images), max_rows)
        found[name] = _tensor(images, specs[name], max_bytes)
    return signature.completed(found)


def _parts(
    body: bytes, signature: Signature, max_rows: int, boundary: str
) -> tuple[dict[str, list[str]], dict[str, list[bytes]]]:
    """The fields of a form, texts and files."""
    try:
        limit = boundary.encode("ascii")
    except UnicodeEncodeError:
        limit = b""
    if not limit or len(limit) > _MOST_BOUNDARY_BYTES:
        raise DecodeError("Content-Type has no boundary of 1 to 70 characters, which is what parts a form")
    if not body.rstrip().endswith(b"--" + limit + b"--"):
        raise DecodeError("the form ends before its last boundary")
    if not body.lstrip(b"\r\n").startswith(b"--" + limit):
        raise DecodeError("the form does not begin with its boundary")
    most = max_rows * len(signature.inputs)
    _check_heads(body, limit, most)
    parser = MultiPartParser(stream_factory=_file, max_form_memory_size=_MOST_TEXT_BYTES, max_form_parts=most)
    try:
        fields, files = parser.parse(io.BytesIO(body), limit, len(body))
    except RequestEntityTooLarge:
        raise FrameTooLarge(
            f"the form has more than {most} fields (max_request_rows in uwsgi.ini, for each input), or a text of more"
            f" than {_MOST_TEXT_BYTES} bytes"
        ) from None
    except (ValueError, KeyError, LookupError) as error:
        raise DecodeError(f"the form cannot be read: {str(error)[:200]}") from None
    if None in fields or None in files:
        raise DecodeError("the form has a part without a name")
    return (
        {name: fields.getlist(name) for name in fields},
        {name: [part.stream.read() for part in files.getlist(name)] for name in files},
    )


def _check_heads(body: bytes, boundary: bytes, most: int) -> None:
    """Raise where there are more parts than that, or long heads of them, each byte of which costs a microsecond."""
    size = number = 0
    delimiter, start = b"--" + boundary, 0
    while (found := body.find(delimiter, start)) >= 0:
        start = found + len(delimiter)
        if body[max(0, found - 1) : found] not in (b"", b"\r", b"\n"):
            continue
        if body.startswith(b"--", start):
            # what is behind the last one is not read
            return
        number += 1
        end = _BLANK_LINE.search(body, start, start + _LONG_HEAD_BYTES)
        size += end.start() - start if end else 0
        if not end or number > most or size > _LONG_HEAD_BYTES + _HEAD_BYTES * number:
            raise FrameTooLarge(
                f"the form has more than {most} fields (max_request_rows in uwsgi.ini, for each input), or heads of"
                f" more than {_HEAD_BYTES} bytes"
            )


_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
# of a head, and of all heads on average
_LONG_HEAD_BYTES, _HEAD_BYTES = 4096, 256
# RFC 2046
_MOST_BOUNDARY_BYTES = 70
# more than the parser reads at a time
_MOST_TEXT_BYTES = 1 << 17


def _file(*_: Any, **__: Any) -> io.BytesIO:
    # never on the disk
    return io.BytesIO()


def _value(name: str, text: str) -> Any:
    try:
        return codec.load(text.encode())
    except (DecodeError, UnicodeEncodeError) as error:
        told = str(error).removeprefix("the body is ")
        raise DecodeError(f"the field {name[:64]!r} is {told}; texts are JSON, a string in quotes") from None


def wanted(signature: Signature) -> TensorSpec:
    """The input that an image alone is for."""
    return _spec(signature, "")


def _spec(signature: Signature, name: str) -> TensorSpec:
    """The input that images are for: the one of that name, or the only one that there can be."""
    for spec in signature.inputs:
        if spec.name == name:
            return spec
    fitting = [spec for spec in signature.inputs if _channels(spec) and spec.default is None]
    if not fitting and (only := signature.only) is not None and (only.dtype, only.shape) == (STRING, ()):
        return only
    if len(fitting) != 1:
        raise SignatureMismatch(
            f"{f'the field {name[:64]!r}' if name else 'an image'} fits {len(fitting)} inputs; the model takes"
            f" {signature}, and an image is [h, w], [h, w, 1], [h, w, 3] or [3, h, w] of numbers"
        )
    return fitting[0]


def _channels(spec: TensorSpec) -> int:
    """1 for grey, 3 for colour; 0 where no image has this shape or dtype."""
    if spec.dtype == STRING or not np.can_cast(np.uint8, spec.dtype):
        return 0
    match spec.shape:
        case (_, _) | (_, _, 1):
            return 1
        case (_, _, 3) | (3, _, _):
            return 3
    return 0


def _tensor(files: Sequence[bytes], spec: TensorSpec, max_bytes: int) -> Tensor:
    if (spec.dtype, spec.shape) == (STRING, ()):
        found = np.empty(len(files), object)
        found[:] = files
        return found
    if not _channels(spec):
        raise SignatureMismatch(f"input {spec.name!r} is no image; one row is {spec}")
    planar = spec.shape[-1] not in (1, 3) and len(spec.shape) == 3
    height, width = spec.shape[1:] if planar else spec.shape[:2]
    if min(height, width) >= 0:
        check_bytes(len(files) * math.prod(spec.shape) * spec.numpy.itemsize, max_bytes, "the resized images")
    rows, unpacked = [], 0
    for file in files:
        pixels, size = _pixels(file, _channels(spec), (width, height), unpacked, max_bytes)
        unpacked += size
        rows.append(pixels.transpose(2, 0, 1) if planar else pixels.reshape(*pixels.shape[:2], *spec.shape[2:]))
    if len({row.shape for row in rows}) > 1:
        raise SignatureMismatch(f"input {spec.name!r}: images of several sizes, which are no tensor; one row is {spec}")
    return spec.cast(np.stack(rows))


def _pixels(file: bytes, channels: int, wanted: tuple[int, int], unpacked: int, max_bytes: int) -> tuple[Tensor, int]:
    """The pixels of an image, and how many bytes they were before it was resized; others had unpacked bytes."""
    pillow = need("PIL.Image")
    # above twice of it Pillow refuses, which it can before there is a canvas; what is smaller is checked below
    pillow.MAX_IMAGE_PIXELS = max(1, max_bytes // 2)
    warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
    try:
        with pillow.open(io.BytesIO(segments.pixels(file)), formats=_FORMATS) as image:
            size = image.width * image.height * len(image.getbands())
            others = " and those before it" if unpacked else ""
            check_bytes(unpacked + size, max_bytes, f"an image of {image.width} × {image.height} pixels{others}")
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("RGB" if channels == 3 else "L")
            size_wanted = tuple(want if want >= 0 else own for want, own in zip(wanted, image.size, strict=True))
            if image.size != size_wanted:
                image = image.resize(size_wanted, pillow.Resampling.BILINEAR)
            return np.asarray(image), size
    except pillow.DecompressionBombError:
        raise FrameTooLarge(
            f"the image has more than {max_bytes} pixels, and so more bytes when it is unpacked than max_body_bytes in"
            " uwsgi.ini allows"
        ) from None
    except (*_UNREADABLE, struct.error, zlib.error) as error:
        kind = "no PNG, JPEG or WebP" if isinstance(error, pillow.UnidentifiedImageError) else f"broken: {error}"
        raise DecodeError(f"the image is {kind}"[:200]) from None
