"""MLflow's scoring protocol, SageMaker's contract and TorchServe's API, as their own clients speak them."""

import io
import json
import warnings
from contextlib import closing

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from ..mules.engines.trained import MODELS
from .conftest import DIGITS, Server, wait_until, write_model

JSON = {"Content-Type": "application/json"}
FRAME = pd.DataFrame({"x": [1.5, 2, -3], "n": [1, 2**40, 3], "text": ["a", "ž", "c"]})
ROWS = FRAME.to_dict(orient="records")
SPLIT = FRAME.to_dict(orient="split")


class Times(mlflow.pyfunc.PythonModel):
    """Multiplies by a param."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        found = model_input["x"] * params["factor"]
        return pd.DataFrame({"y": found, "n": model_input["n"], "told": model_input["text"] + params["unit"]})


class Halves(mlflow.pyfunc.PythonModel):
    """Of a matrix."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return np.asarray(model_input) / 2


def saved(path, model, signature):
    """A pyfunc model of MLflow's, and its folder."""
    with warnings.catch_warnings():
        # of comparisons in MLflow
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(path, python_model=model, signature=signature)
    return mlflow.pyfunc.load_model(str(path)), path


@pytest.fixture(scope="module")
def times(tmp_path_factory):
    columns = Schema([ColSpec("double", "x"), ColSpec("long", "n"), ColSpec("string", "text")])
    params = ParamSchema([ParamSpec("factor", DataType.double, 2.0), ParamSpec("unit", DataType.string, "m")])
    return saved(tmp_path_factory.mktemp("models") / "times", Times(), ModelSignature(columns, None, params))


@pytest.fixture(scope="module")
def scoring(times):
    server = Server(MODEL=times[1], MULES=1)
    try:
        yield server.wait_ready()
    finally:
        server.close()


def test_mlflows_own_client_works_unchanged(scoring, times):
    client = ScoringServerClient("127.0.0.1", scoring.port)
    client.wait_server_ready()
    assert client.get_version() == mlflow.__version__
    for params in (None, {"factor": 3, "unit": "km"}):
        pd.testing.assert_frame_equal(
            client.invoke(FRAME, params).get_predictions(), times[0].predict(FRAME, params=params)
        )


def theirs(model, body, media_type="application/json"):
    """What MLflow's own server would answer."""
    found = scoring_server.invocations(body, media_type, model, model.metadata.get_input_schema())
    return found.status, json.loads(found.response)


SPOKEN = [
    {"dataframe_split": SPLIT},
    {"dataframe_split": {key: SPLIT[key] for key in ("columns", "data")}, "params": {"factor": 5}},
    {"dataframe_split": {"columns": [*FRAME, "more"], "data": [[*row, None] for row in SPLIT["data"]]}},
    {"dataframe_split": {"columns": ["text", "n", "x"], "data": [["a", 1, 2]]}, "params": None},
    {"dataframe_split": {"columns": list(FRAME), "data": [[None, 1, "a"], [float("nan"), 2, "b"]]}},
    {"dataframe_records": ROWS},
    {"dataframe_records": ROWS, "params": {"unit": "km", "unknown": [1]}, "unknown": 1},
    {"dataframe_records": [{**ROWS[0], "more": 1}, {"n": 1, "text": "without x"}]},
    {"instances": ROWS},
    {"instances": ROWS, "params": {"factor": -1, "unit": ""}},
    {"inputs": FRAME.to_dict(orient="list")},
    {"inputs": ROWS},
    {"inputs": ROWS[0], "params": {"factor": 0.5}},
]


@pytest.mark.parametrize("sent", SPOKEN, ids=[f"{number} {next(iter(sent))}" for number, sent in enumerate(SPOKEN)])
def test_each_envelope_is_answered_as_mlflow_does(scoring, times, sent):
    body = json.dumps(sent).encode()
    answer = scoring.request("POST", "/invocations", body, JSON)
    status, expected = theirs(times[0], body)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    # NaN is not equal to itself
    assert json.dumps(answer.json, sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize("media_type", ["text/csv", "application/vnd.apache.parquet"])
def test_tables_are_answered_as_mlflow_does(scoring, times, media_type):
    frame = FRAME.assign(more=[1, 2, 3])
    body = frame.to_csv(index=False).encode() if media_type == "text/csv" else frame.to_parquet()
    answer = scoring.request("POST", "/invocations", body, {"Content-Type": media_type})
    assert (answer.status, answer.json) == theirs(times[0], body, media_type)


WRONG = [
    {},
    {"instances": ROWS, "inputs": ROWS},
    {"columns": list(FRAME), "data": SPLIT["data"]},
    {"dataframe_split": ROWS},
    {"dataframe_split": {**SPLIT, "orient": "split"}},
    {"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}},
    {"dataframe_split": {"columns": ["x", "text"], "data": [[1, "a"]]}},
    {"dataframe_records": ROWS[0]},
    {"dataframe_records": [{**ROWS[0], "n": 2**64}]},
    {"instances": [ROWS[0], {"x": 1}]},
    {"inputs": {**ROWS[0], "x": "one"}},
    {"inputs": {**ROWS[0], "text": [[]]}},
    {"instances": ROWS, "params": {"factor": "five"}},
    {"instances": ROWS, "params": ["factor"]},
]


@pytest.mark.parametrize("sent", [b"", b"{", b"\xff", *(json.dumps(sent).encode() for sent in WRONG)])
def test_what_mlflow_refuses_is_refused_with_its_status(scoring, times, sent):
    with pytest.raises(MlflowException) as error:
        theirs(times[0], sent)
    answer = scoring.request("POST", "/invocations", sent, JSON)
    assert (answer.status, set(answer.json)) == (error.value.get_http_status_code(), {"error_code", "message"})
    assert answer.json["error_code"] == "BAD_REQUEST" and answer.json["message"]


MATRIX = [
    {"dataframe_split": {"data": [[1, 2], [3.5, None]]}},
    {"dataframe_split": {"columns": ["a", "b"], "index": [7, 8], "data": [[1, 2], [3, 4]]}},
    {"dataframe_records": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]},
    {"instances": [[1, 2], [3, 4]]},
    {"inputs": [[1, 2], [3, 4]]},
    {"inputs": [[1e-300, 2]], "unknown": 3},
]


def test_a_model_of_a_matrix_takes_tables_too(start, tmp_path):
    signature = ModelSignature(Schema([TensorSpec(np.dtype("float64"), (-1, 2))]))
    model, path = saved(tmp_path / "halves", Halves(), signature)
    server = start(MODEL=path, MULES=1).wait_ready()
    for sent in MATRIX:
        body = json.dumps(sent).encode()
        answer = server.request("POST", "/invocations", body, JSON)
        assert (answer.status, json.dumps(answer.json)) == (200, json.dumps(theirs(model, body)[1])), sent
    client = ScoringServerClient("127.0.0.1", server.port)
    sent = np.array([[1, 2.5], [3, np.nan]])
    found = np.array(client.invoke(sent)["predictions"])
    np.testing.assert_array_equal(found, sent / 2)


def test_a_container_of_sagemakers_is_asked_as_ever(start, tmp_path):
    made = MODELS["sagemaker"](tmp_path)
    flowers, expected = made.inputs["flowers"], made.outputs["probabilities"]
    server = start(MODEL=tmp_path, MULES=1).wait_ready()
    assert server.request("GET", "/ping").status == 200
    told = server.request("GET", "/execution-parameters").json
    assert told == {"MaxConcurrentTransforms": 12, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 8}
    headers = JSON | {"Accept": "application/json", "X-Amzn-SageMaker-Custom-Attributes": "trace=1"}
    answer = server.request("POST", "/invocations", json.dumps(flowers.tolist()).encode(), headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    np.testing.assert_allclose(answer.json, expected, rtol=1e-6)
    answer = server.request("POST", "/invocations", json.dumps(flowers[0].tolist()).encode(), headers)
    np.testing.assert_allclose(answer.json, expected[0], rtol=1e-6)
    for media_type, write, read in (
        # as its toolkit writes and reads them
        (
            "text/csv",
            lambda file: np.savetxt(file, flowers, "%s", ","),
            lambda file: np.genfromtxt(file, delimiter=","),
        ),
        ("application/x-npy", lambda file: np.save(file, flowers), np.load),
    ):
        sent = io.BytesIO()
        write(sent)
        answer = server.request(
            "POST", "/invocations", sent.getvalue(), {"Content-Type": media_type, "Accept": media_type}
        )
        assert (answer.status, answer.headers["content-type"]) == (200, media_type)
        np.testing.assert_allclose(read(io.BytesIO(answer.body)), expected, rtol=1e-6)


def test_a_client_of_torchserves_is_answered_as_ever(digits, tmp_path):
    row = json.loads((DIGITS / "sample.json").read_text())
    expected = digits.predict(row).json
    file = tmp_path / "row.json"
    file.write_text(json.dumps(row["image"]))
    url = f"{digits.url}/predictions/digits"
    with closing(requests.Session()) as session, file.open("rb") as opened:
        assert session.get(f"{digits.url}/ping").json() == {"status": "Healthy"}
        for answer in (
            session.post(url, json=row["image"]),
            session.post(f"{url}/1.0", data=json.dumps(row)),
            session.post(url, data={"data": json.dumps(row["image"])}),
            # as curl -T
            session.put(url, data=opened),
        ):
            assert (answer.status_code, answer.json()) == (200, expected)
        answer = session.post(url, json=[row["image"]] * 2)
        assert [one["digit"] for one in answer.json()] == [expected["digit"]] * 2
        # the last bits are others where rows are predicted together
        for one in answer.json():
            np.testing.assert_allclose(one["probabilities"], expected["probabilities"], rtol=1e-4)
        answer = session.post(url, json={"instances": [row]})
        assert answer.json() == {"predictions": [expected]}
        answer = session.post(f"{digits.url}/predictions/other", json=row)
        assert (answer.status_code, answer.json()["type"]) == (404, "ModelNotFoundException")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/invocations", {"error_code": "BAD_REQUEST", "message": None}),
        ("/predictions/digits", {"code": 413, "type": "BadRequestException", "message": None}),
        ("/predictions/digits/1", {"code": 413, "type": "BadRequestException", "message": None}),
    ],
)
def test_what_nginx_refuses_has_the_form_of_the_path(digits, path, expected):
    answer = digits.request("POST", path, b" " * (8 << 20) + b"{}")
    assert (answer.status, answer.headers["content-type"]) == (413, "application/json")
    assert "max_body_bytes in uwsgi.ini" in answer.json["message"]
    assert {**answer.json, "message": None} == expected


LOADING = """
import pathlib
import time

class Model:
    inputs = {"x": "float32"}
    outputs = {"y": "float32"}

    def __init__(self, path):
        while not pathlib.Path(path, "go").exists():
            time.sleep(0.05)

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


def test_ping_fails_until_the_model_is_loaded(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "slow", LOADING), MULES=1)

    def status(path):
        try:
            return server.request("GET", path).status
        except OSError:
            return None

    wait_until(lambda: status("/ping") == 503, "the server answers")
    assert status("/health") == 503
    answer = server.request("POST", "/invocations", b"[1]")
    assert (answer.status, answer.json["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert answer.headers["retry-after"]
    (tmp_path / "slow" / "go").touch()
    server.wait_ready()
    assert (status("/ping"), status("/health")) == (200, 200)
    assert server.request("POST", "/invocations", b"[1]").json == [1]
