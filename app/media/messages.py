"""MessagePack in the three forms of app/codec.py.

Strings are texts or binary; an answer has binary where a string is not UTF-8.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Raises:   DecodeError, FrameTooLarge, SignatureMismatch, UnsupportedMedia.
"""

import re
from collections.abc import Mapping
from typing import Any

from app import codec, forms
from app.limits import need
from serving.errors import DecodeError, FrameTooLarge
from serving.signature import Signature
from serving.task import Tensor, Tensors

# what stands for itself: integers, nil, floats
_PLAIN = re.compile(
    rb"(?:[\x00-\x7f\xc0\xe0-\xff]|[\xca\xce\xd2].{4}|[\xcb\xcf\xd3].{8}|[\xcc\xd0].|[\xcd\xd1]..)*+", re.DOTALL
)
# binary that no other body ends with
_END = b"\xc4\x07the end"
# of all but numbers: a list takes sixty times the byte that it may be on the wire
_MOST_PARTS = 1 << 17


def decode(
    body: bytes, signature: Signature, max_rows: int, signatures: Mapping[str, Signature]
) -> tuple[Tensors, forms.Encode, str]:
    """As codec.decode."""
    ormsgpack = need("ormsgpack")
    if not body:
        raise DecodeError("the body is empty; expected MessagePack")
    strings, words = _scan(body)
    try:
        # what goes on behind a value would be passed over
        value, end = ormsgpack.unpackb(b"\x92" + body + _END)
    except ValueError as error:
        raise DecodeError(f"the body is not MessagePack: {error}") from None
    if end != _END[2:]:
        raise DecodeError("the body goes on behind its MessagePack; send one value alone")
    return codec.decode_value(value, strings, words, signature, max_rows, signatures)


def _scan(body: bytes) -> tuple[int, bool]:
    """How many strings there are, and whether true or false is anywhere.

    Raises where there are more parts than there should be; whatever else is wrong is not looked for.
    """
    position = parts = strings = 0
    words = False
    while (match := _PLAIN.match(body, position)) and (position := match.end()) < len(body):
        parts += 1
        if parts > _MOST_PARTS:
            raise FrameTooLarge(
                f"the body has more than {_MOST_PARTS} lists, objects and strings; send large tensors as npy"
            )
        kind = body[position]
        if 0x80 <= kind <= 0x9F or 0xDC <= kind <= 0xDF:
            position += 1 if kind <= 0x9F else 3 if kind in (0xDC, 0xDE) else 5
        elif kind in (0xC2, 0xC3):
            words = True
            position += 1
        elif 0xA0 <= kind <= 0xBF:
            strings += 1
            position += 1 + (kind & 31)
        else:
            # strings and binary, with their length in 1, 2 or 4 bytes; anything else is refused later
            size = _LENGTHS.get(kind)
            if size is None:
                break
            strings += 1
            position += 1 + size + int.from_bytes(body[position + 1 : position + 1 + size])
    return strings, words


_LENGTHS = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}


def encode(outputs: Tensors, form: forms.Encode) -> bytes:
    """Outputs in one of the forms."""
    return form(outputs, told=_told, dump=_dump)


def _told(name: str, tensor: Tensor) -> Any:
    if tensor.dtype.kind != "O":
        return tensor if tensor.flags.c_contiguous else tensor.copy()
    return forms.nested([_text(item) for item in tensor.ravel().tolist()], tensor.shape)


def _text(item: bytes) -> str | bytes:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return item


def _dump(value: dict[str, Any], outputs: Tensors) -> bytes:
    ormsgpack = need("ormsgpack")
    packed: bytes = ormsgpack.packb(value, option=ormsgpack.OPT_SERIALIZE_NUMPY)
    return packed
