"""What a Parquet file says it will take, found before any of it is unpacked.

pyarrow allocates what a page claims to be, unpacks all of it, and ends the process on some footers that lie.  So the
footer and the head of each page are read here first, and what they claim is added up.

Runs in:  worker.
Raises:   DecodeError, FrameTooLarge, SignatureMismatch.
Source:   apache/parquet-format, parquet.thrift; apache/thrift, doc/specs/thrift-compact-protocol.md.
"""

import struct
from typing import Any

from app.limits import check_bytes, check_rows
from serving.errors import DecodeError, FrameTooLarge, SignatureMismatch

# the fields of a struct by their number and type, for what has another type than it should is passed over by readers
Fields = dict[tuple[int, int], Any]
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12

_MAGIC = b"PAR1"
_MOST_ROW_GROUPS = 16
# of one footer: some four thousand columns
_MOST_FIELDS = 1 << 17
# of one column in one row group
_FIELDS = 64
# beside those that a model takes: indices, and others, which are named when they are refused
_FEW_COLUMNS = 16
_DEEPEST = 10
# a column of so few rows has no use for more
_MOST_PAGES = 2048
# by the type of a column: bytes of a value when it is read; texts have their place beside it
_BYTES = {0: 1, 1: 4, 2: 8, 4: 4, 5: 8, 6: 16, 7: 2}
_TEXT, _FIXED = 6, 7
# data, dictionary, data of version 2: the field that has more of such a page, and what in there is its encoding
_PAGES = {0: (5, 2), 2: (7, 2), 3: (8, 4)}
_DICTIONARY = 2
# all but DELTA_BYTE_ARRAY, in which a text may have the beginning of the one before it: they unpack without a limit
_ENCODINGS = {0, 2, 3, 4, 5, 6, 8, 9}


def check(body: bytes, max_rows: int, max_bytes: int, wanted: int = -1) -> list[str]:
    """Raise where the file would take more than it may, or is none; gives the paths of the columns that are texts.

    wanted: how many columns the model takes, negative where there may be any number of them.
    """
    most = _MOST_FIELDS if wanted < 0 else (wanted + _FEW_COLUMNS) * (_MOST_ROW_GROUPS + 1) * _FIELDS
    try:
        return _check(body, max_rows, max_bytes, min(most, _MOST_FIELDS))
    except (KeyError, IndexError, TypeError, UnicodeDecodeError, struct.error):
        raise DecodeError("the body is no Parquet file, or is broken, or encrypted") from None


def _check(body: bytes, max_rows: int, max_bytes: int, most_fields: int) -> list[str]:
    end = len(body) - 8
    start = end - struct.unpack_from("<I", body, end)[0]
    if body[:4] != _MAGIC or body[-4:] != _MAGIC or start < 4:
        raise IndexError
    footer, _ = _Reader(body, end, most_fields).fields(start)
    check_rows(footer[3, _I64], max_rows)
    groups = footer[4, _LIST]
    if len(groups) > _MOST_ROW_GROUPS:
        raise FrameTooLarge(f"the Parquet file has {len(groups)} row groups; there may be {_MOST_ROW_GROUPS}")
    columns = _columns(footer[2, _LIST])
    rows, unpacked = 0, 0
    for group in groups:
        count, chunks = group[3, _I64], group[1, _LIST]
        if count < 1 or len(chunks) != len(columns):
            raise DecodeError("the table has no rows, or a row group of it has none, or not all columns")
        rows += count
        check_rows(rows, max_rows)
        for (_, kind), chunk in zip(columns, chunks, strict=True):
            about = chunk[3, _STRUCT]
            if about[1, _I32] != kind or (1, _BINARY) in chunk:
                raise IndexError
            first, size = about[9, _I64], about[7, _I64]
            dictionary = about.get((11, _I64), 0)
            if 0 < dictionary < first:
                first = dictionary
            if not 4 <= first <= first + size <= end:
                raise IndexError
            # as large as the rows say, whatever lies in the pages
            claimed = max(_unpacked(body, first, first + size, _BYTES[kind], max_bytes), count * _BYTES[kind])
            unpacked += claimed
            check_bytes(unpacked, max_bytes, "the Parquet file")
    if not rows:
        raise DecodeError("the table has no rows")
    return [path for path, kind in columns if kind == _TEXT]


def _columns(schema: list[Fields]) -> list[tuple[str, int]]:
    """The paths and types of the columns, the leaves of a tree that is listed from its root."""
    found, above = [], [("", schema[0].get((5, _I32), 0))]
    for element in schema[1:]:
        while above[-1][1] < 1:
            above.pop()
        prefix, left = above[-1]
        above[-1] = prefix, left - 1
        path = prefix + element[4, _BINARY].decode()
        if (5, _I32) in element:
            above.append((path + ".", element[5, _I32]))
            if len(above) > _DEEPEST:
                raise SignatureMismatch(f"column {path[:64]!r} is nested too deep for any input")
            continue
        kind = element[1, _I32]
        if kind not in _BYTES or (kind == _FIXED and element[2, _I32] != _BYTES[kind]):
            raise SignatureMismatch(f"column {path[:64]!r} is of a type which no input takes")
        found.append((path, kind))
    return found


def _unpacked(body: bytes, position: int, end: int, value_bytes: int, max_bytes: int) -> int:
    """The bytes that the pages of a column claim to be, or their values when they are read."""
    unpacked = values = pages = 0
    reader = _Reader(body, end)
    while position < end:
        header, position = reader.fields(position)
        kind, size, stored = header[1, _I32], header[2, _I32], header[3, _I32]
        more, encoding = _PAGES[kind]
        about = header[more, _STRUCT]
        count = about[1, _I32]
        pages += 1
        if min(size, stored, count) < 0 or position + stored > end or pages > _MOST_PAGES:
            raise IndexError
        if about[encoding, _I32] not in _ENCODINGS:
            raise DecodeError("the Parquet file has DELTA_BYTE_ARRAY; write it without that encoding")
        if kind == _DICTIONARY and count > size:
            raise IndexError
        position += stored
        unpacked += size
        values += count if kind != _DICTIONARY else 0
        check_bytes(max(unpacked, values * value_bytes), max_bytes, "the Parquet file")
    return max(unpacked, values * value_bytes)


class _Reader:
    """Reads structs in Thrift's compact protocol, so many fields of them in all."""

    def __init__(self, data: bytes, end: int, most: int = _MOST_FIELDS) -> None:
        self._data = data
        self._end = end
        self._most = self._left = most

    def fields(self, position: int, depth: int = 0) -> tuple[Fields, int]:
        """The fields of a struct, and where it ends."""
        data = self._data
        found: Fields = {}
        number = 0
        if depth > _DEEPEST:
            raise IndexError
        while head := data[position]:
            position += 1
            kind = head & 15
            if head >> 4:
                number += head >> 4
            else:
                step, position = self._varint(position)
                number = _signed(step)
            if (number, kind) in found:
                raise KeyError
            found[number, kind], position = self._value(kind, position, depth)
        return found, position + 1

    def _value(self, kind: int, position: int, depth: int) -> tuple[Any, int]:
        self._left -= 1
        if self._left < 0:
            raise FrameTooLarge(f"the Parquet file has more than {self._most} fields in its footer; write less columns")
        if position >= self._end:
            raise IndexError
        match kind:
            case 1 | 2:
                return kind == 1, position
            case 3:
                return self._data[position], position + 1
            case 4 | 5 | 6:
                value, position = self._varint(position)
                return _signed(value), position
            case 7:
                return None, position + 8
            case 8:
                size, position = self._varint(position)
                return self._data[position : position + size], position + size
            case 9:
                return self._items(position, depth + 1)
            case 12:
                return self.fields(position, depth + 1)
        # there are no sets and no maps in it
        raise KeyError

    def _items(self, position: int, depth: int) -> tuple[list[Any], int]:
        head = self._data[position]
        position += 1
        size, kind = head >> 4, head & 15
        if depth > _DEEPEST:
            raise IndexError
        if size == 15:
            size, position = self._varint(position)
        found = []
        for _ in range(size):
            # true and false have a byte of their own here
            value, position = self._value(3 if kind in (1, 2) else kind, position, depth)
            found.append(value)
        return found, position

    def _varint(self, position: int) -> tuple[int, int]:
        value = shift = 0
        while shift < 70:
            byte = self._data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, position
            shift += 7
        raise IndexError


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)
