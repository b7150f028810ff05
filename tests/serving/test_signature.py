"""From nested lists to tensors: every dtype there and back, and a sentence for everything else."""

import json
import math
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from serving.errors import SignatureMismatch
from serving.signature import DTYPES, NUMBERS, STRING, Signature, TensorSpec

from .strategies import check_same, listed, tensors

INTEGERS = [dtype for dtype in NUMBERS if "int" in dtype]
FLOATS = ["float16", "float32", "float64"]
NAN, INFINITY = math.nan, math.inf
LONG = "x" * 100_000


def nested(depth, value=1):
    for _ in range(depth):
        value = [value]
    return value


def spec(text, name="x"):
    return TensorSpec.parse(name, text)


def signature(**inputs):
    return Signature(tuple(spec(text, name) for name, text in inputs.items()), ())


@st.composite
def specs_and_tensors(draw):
    """A spec, some of its sizes any, and a tensor of one or more rows; lists show an empty axis only at the end."""
    shape = draw(array_shapes(min_dims=1, max_dims=4, max_side=3)) + draw(st.sampled_from([(), (0,)]))
    tensor = draw(tensors(shape))
    sizes = tuple(draw(st.sampled_from([size, -1])) for size in shape[1:])
    return TensorSpec("x", STRING if tensor.dtype == object else tensor.dtype.name, sizes), tensor


@given(specs_and_tensors(), st.booleans())
def test_the_nested_lists_of_a_tensor_give_that_tensor_back(example, plain):
    spec, tensor = example
    value = json.loads(json.dumps(listed(tensor)))
    one = Signature((spec,), ())
    # the promise that no string, true or false is in there is kept only for numbers
    plain = plain and spec.dtype not in ("bool", STRING)
    check_same({"x": spec.array(value, plain)}, {"x": tensor})
    check_same(one.instances(value, plain), {"x": tensor})
    check_same(one.instances([{"x": row} for row in value], plain), {"x": tensor})
    check_same(one.columns({"x": value}, plain), {"x": tensor})
    check_same(one.columns(value, plain), {"x": tensor})
    check_same(one.instance({"x": value[0]}, plain), {"x": tensor[:1]})


@given(
    st.builds(
        TensorSpec, st.just("x"), st.sampled_from(DTYPES), st.lists(st.integers(-1, 10**6), max_size=4).map(tuple)
    )
)
def test_a_spec_is_parsed_from_what_it_is_written_as(spec):
    assert TensorSpec.parse("x", str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "dtype", "shape"),
    [
        ("float32", "float32", ()),
        ("int64[]", "int64", ()),
        (" float32 [8,8] ", "float32", (8, 8)),
        ("string[ -1 , 3 ]", "string", (-1, 3)),
    ],
)
def test_a_spec_may_be_written_with_any_spaces(text, dtype, shape):
    assert spec(text) == TensorSpec("x", dtype, shape)


@pytest.mark.parametrize(
    "text",
    ["", "float", "float32[", "float32[-2]", "float32[--1]", "float32[8 8]", "float32[8,,8]", "float32[8,]", "[8]"],
)
def test_a_spec_that_cannot_be_parsed_is_told_what_would_do(text):
    with pytest.raises(ValueError, match=r"^x = '.*': (write it as dtype\[|float is not one of bool, )"):
        spec(text)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_rows_of_the_spec(dtype):
    own = TensorSpec("x", dtype, (2, -1))
    zeros = Signature((own,), ()).samples(3)["x"]
    own.check(zeros)
    assert zeros.shape == (3, 2, 1) and not zeros.any()


@pytest.mark.parametrize(
    ("text", "value", "told"),
    [
        # not rows
        ("float32", None, "expected a list of rows, got null"),
        ("float32", 1, "expected a list of rows, got the number 1"),
        ("float32", True, "expected a list of rows, got true"),
        ("float32", "1", "expected a list of rows, got the string '1'"),
        ("float32[2]", [], "there are no rows"),
        ("string", [], "there are no rows"),
        # rows of another shape
        ("float32[2]", [[1, 2], [3]], "ragged lists, of 1 and of 2 elements"),
        ("float32[2]", [[1, 2], 3], "ragged lists, a list beside a value"),
        ("float32[2]", [1, [2, 3]], "ragged lists, a list beside a value"),
        ("string[2]", [["a", "b"], ["c"]], "ragged lists, of 1 and of 2 elements"),
        ("string[1]", [["a"], "b"], "ragged lists, a list beside a value"),
        ("float32[2]", [[1, 2, 3]], "one row has shape [3]"),
        ("float32[2]", [1, 2], "one row has shape []"),
        ("float32[2]", [[[1, 2]]], "one row has shape [1, 2]"),
        ("float32[2,3]", [[], []], "one row has shape [0]"),
        ("float32[-1]", [1], "one row has shape []"),
        ("float32", [[1]], "one row has shape [1]"),
        ("string[2]", ["a"], "one row has shape []"),
        ("string[2]", [["a"]], "one row has shape [1]"),
        ("string", [["a"]], "one row has shape [1]"),
        ("string", nested(32, "a"), f"one row has shape {[1] * 31}"),
        *((dtype, nested(500), "lists nested deeper than 1 with the rows") for dtype in ("float32", "int8", "string")),
        ("string", nested(33, "a"), "lists nested deeper than 1 with the rows"),
        ("float32[2]", [[1, [2]]], "ragged lists, a list beside a value"),
        ("float32[2]", [1, nested(500)], "ragged lists, a list beside a value"),
        # another kind of element
        *((dtype, [1, "2"], "found the string '2'") for dtype in (*INTEGERS, *FLOATS)),
        ("bool", ["true"], "found the string 'true'"),
        ("float32[2]", [[1, "2"]], "found the string '2'"),
        ("float32[2]", ["12"], "found the string '12'"),
        ("float32[2]", ["", ""], "found the string ''"),
        ("float32", ["x" * 1000], "found the string '" + "x" * 32 + "…'"),
        ("float32", ["\ud800"], "found the string '\\ud800'"),
        ("bool", [True, 1], "found the number 1"),
        ("bool", [1.0], "found the number 1.0"),
        *((dtype, [True], "found true") for dtype in (*INTEGERS, *FLOATS)),
        *((dtype, [1, False], "found false") for dtype in (*INTEGERS, *FLOATS)),
        ("float32", [1.5, True], "found true"),
        ("int8[2]", [[1, 2], [3, True]], "found true"),
        ("float32", [10**400, True], "found true"),
        *((dtype, [None], "found null") for dtype in DTYPES),
        ("float32", [1.5, None], "found null"),
        ("int8[1]", [[{}]], "found an object"),
        ("float32", [{"b64": "AA=="}], "found an object"),
        # numbers that do not fit
        *((dtype, [1, 1.5], "1.5 is not an integer") for dtype in INTEGERS),
        *((dtype, [NAN], "nan is not an integer") for dtype in INTEGERS),
        *((dtype, [-INFINITY], "-inf is not an integer") for dtype in INTEGERS),
        *((dtype, [0, np.iinfo(dtype).max + 1], "overflows it") for dtype in INTEGERS),
        *((dtype, [0, np.iinfo(dtype).min - 1], "overflows it") for dtype in INTEGERS),
        *((dtype, [10**400], "a number overflows it") for dtype in (*INTEGERS, *FLOATS)),
        ("float64", [1.5, 10**400], "a number overflows it"),
        ("int64", [1, 2**64], "a number overflows it"),
        ("int64", [1e300], "overflows it, or is not exact"),
        ("int64", [9007199254740993.0], "9007199254740992 overflows it, or is not exact"),
        ("uint64", [2**63, 1e18], "1e+18 overflows it, or is not exact"),
        ("uint64", [2**63, -1], "-1 overflows it"),
        ("float32", [1, 1e39], "1e+39 overflows it"),
        ("float32", [-(10**39)], "a number overflows it|-1e+39 overflows it"),
        ("float16", [70000], "70000 overflows it"),
        ("float16", [65520.0], "65520.0 overflows it"),
        # strings that are none
        ("string", [1], "found the number 1"),
        ("string", ["a", True], "found true"),
        ("string[2]", [["a", None]], "found null"),
        ("string", ["\ud800"], "found a string with half a surrogate pair, which is not UTF-8"),
        ("string", [{"b64": "AA="}], "found {'b64': …} that is not base64"),
        ("string", [{"b64": "A A="}], "found {'b64': …} that is not base64"),
        ("string", [{"b64": "ä"}], "found {'b64': …} that is not base64"),
        ("string", [{"b64": 1}], "found an object"),
        ("string", [{"b64": "AA==", "x": 1}], "found an object"),
    ],
)
@pytest.mark.parametrize("column", [True, False])
def test_what_does_not_fit_is_told_with_what_was_expected(text, value, told, column):
    own = spec(text, "image")
    with pytest.raises(SignatureMismatch) as caught:
        if column:
            Signature((own, spec("bool")), ()).columns({"image": value, "x": [True]})
        else:
            own.array(value)
    message = str(caught.value)
    assert message.startswith("input 'image': ")
    assert any(part in message for part in told.split("|"))
    assert message.endswith(f"; one row is {own}")


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("float32", [NAN, INFINITY, -INFINITY, 1], [NAN, INFINITY, -INFINITY, 1]),
        ("float16", [NAN, INFINITY, 65504], [NAN, INFINITY, 65504]),
        ("float64", [2**64, 10**308, 10**308, 0.5], [2.0**64, 1e308, 1e308, 0.5]),
        ("float32", [2**64], [2.0**64]),
        ("float32", [16777217, 0.1], [16777216, np.float32(0.1)]),
        ("int32", [1.0, -2.0], [1, -2]),
        ("uint64", [2**64 - 1, 1], [2**64 - 1, 1]),
        ("int64", [2**53 + 1, 1.0], [2**53 + 1, 1]),
        ("int64", [-(2**63), 2**63 - 1, 3.0], [-(2**63), 2**63 - 1, 3]),
        ("bool[-1]", [[], []], [[], []]),
        ("int8[-1]", [[], []], [[], []]),
        ("string[0]", [[]], [[]]),
        ("string", ["ä", {"b64": "/w=="}], [b"\xc3\xa4", b"\xff"]),
    ],
)
def test_a_value_is_the_one_that_was_sent(text, value, expected):
    own = spec(text)
    expected = np.array(expected, object if own.dtype == STRING else own.dtype)
    check_same({"x": own.array(value)}, {"x": expected})


@pytest.fixture
def a_gigabyte():
    """All the memory that there is beside what is in use."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    ("text", "first", "row", "last"),
    [
        ("float32", 1.5, 1, LONG),
        ("bool", LONG, True, True),
        ("int64[1,1]", [[1]], [[1]], [[LONG]]),
        # neither a list as short as a row nor a sum that is no float hides it
        ("float32[2]", [1, 2], [1, 2], LONG),
        ("float64[2]", [10**400, 1.5], [1, 2], [1, LONG]),
    ],
)
def test_one_long_string_beside_many_numbers_takes_no_memory(a_gigabyte, text, first, row, last):
    # as a numpy array of strings it would have 8 GB
    with pytest.raises(SignatureMismatch, match=r"found the string 'x+…'|a list beside a value"):
        spec(text).array([first, *[row] * 20_000, last])


ONE = signature(x="float32[2]")
TWO = signature(x="float32[2]", n="int8")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: ONE.instances(None), "'instances': expected a list of rows, got null"),
        (lambda: ONE.instances({}), "'instances': expected a list of rows, got an object"),
        (lambda: ONE.instances([]), "'instances': there are no rows"),
        (lambda: ONE.instances([{}]), "'instances'[0]: 'x' is missing; the model takes 'x' (float32[2])"),
        (lambda: ONE.instances([{"x": [1, 2]}, [1, 2]]), "'instances'[1]: expected an object with 'x', got a list"),
        (lambda: ONE.instances([[1, 2], {"x": [1, 2]}]), "input 'x': ragged lists, a list beside a value"),
        (lambda: TWO.instances([[1, 2]]), "'instances'[0]: expected an object with 'x', 'n', got a list"),
        (lambda: TWO.instances([{"n": 1}]), "'x' is missing; the model takes 'x' (float32[2]), 'n' (int8)"),
        (lambda: TWO.instances([{"x": [1, 2], "n": 1, "y": 0}]), "'instances'[0]: 'y' is unknown"),
        (lambda: TWO.instances([{"x": [1, 2], "n": 1}, {"x": [1], "n": 1}]), "input 'x': ragged lists"),
        (lambda: TWO.instances([{"x": [1, 2], "n": 300}]), "input 'n': 300 overflows it; one row is int8"),
        (lambda: TWO.columns([[1, 2]]), "'inputs': expected an object with 'x', 'n', got a list"),
        (lambda: TWO.columns({"x": [[1, 2]]}), "'inputs': 'n' is missing"),
        (lambda: TWO.columns({"x": [[1, 2]], "n": [1], "y" * 99: 1}), "'inputs': '" + "y" * 64 + "' is unknown"),
        (lambda: TWO.columns({"x": [[1, 2]], "n": [1, 2]}), "differ in their number of rows: {'x': 1, 'n': 2}"),
        (lambda: ONE.columns({"b64": ""}), "'inputs': 'x' is missing"),
        (lambda: ONE.columns("x"), "input 'x': expected a list of rows, got the string 'x'"),
        (lambda: ONE.instance([1, 2]), "the body: expected an object with 'x', got a list"),
        (lambda: ONE.instance({}), "the body: 'x' is missing"),
        (lambda: ONE.instance({"x": [1, 2], "\ud800": 1}), "the body: '\\ud800' is unknown"),
        (lambda: ONE.instance({"x": 1}), "input 'x': one row has shape []; one row is float32[2]"),
    ],
)
def test_names_and_rows_that_do_not_fit_are_told_with_their_place(call, told):
    with pytest.raises(SignatureMismatch) as caught:
        call()
    assert told in str(caught.value)


def test_an_input_named_b64_is_a_name_and_any_other_object_of_it_a_value():
    own, other = signature(b64="string"), signature(x="string")
    assert own.instances([{"b64": "AA=="}])["b64"].tolist() == [b"AA=="]
    assert other.instances([{"b64": "AA=="}])["x"].tolist() == [b"\0"]
    assert other.instance({"x": {"b64": "AA=="}})["x"].tolist() == [b"\0"]


NAMES = ["x", "y", "b64", "z"]
NUMBER = st.one_of(
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from([2**53, 2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**39, 10**308, -(10**400), 1e300, 65520]),
)
LEAF = st.one_of(
    NUMBER,
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.sampled_from(["\ud800", "1", {"b64": "AA=="}, {"b64": "!"}]),
)
JSON = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=12,
)
# near misses, that are seldom found by chance: rows of the right form, with anything as a leaf
ROWS = st.lists(st.one_of(JSON, st.lists(LEAF, min_size=2, max_size=2), NUMBER), max_size=3)
NAMED = st.fixed_dictionaries({"x": ROWS, "y": ROWS})
SIGNATURES = [
    signature(x="float32[2]"),
    signature(x="float64"),
    signature(b64="string"),
    signature(x="uint64[-1]"),
    signature(x="int8", y="bool"),
    signature(x="float16[-1]", y="string[2]"),
    signature(x="float64[2]", y="int64[2]"),
]


@given(st.sampled_from(SIGNATURES), st.one_of(JSON, ROWS, NAMED, st.lists(NAMED, max_size=3)))
def test_any_value_gives_tensors_that_fit_or_a_mismatch(own, value):
    for read in (own.instances, own.columns, own.instance):
        try:
            inputs = read(value)
        except SignatureMismatch as error:
            assert re.search(r"expected|one row is|the model takes|there are no rows|number of rows", str(error))
            continue
        assert list(inputs) == [spec.name for spec in own.inputs]
        assert own.rows(inputs) >= 1
        for spec in own.inputs:
            spec.check(inputs[spec.name])
            assert inputs[spec.name].dtype == (object if spec.dtype == STRING else spec.dtype)


MEASURED = Signature(
    (
        spec("float32[2]"),
        TensorSpec("unit", "string", (), "m"),
        TensorSpec("times", "int64", (), 2),
        TensorSpec("known", "float64", (), "NaN"),
    ),
    (),
)


@pytest.mark.parametrize("plain", [True, False])
def test_an_input_with_a_default_may_be_left_out(plain):
    one = MEASURED.instance({"x": [1, 2]}, plain)
    assert [one[name].tolist() for name in ("unit", "times")] == [[b"m"], [2]] and np.isnan(one["known"]).all()
    rows = MEASURED.instances([{"x": [1, 2]}, {"x": [3, 4], "times": 5}], plain)
    assert [rows[name].tolist() for name in ("unit", "times")] == [[b"m", b"m"], [2, 5]]
    columns = MEASURED.columns({"x": [[1, 2], [3, 4]], "unit": ["km", "m"]})
    assert [columns[name].tolist() for name in ("unit", "times")] == [[b"km", b"m"], [2, 2]]
    for inputs in (one, rows, columns):
        assert list(inputs) == [own.name for own in MEASURED.inputs]
        assert [tensor.dtype for tensor in inputs.values()] == [own.numpy for own in MEASURED.inputs]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: MEASURED.instance({"times": 3}), "'x' is missing; the model takes 'x' (float32[2]), 'unit' (string)"),
        (lambda: MEASURED.instance({"x": [1, 2], "time": 3}), "'time' is unknown; the model takes"),
        (lambda: MEASURED.instance({"x": [1, 2], "times": None}), "input 'times': found null; one row is int64"),
        (lambda: MEASURED.columns({"x": [[1, 2]], "times": [1, 2]}), "inputs differ in their number of rows"),
        (
            lambda: Signature(MEASURED.inputs[1:], ()).columns({}),
            "'inputs': it is empty, and does not tell how many rows there are",
        ),
    ],
)
def test_what_has_no_default_may_not(call, told):
    with pytest.raises(SignatureMismatch) as caught:
        call()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value", "sample"),
    [
        ("float32[2]", [1, 2], [[1, 2]] * 3),
        ("string", "a", [b"a"] * 3),
        ("string", {"b64": "/w=="}, [b"\xff"] * 3),
        # those that do not fit
        ("float32[2]", [1, 2, 3], [[0, 0]] * 3),
        ("int64", 1.5, [0] * 3),
        ("string", None, [b""] * 3),
    ],
)
def test_a_sample_is_what_stands_in_for_zeros(text, value, sample):
    own = spec(text).with_sample(value)
    assert own.samples(3).tolist() == sample
    assert own == spec(text)


def test_a_default_stands_in_for_zeros():
    assert [tensor.tolist() for tensor in MEASURED.samples(2).values()][:3] == [[[0, 0]] * 2, [b"m"] * 2, [2] * 2]


@pytest.mark.parametrize(
    ("texts", "lists"),
    [
        (["float32"], 1),
        (["float32[8]"], 2),
        (["float32[4, 3, 2]", "int8[-1]"], 1 + 1 + 4 + 12 + 1),
        (["string"], 2),
        (["string[3]", "bool"], 1 + 1 + 3),
    ],
)
def test_it_knows_of_how_many_lists_a_row_is_made(texts, lists):
    inputs = tuple(TensorSpec.parse(f"x{number}", text) for number, text in enumerate(texts))
    assert Signature(inputs, ()).lists_of_row == lists
    for text in ("string[-1]", "float32[-1, 2]"):
        assert Signature((*inputs, TensorSpec.parse("y", text)), ()).lists_of_row == math.inf
