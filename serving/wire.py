"""Frames: a task or a reply as bytes, with its tensors raw and little-endian.

Both ends are always the same build on the same host, so a frame carries no version; what a client sends never comes
here undecoded.  Tensors start at multiples of 16 bytes, so that a replica reads them in place.

Runs in:  both.
Shapes:   a frame is one fixed header, short text, then per tensor a head, its name, its shape and its data.
Units:    seconds; _ms in replies.
"""

import struct

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
        dtype = STRING if tensor.dtype.kind == "O" else tensor.dtype.name
        data = _strings(tensor) if dtype == STRING else np.ascontiguousarray(tensor, _NUMPY[_CODES[dtype]]).tobytes()
        label = name.encode()
        head = _TENSOR.pack(len(label), _CODES[dtype], tensor.ndim, len(data)) + label
        head += struct.pack(f"<{tensor.ndim}Q", *tensor.shape)
        gap = -(position + len(head)) % _ALIGNMENT
        parts += (head, bytes(gap), data)
        position += len(head) + gap + len(data)
    return b"".join(parts)


def _split(frame: bytes, position: int, tensors: int) -> Tensors:
    found: Tensors = {}
    for _ in range(tensors):
        length, code, axes, size = _TENSOR.unpack_from(frame, position)
        position += _TENSOR.size
        name = frame[position : position + length].decode()
        position += length
        shape = struct.unpack_from(f"<{axes}Q", frame, position)
        position += 8 * axes
        position = _aligned(position)
        dtype = _NUMPY[code]
        if dtype is None:
            found[name] = _read_strings(frame, position, shape)
        else:
            found[name] = np.frombuffer(frame, dtype, size // dtype.itemsize, position).reshape(shape)
        position += size
    return found


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
