"""The body of a request: read, and unpacked within the limits.

Runs in:  worker.
Raises:   DecodeError, FrameTooLarge, UnsupportedMedia.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import zstandard

from serving.errors import DecodeError, FrameTooLarge, UnsupportedMedia

# zlib.h: a header of gzip or of zlib, whichever there is; none at all, as some clients write "deflate"
_ANY_HEADER, _NO_HEADER = 47, -15


def read(environ: Mapping[str, Any], limit: int) -> bytes:
    """The body, unpacked; of at most limit bytes before and after."""
    text = environ.get("CONTENT_LENGTH") or "0"
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise DecodeError(f"Content-Length is {text[:32]!r}; expected a number of bytes")
    size = int(text)
    if size > limit:
        raise FrameTooLarge(f"the body has {size} bytes and the limit is {limit}: max_body_bytes in uwsgi.ini")
    body: bytes = environ["wsgi.input"].read(size) if size else b""
    if len(body) < size:
        raise DecodeError(f"the body ends after {len(body)} of {size} bytes")
    coding = environ.get("HTTP_CONTENT_ENCODING")
    return unpack(body, coding, limit) if coding else body


def unpack(body: bytes, coding: str, limit: int) -> bytes:
    # RFC 9110: x-gzip is an old name of gzip
    name = coding.strip().lower().replace("x-gzip", "gzip")
    if name == "identity":
        return body
    unpack = _UNPACK.get(name)
    if unpack is None:
        raise UnsupportedMedia(f"Content-Encoding is {coding[:32]!r}; it may be {', '.join(_UNPACK)}, or none")
    try:
        found, whole = unpack(body, limit)
    except (zlib.error, zstandard.ZstdError) as error:
        raise DecodeError(f"the body is not {name}: {error}") from None
    if len(found) > limit:
        raise _over(limit)
    if not whole:
        raise DecodeError(f"the body ends before its {name} does, or goes on behind it")
    return found


def _over(limit: int) -> FrameTooLarge:
    return FrameTooLarge(f"the body is larger than {limit} bytes when it is unpacked: max_body_bytes in uwsgi.ini")


def _gzip(body: bytes, limit: int) -> tuple[bytes, bool]:
    return _inflate(body, limit, _ANY_HEADER)


def _deflate(body: bytes, limit: int) -> tuple[bytes, bool]:
    # the first byte of zlib's header says 8 in its lower half, which no raw block that anybody writes begins with
    return _inflate(body, limit, _ANY_HEADER if body[:1] and body[0] & 15 == zlib.DEFLATED else _NO_HEADER)


def _inflate(body: bytes, limit: int, header: int) -> tuple[bytes, bool]:
    parser = zlib.decompressobj(header)
    found = parser.decompress(body, limit + 1)
    return found, parser.eof and not parser.unused_data


def _zstd(body: bytes, limit: int) -> tuple[bytes, bool]:
    unpacker = zstandard.ZstdDecompressor(max_window_size=max(1 << 23, limit))
    # once to see how much it is, for what unpacks a frame whole has no limit; four bytes of it may be 128 KiB
    found, piece = 0, bytearray(1 << 16)
    with unpacker.stream_reader(body) as stream:
        while found <= limit and (size := stream.readinto(piece)):
            found += size
    if found > limit:
        raise _over(limit)
    parser = unpacker.decompressobj()
    return parser.decompress(body), parser.eof and not parser.unused_data


_UNPACK: dict[str, Callable[[bytes, int], tuple[bytes, bool]]] = {"gzip": _gzip, "deflate": _deflate, "zstd": _zstd}
