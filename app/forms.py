"""The forms of an answer: named tensors into JSON, or into what else can be made of lists and objects.

    {"instances": [row, …]}      → {"predictions": [row, …]}     encode_instances
    {"inputs": {name: rows}}     → {"outputs": {name: rows}}     encode_columns
    {name: value, …}, one row    → {name: value, …}              encode_instance
    [row, …], bare               → [row, …]                      encode_rows
    row, bare                    → row                           encode_row

NaN, Infinity and -Infinity are written as Python's json module spells them.  Bytes that are not UTF-8 are
{"b64": "…"}.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
"""

import base64
import json
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import orjson

from serving.task import Tensor, Tensors

# what stands in JSON for an output
Told = Callable[[str, Tensor], Any]
# what makes bytes of that
Dump = Callable[[Any, Tensors], bytes]


class Encode(Protocol):
    """Outputs in one of the forms."""

    def __call__(self, outputs: Tensors, told: Told = ..., dump: Dump = ...) -> bytes: ...


def _told(name: str, tensor: Tensor) -> Any:
    return values(tensor)


def dump(value: Any, outputs: Tensors) -> bytes:
    """JSON in which tensors stand; outputs: those that there are."""
    told = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    # orjson writes NaN as null
    if b"null" not in told or all(tensor.dtype.kind != "f" or np.isfinite(tensor).all() for tensor in outputs.values()):
        return told
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_listed).encode()


def _listed(part: Tensor | np.generic) -> Any:
    # a tensor, or the one number that a row of it is; by way of text, so that a float32 keeps its short form
    return (part.astype(str).astype(float) if part.dtype.kind == "f" else part).tolist()


def encode_instances(outputs: Tensors, told: Told = _told, dump: Dump = dump) -> bytes:
    """As the answer to rows."""
    return dump({"predictions": rows(outputs, told)}, outputs)


def encode_columns(outputs: Tensors, told: Told = _told, dump: Dump = dump) -> bytes:
    """As the answer to columns."""
    return dump({"outputs": {name: told(name, tensor) for name, tensor in outputs.items()}}, outputs)


def encode_instance(outputs: Tensors, told: Told = _told, dump: Dump = dump) -> bytes:
    """As the answer to one row by its names."""
    return dump({name: told(name, tensor)[0] for name, tensor in outputs.items()}, outputs)


def encode_rows(outputs: Tensors, told: Told = _told, dump: Dump = dump) -> bytes:
    """As the answer to bare rows."""
    return dump(rows(outputs, told), outputs)


def encode_row(outputs: Tensors, told: Told = _told, dump: Dump = dump) -> bytes:
    """As the answer to one bare row."""
    return dump(rows(outputs, told)[0], outputs)


def rows(outputs: Tensors, told: Told = _told) -> Any:
    """The rows: bare values of one output, objects of several."""
    columns = [(name, told(name, tensor)) for name, tensor in outputs.items()]
    if len(columns) == 1:
        return columns[0][1]
    return [{name: column[row] for name, column in columns} for row in range(len(columns[0][1]))]


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


# by what stands before the rows of a request
ENCODERS: dict[str, Encode] = {"instances": encode_instances, "inputs": encode_columns}
