"""SageMaker's functions: what they are given, and what stands in for those that are missing."""

import json
import textwrap

import numpy as np
import pytest

from mules import engines
from serving.errors import EngineError, ModelError

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
