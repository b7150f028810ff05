"""Named inputs and outputs with dtype and shape, and the strict way from nested lists to tensors.

Nothing is coerced that would change a value: a string is not a number, a fraction not an integer, true not 1, and a
number that overflows its dtype is an error.  A fraction that a float cannot hold exactly is rounded, as everywhere.

Runs in:  both.
Shapes:   a spec's shape is that of one row; a tensor is (rows, *shape); -1 is any size.
Raises:   SignatureMismatch, with the name of the tensor, what was found and what was expected.
"""

import base64
import binascii
import itertools
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from serving.errors import SignatureMismatch
from serving.task import Tensor, Tensors

# what a signature is called where nobody says, as in a SavedModel
SERVING_DEFAULT = "serving_default"
STRING = "string"
NUMBERS = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
DTYPES = (*NUMBERS, STRING)
# a float64 holds every integer below this one; from here on a neighbour may have been meant
EXACT_INTEGER = 2**53
# that .flat of a numpy array goes through
_MOST_AXES = 32
# a list of more elements than this, and than it should have, is refused unread
_FLOOD = 4096
# numbers that struct refuses unless they are of their dtype
_FORMATS = {
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}
# up to so many elements are looked at together
_FEW = 4096
_SQUARES = {dtype: float(np.finfo(dtype).max) ** 2 / 2 for dtype in ("float16", "float32")} | {"float64": np.inf}
_SIZE = r"\s*(?:-1|[0-9]+)\s*"
_SPEC = re.compile(rf"\s*(\w+)\s*(?:\[({_SIZE}(?:,{_SIZE})*|\s*)\])?\s*")


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor: its dtype and the shape of one row."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    # what a request that leaves this input out means by that, a value of shape (); None: it must not.  NaN is a text,
    # for two of them are never the same
    default: bool | int | float | str | None = None
    # a value of one row that the model takes, as JSON has it; None: zeros will do
    sample: Any = field(default=None, compare=False)
    # whether its strings are bytes, which MLflow's clients write in base64
    binary: bool | None = None

    @classmethod
    def parse(cls, name: str, text: str) -> "TensorSpec":
        """The spec written as `float32[8, 8]`, `int64` or `string[-1]`; ValueError says what is wrong."""
        match = _SPEC.fullmatch(text)
        if not match:
            raise ValueError(f"{name} = {text!r}: write it as dtype[sizes of one row], for example float32[8, 8]")
        dtype, sizes = match.groups()
        if dtype not in DTYPES:
            raise ValueError(f"{name} = {text!r}: {dtype} is not one of {', '.join(DTYPES)}")
        return cls(name, dtype, tuple(int(size) for size in (sizes or "").split(",") if size.strip()))

    @cached_property
    def numpy(self) -> np.dtype[np.generic]:
        """Its dtype in a tensor."""
        return np.dtype(object if self.dtype == STRING else self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}" if self.shape else self.dtype

    def sizes(self, count: int) -> tuple[int, ...]:
        """The shape of one row of so many elements, if there is one; only one size may be any."""
        known = math.prod(size for size in self.shape if size >= 0)
        return tuple(count // max(1, known) if size < 0 else size for size in self.shape)

    def defaults(self, rows: int) -> Tensor:
        """A tensor of the default."""
        default = self.left_out.encode() if isinstance(self.left_out, str) else self.left_out
        return np.full((rows, *self.shape), default, self.numpy)

    @cached_property
    def left_out(self) -> bool | int | float | str | None:
        """The default as a request would have it."""
        return float(self.default) if isinstance(self.default, str) and self.dtype != STRING else self.default

    def with_sample(self, value: Any) -> "TensorSpec":
        """The same spec with a sample, if that fits."""
        try:
            if value is not None:
                self.array([value])
        except SignatureMismatch:
            value = None
        return replace(self, sample=value)

    def samples(self, rows: int = 1) -> Tensor:
        """A tensor of the sample or of the default, else of zeros or empty strings; a size that may be any is 1."""
        if self.sample is not None:
            return self.array([self.sample] * rows)
        if self.default is not None:
            return self.defaults(rows)
        shape = (rows, *(1 if size < 0 else size for size in self.shape))
        return np.full(shape, b"", object) if self.dtype == STRING else np.zeros(shape, self.dtype)

    def array(self, value: object, plain: bool = False) -> Tensor:
        """The tensor (rows, *shape) from nested lists of rows.

        plain: that no string, true or false stands anywhere in value, which saves the look at each element.
        """
        if plain and (packed := self.packed(value)) is not None:
            return packed
        if not isinstance(value, list):
            raise self._mismatch(f"expected a list of rows, got {_kind(value)}")
        if not value:
            raise self._mismatch("there are no rows")
        self._refuse_floods(value)
        tensor = self._strings(value) if self.dtype == STRING else self._numbers(value, plain)
        self.check(tensor)
        return tensor

    @cached_property
    def _row(self) -> struct.Struct | None:
        """One row as bytes, where that has one axis of a certain size, or none."""
        if self.dtype not in _FORMATS or len(self.shape) > 1 or (self.shape and self.shape[0] < 1):
            return None
        return struct.Struct(f"<{self.shape[0] if self.shape else 1}{_FORMATS[self.dtype]}")

    def packed(self, value: Any) -> Tensor | None:
        """The tensor of rows of numbers, without true or false, that need no second look; None where they do."""
        row = self._row
        try:
            if row is not None:
                rows = [row.pack(*item) for item in value] if self.shape else [row.pack(item) for item in value]
                return np.ndarray((len(rows), *self.shape), self.numpy, b"".join(rows)) if rows else None
            code = _FORMATS.get(self.dtype)
            if code is None or type(value) is not list:
                return None
            sizes = [len(value)]
            for size in self.shape:
                lengths = set(map(len, value))
                if len(lengths) != 1 or (size >= 0 and size not in lengths):
                    return None
                sizes += lengths
                value = list(itertools.chain.from_iterable(value))
            return np.ndarray(sizes, self.numpy, struct.pack(f"<{len(value)}{code}", *value)) if value else None
        except (struct.error, TypeError, OverflowError):
            return None

    def skeleton(self, rows: int) -> bytes:
        """The brackets and commas of nested lists of so many rows; of one row, without a list around it, for 0."""
        found = b""
        for size in reversed(self.shape):
            found = b"[" + b",".join([found] * size) + b"]"
        return b"[" + b",".join([found] * rows) + b"]" if rows else found

    def check(self, tensor: Tensor) -> None:
        """Raise SignatureMismatch unless the tensor is (rows, *shape)."""
        found = tensor.shape[1:]
        if found == self.shape:
            return
        if len(found) != len(self.shape) or any(0 <= want != got for want, got in zip(self.shape, found, strict=True)):
            raise self._mismatch(f"one row has shape {list(found)}")

    def cast(self, tensor: Tensor) -> Tensor:
        """The tensor (rows, *shape) from one of another dtype, as strictly as from lists."""
        if not len(tensor):
            raise self._mismatch("there are no rows")
        self.check(tensor)
        kind, own = tensor.dtype.kind, self.numpy.kind
        tensor = tensor.astype(tensor.dtype.newbyteorder("="), copy=False)
        if tensor.dtype == self.numpy:
            return tensor
        if own == "O" and kind in "SU":
            texts = np.empty(tensor.size, object)
            try:
                texts[:] = [item if kind == "S" else item.encode() for item in tensor.ravel().tolist()]
            except ValueError as error:
                raise self._mismatch("found a string that is not Unicode") from error
            return texts.reshape(tensor.shape)
        if own not in "iuf" or tensor.dtype.name not in NUMBERS or kind == "b":
            raise self._mismatch(f"found {STRING if kind in 'OSU' else tensor.dtype}")
        if own == "f":
            safe = np.can_cast(tensor.dtype, self.numpy)
            return tensor.astype(self.numpy) if safe else self._floats(tensor)
        if kind == "f":
            tensor = tensor.astype(np.float64)
            if (largest := float(np.abs(tensor).max(initial=0))) >= EXACT_INTEGER:
                raise self._mismatch(f"{largest} overflows it, or is not exact")
        return self._integers([], tensor)

    def _refuse_floods(self, value: list[Any]) -> None:
        # lists that are far too long, before each of their elements is looked at
        lists = value
        for axis, size in enumerate(self.shape):
            if axis:
                lists = [element for item in lists if isinstance(item, list) for element in item]
            if size < 0 or len(lists) > _FLOOD:
                return
            for item in lists:
                if isinstance(item, list) and len(item) > max(size, _FLOOD):
                    raise self._mismatch(f"a list of {len(item)} elements where {size} belong")

    def _numbers(self, value: list[Any], plain: bool) -> Tensor:
        if not plain:
            self._refuse_strings(value)
        try:
            found = np.array(value)
        except (ValueError, OverflowError) as error:
            raise self._complaint(value) from error
        if found.dtype.kind == "O" and self.dtype.startswith("float"):
            found = self._long_integers(value, found)
        if not plain and self.dtype != "bool" and any(type(item) is bool for item in _leaves(value)):
            raise self._complaint(value)
        if self.dtype == "bool":
            if found.dtype.kind != "b" and found.size:
                raise self._complaint(value)
            return found.astype(bool, copy=False)
        if found.dtype.kind not in "iuf":
            raise self._complaint(value)
        self.check(found)
        return self._floats(found) if self.dtype.startswith("float") else self._integers(value, found)

    def _refuse_strings(self, value: list[Any]) -> None:
        # numpy makes every element as long as the longest string: one of them, beside many numbers, takes all memory
        leaves: Iterable[Any] = value
        for _ in self.shape:
            leaves = itertools.chain.from_iterable(leaves)
        try:
            # the fastest look at each of them
            sum(leaves)
        except (TypeError, OverflowError):
            # no number, or an integer past all floats beside a float
            self._inspect(value)

    def _long_integers(self, value: list[Any], found: Tensor) -> Tensor:
        # integers past 64 bits come as Python objects, and still are numbers for a float
        if not all(type(item) in (int, float) for item in _leaves(value)):
            raise self._complaint(value)
        try:
            return found.astype(np.float64)
        except OverflowError as error:
            raise self._mismatch("a number overflows it") from error

    def _floats(self, found: Tensor) -> Tensor:
        # quicker than a look at each: no element is larger than the root of the sum of all squares
        flat: Any = found
        if found.dtype.kind == "f" and found.size <= _FEW and np.vdot(flat, flat) < _SQUARES[self.dtype]:
            return found.astype(self.dtype)
        with np.errstate(over="ignore"):
            tensor = found.astype(self.dtype)
        if self.dtype != "float64":
            overflown = np.isinf(tensor) & np.isfinite(found)
            if overflown.any():
                raise self._mismatch(f"{found[overflown][0]} overflows it")
        return tensor

    def _integers(self, value: list[Any], found: Tensor) -> Tensor:
        if found.size == 0:
            return found.astype(self.dtype)
        if found.dtype.kind == "f":
            fractions = ~(np.isfinite(found) & (np.trunc(found) == found))
            if fractions.any():
                raise self._mismatch(f"{found[fractions][0]} is not an integer")
            if np.abs(found).max() >= EXACT_INTEGER:
                # 2**63 beside 1, or any beside 1.0, makes numpy round them: once more, as they were sent
                for item in _leaves(value):
                    if type(item) is float and abs(item) >= EXACT_INTEGER:
                        raise self._mismatch(f"{item:.17g} overflows it, or is not exact")
                found = np.array(value, object)
        limit = np.iinfo(self.dtype)
        for extreme in (int(found.min()), int(found.max())):
            if not limit.min <= extreme <= limit.max:
                raise self._mismatch(f"{str(extreme)[:32]} overflows it")
        return found.astype(self.dtype)

    def _strings(self, value: list[Any]) -> Tensor:
        leaves = np.empty(_shape(value, self), object)
        try:
            for index, item in enumerate(_leaves(value)):
                leaves.flat[index] = _text(item)
        except (ValueError, IndexError) as error:
            raise self._complaint(value) from error
        return leaves

    def _complaint(self, value: list[Any]) -> SignatureMismatch:
        # the slow way, taken once it is known that something is wrong
        try:
            self._inspect(value)
        except SignatureMismatch as error:
            return error
        return self._mismatch("a number overflows it")

    def _inspect(self, value: list[Any]) -> None:
        """Raise SignatureMismatch for what is wrong with the nesting or with the kind of an element."""
        shape = _shape(value, self)
        for item in _leaves(value):
            if self.dtype == STRING:
                try:
                    _text(item)
                except ValueError as error:
                    raise self._mismatch(str(error)) from error
            elif type(item) not in ((bool,) if self.dtype == "bool" else (int, float)):
                raise self._mismatch(f"found {_kind(item)}")
        if len(shape) != len(self.shape) + 1:
            raise self._mismatch(f"one row has shape {list(shape[1:])}")

    def _mismatch(self, found: str) -> SignatureMismatch:
        return SignatureMismatch(f"input {self.name!r}: {found}; one row is {self}")


@dataclass(frozen=True)
class Signature:
    """What a model takes and what it gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @cached_property
    def only(self) -> TensorSpec | None:
        """The input of a model that has one."""
        return self.inputs[0] if len(self.inputs) == 1 else None

    @cached_property
    def main(self) -> TensorSpec | None:
        """The input of a model that has one, or has defaults for all others."""
        needed = [spec for spec in self.inputs if spec.default is None]
        return needed[0] if len(needed) == 1 else self.only

    def __str__(self) -> str:
        sides = (", ".join(f"{spec.name} {spec}" for spec in side) for side in (self.inputs, self.outputs))
        return " → ".join(sides)

    @cached_property
    def lists_of_row(self) -> float:
        """Of how many lists and objects one row is made in JSON, at the most."""
        # each string may be an object, {"b64": …}
        axes = [spec.shape[:axis] for spec in self.inputs for axis in range(len(spec.shape) + (spec.dtype == STRING))]
        return math.inf if any(-1 in sizes for sizes in axes) else 1 + sum(map(math.prod, axes))

    def samples(self, rows: int = 1) -> Tensors:
        """Inputs for a warm-up: samples, defaults or zeros."""
        return {spec.name: spec.samples(rows) for spec in self.inputs}

    def columns(self, value: object, plain: bool = False) -> Tensors:
        """Inputs from {name: rows}, or from bare rows when the model has one input."""
        if len(self.inputs) == 1 and not isinstance(value, dict):
            value = {self.inputs[0].name: value}
        self._check_names(value, "'inputs'")
        assert isinstance(value, dict)
        inputs = {spec.name: spec.array(value[spec.name], plain) for spec in self.inputs if spec.name in value}
        if not inputs:
            raise SignatureMismatch("'inputs': it is empty, and does not tell how many rows there are")
        return self.completed(inputs)

    def completed(self, inputs: Tensors) -> Tensors:
        """Inputs in their order, with the defaults of those that are left out."""
        self._check_names(inputs, "the body")
        rows = self.rows(inputs)
        return {spec.name: inputs[spec.name] if spec.name in inputs else spec.defaults(rows) for spec in self.inputs}

    def instances(self, value: object, plain: bool = False) -> Tensors:
        """Inputs from a list of rows: objects by input name, or bare values when the model has one input."""
        if not isinstance(value, list):
            raise SignatureMismatch(f"'instances': expected a list of rows, got {_kind(value)}")
        if not value:
            raise SignatureMismatch("'instances': there are no rows")
        if len(self.inputs) == 1 and not self._is_instance(value[0]):
            return {self.inputs[0].name: self.inputs[0].array(value, plain)}
        for row, item in enumerate(value):
            self._check_names(item, f"'instances'[{row}]")
        return {
            spec.name: spec.array([item.get(spec.name, spec.left_out) for item in value], plain) for spec in self.inputs
        }

    def instance(self, value: Mapping[str, object], plain: bool = False) -> Tensors:
        """Inputs of one row from {name: value}."""
        self._check_names(value, "the body")
        return {spec.name: spec.array([value.get(spec.name, spec.left_out)], plain) for spec in self.inputs}

    def rows(self, inputs: Tensors) -> int:
        """How many rows the inputs have, all the same."""
        if len(inputs) == 1:
            return len(next(iter(inputs.values())))
        counts = [len(tensor) for tensor in inputs.values()]
        if counts.count(counts[0]) != len(counts):
            told = dict(zip(inputs, counts, strict=True))
            raise SignatureMismatch(f"inputs differ in their number of rows: {told}")
        return counts[0]

    def _is_instance(self, item: object) -> bool:
        # {"b64": …} is a value, unless that is what the input is called
        return isinstance(item, dict) and (list(item) != ["b64"] or self.inputs[0].name == "b64")

    def _check_names(self, value: object, where: str) -> None:
        names = self._names
        if isinstance(value, dict) and value.keys() == names.keys():
            return
        if not isinstance(value, Mapping):
            raise SignatureMismatch(f"{where}: expected an object with {_names(names)}, got {_kind(value)}")
        if missing := [spec.name for spec in self.inputs if spec.default is None and spec.name not in value]:
            raise SignatureMismatch(f"{where}: {_names(missing)} is missing; the model takes {self._taken()}")
        if any(name not in names for name in value):
            unknown = [str(name)[:64] for name in value if name not in names]
            raise SignatureMismatch(f"{where}: {_names(unknown[:5])} is unknown; the model takes {self._taken()}")

    @cached_property
    def _names(self) -> dict[str, None]:
        return dict.fromkeys(spec.name for spec in self.inputs)

    def _taken(self) -> str:
        return ", ".join(f"{spec.name!r} ({spec})" for spec in self.inputs)


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _leaves(value: list[Any]) -> Iterator[Any]:
    for item in value:
        if isinstance(item, list):
            yield from _leaves(item)
        else:
            yield item


def _shape(value: list[Any], spec: TensorSpec) -> tuple[int, ...]:
    """The shape of nested lists; SignatureMismatch if they are ragged or deeper than any tensor."""
    shape = [len(value)]
    level = value
    while level and all(isinstance(item, list) for item in level):
        sizes = {len(item) for item in level}
        if len(sizes) > 1:
            raise spec._mismatch(f"ragged lists, of {min(sizes)} and of {max(sizes)} elements")
        shape.append(sizes.pop())
        if len(shape) > _MOST_AXES:
            raise spec._mismatch(f"lists nested deeper than {len(spec.shape) + 1} with the rows")
        level = [element for item in level for element in item]
    if any(isinstance(item, list) for item in level):
        raise spec._mismatch("ragged lists, a list beside a value")
    return tuple(shape)


def _text(item: object) -> bytes:
    """The UTF-8 bytes of a string, the bytes of {"b64": …}, or bytes as they are."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        try:
            return item.encode()
        except UnicodeEncodeError as error:
            raise ValueError("found a string with half a surrogate pair, which is not UTF-8") from error
    if isinstance(item, dict) and list(item) == ["b64"] and isinstance(item["b64"], str):
        try:
            return base64.b64decode(item["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("found {'b64': …} that is not base64") from error
    raise ValueError(f"found {_kind(item)}")


def _kind(value: object) -> str:
    """A value in the words of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the string {value if len(value) <= 32 else value[:32] + '…'!r}"
        case int() | float():
            return f"the number {str(value)[:32]}"
        case list():
            return "a list"
        case dict():
            return "an object"
    return type(value).__name__
