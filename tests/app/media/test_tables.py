"""CSV, there and back, and what is refused of it."""

import io
import tracemalloc

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.media import tables
from serving.errors import ClientError, DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import DTYPES, Signature, TensorSpec
from tests.app.conftest import signature
from tests.serving.strategies import check_same, tensors

LIMIT = 1 << 20
NAMED = signature({"a": "float32", "n": "int32", "flag": "bool", "text": "string"}, {"y": "float32"})
PAIR = signature({"x": "float32", "z": "float32"}, {"y": "float32"})
WIDE = signature({"x": "float32[4]"}, {"y": "float32"})


def decode(body, taken, header=None, max_rows=4):
    return tables.decode(body.encode() if isinstance(body, str) else body, taken, max_rows, LIMIT, header)


def is_text(tensor):
    """Whether all strings of it are UTF-8, without what CSV makes one of: line ends."""
    try:
        return tensor.dtype.kind != "O" or all("\r" not in item.decode() for item in tensor.ravel().tolist())
    except UnicodeDecodeError:
        return False


shapes = st.tuples(st.integers(1, 4)) | st.tuples(st.integers(1, 4), st.integers(2, 3), st.integers(1, 3))
columns = shapes.flatmap(lambda shape: tensors(shape, DTYPES)).filter(is_text)


@settings(deadline=None)
@given(columns, st.booleans())
def test_a_tensor_comes_back(tensor, header):
    dtype = "string" if tensor.dtype.kind == "O" else tensor.dtype.name
    taken = Signature((TensorSpec("x", dtype, tensor.shape[1:]),), ())
    body = tables.encode({"x": tensor}, header)
    check_same(tables.decode(body, taken, 4, LIMIT, header), {"x": tensor})


@settings(deadline=None)
@given(st.lists(st.tuples(*(tensors((), (dtype,)).filter(is_text) for dtype in DTYPES)), min_size=1, max_size=4))
def test_columns_come_back_by_name_in_any_order(rows):
    outputs = {}
    for index, dtype in enumerate(DTYPES):
        outputs[dtype] = np.empty(len(rows), object if dtype == "string" else dtype)
        outputs[dtype][:] = [row[index].item() for row in rows]
    taken = Signature(tuple(TensorSpec(dtype, dtype) for dtype in DTYPES), ())
    body = tables.encode(dict(reversed(outputs.items())))
    check_same(tables.decode(body, taken, 4, LIMIT), outputs)


def test_what_is_written_is_what_pandas_reads():
    outputs = {
        "digit": np.array([4, 2]),
        "p": np.array([[0.1, np.nan], [1e-10, np.inf]], np.float32),
        "text": np.array(['a "b", c', "ž\n"], object),
        "good": np.array([True, False]),
    }
    outputs["text"][:] = [item.encode() for item in outputs["text"]]
    body = tables.encode(outputs)
    assert body.startswith(b"digit,p_0,p_1,text,good\n4,0.1,nan,")
    found = pandas.read_csv(io.BytesIO(body))
    assert found["text"].tolist() == ['a "b", c', "ž\n"] and found["good"].tolist() == [True, False]
    np.testing.assert_array_equal(found[["p_0", "p_1"]].to_numpy(np.float32), outputs["p"])


@pytest.mark.parametrize(
    ("taken", "body", "header", "expected"),
    [
        (WIDE, "1,2,3,4\n5,6,7,8\n", None, {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
        (WIDE, "1,2,3,4\r\n\r\n5,6,7,8", False, {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
        (WIDE, "a,b,c,d\n1,-2.5,1e3,.5", None, {"x": [[1, -2.5, 1000, 0.5]]}),
        (WIDE, "1,2,3,4\n5,6,7,8\n", True, {"x": [[5, 6, 7, 8]]}),
        (WIDE, "Infinity,INF,-Inf,+inf", None, {"x": [[np.inf, np.inf, -np.inf, np.inf]]}),
        (WIDE, "\ufeff1,nan,-inf,\n", None, {"x": [[1, np.nan, -np.inf, np.nan]]}),
        (signature({"x": "int64[2, 2]"}, {}), "1,2.0,-3,9223372036854775807", None, {"x": [[[1, 2], [-3, 2**63 - 1]]]}),
        (signature({"x": "float32[-1]"}, {}), "1\n2\n", None, {"x": [[1], [2]]}),
        (signature({"x": "float32[-1, 2]"}, {}), "1,2,3,4,5,6", None, {"x": [[[1, 2], [3, 4], [5, 6]]]}),
        (signature({"x": "string[2]"}, {}), "a,b\nc,d", None, {"x": [[b"a", b"b"], [b"c", b"d"]]}),
        (signature({"x": "string[2]"}, {}), "a,b\nc,d", True, {"x": [[b"c", b"d"]]}),
        (signature({"text": "string"}, {}), 'text\n"a, ""b"""\n', None, {"text": [b'a, "b"']}),
        (signature({"text": "string"}, {}), "hello\n", None, {"text": [b"hello"]}),
        (NAMED, "text,flag,n,a\nq,True,1,\n", None, {"a": [np.nan], "n": [1], "flag": [True], "text": [b"q"]}),
        (NAMED, "1.5,2,false,q", None, {"a": [1.5], "n": [2], "flag": [False], "text": [b"q"]}),
        (signature({"a": "int32", "b": "int32"}, {}), "b,a\n1,2", None, {"a": [2], "b": [1]}),
    ],
)
def test_columns_are_found_by_name_or_by_place(taken, body, header, expected):
    found = decode(body, taken, header)
    assert list(found) == [spec.name for spec in taken.inputs]
    for spec in taken.inputs:
        np.testing.assert_array_equal(found[spec.name], np.array(expected[spec.name], spec.numpy))
        assert found[spec.name].dtype == spec.numpy


def test_an_input_with_a_default_may_be_left_out():
    left_out = Signature((TensorSpec("x", "float32", (2,)), TensorSpec("t", "float32", (), 0.5)), ())
    assert decode("1,2\n3,4", left_out)["t"].tolist() == [0.5, 0.5]
    params = (TensorSpec("p", "float32", (), 0.5), TensorSpec("k", "int32", (), 7))
    for inputs, body in (((TensorSpec("x", "float32"),), "1\n3"), ((*PAIR.inputs[::-1],), "2,1\n4,3")):
        taken = Signature((*inputs, *params), ())
        found = decode(body, taken, False)
        assert found["x"].tolist() == [1, 3] and found["k"].tolist() == [7, 7]
        assert decode("5,5,5,5\n"[-2 * len(taken.inputs) :], taken, False)["k"].tolist() == [5]
        with pytest.raises(SignatureMismatch, match="the table has 7 columns without names"):
            decode("1,2,3,4,5,6,7", taken, False)


SIX = "1,2,3,4\n" * 5
REFUSED = [
    (WIDE, "", None, DecodeError, "the body is empty; expected CSV"),
    (WIDE, "\n\n", None, DecodeError, "the body is empty; expected CSV"),
    (WIDE, "a,b,c,d\n", None, DecodeError, "the table has no rows"),
    (
        WIDE,
        "1;2;3;4\n",
        None,
        DecodeError,
        "the first line is '1;2;3;4', parted by ';'; it is commas that part columns",
    ),
    (WIDE, "1.5\t2\t3\t4\n", None, DecodeError, "parted by '\\t'; it is commas that part columns"),
    (WIDE, "a,b,c,d\n" + SIX + "1,2,3,4,5\n", None, DecodeError, "line 7 has 5 columns and the header 4"),
    (WIDE, SIX + "\n1,2,3\n", None, DecodeError, "line 7 has 3 columns and line 1 4"),
    (WIDE, "1,2,3\n", None, SignatureMismatch, "the table has 3 columns and input 'x' takes 4: float32[4]"),
    (WIDE, "1,2,3,4\n1,two,3,4", None, SignatureMismatch, "line 2 has 'two' in column 2; input 'x' is float32[4]"),
    (WIDE, "1,2,3,1_0", None, SignatureMismatch, "line 1 has '1_0' in column 4"),
    (WIDE, "1,2,3,1e39", None, SignatureMismatch, "1e+39 overflows it"),
    (WIDE, "1,2,3,1e400", None, SignatureMismatch, "line 1 has '1e400' in column 4; input 'x' is float32[4]"),
    (WIDE, "1,inf,nan,-" + "9" * 400, None, SignatureMismatch, "line 1 has '-999"),
    (WIDE, "1,2,3,4\n" * 9, None, FrameTooLarge, "9 rows and the limit is 8: max_request_rows"),
    (WIDE, b"1,2,\xff,4", None, DecodeError, "the body is not UTF-8: invalid start byte at offset 4"),
    (WIDE, '1,2,"3,4', None, DecodeError, "line 1 is not CSV: unexpected end of data"),
    (WIDE, '1,2,"3"x,4', None, DecodeError, "line 1 is not CSV"),
    (NAMED, "a,n,flag,text,z\n1,2,true,q,1\n", None, SignatureMismatch, "column 'z' is unknown; the model takes"),
    (NAMED, "a,n,flag,text,a\n1,2,true,q,1\n", None, DecodeError, "the table has two columns 'a'"),
    (NAMED, "a,n,flag\n1,2,true\n", True, SignatureMismatch, "'text' is missing"),
    (NAMED, "1,2,true", False, SignatureMismatch, "3 columns without names, and the model takes"),
    (NAMED, "a,n,flag,text\n1,,true,q\n", None, SignatureMismatch, "line 2 has '' in column 2; input 'n' is int32"),
    (NAMED, "a,n,flag,text\n1,1.5,true,q\n", None, SignatureMismatch, "line 2 has '1.5' in column 2"),
    (NAMED, "a,n,flag,text\n1,9e18,true,q\n", None, SignatureMismatch, "line 2 has '9e18' in column 2"),
    (NAMED, "a,n,flag,text\n1,1e999,true,q\n", None, SignatureMismatch, "line 2 has '1e999' in column 2"),
    (NAMED, "a,n,flag,text\n1,2147483648,true,q\n", None, SignatureMismatch, "2147483648 overflows it"),
    (NAMED, "a,n,flag,text\n1,2,1,q\n", None, SignatureMismatch, "line 2 has '1' in column 3; input 'flag' is bool"),
    (NAMED, "a,n,flag,text\n1," + "9" * 5000 + ",true,q\n", None, SignatureMismatch, "in column 2"),
    (NAMED, "a,n,flag,text\n1,2,true," + "q" * 200_000, None, DecodeError, "field larger than field limit"),
    (signature({"x": "float32[2]", "y": "float32[2]"}, {}), "1,2", None, SignatureMismatch, "cannot be that"),
    (signature({"x": "float32[-1, -1]"}, {}), "1,2", None, SignatureMismatch, "cannot be that"),
    (signature({"x": "float32[-1, 2]"}, {}), "1,2,3", None, SignatureMismatch, "and 3 columns of a table cannot be"),
]


@pytest.mark.parametrize(("taken", "body", "header", "error", "told"), REFUSED, ids=[told for *_, told in REFUSED])
def test_a_table_that_cannot_be_taken_is_refused(taken, body, header, error, told):
    with pytest.raises(error) as refused:
        decode(body, taken, header, max_rows=8)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "body", [b"," * LIMIT, b"\n" * LIMIT, b"\r" * LIMIT, b"1,2,3,4\n" * (LIMIT // 8), b'"",' * (LIMIT // 3)]
)
@pytest.mark.parametrize("taken", [WIDE, NAMED, signature({"x": "float32[-1]"}, {}), signature({"x": "string"}, {})])
def test_a_flood_of_cells_is_refused_before_there_is_an_object_for_each(body, taken):
    tracemalloc.start()
    try:
        with pytest.raises(ClientError):
            decode(body, taken)
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()


def test_a_row_of_any_size_has_as_many_cells_as_fit_into_memory():
    taken = signature({"x": "float32[-1]"}, {"y": "float32"})
    assert decode("1," * (LIMIT // 32) + "1", taken)["x"].shape == (1, LIMIT // 32 + 1)
    with pytest.raises(FrameTooLarge, match=r"has 32769 cells, and may have 32768 for this model.*send large tensors"):
        decode("1," * (LIMIT // 32 + 1) + "1", taken)


def test_a_quote_within_a_cell_hides_none():
    taken = signature({"x": "float32[3]"}, {"y": "float32"})
    for body in ('1"' + ",1" * 200_000, '1,"2' + ",1" * 200_000 + '"' + ",1" * 200_000):
        with pytest.raises(FrameTooLarge, match="cells, and may have"):
            decode(body, taken)


def test_what_stands_in_quotes_is_no_cell():
    text = "a,b\n" * 9999
    assert decode(f'"{text}"', signature({"text": "string"}, {}), False)["text"].tolist() == [text.encode()]


@settings(deadline=None)
@given(
    st.text(st.sampled_from('1,2.e-\n\r"aαnif \0')),
    st.sampled_from([WIDE, NAMED]),
    st.sampled_from([None, True, False]),
)
def test_noise_is_no_fault(body, taken, header):
    try:
        decode(body, taken, header)
    except ClientError as error:
        assert str(error)


def test_a_string_that_is_no_text_cannot_be_written():
    with pytest.raises(ClientError, match="output 'y' is not UTF-8, and so no CSV"):
        tables.encode({"y": np.array([b"\xff"], object)})
