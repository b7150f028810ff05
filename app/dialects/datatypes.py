"""Tensors as the Open Inference Protocol has them: their datatypes, in JSON and as raw data.

Raw data are the elements row by row, little-endian; of strings each has its length before it, in four bytes.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape); on the wire too, the rows are the first axis.
Raises:   DecodeError, FrameTooLarge, SignatureMismatch; ClientError where an output has no such form.
Source:   kserve/open-inference-protocol, specification/protocol/inference_rest.md; triton-inference-server/server,
          docs/protocol/extension_binary_data.md.
"""

import math
import struct
from functools import lru_cache
from typing import Any

import numpy as np

from app import codec
from app.limits import check_rows, check_shape
from app.media import arrays
from serving.errors import ClientError, DecodeError, SignatureMismatch
from serving.signature import STRING, TensorSpec
from serving.task import Tensor

DTYPES = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": STRING,
} | {f"{sign.upper()}INT{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
# of the sizes of a tensor on the wire
_MOST, MOST_AXES = 2**64, 32


def shape(sizes: Any, name: str, max_rows: int) -> tuple[int, ...]:
    """The shape that a client says an input has."""
    if not isinstance(sizes, list) or any(type(size) is not int or not 0 <= size < _MOST for size in sizes):
        raise DecodeError(f"input {name!r} has no 'shape', a list of sizes")
    if not sizes or len(sizes) > MOST_AXES:
        raise DecodeError(f"input {name!r} has {len(sizes)} axes; the first one is the rows")
    if not sizes[0]:
        raise SignatureMismatch(f"input {name!r}: there are no rows")
    what = f"input {name!r}"
    check_rows(sizes[0], max_rows, what)
    check_shape(sizes, what)
    return tuple(sizes)


def dtype(datatype: Any, spec: TensorSpec) -> str:
    """The dtype that a client sends; one that the model's can hold without loss will do."""
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        told = repr(datatype[:32]) if isinstance(datatype, str) else "no string"
        raise DecodeError(f"input {spec.name!r} has datatype {told}; it is one of {', '.join(DTYPES)}")
    fits = dtype == spec.dtype or (
        STRING not in (dtype, spec.dtype) and "bool" not in (dtype, spec.dtype) and np.can_cast(dtype, spec.dtype)
    )
    if not fits:
        raise SignatureMismatch(f"input {spec.name!r} has datatype {datatype}; the model takes {DATATYPES[spec.dtype]}")
    return dtype


@lru_cache(256)
def _flat(name: str, dtype: str, size: int) -> TensorSpec:
    return TensorSpec(name, dtype, (size,))


def of_json(name: str, dtype: str, shape: tuple[int, ...], data: Any, words: bool) -> Tensor:
    """A tensor from the list of its elements, flat or nested; words: whether true or false may be among them."""
    if dtype == "float16":
        raise DecodeError(f"input {name!r} is FP16, which has no JSON form: send it as binary data")
    size = math.prod(shape)
    if isinstance(data, np.ndarray):
        if len(data) == size and dtype.startswith("float"):
            with np.errstate(over="ignore"):
                tensor = data.astype(dtype)
            if np.isfinite(tensor).all():
                return tensor.reshape(shape)
        data = data.tolist()
    if not isinstance(data, list):
        raise DecodeError(f"input {name!r} has no 'data', and no binary_data_size either")
    if data and isinstance(data[0], list) and len(shape) > 1:
        tensor = codec.tensor(TensorSpec(name, dtype, shape[1:]), data, words)
        if len(tensor) != shape[0]:
            raise SignatureMismatch(f"input {name!r} has {len(tensor)} rows of data and shape {list(shape)}")
        return tensor
    if len(data) != size:
        raise SignatureMismatch(f"input {name!r} has {len(data)} elements of data and shape {list(shape)}")
    if not size:
        return np.zeros(shape, object if dtype == STRING else dtype)
    return codec.tensor(_flat(name, dtype, size), [data], words).reshape(shape)


def of_bytes(name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """A tensor from raw data, without a copy where it is of numbers."""
    if dtype == STRING:
        return _texts(name, shape, data)
    return arrays.numbers(data, np.dtype(dtype).newbyteorder("<"), shape, f"input {name!r}")


def _texts(name: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    count, position = math.prod(shape), 0
    found: list[bytes] = []
    if count > len(data) // 4:
        raise SignatureMismatch(f"input {name!r} has {len(data)} bytes, too few for {count} strings")
    for _ in range(count):
        start = position + 4
        if start > len(data):
            raise SignatureMismatch(f"input {name!r} ends after {len(found)} of {count} strings")
        position = start + struct.unpack_from("<I", data, position)[0]
        if position > len(data):
            raise SignatureMismatch(f"input {name!r} has a string that goes on past its end")
        found.append(bytes(data[start:position]))
    if position != len(data):
        raise SignatureMismatch(f"input {name!r} has {len(data) - position} bytes behind its last string")
    tensor = np.empty(count, object)
    tensor[:] = found
    return tensor.reshape(shape)


def raw(tensor: Tensor) -> bytes:
    """A tensor as raw data."""
    if tensor.dtype.kind != "O":
        return arrays.packed(tensor)
    return b"".join(struct.pack("<I", len(item)) + item for item in tensor.ravel().tolist())


def listed(name: str, tensor: Tensor) -> Any:
    """The elements of an output, for JSON."""
    if tensor.dtype == np.float16:
        raise ClientError(f"output {name!r} is FP16, which has no JSON form: ask for it as binary data")
    if tensor.dtype.kind != "O":
        return tensor.reshape(-1)
    try:
        return [item.decode() for item in tensor.ravel().tolist()]
    except UnicodeDecodeError:
        raise ClientError(f"output {name!r} is not UTF-8: ask for it as binary data") from None
