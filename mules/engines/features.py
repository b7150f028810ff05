"""Features of a tabular model: one matrix of numbers, or a column for each name.

A model that was trained on a table with named columns takes them by name; any other, and one of very many columns,
takes a matrix.

Runs in:  mule.
Shapes:   the matrix is one input, (rows, features); a column is an input, (rows,).
Raises:   ModelError when model.toml contradicts the artifact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mules.engines.tensors import utf8
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import STRING, TensorSpec
from serving.task import Tensor, Tensors

# a frame counts inputs in one byte
MOST_COLUMNS = 255
MATRIX = "inputs"


class Features:
    """What one row is made of.

    specs: of the inputs; names: of the columns, empty where the model knows none.
    """

    def __init__(
        self,
        folder: ModelFolder,
        count: int,
        names: Sequence[str] | None,
        dtype: str = "float64",
        known: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        """known: columns of another dtype, or with a sample."""
        self.names = list(names or ())
        self._by_name = 0 < len(self.names) <= MOST_COLUMNS
        if self._by_name:
            self.specs = _columns(folder, {name: TensorSpec(name, dtype) for name in self.names} | dict(known or {}))
        else:
            # which dtype it was trained on, model.toml may know better than the artifact
            dtype = next((spec.dtype for spec in folder.declared("inputs") or () if spec.dtype != STRING), dtype)
            self.specs = folder.narrowed("inputs", (TensorSpec(MATRIX, dtype, (count,)),))

    def matrix(self, inputs: Tensors) -> Tensor:
        """All features, (rows, features), in the model's order."""
        return np.stack([inputs[name] for name in self.names], axis=1) if self._by_name else inputs[MATRIX]

    def columns(self, inputs: Tensors) -> dict[str, Any]:
        """The columns by name, in the model's order; strings are str."""
        if not self._by_name:
            return dict(zip(self.names, inputs[MATRIX].T, strict=True))
        return {name: utf8(name, own) if (own := inputs[name]).dtype.kind == "O" else own for name in self.names}


def _columns(folder: ModelFolder, specs: dict[str, TensorSpec]) -> tuple[TensorSpec, ...]:
    """A spec for each column; which dtype it has, model.toml may know better than the artifact."""
    for spec in folder.declared("inputs") or ():
        if spec.name not in specs:
            raise ModelError(f"model.toml [inputs] {spec.name!r} is unknown; the model has {', '.join(specs)}")
        if spec.shape:
            raise ModelError(f"model.toml [inputs] {spec.name} = {str(spec)!r}: a column has one value in a row")
        own = specs[spec.name]
        default = own.default if spec.dtype == own.dtype else None
        specs[spec.name] = replace(spec, default=default).with_sample(own.sample)
    return tuple(specs.values())
