"""The Open Inference Protocol: tensors in JSON and in binary, both ways, and what is refused."""

import gzip
import json
import math
import struct
import tomllib
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dialects import find
from app.dialects.dialect import Call
from app.dialects.open_inference import EXTENSIONS
from serving.errors import ServingError
from serving.model import ModelCard
from serving.signature import DTYPES, NUMBERS, STRING, Signature, TensorSpec
from serving.task import Reply

from ...serving.strategies import check_same, tensors

PATH = "/v2/models/m/infer"
DATATYPES = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", STRING: "BYTES"} | {
    name: name.upper() for name in NUMBERS if "int" in name
}


def signature(*, y="float32", **inputs):
    return Signature(tuple(TensorSpec.parse(name, text) for name, text in inputs.items()), (TensorSpec.parse("y", y),))


def decode(body, taken, length=None, max_rows=1024, **environ):
    """What is asked for."""
    route = find(PATH)
    if length is not None:
        environ["HTTP_INFERENCE_HEADER_CONTENT_LENGTH"] = str(length)
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return route.dialect.decode(Call(environ, route, ModelCard("m", 3, "python", taken, 32), body, max_rows, 8 << 20))


def refusal(*args, **options):
    with pytest.raises(ServingError) as error:
        decode(*args, **options)
    assert error.value.status < 500
    return str(error.value)


def one(name, datatype, shape, **more):
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, **more}]}


def packed(tensor):
    """As the binary tensor extension has it."""
    if tensor.dtype.kind == "O":
        return b"".join(struct.pack("<I", len(item)) + item for item in tensor.ravel().tolist())
    return tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()


def binary(name, tensor, **more):
    """A body with its tensor behind it, and the length of what stands before."""
    datatype = DATATYPES[STRING if tensor.dtype.kind == "O" else tensor.dtype.name]
    data = packed(tensor)
    head = json.dumps(
        {**one(name, datatype, list(tensor.shape), parameters={"binary_data_size": len(data)}), **more}
    ).encode()
    return head + data, len(head)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(data=st.data())
def test_a_tensor_comes_as_it_was_sent_in_binary_and_in_json_and_goes_back_so(dtype, data):
    shapes = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
    tensor = data.draw(tensors(shapes, [dtype]))
    taken = signature(x=str(TensorSpec("x", dtype, (-1,) * (tensor.ndim - 1))))
    body, length = binary("x", tensor)
    check_same(decode(body, taken, length).inputs, {"x": tensor})
    finite = dtype == STRING or np.isfinite(tensor).all()
    text = dtype != STRING or all(try_utf8(item) for item in tensor.ravel())
    if dtype != "float16" and finite and text:
        values = [item.decode() for item in tensor.ravel()] if dtype == STRING else tensor.ravel().tolist()
        flat = one("x", DATATYPES[dtype], list(tensor.shape), data=values)
        check_same(decode(flat, taken).inputs, {"x": tensor})
        nested = np.array(values, object).reshape(tensor.shape).tolist()
        check_same(decode(one("x", DATATYPES[dtype], list(tensor.shape), data=nested), taken).inputs, {"x": tensor})


def try_utf8(item):
    try:
        return item.decode() is not None
    except UnicodeDecodeError:
        return False


def answered(asked, reply):
    """The JSON part of an answer, and its headers and its tensors in binary."""
    headers, body = asked.encode(reply)
    headers = dict(headers)
    size = int(headers.get("Inference-Header-Content-Length", len(body)))
    told, rest = json.loads(body[:size]), body[size:]
    parts = {}
    for output in told["outputs"]:
        if "parameters" in output:
            length = output["parameters"]["binary_data_size"]
            parts[output["name"]], rest = rest[:length], rest[length:]
    assert not rest
    return told, headers, parts


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(data=st.data())
def test_an_output_in_binary_is_the_output(dtype, data):
    tensor = data.draw(tensors(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple), [dtype]))
    asked = decode(
        {**one("x", "FP32", [1], data=[1]), "parameters": {"binary_data_output": True}, "id": "ä"},
        signature(x="float32"),
    )
    told, headers, parts = answered(asked, Reply(b"", 3, outputs={"y": tensor}))
    assert headers["Content-Type"] == "application/octet-stream"
    assert parts == {"y": packed(tensor)}
    size = len(parts["y"])
    output = {"name": "y", "datatype": DATATYPES[dtype], "shape": list(tensor.shape)}
    assert told == {
        "model_name": "m",
        "model_version": "3",
        "id": "ä",
        "outputs": [{**output, "parameters": {"binary_data_size": size}}],
    }


ROW = one("x", "FP32", [1], data=[1])
TWO = Signature((TensorSpec("x", "float32"),), (TensorSpec("y", "float32", (2,)), TensorSpec("label", STRING)))
OUTPUTS = {"y": np.array([[1.5, np.nan]], np.float32), "label": np.array([b"\xc3\xa4"], object)}


def test_outputs_are_in_json_unless_they_are_wanted_in_binary():
    told, headers, _ = answered(decode(ROW, TWO), Reply(b"", 3, outputs=OUTPUTS))
    assert headers == {"Content-Type": "application/json"}
    y, label = told["outputs"]
    assert y["data"][0] == 1.5 and np.isnan(y["data"][1]) and (y["datatype"], y["shape"]) == ("FP32", [1, 2])
    assert label == {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["ä"]}


def test_each_output_is_as_it_is_wanted_and_no_other_is_there():
    wanted = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "y"}]
    told, _, parts = answered(decode({**ROW, "outputs": wanted}, TWO), Reply(b"", 3, outputs=OUTPUTS))
    assert [output["name"] for output in told["outputs"]] == ["label", "y"]
    assert list(parts) == ["label"] and "data" in told["outputs"][1]
    # what an output says is more than what the request says
    said = {
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
    }
    told, _, parts = answered(decode({**ROW, **said}, TWO), Reply(b"", 3, outputs=OUTPUTS))
    assert [output["name"] for output in told["outputs"]] == ["y"] and not parts


@pytest.mark.parametrize(
    ("tensor", "told"),
    [(np.ones(1, np.float16), "is FP16, which has no JSON form"), (np.array([b"\xff"], object), "is not UTF-8")],
)
def test_what_json_cannot_say_is_to_be_asked_for_in_binary(tensor, told):
    with pytest.raises(ServingError, match=f"{told}.* binary data") as error:
        decode(ROW, TWO).encode(Reply(b"", 3, outputs={"y": tensor}))
    assert error.value.status == 400


@pytest.mark.parametrize(("name", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_a_long_answer_is_packed_as_its_client_takes_it(name, unpack):
    reply = Reply(b"", 3, outputs={"y": np.ones((1, 4096), np.float32)})
    asked = decode({**ROW, "parameters": {"binary_data_output": True}}, TWO, HTTP_ACCEPT_ENCODING=f"br, {name};q=0.5")
    headers, body = asked.encode(reply)
    plain = unpack(body)
    assert dict(headers)["Content-Encoding"] == name and len(body) < 1000
    size = int(dict(headers)["Inference-Header-Content-Length"])
    assert json.loads(plain[:size])["model_name"] == "m" and plain[size:] == reply.outputs["y"].tobytes()
    assert dict(headers)["Vary"] == "Accept-Encoding"
    short = decode(ROW, TWO, HTTP_ACCEPT_ENCODING=name).encode(Reply(b"", 3, outputs=OUTPUTS))
    assert "Content-Encoding" not in dict(short[0])


@pytest.mark.parametrize("accepted", ["", "identity", "gzip;q=0, identity", "deflate; q=0.000 ,gzip;q=0.0", "br"])
def test_a_long_answer_is_not_packed_in_what_its_client_refuses(accepted):
    reply = Reply(b"", 3, outputs={"y": np.ones((1, 4096), np.float32)})
    headers, body = decode(ROW, TWO, HTTP_ACCEPT_ENCODING=accepted).encode(reply)
    assert "Content-Encoding" not in dict(headers) and json.loads(body)["model_name"] == "m"
    assert dict(headers)["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    ("spec", "body", "expected"),
    [
        ("float32[2]", np.array([1, 2], np.float32), [[1, 2]]),
        ("int16[-1, 2]", np.array([1, 2, 3, 4], np.int16), [[[1, 2], [3, 4]]]),
        ("float64", np.array([7.0]), [7]),
    ],
)
def test_raw_data_is_one_row_of_the_only_input(spec, body, expected):
    asked = decode(body.tobytes(), signature(x=spec), 0)
    assert asked.inputs["x"].tolist() == expected
    told, _, parts = answered(asked, Reply(b"", 3, outputs={"y": np.ones(1, np.float32)}))
    assert "id" not in told and parts == {"y": np.ones(1, np.float32).tobytes()}


def test_raw_data_may_be_one_string():
    assert decode(b"\2\0\0\0ab", signature(x="string"), 0).inputs["x"].tolist() == [b"ab"]
    assert decode(b"\2\0\0\0ab", signature(x="string[1]"), 0).inputs["x"].tolist() == [[b"ab"]]


def test_inputs_are_in_the_order_of_the_signature_and_may_be_left_out_where_they_have_a_default():
    taken = Signature((TensorSpec("a", "int8"), TensorSpec("b", "int8"), TensorSpec("c", "int8", (), 5)), ())
    body = {"inputs": [{"name": name, "datatype": "INT8", "shape": [2], "data": [1, 2]} for name in ("b", "a")]}
    asked = decode(body, taken)
    assert {name: tensor.tolist() for name, tensor in asked.inputs.items()} == {"a": [1, 2], "b": [1, 2], "c": [5, 5]}
    assert list(asked.inputs) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("sent", "taken"), [("FP32", "float64"), ("INT8", "float32"), ("UINT8", "int16"), ("FP16", "float32")]
)
def test_a_datatype_that_loses_nothing_will_do(sent, taken):
    tensor = np.array([1, 2], {"FP32": "f4", "INT8": "i1", "UINT8": "u1", "FP16": "f2"}[sent])
    body, length = binary("x", tensor)
    found = decode(body, signature(x=taken), length).inputs["x"]
    assert (found.dtype, found.tolist()) == (np.dtype(taken), [1, 2])


def test_a_timeout_is_in_microseconds():
    assert decode({**ROW, "parameters": {"timeout": 250_000, "priority": 1}}, TWO).timeout_s == 0.25
    assert decode({**ROW, "parameters": {"timeout": 0}}, TWO).timeout_s == np.inf


@pytest.mark.parametrize("nested", [False, True])
def test_many_numbers_are_read_as_few_are(nested):
    taken = signature(x="float32[40, 50]")
    numbers = np.random.default_rng(0).random((2, 40, 50)).astype(np.float32)
    data = (numbers if nested else numbers.ravel()).tolist()
    check_same(decode(one("x", "FP32", [2, 40, 50], data=data), taken).inputs, {"x": numbers})
    for wrong in (None, "1", True, [1.0], 1e39):
        told = [*data[:-1], wrong]
        refusal(one("x", "FP32", [2, 40, 50], data=told), taken)
    # as many numbers, and as many lists
    data = numbers.ravel().tolist()
    assert "ragged" in refusal(one("x", "FP32", [2, 40, 50], data=[[data[0], data[1]], [], *data[2:]]), taken) or nested


def test_large_integers_are_exact():
    many = [2**53 + 1] * 3000
    assert decode(one("x", "INT64", [1, 3000], data=many), signature(x="int64[-1]")).inputs["x"][0, -1] == 2**53 + 1


X = signature(x="float32[2]")
GOOD = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "the body is empty"),
        (b"{", "is not JSON"),
        ([], "not a JSON object"),
        ({}, "'inputs' is missing"),
        ({"inputs": []}, "'inputs' is missing, or no list, or empty"),
        ({"inputs": [1]}, "has no 'name'"),
        ({"inputs": [{"name": 1}]}, "has no 'name'"),
        ({"inputs": [{"name": "z"}]}, "input 'z' is unknown; the model takes 'x'"),
        (one("x", "FP32", "2", data=[1, 2]), "has no 'shape'"),
        (one("x", "FP32", [1, -2], data=[1, 2]), "has no 'shape'"),
        (one("x", "FP32", [True, 2], data=[1, 2]), "has no 'shape'"),
        (one("x", "FP32", [], data=[1, 2]), "has 0 axes"),
        (one("x", "FP32", [1] * 33, data=[1]), "has 33 axes"),
        (one("x", "FP32", [0, 2], data=[]), "there are no rows"),
        (one("x", "FP32", [5000, 2], data=[1, 2]), "5000 rows and the limit is 1024"),
        (one("x", "FP32", [1, 3], data=[1, 2, 3]), "one row has shape [3]"),
        (one("x", "FP32", [1, 2], data=[1]), "has 1 elements of data and shape [1, 2]"),
        (one("x", "FP32", [2, 2], data=[[1, 2]]), "has 1 rows of data and shape [2, 2]"),
        (one("x", "FP32", [1, 2]), "has no 'data'"),
        (one("x", "FP32", [1, 2], data="12"), "has no 'data'"),
        (one("x", "FP32", [1, 2], data=[1, "2"]), "found the string '2'"),
        (one("x", "FP32", [1, 2], data=[1, True]), "found true"),
        (one("x", "FP32", [1, 2], data=[1, 1e39]), "overflows"),
        (one("x", "FP16", [1, 2], data=[1, 2]), "FP16, which has no JSON form"),
        (one("x", "BF16", [1, 2], data=[1, 2]), "datatype 'BF16'; it is one of BOOL"),
        (one("x", None, [1, 2], data=[1, 2]), "datatype no string"),
        (b"", 'the body is empty; expected JSON, {"inputs": '),
        (one("x", "FP64", [1, 2], data=[1, 2]), "has datatype FP64; the model takes FP32"),
        (one("x", "BOOL", [1, 2], data=[True, True]), "has datatype BOOL; the model takes FP32"),
        (one("x", "INT64", [1, 2], data=[1, 2]), "has datatype INT64; the model takes FP32"),
        ({"inputs": one("x", "FP32", [1, 2], data=[1, 2])["inputs"] * 2}, "is there twice"),
        ({**ROW, "id": 7}, "'id' is not a string"),
        ({**ROW, "parameters": 7}, "'parameters' of the request is not an object"),
        ({**one("x", "FP32", [1, 2], data=[1, 2]), "parameters": {"timeout": "1"}}, "the parameter 'timeout'"),
        ({**one("x", "FP32", [1, 2], data=[1, 2]), "parameters": {"timeout": -1}}, "the parameter 'timeout'"),
        ({**one("x", "FP32", [1, 2], data=[1, 2]), "parameters": {"binary_data_output": 1}}, "neither true nor false"),
        ({**one("x", "FP32", [1, 2], data=[1, 2]), "outputs": {}}, "'outputs' is not a list"),
        ({**one("x", "FP32", [1, 2], data=[1, 2]), "outputs": [{}]}, "has no 'name'"),
        (
            {**one("x", "FP32", [1, 2], data=[1, 2]), "outputs": [{"name": "z"}]},
            "output 'z' is unknown; the model gives 'y'",
        ),
        (
            {**one("x", "FP32", [1, 2], data=[1, 2]), "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
            "which is not spoken here",
        ),
        (one("x", "FP32", [1, 2], parameters={"binary_data_size": 8}), "has binary_data_size 8, and 0 bytes are left"),
    ],
)
def test_what_is_wrong_is_told(body, told):
    assert told in refusal(body, X)


@pytest.mark.parametrize("length", ["-1", "1.5", "", "x", "99999999999999999999", "1000", "+3", "٣"])
def test_a_length_that_lies_is_told(length):
    body, _ = binary("x", GOOD)
    assert "Inference-Header-Content-Length is" in refusal(body, X, length)


@pytest.mark.parametrize(
    ("size", "told"), [(9, "8 bytes are left"), (7, "has 7 bytes, and shape"), (-1, "-1"), (True, "True"), ("8", "8")]
)
def test_a_size_that_lies_is_told(size, told):
    head = json.dumps(one("x", "FP32", [1, 2], parameters={"binary_data_size": size})).encode()
    assert told in refusal(head + GOOD.tobytes(), X, len(head))


@pytest.mark.parametrize("dtype", ["float32", STRING])
@pytest.mark.parametrize("size", [2**41, 2**62, 2**64 - 1])
@pytest.mark.parametrize("data", [{"data": []}, {"data": [[1]]}, {"parameters": {"binary_data_size": 0}}])
def test_sizes_that_no_tensor_has_are_told(dtype, size, data):
    body = json.dumps(one("x", DATATYPES[dtype], [1, 0, size], **data)).encode()
    assert "more than any tensor has" in refusal(body, signature(x=f"{dtype}[-1, -1]"), len(body))


def test_bytes_that_nobody_asked_for_are_told():
    body, length = binary("x", GOOD)
    assert "has 1 bytes behind the last tensor" in refusal(body + b"x", X, length)
    head = json.dumps(one("x", "BOOL", [1], parameters={"binary_data_size": 1})).encode()
    assert "neither 0 nor 1" in refusal(head + b"\2", signature(x="bool"), len(head))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\2\0\0\0a", "goes on past its end"),
        (b"\xff\xff\xff\xffa", "goes on past its end"),
        (b"\1\0\0\0ab", "1 bytes behind its last string"),
        (b"\0\0", "too few for 1 strings"),
    ],
)
def test_strings_whose_lengths_lie_are_told(data, told):
    head = json.dumps(one("x", "BYTES", [1], parameters={"binary_data_size": len(data)})).encode()
    assert told in refusal(head + data, signature(x="string"), len(head))
    head = json.dumps(one("x", "BYTES", [10**18], parameters={"binary_data_size": 4})).encode()
    assert "the limit is" in refusal(head + bytes(4), signature(x="string"), len(head))


@pytest.mark.parametrize(
    ("taken", "body", "told"),
    [
        (signature(x="float32[2]", z="int8"), b"", "a model with one input"),
        (signature(x="float32[-1, -1]"), b"", "one size to be found"),
        (X, b"1234567", "has 7 bytes, and shape [1, 2] of float32 needs 8"),
        (signature(x="string[2]"), b"", "raw binary data is one string"),
    ],
)
def test_raw_data_that_does_not_fit_is_told(taken, body, told):
    assert told in refusal(body, taken, 0)


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v2/models/m/versions/7/infer"])
def test_paths_name_the_model_and_the_version(path):
    route = find(path)
    assert (route.model, route.version) == ("m", "7" if "7" in path else "")
    for wrong in (path + "/", path.upper(), path.replace("/m", "/m/m", 1), path.replace("infer", "ready")):
        assert find(wrong) is None


def test_a_request_is_answered_and_errors_are_told_through_both_doors(make_chain):
    chain = make_chain().serve()
    body = json.dumps(one("x", "FP32", [2, 2], data=[1, 2, 3, 4]))
    for door in ("short cut", "flask"):
        answer = chain.post(body, door, path="/v2/models/double/versions/3/infer")
        assert answer.status_code == 200 and answer.headers["X-Model-Version"] == "3"
        assert answer.json["outputs"][0] == {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [2, 4, 6, 8]}
        for path, status, told in (
            ("/v2/models/none/infer", 404, "the model here is 'double', not 'none'"),
            ("/v2/models/double/versions/9/infer", 404, "no version '9'"),
        ):
            answer = chain.post(body, door, path=path)
            assert (answer.status_code, answer.content_type) == (status, "application/json")
            assert list(answer.json) == ["error"] and told in answer.json["error"]


def test_a_timeout_that_has_passed_is_a_deadline(make_chain):
    chain = make_chain().ready()
    body = json.dumps({**one("x", "FP32", [1, 2], data=[1, 2]), "parameters": {"timeout": 1}})
    answer = chain.post(body, path="/v2/models/double/infer")
    assert answer.status_code == 504 and "error" in answer.json


def test_a_timeout_longer_than_any_is_none():
    body = {**one("x", "FP32", [1, 2], data=[1, 2]), "parameters": {"timeout": 10**400}}
    assert decode(body, X).timeout_s > 10**9


@pytest.mark.parametrize(
    "body",
    [
        {"id": "\ud800", **one("x", "FP32", [1, 2], data=[1, 2])},
        one("x", "FP32", [1, 2], parameters={"binary_data_size": "\ud800"}),
        one("x", "\ud800", [1, 2], data=[1, 2]),
        one("\ud800", "FP32", [1, 2], data=[1, 2]),
        {**one("x", "FP32", [1, 2], data=[1, 2]), "outputs": [{"name": "\ud800"}]},
        {**one("x", "FP32", [1, 10**4000, 10**4000], data=[]), "id": math.nan},
        one("x", "FP32", [10**4000, 2], data=[math.nan]),
        one("x", "FP32", [1, 2], parameters={"binary_data_size": 10**4000}),
        one("x", [[[1] * 10**5]], [1, 2], data=[]),
    ],
)
def test_whatever_is_repeated_in_a_refusal_it_is_sound_and_short(make_chain, body):
    answer = make_chain().ready().post(json.dumps(body).encode(), path="/v2/models/double/infer")
    assert answer.status_code in (400, 413) and list(answer.json) == ["error"]
    assert len(answer.json["error"]) < 300


def test_more_outputs_than_there_are_are_refused_unread():
    body = {**one("x", "FP32", [1, 2], data=[1, 2]), "outputs": [{}] * 200_000}
    assert "'outputs' has 200000 elements, and the model gives 'y'" in refusal(body, X)


def test_health_and_metadata(make_chain):
    chain = make_chain()
    assert chain.get("/v2/health/live").json == {"live": True}
    assert chain.get("/v2/health/ready").status_code == 503
    assert chain.get("/v2/models/double").status_code == 503
    chain.ready()
    assert chain.get("/v2/health/ready").json == {"ready": True}
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    about = {"name": project["name"], "version": project["version"], "extensions": list(EXTENSIONS)}
    assert chain.get("/v2").json == chain.get("/v2/").json == about
    told = chain.get("/v2/models/double/versions/3").json
    assert (told["name"], told["versions"]) == ("double", ["3"])
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]
    assert chain.get("/v2/models/double/ready").json == {"name": "double", "ready": True}
    for path in (
        "/v2/models/none",
        "/v2/models/none/ready",
        "/v2/models/double/versions/9",
        "/v2/models/double/versions/9/ready",
    ):
        answer = chain.get(path)
        assert answer.status_code == 404 and list(answer.json) == ["error"]
