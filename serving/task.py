"""A task (one request in the queue) and its reply.

Runs in:  both.
Shapes:   inputs[name] and outputs[name]: (rows, *spec.shape).  A string tensor is an object array of UTF-8 bytes.
Units:    seconds, absolute, time.monotonic(): comparable across the processes of one host; _ms where the name says so.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serving.errors import ServingError

Tensor = npt.NDArray[np.generic]
Tensors = dict[str, Tensor]


@dataclass(slots=True)
class Task:
    """What one request asks of a replica.

    uuid is ours and unique; request_id is what the client or nginx calls the request, and two clients may choose the
    same.  signature is one of the card's others, "" for the default; trace says where its spans belong, if it has any.
    """

    uuid: bytes
    request_id: str
    offered: float
    deadline: float
    rows: int
    inputs: Tensors
    signature: str = ""
    trace: bytes = b""


@dataclass(slots=True)
class Reply:
    """What a replica answers: outputs, or the error it ended in.  batch_rows: of all that it predicted together."""

    uuid: bytes
    version: int
    queue_ms: float = 0.0
    predict_ms: float = 0.0
    outputs: Tensors = field(default_factory=dict)
    error: ServingError | None = None
    batch_rows: int = 0
