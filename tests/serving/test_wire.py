"""Frames: what is encoded comes back, whatever the tensors are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import DeadlineExceeded, EngineError, ServingError, Unavailable
from serving.signature import DTYPES, STRING
from serving.task import Reply, Task
from serving.wire import (
    MAX_REQUEST_ID,
    content,
    decode_reply,
    decode_task,
    encode_reply,
    encode_task,
    peek_request_id,
)

from .strategies import LAYOUTS, SHAPES, check_same, tensors

UUID = bytes(range(16))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
SECONDS = st.floats(0, 1e12)


@st.composite
def arranged(draw):
    """A tensor that lies in memory in some way."""
    tensor = draw(tensors(SHAPES))
    return draw(st.sampled_from(LAYOUTS))(tensor) if tensor.ndim else tensor


NAMED = st.dictionaries(NAMES, arranged(), max_size=4)


def task(inputs, request_id="id", rows=1):
    return Task(UUID, request_id, 1.5, 2.5, rows, inputs)


@given(
    st.binary(min_size=16, max_size=16),
    st.text(max_size=63),
    SECONDS,
    SECONDS,
    st.integers(0, 2**32 - 1),
    NAMED,
)
def test_a_task_that_is_encoded_and_decoded_is_the_same(uuid, request_id, offered, deadline, rows, inputs):
    frame = encode_task(Task(uuid, request_id, offered, deadline, rows, inputs))
    found = decode_task(frame)
    assert (found.uuid, found.request_id) == (uuid, request_id)
    assert (found.offered, found.deadline, found.rows) == (offered, deadline, rows)
    assert peek_request_id(frame) == request_id
    check_same(found.inputs, inputs)
    # and so does what was decoded, which lies in the frame
    assert encode_task(found) == frame


@given(NAMED, st.text(max_size=63), st.text(max_size=63), SECONDS, SECONDS)
def test_the_same_inputs_have_the_same_content_whatever_their_request_is_called(inputs, one, other, now, later):
    first = encode_task(Task(UUID, one, now, later, 1, inputs))
    second = encode_task(Task(bytes(16), other, later, now, 1, inputs))
    assert content(first) == content(second)
    # another signature makes something else of them
    assert content(first) != content(encode_task(Task(UUID, one, now, later, 1, inputs, "other")))


@given(NAMED, st.text(max_size=63), NAMES)
def test_a_task_names_its_signature(inputs, request_id, signature):
    frame = encode_task(Task(UUID, request_id, 1.5, 2.5, 1, inputs, signature))
    found = decode_task(frame)
    assert (found.signature, found.request_id, peek_request_id(frame)) == (signature, request_id, request_id)
    check_same(found.inputs, inputs)


@given(NAMED, st.text(max_size=63), NAMES, st.binary(max_size=600))
def test_a_task_takes_its_trace_along_and_is_the_same_input_with_it(inputs, request_id, signature, trace):
    frame = encode_task(Task(UUID, request_id, 1.5, 2.5, 1, inputs, signature, trace))
    found = decode_task(frame)
    assert (found.trace, found.signature, found.request_id) == (trace, signature, request_id)
    assert peek_request_id(frame) == request_id
    check_same(found.inputs, inputs)
    assert content(frame) == content(encode_task(Task(UUID, "another", 1.5, 2.5, 1, inputs, signature)))


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 1),
    st.floats(0, 1e9, width=32),
    st.floats(0, 1e9, width=32),
    NAMED,
)
def test_a_reply_that_is_encoded_and_decoded_is_the_same(uuid, version, queue_ms, predict_ms, outputs):
    found = decode_reply(encode_reply(Reply(uuid, version, queue_ms, predict_ms, outputs)))
    assert (found.uuid, found.version, found.queue_ms, found.predict_ms) == (uuid, version, queue_ms, predict_ms)
    assert found.error is None
    check_same(found.outputs, outputs)


@pytest.mark.parametrize("error", [ServingError, DeadlineExceeded, EngineError, Unavailable])
def test_an_error_comes_back_with_its_detail(error):
    found = decode_reply(encode_reply(Reply(UUID, 1, error=error("what – happened"))))
    assert (type(found.error), str(found.error)) == (error, "what – happened")
    assert found.outputs == {}


@pytest.mark.parametrize(
    ("detail", "told"), [("\ud800", "?"), ("ä" * 5000, "ä" * 1024), ("a" + "ä" * 5000, "a" + "ä" * 1023 + "�")]
)
def test_no_detail_of_an_error_breaks_its_reply(detail, told):
    found = decode_reply(encode_reply(Reply(UUID, 1, outputs={"y": np.ones(3)}, error=EngineError(detail))))
    assert str(found.error) == told
    check_same(found.outputs, {"y": np.ones(3)})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 1)])
def test_every_dtype_and_every_shape_goes_through(dtype, shape):
    ones = np.full(shape, b"1", object) if dtype == STRING else np.ones(shape, dtype)
    check_same(decode_task(encode_task(task({"x": ones}))).inputs, {"x": ones})


def test_the_longest_names_and_ids_and_255_tensors_go_through():
    inputs = {f"{number:03}" + "ä" * 62: np.array([number]) for number in range(255)}
    found = decode_task(encode_task(task(inputs, "i" * MAX_REQUEST_ID)))
    assert found.request_id == "i" * MAX_REQUEST_ID
    check_same(found.inputs, inputs)


@given(st.text(max_size=40), st.lists(tensors(SHAPES, [dtype for dtype in DTYPES if dtype != STRING]), max_size=4))
def test_number_tensors_are_aligned_views_of_the_frame_that_cannot_be_written_to(request_id, inputs):
    named = {str(index): tensor for index, tensor in enumerate(inputs)}
    frame = encode_task(task(named, request_id))
    start = np.frombuffer(frame, np.uint8).ctypes.data
    for tensor in decode_task(frame).inputs.values():
        assert not tensor.flags.writeable and not tensor.flags.owndata
        assert (tensor.ctypes.data - start) % 16 == 0 or tensor.size == 0


def test_strings_become_their_utf8_bytes():
    found = decode_task(encode_task(task({"x": np.array(["ä", b"\xff", ""], object)}))).inputs["x"]
    assert found.tolist() == [b"\xc3\xa4", b"\xff", b""]
