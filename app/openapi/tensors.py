"""Tensors as JSON Schema has them, and examples of them that the model takes.

Runs in:  worker.
Shapes:   as in serving/signature.py: a spec's shape is that of one row.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app import forms
from app.openapi.operation import Example, Schema
from serving.model import ModelCard
from serving.signature import STRING, Signature, TensorSpec
from serving.task import Tensor, Tensors

_BYTES: Schema = {
    "type": "object",
    "description": "Bytes that are not UTF-8.",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["b64"],
    "additionalProperties": False,
}
_FORMATS = {"float32": "float", "float64": "double", "int32": "int32", "int64": "int64"}
# elements of a row
_FEW = 4096


@dataclass(frozen=True)
class Model:
    """The model as it may be told: samples, whether its own sample is for everybody."""

    card: ModelCard
    samples: bool
    max_rows: int

    def inputs(self, signature: Signature) -> Tensors:
        """One row that the model takes: its sample, or defaults and zeros."""
        return {spec.name: self._input(spec) for spec in signature.inputs}

    def _input(self, spec: TensorSpec) -> Tensor:
        for known in (spec if self.samples else replace(spec, sample=None), replace(spec, sample=None, default=None)):
            found = known.samples()
            # JSON has no NaN
            if found.dtype.kind != "f" or np.isfinite(found).all():
                break
        return found

    def outputs(self, signature: Signature) -> Tensors:
        """One row of zeros, in the form of an answer."""
        return {spec.name: replace(spec, sample=None, default=None).samples() for spec in signature.outputs}

    def example(self, value: Any, **headers: str) -> dict[str, Example]:
        """A body with the inputs, by what they are."""
        return {"sample" if self.samples else "zeros": Example(value, headers)}


def one(tensor: Tensor) -> Any:
    """The first row, for JSON."""
    return forms.values(tensor)[0]


def row(spec: TensorSpec) -> Schema:
    """One row of a tensor."""
    found = element(spec.dtype)
    for size in reversed(spec.shape):
        found = array(found, size)
        if math.prod(spec.shape) > _FEW:
            # a page that shows a value of its own making would write out all of it
            found.pop("minItems", None)
    return {**found, "description": str(spec)}


def array(items: Schema, size: int = -1) -> Schema:
    """A list of so many."""
    found: Schema = {"type": "array", "items": items}
    return found if size < 0 else {**found, "minItems": size, "maxItems": size}


def object_of(properties: dict[str, Schema], *optional: str) -> Schema:
    """An object that has all of these but for what is optional."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def element(dtype: str) -> Schema:
    """One element of a tensor."""
    if dtype == STRING:
        return {"anyOf": [{"type": "string"}, _BYTES]}
    if dtype == "bool":
        return {"type": "boolean"}
    found: Schema
    if dtype.startswith("float"):
        most = float(np.finfo(dtype).max)
        found = {"type": "number", "minimum": -most, "maximum": most}
    else:
        limit = np.iinfo(dtype)
        found = {"type": "integer", "minimum": limit.min, "maximum": limit.max}
    return {**found, "format": _FORMATS[dtype]} if dtype in _FORMATS else found


def by_name(specs: tuple[TensorSpec, ...]) -> Schema:
    """An object of one row: {name: value}."""
    return named({spec.name: row(spec) for spec in specs}, specs)


def named(properties: dict[str, Schema], specs: tuple[TensorSpec, ...]) -> Schema:
    """An object by the names of specs, of which those with a default may be left out."""
    optional = (spec.name for spec in specs if spec.default is not None)
    return {**object_of(properties, *optional), "additionalProperties": False}
