"""Engines on the real server: named features in, a number out; and the library's own answers, whichever it is."""

import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from ..mules.engines.trained import MODELS
from .conftest import reload, wait_until

RIDE = {"PULocationID": 10, "DOLocationID": 50, "trip_distance": 40}


@pytest.fixture(scope="module")
def rides():
    """A model of rides, trained on real numbers of that shape."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    rows = [dict(zip(RIDE, (int(row[0]), int(row[3]), row[2]), strict=True)) for row in x]
    return make_pipeline(DictVectorizer(), LinearRegression()).fit(rows, y)


def test_a_row_of_named_features_gives_a_number(start, tmp_path, rides):
    joblib.dump(rides, tmp_path / "rides.joblib")
    server = start(MODEL=tmp_path, MULES=1).wait_ready()
    expected = rides.predict([RIDE])[0]
    answer = server.predict(RIDE)
    assert (answer.status, answer.json) == (200, {"predict": expected})
    answer = server.predict({"instances": [RIDE, {**RIDE, "trip_distance": 0.5}]})
    both = rides.predict([RIDE, {**RIDE, "trip_distance": 0.5}]).tolist()
    assert answer.json == {"predictions": pytest.approx(both)}
    # a vectorizer takes what is left out for nothing
    some = {"PULocationID": 10, "DOLocationID": 50}
    assert server.predict(some).json == {"predict": pytest.approx(rides.predict([some])[0])}
    for wrong, told in (
        ({**RIDE, "fare": 1}, "'fare' is unknown; the model takes"),
        ({**RIDE, "PULocationID": "10"}, "found the string '10'"),
    ):
        answer = server.predict(wrong)
        assert (answer.status, answer.json["code"]) == (400, "signature") and told in answer.json["detail"]


def test_the_line_to_paste_has_values_that_the_model_takes(start, tmp_path):
    frame = pd.DataFrame([["red"], ["green"]], columns=["colour"])
    model = make_pipeline(OneHotEncoder(), LinearRegression()).fit(frame, [1, 2])
    joblib.dump(model, tmp_path / "model.joblib")
    server = start(MODEL=tmp_path, MULES=1).wait_ready()
    line = server.output.partition("  try ")[2].strip()
    assert '{"colour":"green"}' in line
    told = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == {"predict": pytest.approx(2)}
    # which are nobody else's business
    (told,) = server.ready()["model"]["signature"]["inputs"]
    assert told == {"name": "colour", "dtype": "string", "shape": []}


def test_a_folder_that_cannot_be_served_ends_the_start_with_a_sentence(start, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    server = start(MODEL=tmp_path, MULES=1)
    assert server.process.wait(60) == 1
    assert "model.onnx cannot be read, it is broken or of another kind: " in server.output


def test_bytes_that_are_no_string_are_the_clients_fault_and_no_others(start, tmp_path):
    colours = pd.DataFrame([["red"], ["green"]], columns=["colour"])
    model = make_pipeline(OneHotEncoder(), LinearRegression()).fit(colours, [1, 2])
    joblib.dump(model, tmp_path / "model.joblib")
    server = start(MODEL=tmp_path, MULES=1, SERVING_BATCH_WAIT_MS=200).wait_ready()
    bodies = [{"colour": "red"}, {"colour": {"b64": "/w=="}}, {"colour": "green"}]
    with ThreadPoolExecutor(len(bodies)) as clients:
        good, bad, other = clients.map(server.predict, bodies)
    assert (bad.status, bad.json["code"]) == (400, "signature")
    assert bad.json["detail"] == "input 'colour': found bytes that are not UTF-8, and the model's strings are"
    assert (good.json, other.json) == ({"predict": pytest.approx(1)}, {"predict": pytest.approx(2)})


def listed(tensors):
    """As JSON has them."""
    return {
        name: [item.decode() for item in tensor] if tensor.dtype.kind == "O" else tensor.tolist()
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        "sklearn_forest",
        "xgboost_table",
        "lightgbm_table",
        "onnx",
        "torch_exported",
        "tflite",
        "mlflow_table",
        "sagemaker",
    ],
)
def test_each_library_answers_in_a_mule_as_it_does_by_itself(start, tmp_path, name):
    made = MODELS[name](tmp_path)
    some = {key: tensor[:32] for key, tensor in made.inputs.items()}
    server = start(MODEL=tmp_path, MULES=1).wait_ready()
    answer = server.predict({"inputs": listed(some)})
    assert answer.status == 200, answer.body
    for key, expected in made.outputs.items():
        found = np.asarray(answer.json["outputs"][key], expected.dtype)
        # a batch of another size may sum in another order
        np.testing.assert_allclose(found, expected[:32], rtol=1e-6, atol=1e-6)
    assert server.ready()["model"]["engine"] == name.partition("_")[0]
    assert server.stop() == 0


EXPORT = """
import sys
import tensorflow as tf

module, x = tf.Module(), tf.TensorSpec((None, 2), tf.float32, "x")
module.double = tf.function(lambda x: {"y": x * 2}, input_signature=[x])
module.longest = tf.function(lambda x: {"label": tf.as_string(tf.argmax(x, axis=1))}, input_signature=[x])
tf.saved_model.save(module, sys.argv[1], {"serving_default": module.double, "longest": module.longest})
"""


def test_a_saved_model_answers_by_the_signature_that_a_request_names(start, tmp_path):
    subprocess.run([sys.executable, "-c", EXPORT, str(tmp_path)], check=True, capture_output=True)
    server = start(MODEL=tmp_path, MULES=2).wait_ready()
    rows = [[1, 2], [4, 3]]
    double, longest = {"predictions": [[2, 4], [8, 6]]}, {"predictions": ["1", "0"]}
    with ThreadPoolExecutor(8) as threads:
        bodies = [
            ({}, double),
            ({"signature_name": "longest"}, longest),
            ({"signature_name": "serving_default"}, double),
        ]
        for answer, (_, expected) in zip(
            threads.map(lambda one: server.predict({**one[0], "instances": rows}), bodies * 40),
            bodies * 40,
            strict=True,
        ):
            assert (answer.status, answer.json) == (200, expected)
    answer = server.predict({"signature_name": "longest", "inputs": {"x": rows}})
    assert answer.json == {"outputs": {"label": ["1", "0"]}}
    answer = server.predict({"signature_name": "none", "instances": rows})
    assert (answer.status, answer.json["code"]) == (400, "signature")
    assert "'signature_name' is \"none\"; the model has serving_default, longest" in answer.json["detail"]
    model = server.ready()["model"]
    assert (model["signature_name"], list(model["others"])) == ("serving_default", ["longest"])


def test_replicas_of_a_model_whose_column_may_be_left_out_agree_on_that(start, tmp_path):
    x, y = load_diabetes(return_X_y=True, as_frame=True)
    x = x[["bmi", "bp"]]
    model = HistGradientBoostingRegressor(max_iter=10).fit(x, y)
    columns = [ColSpec("double", "bmi"), ColSpec("double", "bp", required=False)]
    with warnings.catch_warnings():
        # of a comparison in MLflow
        warnings.simplefilter("ignore", DeprecationWarning)
        signature = ModelSignature(Schema(columns), Schema([ColSpec("double")]))
        mlflow.sklearn.save_model(model, tmp_path / "m" / "1", signature=signature, serialization_format="pickle")
    server = start(MODEL=tmp_path / "m", MULES=2).wait_ready()

    def all_ready():
        replicas = server.ready()["replicas"]
        assert all(replica["last_error"] == "" for replica in replicas)
        return sum(replica["ready"] for replica in replicas) == 2

    wait_until(all_ready, "both are ready")
    for _ in range(2):
        rows = pd.DataFrame({"bmi": [0.01, 0.02], "bp": [np.nan, 0.03]})
        answer = server.predict({"instances": [{"bmi": 0.01}, {"bmi": 0.02, "bp": 0.03}]})
        assert answer.json == {"predictions": pytest.approx(model.predict(rows).tolist())}, answer.body
        # nor do those that come after them see another signature
        assert reload(server)[::2] == (0, "")
        assert all_ready()
