"""SageMaker's functions: what they are given, and what stands in for those that are missing."""

import json
import textwrap

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from mules import engines
from serving.errors import EngineError, ModelError, SignatureMismatch

ECHO = """
import json
def model_fn(model_dir): return "the model"
def input_fn(body, content_type): return body, content_type
def predict_fn(data, model): return [*data, model]
def output_fn(prediction, accept): return json.dumps([[*map(str, prediction), accept]])
"""
X = np.array([[1, 2], [3, 4]], np.float32)


@pytest.fixture
def load(write):
    def load(source, toml):
        return engines.load(write(inference_py=textwrap.dedent(source), model_toml=toml), threads=1)

    return load


def test_a_body_is_what_a_request_would_have(load):
    declared = '[inputs]\nx = "float32[2]"\ntext = "string"\n[outputs]\nprediction = "string[4]"\n'
    engine = load(ECHO, declared)
    (seen,) = engine.predict({"x": X[:1], "text": np.array([b"a"], object)})["prediction"].tolist()
    body, *rest = [text.decode() for text in seen]
    assert json.loads(body) == {"x": [[1, 2]], "text": ["a"]}
    assert rest == ["application/json", "the model", "application/json"]


def test_one_row_is_a_call_where_model_toml_says_so(load):
    source = ECHO.replace("json.dumps([[*map(str, prediction), accept]])", "json.dumps(prediction[0])")
    engine = load(source, 'batched = false\n[inputs]\nx = "float32[2]"\n')
    assert engine.max_batch_rows == 1
    seen = engine.predict({"x": X})["prediction"].tolist()
    assert [json.loads(body) for body in seen] == [{"x": [1, 2]}, {"x": [3, 4]}]


def test_an_array_comes_and_goes_as_npy(load):
    source = """
    import io
    import numpy as np
    def model_fn(model_dir): return 2
    def input_fn(body, content_type):
        assert content_type == "application/x-npy"
        return np.load(io.BytesIO(body))
    def predict_fn(data, model): return data * model
    def output_fn(prediction, accept):
        stream = io.BytesIO()
        np.save(stream, prediction)
        return stream.getvalue(), accept
    """
    engine = load(
        source, 'content_type = "application/x-npy"\n[inputs]\nx = "float32[2]"\n[outputs]\ny = "float32[2]"\n'
    )
    np.testing.assert_array_equal(engine.predict({"x": X})["y"], X * 2)


LINES = """
import io, json, pathlib
import joblib
import numpy as np
import pandas as pd
def model_fn(model_dir): return joblib.load(pathlib.Path(model_dir, "iris.joblib"))
def input_fn(body, content_type):
    assert content_type == "text/csv" and isinstance(body, str)
    return pd.read_csv(io.StringIO(body), header=None)
def predict_fn(data, model): return model.predict_proba(data.iloc[:, :4].to_numpy()), data[4]
def output_fn(prediction, accept):
    assert accept == "application/json"
    probabilities, kinds = prediction
"""
DECLARED = 'content_type = "text/csv"\n[inputs]\nflower = "float64[4]"\nkind = "string"\n'


@pytest.mark.parametrize(
    "answer",
    [
        "return json.dumps(probabilities.tolist())",
        "return '\\n'.join(','.join(map(repr, row)) for row in probabilities.tolist()) + '\\n', accept_csv",
    ],
)
def test_rows_come_as_lines(load, tmp_path, answer):
    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(x, y)
    joblib.dump(model, tmp_path / "iris.joblib")
    engine = load(LINES + f"    accept_csv = 'text/csv'\n    {answer}\n", DECLARED)
    kinds = np.array([b'of a "kind", or not'] * 10, object)
    found = engine.predict({"flower": x[::15], "kind": kinds})["prediction"]
    assert found.tolist() == model.predict_proba(x[::15]).tolist()


def test_a_line_that_is_no_text_is_the_clients_fault(load):
    source = """
    def model_fn(model_dir): return 1
    def input_fn(body, content_type): return body.splitlines()
    def predict_fn(data, model): return [1] * len(data)
    """
    engine = load(source, DECLARED)
    kinds = np.array([b"a", b"b"], object)
    assert engine.predict({"flower": np.ones((2, 4)), "kind": kinds})["prediction"].tolist() == [1, 1]
    with pytest.raises(SignatureMismatch, match="input 'kind': found bytes that are not UTF-8"):
        engine.predict({"flower": np.ones((1, 4)), "kind": np.array([b"\xff"], object)})


@pytest.mark.parametrize("context", ["context", "context=None"])
def test_the_context_goes_to_those_who_take_it(load, tmp_path, context):
    source = f"""
    import json
    def model_fn(model_dir, {context}):
        assert context.system_properties["model_dir"] == model_dir
        return context
    def input_fn(body, content_type, {context}): return json.loads(body)["x"], context
    def predict_fn(data, model, {context}): return [[*data[0], data[1] is model is context]]
    def output_fn(prediction, accept, {context}): return json.dumps(prediction), context and accept
    """
    engine = load(source, '[inputs]\nx = "float32"\n[outputs]\nprediction = "float32[2]"\n')
    assert engine.predict({"x": X[0, :1]})["prediction"].tolist() == [[1, 1]]


def test_a_function_that_is_missing_is_that_of_the_containers(load):
    source = """
    class Model:
        def predict(self, data): return data.sum(axis=1)
    def model_fn(model_dir): return Model()
    """
    engine = load(source, '[inputs]\nx = "float32[2]"\n')
    assert engine.predict({"x": X})["prediction"].tolist() == [3, 7]


def test_a_module_of_pytorch_is_given_tensors(load):
    source = """
    import torch
    def model_fn(model_dir): return torch.nn.Linear(2, 3)
    """
    engine = load(source, '[inputs]\nx = "float32[2]"\n')
    assert [str(spec) for spec in engine.signature.outputs] == ["float32[3]"]
    assert engine.predict({"x": X})["prediction"].shape == (2, 3)


@pytest.mark.parametrize(
    ("source", "toml", "told"),
    [
        (
            "",
            "",
            "inference.py: its functions do not tell what a request holds; write it into model.toml, for example: ",
        ),
        ("", '[inputs]\nx = "int8"', "inference.py has no model_fn(model_dir), which loads the model"),
        (f"{ECHO}\ntransform_fn = 1", '[inputs]\nx = "int8"', "write it as input_fn, predict_fn and output_fn"),
        (ECHO, f"batched = false\n{DECLARED}", "and a line is a row: max_batch_rows = 1 gives them one by one"),
        (ECHO, 'content_type = "application/x-npy"\n[inputs]\nx = "string"', "which holds one array of numbers"),
        (
            "def model_fn(d): return 1",
            '[inputs]\nx = "int8"',
            "the model raised TypeError ('int' object is not callable)",
        ),
    ],
)
def test_what_cannot_be_served_is_told(load, source, toml, told):
    with pytest.raises(ModelError) as error:
        load(source, toml)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ('"{"', "output_fn gave no application/json: Expecting property name"),
        ("None", "output_fn gave no application/json: the JSON object must be str, bytes or bytearray, not NoneType"),
        ("json.dumps({'z': [1]})", "output_fn gave no y, z"),
    ],
)
def test_what_output_fn_gives_is_checked(load, returned, told):
    source = ECHO.replace("json.dumps([[*map(str, prediction), accept]])", returned)
    toml = '[inputs]\nx = "float32[2]"\n[outputs]\ny = "float32"\nz = "float32"\n'
    with pytest.raises(EngineError) as error:
        load(source, toml).predict({"x": X[:1]})
    assert told in str(error.value)
