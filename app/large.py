"""Large bodies of numbers in JSON, read without a Python object for each.

What is wrong with a body, if anything is, is for others to say: it is read again then.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
"""

import math
import threading
from codecs import BOM_UTF8
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import simdjson

from app.forms import ENCODERS, Encode, encode_instance, encode_row, encode_rows
from serving.signature import Signature, TensorSpec
from serving.task import Tensors

# from here on it pays to have the numbers of a body without a Python object for each
_LARGE_BYTES = 4096
_parser = simdjson.Parser()
_parsing = threading.Lock()
# a parser keeps as much memory as its largest body took, some 13 times that: it is not kept for larger ones
_KEPT_BYTES = 2 << 20
# what is left of a body without these shows how its lists are nested
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{},"))
# of a body, where its lists begin: no tensor has so many axes
_MOST_OPENING = 256


def decode(
    body: bytes,
    spec: TensorSpec | None,
    max_rows: float,
    signatures: Mapping[str, Signature] = MappingProxyType({}),
    bare: bool = False,
) -> tuple[Tensors, Encode, str] | None:
    """The only input in a large body of numbers, the form of the answer, and the signature, as codec.decode.

    That is the only input of the signature that the body names, or else this one.  bare: that the body has no name.
    None where it needs another look.
    """
    if len(body) < _LARGE_BYTES or body.startswith(BOM_UTF8):
        return None
    if not any(map(_is_large, (spec, *(signature.only for signature in signatures.values())))):
        return None
    document = value = None
    with _parsing:
        try:
            document = value = _parser_for(body).parse(body)
            encode: Encode | None = None
            name = ""
            if not bare:
                if type(document) is not simdjson.Object or not 0 < len(document) < 3:
                    return None
                form, *others = sorted(document.keys(), key="signature_name".__eq__)
                if others:
                    name = str(document["signature_name"]) if others == ["signature_name"] else ""
                    taken = signatures.get(name)
                    spec = taken.only if taken else None
                value, encode = document[form], ENCODERS.get(form)
                if not encode and (others or spec is None or form != spec.name):
                    return None
            if spec is None or not _is_large(spec) or type(value) is not simdjson.Array:
                return None
            if bare and _opening(body) > len(spec.shape):
                encode = encode_rows
            rows = len(value) if encode else 0
            if encode and not 0 < rows <= max_rows:
                return None
            if rows > 1 and spec.shape == (-1,):
                return None
            found = np.frombuffer(value.as_buffer(of_type="d"), np.float64)
        except (ValueError, TypeError, RuntimeError):
            return None
        finally:
            # the parser is used again only when nothing refers to what it has read
            document = value = None
    shape = (rows or 1, *spec.shape)
    if spec.shape == (-1,):
        shape = (1, len(found))
    if min(shape) < 1 or math.prod(shape) != len(found) or not _is_nested(body, spec, rows, len(shape), bare):
        return None
    with np.errstate(over="ignore"):
        tensor = found.astype(spec.dtype)
    if not np.isfinite(tensor).all():
        return None
    return {spec.name: tensor.reshape(shape)}, encode or (encode_row if bare else encode_instance), name


def _parser_for(body: bytes) -> simdjson.Parser:
    return _parser if len(body) <= _KEPT_BYTES else simdjson.Parser()


def _is_large(spec: TensorSpec | None) -> bool:
    """Whether a body for it may be one list of many floats."""
    return spec is not None and spec.dtype.startswith("float") and (-1 not in spec.shape or spec.shape == (-1,))


def _is_nested(body: bytes, spec: TensorSpec, rows: int, axes: int, bare: bool) -> bool:
    """Whether so many numbers as there should be are in lists as they should be."""
    if rows <= 1 and axes <= 2:
        return body.count(b"[") == bool(rows) + axes - 1
    brackets = body.translate(None, _NO_BRACKETS)
    return (brackets if bare else brackets[1:-1].strip(b",")) == spec.skeleton(rows)


def _opening(body: bytes) -> int:
    """How many lists a body begins with, one in the other."""
    start = body[:_MOST_OPENING].translate(None, b" \t\r\n")
    return len(start) - len(start.lstrip(b"["))


def load(body: bytes, depth: int) -> Any:
    """What JSON says, with lists of many numbers as float64 tensors, where these stand in depth lists and objects.

    None where it needs another look.
    """
    if len(body) < _LARGE_BYTES or body.startswith(BOM_UTF8):
        return None
    document = None
    with _parsing:
        try:
            document = _parser_for(body).parse(body)
            found, lists = _with_numbers(document, depth)
        except (ValueError, TypeError, RuntimeError):
            return None
        finally:
            document = None
    # as_buffer goes through lists within lists; then there are more of them
    return found if lists == body.count(b"[") else None


def _with_numbers(value: Any, depth: int) -> tuple[Any, int]:
    """A value with tensors in it, and how many lists were seen."""
    if type(value) is simdjson.Object and depth:
        found = {name: _with_numbers(value[name], depth - 1) for name in value}
        if len(found) < len(value):
            raise ValueError("a name is there twice, and the last one counts")
        return {name: item for name, (item, _) in found.items()}, sum(lists for _, lists in found.values())
    if type(value) is simdjson.Array and len(value) * 2 >= _LARGE_BYTES:
        return np.frombuffer(value.as_buffer(of_type="d"), np.float64), 1
    if type(value) is simdjson.Array and depth:
        items = [_with_numbers(item, depth - 1) for item in value]
        return [item for item, _ in items], 1 + sum(lists for _, lists in items)
    return (value.as_list(), 1) if type(value) is simdjson.Array else (value, 0)
