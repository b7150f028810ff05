"""The segments of PNG and JPEG files, read before Pillow reads any of them.

Pillow goes through them in Python, unpacks texts that no tensor has, and begins an image again with each of its scans.
So what makes no pixels is left out here, and there may be only so much of the rest.

Runs in:  worker.
Raises:   FrameTooLarge, UnsupportedMedia.
Source:   w3.org/TR/png-3, section 5; itu.int/rec/T-REC-T.81, annex B.
"""

import re
import struct

from serving.errors import DecodeError, FrameTooLarge, UnsupportedMedia

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# where an IHDR, which comes first, has the bits of a colour
_DEPTH = 24
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
# TEM, RST0 to RST7, SOI and EOI, which nothing belongs to
_BARE = {0x01, *range(0xD0, 0xDA)}
_SCAN = 0xDA
# comments, and of the applications' own all but those of JFIF and Adobe, which tell what the colours are
_OTHERS = {0xFE, *range(0xE1, 0xF0)} - {0xEE}
# some programs write a dozen
_MOST_SCANS = 64
# of a small file; in a large one each has a part of the picture
_FEW, _MEAN_BYTES = 64, 256


def pixels(file: bytes) -> bytes:
    """The file without the segments that make no pixels; as it is, where it is of another kind."""
    if file.startswith(_PNG):
        return _png(file)
    return _jpeg(file) if file.startswith(_JPEG) else file


def _png(file: bytes) -> bytes:
    if file[_DEPTH - 12 : _DEPTH - 8] != b"IHDR":
        raise DecodeError("the image is no PNG: its first chunk is not IHDR")
    if file[_DEPTH : _DEPTH + 1] > b"\x08":
        raise UnsupportedMedia(f"the image has pixels of {file[_DEPTH]} bits; they may have 8 bits for each colour")
    kept, at = [_PNG], len(_PNG)
    for _ in range(_most(file)):
        if len(file) - at < 12:
            break
        size, kind = struct.unpack_from(">I4s", file, at)
        if kind in _CHUNKS:
            kept.append(file[at : at + size + 12])
        at += size + 12
    else:
        raise _too_many(file)
    return b"".join(kept)


def _jpeg(file: bytes) -> bytes:
    kept, at = [file[:2]], 2
    for _ in range(_most(file)):
        marker = _MARKER.search(file, at)
        if marker is None:
            break
        kind, start = file[marker.start() + 1], marker.start()
        at = marker.end()
        if kind == _SCAN:
            kept.append(file[start:])
            # in the codes of pixels there is no marker
            if (scans := file.count(b"\xff\xda", start)) > _MOST_SCANS:
                raise FrameTooLarge(
                    f"the image has {scans} scans and may have {_MOST_SCANS}; save it as a baseline JPEG"
                )
            break
        if kind not in _BARE:
            at += int.from_bytes(file[at : at + 2]) or 2
        if kind not in _OTHERS:
            kept.append(file[start:at])
    else:
        raise _too_many(file)
    return b"".join(kept)


def _most(file: bytes) -> int:
    return _FEW + len(file) // _MEAN_BYTES


def _too_many(file: bytes) -> FrameTooLarge:
    return FrameTooLarge(
        f"the image has more than {_most(file)} segments in {len(file)} bytes; save it without comments and metadata"
    )
