"""Frames: a task or a reply as bytes, with its tensors raw and little-endian.

Both ends are always the same build on the same host, so a frame carries no version; what a client sends never comes
here undecoded.  Tensors start at multiples of 16 bytes, so that a replica reads them in place.

Runs in:  both.
Shapes:   a frame is one fixed header, then per tensor a head, its name, its shape and its data, then short texts.
Units:    seconds; _ms in replies.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from serving.errors import by_code
from serving.signature import DTYPES, STRING
from serving.task import Reply, Task, Tensor, Tensors

# uuid, offered, deadline, rows, tensors; lengths of the signature's name (0: the default), of the trace (0: none), of
# the request id
_TASK = struct.Struct("<16sddIBBHB7x")
# uuid, version, queue_ms, predict_ms, tensors, length of the error's code (0: no error), length of its detail, rows of
# the batch
_REPLY = struct.Struct("<16sQffBBHI8x")
# length of the name, dtype, number of axes, bytes of data
_TENSOR = struct.Struct("<BBHQ")
_GAPS = [bytes(-size % 16) for size in range(16)]
_STRING = DTYPES.index(STRING)
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_NUMPY = [None if dtype == STRING else np.dtype(dtype).newbyteorder("<") for dtype in DTYPES]
_CODES_BY_DTYPE = {np.dtype(dtype): code for dtype, code in _CODES.items() if dtype != STRING}
_CODES_BY_DTYPE |= {dtype.newbyteorder(): code for dtype, code in _CODES_BY_DTYPE.items()}
_MAX_DETAIL_BYTES = 2048

MAX_REQUEST_ID = 255


def encode_task(task: Task) -> bytes:
    """The frame of a task."""
    signature, request_id = task.signature.encode(), task.request_id.encode()
    trace = task.trace
    head = _TASK.pack(
        task.uuid,
        task.offered,
        task.deadline,
        task.rows,
        len(task.inputs),
        len(signature),
        len(trace),
        len(request_id),
    )
    return _join(head, task.inputs, signature + trace + request_id)


def decode_task(frame: bytes) -> Task:
    """The task of a frame; its number tensors read the frame in place and cannot be written to."""
    uuid, offered, deadline, rows, tensors, named, traced, length = _TASK.unpack_from(frame)
    last = len(frame) - length
    end = last - traced
    signature = frame[end - named : end].decode() if named else ""
    inputs = _split(frame, _TASK.size, tensors)
    return Task(uuid, frame[last:].decode(), offered, deadline, rows, inputs, signature, frame[end:last])


def peek_request_id(frame: bytes) -> str:
    """The request id of a task's frame."""
    length: int = _TASK.unpack_from(frame)[-1]
    return frame[len(frame) - length :].decode()


def content(frame: bytes) -> memoryview:
    """The part of a task's frame that holds its tensors and what they are for: the same for the same inputs."""
    *_, traced, length = _TASK.unpack_from(frame)
    return memoryview(frame)[_TASK.size : len(frame) - traced - length]


def encode_reply(reply: Reply) -> bytes:
    """The frame of a reply."""
    code = detail = b""
    if reply.error is not None:
        code = reply.error.code.encode()
        detail = str(reply.error).encode(errors="replace")[:_MAX_DETAIL_BYTES]
    head = _REPLY.pack(
        reply.uuid,
        reply.version,
        reply.queue_ms,
        reply.predict_ms,
        len(reply.outputs),
        len(code),
        len(detail),
        reply.batch_rows,
    )
    return _join(head, reply.outputs, code + detail)


def encode_replies(
    batch: Sequence[Task], version: int, start: float, predict_ms: float, outputs: Tensors
) -> Iterator[bytes]:
    """The frames of the replies to a batch that was predicted at start; outputs are those of all its tasks."""
    columns = [_Column(name, tensor) for name, tensor in outputs.items()]
    first, rows = 0, len(next(iter(outputs.values()), ()))
    for task in batch:
        last = first + task.rows
        parts = [_REPLY.pack(task.uuid, version, (start - task.offered) * 1000, predict_ms, len(columns), 0, 0, rows)]
        for column in columns:
            column.append(parts, first, last)
        yield b"".join(parts)
        first = last


class _Column:
    """One output of a batch, as bytes or as texts."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._name = name
        self._shape = tensor.shape[1:]
        self._code = _code(tensor)
        # of one row: bytes, or texts
        self._data: bytes = b""
        self._texts: list[bytes] = []
        if tensor.dtype.kind == "O":
            self._texts = _texts(tensor)
            self._size = len(self._texts) // len(tensor)
        else:
            self._data = _data(tensor)
            self._size = len(self._data) // len(tensor)

    def append(self, parts: list[bytes], first: int, last: int) -> None:
        """Some of its rows, as a tensor of their own."""
        start, end = first * self._size, last * self._size
        data = _packed(self._texts[start:end]) if self._code == _STRING else self._data[start:end]
        parts += (_head(self._name, self._code, (last - first, *self._shape), len(data)), data, _GAPS[len(data) % 16])


def decode_reply(frame: bytes) -> Reply:
    """The reply of a frame."""
    uuid, version, queue_ms, predict_ms, tensors, code, detail, batch_rows = _REPLY.unpack_from(frame)
    error = None
    if code:
        end = len(frame) - detail
        error = by_code(frame[end - code : end].decode(), frame[end:].decode(errors="replace"))
    return Reply(uuid, version, queue_ms, predict_ms, _split(frame, _REPLY.size, tensors), error, batch_rows)


def _join(head: bytes, tensors: Tensors, end: bytes) -> bytes:
    parts = [head]
    for name, tensor in tensors.items():
        data = _data(tensor)
        parts += (_head(name, _code(tensor), tensor.shape, len(data)), data, _GAPS[len(data) % 16])
    parts.append(end)
    return b"".join(parts)


def _code(tensor: Tensor) -> int:
    return _STRING if tensor.dtype.kind == "O" else _CODES_BY_DTYPE[tensor.dtype]


def _data(tensor: Tensor) -> bytes:
    """The elements as bytes, row by row."""
    if tensor.dtype.kind == "O":
        return _packed(_texts(tensor))
    return tensor.tobytes() if tensor.dtype.isnative else tensor.astype(_NUMPY[_code(tensor)]).tobytes()


@lru_cache(1024)
def _head(name: str, code: int, shape: tuple[int, ...], size: int) -> bytes:
    """What stands before the data of a tensor."""
    label = name.encode()
    head = _TENSOR.pack(len(label), code, len(shape), size) + label + struct.pack(f"<{len(shape)}Q", *shape)
    return head + _GAPS[len(head) % 16]


def _split(frame: bytes, position: int, tensors: int) -> Tensors:
    found: Tensors = {}
    for _ in range(tensors):
        length, _, axes, size = _TENSOR.unpack_from(frame, position)
        end = position + _TENSOR.size + length + 8 * axes
        name, dtype, shape = _layout(frame[position:end])
        position = end + -end % 16
        if dtype is None:
            found[name] = _read_texts(frame, position, shape)
        else:
            found[name] = np.ndarray(shape, dtype, frame, position)
        position += size + -size % 16
    return found


@lru_cache(1024)
def _layout(head: bytes) -> tuple[str, np.dtype[np.generic] | None, tuple[int, ...]]:
    """Name, dtype (None for strings) and shape of a tensor, from what stands before its data."""
    length, code, axes, _ = _TENSOR.unpack_from(head)
    end = _TENSOR.size + length
    return head[_TENSOR.size : end].decode(), _NUMPY[code], struct.unpack_from(f"<{axes}Q", head, end)


def _texts(tensor: Tensor) -> list[bytes]:
    return [item if isinstance(item, bytes) else str(item).encode() for item in tensor.ravel().tolist()]


def _packed(texts: list[bytes]) -> bytes:
    """The lengths of all texts, then the texts."""
    return struct.pack(f"<{len(texts)}I", *map(len, texts)) + b"".join(texts)


def _read_texts(frame: bytes, position: int, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    lengths = struct.unpack_from(f"<{count}I", frame, position)
    position += 4 * count
    tensor = np.empty(count, object)
    for index, length in enumerate(lengths):
        tensor[index] = frame[position : position + length]
        position += length
    return tensor.reshape(shape)
