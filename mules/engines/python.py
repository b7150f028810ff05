"""Any Python class: a folder with `model.py` and in it a class `Model`.

    class Model:
        inputs = {"text": "string"}         # or [inputs] and [outputs] in model.toml
        outputs = {"res": "string"}
        batched = False                     # predict takes one row; default True: all rows at once

        def __init__(self, path): ...       # path: the folder that model.py is in
        def predict(self, inputs): ...      # {name: value} -> {name: value}

With batched, values are arrays (rows, *shape); else arrays of one row's shape, and plain numbers and str for shape ().
Strings are str where they are UTF-8, bytes otherwise.  The arrays may be written to.

Runs in:  mule.
"""

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np

from serving.errors import EngineError, ModelError
from serving.model import ModelFolder, specs
from serving.signature import STRING, Signature, TensorSpec
from serving.task import Tensor, Tensors


class PythonEngine:
    """A user's Model behind the engine's face."""

    def __init__(self, model: Any, signature: Signature) -> None:
        self.signature = signature
        self._model = model
        self._batched = bool(getattr(model, "batched", True))
        self.max_batch_rows = None if self._batched else 1

    def predict(self, inputs: Tensors) -> Tensors:
        values = {spec.name: _owned(inputs[spec.name], spec) for spec in self.signature.inputs}
        if self._batched:
            return self._tensors(self._model.predict(values), rows=True)
        rows = len(next(iter(values.values())))
        # tensor[row] is an array, or a plain value where one row is a scalar
        parts = [
            self._tensors(self._model.predict({name: _row(tensor, row) for name, tensor in values.items()}), rows=False)
            for row in range(rows)
        ]
        try:
            return {spec.name: np.stack([part[spec.name] for part in parts]) for spec in self.signature.outputs}
        except ValueError as error:
            raise EngineError(f"the rows of one request have outputs of different sizes: {error}") from error

    def _tensors(self, outputs: Any, rows: bool) -> Tensors:
        if not isinstance(outputs, Mapping):
            raise EngineError(f"Model.predict returned {type(outputs).__name__}; expected a dict of its outputs")
        missing = [spec.name for spec in self.signature.outputs if spec.name not in outputs]
        if missing:
            raise EngineError(f"Model.predict returned no {', '.join(missing)}")
        return {spec.name: _tensor(outputs[spec.name], spec, len(spec.shape) + rows) for spec in self.signature.outputs}


def load(folder: ModelFolder, threads: int) -> PythonEngine:
    """Import model.py and construct its Model."""
    file = folder.path / "model.py"
    if not file.is_file():
        raise ModelError(f"{folder.path} has no model.py")
    spec = importlib.util.spec_from_file_location("model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # modules beside model.py can be imported, and classes of it pickled
    sys.modules["model"] = module
    sys.path.insert(0, str(folder.path.resolve()))
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "Model", None), type):
        raise ModelError(f"{file} has no class Model")
    inputs = folder.declared("inputs") or specs(getattr(module.Model, "inputs", None), f"{file} Model.inputs")
    outputs = folder.declared("outputs") or specs(getattr(module.Model, "outputs", None), f"{file} Model.outputs")
    if inputs is None or outputs is None:
        side = "outputs" if inputs else "inputs"
        raise ModelError(
            f'{file}: the {side} are not declared; write {side} = {{"name": "float32[8, 8]"}} in class Model,'
            f' or [{side}] name = "float32[8, 8]" in model.toml'
        )
    return PythonEngine(module.Model(str(folder.path)), Signature(inputs, outputs))


def _owned(tensor: Tensor, spec: TensorSpec) -> Tensor:
    if spec.dtype != STRING:
        return tensor if tensor.flags.writeable else tensor.copy()
    texts = np.empty(tensor.shape, object)
    for index, item in enumerate(cast("Iterable[bytes]", tensor.flat)):
        try:
            texts.flat[index] = item.decode()
        except UnicodeDecodeError:
            texts.flat[index] = item
    return texts


def _row(tensor: Tensor, row: int) -> Any:
    item = tensor[row]
    return item.item() if isinstance(item, np.generic) else item


def _tensor(value: Any, spec: TensorSpec, axes: int) -> Tensor:
    """What the model returned, as a tensor of its spec."""
    try:
        if spec.dtype != STRING:
            return _numbers(value, spec)
        tensor = np.asarray(value, object)
    except (TypeError, ValueError, OverflowError) as error:
        raise EngineError(f"output {spec.name!r}: {error}; expected {spec}") from error
    if tensor.ndim != axes:
        raise EngineError(f"output {spec.name!r} has {tensor.ndim} axes and should have {axes}: {spec}")
    texts = np.empty(tensor.shape, object)
    for index, item in enumerate(tensor.flat):
        if not isinstance(item, str | bytes):
            raise EngineError(f"output {spec.name!r}: {type(item).__name__} found; expected str or bytes")
        texts.flat[index] = item if isinstance(item, bytes) else item.encode()
    return texts


def _numbers(value: Any, spec: TensorSpec) -> Tensor:
    """A copy, for the model may use its array again; no value is changed but by the rounding of a float."""
    found = np.asarray(value)
    if found.dtype.kind not in "biuf":
        raise EngineError(f"output {spec.name!r}: {found.dtype} found; expected {spec}")
    with np.errstate(invalid="ignore"):
        # not from found: numpy makes floats of 1 beside 2**63
        tensor = np.array(value, spec.dtype)
    if tensor.dtype.kind != "f" and tensor.dtype != found.dtype and not (tensor == found).all():
        raise EngineError(f"output {spec.name!r}: {found.dtype} found with values that {spec} cannot hold")
    return tensor
