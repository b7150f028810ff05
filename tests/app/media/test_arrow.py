"""Arrow streams and Parquet files, there and back, and what is refused of them."""

import contextlib
import io
import struct
import tracemalloc

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.media import arrow
from serving.errors import ClientError, DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import DTYPES, Signature, TensorSpec
from tests.app.conftest import signature
from tests.serving.strategies import check_same, tensors

LIMIT = 1 << 20
ROWS = 16
READ = {"arrow": arrow.stream, "parquet": arrow.parquet}
WRITE = {"arrow": arrow.stream_of, "parquet": arrow.parquet_of}
X = signature({"x": "float32"}, {"y": "float32"})
TEXT = signature({"text": "string"}, {"y": "float32"})
KINDS = pytest.mark.parametrize("kind", READ)


def stream_file(table, **options):
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return file.getvalue()


def parquet_file(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


FILE = {"arrow": stream_file, "parquet": parquet_file}


def decode(kind, table, taken, **options):
    body = table if isinstance(table, bytes) else FILE[kind](table, **options)
    return READ[kind](body, taken, ROWS, LIMIT)


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@KINDS
@settings(deadline=None)
@given(tensor=shapes.flatmap(tensors))
def test_a_tensor_comes_back(kind, tensor):
    dtype = "string" if tensor.dtype.kind == "O" else tensor.dtype.name
    taken = Signature((TensorSpec("x", dtype, tensor.shape[1:]),), ())
    check_same(READ[kind](WRITE[kind]({"x": tensor}), taken, ROWS, LIMIT), {"x": tensor})


@KINDS
@settings(deadline=None)
@given(rows=st.lists(st.tuples(*(tensors((), (dtype,)) for dtype in DTYPES)), min_size=1, max_size=4))
def test_columns_come_back_by_name_in_any_order(kind, rows):
    outputs = {}
    for index, dtype in enumerate(DTYPES):
        outputs[dtype] = np.empty(len(rows), object if dtype == "string" else dtype)
        outputs[dtype][:] = [row[index].item() for row in rows]
    taken = Signature(tuple(TensorSpec(dtype, dtype) for dtype in DTYPES), ())
    check_same(READ[kind](WRITE[kind](dict(reversed(outputs.items()))), taken, ROWS, LIMIT), outputs)


@KINDS
def test_what_is_written_is_what_pandas_reads(kind):
    outputs = {
        "digit": np.array([4, 2]),
        "p": np.array([[0.1, np.nan], [1e-10, np.inf]], np.float32),
        "text": np.array([b"a", "ž".encode()], object),
        "bytes": np.array([b"\xff", b""], object),
    }
    file = pa.BufferReader(WRITE[kind](outputs))
    found = (pa.ipc.open_stream(file).read_all() if kind == "arrow" else pq.read_table(file)).to_pandas()
    assert found["digit"].tolist() == [4, 2] and found["text"].tolist() == ["a", "ž"]
    np.testing.assert_array_equal(np.stack(found["p"]), outputs["p"])
    assert found["bytes"].tolist() == [b"\xff", b""]


@KINDS
@pytest.mark.parametrize(
    ("taken", "columns", "expected"),
    [
        (X, {"x": [1.5, None]}, {"x": [1.5, np.nan]}),
        (X, {"x": pa.array([1, 2])}, {"x": [1, 2]}),
        (X, {"x": pa.array([1, None, 2], pa.float64())}, {"x": [1, np.nan, 2]}),
        (X, {"x": pa.array([1.0, 2.0, 1.0]).dictionary_encode()}, {"x": [1, 2, 1]}),
        (signature({"n": "int8"}, {}), {"n": [1.0, -128.0]}, {"n": [1, -128]}),
        (signature({"n": "uint64"}, {}), {"n": pa.array([2**64 - 1], pa.uint64())}, {"n": [2**64 - 1]}),
        (
            signature({"x": "float32[3]"}, {}),
            {"a": [1, 2], "b": [1.5, 2], "c": [3, 4]},
            {"x": [[1, 1.5, 3], [2, 2, 4]]},
        ),
        (signature({"x": "int64[2, 1]"}, {}), {"a": [2**62 + 1], "b": [1.0]}, {"x": [[[2**62 + 1], [1]]]}),
        (signature({"x": "float32[3]"}, {}), {"x": [[1, 2, 3], [4, 5, 6]]}, {"x": [[1, 2, 3], [4, 5, 6]]}),
        (signature({"x": "float32[2, 2]"}, {}), {"x": [[1, 2, 3, 4]]}, {"x": [[[1, 2], [3, 4]]]}),
        (signature({"x": "float32[-1]"}, {}), {"x": [[1], [2]]}, {"x": [[1], [2]]}),
        (signature({"x": "float32[2]", "n": "int8"}, {}), {"n": [1], "x": [[1, 2]]}, {"x": [[1, 2]], "n": [1]}),
        (signature({"s": "string[2]"}, {}), {"s": [["a", "ž"]]}, {"s": [[b"a", "ž".encode()]]}),
        (TEXT, {"text": pa.array(["a", "b", "a"]).dictionary_encode()}, {"text": [b"a", b"b", b"a"]}),
        (TEXT, {"text": pa.array([b"\xff"], pa.large_binary())}, {"text": [b"\xff"]}),
        (X, {"__index_level_0__": [7], "x": [1.0]}, {"x": [1]}),
    ],
)
def test_columns_are_found_by_name_or_by_place(kind, taken, columns, expected):
    found = decode(kind, pa.table(columns), taken)
    assert list(found) == [spec.name for spec in taken.inputs]
    for spec in taken.inputs:
        np.testing.assert_array_equal(found[spec.name], np.array(expected[spec.name], spec.numpy))


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_a_stream_may_be_compressed_and_in_batches(compression):
    table = pa.table({"x": pa.chunked_array([pa.array(np.arange(3.0)), pa.array([3.0])])})
    found = decode("arrow", table, X, compression=compression)
    assert found["x"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_parquet_file_may_be_of_any_kind(compression, version):
    table = pa.table({"x": [1.5, None, 2.5, 3.5]})
    for options in (
        {},
        {"use_dictionary": False},
        {"row_group_size": 2},
        {"column_encoding": {"x": "BYTE_STREAM_SPLIT"}, "use_dictionary": False},
    ):
        found = decode("parquet", table, X, compression=compression, data_page_version=version, **options)
        np.testing.assert_array_equal(found["x"], [1.5, np.nan, 2.5, 3.5])


def test_what_pandas_writes_is_read():
    file = io.BytesIO()
    pandas.DataFrame({"x": [1.5, 2.5]}, index=["a", "b"]).to_parquet(file)
    assert decode("parquet", file.getvalue(), X)["x"].tolist() == [1.5, 2.5]


REFUSED = [
    ({"x": [1.0] * 17}, X, FrameTooLarge, "17 rows and the limit is 16: max_request_rows"),
    ({"x": pa.array([], pa.float32())}, X, DecodeError, "the table has no rows"),
    ({}, X, ClientError, ""),
    ({"z": [1.0]}, X, SignatureMismatch, "column 'z' is unknown; the model takes x float32"),
    ({"x": [1.0], "z": [1.0]}, X, SignatureMismatch, "column 'z' is unknown"),
    ({"x": [True]}, X, SignatureMismatch, "found bool; one row is float32"),
    ({"x": ["1"]}, X, SignatureMismatch, "found string; one row is float32"),
    ({"x": [1e300]}, X, SignatureMismatch, "1e+300 overflows it"),
    ({"x": [[1.0, 2.0]]}, X, SignatureMismatch, "input 'x' is float32, and 2 columns of a table cannot be that"),
    ({"n": [1.5]}, signature({"n": "int8"}, {}), SignatureMismatch, "1.5 is not an integer"),
    ({"n": [128]}, signature({"n": "int8"}, {}), SignatureMismatch, "128 overflows it"),
    (
        {"n": [1, None]},
        signature({"n": "int8"}, {}),
        SignatureMismatch,
        "column 'n' has null, which is no value of int64",
    ),
    ({"text": ["a", None]}, TEXT, SignatureMismatch, "column 'text' has null"),
    ({"text": pa.array(["a", None]).dictionary_encode()}, TEXT, SignatureMismatch, "column 'text' has null"),
    ({"text": [1]}, TEXT, SignatureMismatch, "found int64; one row is string"),
    ({"a": [1.0]}, signature({"x": "float32[3]"}, {}), SignatureMismatch, "1 columns and input 'x' takes 3"),
    ({"x": [[1.0], [1.0, 2.0]]}, signature({"x": "float32[-1]"}, {}), SignatureMismatch, "ragged lists, of 1 and of 2"),
    ({"x": [[1.0], None]}, signature({"x": "float32[1]"}, {}), SignatureMismatch, "null where a list belongs"),
    ({"x": [[1.0, 2.0]]}, signature({"x": "float32[3]"}, {}), SignatureMismatch, "input 'x'"),
    (
        {"x": pa.array([1], pa.timestamp("s"))},
        X,
        SignatureMismatch,
        "column 'x' is timestamp[ms], which no input takes",
    ),
    ({"x": pa.array([{"a": 1}])}, X, SignatureMismatch, "which no input takes"),
    ({"x": pa.array([1], pa.decimal128(5))}, X, SignatureMismatch, "which no input takes"),
    ({"x": pa.nulls(2)}, X, SignatureMismatch, "which no input takes"),
]


@KINDS
@pytest.mark.parametrize(("columns", "taken", "error", "told"), REFUSED, ids=[told for *_, told in REFUSED])
def test_a_table_that_cannot_be_taken_is_refused(kind, columns, taken, error, told):
    if "timestamp" in told:
        told = "which no input takes"
    with pytest.raises(error) as refused:
        decode(kind, pa.table(columns), taken)
    assert told in str(refused.value)


def test_two_columns_of_one_name_are_refused():
    table = pa.table([pa.array([1.0]), pa.array([2.0])], names=["x", "x"])
    with pytest.raises(DecodeError, match="two columns 'x'"):
        decode("arrow", table, X)


@KINDS
def test_what_is_no_table_is_refused(kind):
    good = FILE[kind](pa.table({"x": [1.0]}))
    for body in (
        b"",
        b"\0" * 99,
        b"PAR1" * 9,
        good[:-20],
        good[: len(good) // 2],
        good[4:],
        FILE["parquet" if kind == "arrow" else "arrow"](pa.table({"x": [1.0]})),
    ):
        with contextlib.suppress(ClientError):
            # a stream may end without its last message
            assert decode(kind, body, X)["x"].tolist() == [1.0] and kind == "arrow"


@pytest.mark.parametrize("part", [b"\x19", b"\x1c", b"\x19\x1c"])
def test_a_footer_that_is_nested_without_end_is_refused(part):
    footer = part * 2000
    body = b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"
    with pytest.raises(DecodeError, match="the body is no Parquet file, or is broken"):
        decode("parquet", body, X)


def test_many_more_columns_than_a_model_takes_are_refused_before_they_are_read():
    body = parquet_file(pa.table({f"x{index}": [1.0] for index in range(999)}))
    with pytest.raises(FrameTooLarge, match="more than 18496 fields in its footer; write less columns"):
        decode("parquet", body, X)
    with pytest.raises(SignatureMismatch, match="'x' is missing"):
        arrow.parquet(body, X, ROWS, LIMIT, others=True)


POOLS = []


@contextlib.contextmanager
def little_memory():
    """What pyarrow allocates meanwhile stays near the limit."""
    pool = pa.proxy_memory_pool(pa.system_memory_pool())
    # what was allocated from it may live longer than a test
    POOLS.append(pool)
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        yield
        assert pool.max_memory() < 4 * LIMIT
    finally:
        pa.set_memory_pool(usual)


HUGE = pa.table({"text": ["x" * (64 << 20)]})
SHARED = pa.table({"text": ["x" * (LIMIT // 4)] * ROWS})
NESTED = pa.table({"text": pa.array([["x"] * (8 << 20)])})
ZEROS = pa.table({"x": pa.array([np.zeros(8 << 20, np.float32)])})


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (HUGE, {"compression": "zstd"}),
        (HUGE, {"compression": "gzip"}),
        (HUGE, {"compression": "brotli"}),
        (HUGE, {"compression": "zstd", "use_dictionary": False}),
        (HUGE, {"compression": "zstd", "data_page_version": "2.0"}),
        (SHARED, {}),
        (SHARED, {"compression": "zstd", "use_dictionary": False}),
        (NESTED, {}),
        (ZEROS, {}),
        (ZEROS, {"compression": "zstd", "use_dictionary": False}),
        (ZEROS, {"data_page_version": "2.0"}),
    ],
)
def test_a_parquet_bomb_is_not_unpacked(table, options):
    body = parquet_file(table, **options)
    assert len(body) < LIMIT
    with little_memory(), pytest.raises(FrameTooLarge, match="bytes unpacked, and the limit is 1048576"):
        arrow.parquet(body, TEXT if "text" in table.column_names else X, ROWS, LIMIT)


def test_strings_that_begin_as_the_one_before_are_not_unpacked():
    table = pa.table({"text": ["x" * 500_000 + str(number) for number in range(ROWS)]})
    body = parquet_file(table, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
    with little_memory(), pytest.raises(DecodeError, match="DELTA_BYTE_ARRAY; write it without that encoding"):
        arrow.parquet(body, TEXT, ROWS, LIMIT)


def test_more_row_groups_than_there_may_be_are_refused():
    body = parquet_file(pa.table({"x": [1.0] * 17}), row_group_size=1)
    with pytest.raises(FrameTooLarge, match="the Parquet file has 17 row groups; there may be 16"):
        arrow.parquet(body, X, 99, LIMIT)


def test_a_page_that_says_more_than_there_is_is_refused():
    body = parquet_file(
        pa.table({"x": [float(number) for number in range(9)]}), use_dictionary=False, compression="none"
    )
    # 0x15 is an integer: the first three of a page are its kind, its size and its size as it is stored
    assert body[4] == 0x15 and body[6] == 0x15
    for at in (7, 8, 9, 10):
        for value in (0xFF, 0x7F, 1):
            noisy = bytearray(body)
            noisy[at] = value
            with little_memory(), contextlib.suppress(ClientError):
                arrow.parquet(bytes(noisy), X, ROWS, LIMIT)


@pytest.mark.parametrize("table", [HUGE, ZEROS])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_an_arrow_bomb_is_not_unpacked(table, compression):
    body = stream_file(table, compression=compression)
    assert len(body) < LIMIT
    with little_memory(), pytest.raises(FrameTooLarge, match="the Arrow stream would be"):
        arrow.stream(body, TEXT, ROWS, LIMIT)


def test_an_arrow_dictionary_is_a_bomb_too():
    huge = pa.table({"text": HUGE["text"].combine_chunks().dictionary_encode()})
    with little_memory(), pytest.raises(FrameTooLarge, match="the Arrow stream would be"):
        arrow.stream(stream_file(huge, compression="zstd"), TEXT, ROWS, LIMIT)
    shared = pa.table({"text": SHARED["text"].combine_chunks().dictionary_encode()})
    with little_memory(), pytest.raises(FrameTooLarge, match="column 'text' would be 4194304 bytes"):
        arrow.stream(stream_file(shared), TEXT, ROWS, LIMIT)


MANY = 900_000
INDICES = pa.array(np.zeros(MANY, np.int8))


@pytest.mark.parametrize(
    ("values", "taken", "size"),
    [
        (pa.DictionaryArray.from_arrays(INDICES, pa.array(["a"])), "string[-1]", 32 * MANY),
        (pa.DictionaryArray.from_arrays(INDICES, pa.array([1.5])), "float64[-1]", 8 * MANY),
        (pa.array([""] * (MANY // 4)), "string[-1]", 8 * MANY),
        (pa.array(np.zeros(8 * MANY, bool)), "bool[-1]", 8 * MANY),
        (pa.array(np.zeros(MANY, np.int8)), "float64[-1]", 8 * MANY),
        (pa.array(np.zeros(MANY, np.float16)), "float32[3]", 4 * MANY),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_small_in_a_stream_and_large_in_a_tensor_is_not_unpacked(values, taken, size):
    body = stream_file(pa.table({"x": pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)}))
    taken = signature({"x": taken}, {})
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLarge, match=f"the table would be {size} bytes unpacked, and the limit is 2097152"):
            arrow.stream(body, taken, ROWS, 2 * LIMIT)
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


def test_the_columns_of_a_table_are_counted_together():
    table = pa.table({f"x{index}": [True] * ROWS for index in range(1000)})
    taken = signature({"x": "float64[1000]"}, {})
    body = stream_file(table)
    with pytest.raises(FrameTooLarge, match="the table would be 102528 bytes unpacked"):
        arrow.stream(body, taken, ROWS, 102_400)


def test_rows_are_counted_before_they_are_read():
    table = pa.table({"x": pa.chunked_array([pa.array([1.0])] * 17)})
    with pytest.raises(FrameTooLarge, match="17 rows and the limit is 16"):
        decode("arrow", table, X)
    empty = pa.RecordBatch.from_arrays([pa.array([], pa.float64())], ["x"])
    file = io.BytesIO()
    with pa.ipc.new_stream(file, empty.schema) as writer:
        for _ in range(17_000):
            writer.write_batch(empty)
    with pytest.raises(FrameTooLarge, match="more than 16400 messages"):
        arrow.stream(file.getvalue(), X, ROWS, 8 * LIMIT)


def test_offsets_that_point_outside_are_refused():
    body = bytearray(stream_file(pa.table({"text": ["abc", "defg"]})))
    at = bytes(body).index(struct.pack("<iii", 0, 3, 7))
    for offsets in ((0, 3, 1 << 30), (0, -5, 7), (7, 3, 0)):
        struct.pack_into("<iii", body, at, *offsets)
        with pytest.raises(DecodeError, match="the body is no Arrow stream"):
            decode("arrow", bytes(body), TEXT)


TABLE = pa.table({"x": [1.5, None], "text": ["a", "b"], "n": pa.array([[1, 2], [3, 4]])})
BOTH = signature({"x": "float32", "text": "string", "n": "int64[2]"}, {"y": "float32"})
BODIES = {
    "arrow": [stream_file(TABLE), stream_file(TABLE, compression="zstd")],
    "parquet": [
        parquet_file(TABLE),
        parquet_file(TABLE, compression="zstd", use_dictionary=False, data_page_version="2.0"),
    ],
}


@KINDS
@settings(max_examples=400, deadline=None)
@given(which=st.integers(0, 1), edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4))
def test_noise_is_no_fault(kind, which, edits):
    body = bytearray(BODIES[kind][which])
    for at, value in edits:
        body[int(at * (len(body) - 1))] = value
    try:
        decode(kind, bytes(body), BOTH)
    except ClientError as error:
        assert "\n" not in str(error) and str(error)
