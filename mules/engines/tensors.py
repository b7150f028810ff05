"""What a library takes and gives, as tensors: strings, dtypes, batches of one size.

Runs in:  mule.
Shapes:   tensors are (rows, *spec.shape).
Raises:   EngineError where a model gave something else than its spec; ModelError where no spec can be made of it;
          SignatureMismatch where a request has what the model cannot take.
"""

from collections.abc import Callable, Collection, Iterable
from functools import reduce
from typing import Any, cast

import numpy as np

from mules.engines.files import first_line
from serving.errors import EngineError, ModelError, SignatureMismatch
from serving.model import ModelFolder
from serving.signature import NUMBERS, STRING, Signature, TensorSpec
from serving.task import Tensor, Tensors


def texts(tensor: Tensor) -> Tensor:
    """A string tensor with str where it is UTF-8, and bytes otherwise."""
    found = np.empty(tensor.shape, object)
    for index, item in enumerate(cast("Iterable[bytes]", tensor.flat)):
        try:
            found.flat[index] = item.decode()
        except UnicodeDecodeError:
            found.flat[index] = item
    return found


def utf8(name: str, found: Tensor) -> Tensor:
    """The strings of an input for a library that has no others."""
    decoded = texts(found)
    if any(isinstance(item, bytes) for item in decoded.flat):
        # it would take "b'…'" for them
        raise SignatureMismatch(f"input {name!r}: found bytes that are not UTF-8, and the model's strings are")
    return decoded


def tensor(value: Any, spec: TensorSpec, axes: int | None = None) -> Tensor:
    """What a model returned for an output, as a tensor of so many axes; default: of the spec's, and the rows.

    A copy, for the model may use its array again; no value is changed but by the rounding of a float.
    """
    try:
        if spec.dtype != STRING:
            return _numbers(value, spec)
        found = np.asarray(value, object)
    except (TypeError, ValueError, OverflowError) as error:
        raise EngineError(f"output {spec.name!r}: {error}; expected {spec}") from error
    axes = len(spec.shape) + 1 if axes is None else axes
    if found.ndim != axes:
        raise EngineError(f"output {spec.name!r} has {found.ndim} axes and should have {axes}: {spec}")
    encoded = np.empty(found.shape, object)
    for index, item in enumerate(found.flat):
        if not isinstance(item, str | bytes):
            raise EngineError(f"output {spec.name!r}: {type(item).__name__} found; expected str or bytes")
        encoded.flat[index] = item if isinstance(item, bytes) else item.encode()
    return encoded


def _numbers(value: Any, spec: TensorSpec) -> Tensor:
    found = np.asarray(value)
    if found.dtype.kind not in "biuf":
        raise EngineError(f"output {spec.name!r}: {found.dtype} found; expected {spec}")
    with np.errstate(invalid="ignore"):
        # not from found: numpy makes floats of 1 beside 2**63
        tensor = np.array(value, spec.dtype)
    if tensor.dtype.kind != "f" and tensor.dtype != found.dtype and not (tensor == found).all():
        raise EngineError(f"output {spec.name!r}: {found.dtype} found with values that {spec} cannot hold")
    return tensor


def probe(
    folder: ModelFolder,
    inputs: tuple[TensorSpec, ...],
    predict: Callable[[Tensors], dict[str, Any]],
    max_rows: int | None = None,
) -> tuple[TensorSpec, ...]:
    """The outputs of a model whose artifact does not tell them: what it gives for its sample, for one and three rows.

    A size that differs between the two is any.  One that takes batches of one size only is asked for that many rows.
    """
    sample = folder.sample(Signature(inputs, ()))
    try:
        found = {
            rows: predict({name: tensor.repeat(rows, axis=0) for name, tensor in sample.items()})
            for rows in ((1, 3) if max_rows is None else (max_rows,))
        }
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        advice = "put one row that it takes into a sample.json beside it"
        of = "on its sample" if folder.sample_file() else f"without a sample: {advice}"
        told = f"{type(error).__name__} ({first_line(error)})"
        raise ModelError(f"{folder.path}: the model raised {told} {of}") from error
    names = next(iter(found.values()))
    return served(
        folder, names, lambda name: reduce(_joined, (_spec_of(name, one[name], rows) for rows, one in found.items()))
    )


def served(folder: ModelFolder, names: Iterable[str], spec: Callable[[str], TensorSpec]) -> tuple[TensorSpec, ...]:
    """The outputs of a model: those that model.toml declares, or all; what it leaves out is not looked at.

    spec: what one is.
    """
    names, declared = list(names), folder.declared("outputs")
    for one in declared or ():
        if one.name not in names:
            raise ModelError(f"model.toml [outputs] {one.name!r} is unknown; the model has {', '.join(names)}")
    wanted = names if declared is None else [one.name for one in declared]
    return folder.narrowed("outputs", tuple(map(spec, wanted)))


def _spec_of(name: str, value: Any, rows: int) -> TensorSpec:
    """The spec of what a model gave for so many rows; ModelError when it is no tensor of so many."""
    advice = "leave it out of [outputs] in model.toml"
    try:
        found = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ModelError(f"output {name!r} is no tensor that is served, {first_line(error)}: {advice}") from error
    dtype = found.dtype.name
    if found.dtype.kind in "OSU" and all(isinstance(item, str | bytes) for item in found.flat):
        dtype = STRING
    if dtype not in (*NUMBERS, STRING):
        raise ModelError(f"output {name!r} has dtype {found.dtype}, which is not served: {advice}")
    if found.ndim == 0 or len(found) != rows:
        raise ModelError(
            f"output {name!r} has shape {list(found.shape)} for {rows} rows, and needs a row for each: {advice}"
        )
    return TensorSpec(name, dtype, found.shape[1:])


def _joined(one: TensorSpec, other: TensorSpec) -> TensorSpec:
    if len(one.shape) != len(other.shape) or one.dtype != other.dtype:
        raise ModelError(f"output {one.name!r} is {one} for one row and {other} for more")
    shape = tuple(size if size == more else -1 for size, more in zip(one.shape, other.shape, strict=True))
    return TensorSpec(one.name, one.dtype, shape)


def batch_rows(folder: ModelFolder, sizes: Collection[int | None]) -> int | None:
    """The size of a batch, from the first axes of all inputs; None for any."""
    found = set(sizes)
    if len(found) > 1:
        told = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ModelError(f"{folder.path}: the first axes of the inputs differ: {told}; they must be the rows")
    return found.pop()


def padded(
    call: Callable[[Tensors], dict[str, Any]], inputs: Tensors, size: int | None, names: Collection[str]
) -> dict[str, Any]:
    """The outputs of these names, a row for each; of a model that may take batches of one size only.

    That gets its first row once more, as often as it wants, and what comes of it is cut off again.
    """
    rows = len(next(iter(inputs.values())))
    missing = max((size or 0) - rows, 0)
    if missing:
        inputs = {name: np.concatenate([own, np.repeat(own[:1], missing, axis=0)]) for name, own in inputs.items()}
    found = call(inputs)
    for name in names:
        if np.ndim(found[name]) == 0 or len(found[name]) != rows + missing:
            raise EngineError(f"output {name!r} has shape {list(np.shape(found[name]))} for {rows + missing} rows")
    return {name: found[name][:rows] if missing else found[name] for name in names}
