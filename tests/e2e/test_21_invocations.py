"""MLflow's scoring protocol, SageMaker's contract and TorchServe's API, as their own clients speak them."""

import json
import warnings

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from .conftest import Server

JSON = {"Content-Type": "application/json"}
FRAME = pd.DataFrame({"x": [1.5, 2, -3], "n": [1, 2**40, 3], "text": ["a", "ž", "c"]})
ROWS = FRAME.to_dict(orient="records")
SPLIT = FRAME.to_dict(orient="split")


class Times(mlflow.pyfunc.PythonModel):
    """Multiplies by a param."""

    def predict(self, context, model_input, params=None):
        found = model_input["x"] * params["factor"]
        return pd.DataFrame({"y": found, "n": model_input["n"], "told": model_input["text"] + params["unit"]})


class Halves(mlflow.pyfunc.PythonModel):
    """Of a matrix."""

    def predict(self, context, model_input, params=None):
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
