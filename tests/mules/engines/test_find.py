"""Which engine serves a folder, from the files in it."""

import pytest

from mules import engines
from serving.errors import ModelError
from serving.model import ModelFolder


def folder(path, *files, toml=""):
    for file in files:
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).touch()
    if toml:
        (path / "model.toml").write_text(toml)
    return ModelFolder.find(path)


@pytest.mark.parametrize(
    ("files", "toml", "engine"),
    [
        (["model.py"], "", "python"),
        (["saved_model.pb"], "", "tensorflow"),
        (["digits.keras"], "", "tensorflow"),
        (["1/model.py", "2/saved_model.pb"], "", "tensorflow"),
        # its wrapper
        (["model.py", "saved_model.pb"], "", "python"),
        (["model.py", "saved_model.pb"], 'engine = "tensorflow"', "tensorflow"),
        (["code/inference.py", "model.pt"], "", "sagemaker"),
        (["inference.py", "model.joblib"], "", "sagemaker"),
        # what MLflow writes tells by itself what its files are
        (["MLmodel", "model.pkl", "model.py"], "", "mlflow"),
        (["a.tflite"], "", "tflite"),
        (["a.onnx"], "", "onnx"),
        (["a.pt2"], "", "torch"),
        (["a.pt"], "", "torch"),
        (["a.ts"], "", "torch"),
        (["a.skops"], "", "sklearn"),
        (["a.joblib"], "", "sklearn"),
        (["a.pkl"], "", "sklearn"),
        (["a.ubj", "sample.json"], "", "xgboost"),
        (["model.json"], "", "xgboost"),
        (["a.lgb"], "", "lightgbm"),
        (["model.txt"], "", "lightgbm"),
    ],
)
def test_the_engine_is_found_from_the_files(tmp_path, files, toml, engine):
    assert engines.find(folder(tmp_path, *files, toml=toml)) == engine


@pytest.mark.parametrize(
    ("files", "toml", "told"),
    [
        (
            ["weights.h5", "notes.txt"],
            "",
            "(found notes.txt, weights.h5); it needs one of MLmodel, model.py, inference.py, code/inference.py, saved_",
        ),
        (["model.py"], 'engine = "jax"', "engine = 'jax'; it is one of mlflow, python, sagemaker, tensorflow"),
        (
            ["a.onnx", "b.pkl", "c.pkl"],
            "",
            "holds models of two engines, a.onnx (onnx) and b.pkl (sklearn) and c.pkl (sklearn);"
            ' say which: engine = "…" in model.toml',
        ),
        (["model.py", "inference.py"], "", "two engines, inference.py (sagemaker) and model.py (python)"),
        (["1/notes.txt", "model.py"], "", "nothing in"),
    ],
)
def test_a_folder_that_no_engine_serves_is_refused(tmp_path, files, toml, told):
    with pytest.raises(ModelError) as error:
        engines.find(folder(tmp_path, *files, toml=toml))
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("files", "toml", "told"),
    [
        (["saved_model.pb"], 'engine = "python"', "has no model.py"),
        (["a.keras", "b.keras"], "", "holds 2 .keras files; it needs one"),
        (["model.py"], 'engine = "tensorflow"', "holds 0 .keras files; it needs one, or a saved_model.pb"),
        (["model.py"], 'engine = "sagemaker"', "has no inference.py or code/inference.py"),
        (["a.onnx", "b.onnx"], "", "holds 2 files *.onnx (a.onnx, b.onnx); it needs one"),
        (["model.py"], 'engine = "sklearn"', "holds 0 files *.skops or *.joblib or *.pkl; it needs one"),
    ],
)
def test_an_engine_without_its_file_refuses(tmp_path, files, toml, told):
    with pytest.raises(ModelError) as error:
        engines.load(folder(tmp_path, *files, toml=toml), threads=1)
    assert told in str(error.value)
