"""Tables: which columns are of which input, and CSV.

A model with one input of numbers, [n] or more axes, takes n columns by their position, whatever they are called; any
other takes a column for each input, by its name where the table has names.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Raises:   DecodeError, FrameTooLarge, SignatureMismatch.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from app.limits import check_rows
from serving.errors import ClientError, DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import EXACT_INTEGER, STRING, Signature, TensorSpec
from serving.task import Tensor, Tensors

# of a cell in Python
_CELL_BYTES = 32
# of a line that may name columns
_MOST_HEADER_BYTES = 1 << 16
# a cell that begins with a quote; one that does not end goes on to the end, so that nothing is read twice
_QUOTED = re.compile(rb'(?<![^,\r\n])"[^"]*+(?:""[^"]*+)*+(?:"|\Z)')


def wide(signature: Signature) -> TensorSpec | None:
    """The input that takes all columns by their position."""
    return signature.main if signature.main is not None and signature.main.shape else None


def columns(signature: Signature) -> int:
    """How many columns a table has at the most, negative where that is open."""
    spec = wide(signature)
    return len(signature.inputs) if spec is None else math.prod(spec.shape)


def places(names: Sequence[str] | None, count: int, signature: Signature, others: bool = False) -> dict[str, list[int]]:
    """The columns of each input: of a table with these names, or without names so many.

    others: whether there may be columns that no input takes.
    """
    if names is not None and len({*names}) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise DecodeError(f"the table has two columns {twice[:64]!r}")
    spec = wide(signature)
    if spec is not None and (names is None or list(names) != [spec.name]):
        size = math.prod(spec.shape)
        if -1 not in spec.shape and count != size:
            raise SignatureMismatch(f"the table has {count} columns and input {spec.name!r} takes {size}: {spec}")
        return {spec.name: list(range(count))}
    specs = signature.inputs
    if names is None:
        if count != len(specs):
            # those with a default may be left out together
            specs = tuple(spec for spec in specs if spec.default is None)
        if count != len(specs):
            raise SignatureMismatch(f"the table has {count} columns without names, and the model takes {signature}")
        return {spec.name: [index] for index, spec in enumerate(specs)}
    known = [spec.name for spec in specs]
    if not others and (unknown := [name[:64] for name in names if name not in known]):
        told = ", ".join(map(repr, unknown[:5]))
        raise SignatureMismatch(f"column {told} is unknown; the model takes {signature}")
    return {name: [index] for index, name in enumerate(names) if name in known}


def shaped(spec: TensorSpec, flat: Tensor) -> Tensor:
    """The tensor (rows, *shape) of one (rows, columns)."""
    rows, columns = flat.shape
    sizes = spec.sizes(columns)
    if spec.shape.count(-1) > 1 or math.prod(sizes) != columns:
        told = "a column" if columns == 1 else f"{columns} columns"
        raise SignatureMismatch(f"input {spec.name!r} is {spec}, and {told} of a table cannot be that")
    return flat.reshape(rows, *sizes)


def decode(
    body: bytes,
    signature: Signature,
    max_rows: int,
    max_bytes: int,
    header: bool | None = None,
    others: bool = False,
) -> Tensors:
    """Inputs from CSV; header: whether the first line names the columns, None to find out; others as in places."""
    _check_separators(body, signature, max_rows, max_bytes)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecodeError(f"the body is not UTF-8: {error.reason} at offset {error.start}") from None
    names: list[str] | None = None
    rows: list[list[str]] = []
    lines: list[int] = []
    for line, cells in _lines(text):
        if not rows and names is None and (_is_header(cells, signature) if header is None else header):
            names = cells
            continue
        first = names or (rows[0] if rows else cells)
        if len(cells) != len(first):
            other = "the header" if names else f"line {lines[0]}"
            raise DecodeError(f"line {line} has {len(cells)} columns and {other} {len(first)}")
        rows.append(cells)
        lines.append(line)
        check_rows(len(rows), max_rows)
    if not rows:
        raise DecodeError("the table has no rows" if names else "the body is empty; expected CSV")
    found = {}
    specs = {spec.name: spec for spec in signature.inputs}
    for name, columns in places(names, len(rows[0]), signature, others).items():
        flat = _column(specs[name], rows, lines, columns)
        found[name] = specs[name].cast(shaped(specs[name], flat.reshape(len(rows), len(columns))))
    return signature.completed(found)


def has_header(body: bytes, signature: Signature) -> bool:
    """Whether the first line of CSV names the columns."""
    _, cells = next(_lines(body[:_MOST_HEADER_BYTES].decode("utf-8-sig", "replace")), (0, []))
    return _is_header(cells, signature)


def _check_separators(body: bytes, signature: Signature, max_rows: int, max_bytes: int) -> None:
    """Raise where there are more cells than could be taken, before there is an object for each."""
    wanted = columns(signature)
    most = max_bytes // _CELL_BYTES if wanted < 0 else (wanted + 1) * (max_rows + 1)
    end = b"\n" if body.count(b"\n") > body.count(b"\r") else b"\r"
    cells = body.count(b",") + body.count(end)
    if cells > most:
        # but for what stands in a cell that begins with a quote; each of them is a cell, too
        for number, quoted in enumerate(_QUOTED.finditer(body)):
            if number > most:
                break
            cells -= quoted[0].count(b",") + quoted[0].count(end)
    if cells > most:
        raise FrameTooLarge(
            f"the body has {cells} cells, and may have {most} for this model: max_request_rows and max_body_bytes in"
            " uwsgi.ini; send large tensors as npy"
        )


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise DecodeError(f"line {reader.line_num} is not CSV: {error}") from None


def _is_header(cells: list[str], signature: Signature) -> bool:
    """Whether they name columns: the inputs, or, of a model that takes numbers alone, anything but numbers."""
    if all(spec.name in cells for spec in signature.inputs if spec.default is None):
        return True
    if any(spec.dtype in (STRING, "bool") for spec in signature.inputs):
        return False
    for sign in ";\t":
        if len(cells) == 1 and all(map(_is_number, cells[0].split(sign))) and sign in cells[0]:
            raise DecodeError(
                f"the first line is {cells[0][:32]!r}, parted by {sign!r}; it is commas that part columns"
            )
    return not any(_is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True


def _column(spec: TensorSpec, rows: list[list[str]], lines: list[int], columns: list[int]) -> Tensor:
    """The cells of an input, row by row."""
    whole = len(columns) == len(rows[0]) and len(columns) > 1
    cells = list(chain.from_iterable(rows)) if whole else [row[column] for row in rows for column in columns]
    if spec.numpy.kind == "f" and (found := _floats(cells)) is not None:
        return found
    read = _READERS[spec.numpy.kind]
    values: list[Any] = []
    try:
        for cell in cells:
            values.append(read(cell))
    except ValueError:
        row, column = divmod(len(values), len(columns))
        raise SignatureMismatch(
            f"line {lines[row]} has {cell[:32]!r} in column {columns[column] + 1}; input {spec.name!r} is {spec}"
        ) from None
    if spec.numpy.kind == "f":
        return np.array(values, np.float64)
    return TensorSpec(spec.name, spec.dtype).array(values)


def _floats(cells: list[str]) -> Tensor | None:
    """Numbers that need no second look; None where they do."""
    try:
        found = np.array(list(map(float, cells)))
    except ValueError:
        return None
    return None if np.isinf(found).any() or "_" in ",".join(cells) else found


def _float(cell: str) -> float:
    # an empty cell is no number; Python's digits may be parted by _; what overflows is no infinity
    value = float(cell) if cell else math.nan
    if "_" in cell or (math.isinf(value) and "n" not in cell.lower()):
        raise ValueError
    return value


def _integer(cell: str) -> int:
    try:
        return int(cell) if "_" not in cell else int("")
    except ValueError:
        value = float(cell)
        if "_" in cell or not value.is_integer() or abs(value) >= EXACT_INTEGER:
            raise
        return int(value)


def _bool(cell: str) -> bool:
    return bool(("false", "true").index(cell.lower()))


_READERS: dict[str, Any] = {"f": _float, "i": _integer, "u": _integer, "b": _bool, "O": str}


def encode(outputs: Tensors, header: bool = True) -> bytes:
    """Outputs as CSV: a column for each, or for each element of one with more axes, name_0, name_1, …"""
    names: list[str] = []
    columns: list[list[Any]] = []
    for name, tensor in outputs.items():
        flat = tensor.reshape(len(tensor), -1)
        names += [name] if tensor.ndim == 1 else [f"{name}_{index}" for index in range(flat.shape[1])]
        columns += [_cells(name, column) for column in flat.T]
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    if header:
        writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    return file.getvalue().encode()


def _cells(name: str, column: Tensor) -> list[Any]:
    match column.dtype.kind:
        case "O":
            try:
                return [item.decode() for item in column.tolist()]
            except UnicodeDecodeError:
                raise ClientError(f"output {name!r} is not UTF-8, and so no CSV: ask for JSON") from None
        case "b":
            return ["true" if item else "false" for item in column.tolist()]
        case "f":
            # so that a float32 keeps its short form
            return list(column.astype(str).tolist())
    return list(column.tolist())
