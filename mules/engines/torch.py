"""PyTorch: one `*.pt2` file of torch.export, or one `*.pt` or `*.ts` file of TorchScript.

An exported program tells its inputs; what it was given that is no tensor stays what it was.  TorchScript tells their
names alone, and model.toml [inputs] the rest.  One output is called `output`, several `output_0`, `output_1`, …, and
those of a dict by their keys.

Runs in:  mule; the one place where torch is imported, after the fork.
Shapes:   the first axis of every input and output is the rows; a fixed first axis is the size of a batch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument, InputKind

from mules.engines.files import reading
from mules.engines.tensors import batch_rows, padded, probe
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import NUMBERS, STRING, Signature, TensorSpec
from serving.task import Tensors

OUTPUT = "output"


class TorchEngine:
    """One module; call: its tensors by name in, whatever it returns out."""

    def __init__(
        self,
        folder: ModelFolder,
        call: Callable[[dict[str, Any]], Any],
        inputs: tuple[TensorSpec, ...],
        rows: int | None = None,
    ) -> None:
        self.max_batch_rows = rows
        self._call = call
        self.signature = Signature(inputs, probe(folder, inputs, self._predict, rows))
        self._outputs = [spec.name for spec in self.signature.outputs]

    def predict(self, inputs: Tensors) -> Tensors:
        found = padded(self._predict, inputs, self.max_batch_rows, self._outputs)
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    def _predict(self, inputs: Tensors) -> dict[str, Any]:
        with torch.inference_mode():
            # a copy: what comes from a frame cannot be written to
            return _outputs(self._call({name: torch.tensor(tensor) for name, tensor in inputs.items()}))


def load(folder: ModelFolder, threads: int) -> TorchEngine:
    """Load the one file of a folder."""
    torch.set_num_threads(threads)
    file = folder.artifact("*.pt2", "*.pt", "*.ts")
    return _load_exported(folder, file) if file.suffix == ".pt2" else _load_script(folder, file)


def _load_exported(folder: ModelFolder, file: Path) -> TorchEngine:
    with reading(file):
        program = torch.export.load(file)
        module = program.module()
    # of the arguments by place, and of those by name
    places, keywords = program.call_spec.in_spec.children()
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    given = [spec.arg for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    if len(given) != places.num_children + keywords.num_children:
        raise ModelError(f"{file} takes lists or dicts of tensors; export a module that takes each by itself")
    names = [*(one.name for one in given[: places.num_children]), *keywords.context]
    # those that are no tensors, and always as they were when it was exported
    constants = {name: one.value for name, one in zip(names, given, strict=True) if isinstance(one, ConstantArgument)}
    values = {
        name: nodes[one.name].meta["val"] for name, one in zip(names, given, strict=True) if name not in constants
    }
    inputs = tuple(_spec(file, *item) for item in values.items())
    rows = batch_rows(folder, [size if type(size := value.shape[0]) is int else None for value in values.values()])

    def call(tensors: dict[str, Any]) -> Any:
        found = [(constants | tensors)[name] for name in names]
        return module(
            *found[: places.num_children], **dict(zip(keywords.context, found[places.num_children :], strict=True))
        )

    return TorchEngine(folder, call, folder.narrowed("inputs", inputs), rows)


def _load_script(folder: ModelFolder, file: Path) -> TorchEngine:
    try:
        with reading(file):
            module = torch.jit.load(str(file), map_location="cpu").eval()
    except ModelError as error:
        raise ModelError(
            f"{error}; a TorchScript file is what torch.jit.script(model).save(file) writes, and better is a .pt2 of"
            " torch.export.save"
        ) from error
    names = [argument.name for argument in module.forward.schema.arguments[1:]]
    declared = folder.declared("inputs")
    if declared is None:
        lines = ", ".join(f'{name} = "float32[…]"' for name in names)
        raise ModelError(f"{file} does not tell the types of its inputs; model.toml has to: [inputs] {lines}")
    if sorted(spec.name for spec in declared) != sorted(names):
        raise ModelError(f"model.toml [inputs] must name all inputs of {file.name}: {', '.join(names)}")
    strings = [spec.name for spec in declared if spec.dtype == STRING]
    if strings:
        raise ModelError(f"model.toml [inputs] {strings[0]} is a string, and PyTorch has no such tensors")
    return TorchEngine(folder, lambda tensors: module(*(tensors[name] for name in names)), declared)


def _spec(file: Path, name: str, value: Any) -> TensorSpec:
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    if dtype not in NUMBERS:
        raise ModelError(f"{file}: input {name!r} has dtype {dtype}, which is not served")
    if not value.shape:
        raise ModelError(f"{file}: {name!r} has no axis for the rows; export it with one")
    return TensorSpec(name, dtype, tuple(size if type(size) is int else -1 for size in value.shape[1:]))


def _outputs(returned: Any) -> dict[str, Any]:
    if isinstance(returned, dict):
        return returned
    if isinstance(returned, list | tuple):
        return {f"{OUTPUT}_{place}": found for place, found in enumerate(returned)}
    return {OUTPUT: returned}
