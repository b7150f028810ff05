"""SageMaker: `inference.py`, or `code/inference.py`, with the functions that its containers call.

    def model_fn(model_dir): ...               # the model; model_dir: the model folder
    def input_fn(body, content_type): ...      # of a request: what predict_fn takes
    def predict_fn(data, model): ...
    def output_fn(prediction, accept): ...     # the body of the answer, or that and its type

Each may take one argument more, the context: its system_properties hold the model_dir.

They do not tell what a request holds: model.toml does, [inputs].  Its values come as they would in a request,
{name: rows} in JSON; or with content_type = "text/csv" in model.toml as lines, the values of all inputs in the order of
[inputs], answered in JSON unless output_fn gives that type too; or one array with "application/x-npy".  What comes at
once in several requests is one call, of all their rows; with batched = false in model.toml each row is a call,
{name: value}.

Of the last three, one that is missing does what it does in the containers of scikit-learn and PyTorch: arrays (tensors
for a module of PyTorch) go to model.predict, or to the model itself.  An output that has no name is `prediction`.

Runs in:  mule.
"""

import base64
import csv
import inspect
import io
import itertools
import json
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from mules.engines.files import imported
from mules.engines.tensors import probe, tensor, texts, utf8
from serving.errors import EngineError, ModelError
from serving.model import ModelFolder
from serving.signature import Signature, TensorSpec
from serving.task import Tensor, Tensors

OUTPUT = "prediction"
JSON, NPY, CSV = "application/json", "application/x-npy", "text/csv"
_FILES = ("inference.py", "code/inference.py")


class SagemakerEngine:
    """A user's four functions behind the engine's face."""

    def __init__(self, folder: ModelFolder, module: ModuleType, inputs: tuple[TensorSpec, ...]) -> None:
        self._type = folder.options.get("content_type", JSON)
        # what they are asked for who have not said anything
        self._accept = JSON if self._type == CSV else self._type
        self._batched = folder.options.get("batched", True)
        self.max_batch_rows = None if self._batched else 1
        context = SimpleNamespace(system_properties={"model_dir": str(folder.path), "gpu_id": None})
        self._model = _with(context, module.model_fn, 1)(str(folder.path))
        self._predict_fn = _with(context, getattr(module, "predict_fn", _predict), 2)
        self._input_fn, self._output_fn = (
            _with(context, getattr(module, name), 2) if hasattr(module, name) else None
            for name in ("input_fn", "output_fn")
        )
        declared = folder.declared("outputs")
        self._outputs = [spec.name for spec in declared or ()]
        outputs = declared or probe(folder, inputs, self._call)
        self.signature = Signature(inputs, outputs)

    def predict(self, inputs: Tensors) -> Tensors:
        found = self._call(inputs)
        if missing := [spec.name for spec in self.signature.outputs if spec.name not in found]:
            raise EngineError(f"output_fn gave no {', '.join(missing)}")
        return {spec.name: tensor(found[spec.name], spec) for spec in self.signature.outputs}

    def _call(self, inputs: Tensors) -> dict[str, Any]:
        values: dict[str, Any] = {name: self._value(name, found) for name, found in inputs.items()}
        if self._batched:
            return self._answer(values)
        rows = len(next(iter(values.values())))
        parts = [self._answer({name: value[row] for name, value in values.items()}) for row in range(rows)]
        return {name: [part[name] for part in parts] for name in parts[0]}

    def _value(self, name: str, found: Tensor) -> Tensor:
        if found.dtype.kind != "O":
            return found.copy()
        return utf8(name, found) if self._type == CSV else texts(found)

    def _answer(self, values: dict[str, Any]) -> dict[str, Any]:
        if self._input_fn is not None:
            data = self._input_fn(self._body(values), self._type)
        else:
            values = {name: _native(value, self._model) for name, value in values.items()}
            data = values if len(values) > 1 else next(iter(values.values()))
        prediction = self._predict_fn(data, self._model)
        return self._named(_plain(prediction) if self._output_fn is None else self._read(prediction))

    def _body(self, values: dict[str, Any]) -> Any:
        if self._type == JSON:
            return json.dumps({name: np.asarray(value).tolist() for name, value in values.items()}, default=_encoded)
        if self._type == CSV:
            return _lines(list(values.values()))
        (value,) = values.values()
        stream = io.BytesIO()
        np.save(stream, value, allow_pickle=False)
        return stream.getvalue()

    def _read(self, prediction: Any) -> Any:
        assert self._output_fn is not None
        found, accept = self._output_fn(prediction, self._accept), self._accept
        if isinstance(found, tuple):
            found, accept = found
        if accept == NPY:
            return np.load(io.BytesIO(found), allow_pickle=False)
        if accept == CSV:
            return _columns(found)
        try:
            return json.loads(found, object_hook=_decoded)
        except (TypeError, ValueError) as error:
            raise EngineError(f"output_fn gave no {JSON}: {error}") from error

    def _named(self, found: Any) -> dict[str, Any]:
        if isinstance(found, dict) and (not self._outputs or set(self._outputs) <= found.keys()):
            return found
        return {self._outputs[0] if len(self._outputs) == 1 else OUTPUT: found}


def load(folder: ModelFolder, threads: int) -> SagemakerEngine:
    """Import inference.py and let it load its model."""
    file = next((folder.path / name for name in _FILES if (folder.path / name).is_file()), None)
    if file is None:
        raise ModelError(f"{folder.path} has no {' or '.join(_FILES)}")
    inputs = folder.declared("inputs")
    if inputs is None:
        raise ModelError(
            f"{file}: its functions do not tell what a request holds; write it into model.toml, for example:"
            ' [inputs] features = "float32[4]"'
        )
    _check_type(folder, inputs)
    module = imported(file)
    if not hasattr(module, "model_fn"):
        raise ModelError(f"{file} has no model_fn(model_dir), which loads the model")
    if hasattr(module, "transform_fn"):
        raise ModelError(f"{file} has a transform_fn; write it as input_fn, predict_fn and output_fn")
    return SagemakerEngine(folder, module, inputs)


def _check_type(folder: ModelFolder, inputs: tuple[TensorSpec, ...]) -> None:
    found = folder.options.get("content_type", JSON)
    if found not in (JSON, NPY, CSV):
        raise ModelError(f"model.toml says content_type = {found!r}; it is {JSON}, {CSV} or {NPY}")
    if found == CSV and folder.options.get("batched") is False:
        raise ModelError(
            "model.toml says batched = false, and a line is a row: max_batch_rows = 1 gives them one by one"
        )
    if found == NPY and (len(inputs) != 1 or inputs[0].dtype == "string"):
        raise ModelError(
            f"model.toml says content_type = {found!r}, which holds one array of numbers; [inputs] has others"
        )


def _with(context: object, function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A function of so many arguments, as the containers call it: with their context, where it has a place for that."""
    if len(inspect.signature(function).parameters) != count + 1:
        return function
    return lambda *arguments: function(*arguments, context)


def _lines(values: list[Tensor]) -> str:
    """A line for each row, of the values of all inputs."""
    table = [value.reshape(len(value), -1).tolist() for value in values]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([*itertools.chain(*row)] for row in zip(*table, strict=True))
    return stream.getvalue()


def _columns(lines: str | bytes) -> Any:
    """The rows of lines, of numbers if all of them are; one column is a value in each."""
    rows = [row for row in csv.reader(io.StringIO(lines if isinstance(lines, str) else lines.decode())) if row]
    try:
        found = np.array(rows, np.float64)
    except ValueError:
        found = np.array(rows, object)
    return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found


def _native(value: Any, model: Any) -> Any:
    """A tensor where the model is a module of PyTorch, which it has imported then."""
    torch = sys.modules.get("torch")
    return torch.from_numpy(np.asarray(value)) if torch and isinstance(model, torch.nn.Module) else value


def _encoded(value: bytes) -> dict[str, str]:
    # as in a request
    return {"b64": base64.b64encode(value).decode()}


def _decoded(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["b64"]) if list(value) == ["b64"] else value


def _predict(data: Any, model: Any) -> Any:
    if hasattr(model, "predict"):
        return model.predict(data)
    torch = sys.modules.get("torch")
    if not torch:
        return model(data)
    with torch.no_grad():
        return model(data)


def _plain(prediction: Any) -> Any:
    if isinstance(prediction, dict):
        return {name: _plain(value) for name, value in prediction.items()}
    return prediction.detach().cpu().numpy() if hasattr(prediction, "detach") else prediction
