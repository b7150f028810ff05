"""What an Arrow stream or a Parquet file says it will take, found before any of it is unpacked.

The libraries that read these formats allocate what a page or a buffer claims to be, and unpack all of it; none of them
has a limit.  So the claims are added up here, from the same bytes that will be read.

Runs in:  worker.
Raises:   DecodeError, FrameTooLarge.
Source:   apache/parquet-format, parquet.thrift (PageHeader); apache/thrift, doc/specs/thrift-compact-protocol.md;
          apache/arrow, format/Message.fbs; flatbuffers.dev/internals.
"""

import struct
from typing import Any

from app.media.limits import check_bytes, check_rows
from serving.errors import DecodeError

_PAGES = {0: 5, 2: 7, 3: 8}  # data, dictionary, data of version 2: the field that has more of it
# all but DELTA_BYTE_ARRAY, in which a string may have the beginning of the one before it: they unpack without a limit
_ENCODINGS = {0, 2, 3, 4, 5, 6, 8, 9}
# a column of so few rows has no use for more
_MOST_PAGES = 2048
# of structs in structs
_DEEPEST = 4
_RECORD_BATCH = 3


def check_pages(body: bytes, start: int, size: int, left: int, max_bytes: int, least_bytes: int) -> tuple[int, int]:
    """The unpacked bytes and the values of the pages of a column; left: how many bytes there may still be.

    least_bytes: what a value takes at the least, once it is read.
    """
    position, end = start, start + size
    if not 0 <= start <= end <= len(body):
        raise DecodeError("a column of the Parquet file lies outside of it")
    unpacked = values = pages = 0
    while position < end:
        try:
            header, position = _struct(body, position, end)
            kind, page_bytes, stored = header[1], header[2], header[3]
            about = header[_PAGES[kind]]
            count, encoding = about[1], about[4 if kind == 3 else 2]
        except (KeyError, IndexError, TypeError, RecursionError, struct.error):
            raise DecodeError("a page of the Parquet file has a header that cannot be read") from None
        pages += 1
        if min(page_bytes, stored, count) < 0 or position + stored > end or pages > _MOST_PAGES:
            raise DecodeError("a page of the Parquet file lies outside of its column, or there are too many")
        if encoding not in _ENCODINGS:
            raise DecodeError("the Parquet file has DELTA_BYTE_ARRAY; write it without that encoding")
        if kind == 2 and count > page_bytes:
            raise DecodeError("a dictionary of the Parquet file has more values than bytes")
        position += stored
        unpacked += page_bytes
        values += count if kind != 2 else 0
        check_bytes(max_bytes - left + max(unpacked, values * least_bytes), max_bytes, "the Parquet file")
    return unpacked, values


def _struct(data: bytes, position: int, end: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol: its fields by number, and where it ends."""
    if depth > _DEEPEST:
        raise RecursionError
    fields: dict[int, Any] = {}
    number = 0
    while position < end:
        head = data[position]
        position += 1
        if not head:
            return fields, position
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            step, position = _varint(data, position)
            number = _signed(step)
        match kind:
            case 1 | 2:
                fields[number] = kind == 1
            case 3:
                fields[number] = data[position]
                position += 1
            case 4 | 5 | 6:
                value, position = _varint(data, position)
                fields[number] = _signed(value)
            case 7:
                position += 8
            case 8:
                size, position = _varint(data, position)
                position += size
            case 12:
                fields[number], position = _struct(data, position, end, depth + 1)
            case _:
                # no header has a list, a set or a map
                raise KeyError(kind)
    raise IndexError(position)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise IndexError(position)


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def check_batch(metadata: Any, content: Any, rows: int, max_rows: int, left: int, max_bytes: int) -> tuple[int, int]:
    """The rows and the unpacked bytes of a batch, of a message that was verified; rows: of those before it."""
    data = bytes(metadata)
    table = struct.unpack_from("<I", data)[0]
    head = _field(data, table, 2)
    header = head + struct.unpack_from("<I", data, head)[0]
    if data[_field(data, table, 1)] != _RECORD_BATCH:
        # of a dictionary: its batch is the second field
        at = _field(data, header, 1)
        header = at + struct.unpack_from("<I", data, at)[0]
        count = 0
    else:
        at = _field(data, header, 0)
        count = struct.unpack_from("<q", data, at)[0] if at else 0
        check_rows(rows + max(0, count), max_rows)
    unpacked = len(content)
    if _field(data, header, 3):
        # each buffer begins with its size unpacked, or -1
        at = _field(data, header, 2)
        vector = at + struct.unpack_from("<I", data, at)[0] if at else 0
        for index in range(struct.unpack_from("<I", data, vector)[0] if vector else 0):
            offset, size = struct.unpack_from("<qq", data, vector + 4 + 16 * index)
            if size >= 8 and 0 <= offset <= len(content) - 8:
                unpacked += max(0, struct.unpack_from("<q", content, offset)[0])
    check_bytes(max_bytes - left + unpacked, max_bytes, "the Arrow stream")
    return count, unpacked


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is, 0 where it is left out."""
    entries = table - struct.unpack_from("<i", data, table)[0]
    at = 4 + 2 * number
    if at >= struct.unpack_from("<H", data, entries)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, entries + at)[0]
    return table + offset if offset else 0
