"""Frames: a task or a reply as bytes, with its tensors raw and little-endian.

Both ends are always the same build on the same host, so a frame carries no version; what a client sends never comes
here undecoded.  Tensors start at multiples of 16 bytes, so that a replica reads them in place.

Runs in:  both.
Shapes:   a frame is one fixed header, short text, then per tensor a head, its name, its shape and its data.
Units:    seconds; _ms in replies.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from serving.errors import by_code
from serving.signature import DTYPES, STRING
from serving.task import Reply, Task, Tensor, Tensors

# uuid, offered, deadline, rows, tensors, length of the request id
_TASK = struct.Struct("<16sddIBB")
# uuid, version, queue_ms, predict_ms, tensors, length of the error's code (0: no error), length of its detail
_REPLY = struct.Struct("<16sQffBBH")
# length of the name, dtype, number of axes, bytes of data
_TENSOR = struct.Struct("<BBHQ")
_ALIGNMENT = 16
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_NUMPY = [None if dtype == STRING else np.dtype(dtype).newbyteorder("<") for dtype in DTYPES]
_CODES_BY_DTYPE = {np.dtype(dtype): code for dtype, code in _CODES.items() if dtype != STRING}
_CODES_BY_DTYPE |= {dtype.newbyteorder(): code for dtype, code in _CODES_BY_DTYPE.items()}
_MAX_DETAIL_BYTES = 2048

MAX_REQUEST_ID = 255


def encode_task(task: Task) -> bytes:
    """The frame of a task."""
    request_id = task.request_id.encode()
    head = _TASK.pack(task.uuid, task.offered, task.deadline, task.rows, len(task.inputs), len(request_id))
    # what follows is the same for the same inputs
    gap = -(len(head) + len(request_id)) % _ALIGNMENT
    return _join([head, request_id, bytes(gap)], task.inputs)


def decode_task(frame: bytes) -> Task:
    """The task of a frame; its number tensors read the frame in place and cannot be written to."""
    uuid, offered, deadline, rows, tensors, length = _TASK.unpack_from(frame)
    end = _TASK.size + length
    request_id = frame[_TASK.size : end].decode()
    return Task(uuid, request_id, offered, deadline, rows, _split(frame, _aligned(end), tensors))


def peek_request_id(frame: bytes) -> str:
    """The request id of a task's frame."""
    length: int = _TASK.unpack_from(frame)[-1]
    return frame[_TASK.size : _TASK.size + length].decode()


def content(frame: bytes) -> memoryview:
    """The part of a task's frame that holds its tensors: the same bytes for the same inputs."""
    length: int = _TASK.unpack_from(frame)[-1]
    return memoryview(frame)[_aligned(_TASK.size + length) :]


def encode_reply(reply: Reply) -> bytes:
    """The frame of a reply."""
    code = detail = b""
    if reply.error is not None:
        code = reply.error.code.encode()
        detail = str(reply.error).encode(errors="replace")[:_MAX_DETAIL_BYTES]
    head = _REPLY.pack(
        reply.uuid, reply.version, reply.queue_ms, reply.predict_ms, len(reply.outputs), len(code), len(detail)
    )
    return _join([head, code, detail], reply.outputs)


def encode_replies(
    batch: Sequence[Task], version: int, start: float, predict_ms: float, outputs: Tensors
) -> Iterator[bytes]:
    """The frames of the replies to a batch that was predicted at start; outputs are those of all its tasks."""
    columns = []
    for name, tensor in outputs.items():
        numbers = tensor.dtype.kind != "O"
        data = _data(tensor) if numbers else b""
        columns.append((name, tensor, _code(tensor), tensor.shape[1:], data, len(data) // len(tensor), numbers))
    first = 0
    for task in batch:
        last = first + task.rows
        parts = [_REPLY.pack(task.uuid, version, (start - task.offered) * 1000, predict_ms, len(columns), 0, 0)]
        position = _REPLY.size
        for name, tensor, code, shape, data, size, numbers in columns:
            own = data[first * size : last * size] if numbers else _data(tensor[first:last])
            head = _head(name, code, (task.rows, *shape), len(own), position % _ALIGNMENT)
            parts += (head, own)
            position += len(head) + len(own)
        yield b"".join(parts)
        first = last


def decode_reply(frame: bytes) -> Reply:
    """The reply of a frame."""
    uuid, version, queue_ms, predict_ms, tensors, code, detail = _REPLY.unpack_from(frame)
    middle = _REPLY.size + code
    end = middle + detail
    error = None
    if code:
        error = by_code(frame[_REPLY.size : middle].decode(), frame[middle:end].decode(errors="replace"))
    return Reply(uuid, version, queue_ms, predict_ms, _split(frame, end, tensors), error)


def _aligned(position: int) -> int:
    return position + -position % _ALIGNMENT


def _join(parts: list[bytes], tensors: Tensors) -> bytes:
    position = sum(map(len, parts))
    for name, tensor in tensors.items():
        data = _data(tensor)
        head = _head(name, _code(tensor), tensor.shape, len(data), position % _ALIGNMENT)
        parts += (head, data)
        position += len(head) + len(data)
    return b"".join(parts)


def _code(tensor: Tensor) -> int:
    return _CODES[STRING] if tensor.dtype.kind == "O" else _CODES_BY_DTYPE[tensor.dtype]


def _data(tensor: Tensor) -> bytes:
    """The elements as bytes, row by row."""
    if tensor.dtype.kind == "O":
        return _strings(tensor)
    return tensor.tobytes() if tensor.dtype.isnative else tensor.astype(_NUMPY[_code(tensor)]).tobytes()


@lru_cache(1024)
def _head(name: str, code: int, shape: tuple[int, ...], size: int, position: int) -> bytes:
    """What stands before the data of a tensor, and the gap that brings those to their place."""
    label = name.encode()
    head = _TENSOR.pack(len(label), code, len(shape), size) + label + struct.pack(f"<{len(shape)}Q", *shape)
    return head + bytes(-(position + len(head)) % _ALIGNMENT)


def _split(frame: bytes, position: int, tensors: int) -> Tensors:
    found: Tensors = {}
    for _ in range(tensors):
        length, _, axes, size = _TENSOR.unpack_from(frame, position)
        end = position + _TENSOR.size + length + 8 * axes
        name, dtype, shape = _layout(frame[position:end])
        position = end + -end % _ALIGNMENT
        if dtype is None:
            found[name] = _read_strings(frame, position, shape)
        else:
            found[name] = np.ndarray(shape, dtype, frame, position)
        position += size
    return found


@lru_cache(1024)
def _layout(head: bytes) -> tuple[str, np.dtype[np.generic] | None, tuple[int, ...]]:
    """Name, dtype (None for strings) and shape of a tensor, from what stands before its data."""
    length, code, axes, _ = _TENSOR.unpack_from(head)
    end = _TENSOR.size + length
    return head[_TENSOR.size : end].decode(), _NUMPY[code], struct.unpack_from(f"<{axes}Q", head, end)


def _strings(tensor: Tensor) -> bytes:
    """The lengths of all elements, then their bytes."""
    items = [item if isinstance(item, bytes) else str(item).encode() for item in tensor.flat]
    return np.fromiter(map(len, items), "<u4", len(items)).tobytes() + b"".join(items)


def _read_strings(frame: bytes, position: int, shape: tuple[int, ...]) -> Tensor:
    tensor = np.empty(shape, object)
    lengths = np.frombuffer(frame, "<u4", tensor.size, position).tolist()
    position += 4 * len(lengths)
    for index, length in enumerate(lengths):
        tensor.flat[index] = frame[position : position + length]
        position += length
    return tensor
