"""MLflow's models: params, columns that may be left out, input examples, and what is not served."""

import json
import warnings

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types import TensorSpec as Tensor

from app import codec
from mules import engines
from serving.errors import ModelError, SignatureMismatch
from serving.model import ModelFolder

ONE = Schema([ColSpec("double", "x")])


class Times(mlflow.pyfunc.PythonModel):
    """Multiplies by a param, and counts its calls."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        factor, unit = (params or {}).get("factor", 1), (params or {}).get("unit", "")
        return pd.DataFrame({"y": model_input["x"] * factor, "calls": len(model_input), "unit": unit})


class Rows(mlflow.pyfunc.PythonModel):
    """How many rows it sees, and the first number of each."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        assert len(model_input) == 4
        return model_input[:, 0]


@pytest.fixture
def load(tmp_path):
    def load(model, signature, **options):
        with warnings.catch_warnings():
            # of comparisons in MLflow, and of what might be saved as well
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(tmp_path / "model", python_model=model, signature=signature, **options)
        return engines.load(ModelFolder.find(tmp_path / "model"), threads=1)

    return load


@pytest.fixture
def times(load):
    params = ParamSchema([ParamSpec("factor", DataType.double, 2.0), ParamSpec("unit", DataType.string, "m")])
    return load(Times(), ModelSignature(ONE, None, params))


def ask(engine, value):
    inputs, encode, _ = codec.decode(json.dumps(value).encode(), engine.signature)
    return json.loads(encode(engine.predict(inputs)))


def test_params_may_be_left_out_of_a_request(times):
    assert ask(times, {"x": 3}) == {"y": 6, "calls": 1, "unit": "m"}
    assert ask(times, {"x": 3, "factor": 5}) == {"y": 15, "calls": 1, "unit": "m"}
    assert ask(times, {"inputs": {"x": [1, 2]}}) == {"outputs": {"y": [2, 4], "calls": [2, 2], "unit": ["m", "m"]}}
    with pytest.raises(SignatureMismatch, match="'fctor' is unknown; the model takes 'x'"):
        ask(times, {"x": 3, "fctor": 5})
    with pytest.raises(SignatureMismatch, match="'x' is missing"):
        ask(times, {"factor": 5})


def test_rows_with_other_params_are_predicted_by_themselves(times):
    rows = [{"x": 1}, {"x": 2}, {"x": 3, "unit": "km"}, {"x": 4, "factor": 0}]
    found = ask(times, {"instances": rows})["predictions"]
    assert [(row["y"], row["calls"], row["unit"]) for row in found] == [
        (2, 2, "m"),
        (4, 2, "m"),
        (6, 1, "km"),
        (0, 1, "m"),
    ]


def test_a_column_of_floats_that_is_not_required_may_be_left_out(load):
    class Known(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            return model_input.notna().sum(axis=1)

    engine = load(Known(), ModelSignature(Schema([ColSpec("double", "x"), ColSpec("double", "z", required=False)])))
    assert ask(engine, {"x": 1, "z": 2}) == {"predict": 2}
    assert ask(engine, {"x": 1}) == {"predict": 1}


def test_bytes_and_strings_come_as_they_are(load):
    class Kinds(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            return [f"{row.text!r} {row.data!r}" for row in model_input.itertuples()]

    engine = load(Kinds(), ModelSignature(Schema([ColSpec("string", "text"), ColSpec("binary", "data")])))
    assert ask(engine, {"text": "ž", "data": {"b64": "/w=="}}) == {"predict": "'ž' b'\\xff'"}


def test_bytes_that_are_no_string_are_the_clients_fault(times):
    inputs = {"x": np.ones(2), "factor": np.ones(2), "unit": np.array([b"m", b"\xff"], object)}
    with pytest.raises(SignatureMismatch, match="input 'unit': found bytes that are not UTF-8"):
        times.predict(inputs)


def test_a_batch_of_fixed_size_is_padded(load):
    own = Schema([Tensor(np.dtype("float32"), (4, 2))]), Schema([Tensor(np.dtype("float32"), (4,), "first")])
    engine = load(Rows(), ModelSignature(*own))
    assert engine.max_batch_rows == 4
    assert ask(engine, {"inputs": {"inputs": [[1, 2], [3, 4]]}}) == {"outputs": {"first": [1, 3]}}


@pytest.mark.parametrize(
    "example",
    [
        pd.DataFrame({"x": [4.5, 5], "text": ["a", "b"]}),
        {"x": np.array([4.5, 5]), "text": np.array(["a", "b"])},
    ],
)
def test_the_input_example_is_the_sample(load, example):
    class Picky(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            assert (np.asarray(model_input["x"]) != 0).all()
            return np.asarray(model_input["x"])

    engine = load(Picky(), infer_signature(example), input_example=example)
    samples = engine.signature.samples(2)
    assert (samples["x"].tolist(), samples["text"].tolist()) == ([4.5, 4.5], [b"a", b"a"])


@pytest.mark.parametrize(
    ("signature", "told"),
    [
        (None, "MLmodel has no signature; log the model with signature=infer_signature(inputs, outputs)"),
        (ModelSignature(Schema([ColSpec("datetime", "t")])), "the column 't' is datetime, which is not served"),
        (
            ModelSignature(Schema([Tensor(np.dtype("complex64"), (-1,))])),
            "the tensor 'inputs' is complex64[-1], which is not served",
        ),
    ],
)
def test_what_is_not_served_is_told(load, signature, told):
    with pytest.raises(ModelError) as error:
        load(Times(), signature)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_written_where_a_model_is_loaded(times, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = engines.load(ModelFolder.find(tmp_path / "model"), threads=1)
    engine.predict(engine.signature.samples())
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
