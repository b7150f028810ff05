"""JSON in the forms that several dialects have, into named tensors; app/forms.py has the answers to them.

    {"instances": [row, …]}
    {"inputs": {name: rows}}
    {name: value, …}, one row
    [row, …] or row, bare

The first two may say which of the model's signatures they are for: "signature_name": "…" beside them.

NaN, Infinity and -Infinity are read as Python's json module spells them.  Bytes that are not UTF-8 are {"b64": "…"}.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Raises:   DecodeError, FrameTooLarge, SignatureMismatch.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import orjson

from app import large, limits
from app.forms import ENCODERS, Encode, encode_columns, encode_instance, encode_instances, encode_row, encode_rows
from serving.errors import DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import Signature, TensorSpec
from serving.task import Tensor, Tensors

# a string of JSON; one that does not end goes on to the end, so that nothing is read twice
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)
# so many lists more than a body may have cost little, and another message says better what is wrong
_FREE_LISTS = 1 << 18


def decode(
    body: bytes,
    signature: Signature,
    max_rows: float = math.inf,
    signatures: Mapping[str, Signature] = MappingProxyType({}),
    envelope: bool = False,
) -> tuple[Tensors, Encode, str]:
    """The inputs in a body, at most max_rows of them, how to encode the outputs in the same form, and the signature.

    That is the name of one of signatures, or "" where the body names none.  envelope: that the body has one of the
    first two forms, and what else stands in it is ignored.
    """
    spec = signature.only
    if (found := large.decode(body, spec, max_rows, signatures)) is not None:
        return found
    value = load(body, (signature, *signatures.values()), max_rows)
    if envelope:
        value = _opened(value)
    name, signature = _named(value, signature, signatures)
    spec = signature.only
    if envelope and type(columns := value.get("inputs")) is dict:
        # others beside them are ignored, as they are there
        own = {spec.name: columns[spec.name] for spec in signature.inputs if spec.name in columns}
        value["inputs"] = own or columns
    words = has_words(body)
    if spec is not None and not words and (quick := decode_packed(value, spec, max_rows)) is not None:
        inputs, encode = quick
        return inputs, encode, name
    inputs, encode = _decode_slowly(body.count(b'"') / 2, value, words, signature, max_rows)
    return inputs, encode, name


def decode_packed(value: Any, spec: TensorSpec, max_rows: float) -> tuple[Tensors, Encode] | None:
    """The only input in what a body says, which nearly always is one list of numbers; None where it is not."""
    if type(value) is not dict or len(value) != 1:
        return None
    ((form, rows),) = value.items()
    encode = ENCODERS.get(form)
    if encode is None:
        tensor = spec.packed([rows]) if form == spec.name else None
    else:
        tensor = spec.packed(rows) if type(rows) is list and len(rows) <= max_rows else None
    return None if tensor is None else ({spec.name: tensor}, encode or encode_instance)


def decode_value(
    value: Any, strings: int, words: bool, signature: Signature, max_rows: float, signatures: Mapping[str, Signature]
) -> tuple[Tensors, Encode, str]:
    """The same from what has been read in another way, with so many strings, names too; words: true or false."""
    name, signature = _named(value, signature, signatures)
    # its value and the name of that
    strings -= 2 * bool(name)
    inputs, encode = _decode_slowly(strings, value, words, signature, max_rows)
    return inputs, encode, name


def _named(value: Any, signature: Signature, signatures: Mapping[str, Signature]) -> tuple[str, Signature]:
    """The signature that a value is for, and its name, which is taken out of it; "" and this one, if it names none."""
    if type(value) is not dict or "signature_name" not in value or ENCODERS.keys().isdisjoint(value):
        return "", signature
    name = value.pop("signature_name")
    if type(name) is not str or name not in signatures:
        known = ", ".join(signatures)
        told = json.dumps(name[:64]) if type(name) is str else "no string"
        raise SignatureMismatch(f"'signature_name' is {told}; the model has {known}")
    return name, signatures[name]


def decode_bare(body: bytes, signature: Signature, max_rows: float = math.inf) -> tuple[Tensors, Encode]:
    """The inputs in a body without a name: rows, or one row of the input that a request has to have."""
    spec = signature.main
    if (found := large.decode(body, spec, max_rows, bare=True)) is not None:
        return signature.completed(found[0]), found[1]
    value = load(body, (signature,), max_rows)
    if isinstance(value, list) and value and is_instance(value[0]):
        check_rows(value, max_rows)
        return signature.instances(value), encode_rows
    if spec is None:
        raise SignatureMismatch(f"the body has no names, and the model takes {signature}: write rows as objects")
    several = _depth(value) > len(spec.shape)
    rows = value if several else [value]
    check_rows(rows, max_rows)
    inputs = {spec.name: tensor(spec, rows, has_words(body))}
    return signature.completed(inputs), encode_rows if several else encode_row


def tensor(spec: TensorSpec, rows: list[Any], words: bool) -> Tensor:
    """An input from its rows; words: whether true or false may be among them."""
    packed = None if words else spec.packed(rows)
    return spec.array(rows) if packed is None else packed


def _depth(value: Any) -> int:
    """How many lists a value begins with, one in the other."""
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def has_words(body: bytes) -> bool:
    """Whether true or false may stand in a body, which struct takes for numbers."""
    # a single letter is looked for much faster
    return (b"r" in body and b"true" in body) or (b"l" in body and b"false" in body)


def is_instance(item: Any) -> bool:
    """Whether it is a row by its names; {"b64": …} is a value."""
    return isinstance(item, dict) and list(item) != ["b64"]


def _decode_slowly(
    strings: float, value: Any, words: bool, signature: Signature, max_rows: float
) -> tuple[Tensors, Encode]:
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a bare value"
        raise DecodeError(
            f"the body is {kind}; expected an object: "
            '{"instances": [row, …]}, {"inputs": {name: rows}} or {name: value} for one row'
        )
    # whether there are no strings but the names
    if "instances" not in value and "inputs" not in value:
        return signature.instance(value, not words and strings == len(value)), encode_instance
    form = "instances" if "instances" in value else "inputs"
    others = [key for key in value if key != form]
    if others:
        raise DecodeError(
            f"the body has {form!r} and {', '.join(repr(key[:64]) for key in others[:5])} beside it; "
            "it is one of three forms: 'instances', 'inputs', or the inputs of one row by name"
        )
    within = value[form]
    check_rows(within, max_rows)
    if form == "instances":
        names = sum(len(row) for row in within if isinstance(row, dict)) if isinstance(within, list) else 0
        return signature.instances(within, not words and strings == 1 + names), encode_instances
    names = len(within) if isinstance(within, dict) else 0
    return signature.columns(within, not words and strings == 1 + names), encode_columns


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


def _lists(text: bytes) -> int:
    """Lists and objects, and the same signs in strings."""
    return text.count(b"[") + text.count(b"{")


def _lists_outside(body: bytes, lists: float) -> int:
    """Lists and objects alone; where there are more strings than belong to so many, some in strings, too."""
    found = _lists(body)
    # of an object its names and values
    for number, string in enumerate(_STRING.finditer(body)):
        if number > 4 * lists + _FREE_LISTS:
            break
        found -= _lists(string[0])
    return found


def load(body: bytes, signatures: Iterable[Signature] = (), max_rows: float = math.inf) -> Any:
    """What JSON says, with NaN, Infinity and -Infinity.

    FrameTooLarge where it has more lists and objects than rows of any of these signatures.
    """
    if len(body) > _FREE_LISTS:
        # each of them costs as much as a dozen numbers
        lists = max((signature.lists_of_row for signature in signatures), default=math.inf) * max_rows
        if _lists(body) > lists + _FREE_LISTS and (found := _lists_outside(body, lists)) > lists + _FREE_LISTS:
            raise FrameTooLarge(
                f"the body has {found} lists and objects, and {max_rows} rows have {lists:.0f}: max_request_rows in"
                " uwsgi.ini; send them in several requests"
            )
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _load_slowly(body)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise DecodeError(f"the body holds {text[:32]}, which is more than any float; infinity is Infinity")
    return value


def check_rows(value: object, max_rows: float) -> None:
    """Raise FrameTooLarge for more rows than that, before any of them is looked at."""
    columns = value.values() if isinstance(value, dict) else [value]
    rows = max((len(column) for column in columns if isinstance(column, list)), default=0)
    limits.check_rows(rows, max_rows)


def _load_slowly(body: bytes) -> Any:
    if not body:
        raise DecodeError('the body is empty; expected JSON, for example {"instances": [row, …]}')
    # NaN and Infinity, or a body that is wrong: the standard library tells both, and where
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"the body is not UTF-8: {error.reason} at offset {error.start}") from None
    try:
        return json.loads(text, parse_float=_finite)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise DecodeError(f"the body is not JSON: {error.msg} at offset {offset}") from None
    except RecursionError:
        raise DecodeError("the body is nested too deep") from None
    except ValueError:
        limit = sys.get_int_max_str_digits()
        raise DecodeError(f"the body holds a number of more than {limit} digits, which cannot be read") from None
