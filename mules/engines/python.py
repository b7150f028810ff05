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

from collections.abc import Mapping
from typing import Any

import numpy as np

from mules.engines.files import imported
from mules.engines.tensors import tensor, texts
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
            self._tensors(self._model.predict({name: _row(value, row) for name, value in values.items()}), rows=False)
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
        return {spec.name: tensor(outputs[spec.name], spec, len(spec.shape) + rows) for spec in self.signature.outputs}


def load(folder: ModelFolder, threads: int) -> PythonEngine:
    """Import model.py and construct its Model."""
    file = folder.path / "model.py"
    if not file.is_file():
        raise ModelError(f"{folder.path} has no model.py")
    module = imported(file)
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
    if spec.dtype == STRING:
        return texts(tensor)
    return tensor if tensor.flags.writeable else tensor.copy()


def _row(tensor: Tensor, row: int) -> Any:
    item = tensor[row]
    return item.item() if isinstance(item, np.generic) else item
