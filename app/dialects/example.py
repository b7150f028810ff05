"""Examples of TensorFlow Serving's classify and regress: named features in JSON, as serialized tf.train.Example.

Runs in:  worker.
Shapes:   one string for each example: (rows,).
Raises:   DecodeError, FrameTooLarge.
Source:   tensorflow, core/example/feature.proto and example.proto; protobuf.dev/programming-guides/encoding.
"""

import base64
import binascii
from typing import Any

import numpy as np

from app.limits import check_bytes, check_rows
from serving.errors import DecodeError
from serving.task import Tensor

# of an integer in a feature
_LEAST, _MOST = -(2**63), 2**63 - 1


def decode(value: Any, max_rows: float, max_bytes: int) -> Tensor:
    """The examples of what a body says, of at most max_bytes with the context that each of them has."""
    if not isinstance(value, dict):
        raise DecodeError("the body is not a JSON object")
    context, examples = value.get("context", {}), value.get("examples")
    if not isinstance(context, dict):
        raise DecodeError("'context' is not an object of features")
    if not isinstance(examples, list) or not examples:
        raise DecodeError("'examples' is missing, or no list of objects, or empty")
    check_rows(len(examples), max_rows)
    common = _entries(context)
    size = len(common) * len(examples)
    check_bytes(size, max_bytes, "'context' in each of the examples")
    found = np.empty(len(examples), object)
    for index, example in enumerate(examples):
        if not isinstance(example, dict):
            raise DecodeError(f"'examples'[{index}] is not an object of features")
        if both := context.keys() & example.keys():
            raise DecodeError(f"'examples'[{index}] and 'context' both have the feature {min(both)[:64]!r}")
        own = _entries(example)
        size += len(own)
        check_bytes(size, max_bytes, "the examples")
        # a tf.train.Example, and in it its Features
        found[index] = _field(1, common + own)
    return found


def _entries(features: dict[str, Any]) -> bytes:
    """The features of one tf.train.Example, or some of them."""
    entries = (_field(1, _field(1, _utf8(name)) + _field(2, _feature(name, value))) for name, value in features.items())
    return b"".join(entries)


def _feature(name: str, value: Any) -> bytes:
    """A list of bytes (1), of floats (2) or of integers (3), by the kind of its values."""
    items = value if isinstance(value, list) else [value]
    kinds = set(map(type, items))
    if not items:
        return b""
    if kinds <= {str, dict}:
        return _field(1, b"".join(_field(1, _bytes(name, item)) for item in items))
    if kinds == {float}:
        with np.errstate(over="ignore"):
            found = np.array(items, "<f4")
        if (np.isinf(found) & np.isfinite(items)).any():
            raise DecodeError(f"the feature {name[:64]!r} has a number that no float32 can hold")
        return _field(2, _field(1, found.tobytes()))
    if kinds != {int}:
        raise _mixed(name)
    if min(items) < _LEAST or max(items) > _MOST:
        raise DecodeError(f"the feature {name[:64]!r} has an integer of more than 64 bits")
    return _field(3, _field(1, b"".join(_varint(item % 2**64) for item in items)))


def _mixed(name: str) -> DecodeError:
    return DecodeError(f"the feature {name[:64]!r} has values of several kinds, or others than strings and numbers")


def _bytes(name: str, item: Any) -> bytes:
    if isinstance(item, str):
        return _utf8(item)
    if list(item) != ["b64"]:
        raise _mixed(name)
    try:
        return base64.b64decode(item["b64"], validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise DecodeError(f"Unable to base64 decode the feature {name[:64]!r}") from None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise DecodeError("a string has half a surrogate pair, which is not UTF-8") from None


def _field(number: int, content: bytes) -> bytes:
    # of wire type 2, with its length
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
