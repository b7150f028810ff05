"""One call: what is a frame and what is none, and what a deadline and a status look like on the wire."""

import io
import zlib
from contextlib import suppress
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.grpc import call
from app.grpc.messages import message
from serving.errors import DecodeError, FrameTooLarge, UnsupportedMedia

Request = message("inference.ModelInferRequest")


def environ(body, **headers):
    return {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body), **headers}


@given(st.text(max_size=20), st.lists(st.binary(max_size=50)))
def test_a_message_is_what_was_sent(name, parts):
    sent = Request(model_name=name, raw_input_contents=parts)
    body = call.frame(sent)
    assert call.read(environ(body), len(body), Request) == sent
    packed = zlib.compress(body[5:])
    body = b"\1" + len(packed).to_bytes(4) + packed
    assert call.read(environ(body, HTTP_GRPC_ENCODING="deflate"), 10_000, Request) == sent


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", DecodeError),
        (b"\0\0\0\0", DecodeError),
        (b"\0\0\0\0\1", DecodeError),
        (b"\0\0\0\0\0\0", DecodeError),
        (b"\2\0\0\0\0", DecodeError),
        (b"\0\0\0\0\1\xff", DecodeError),
        (b"\0\0\0\0\0" * 2, DecodeError),
        (b"\1\0\0\0\1x", UnsupportedMedia),
        (bytes(1001), FrameTooLarge),
    ],
)
def test_what_is_no_frame_with_one_message_is_refused(body, error):
    with pytest.raises(error):
        call.read(environ(body), 1000, Request)


def test_what_unpacks_to_more_than_the_limit_is_refused():
    packed = zlib.compress(bytes(10_000))
    with pytest.raises(FrameTooLarge):
        call.read(environ(b"\1" + len(packed).to_bytes(4) + packed, HTTP_GRPC_ENCODING="deflate"), 1000, Request)


Tensor = Request.DESCRIPTOR.fields_by_name["inputs"].number << 3 | 2


@pytest.mark.parametrize("depth", [0, 1])
def test_a_flood_of_fields_is_refused_before_there_is_an_object_for_each(depth):
    fields = bytes([Tensor, 0]) * (1 << 20)
    if depth:
        parameters = Request.InferInputTensor.DESCRIPTOR.fields_by_name["parameters"].number << 3 | 2
        fields = bytes([parameters, 0]) * (1 << 20)
        fields = bytes([Tensor]) + varint(len(fields)) + fields
    body = b"\0" + len(fields).to_bytes(4) + fields
    with pytest.raises(FrameTooLarge, match="more than 131072 fields"):
        call.read(environ(body), len(body), Request)


def varint(number):
    return (b"" if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)) or bytes([number])


def test_a_large_message_is_what_was_sent():
    sent = Request(model_name="m", raw_input_contents=[bytes(1 << 20)])
    tensor = sent.inputs.add(name="x", datatype="FP32", shape=[1, 3, 224])
    tensor.contents.fp32_contents.extend([0.5] * 100_000)
    tensor.contents.bytes_contents.extend([b"a"] * 1000)
    tensor.parameters["a"].double_param = 0.5
    sent.parameters["timeout"].int64_param = 10**12
    body = call.frame(sent)
    assert call.read(environ(body), len(body), Request) == sent


@given(st.binary(max_size=200))
def test_a_large_message_of_any_bytes_is_read_or_refused(noise):
    body = bytes([Tensor, 0]) * (1 << 15) + noise
    body = b"\0" + len(body).to_bytes(4) + body
    with suppress(DecodeError):
        call.read(environ(body), len(body), Request)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("5S", 5000), ("300m", 300), ("1u", 1), ("1001u", 2), ("0n", 1), ("2M", 120_000), ("1H", 3_600_000)],
)
def test_a_deadline_is_told_in_milliseconds(text, ms):
    assert call.timeout_ms(text) == ms


@pytest.mark.parametrize("text", ["", "5", "S", "5s", "-1S", "123456789S", "1 S", "٣S"])
def test_what_is_no_deadline_is_refused(text):
    with pytest.raises(DecodeError):
        call.timeout_ms(text)


@given(st.text())
def test_the_words_of_an_error_travel_as_printable_ascii(text):
    told = dict(call.outcome(400, text))
    assert told["Grpc-Status"] == "3"
    assert all(" " <= character <= "~" for character in told["Grpc-Message"])
    assert unquote(told["Grpc-Message"]) == text
