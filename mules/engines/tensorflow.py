"""TensorFlow: a SavedModel with its signatures, or a Keras archive (`*.keras`).

Runs in:  mule; the one place where tensorflow is imported, after the fork.
Shapes:   the first axis of every input and output is the rows; a fixed first axis is the size of a batch.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# its start-up chatter is of no use to an operator; warnings and errors are
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import numpy as np
import tensorflow as tf

from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import NUMBERS, STRING, Signature, TensorSpec
from serving.task import Tensors

_DEFAULT_SIGNATURE = "serving_default"


class TensorFlowEngine:
    """One concrete function with named inputs and outputs."""

    def __init__(
        self, function: Callable[..., dict[str, Any]], names: dict[str, str], signature: Signature, rows: int | None
    ) -> None:
        self.signature = signature
        self.max_batch_rows = rows
        self._function = function
        self._names = names  # {our name: the argument's name}
        self._rows = rows

    def predict(self, inputs: Tensors) -> Tensors:
        rows = len(next(iter(inputs.values())))
        if self._rows is not None and rows < self._rows:
            # the graph takes batches of one size only
            inputs = {name: _padded(tensor, self._rows) for name, tensor in inputs.items()}
        found = self._function(**{self._names[name]: tf.constant(tensor) for name, tensor in inputs.items()})
        return {spec.name: found[spec.name].numpy()[:rows] for spec in self.signature.outputs}


def load(folder: ModelFolder, threads: int) -> TensorFlowEngine:
    """Load the SavedModel, or the one .keras file, of a folder."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    archives = sorted(folder.path.glob("*.keras"))
    if (folder.path / "saved_model.pb").is_file():
        return _load_saved_model(folder)
    if len(archives) != 1:
        raise ModelError(f"{folder.path} holds {len(archives)} .keras files; it needs one, or a saved_model.pb")
    return _load_keras(folder, archives[0])


def _load_saved_model(folder: ModelFolder) -> TensorFlowEngine:
    model = tf.saved_model.load(str(folder.path))
    name = folder.options.get("signature", _DEFAULT_SIGNATURE)
    if name not in model.signatures:
        raise ModelError(
            f"{folder.path} has no signature {name!r}; it has {', '.join(model.signatures) or 'none'}:"
            " set signature in model.toml, or export one with signatures={'serving_default': …}"
        )
    function = model.signatures[name]
    # the model owns the variables that the function reads
    function._muleteer_model = model
    arguments = function.structured_input_signature[1]
    return _engine(folder, function, arguments, function.structured_outputs)


def _load_keras(folder: ModelFolder, file: Path) -> TensorFlowEngine:
    model = tf.keras.models.load_model(file, compile=False)
    if not model.inputs:
        raise ModelError(f"{file} was never built, and so has no input shapes; save it after a first call")
    names = [spec.name for spec in folder.declared("inputs") or ()] or [tensor.name for tensor in model.inputs]
    outputs = [spec.name for spec in folder.declared("outputs") or ()] or list(model.output_names)
    if len(names) != len(model.inputs) or len(outputs) != len(model.outputs):
        raise ModelError(
            f"{file} has {len(model.inputs)} inputs and {len(model.outputs)} outputs;"
            f" model.toml names {len(names)} and {len(outputs)}"
        )
    arguments = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in zip(names, model.inputs, strict=True)
    }
    structure = model._inputs_struct

    def call(**tensors: Any) -> dict[str, Any]:
        packed = tf.nest.pack_sequence_as(structure, [tensors[name] for name in names])
        found = tf.nest.flatten(model(packed, training=False))
        return dict(zip(outputs, found, strict=True))

    function = tf.function(call).get_concrete_function(**arguments)
    function._muleteer_model = model
    return _engine(folder, function, arguments, function.structured_outputs)


def _engine(folder: ModelFolder, function: Any, arguments: dict[str, Any], outputs: dict[str, Any]) -> TensorFlowEngine:
    """The engine of a function, its signature checked against what model.toml declares."""
    found = Signature(_specs(folder, arguments), _specs(folder, outputs))
    signature = Signature(
        _declared(folder, "inputs", found.inputs),
        _declared(folder, "outputs", found.outputs),
    )
    sizes = {spec.shape[0] for spec in arguments.values()}
    if len(sizes) != 1:
        raise ModelError(f"{folder.path}: the first axes of the inputs differ: {sizes}; they must be the rows")
    return TensorFlowEngine(function, {name: name for name in arguments}, signature, sizes.pop())


def _specs(folder: ModelFolder, tensors: dict[str, Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, tensor in sorted(tensors.items()):
        dtype = STRING if tensor.dtype == tf.string else tensor.dtype.name
        if dtype != STRING and dtype not in NUMBERS:
            raise ModelError(f"{folder.path}: {name!r} has dtype {dtype}, which is not served")
        if tensor.shape.rank is None or tensor.shape.rank == 0:
            raise ModelError(f"{folder.path}: {name!r} has no axis for the rows; export it with one")
        specs.append(TensorSpec(name, dtype, tuple(-1 if size is None else size for size in tensor.shape[1:])))
    return tuple(specs)


def _declared(folder: ModelFolder, table: str, found: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """The specs that model.toml declares, which may only be narrower than what the model has."""
    declared = folder.declared(table)
    if declared is None:
        return found
    by_name = {spec.name: spec for spec in found}
    for spec in declared:
        own = by_name.get(spec.name)
        if own is None:
            raise ModelError(f"model.toml [{table}] {spec.name!r} is unknown; the model has {', '.join(by_name)}")
        if (
            spec.dtype != own.dtype
            or len(spec.shape) != len(own.shape)
            or any(want not in (-1, size) for want, size in zip(own.shape, spec.shape, strict=True))
        ):
            raise ModelError(f"model.toml [{table}] {spec.name} = {str(spec)!r}; the model has {own}")
    if table == "inputs" and len(declared) != len(found):
        raise ModelError(f"model.toml [inputs] must name all inputs: {', '.join(by_name)}")
    return declared


def _padded(tensor: Any, rows: int) -> Any:
    filling = np.repeat(tensor[:1], rows - len(tensor), axis=0)
    return np.concatenate([tensor, filling])
