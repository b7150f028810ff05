"""The JSON of POST /predict, from bytes to tensors and back."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import codec, large
from serving.errors import DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import NUMBERS, STRING, Signature, TensorSpec


def specs(**texts):
    return tuple(TensorSpec.parse(name, text) for name, text in texts.items())


ONE = Signature(specs(x="float32[2]"), specs(y="float32[2]"))
TWO = Signature(specs(x="float32[2]", n="uint8"), specs(y="float32[2]", digit="int64"))
TEXT = Signature(specs(text="string"), specs(res="string"))
ANY = Signature(specs(x="float32[-1, 3]"), specs(y="float32[-1]"))
DEEP = 10_000
# a busy machine is no failure
PATIENTLY = settings(deadline=None)


def tensors(**values):
    return {name: np.array(value) for name, value in values.items()}


def through(signature, body, **outputs):
    """The answer to a body when the model gives these outputs."""
    _, encode, _ = codec.decode(body.encode(), signature)
    return encode(outputs).decode()


@pytest.mark.parametrize(
    ("signature", "body", "expected"),
    [
        (ONE, '{"instances": [[1, 2], [3.5, 4]]}', {"x": [[1, 2], [3.5, 4]]}),
        (ONE, '{"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}', {"x": [[1, 2], [3, 4]]}),
        (ONE, '{"inputs": {"x": [[1, 2]]}}', {"x": [[1, 2]]}),
        (ONE, '{"inputs": [[1, 2]]}', {"x": [[1, 2]]}),
        (ONE, ' {"x": [1, 2]}\n', {"x": [[1, 2]]}),
        (
            TWO,
            '{"instances": [{"n": 7, "x": [1, 2]}, {"x": [3, 4], "n": 255}]}',
            {"x": [[1, 2], [3, 4]], "n": [7, 255]},
        ),
        (TWO, '{"inputs": {"n": [7, 2.0], "x": [[1, 2], [3, 4]]}}', {"x": [[1, 2], [3, 4]], "n": [7, 2]}),
        (TWO, '{"n": 7, "x": [1, 2]}', {"x": [[1, 2]], "n": [7]}),
        (ANY, '{"instances": [[[1, 2, 3], [4, 5, 6]]]}', {"x": [[[1, 2, 3], [4, 5, 6]]]}),
        (ONE, '{"x": [NaN, -Infinity]}', {"x": [[np.nan, -np.inf]]}),
    ],
)
def test_each_form_is_read(signature, body, expected):
    inputs, _, _ = codec.decode(body.encode(), signature)
    assert list(inputs) == [spec.name for spec in signature.inputs]
    for spec in signature.inputs:
        assert inputs[spec.name].dtype == spec.dtype
        np.testing.assert_array_equal(inputs[spec.name], np.array(expected[spec.name], spec.dtype))


@pytest.mark.parametrize(
    ("signature", "body", "outputs", "answer"),
    [
        (ONE, '{"instances": [[1, 2], [3, 4]]}', {"y": [[0.5, 1], [2, 3]]}, '{"predictions":[[0.5,1.0],[2.0,3.0]]}'),
        (ONE, '{"inputs": [[1, 2]]}', {"y": [[0.5, 1]]}, '{"outputs":{"y":[[0.5,1.0]]}}'),
        (ONE, '{"x": [1, 2]}', {"y": [[0.5, 1]]}, '{"y":[0.5,1.0]}'),
        (
            TWO,
            '{"instances": [{"x": [1, 2], "n": 1}, {"x": [1, 2], "n": 2}]}',
            {"y": [[0.5, 1], [2, 3]], "digit": [1, 2]},
            '{"predictions":[{"y":[0.5,1.0],"digit":1},{"y":[2.0,3.0],"digit":2}]}',
        ),
        (
            TWO,
            '{"inputs": {"x": [[1, 2]], "n": [1]}}',
            {"y": [[0.5, 1]], "digit": [1]},
            '{"outputs":{"y":[[0.5,1.0]],"digit":[1]}}',
        ),
        (TWO, '{"x": [1, 2], "n": 1}', {"y": [[0.5, 1]], "digit": [1]}, '{"y":[0.5,1.0],"digit":1}'),
        (ONE, '{"x": [1, 2]}', {"y": [[True, False]]}, '{"y":[true,false]}'),
        (ONE, '{"instances": [[1, 2]]}', {"y": np.zeros((1, 0))}, '{"predictions":[[]]}'),
    ],
)
def test_the_answer_has_the_form_of_the_question(signature, body, outputs, answer):
    assert through(signature, body, **tensors(**outputs)) == answer


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (
            '{"instances": [{"x": [1, 2], "n": 1}, {"x": [1, 2], "n": 2}]}',
            '{"predictions":[{"y":[NaN,0.1],"digit":1},{"y":[-Infinity,Infinity],"digit":2}]}',
        ),
        (
            '{"inputs": {"x": [[1, 2], [1, 2]], "n": [1, 2]}}',
            '{"outputs":{"y":[[NaN,0.1],[-Infinity,Infinity]],"digit":[1,2]}}',
        ),
        ('{"x": [1, 2], "n": 1}', '{"y":[NaN,0.1],"digit":1}'),
    ],
)
def test_nan_and_infinity_are_written_in_each_form_beside_other_outputs(body, answer):
    # a NaN in one output once made the plain number of another fail: 500 instead of an answer
    y = np.array([[np.nan, 0.1], [-np.inf, np.inf]], np.float32)
    assert through(TWO, body, y=y, digit=np.array([1, 2])) == answer


@pytest.mark.parametrize(
    ("body", "items", "written"),
    [
        ('{"text": "héllo"}', ["héllo".encode()], ["héllo"]),
        ('{"text": {"b64": "/wA="}}', [b"\xff\0"], [{"b64": "/wA="}]),
        ('{"instances": ["a", {"b64": "Yg=="}, {"b64": ""}]}', [b"a", b"b", b""], ["a", "b", ""]),
        ('{"instances": [{"text": "a"}, {"text": {"b64": "/w=="}}]}', [b"a", b"\xff"], ["a", {"b64": "/w=="}]),
        ('{"inputs": {"text": ["", "\\u0000"]}}', [b"", b"\0"], ["", "\0"]),
    ],
)
def test_strings_and_bytes_travel_both_ways(body, items, written):
    inputs, encode, _ = codec.decode(body.encode(), TEXT)
    assert inputs["text"].tolist() == items
    answer = json.loads(encode({"res": inputs["text"]}))
    assert answer in ({"predictions": written}, {"outputs": {"res": written}}, {"res": written[0]})


def test_an_input_may_be_called_b64():
    inputs, _, _ = codec.decode(b'{"instances": [{"b64": "a"}]}', Signature(specs(b64="string"), specs(y="string")))
    assert inputs["b64"].tolist() == [b"a"]


BAD_JSON = [
    (ONE, b"", "the body is empty; expected JSON"),
    (ONE, b"{'x': 1}", "not JSON: Expecting property name enclosed in double quotes at offset 1"),
    (ONE, b'{"x": [1, 2}', "not JSON: Expecting ',' delimiter at offset 11"),
    # the offset counts bytes, as the sender does
    (ONE, '{"ž": [1, 2}'.encode(), "at offset 12"),
    (ONE, b'{"x": [1, 2]} {}', "not JSON: Extra data at offset 14"),
    (ONE, b'{"x": "a\xff"}', "not UTF-8: invalid start byte at offset 8"),
    (ONE, b'{"x": ' + b"1" * 5000 + b"}", f"a number of more than {sys.get_int_max_str_digits()} digits"),
    (ONE, b"[" * DEEP + b"]" * DEEP, "nested too deep"),
    (ONE, b"[" * DEEP, "nested too deep"),
    (ONE, b'{"x": ' * DEEP + b"1" + b"}" * DEEP, "nested too deep"),
    (ONE, b'{"instances": ' + b"[" * DEEP + b"]" * DEEP + b"}", "nested too deep"),
    (ONE, b'{"x": [1, 1e999]}', "the body holds 1e999, which is more than any float"),
    (ONE, b'{"x": [NaN, -1E400]}', "the body holds -1E400, which is more than any float"),
    (ONE, b'{"instances": [' + b"[0.5, 2.5]," * 999 + b"[0.5, 1e999]]}", "the body holds 1e999"),
    (ONE, b'{"x": [1, 1' + b"0" * 400 + b".5]}", "the body holds 1000"),
    (ONE, b"[[1, 2]]", 'the body is a list; expected an object: {"instances"'),
    (ONE, b"null", "the body is a bare value; expected an object"),
    (ONE, b'{"instances": [[1, 2]], "inputs": [[1, 2]]}', "has 'instances' and 'inputs' beside it"),
    (ONE, b'{"inputs": [[1, 2]], "x": [1, 2]}', "has 'inputs' and 'x' beside it"),
]
BAD_INPUT = [
    (ONE, '{"instances": []}', "there are no rows"),
    (ONE, '{"inputs": []}', "there are no rows"),
    (ONE, '{"instances": 3}', "'instances': expected a list of rows, got the number 3"),
    (ONE, '{"inputs": null}', "expected a list of rows, got null"),
    (ONE, '{"x": [[1, 2], [3]]}', "ragged lists, of 1 and of 2 elements"),
    (ONE, '{"x": [1, [2]]}', "ragged lists, a list beside a value"),
    (ONE, '{"x": 1}', "one row has shape []; one row is float32[2]"),
    (ONE, '{"x": [1, 2, 3]}', "one row has shape [3]; one row is float32[2]"),
    (ONE, '{"x": []}', "one row has shape [0]; one row is float32[2]"),
    (ANY, '{"x": [[1, 2]]}', "one row has shape [1, 2]; one row is float32[-1, 3]"),
    (ONE, '{"x": ' + "[" * 70 + "]" * 70 + "}", "nested deeper than 2"),
    (ONE, '{"x": ["1", 2]}', "found the string '1'; one row is float32[2]"),
    (ONE, '{"x": [1, null]}', "found null; one row is float32[2]"),
    (ONE, '{"x": [1, true]}', "found true; one row is float32[2]"),
    (ONE, '{"x": [1, {}]}', "found an object; one row is float32[2]"),
    (ONE, '{"x": [1, 1e39]}', "1e+39 overflows it; one row is float32[2]"),
    (ONE, '{"x": [1, 1' + "0" * 400 + "]}", "overflows it; one row is float32[2]"),
    (TWO, '{"x": [1, 2], "n": 1.5}', "'n': 1.5 is not an integer; one row is uint8"),
    (TWO, '{"x": [1, 2], "n": 256}', "'n': 256 overflows it; one row is uint8"),
    (TWO, '{"x": [1, 2], "n": -1}', "'n': -1 overflows it; one row is uint8"),
    (TWO, '{"x": [1, 2], "n": NaN}', "'n': nan is not an integer; one row is uint8"),
    (TWO, '{"x": [1, 2]}', "the body: 'n' is missing; the model takes 'x' (float32[2]), 'n' (uint8)"),
    (TWO, "{}", "the body: 'x', 'n' is missing"),
    (TWO, '{"x": [1, 2], "n": 1, "m": 1}', "the body: 'm' is unknown; the model takes 'x' (float32[2]), 'n' (uint8)"),
    (TWO, '{"instances": [{"x": [1, 2], "n": 1}, {"x": [1, 2]}]}', "'instances'[1]: 'n' is missing"),
    (TWO, '{"instances": [[1, 2]]}', "'instances'[0]: expected an object with 'x', 'n', got a list"),
    (TWO, '{"inputs": {"x": [[1, 2]], "n": [1, 2]}}', "inputs differ in their number of rows: {'x': 1, 'n': 2}"),
    (TWO, '{"inputs": [[1, 2]]}', "'inputs': expected an object with 'x', 'n', got a list"),
    (TEXT, '{"text": 3}', "found the number 3; one row is string"),
    (TEXT, '{"text": ["a"]}', "'text'"),
    (TEXT, '{"text": {"b64": "?"}}', "not base64; one row is string"),
    (TEXT, '{"text": "\\ud800"}', "half a surrogate pair"),
]


# more than any request has, and 8 MB of them are read in seconds
MANY = 300_000


@pytest.mark.parametrize("item", [b"[],", b"{},", b"[ ], "])
@pytest.mark.parametrize("read", [codec.decode, codec.decode_bare])
def test_more_lists_than_any_rows_have_are_refused_before_they_are_read(item, read):
    body = b'{"x": [' + item * MANY + b"]}"
    with pytest.raises(FrameTooLarge, match=f"has {MANY + 2} lists and objects, and 10 rows have 20: max_request_rows"):
        read(body, ONE, 10)
    with pytest.raises(FrameTooLarge, match=f"has {MANY + 2} lists and objects, and 10 rows have 20: max_request_rows"):
        read(body, TEXT, 10)


@pytest.mark.parametrize("item", [b"[],", b'\\"{}[]', b"[\\\\"])
def test_brackets_may_stand_in_strings(item):
    body = b'{"text": "' + item * MANY + b'"}'
    inputs, _, _ = codec.decode(body, TEXT, 10)
    assert inputs["text"].tolist() == [json.loads(b'"%b"' % (item * MANY)).encode()]


@pytest.mark.parametrize("end", [b"", b'"', b'"]}', b"\\"])
def test_a_flood_of_quotes_is_read_once(end):
    with pytest.raises((DecodeError, FrameTooLarge)):
        codec.decode(b'{"instances": [' + b"[" * MANY + b'\\"' * (1 << 20) + end, TEXT, 10)


def test_as_many_lists_as_rows_have_are_read():
    rows = MANY + codec._FREE_LISTS
    inputs, _, _ = codec.decode(b'{"instances": [' + b"[1,2]," * (rows - 1) + b"[1,2]]}", ONE, rows)
    assert inputs["x"].shape == (rows, 2)


@pytest.mark.parametrize(("signature", "body", "told"), BAD_JSON, ids=[told for *_, told in BAD_JSON])
def test_what_is_not_one_of_the_forms_is_refused(signature, body, told):
    with pytest.raises(DecodeError) as error:
        codec.decode(body, signature)
    assert told in str(error.value)


@pytest.mark.parametrize(("signature", "body", "told"), BAD_INPUT, ids=[told for *_, told in BAD_INPUT])
def test_what_does_not_fit_the_model_is_refused_with_what_was_found_and_expected(signature, body, told):
    with pytest.raises(SignatureMismatch) as error:
        codec.decode(body.encode(), signature)
    assert told in str(error.value)


def test_a_refusal_does_not_repeat_a_long_body():
    with pytest.raises(SignatureMismatch) as error:
        codec.decode(json.dumps({"x": ["y" * 10_000, 1]}).encode(), ONE)
    assert len(str(error.value)) < 200


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.fixed_dictionaries({"b64": st.text()})
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "n", "text", "b64"]), inner),
    max_leaves=12,
)
BODIES = st.binary() | st.builds(
    lambda value: json.dumps(value).encode(),
    VALUES | st.dictionaries(st.sampled_from(["instances", "inputs", "x", "n", "text"]), VALUES, max_size=3),
)


@pytest.mark.parametrize("signature", [ONE, TWO, TEXT, ANY], ids=["one", "two", "text", "any"])
@PATIENTLY
@given(body=BODIES)
def test_no_body_raises_anything_else(signature, body):
    try:
        inputs, _, _ = codec.decode(body, signature)
    except (DecodeError, SignatureMismatch):
        return
    assert signature.rows(inputs) > 0
    for spec in signature.inputs:
        spec.check(inputs[spec.name])


@st.composite
def columns(draw):
    """A dtype, and rows of two values that it can hold."""
    dtype = draw(st.sampled_from((*NUMBERS, STRING)))
    kind = np.dtype(object if dtype == STRING else dtype)
    values = {
        "O": lambda: st.text(),
        "b": lambda: st.booleans(),
        "f": lambda: st.floats(width=kind.itemsize * 8, allow_nan=False),
    }.get(kind.kind, lambda: st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max)))
    return dtype, draw(st.lists(st.lists(values(), min_size=2, max_size=2), min_size=1, max_size=5))


@PATIENTLY
@given(columns())
def test_encode_then_decode_is_the_identity(column):
    dtype, rows = column
    spec = TensorSpec("x", dtype, (2,))
    sent, encode, _ = codec.decode(json.dumps({"inputs": {"x": rows}}).encode(), Signature((spec,), (spec,)))
    answer = json.loads(encode(sent))["outputs"]
    if dtype == STRING:
        assert answer["x"] == rows
    else:
        assert np.array(answer["x"], dtype).tobytes() == np.array(rows, dtype).tobytes()


PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(1e300) | st.just(2**70),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.sampled_from(["x", '"', "b64"]), parts, max_size=2),
    max_leaves=8,
)
BODIES = st.one_of(
    st.builds(lambda part: {"x": part}, PARTS),
    st.builds(lambda part: {"inputs": part}, PARTS),
    st.builds(lambda parts: {"instances": parts}, st.lists(PARTS | st.builds(lambda part: {"x": part}, PARTS))),
    st.builds(lambda rows: {"instances": rows}, st.lists(st.lists(st.floats(), min_size=2, max_size=2))),
)


def test_a_byte_order_mark_is_refused_however_large_the_body_is():
    for zeros in (2, 10_000):
        taken = Signature((TensorSpec("x", "float32", (zeros,)),), ())
        with pytest.raises(DecodeError, match="BOM"):
            codec.decode(b"\xef\xbb\xbf" + json.dumps({"x": [0.5] * zeros}).encode(), taken)


SIZES = st.integers(1, 3)
SPECS = ["float32[2]", "float32[2,2]", "float64", "float64[1,1]", "float16[-1]", "int8[-1]", "bool", "string[2]"]


@settings(deadline=None, max_examples=2000)
@given(BODIES, st.sampled_from(SPECS), st.sampled_from([1, 3, 100]))
def test_all_ways_to_read_a_body_read_the_same(body, spec, max_rows):
    text, taken = json.dumps(body).encode(), Signature((TensorSpec.parse("x", spec),), ())

    def told():
        try:
            tensor = codec.decode(text, taken, max_rows)[0]["x"]
            return repr((tensor.dtype, tensor.shape, tensor.tolist()))
        except (DecodeError, FrameTooLarge, SignatureMismatch) as error:
            return repr(error)

    with pytest.MonkeyPatch.context() as patch:
        quick = told()
        patch.setattr(large, "_LARGE_BYTES", 1)
        much = told()
        patch.setattr(large, "_LARGE_BYTES", sys.maxsize)
        patch.setattr(codec, "has_words", lambda body: True)
        patch.setattr(TensorSpec, "packed", lambda spec, value: None)
        assert quick == told()
        assert much == told()


@PATIENTLY
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["x", "inputs", "instances"]), st.data()
)
def test_large_nested_lists_are_read_and_ragged_ones_refused(rows, height, width, form, data):
    sent = np.arange(rows * height * width, dtype=np.float32).reshape(rows, height, width) / 8
    value = sent.tolist() if form != "x" else sent[0].tolist()
    taken = Signature((TensorSpec("x", "float32", (height, width)),), ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "_LARGE_BYTES", 1)
        patch.setattr(codec, "_decode_slowly", None)
        patch.setattr(TensorSpec, "packed", None)
        inputs, _, _ = codec.decode(json.dumps({form: value}).encode(), taken)
    assert inputs["x"].dtype == np.float32
    assert inputs["x"].tolist() == (sent if form != "x" else sent[:1]).tolist()
    # one number moves from one list to another
    lists = value if form == "x" else [row for item in value for row in item]
    if len(lists) > 1:
        first, second = data.draw(st.permutations(range(len(lists))))[:2]
        lists[first].append(lists[second].pop())
        with pytest.raises(SignatureMismatch), pytest.MonkeyPatch.context() as patch:
            patch.setattr(large, "_LARGE_BYTES", 1)
            codec.decode(json.dumps({form: value}).encode(), taken)


@PATIENTLY
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.booleans())
def test_float32_arrives_with_the_bits_that_the_model_gave(values, with_nan):
    # a NaN among them takes another way out
    tensor = np.array(values + [np.nan] * with_nan, np.float32)
    _, encode, _ = codec.decode(b'{"instances": [[1, 2]]}', ONE)
    arrived = np.array(json.loads(encode({"y": tensor}))["predictions"], np.float32)
    assert arrived[: len(values)].tobytes() == tensor[: len(values)].tobytes()
    assert np.isnan(arrived[len(values) :]).all() and len(arrived) == len(tensor)


@pytest.mark.parametrize("size", [1, 5000])
@pytest.mark.parametrize("form", ["instances", "inputs"])
def test_a_body_names_the_signature_that_it_is_for(form, size):
    other = Signature(specs(z="float32[-1]"), specs(y="float32"))
    body = json.dumps({"signature_name": "other", form: [[0.5] * size]}).encode()
    inputs, _, name = codec.decode(body, ONE, 9, {"serving_default": ONE, "other": other})
    assert name == "other"
    assert {key: tensor.tolist() for key, tensor in inputs.items()} == {"z": [[0.5] * size]}
    assert codec.decode(json.dumps({form: [[1, 2]]}).encode(), ONE, 9, {"other": other})[2] == ""


@pytest.mark.parametrize("name", ['"mine"', "null", "[1]", "1", '{"a": 1}'])
def test_a_signature_that_the_model_does_not_have_is_told_with_those_that_it_has(name):
    body = b'{"signature_name": %s, "instances": [[1, 2]]}' % name.encode()
    with pytest.raises(SignatureMismatch, match="the model has serving_default, other"):
        codec.decode(body, ONE, 9, {"serving_default": ONE, "other": ONE})


def test_a_signature_name_that_is_nested_deeply_is_refused():
    deep = b"[" * 1000 + b"]" * 1000
    with pytest.raises(SignatureMismatch, match="'signature_name' is no string"):
        codec.decode(b'{"signature_name": %s, "instances": [[1, 2]]}' % deep, ONE, 9, {})


def test_an_input_may_be_called_signature_name():
    taken = Signature(specs(signature_name="string"), specs(y="float32"))
    inputs, _, name = codec.decode(b'{"signature_name": "a"}', taken, 9, {"a": taken})
    assert (inputs["signature_name"].tolist(), name) == ([b"a"], "")
