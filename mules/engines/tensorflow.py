"""TensorFlow: a SavedModel with its signatures, or a Keras archive (`*.keras`).

Runs in:  mule; the one place where tensorflow is imported, after the fork.
Shapes:   the first axis of every input and output is the rows; a fixed first axis is the size of a batch.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# its start-up chatter is of no use to an operator; warnings and errors are
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import numpy as np
import tensorflow as tf

from mules.engines.files import reading
from mules.engines.tensors import batch_rows, padded, served
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import NUMBERS, SERVING_DEFAULT, STRING, Signature, TensorSpec
from serving.task import Tensors

log = logging.getLogger("muleteer.tensorflow")


class TensorFlowEngine:
    """One concrete function with named inputs and outputs."""

    def __init__(self, function: Callable[..., dict[str, Any]], signature: Signature, rows: int | None) -> None:
        self.signature = signature
        self.max_batch_rows = rows
        self.signature_name = SERVING_DEFAULT
        self.others: dict[str, TensorFlowEngine] = {}
        self._function = function
        self._outputs = [spec.name for spec in signature.outputs]

    def predict(self, inputs: Tensors) -> Tensors:
        found = padded(self._call, inputs, self.max_batch_rows, self._outputs)
        return {name: tensor.numpy() for name, tensor in found.items()}

    def _call(self, inputs: Tensors) -> dict[str, Any]:
        return self._function(**{name: tf.constant(tensor) for name, tensor in inputs.items()})


def load(folder: ModelFolder, threads: int) -> TensorFlowEngine:
    """Load the SavedModel, or the one .keras file, of a folder."""
    _use_threads(threads)
    archives = sorted(folder.path.glob("*.keras"))
    if (folder.path / "saved_model.pb").is_file():
        return _load_saved_model(folder)
    if len(archives) != 1:
        raise ModelError(f"{folder.path} holds {len(archives)} .keras files; it needs one, or a saved_model.pb")
    return _load_keras(folder, archives[0])


def _use_threads(threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        # operations run one after the other, each on all of its threads
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        # only before its first use; never so in a mule, which loads one model, but in a notebook that loads a second
        log.warning("TensorFlow is in use already and keeps its threads, not %d", threads)


def _load_saved_model(folder: ModelFolder) -> TensorFlowEngine:
    with reading(folder.path / "saved_model.pb"):
        model = tf.saved_model.load(str(folder.path))
    names = list(model.signatures)
    name = folder.options.get("signature", names[0] if len(names) == 1 else SERVING_DEFAULT)
    if name not in names:
        raise ModelError(
            f"{folder.path} has no signature {name!r}; it has {', '.join(names) or 'none'}:"
            " set signature in model.toml, or export one with signatures={'serving_default': …}"
        )
    for function in model.signatures.values():
        # the model owns the variables that the function reads
        function._muleteer_model = model
    engine = _of_signature(folder, model.signatures[name], folder.sample)
    engine.signature_name = name
    # inputs and outputs in model.toml, and the sample, are of the default
    bare = replace(folder, options={})

    def sample_of(signature: Signature) -> Tensors:
        same = signature.inputs == engine.signature.inputs
        return folder.sample(engine.signature) if same else signature.samples()

    for other in sorted({*names} - {name}):
        try:
            engine.others[other] = _of_signature(bare, model.signatures[other], sample_of)
        except ModelError as error:
            log.warning("the signature %r is not served: %s", other, error)
    return engine


def _of_signature(folder: ModelFolder, function: Any, sample_of: Callable[[Signature], Tensors]) -> TensorFlowEngine:
    engine = _engine(folder, function, function.structured_input_signature[1], function.structured_outputs)
    return _shortened(engine, function, sample_of) or engine


def _shortened(
    engine: TensorFlowEngine, function: Any, sample_of: Callable[[Signature], Tensors]
) -> TensorFlowEngine | None:
    """The same engine on the graph behind a signature's function; None where TensorFlow does not have it so.

    The function checks each argument once more, which takes a third of the time of a small network.
    """

    def call(**tensors: Any) -> dict[str, Any]:
        found: dict[str, Any] = graph.call_preflattened([tensors[name] for name in names] + captured)
        return found

    # as the function does
    call._muleteer_model = function._muleteer_model  # type: ignore[attr-defined]
    try:
        graph, captured = function._inference_function, list(function.captured_inputs)
        # in the graph's order
        names = [tensor.op.name for tensor in function.inputs[: len(engine.signature.inputs)]]
        if set(names) != {spec.name for spec in engine.signature.inputs}:
            return None
        shortened = TensorFlowEngine(call, engine.signature, engine.max_batch_rows)
        sample = sample_of(engine.signature)
        expected, found = engine.predict(sample), shortened.predict(sample)
        same = all(
            np.array_equal(tensor, found[name], equal_nan=tensor.dtype.kind == "f") for name, tensor in expected.items()
        )
    except Exception as error:
        log.info("the function itself is called, not the graph behind it: %s: %s", type(error).__name__, error)
        return None
    return shortened if same else None


def _load_keras(folder: ModelFolder, file: Path) -> TensorFlowEngine:
    with reading(file):
        archive = tf.keras.models.load_model(file, compile=False)
    if not getattr(archive, "inputs", None):
        raise ModelError(
            f"{file} does not say what its inputs are (it is a class of its own, or was never built);"
            " serve what model.export(folder) writes, a SavedModel"
        )
    # whatever structure it has, Sequential, dicts or lists: one flat list in, one out, in the archive's order
    model = tf.keras.Model(archive.inputs, archive.outputs)
    names = _names(folder, "inputs", [tensor.name for tensor in model.inputs])
    outputs = _names(folder, "outputs", _output_names(archive, model))
    if len(names) != len(model.inputs) or len(outputs) != len(model.outputs):
        raise ModelError(
            f"{file} has {len(model.inputs)} inputs and {len(model.outputs)} outputs;"
            f" model.toml names {len(names)} and {len(outputs)}"
        )
    if len(set(outputs)) < len(outputs):
        raise ModelError(f"{file} has outputs of one name ({', '.join(outputs)}); name them in model.toml [outputs]")
    arguments = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in zip(names, model.inputs, strict=True)
    }

    # one dict, for a name need not be one that Python would take for an argument
    def call(tensors: dict[str, Any]) -> dict[str, Any]:
        found = tf.nest.flatten(model([tensors[name] for name in names], training=False))
        return dict(zip(outputs, found, strict=True))

    function = tf.function(call).get_concrete_function(arguments)
    function._muleteer_model = model
    return _engine(folder, lambda **tensors: function(tensors), arguments, function.structured_outputs)


def _names(folder: ModelFolder, table: str, own: list[str]) -> list[str]:
    """The names that model.toml gives in the archive's order; its own names it may list in any, or leave out."""
    names = [spec.name for spec in folder.declared(table) or ()]
    return own if set(names) <= set(own) else names


def _output_names(archive: Any, model: Any) -> list[str]:
    """The keys of a dict of outputs, which Keras sorts; else the layers that they come from."""
    structure = getattr(archive, "output", None)
    if isinstance(structure, dict) and len(structure) == len(model.outputs):
        return sorted(structure)
    return list(model.output_names)


def _engine(folder: ModelFolder, function: Any, arguments: dict[str, Any], outputs: dict[str, Any]) -> TensorFlowEngine:
    """The engine of a function, its signature checked against what model.toml declares."""
    takes = folder.narrowed("inputs", tuple(_spec(folder, *item) for item in sorted(arguments.items())))
    gives = served(folder, sorted(outputs), lambda name: _spec(folder, name, outputs[name]))
    rows = batch_rows(folder, [spec.shape[0] for spec in arguments.values()])
    return TensorFlowEngine(function, Signature(takes, gives), rows)


def _spec(folder: ModelFolder, name: str, tensor: Any) -> TensorSpec:
    dtype = STRING if tensor.dtype == tf.string else tensor.dtype.name
    if dtype != STRING and dtype not in NUMBERS:
        raise ModelError(f"{folder.path}: {name!r} has dtype {dtype}, which is not served")
    if tensor.shape.rank is None or tensor.shape.rank == 0:
        raise ModelError(f"{folder.path}: {name!r} has no axis for the rows; export it with one")
    return TensorSpec(name, dtype, tuple(-1 if size is None else size for size in tensor.shape[1:]))
