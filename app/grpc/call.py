"""One unary call: its frame, its deadline, and what tells how it ended.

Runs in:  worker.
Raises:   DecodeError, FrameTooLarge, UnsupportedMedia.
Source:   grpc/grpc, doc/PROTOCOL-HTTP2.md and doc/statuscodes.md.
"""

import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from google.protobuf.message import DecodeError as NoMessage

from app import body
from app.dialects.dialect import Headers, Route
from app.grpc.messages import Message
from serving.errors import DecodeError

CONTENT_TYPE = ("Content-Type", "application/grpc")
# nginx makes trailers of it, and of the next two
STATUS, MESSAGE, PUSHBACK = "Grpc-Status", "Grpc-Message", "Grpc-Retry-Pushback-Ms"
OK, UNIMPLEMENTED, INTERNAL = 0, 12, 13
# by HTTP's, as grpc.conf has them too
_STATUSES = {400: 3, 403: 7, 404: 5, 405: 12, 406: 3, 413: 8, 415: 12, 503: 14, 504: 4}
# what a status's message may have in it; its UTF-8 is percent-encoded otherwise
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
# clients take 8 KiB of metadata, all together
_MOST_TEXT = 4096
# whether it is packed, and its length
_FRAME = struct.Struct(">BI")
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS_MS = {"H": 3_600_000.0, "M": 60_000.0, "S": 1000.0, "m": 1.0, "u": 0.001, "n": 0.000001}


class Prediction(NamedTuple):
    """A call that is answered by a replica: what it is sent, and what that asks for."""

    request: Message
    route: Callable[[Message], Route]


class Asked(NamedTuple):
    """What a call asks for over HTTP."""

    method: str
    path: str
    value: Mapping[str, Any] | None = None


class Control(NamedTuple):
    """A call that HTTP has as well: what is asked for there, and the message that the answer makes.

    answer: of the request, the status and the body's JSON; it is asked for statuses below 400, and for others where it
    probes: where they are an answer, too.
    """

    request: Message
    ask: Callable[[Message], Asked]
    answer: Callable[[Message, int, Any], Message]
    probes: bool = False


def read(environ: Mapping[str, Any], limit: int, kind: Message) -> Message:
    """The message of a request, of at most limit bytes before and after it is unpacked."""
    sent = body.read(environ, limit)
    if len(sent) < _FRAME.size:
        raise DecodeError(f"the body has {len(sent)} bytes, and a call has a message in a frame")
    packed, size = _FRAME.unpack_from(sent)
    if size != len(sent) - _FRAME.size or packed > 1:
        raise DecodeError(f"the body has {len(sent)} bytes, and is not one message in its frame")
    message = memoryview(sent)[_FRAME.size :]
    try:
        if packed:
            return kind.FromString(body.unpack(bytes(message), environ.get("HTTP_GRPC_ENCODING", ""), limit))
        return kind.FromString(message)
    except NoMessage as error:
        raise DecodeError(f"the message is no {kind.DESCRIPTOR.name}: {error}") from None


def frame(told: Message) -> bytes:
    """A message as the body of an answer."""
    sent: bytes = told.SerializeToString()
    return _FRAME.pack(0, len(sent)) + sent


def timeout_ms(text: str) -> int:
    """The milliseconds that a client waits, rounded up."""
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise DecodeError(f"grpc-timeout is {text[:32]!r}; expected a number and a unit, as 100m")
    return max(1, math.ceil(int(match[1]) * _UNITS_MS[match[2]]))


def outcome(status: int, text: str) -> Headers:
    """What tells a client of an error, by its status in HTTP."""
    return [(STATUS, str(_STATUSES.get(status, INTERNAL))), (MESSAGE, quote(text, safe=_PLAIN)[:_MOST_TEXT])]
