"""Arrow streams and Parquet files, by pyarrow.

A column of lists, of one size for all rows, is an input of that size.  Null is NaN in a float, and nowhere else a
value.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Raises:   DecodeError, FrameTooLarge, SignatureMismatch, UnsupportedMedia.
"""

import struct
from typing import Any

import numpy as np

from app.limits import TEXT_BYTES, check_bytes, check_rows, need
from app.media import parquet as footer
from app.media import tables
from serving.errors import DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import Signature, TensorSpec
from serving.task import Tensor, Tensors

# more than any model takes, and less than would keep a thread for long
_MOST_COLUMNS = 1 << 14
# beside errors of its own, what pyarrow raises on noise
_UNREADABLE = (OSError, EOFError, StopIteration, ValueError, LookupError, TypeError, ArithmeticError, struct.error)
_RECORD_BATCH = 3


def stream(body: bytes, signature: Signature, max_rows: int, max_bytes: int) -> Tensors:
    """Inputs from Arrow's streaming format."""
    arrow, ipc = need("pyarrow"), need("pyarrow.ipc")
    rows, left, messages = 0, max_bytes, 0
    try:
        reader = ipc.MessageReader.open_stream(body)
        for message in reader:
            messages += 1
            if messages > max_rows + _MOST_COLUMNS:
                raise FrameTooLarge(f"the Arrow stream has more than {messages - 1} messages")
            if message.type in ("record batch", "dictionary"):
                content = memoryview(message.body) if message.body is not None else b""
                count, size = _check_batch(message.metadata, content, rows, max_rows, left, max_bytes)
                rows, left = rows + count, left - size
        with ipc.open_stream(body) as found:
            _check_schema(found.schema)
            table = found.read_all()
        table.validate(full=True)
        return _inputs(table, signature, max_rows, max_bytes)
    except (arrow.ArrowException, *_UNREADABLE) as error:
        raise DecodeError(f"the body is no Arrow stream: {_told(error)}") from None


def parquet(body: bytes, signature: Signature, max_rows: int, max_bytes: int, others: bool = False) -> Tensors:
    """Inputs from a Parquet file; others as in tables.places."""
    arrow, files = need("pyarrow"), need("pyarrow.parquet")
    texts = footer.check(body, max_rows, max_bytes, -1 if others else tables.columns(signature))
    try:
        # a text that stands in many rows is there once
        file = files.ParquetFile(
            arrow.BufferReader(body),
            read_dictionary=texts,
            thrift_string_size_limit=len(body),
            thrift_container_size_limit=_MOST_COLUMNS,
        )
        _check_schema(file.schema_arrow)
        table = file.read(use_threads=False)
        table.validate(full=True)
        return _inputs(table, signature, max_rows, max_bytes, others)
    except (arrow.ArrowException, *_UNREADABLE) as error:
        raise DecodeError(f"the body is no Parquet file: {_told(error)}") from None


def _told(error: Exception) -> str:
    # in one line
    return " ".join(str(error).split())[:200]


def _check_batch(metadata: Any, content: Any, rows: int, max_rows: int, left: int, max_bytes: int) -> tuple[int, int]:
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


def _check_schema(schema: Any) -> None:
    """Raise where a column is of a type that is no tensor, before it is read."""
    if len(schema) > _MOST_COLUMNS:
        raise FrameTooLarge(f"the table has {len(schema)} columns, and there may be {_MOST_COLUMNS}")
    types = need("pyarrow.types")
    for field in schema:
        kind, depth = field.type, 0
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind, depth = kind.value_type, depth + 1
        if types.is_dictionary(kind):
            kind = kind.value_type
        if depth > 32 or not (
            types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or _is_text(types, kind)
        ):
            raise SignatureMismatch(f"column {field.name[:64]!r} is {str(field.type)[:64]}, which no input takes")


def _is_text(types: Any, kind: Any) -> bool:
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def _inputs(table: Any, signature: Signature, max_rows: int, max_bytes: int, others: bool = False) -> Tensors:
    check_rows(len(table), max_rows)
    # pandas keeps an index beside its columns
    given = table.column_names
    kept = [index for index, name in enumerate(given) if not name.startswith("__index_level_")]
    if not len(table):
        raise DecodeError("the table has no rows")
    specs = {spec.name: spec for spec in signature.inputs}
    names = [given[index] for index in kept]
    found = {}
    unpacked = 0
    for name, places in tables.places(names, len(kept), signature, others).items():
        spec = specs[name]
        columns = []
        for place in places:
            values, sizes = _values(names[place], table.column(kept[place]))
            unpacked += len(values) * max(_width(values.type), spec.numpy.itemsize)
            check_bytes(unpacked, max_bytes, "the table")
            columns.append(_flat(names[place], values, max_bytes).reshape(len(table), *sizes))
        if len({column.dtype for column in columns}) > 1:
            # each by itself, for a dtype that holds them all may change their values
            columns = [TensorSpec(name, spec.dtype, column.shape[1:]).cast(column) for column in columns]
        if len(columns) == 1 and columns[0].ndim == len(spec.shape) + 1:
            found[name] = spec.cast(columns[0])
        else:
            flat = np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)
            found[name] = spec.cast(tables.shaped(spec, flat))
    return signature.completed(found)


def _values(name: str, column: Any) -> tuple[Any, list[int]]:
    """What the lists of a column hold, and their sizes."""
    found = column.combine_chunks()
    sizes, types = [], need("pyarrow.types")
    while types.is_list(found.type) or types.is_large_list(found.type) or types.is_fixed_size_list(found.type):
        if found.null_count:
            raise SignatureMismatch(f"column {name[:64]!r} has null where a list belongs")
        lengths = np.unique(found.value_lengths().to_numpy()).tolist()
        if len(lengths) > 1:
            raise SignatureMismatch(
                f"column {name[:64]!r} has ragged lists, of {lengths[0]} and of {lengths[-1]} elements"
            )
        sizes += lengths
        found = found.flatten()
    return found, sizes


def _width(kind: Any) -> int:
    """The bytes that a value takes in a tensor: a bit or an index is more than it is in a table."""
    types = need("pyarrow.types")
    if types.is_dictionary(kind):
        return _width(kind.value_type)
    return TEXT_BYTES if _is_text(types, kind) else max(8, kind.bit_width) // 8


def _flat(name: str, found: Any, max_bytes: int) -> Tensor:
    types = need("pyarrow.types")
    if types.is_dictionary(found.type):
        if found.null_count:
            raise SignatureMismatch(f"column {name[:64]!r} has null, which is no value of its kind")
        tensor: Tensor = _flat(name, found.dictionary, max_bytes)[found.indices.to_numpy(zero_copy_only=False)]
    else:
        floats = types.is_floating(found.type)
        if found.null_count and not floats:
            raise SignatureMismatch(f"column {name[:64]!r} has null, which is no value of {found.type}")
        if not _is_text(types, found.type):
            tensor = found.to_numpy(zero_copy_only=False)
        else:
            tensor = np.empty(len(found), object)
            tensor[:] = [item.encode() if isinstance(item, str) else item for item in found.to_pylist()]
    if tensor.dtype.kind == "O":
        check_bytes(sum(map(len, tensor.tolist())), max_bytes, f"column {name[:64]!r}")
    return tensor


def stream_of(outputs: Tensors) -> bytes:
    """Outputs as Arrow's streaming format."""
    arrow, ipc = need("pyarrow"), need("pyarrow.ipc")
    table, sink = _table(outputs), arrow.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def parquet_of(outputs: Tensors) -> bytes:
    """Outputs as a Parquet file."""
    arrow, files = need("pyarrow"), need("pyarrow.parquet")
    sink = arrow.BufferOutputStream()
    files.write_table(_table(outputs), sink)
    return bytes(sink.getvalue())


def _table(outputs: Tensors) -> Any:
    """A table with a column for each output, of lists of one size where it has more axes."""
    arrow = need("pyarrow")
    columns = {}
    for name, tensor in outputs.items():
        flat = tensor.reshape(-1)
        if tensor.dtype.kind == "O":
            try:
                column = arrow.array([item.decode() for item in flat.tolist()], arrow.string())
            except UnicodeDecodeError:
                column = arrow.array(flat.tolist(), arrow.binary())
        else:
            column = arrow.array(np.ascontiguousarray(flat.astype(flat.dtype.newbyteorder("="), copy=False)))
        for size in reversed(tensor.shape[1:]):
            column = arrow.FixedSizeListArray.from_arrays(column, size)
        columns[name] = column
    return arrow.table(columns)
