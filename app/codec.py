"""JSON in the forms that several dialects have: bytes into named tensors, named tensors into bytes.

    {"instances": [row, …]}            → {"predictions": [row, …]}
    {"inputs": {name: rows}}           → {"outputs": {name: rows}}
    {name: value, …}, one row          → {name: value, …}

The first two may say which of the model's signatures they are for: "signature_name": "…" beside them.

NaN, Infinity and -Infinity are read and written, as Python's json module spells them.  Bytes that are not UTF-8 are
{"b64": "…"}, both ways.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Raises:   DecodeError, FrameTooLarge, SignatureMismatch.
"""

import base64
import json
import math
import sys
import threading
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import simdjson

from serving.errors import DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import Signature, TensorSpec
from serving.task import Tensor, Tensors

Encode = Callable[[Tensors], bytes]
# what stands in JSON for an output
Told = Callable[[str, Tensor], Any]

_NONE: Mapping[str, Signature] = MappingProxyType({})

# from here on it pays to have the numbers of a body without a Python object for each
_LARGE_BYTES = 4096
_parser = simdjson.Parser()
_parsing = threading.Lock()
# a parser keeps as much memory as its largest body took, some 13 times that: it is not kept for larger ones
_KEPT_BYTES = 2 << 20
# what is left of a body without these shows how its lists are nested
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{},"))


def decode(
    body: bytes,
    signature: Signature,
    max_rows: float = math.inf,
    signatures: Mapping[str, Signature] = _NONE,
    envelope: bool = False,
) -> tuple[Tensors, Encode, str]:
    """The inputs in a body, at most max_rows of them, how to encode the outputs in the same form, and the signature.

    That is the name of one of signatures, or "" where the body names none.  envelope: that the body has one of the
    first two forms, and what else stands in it is ignored.
    """
    spec = signature.only
    if len(body) >= _LARGE_BYTES and (found := _decode_large(body, signature, max_rows, signatures)) is not None:
        return found
    value = load(body)
    if envelope:
        value = _opened(value)
    name = ""
    if type(value) is dict and len(value) > 1 and "signature_name" in value and not _ENCODERS.keys().isdisjoint(value):
        name = value.pop("signature_name")
        if type(name) is not str or name not in signatures:
            known = ", ".join(signatures)
            raise SignatureMismatch(f"'signature_name' is {json.dumps(name)[:64]}; the model has {known}")
        signature = signatures[name]
        spec = signature.only
    if envelope and type(columns := value.get("inputs")) is dict:
        # others beside them are ignored, as they are there
        own = {spec.name: columns[spec.name] for spec in signature.inputs if spec.name in columns}
        value["inputs"] = own or columns
    # struct takes them for numbers; a single letter is looked for much faster
    words = (b"r" in body and b"true" in body) or (b"l" in body and b"false" in body)
    if spec is not None and not words and type(value) is dict and len(value) == 1:
        # as nearly always
        ((form, rows),) = value.items()
        encode = _ENCODERS.get(form)
        if encode is None:
            tensor = spec.packed([rows]) if form == spec.name else None
            encode = encode_instance
        else:
            tensor = spec.packed(rows) if type(rows) is list and len(rows) <= max_rows else None
        if tensor is not None:
            return {spec.name: tensor}, encode, name
    inputs, encode = _decode_slowly(body, value, words, signature, max_rows)
    return inputs, encode, name


def _decode_large(
    body: bytes, signature: Signature, max_rows: float, signatures: Mapping[str, Signature]
) -> tuple[Tensors, Encode, str] | None:
    """The same for many numbers, without an object for each; None where they need another look."""
    if body.startswith(BOM_UTF8) or not any(map(_is_large, (signature, *signatures.values()))):
        return None
    document = value = None
    with _parsing:
        try:
            document = _parser_for(body).parse(body)
            if type(document) is not simdjson.Object or not 0 < len(document) < 3:
                return None
            form, *others = sorted(document.keys(), key="signature_name".__eq__)
            name = str(document["signature_name"]) if others == ["signature_name"] else ""
            taken = signatures.get(name) if others else signature
            value = document[form]
            if taken is None or not _is_large(taken) or type(value) is not simdjson.Array:
                return None
            spec, encode = taken.inputs[0], _ENCODERS.get(form)
            rows = len(value) if encode else 0
            if encode and not 0 < rows <= max_rows:
                return None
            if (not encode and (form != spec.name or others)) or (rows > 1 and spec.shape == (-1,)):
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
    if min(shape) < 1 or math.prod(shape) != len(found) or not _is_nested(body, spec, rows, len(shape)):
        return None
    with np.errstate(over="ignore"):
        tensor = found.astype(spec.dtype)
    if not np.isfinite(tensor).all():
        return None
    return {spec.name: tensor.reshape(shape)}, encode or encode_instance, name


def _parser_for(body: bytes) -> simdjson.Parser:
    return _parser if len(body) <= _KEPT_BYTES else simdjson.Parser()


def _is_large(signature: Signature) -> bool:
    """Whether a body for it may be one list of many floats."""
    spec = signature.only
    return spec is not None and spec.dtype.startswith("float") and (-1 not in spec.shape or spec.shape == (-1,))


def _is_nested(body: bytes, spec: TensorSpec, rows: int, axes: int) -> bool:
    """Whether so many numbers as there should be are in lists as they should be."""
    if rows <= 1 and axes <= 2:
        return body.count(b"[") == bool(rows) + axes - 1
    return body.translate(None, _NO_BRACKETS)[1:-1].strip(b",") == spec.skeleton(rows)


def _decode_slowly(
    body: bytes, value: Any, words: bool, signature: Signature, max_rows: float
) -> tuple[Tensors, Encode]:
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a bare value"
        raise DecodeError(
            f"the body is {kind}; expected an object: "
            '{"instances": [row, …]}, {"inputs": {name: rows}} or {name: value} for one row'
        )
    if "instances" not in value and "inputs" not in value:
        return signature.instance(value, not words and _has_no_strings(body, len(value))), encode_instance
    form = "instances" if "instances" in value else "inputs"
    others = [key for key in value if key != form]
    if others:
        raise DecodeError(
            f"the body has {form!r} and {', '.join(repr(key[:64]) for key in others[:5])} beside it; "
            "it is one of three forms: 'instances', 'inputs', or the inputs of one row by name"
        )
    within = value[form]
    _check_rows(within, max_rows)
    if form == "instances":
        names = sum(len(row) for row in within if isinstance(row, dict)) if isinstance(within, list) else 0
        return signature.instances(within, not words and _has_no_strings(body, 1 + names)), encode_instances
    names = len(within) if isinstance(within, dict) else 0
    return signature.columns(within, not words and _has_no_strings(body, 1 + names)), encode_columns


def _opened(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError("the body is not a JSON object")
    if ("instances" in value) == ("inputs" in value):
        raise DecodeError(
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
            if "inputs" in value
            else "Missing 'inputs' or 'instances' key"
        )
    return {key: value[key] for key in ("instances", "inputs", "signature_name") if key in value}


def load(body: bytes) -> Any:
    """What JSON says, with NaN, Infinity and -Infinity."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _load_slowly(body)


def load_numbers(body: bytes, depth: int) -> Any:
    """The same, with lists of many numbers as float64 tensors, where these stand in depth lists and objects."""
    if len(body) < _LARGE_BYTES or body.startswith(BOM_UTF8):
        return load(body)
    document = None
    with _parsing:
        try:
            document = _parser_for(body).parse(body)
            found, lists = _with_numbers(document, depth)
            # as_buffer goes through lists within lists; then there are more of them
            if lists == body.count(b"["):
                return found
        except (ValueError, TypeError, RuntimeError):
            pass
        finally:
            document = None
    return load(body)


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


def _has_no_strings(body: bytes, names: int) -> bool:
    """Whether the names of so many values are all strings that a body holds."""
    return body.count(b'"') == 2 * names


def _check_rows(value: object, max_rows: float) -> None:
    # before any of them is looked at
    columns = value.values() if isinstance(value, dict) else [value]
    rows = max((len(column) for column in columns if isinstance(column, list)), default=0)
    if rows > max_rows:
        raise FrameTooLarge(
            f"the body has {rows} rows and the limit is {max_rows}: max_request_rows in uwsgi.ini;"
            " send them in several requests"
        )


def _load_slowly(body: bytes) -> Any:
    if not body:
        raise DecodeError('the body is empty; expected JSON, for example {"instances": [row, …]}')
    # NaN and Infinity, or a body that is wrong: the standard library tells both, and where
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"the body is not UTF-8: {error.reason} at offset {error.start}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise DecodeError(f"the body is not JSON: {error.msg} at offset {offset}") from None
    except RecursionError:
        raise DecodeError("the body is nested too deep") from None
    except ValueError:
        limit = sys.get_int_max_str_digits()
        raise DecodeError(f"the body holds a number of more than {limit} digits, which cannot be read") from None


def _told(name: str, tensor: Tensor) -> Any:
    return values(tensor)


def encode_instances(outputs: Tensors, told: Told = _told) -> bytes:
    """As the answer to rows."""
    columns = [(name, told(name, tensor)) for name, tensor in outputs.items()]
    if len(columns) == 1:
        return dump({"predictions": columns[0][1]}, outputs)
    rows = range(len(columns[0][1]))
    return dump({"predictions": [{name: column[row] for name, column in columns} for row in rows]}, outputs)


def encode_columns(outputs: Tensors, told: Told = _told) -> bytes:
    """As the answer to columns."""
    return dump({"outputs": {name: told(name, tensor) for name, tensor in outputs.items()}}, outputs)


def encode_instance(outputs: Tensors) -> bytes:
    """As the answer to one row by its names."""
    return dump({name: values(tensor)[0] for name, tensor in outputs.items()}, outputs)


def values(tensor: Tensor) -> Any:
    """The tensor as it stands, or nested lists of texts."""
    if tensor.dtype.kind != "O":
        return tensor
    return nested([text(item) for item in tensor.ravel().tolist()], tensor.shape)


def nested(items: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Lists as a tensor of this shape would have them."""
    if len(shape) == 1:
        return items
    found = np.empty(len(items), object)
    for index, item in enumerate(items):
        found[index] = item
    listed: list[Any] = found.reshape(shape).tolist()
    return listed


def text(item: Any) -> str | dict[str, str]:
    """A string as JSON has it; bytes that are not UTF-8 in base64."""
    try:
        return str(item, "utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(item).decode()}


_ENCODERS: dict[str, Encode] = {"instances": encode_instances, "inputs": encode_columns}


def dump(value: dict[str, Any], outputs: Tensors) -> bytes:
    """JSON in which tensors stand; outputs: those that there are."""
    told = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    # orjson writes NaN as null
    if b"null" not in told or all(tensor.dtype.kind != "f" or np.isfinite(tensor).all() for tensor in outputs.values()):
        return told
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_listed).encode()


def _listed(part: Tensor | np.generic) -> Any:
    # a tensor, or the one number that a row of it is; by way of text, so that a float32 keeps its short form
    return (part.astype(str).astype(float) if part.dtype.kind == "f" else part).tolist()
