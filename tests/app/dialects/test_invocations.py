"""POST /invocations: SageMaker's bodies and MLflow's, and the paths that their clients look at."""

import io
import json
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dialects.mlflow import ENVELOPES, VERSION
from serving.signature import Signature, TensorSpec

from ..conftest import DOORS, Chain


class Matrix:
    """Twice two numbers."""

    inputs = {"x": "float32[2]"}
    outputs = {"y": "float32[2]"}

    def predict(self, inputs):
        return {"y": inputs["x"] * 2}


class Columns:
    """Named values, with a param; what it is told comes back."""

    inputs = {"x": "float64", "n": "int64", "data": "string", "factor": "float64"}
    outputs = {"y": "float64", "n": "int64", "told": "string"}

    def predict(self, inputs):
        return {"y": inputs["x"] * inputs["factor"], "n": inputs["n"], "told": inputs["data"]}


class Text:
    """As long as it is."""

    inputs = {"x": "float64", "text": "string", "k": "float64[-1]"}
    outputs = {"y": "float64"}

    def predict(self, inputs):
        return {"y": inputs["x"]}


@pytest.fixture(scope="module")
def matrix():
    chain = Chain(Matrix()).serve()
    yield chain
    chain.close()


@pytest.fixture(scope="module")
def columns():
    chain = Chain(Columns())
    own = (TensorSpec("x", "float64"), TensorSpec("n", "int64"), TensorSpec("data", "string", binary=True))
    chain.signature = Signature((*own, TensorSpec("factor", "float64", (), 2.0)), chain.signature.outputs)
    chain.serve()
    yield chain
    chain.close()


def post(chain, body, door="short cut", **headers):
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return chain.get("/invocations", "POST", data=sent, headers=named, door=door)


def check(answer, status, told, code="BAD_REQUEST"):
    """An error as MLflow has it."""
    assert (answer.status_code, answer.content_type) == (status, "application/json"), answer.data
    assert set(answer.json) == {"error_code", "message"} and answer.json["error_code"] == code
    assert told in answer.json["message"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([[1, 2], [3, 4]], [[2, 4], [6, 8]]),
        ([[1, 2]], [[2, 4]]),
        ([1, 2], [2, 4]),
        ({"x": [1, 2]}, {"y": [2, 4]}),
        ([{"x": [1, 2]}], [[2, 4]]),
        ({"instances": [[1, 2]]}, {"predictions": [[2, 4]]}),
        ({"instances": [{"x": [1, 2], "more": 0}]}, {"predictions": [[2, 4]]}),
        ({"inputs": {"x": [[1, 2]]}}, {"predictions": [[2, 4]]}),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}, {"predictions": [[2, 4]]}),
    ],
)
def test_an_answer_has_the_form_of_its_body(matrix, door, sent, expected):
    answer = post(matrix, sent, door)
    assert (answer.status_code, answer.content_type, answer.json) == (200, "application/json", expected)
    assert answer.headers["X-Model-Version"] == "3"


@pytest.mark.parametrize("rows", [1, 900])
@pytest.mark.parametrize("spaces", ["", " \n"])
def test_large_bodies_are_answered_as_small_ones_are(matrix, rows, spaces):
    numbers = np.arange(2 * rows).reshape(rows, 2) / 3
    padding = " " * 5000
    listed = spaces + json.dumps(numbers.tolist()) + padding
    expected = (numbers.astype(np.float32) * 2).tolist()
    assert post(matrix, listed.encode()).json == pytest.approx(np.array(expected), rel=1e-6)
    for envelope in ("instances", "inputs"):
        answer = post(matrix, f'{{"{envelope}":{listed}}}'.encode()).json
        assert answer["predictions"] == pytest.approx(np.array(expected), rel=1e-6)
    if rows == 1:
        assert post(matrix, (spaces + "[1, 2]" + padding).encode()).json == [2, 4]


@pytest.mark.parametrize("padding", [0, 5000])
@pytest.mark.parametrize(
    ("sent", "status", "told"),
    [
        ("[[1, 2], [3]]", 400, "ragged"),
        ("[[1, 2, 3]]", 400, "one row has shape [3]; one row is float32[2]"),
        ("[[[1, 2]]]", 400, "one row has shape"),
        ("[[1, true]]", 400, "found true"),
        ('[[1, "2"]]', 400, "found the string '2'"),
        ("[[1, 1e300]]", 400, "1e+300 overflows it"),
        ("[]", 400, "one row has shape [0]"),
        ("[[1, 2]", 400, "Ensure that input is a valid JSON formatted string"),
        ("[[1, 2]] [[3, 4]]", 400, "Ensure that input is a valid JSON formatted string"),
        ('{"y": [1, 2]}', 400, "Received dictionary with input fields: ['y']"),
        ('{"instances": [], "inputs": []}', 400, "with exactly one of the input fields"),
        ('{"instances": [[1, 2]], "signature_name": "other"}', 400, "'signature_name' is none of the model's"),
        ("[" + "[1, 2]," * 1024 + "[1, 2]]", 413, "1025 rows and the limit is 1024"),
        ('{"inputs": [' + "[1, 2]," * 1024 + "[1, 2]]}", 413, "1025 rows and the limit is 1024"),
        ("[" * 600 + "]" * 600, 400, "nested deeper"),
        ("[" * 5000 + "]" * 5000, 400, "nested too deep"),
    ],
)
def test_what_does_not_fit_is_refused_however_large_it_is(matrix, sent, padding, status, told):
    check(post(matrix, (sent + " " * padding).encode()), status, told)


ROW = {"x": 1.5, "n": 2, "data": "/w=="}
ANSWER = {"y": 3.0, "n": 2, "told": "/w==\n"}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"dataframe_records": [ROW]}, [ANSWER]),
        ({"dataframe_split": {"columns": ["n", "x", "data"], "data": [[2, 1.5, "/w==\n"]]}}, [ANSWER]),
        # without names, in the order of the signature
        ({"dataframe_split": {"data": [[1.5, 2, "/w=="]]}}, [ANSWER]),
        ({"instances": [ROW], "params": {"factor": 4}}, [{**ANSWER, "y": 6}]),
        ({"inputs": ROW, "params": {"factor": 0, "other": 1}}, [{**ANSWER, "y": 0}]),
        ({"inputs": {name: [value] * 2 for name, value in ROW.items()}, "params": {}}, [ANSWER] * 2),
        ({"inputs": {**ROW, "data": {"b64": "YQ=="}}, "signature_name": "serving_default"}, [{**ANSWER, "told": "a"}]),
    ],
)
def test_columns_and_params(columns, sent, expected):
    answer = post(columns, sent)
    assert (answer.status_code, answer.json) == (200, {"predictions": expected})


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({"dataframe_split": []}, "Dataframe split format must be a dictionary. Got list."),
        ({"dataframe_split": {"columns": []}}, "Dataframe split format must have 'data' field"),
        ({"dataframe_split": {"data": [], "orient": 1}}, "Dataframe split format must have 'data' field"),
        ({"dataframe_split": {"data": {}}}, "not a valid dataframe representation in 'split' format"),
        ({"dataframe_split": {"data": [], "columns": [["a", "b"]]}}, "'columns' is not a list of names"),
        ({"dataframe_split": {"data": [[1, 2]]}}, "3 columns, and a row of 2 values"),
        ({"dataframe_split": {"columns": ["x"], "data": [1]}}, "a row is not a list"),
        ({"dataframe_split": {"columns": ["x"], "data": [[1]]}}, "Model is missing inputs ['n', 'data']"),
        ({"dataframe_split": {"columns": list(ROW), "data": []}}, "there are no rows"),
        ({"dataframe_records": {"x": 1}}, "Dataframe records format must be a list of records. Got dictionary."),
        ({"dataframe_records": [{**ROW, "n": None}]}, "'n': found null; one row is int64"),
        ({"dataframe_records": [ROW, {"x": 1, "data": ""}]}, "'n': found null; one row is int64"),
        ({"dataframe_records": [{**ROW, "n": 1.5}]}, "1.5 is not an integer; one row is int64"),
        ({"dataframe_records": [{**ROW, "n": 2**63}]}, "9223372036854775808 overflows it"),
        ({"dataframe_records": [{**ROW, "n": "2"}]}, "found the string '2'"),
        ({"dataframe_records": [{**ROW, "data": "/w"}]}, "'data' is binary, and found a string that is not base64"),
        ({"instances": [ROW, {"x": 1}]}, "The length of values for each input/column name are not the same"),
        ({"instances": [ROW, 1]}, "'instances' has objects, and others beside them"),
        ({"instances": [1]}, "the rows have no names"),
        ({"inputs": {**ROW, "x": [1, 2]}}, "inputs differ in their number of rows"),
        ({"inputs": ROW, "params": [1]}, "Parameters must be a dictionary. Got type 'list'."),
        ({"inputs": ROW, "params": {"factor": "4"}}, "'factor': found the string '4'"),
        ([[1, 2]], "the body has no names"),
        ({"\ud800": 1}, "Received dictionary with input fields: ['\\ud800']"),
        ({"inputs": {**ROW, "x": "\ud800"}}, "'x': found the string"),
        ({"inputs": ROW, "signature_name": "\ud800"}, "'signature_name' is none of the model's"),
    ],
)
def test_what_mlflow_refuses_is_refused_in_its_words(columns, sent, told):
    check(post(columns, sent), 400, told)


def test_a_param_counts_in_each_row(make_chain):
    chain = make_chain(Text())
    own = (TensorSpec("x", "float64"), TensorSpec("text", "string", (), "a"), TensorSpec("k", "float64", (-1,), 0.0))
    chain.signature = Signature(own, chain.signature.outputs)
    chain.ready()
    for param in ({"text": "x" * (1 << 20)}, {"k": [0.5] * (1 << 17)}):
        answer = post(chain, {"inputs": {"x": [1.0] * 9}, "params": param})
        check(answer, 413, "in each row would be 9437184 bytes unpacked, and the limit is 8388608: max_body_bytes")


def test_errors_have_mlflows_codes(matrix, make_chain):
    check(post(matrix, [[1, 2]], X_Model_Version="7"), 404, "no version '7'", "RESOURCE_DOES_NOT_EXIST")
    check(post(make_chain(), [[1, 2]]), 503, "no replica has loaded the model", "TEMPORARILY_UNAVAILABLE")
    waiting = make_chain(deadline_ms=50).ready()
    check(post(waiting, [[1, 2]]), 504, "", "DEADLINE_EXCEEDED")
    raising = make_chain().serve()
    check(post(raising, [[13]]), 500, "the model raised ValueError", "INTERNAL_ERROR")


def test_a_body_in_another_coding_is_refused_as_text(matrix):
    answer = post(matrix, [[1, 2]], Content_Encoding="br")
    assert (answer.status_code, answer.mimetype) == (415, "text/plain") and b"Content-Encoding is 'br'" in answer.data


def test_an_empty_table_is_not_said_to_be_json(matrix):
    answer = post(matrix, b"", Content_Type=CSV)
    check(answer, 400, "the body is empty; expected CSV")
    assert "JSON" not in answer.json["message"]
    check(post(matrix, b""), 400, "Ensure that input is a valid JSON formatted string")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


CSV, NPY, PARQUET = "text/csv", "application/x-npy", "application/vnd.apache.parquet"


@pytest.mark.parametrize(
    ("sent", "media_type", "expected"),
    [
        # SageMaker's have no names, MLflow's have
        (b"1,2\n3,4\n", CSV, [[2, 4], [6, 8]]),
        (b"1,2", CSV + "; charset=utf-8", [[2, 4]]),
        (b"a,b\n1,2\n3,\n", CSV, {"predictions": [[2, 4], [6, float("nan")]]}),
        (b"1,2\n3,4", CSV + ";header=present", {"predictions": [[6, 8]]}),
        (npy(np.array([[1, 2], [3, 4]])), NPY, [[2, 4], [6, 8]]),
        (npy(np.float32([[0.5, 2]])), NPY, [[1, 4]]),
        (pd.DataFrame({"a": [1, 3], "b": [2.0, 4]}).to_parquet(), PARQUET, {"predictions": [[2, 4], [6, 8]]}),
        (b"[[1, 2]]", "application/json; charset=utf-8", [[2, 4]]),
        (b"[[1, 2]]", "application/x-www-form-urlencoded", [[2, 4]]),
    ],
)
def test_other_media_types_are_read(matrix, sent, media_type, expected):
    answer = post(matrix, sent, Content_Type=media_type)
    assert (answer.status_code, answer.content_type) == (200, "application/json"), answer.data
    assert json.dumps(answer.json) == json.dumps(json.loads(json.dumps(expected), parse_int=float))


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("media_type", [CSV, PARQUET])
def test_a_table_may_have_more_columns_than_the_model(columns, media_type, more):
    table = pd.DataFrame({"n": [2, 3], "x": [1.5, 2], "data": ["a", "b"]} | ({"more": [1, 2]} if more else {}))
    sent = table.to_csv(index=False).encode() if media_type == CSV else table.to_parquet()
    answer = post(columns, sent, Content_Type=media_type)
    assert answer.json == {"predictions": [{"y": 3, "n": 2, "told": "a"}, {"y": 4, "n": 3, "told": "b"}]}


@pytest.mark.parametrize("sent", [b"[[1, 2], [3, 4]]", b'{"instances": [[1, 2], [3, 4]]}'])
def test_an_answer_is_in_the_media_type_that_is_accepted(matrix, sent):
    answer = post(matrix, sent, Accept=CSV)
    # without names, as the next container in SageMaker's pipeline reads it
    assert (answer.mimetype, answer.data) == (CSV, b"2.0,4.0\n6.0,8.0\n")
    answer = post(matrix, sent, Accept=NPY)
    assert answer.mimetype == NPY
    assert np.load(io.BytesIO(answer.data)).tolist() == [[2, 4], [6, 8]]
    assert post(matrix, sent, Accept="*/*").mimetype == "application/json"
    check(post(matrix, sent, Accept="application/xml"), 406, "Accept is 'application/xml'")


def test_media_types_that_do_not_fit_are_refused(matrix, columns):
    check(post(matrix, b"1,2\n3\n", Content_Type=CSV), 400, "line 2 has 1 columns and line 1 2")
    check(post(matrix, b"1,2\n3,x\n", Content_Type=CSV), 400, "line 2 has 'x' in column 2")
    check(post(matrix, b"1,2\n3,1e300\n", Content_Type=CSV), 400, "1e+300 overflows it")
    check(post(matrix, npy(np.array([[1, 2, 3]])), Content_Type=NPY), 400, "one row has shape [3]")
    check(post(matrix, b"nonsense", Content_Type=NPY), 400, "does not begin as an npy file does")
    check(post(matrix, b"nonsense", Content_Type=PARQUET), 400, "the body is no Parquet file")
    check(post(columns, b"n,x\n1,2\n", Content_Type=CSV + ";header=present"), 400, "'data' is missing")
    check(post(matrix, b"1,2\n" * 1025, Content_Type=CSV), 413, "max_request_rows")
    answer = post(matrix, b"<x/>", Content_Type="application/xml")
    assert (answer.status_code, answer.mimetype) == (415, "text/plain")
    assert b"Content-Type is 'application/xml'; it may be application/json" in answer.data


KEYS = st.sampled_from([*ENVELOPES, "params", "signature_name", "x", "n", "data", "columns", "index", "b64", "é"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5))


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3) | VALUES)
def test_whatever_json_comes_the_client_is_told_what_is_wrong(columns, value):
    answer = post(columns, value)
    assert answer.status_code in (200, 400), answer.data
    assert json.loads(answer.data) is not None


STARTS = st.sampled_from(
    [b"", npy(np.ones((1, 2))), b"PAR1", b"\x89PNG\r\n", b"x,n,data\n1,2,", b'{"inputs":', b"data=", b"\x91"]
)
TYPES = st.sampled_from(
    ["", CSV, NPY, PARQUET, "application/x-npz", "application/octet-stream", "application/msgpack", "x"]
)


@settings(max_examples=400, deadline=None)
@given(STARTS, st.binary(max_size=40), TYPES, st.sampled_from(["/invocations", "/predictions/double"]))
def test_whatever_bytes_come_the_client_is_told_what_is_wrong(columns, start, rest, media_type, path):
    answer = columns.get(path, "POST", data=start + rest, content_type=media_type)
    assert answer.status_code in (200, 400, 413, 415), answer.data


@pytest.mark.parametrize(("path", "ready", "loading"), [("/ping", "Healthy", "Unhealthy"), ("/health", None, None)])
def test_health_is_the_status(path, ready, loading):
    chain = Chain()
    answer = chain.get(path)
    assert (answer.status_code, answer.mimetype) == (503, "application/json")
    told = answer.data
    answer = chain.ready().get(path)
    assert answer.status_code == 200
    if ready:
        assert (json.loads(told), answer.json) == ({"status": loading}, {"status": ready})
    else:
        assert told == answer.data == b"\n"


def test_the_version_is_that_of_the_mlflow_whose_protocol_this_is(matrix):
    assert matrix.get("/version").text == VERSION == version("mlflow")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (12, 8)),
        ({"max_body_bytes": 1000}, (100, 1)),
        ({"max_body_bytes": 1 << 30}, (1, 100)),
        ({"threads": 2}, (4, 8)),
    ],
)
def test_a_batch_transform_is_told_how_much_to_send_at_once(given, expected):
    told = Chain(**given).get("/execution-parameters").json
    assert (told["MaxConcurrentTransforms"], told["MaxPayloadInMB"]) == expected
    assert told["BatchStrategy"] == "MULTI_RECORD"
