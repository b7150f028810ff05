"""npy, npz and raw bytes, there and back, and what is refused of them."""

import io
import math
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.media import arrays
from serving.errors import ClientError, DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import NUMBERS, Signature, TensorSpec
from tests.app.conftest import signature
from tests.serving.strategies import LAYOUTS, check_same, tensors

LIMIT = 1 << 20
PAIR = signature({"x": "float32[2]"}, {"y": "float32"})
TWO = signature({"x": "float32[2]", "n": "int64"}, {"y": "float32"})


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(compress=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, **arrays)
    return file.getvalue()


def of(tensor, name="x"):
    """A signature that takes such tensors."""
    return Signature((TensorSpec(name, tensor.dtype.name, tensor.shape[1:]),), ())


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
numbers = shapes.flatmap(lambda shape: tensors(shape, NUMBERS))


@settings(deadline=None)
@given(numbers, st.sampled_from(LAYOUTS))
def test_a_tensor_comes_back_as_npy_npz_and_raw_bytes(tensor, layout):
    tensor = layout(tensor)
    outputs, taken = {"x": tensor}, of(tensor)
    check_same(arrays.npy(arrays.npy_of(outputs), taken, 4), outputs)
    check_same(arrays.npz(arrays.npz_of(outputs), taken, 4, LIMIT), outputs)
    headers, body = arrays.raw_of(outputs)
    named = {name.removeprefix("X-Tensor-").lower(): value for name, value in headers}
    check_same(arrays.raw(body, taken, 4, **named), outputs)
    check_same(arrays.raw(body, taken, 4), outputs)


@settings(deadline=None)
@given(numbers)
def test_what_is_written_is_what_numpy_reads(tensor):
    np.testing.assert_array_equal(np.load(io.BytesIO(arrays.npy_of({"y": tensor}))), tensor)
    found = np.load(io.BytesIO(arrays.npz_of({"file": tensor, "../b": tensor})))
    assert list(found) == ["file", "../b"]
    np.testing.assert_array_equal(found["file"], tensor)


@settings(deadline=None)
@given(numbers, st.sampled_from(LAYOUTS), st.booleans())
def test_what_numpy_writes_is_read(tensor, layout, compress):
    tensor = layout(tensor)
    check_same(arrays.npy(npy(tensor), of(tensor), 4), {"x": tensor})
    check_same(arrays.npz(npz(compress, x=tensor), of(tensor), 4, LIMIT), {"x": tensor})


@pytest.mark.parametrize("text", [np.array(["a", "žluť"]), np.array([b"a", b"\xff\0b"])])
def test_strings_are_read(text):
    found = arrays.npy(npy(text), signature({"x": "string"}, {"y": "string"}), 4)["x"]
    assert found.tolist() == [item if isinstance(item, bytes) else item.encode() for item in text.tolist()]


def test_an_array_may_be_of_another_dtype_that_changes_nothing():
    for dtype in ("float64", "float16", ">f4", "int64", "uint8", ">i2"):
        found = arrays.npy(npy(np.array([[1, 2]], dtype)), PAIR, 4)["x"]
        assert found.dtype == np.float32 and found.tolist() == [[1, 2]]
    whole = signature({"x": "uint8"}, {"y": "float32"})
    assert arrays.npy(npy(np.array([7.0, 255.0])), whole, 4)["x"].tolist() == [7, 255]


def test_headers_of_other_writers_are_read():
    data = np.array([[1, 2]], "<f4").tobytes()
    for text in (
        "{'shape': (1,2), 'fortran_order': False, 'descr': '<f4'}",
        '{"descr":"<f4","fortran_order":False,"shape":(1L, 2L)}   \n',
        " { 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 1 , 2 , ) , }",
    ):
        for version, size in ((1, "<H"), (2, "<I"), (3, "<I")):
            file = b"\x93NUMPY" + bytes([version, 0]) + struct.pack(size, len(text)) + text.encode() + data
            assert arrays.npy(file, PAIR, 4)["x"].tolist() == [[1, 2]]


def header(text, data=b""):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + data


def described(descr="'<f4'", order="False", shape="(1, 2)", data=bytes(8)):
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}", data)


REFUSED = {
    "nothing": (b"", DecodeError, "does not begin as an npy file"),
    "noise": (b"\0" * 99, DecodeError, "does not begin as an npy file"),
    "magic alone": (b"\x93NUMPY\1\0", DecodeError, "does not begin"),
    "a version to come": (b"\x93NUMPY\4\0" + described()[8:], DecodeError, "the npy header"),
    "a header that lies": (header("x" * 10)[:-5] + b"\xff", DecodeError, "the npy header"),
    "a long header": (header("{" + " " * 2000 + "}"), DecodeError, "the npy header"),
    "a slow header": (header("{" + "'a': 'b'" + " " * 1000), DecodeError, "the npy header"),
    "a header of many ways": (header("{" + "'a':True  " * 99 + "x"), DecodeError, "the npy header"),
    "a shape of many ways": (described(shape="(1" + " " * 900 + "L)"), DecodeError, "no array"),
    "an empty header": (header("{}"), DecodeError, "the npy header tells no array"),
    "code": (described("__import__('os').system('true')"), DecodeError, "the npy header"),
    "pickles": (npy(np.array([[{}, 1]], object), allow_pickle=True), DecodeError, "the npy header"),
    "a bare pickle": (pickle.dumps([1, 2]), DecodeError, "does not begin"),
    "records": (npy(np.zeros(2, [("a", "f4")])), DecodeError, "the npy header"),
    "dates": (npy(np.zeros((1, 2), "M8[s]")), DecodeError, "the npy header tells no array of numbers"),
    "complex": (npy(np.zeros((1, 2), "c8")), DecodeError, "but '<c8'"),
    "void": (described("'|V4'"), DecodeError, "but '|V4'"),
    "no size": (described("'<U0'"), DecodeError, "but '<U0'"),
    "no dtype": (described("'<f3'"), DecodeError, "'<f3', which is no dtype"),
    "a huge dtype": (described("'<U99999999'"), DecodeError, "but '<U99999999'"),
    "a long double": (npy(np.zeros((1, 2), np.longdouble)), SignatureMismatch, "found float128"),
    "less than it says": (
        described(data=bytes(7)),
        SignatureMismatch,
        "has 7 bytes, and shape [1, 2] of float32 needs 8",
    ),
    "more than it says": (described(data=bytes(9)), SignatureMismatch, "has 9 bytes"),
    "a shape past all memory": (described(shape="(1, 99999999999999999999)"), SignatureMismatch, "needs 399999999"),
    "no rows": (npy(np.zeros((0, 2), "f4")), SignatureMismatch, "there are no rows"),
    "no axis": (npy(np.float32(1)), SignatureMismatch, "no axis; the first one is the rows"),
    "one row alone": (npy(np.zeros(2, "f4")), SignatureMismatch, "one row has shape []; one row is float32[2]"),
    "another shape": (npy(np.zeros((1, 3), "f4")), SignatureMismatch, "one row has shape [3]"),
    "axes without end": (described(shape="(" + "1," * 40 + ")", data=bytes(4)), DecodeError, "no array"),
    "too many rows": (npy(np.zeros((5, 2), "f4")), FrameTooLarge, "5 rows and the limit is 4: max_request_rows"),
    "bool": (npy(np.zeros((1, 2), bool)), SignatureMismatch, "found bool; one row is float32[2]"),
    "string": (npy(np.array([["1", "2"]])), SignatureMismatch, "found string"),
    "overflow": (npy(np.array([[1e300, 0]])), SignatureMismatch, "1e+300 overflows it"),
}


@pytest.mark.parametrize(("body", "error", "told"), REFUSED.values(), ids=REFUSED)
def test_an_npy_that_cannot_be_taken_is_refused(body, error, told):
    with pytest.raises(error) as refused:
        arrays.npy(body, PAIR, 4)
    assert told in str(refused.value)
    if error is not DecodeError or body[:6] == b"\x93NUMPY":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", body)
        with pytest.raises(error):
            arrays.npz(file.getvalue(), PAIR, 4, LIMIT)


@pytest.mark.parametrize(
    ("dtype", "array", "told"),
    [
        ("int32", [1.5], "1.5 is not an integer"),
        ("int32", [math.nan], "nan is not an integer"),
        ("int64", [math.inf], "inf overflows it"),
        ("int64", [2.0**60], "1.152921504606847e+18 overflows it, or is not exact"),
        ("int32", [2**31], "2147483648 overflows it"),
        ("uint8", [-1], "-1 overflows it"),
        ("uint64", np.array([-1]), "-1 overflows it"),
        ("int64", np.array([2**63], "u8"), "9223372036854775808 overflows it"),
        ("float16", [65520.0], "65520.0 overflows it"),
        ("float16", [70000], "70000 overflows it"),
        ("bool", [1], "found int64"),
        ("string", [1], "found int64"),
        ("string", np.array(["a\ud800"]), "not Unicode"),
    ],
)
def test_no_value_is_changed(dtype, array, told):
    with pytest.raises(SignatureMismatch) as refused:
        arrays.npy(npy(np.array(array)), signature({"x": dtype}, {"y": "float32"}), 4)
    assert told in str(refused.value)


def test_bytes_that_are_no_bool_are_refused():
    taken = signature({"x": "bool"}, {"y": "float32"})
    with pytest.raises(SignatureMismatch, match="neither 0 nor 1"):
        arrays.npy(described("'|b1'", shape="(2,)", data=b"\1\2"), taken, 4)
    with pytest.raises(SignatureMismatch, match="neither 0 nor 1"):
        arrays.raw(b"\1\2", taken, 4)


@pytest.mark.parametrize("size", [2**41, 2**62, 2**64])
@pytest.mark.parametrize("order", ["False", "True"])
def test_sizes_that_no_tensor_has_are_refused(size, order):
    taken = signature({"x": "float64[-1, -1]"}, {"y": "float32"})
    with pytest.raises(SignatureMismatch, match="more than any tensor has"):
        arrays.npy(described("'<f4'", order, f"(1, 0, {size})", b""), taken, 4)
    with pytest.raises(SignatureMismatch, match="more than any tensor has"):
        arrays.raw(b"", taken, 4, f"1,0,{size % 10**17}")


def test_the_same_outputs_are_the_same_archive_at_any_time():
    archive = zipfile.ZipFile(io.BytesIO(arrays.npz_of({"y": np.zeros(1)})))
    theirs = zipfile.ZipFile(io.BytesIO(npz(y=np.zeros(1))))
    (own,), (other,) = archive.infolist(), theirs.infolist()
    assert (own.filename, own.date_time, own.external_attr) == (other.filename, other.date_time, other.external_attr)


@pytest.mark.parametrize(
    ("dtype", "kind", "width"), [("string[-1]", "S2", 32), ("float64[-1]", "i1", 8)], ids=["texts", "numbers"]
)
def test_what_is_small_in_a_file_and_large_in_a_tensor_is_not_unpacked(dtype, kind, width):
    array, taken = np.ones((1, LIMIT // 4), kind), signature({"x": dtype}, {"y": "float32"})
    told = f"input 'x' would be {array.size * width} bytes unpacked"
    with pytest.raises(FrameTooLarge, match=told):
        arrays.npy(npy(array), taken, 4, LIMIT)
    with pytest.raises(FrameTooLarge, match=told):
        arrays.npz(npz(x=array), taken, 4, LIMIT)
    if kind == "i1":
        with pytest.raises(FrameTooLarge, match=told):
            arrays.raw(array.tobytes(), taken, 4, f"1,{array.size}", "int8", LIMIT)


def test_an_npy_is_for_one_input_alone():
    with pytest.raises(SignatureMismatch, match="an npy file is one tensor, and the model takes x"):
        arrays.npy(npy(np.zeros((1, 2))), TWO, 4)
    left_out = Signature((*PAIR.inputs, TensorSpec("n", "int64", (), 7)), ())
    found = arrays.npy(npy(np.zeros((3, 2))), left_out, 4)
    assert found["n"].tolist() == [7, 7, 7]


def test_an_npz_has_inputs_by_name():
    found = arrays.npz(npz(n=np.array([7]), x=np.zeros((1, 2))), TWO, 4, LIMIT)
    assert list(found) == ["x", "n"] and found["n"].tolist() == [7]
    with pytest.raises(SignatureMismatch, match="'n' is missing"):
        arrays.npz(npz(x=np.zeros((1, 2))), TWO, 4, LIMIT)
    with pytest.raises(SignatureMismatch, match="array 'z' is unknown; the model takes"):
        arrays.npz(npz(x=np.zeros((1, 2)), z=np.zeros(1)), PAIR, 4, LIMIT)
    with pytest.raises(SignatureMismatch, match="differ in their number of rows"):
        arrays.npz(npz(n=np.array([7]), x=np.zeros((2, 2))), TWO, 4, LIMIT)


def archive_of(*members, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


GOOD = npy(np.zeros((1, 2), "f4"))


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        (b"", DecodeError, "the body is no npz archive"),
        (b"PK\5\6" + bytes(18), SignatureMismatch, "'x' is missing"),
        (npz(x=np.zeros((1, 2)))[:-9], DecodeError, "the body is no npz archive"),
        (archive_of(("x.npy", GOOD), ("x", GOOD)), DecodeError, "has 'x' twice"),
        (archive_of(("x.npy", GOOD), method=zipfile.ZIP_BZIP2), DecodeError, "in another way than by deflate"),
        (archive_of(("x.npy", GOOD), method=zipfile.ZIP_LZMA), DecodeError, "in another way than by deflate"),
        (archive_of(*((f"{name}.npy", b"") for name in range(99))), DecodeError, "more than 65 members"),
        (archive_of(("x.npy", bytes(9 << 20))), FrameTooLarge, "would be 9437184 bytes unpacked"),
        (archive_of(("x.npy", b"")), DecodeError, "does not begin"),
    ],
    ids=lambda value: None if isinstance(value, bytes | type) else value,
)
def test_an_npz_that_cannot_be_taken_is_refused(body, error, told):
    with pytest.raises(error) as refused:
        arrays.npz(body, PAIR, 4, LIMIT)
    assert told in str(refused.value)


def test_a_member_is_unpacked_as_far_as_it_says_and_no_further():
    body = bytearray(archive_of(("x.npy", bytes(9 << 20))))
    at = body.index(b"PK\1\2")
    struct.pack_into("<I", body, at + 24, 100)
    with pytest.raises(DecodeError, match="array 'x' cannot be unpacked: Bad CRC-32"):
        arrays.npz(bytes(body), PAIR, 4, LIMIT)


@settings(deadline=None)
@given(st.data())
def test_noise_in_a_file_is_no_fault(data):
    for body, read in (
        (GOOD, lambda body: arrays.npy(body, PAIR, 4)),
        (npz(True, x=np.zeros((1, 2)), n=np.array([1])), lambda body: arrays.npz(body, TWO, 4, LIMIT)),
    ):
        noisy = bytearray(body)
        for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=4)):
            noisy[at] = value
        try:
            read(bytes(noisy))
        except ClientError as error:
            assert str(error)


@pytest.mark.parametrize("shape", ["2,2", "2, 2", "(2, 2)", "[2,2]", " 2 , 2 ", "( 2,2 , )"])
@pytest.mark.parametrize("dtype", [None, "float32", "float64", "int8"])
def test_raw_bytes_have_their_shape_and_dtype_in_headers(shape, dtype):
    body = np.array([[1, 2], [3, 4]], dtype or "float32").tobytes()
    found = arrays.raw(body, PAIR, 4, shape, dtype)["x"]
    assert found.dtype == np.float32 and found.tolist() == [[1, 2], [3, 4]]


def test_a_size_that_is_open_needs_the_shape():
    taken = signature({"x": "float32[-1]"}, {"y": "float32"})
    assert arrays.raw(bytes(24), taken, 4, "2,3")["x"].shape == (2, 3)
    with pytest.raises(DecodeError, match="X-Tensor-Shape is missing"):
        arrays.raw(bytes(24), taken, 4)
    scalar = signature({"x": "float32"}, {"y": "float32"})
    assert arrays.raw(bytes(8), scalar, 4, "(2,)")["x"].shape == arrays.raw(bytes(8), scalar, 4)["x"].shape == (2,)


@pytest.mark.parametrize(
    ("size", "shape", "dtype", "error", "told"),
    [
        (16, "2,3", None, SignatureMismatch, "has 16 bytes, and shape [2, 3] of float32 needs 24"),
        (16, "4", None, SignatureMismatch, "one row has shape []"),
        (16, "-1,2", None, DecodeError, "X-Tensor-Shape is '-1,2'; expected sizes"),
        (16, "two", None, DecodeError, "X-Tensor-Shape is 'two'"),
        (16, "", None, DecodeError, "X-Tensor-Shape is ''"),
        (16, "²,2", None, DecodeError, "X-Tensor-Shape"),
        (16, "9" * 30, None, DecodeError, "X-Tensor-Shape"),
        (16, "1," * 50 + "1", None, DecodeError, "X-Tensor-Shape"),
        (16, "1" + " " * 8000 + "x", None, DecodeError, "X-Tensor-Shape is '1  "),
        (0, "0,2", None, SignatureMismatch, "there are no rows"),
        (16, "2,2", "string", SignatureMismatch, "X-Tensor-Dtype is 'string'"),
        (16, "2,2", "object", SignatureMismatch, "X-Tensor-Dtype is 'object'"),
        (16, "2,2", "<f4", SignatureMismatch, "X-Tensor-Dtype is '<f4'"),
        (15, None, None, SignatureMismatch, "has 15 bytes, not a multiple of 8"),
        (0, None, None, SignatureMismatch, "has 0 bytes"),
        (40, None, None, FrameTooLarge, "5 rows and the limit is 4"),
        (0, "999999999999,0", None, FrameTooLarge, "999999999999 rows"),
    ],
)
def test_raw_bytes_that_cannot_be_taken_are_refused(size, shape, dtype, error, told):
    with pytest.raises(error) as refused:
        arrays.raw(bytes(size), PAIR, 4, shape, dtype)
    assert told in str(refused.value)
