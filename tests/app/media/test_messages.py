"""MessagePack, there and back, and what is refused of it."""

import numpy as np
import ormsgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import forms
from app.media import messages
from serving.errors import ClientError, DecodeError, FrameTooLarge, SignatureMismatch
from serving.signature import Signature, TensorSpec
from tests.app.conftest import signature
from tests.serving.strategies import check_same, tensors

TWO = signature({"x": "float32[2]", "name": "string"}, {"y": "float32"})
FORMS = {"predictions": forms.encode_instances, "outputs": forms.encode_columns, None: forms.encode_instance}


def decode(body, taken=TWO, max_rows=4):
    return messages.decode(body, taken, max_rows, {"serving_default": taken})


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@settings(deadline=None)
@given(shapes.flatmap(tensors), st.sampled_from(["predictions", "outputs"]))
def test_a_tensor_comes_back(tensor, form):
    dtype = "string" if tensor.dtype.kind == "O" else tensor.dtype.name
    taken = Signature((TensorSpec("x", dtype, tensor.shape[1:]),), ())
    told = ormsgpack.unpackb(messages.encode({"x": tensor}, FORMS[form]))
    sent = ormsgpack.packb({"instances" if form == "predictions" else "inputs": told[form]})
    inputs, encode, name = decode(sent, taken)
    check_same(inputs, {"x": tensor})
    assert (encode, name) == (FORMS[form], "")


def test_each_form_is_answered_in_the_same():
    row = {"x": [1.5, 2], "name": b"\xff"}
    outputs = {"y": np.array([[1.5]], np.float32), "z": np.array([b"\xff", b"a"], object)[:1]}
    for sent, answer in (
        ({"instances": [row]}, {"predictions": [{"y": [1.5], "z": b"\xff"}]}),
        ({"inputs": {name: [value] for name, value in row.items()}}, {"outputs": {"y": [[1.5]], "z": [b"\xff"]}}),
        (row, {"y": [1.5], "z": b"\xff"}),
    ):
        inputs, encode, _ = decode(ormsgpack.packb(sent))
        assert inputs["x"].tolist() == [[1.5, 2]] and inputs["name"].tolist() == [b"\xff"]
        assert ormsgpack.unpackb(messages.encode(outputs, encode)) == answer


def test_a_body_may_name_a_signature():
    other = signature({"n": "int64"}, {"y": "float32"})
    body = ormsgpack.packb({"signature_name": "other", "instances": [1, 2]})
    inputs, _, name = messages.decode(body, TWO, 4, {"serving_default": TWO, "other": other})
    assert (inputs["n"].tolist(), name) == ([1, 2], "other")
    with pytest.raises(SignatureMismatch, match="'signature_name' is \"other\"; the model has serving_default"):
        decode(body)


REFUSED = [
    (b"", DecodeError, "the body is empty; expected MessagePack"),
    (b"\xc1", DecodeError, "the body is not MessagePack: invalid type"),
    (b"\x91" * 5000, DecodeError, "not MessagePack: Recursion limit"),
    (b"\xdd\xff\xff\xff\xff\0", DecodeError, "not MessagePack: unexpected end"),
    (b"\x81\1\2", DecodeError, "not MessagePack"),
    (b"\xd4\1\0", DecodeError, "not MessagePack: ext_hook"),
    (b"\x81\xa1x", DecodeError, "not MessagePack"),
    (b"\xa1\xff", DecodeError, "not MessagePack: invalid UTF-8"),
    (b"\0", DecodeError, "the body is a bare value"),
    (ormsgpack.packb({"x": [1, 2], "name": "a"}) + b"\0", DecodeError, "the body goes on behind its MessagePack"),
    (ormsgpack.packb({"x": [1, 2], "name": "a"}) * 2, DecodeError, "the body goes on behind its MessagePack"),
    (ormsgpack.packb({"x": [1, 2], "name": "a"}) + b"\xc1", DecodeError, "not MessagePack: invalid type"),
    (ormsgpack.packb([1]), DecodeError, "the body is a list"),
    (ormsgpack.packb({"instances": [1] * 5}), FrameTooLarge, "5 rows and the limit is 4"),
    (ormsgpack.packb({"x": [1, True], "name": "a"}), SignatureMismatch, "found true"),
    (ormsgpack.packb({"x": [1, None], "name": "a"}), SignatureMismatch, "found null"),
    (ormsgpack.packb({"x": [1, b"2"], "name": "a"}), SignatureMismatch, "found bytes"),
    (ormsgpack.packb({"x": [1, 1e300], "name": "a"}), SignatureMismatch, "1e+300 overflows it"),
    (ormsgpack.packb({"x": [1, 2], "name": 3}), SignatureMismatch, "found the number 3"),
    (ormsgpack.packb({"x": b"12", "name": "a"}), SignatureMismatch, "input 'x'"),
    (ormsgpack.packb({"x": [1, 2]}), SignatureMismatch, "'name' is missing"),
    (b"\xdd\0\x10\0\0" + b"\x90" * (1 << 20), FrameTooLarge, "more than 131072 lists, objects and strings"),
    (b"\xdd\0\x10\0\0" + b"\xa0" * (1 << 20), FrameTooLarge, "more than 131072 lists, objects and strings"),
    (b"\xdd\0\x10\0\0" + b"\xc3" * (1 << 20), FrameTooLarge, "more than 131072 lists, objects and strings"),
    (b"\xdd\0\x10\0\0" + b"\xdc\0\0" * (1 << 20), FrameTooLarge, "more than 131072 lists, objects and strings"),
    (b"\xdd\0\x10\0\0" + b"\xa0\x80\xc4\0\1" * (1 << 20), FrameTooLarge, "more than 131072 lists, objects and strings"),
]


@pytest.mark.parametrize(("body", "error", "told"), REFUSED, ids=[f"{told} {len(body)}" for body, _, told in REFUSED])
def test_a_message_that_cannot_be_taken_is_refused(body, error, told):
    with pytest.raises(error) as refused:
        decode(body)
    assert told in str(refused.value)


@settings(deadline=None)
@given(st.binary() | st.binary(min_size=1, max_size=9).map(lambda part: part * 200))
def test_noise_is_no_fault(body):
    try:
        decode(body)
    except ClientError as error:
        assert str(error)


@settings(deadline=None)
@given(
    st.recursive(
        st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary() | st.text() | st.none() | st.booleans(), st.lists
    )
)
def test_lists_are_counted_wherever_they_are(value):
    # each value in its place is passed by: were one not, what follows would be counted for something else
    body = ormsgpack.packb([value])
    flood = b"\xdd" + (1 << 18).to_bytes(4) + body[1:] + b"\x90" * ((1 << 18) - 1)
    with pytest.raises(FrameTooLarge):
        messages._scan(flood)
    strings, words = messages._scan(body)
    told = repr(value)
    assert words == ("True" in told or "False" in told) or strings
