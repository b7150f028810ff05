"""TensorFlow Lite: one `*.tflite` file, run by LiteRT; by its signature, or by its tensors' names where it has none.

Runs in:  mule; the one place where ai_edge_litert is imported, after the fork.
Shapes:   the first axis of every input and output is the rows; a fixed first axis is the size of a batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from mules.engines.files import reading
from mules.engines.tensors import batch_rows, padded, served
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import NUMBERS, SERVING_DEFAULT, Signature, TensorSpec
from serving.task import Tensors


class TfliteEngine:
    """One interpreter; call: its tensors by name in, and those of its outputs out."""

    def __init__(self, call: Callable[..., dict[str, Any]], signature: Signature, rows: int | None) -> None:
        self.signature = signature
        self.max_batch_rows = rows
        self._call = call
        self._outputs = [spec.name for spec in signature.outputs]

    def predict(self, inputs: Tensors) -> Tensors:
        found = padded(lambda tensors: self._call(**tensors), inputs, self.max_batch_rows, self._outputs)
        # a copy: the interpreter uses its memory again
        return {name: np.array(tensor) for name, tensor in found.items()}


def load(folder: ModelFolder, threads: int) -> TfliteEngine:
    """Open the one file of a folder."""
    file = folder.artifact("*.tflite")
    with reading(file):
        interpreter = Interpreter(model_path=str(file), num_threads=threads)
    signatures = interpreter.get_signature_list()
    name = folder.options.get("signature", SERVING_DEFAULT)
    if name in signatures:
        call = interpreter.get_signature_runner(name)
        inputs, outputs = call.get_input_details(), call.get_output_details()
    elif signatures:
        raise ModelError(
            f"{file} has no signature {name!r}; it has {', '.join(signatures)}: set signature in model.toml"
        )
    else:
        call = _Plain(interpreter)
        inputs, outputs = call.inputs, call.outputs
    takes = folder.narrowed("inputs", tuple(_spec(folder, *item) for item in inputs.items()))
    gives = served(folder, outputs, lambda name: _spec(folder, name, outputs[name]))
    rows = batch_rows(folder, [None if (size := _shape(found)[0]) < 0 else size for found in inputs.values()])
    return TfliteEngine(call, Signature(takes, gives), rows)


class _Plain:
    """An interpreter without signatures."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self.inputs = {found["name"]: found for found in interpreter.get_input_details()}
        self.outputs = {found["name"]: found for found in interpreter.get_output_details()}

    def __call__(self, **tensors: Any) -> dict[str, Any]:
        for name, tensor in tensors.items():
            self._interpreter.resize_tensor_input(self.inputs[name]["index"], tensor.shape)
        self._interpreter.allocate_tensors()
        for name, tensor in tensors.items():
            self._interpreter.set_tensor(self.inputs[name]["index"], tensor)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(found["index"]) for name, found in self.outputs.items()}


def _shape(found: dict[str, Any]) -> tuple[int, ...]:
    # with -1 where any size goes
    shape = found.get("shape_signature")
    return tuple(int(size) for size in (found["shape"] if shape is None or not len(shape) else shape))


def _spec(folder: ModelFolder, name: str, found: dict[str, Any]) -> TensorSpec:
    dtype = np.dtype(found["dtype"]).name
    if dtype not in NUMBERS:
        raise ModelError(f"{folder.path}: {name!r} has dtype {dtype}, which is not served")
    shape = _shape(found)
    if not shape:
        raise ModelError(f"{folder.path}: {name!r} has no axis for the rows; export it with one")
    return TensorSpec(name, dtype, shape[1:])
