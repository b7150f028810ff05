"""ONNX: one `*.onnx` file, run by onnxruntime.

Runs in:  mule; the one place where onnxruntime is imported, after the fork.
Shapes:   the first axis of every input and output is the rows; a fixed first axis is the size of a batch.
"""

import logging
from typing import Any

import onnxruntime

from mules.engines.files import reading
from mules.engines.tensors import batch_rows, padded, served, tensor, utf8
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import STRING, Signature, TensorSpec
from serving.task import Tensors

# the types of ONNX, by their names in its specification
_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": STRING,
}
# the first of these that the installed package has; others compile for minutes, or ask a server of somebody's
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")

log = logging.getLogger("muleteer.onnx")


class OnnxEngine:
    """One session."""

    def __init__(self, session: Any, signature: Signature, rows: int | None) -> None:
        self.signature = signature
        self.max_batch_rows = rows
        self._session = session
        self._outputs = [spec.name for spec in signature.outputs]

    def predict(self, inputs: Tensors) -> Tensors:
        found = padded(self._call, inputs, self.max_batch_rows, self._outputs)
        return {
            spec.name: tensor(found[spec.name], spec) if spec.dtype == STRING else found[spec.name]
            for spec in self.signature.outputs
        }

    def _call(self, inputs: Tensors) -> dict[str, Any]:
        fed = {name: utf8(name, found) if found.dtype.kind == "O" else found for name, found in inputs.items()}
        return dict(zip(self._outputs, self._session.run(self._outputs, fed), strict=True))


def load(folder: ModelFolder, threads: int) -> OnnxEngine:
    """Open the one file of a folder."""
    file = folder.artifact("*.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # a thread that spins takes the core from the workers
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    there = onnxruntime.get_available_providers()
    with reading(file):
        session = onnxruntime.InferenceSession(
            str(file), options, providers=[name for name in _PROVIDERS if name in there]
        )
    inputs = tuple(_spec(folder, found) for found in session.get_inputs())
    outputs = {}
    for found in session.get_outputs():
        if found.type in _DTYPES:
            outputs[found.name] = found
        else:
            log.warning("output %r of %s is %s, no tensor, and is left out", found.name, file, found.type)
    if not outputs:
        raise ModelError(
            f"{file} has no output that is a tensor; a converter of scikit-learn has zipmap=False for that"
        )
    rows = batch_rows(
        folder, [size if isinstance(size := found.shape[0], int) else None for found in session.get_inputs()]
    )
    gives = served(folder, outputs, lambda name: _spec(folder, outputs[name]))
    signature = Signature(folder.narrowed("inputs", inputs), gives)
    return OnnxEngine(session, signature, rows)


def _spec(folder: ModelFolder, found: Any) -> TensorSpec:
    dtype = _DTYPES.get(found.type)
    if dtype is None:
        raise ModelError(f"{folder.path}: {found.name!r} is {found.type}, which is not served")
    if not found.shape:
        raise ModelError(f"{folder.path}: {found.name!r} has no axis for the rows; export it with one")
    # a name or nothing where any size goes
    return TensorSpec(found.name, dtype, tuple(size if isinstance(size, int) else -1 for size in found.shape[1:]))
