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
from serving.errors import DecodeError, FrameTooLarge

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
# of a message, more bytes have their fields counted, which takes some 50 ms for the most that there may be
_FREE_BYTES, _MOST_FIELDS = 1 << 16, 1 << 17
# a field's type: a text, bytes, numbers in a row, or a message
_BYTES = 2
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
    message = sent[_FRAME.size :]
    try:
        if packed:
            message = body.unpack(message, environ.get("HTTP_GRPC_ENCODING", ""), limit)
        if len(message) > _FREE_BYTES:
            _check_fields(memoryview(message), kind.DESCRIPTOR, _MOST_FIELDS)
        return kind.FromString(message)
    except (NoMessage, IndexError) as error:
        raise DecodeError(f"the message is no {kind.DESCRIPTOR.name}: {error}") from None


def _check_fields(message: memoryview, kind: Any, left: int) -> int:
    """Raise where there are more fields than that, before there is an object for each: two bytes may become a hundred.

    Gives how many are left.  IndexError where it ends too early.
    """
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        left -= 1
        if left < 0:
            raise FrameTooLarge(
                f"the message has more than {_MOST_FIELDS} fields: send tensors as raw contents or tensor_content"
            )
        if tag & 7 == _BYTES:
            size, place = _varint(message, place)
            field = kind.fields_by_number.get(tag >> 3)
            if field is not None and field.message_type is not None:
                left = _check_fields(message[place : place + size], field.message_type, left)
            place += size
        elif tag & 7 == 0:
            _, place = _varint(message, place)
        else:
            place += 8 if tag & 7 == 1 else 4
    return left


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number, and where the next byte is."""
    found = shift = 0
    while True:
        byte = message[place]
        place += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:
            return found, place
        shift += 7


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
