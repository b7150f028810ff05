"""Tensors as they lie in memory: npy, npz, and raw bytes with headers that tell their shape.

Nothing is unpickled.  The first axis is the rows, of an array too that holds one.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Raises:   DecodeError, FrameTooLarge, SignatureMismatch.
Source:   numpy.org/neps/nep-0001-npy-format.html.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from app.limits import TEXT_BYTES, check_bytes, check_rows, check_shape
from serving.errors import DecodeError, SignatureMismatch
from serving.signature import NUMBERS, STRING, Signature, TensorSpec
from serving.task import Tensor, Tensors

_MAGIC = b"\x93NUMPY"
# a header is shorter, however many axes there are
_MOST_HEADER_BYTES = 1024
# nothing here is given back once it was taken, so that no text is read in many ways
_ENTRY = r"""\s*+['"](\w++)['"]\s*+:\s*+(?:['"]([^'"]*+)['"]|(True|False)|\(([0-9,\sL]*+)\))\s*+,?+"""
_ENTRIES = re.compile(_ENTRY)
_HEADER = re.compile(rf"\s*+\{{(?:{_ENTRY})*\s*+\}}\s*+")
_SHAPE = re.compile(r"\s*+(?:\d{1,30}+L?+\s*+(?:,\s*+\d{1,30}+L?+\s*+){0,31}+,?+\s*+)?+", re.ASCII)
_SIZES = re.compile(r"\s*+[\[(]?+\s*+(\d{1,18}+(?:\s*+,\s*+\d{1,18}+){0,31}+)\s*+,?+\s*+[\])]?+\s*+", re.ASCII)
# how many members of an archive are looked at: of their heads alone there could be as many as the body has room for
_MOST_MEMBERS = 64
_MEMBER = b"PK\1\2"
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


def _main(signature: Signature, what: str) -> TensorSpec:
    """The input that a body of one tensor is for."""
    if signature.main is None:
        raise SignatureMismatch(f"{what} is one tensor, and the model takes {signature}")
    return signature.main


def npy(body: bytes, signature: Signature, max_rows: int, max_bytes: float = math.inf) -> Tensors:
    """The only input, from NumPy's file of one array."""
    spec = _main(signature, "an npy file")
    return signature.completed({spec.name: _cast(spec, _array(body, max_rows), max_bytes)})


def npz(body: bytes, signature: Signature, max_rows: int, max_bytes: int) -> Tensors:
    """Inputs by their names, from NumPy's archive of several arrays."""
    found: Tensors = {}
    specs = {spec.name: spec for spec in signature.inputs}
    left = max_bytes
    if body.count(_MEMBER) > _MOST_MEMBERS + len(specs):
        raise DecodeError(f"the npz archive has more than {_MOST_MEMBERS + len(specs)} members")
    try:
        archive = zipfile.ZipFile(io.BytesIO(body))
        members = archive.infolist()
    except (*_UNREADABLE, NotImplementedError) as error:
        raise DecodeError(f"the body is no npz archive: {error}") from None
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise DecodeError(f"the npz archive has {name[:64]!r} twice")
        if name not in specs:
            raise SignatureMismatch(f"array {name[:64]!r} is unknown; the model takes {signature}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DecodeError(f"array {name!r} is compressed in another way than by deflate")
        left -= member.file_size
        check_bytes(max_bytes - left, max_bytes, "the npz archive")
        try:
            # never more than it says
            with archive.open(member) as stream:
                file = stream.read(member.file_size)
        except _UNREADABLE as error:
            raise DecodeError(f"array {name!r} cannot be unpacked: {error}") from None
        found[name] = _cast(specs[name], _array(file, max_rows), max_bytes)
    return signature.completed(found)


def raw(
    body: bytes,
    signature: Signature,
    max_rows: int,
    shape: str | None = None,
    dtype: str | None = None,
    max_bytes: float = math.inf,
) -> Tensors:
    """The only input, from its bytes row by row, little-endian; shape and dtype as in the headers.

    Without a dtype it is the model's; without a shape as many rows as there are bytes for.
    """
    spec = _main(signature, "application/octet-stream")
    name = dtype or spec.dtype
    if name not in NUMBERS:
        raise SignatureMismatch(
            f"X-Tensor-Dtype is {name[:32]!r}, and raw bytes are one of {', '.join(NUMBERS)}; one row is {spec}"
        )
    little = np.dtype(name).newbyteorder("<")
    if shape is not None:
        match = _SIZES.fullmatch(shape)
        if match is None:
            raise DecodeError(f"X-Tensor-Shape is {shape[:64]!r}; expected sizes, the rows first: 2,{_told(spec)}")
        sizes = tuple(int(size) for size in match[1].split(","))
    else:
        row = math.prod(spec.shape) * little.itemsize
        if -1 in spec.shape or not row:
            raise DecodeError(f"X-Tensor-Shape is missing, and one row is {spec}: send it, the rows first")
        sizes = (len(body) // row, *spec.shape)
        if len(body) % row or not body:
            raise SignatureMismatch(
                f"input {spec.name!r}: the body has {len(body)} bytes, not a multiple of {row}; one row is {spec}"
            )
    check_rows(sizes[0], max_rows)
    tensor = numbers(memoryview(body), little, sizes, f"input {spec.name!r}")
    return signature.completed({spec.name: _cast(spec, tensor, max_bytes)})


def _cast(spec: TensorSpec, tensor: Tensor, max_bytes: float) -> Tensor:
    """As spec.cast, where what is a byte before is not much more than one afterwards."""
    width = TEXT_BYTES if spec.dtype == STRING else spec.numpy.itemsize
    check_bytes(tensor.size * width, max_bytes, f"input {spec.name!r}")
    return spec.cast(tensor)


def _told(spec: TensorSpec) -> str:
    return ",".join(str(abs(size)) for size in spec.shape) or "…"


def _array(file: bytes, max_rows: int) -> Tensor:
    """The array of an npy file, in place."""
    if file[:6] != _MAGIC or len(file) < 12:
        raise DecodeError("it does not begin as an npy file does")
    size, start = (
        (struct.unpack_from("<H", file, 8)[0], 10) if file[6] == 1 else (*struct.unpack_from("<I", file, 8), 12)
    )
    text = file[start : start + size].decode("latin-1")
    if file[6] not in (1, 2, 3) or not size <= _MOST_HEADER_BYTES or not _HEADER.fullmatch(text):
        raise DecodeError("the npy header tells no array of numbers or strings")
    entries = {key: (text, flag, sizes) for key, text, flag, sizes in _ENTRIES.findall(text)}
    descr, order, sizes = (
        entries.get(key, ("",) * 3)[at] for at, key in enumerate(("descr", "fortran_order", "shape"))
    )
    shape = tuple(int(size) for size in re.findall(r"[0-9]+", sizes))
    if not _SHAPE.fullmatch(sizes) or not re.fullmatch(r"[<>|=]?[biufSU][1-9]\d{0,6}", descr) or not order:
        raise DecodeError(f"the npy header tells no array of numbers or strings, but {descr[:32]!r}")
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise DecodeError(f"the npy header tells {descr!r}, which is no dtype") from None
    if not shape:
        raise SignatureMismatch("the array has no axis; the first one is the rows")
    check_rows(shape[0], max_rows)
    if order == "True":
        return numbers(memoryview(file)[start + size :], dtype, shape[::-1], "the npy file").T
    return numbers(memoryview(file)[start + size :], dtype, shape, "the npy file")


def numbers(body: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> Tensor:
    """The tensor that bytes are, row by row, without a copy."""
    size = math.prod(shape) * dtype.itemsize
    if len(body) != size:
        raise SignatureMismatch(f"{what} has {len(body)} bytes, and shape {list(shape)} of {dtype} needs {size}")
    if not size:
        check_shape(shape, what)
    if dtype.kind == "b" and np.frombuffer(body, np.uint8).max(initial=0) > 1:
        raise SignatureMismatch(f"{what} has bytes that are neither 0 nor 1, and is bool")
    return np.ndarray(shape, dtype, body)


def npy_of(outputs: Tensors) -> bytes:
    """The only output as NumPy's file of one array."""
    ((_, tensor),) = outputs.items()
    return _file(tensor)


def npz_of(outputs: Tensors) -> bytes:
    """Outputs as NumPy's archive of several arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, tensor in outputs.items():
            # without the time, so that the same outputs are the same bytes
            archive.writestr(zipfile.ZipInfo(name + ".npy"), _file(tensor))
    return file.getvalue()


def raw_of(outputs: Tensors) -> tuple[list[tuple[str, str]], bytes]:
    """The only output as its bytes, and the headers that tell its shape and dtype."""
    ((_, tensor),) = outputs.items()
    headers = [("X-Tensor-Shape", ",".join(map(str, tensor.shape))), ("X-Tensor-Dtype", tensor.dtype.name)]
    return headers, packed(tensor)


def packed(tensor: Tensor) -> bytes:
    """Its numbers row by row, little-endian."""
    return tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()


def _file(tensor: Tensor) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, tensor, allow_pickle=False)
    return file.getvalue()
