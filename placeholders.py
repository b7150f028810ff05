"""What the placeholders of cases become for a model with such inputs.

Runs in:  the process that asks, as conform.py.
Shapes:   a value is of one row; tensors on the wire are (1, *one row).
"""

import csv
import io
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

DATATYPES = {
    "BOOL": "bool",
    "FP16": "float16",
    "BF16": "float32",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
} | {f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
_OF_NUMPY = {"b": "BOOL", "i": "INT64", "u": "INT64", "f": "FP32"}


@dataclass(frozen=True)
class Input:
    """One input, and a value of it in one row: that of the sample, or zeros."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    sample: Any = None
    # how many of its sizes may be any
    open: int = 0

    @classmethod
    def of(cls, name: str, value: Any, told: "Input | None" = None) -> "Input":
        """One of a sample, and of what a server tells of it."""
        found = np.array(value)
        datatype = told.datatype if told else _OF_NUMPY.get(found.dtype.kind, "BYTES")
        return cls(name, datatype, found.shape, value, told.open if told else 0)

    @property
    def value(self) -> Any:
        if self.sample is not None:
            return self.sample
        zero = {"BYTES": "", "BOOL": False}.get(self.datatype, 0.0 if "FP" in self.datatype else 0)
        return np.full(self.shape, zero, object).tolist()

    @property
    def flat(self) -> list[Any]:
        found: list[Any] = np.array(self.value, object).ravel().tolist()
        return found

    @property
    def raw(self) -> bytes:
        """As the binary tensor extension has it."""
        if self.datatype == "BYTES":
            texts = [str(item).encode() for item in self.flat]
            return b"".join(struct.pack("<I", len(text)) + text for text in texts)
        numbers = np.array(self.flat, np.dtype(DATATYPES[self.datatype]).newbyteorder("<"))
        # BF16 is the upper half of FP32
        return numbers.view("<u2")[1::2].tobytes() if self.datatype == "BF16" else numbers.tobytes()

    def as_dict(self, **more: Any) -> dict[str, Any]:
        """As the Open Inference Protocol has it, with its data."""
        return {"name": self.name, "datatype": self.datatype, "shape": [1, *self.shape], **more}


def filled(inputs: list[Input]) -> dict[str, Any]:
    """What placeholders for inputs are filled in with."""
    instance = {one.name: one.value for one in inputs}
    row = inputs[0].value if len(inputs) == 1 else instance
    raw = [one.raw for one in inputs]
    found = {
        "INPUT": inputs[0].name,
        "DATATYPE": inputs[0].datatype,
        "INSTANCE": instance,
        "INSTANCES": [instance, instance],
        "ROW": row,
        "ROWS": [row, row],
        "COLUMNS": {name: [value, value] for name, value in instance.items()},
        "MORE_COLUMNS": {name: [value] for name, value in instance.items()} | {"no such input": [1]},
        "INPUTS": [one.as_dict(data=one.flat) for one in inputs],
        "NESTED": [one.as_dict(data=[one.value]) for one in inputs],
        "BINARY": [
            one.as_dict(parameters={"binary_data_size": len(part)}) for one, part in zip(inputs, raw, strict=True)
        ],
        "BYTES": b"".join(raw),
    }
    if all(one.shape == () for one in inputs):
        names, cells = list(instance), list(instance.values())
        found |= {"NAMES": names, "CELLS": [cells, cells], "RECORDS": [instance, instance]}
        found |= {"CSV": _csv([cells, cells]), "CSV_NAMED": _csv([names, cells, cells])}
    elif len(inputs) == 1 and inputs[0].open < 2:
        found["CSV"] = _csv([inputs[0].flat] * 2)
    if len(inputs) == 1 and inputs[0].open < 2:
        found["RAW"] = raw[0]
        if not inputs[0].open:
            found["NO_RAW"] = b""
        if not inputs[0].open or np.dtype(DATATYPES[inputs[0].datatype]).itemsize > 1:
            found["MORE_RAW"] = raw[0] + b"x"
    if len(inputs) == 1 and inputs[0].datatype not in ("BYTES", "BF16"):
        array = io.BytesIO()
        np.save(array, np.array([row, row], DATATYPES[inputs[0].datatype]))
        found["NPY"] = array.getvalue()
    if find_spec("pyarrow") and "CSV_NAMED" in found:
        found["PARQUET"] = _parquet(inputs)
    return found


def _csv(rows: list[list[Any]]) -> bytes:
    found = io.StringIO()
    csv.writer(found, lineterminator="\n").writerows(rows)
    return found.getvalue().encode()


def _parquet(inputs: list[Input]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    found = io.BytesIO()
    parquet.write_table(pyarrow.table({one.name: [one.value, one.value] for one in inputs}), found)
    return found.getvalue()
