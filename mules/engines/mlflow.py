"""MLflow: a model folder with its `MLmodel` file, by its pyfunc flavour.

Its signature tells the inputs: columns, each a value in a row, or tensors.  Its params are inputs that have defaults: a
request may leave them out, as it may a column of floats that is not required.  Rows with other params are predicted by
themselves.  The input example, where there is one, warms it up.

Runs in:  mule; the one place where mlflow is imported, after the fork.
Raises:   ModelError where the signature is missing, or has what is not served.
"""

import base64
import itertools
import logging
import os
import warnings
from collections.abc import Iterable
from typing import Any

# it tells its makers of each model that is loaded, unless it is told not to
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

with warnings.catch_warnings():
    # of its own type hints
    warnings.simplefilter("ignore")
    import mlflow.pyfunc
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from mules.engines.files import reading
from mules.engines.tensors import batch_rows, padded, probe, tensor, texts, utf8
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import NUMBERS, STRING, Signature, TensorSpec
from serving.task import Tensor, Tensors

# MLflow's names of the types of columns and params
_DTYPES = {
    "boolean": "bool",
    "integer": "int32",
    "long": "int64",
    "float": "float32",
    "double": "float64",
    "string": STRING,
    "binary": STRING,
}
# what an input or output is called that has no name
TENSOR = "inputs"
OUTPUT = "predict"

log = logging.getLogger("muleteer.mlflow")


class MlflowEngine:
    """One pyfunc model."""

    def __init__(self, folder: ModelFolder, model: Any) -> None:
        schema = model.metadata.signature
        if schema is None or schema.inputs is None:
            raise ModelError(
                f"{folder.path}: MLmodel has no signature; log the model with"
                " signature=infer_signature(inputs, outputs)"
            )
        self._model = model
        self._is_table = not schema.inputs.is_tensor_spec()
        self._own = {_name(one, place, schema.inputs): one for place, one in enumerate(schema.inputs)}
        self._keys = [place if one.name is None else one.name for place, one in enumerate(schema.inputs)]
        example = _Example(model.input_example)
        make = _column if self._is_table else _tensor
        own = [make(folder, name, one).with_sample(example.value(name)) for name, one in self._own.items()]
        params = [spec for one in schema.params or () if (spec := _param(folder, one))]
        self._params = [spec.name for spec in params]
        self._output = _output_name(schema.outputs)
        sizes = [None] if self._is_table else [None if one.shape[0] < 0 else one.shape[0] for one in schema.inputs]
        self.max_batch_rows = batch_rows(folder, sizes)
        inputs = folder.narrowed("inputs", (*own, *params))
        outputs = probe(folder, inputs, self._call, self.max_batch_rows)
        self.signature = Signature(inputs, folder.narrowed("outputs", outputs))

    def predict(self, inputs: Tensors) -> Tensors:
        found = self._call(inputs)
        return {spec.name: tensor(found[spec.name], spec) for spec in self.signature.outputs}

    def _call(self, inputs: Tensors) -> dict[str, Any]:
        if not self._params:
            return self._call_with(inputs, {})
        parts = [
            self._call_with({name: found[rows] for name, found in inputs.items()}, params)
            for rows, params in _runs({name: inputs[name] for name in self._params})
        ]
        return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}

    def _call_with(self, inputs: Tensors, params: dict[str, Any]) -> dict[str, Any]:
        rows = len(next(iter(inputs.values())))
        inputs = padded(inputs, self.max_batch_rows)
        own = {name: _values(name, inputs[name], one) for name, one in self._own.items()}
        fed: Any = own
        if self._is_table:
            fed = pd.DataFrame(dict(zip(self._keys, own.values(), strict=True)))
        elif not self._model.metadata.signature.inputs.has_input_names():
            (fed,) = own.values()
        found = self._model.predict(fed, params=params) if params else self._model.predict(fed)
        return {name: value[:rows] for name, value in _outputs(found, self._output).items()}


def load(folder: ModelFolder, threads: int) -> MlflowEngine:
    """Load the folder by its pyfunc flavour."""
    threadpool_limits(threads)
    with reading(folder.path / "MLmodel"):
        model = mlflow.pyfunc.load_model(str(folder.path))
    return MlflowEngine(folder, model)


class _Example:
    """The first row of an input example, whatever form that has."""

    def __init__(self, example: Any) -> None:
        self._row: dict[str, Any] = {}
        if isinstance(example, pd.DataFrame) and len(example):
            self._row = {str(name): example[name].iloc[0] for name in example.columns}
        elif isinstance(example, dict):
            self._row = {str(name): np.asarray(found)[0] for name, found in example.items() if np.ndim(found)}
        elif isinstance(example, np.ndarray) and example.ndim:
            self._row = {TENSOR: example[0]}

    def value(self, name: str) -> Any:
        """The value of an input, as JSON has it; None where there is none."""
        found = self._row.get(name)
        if isinstance(found, bytes):
            return {"b64": base64.b64encode(found).decode()}
        return found.tolist() if isinstance(found, np.ndarray | np.generic) else found


def _name(one: Any, place: int, schema: Any) -> str:
    if one.name is not None:
        return str(one.name)
    return TENSOR if len(schema.inputs) == 1 else str(place)


def _column(folder: ModelFolder, name: str, one: Any) -> TensorSpec:
    kind = getattr(one.type, "name", str(one.type))
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise ModelError(f"{folder.path}: the column {name!r} is {kind}, which is not served")
    spec = TensorSpec(name, dtype, binary=True if kind == "binary" else None)
    if one.required:
        return spec
    if dtype.startswith("float"):
        # what pandas has for what is missing
        return TensorSpec(name, dtype, (), "NaN")
    log.warning("%s: the column %r is not required, and asked for: there is no %s for nothing", folder.path, name, kind)
    return spec


def _tensor(folder: ModelFolder, name: str, one: Any) -> TensorSpec:
    dtype = STRING if one.type.kind in "OSU" else one.type.name
    if dtype not in (*NUMBERS, STRING) or not one.shape:
        raise ModelError(f"{folder.path}: the tensor {name!r} is {one.type}{list(one.shape)}, which is not served")
    return TensorSpec(name, dtype, tuple(int(size) for size in one.shape[1:]))


def _param(folder: ModelFolder, one: Any) -> TensorSpec | None:
    dtype = _DTYPES.get(getattr(one.dtype, "name", ""))
    if dtype is None or one.shape is not None or one.default is None:
        log.warning("%s: the param %r is no plain value, and keeps its default", folder.path, one.name)
        return None
    return TensorSpec(one.name, dtype, (), "NaN" if one.default != one.default else one.default)


def _runs(params: Tensors) -> Iterable[tuple[slice, dict[str, Any]]]:
    """The rows, one after the other, that have the same params."""
    values = [texts(found).tolist() if found.dtype.kind == "O" else found.tolist() for found in params.values()]
    start = 0
    for same, rows in itertools.groupby(zip(*values, strict=True)):
        end = start + len(list(rows))
        yield slice(start, end), dict(zip(params, same, strict=True))
        start = end


def _values(name: str, found: Tensor, one: Any) -> Tensor:
    if found.dtype.kind != "O" or getattr(one.type, "name", "") == "binary":
        return found
    decoded = utf8(name, found)
    # of tensors numpy's own type of strings is asked for
    return decoded.astype(np.str_) if getattr(one.type, "kind", "O") == "U" else decoded


def _output_name(schema: Any) -> str:
    """What the signature calls the only output."""
    names = [one.name for one in schema or () if one.name is not None]
    return str(names[0]) if len(names) == 1 else OUTPUT


def _outputs(found: Any, name: str) -> dict[str, Any]:
    if isinstance(found, pd.DataFrame):
        return {str(column): found[column].to_numpy() for column in found.columns}
    if isinstance(found, dict):
        return {str(key): np.asarray(value) for key, value in found.items()}
    return {name: found.to_numpy() if isinstance(found, pd.Series) else np.asarray(found)}
