"""What cannot be served is refused in one sentence that names the thing and the fix."""

import pickle
import shutil
import sys

import joblib
import numpy as np
import pytest
import sklearn.base
from sklearn import datasets
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import DBSCAN
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mules import engines
from serving.errors import ModelError
from serving.model import ModelFolder

FILES = {
    "sklearn_matrix": "model.joblib",
    "sklearn_forest": "forest.pkl",
    "sklearn_skops": "model.skops",
    "xgboost_matrix": "model.ubj",
    "xgboost_table": "model.json",
    "lightgbm_matrix": "model.txt",
    "lightgbm_table": "model.lgb",
    "onnx": "digits.onnx",
    "torch_script": "model.pt",
    "torch_exported": "model.pt2",
    "tflite": "iris.tflite",
    "mlflow_table": "model.pkl",
}


class Mine(ClassifierMixin, BaseEstimator):
    """Somebody's own step."""

    def fit(self, x, y):
        self.n_features_in_, self.classes_ = x.shape[1], np.unique(y)
        return self

    def predict(self, x):
        return np.zeros(len(x))


def refusal(path):
    with pytest.raises(ModelError) as error:
        engines.load(ModelFolder.find(path), threads=1)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def copy(train, tmp_path):
    """A copy of a trained model's folder, for a change."""

    def copy(name):
        return shutil.copytree(train(name)[0], tmp_path / name)

    return copy


@pytest.mark.parametrize("text", ["", "flavors: ["])
def test_an_mlmodel_that_is_no_yaml_is_refused(copy, text):
    (path := copy("mlflow_table") / "MLmodel").write_text(text)
    assert f"{path} cannot be read, it is broken or of another kind: " in refusal(path.parent)


@pytest.mark.parametrize("part", [0, 0.5, 0.9])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(copy, name, part):
    path = copy(name)
    file = path / FILES[name]
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    told = refusal(path)
    assert str(path) in told and "cannot be read, it is broken or of another kind: " in told


# Keras, as it writes the weights of an archive
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.data-00000-of-00001", "model.keras"])
def test_a_truncated_file_of_tensorflow_is_refused(tf, tmp_path, name):
    network = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)])
    if name == "model.keras":
        network.save(tmp_path / name)
    else:
        network.export(tmp_path, verbose=False)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    told = refusal(tmp_path)
    assert str(tmp_path) in told and "cannot be read, it is broken or of another kind: " in told


@pytest.mark.parametrize("name", ["sklearn_forest", "sklearn_skops", "mlflow_table"])
def test_a_file_of_another_version_is_refused_with_both(copy, monkeypatch, name):
    path = copy(name)
    file = path / FILES[name]
    model = skops_io().load(file, trusted=[]) if file.suffix == ".skops" else joblib.load(file)
    with monkeypatch.context() as patch:
        # that is where it is read from for the file
        patch.setattr(sklearn.base, "__version__", "1.2.3")
        if file.suffix == ".skops":
            skops_io().dump(model, file)
        else:
            file.write_bytes(pickle.dumps(model))
    told = refusal(path)
    assert "was written by scikit-learn 1.2.3, and 1.9.1 is installed, which may read it wrongly" in told
    assert "install scikit-learn==1.2.3, or write the file anew" in told


def skops_io():
    import skops.io

    return skops.io


def test_a_skops_file_with_types_of_somebodys_needs_their_names(tmp_path):
    x, y = datasets.load_iris(return_X_y=True)
    skops_io().dump(Mine().fit(x, y), tmp_path / "model.skops")
    told = refusal(tmp_path)
    line = f"trusted = ['{__name__}.Mine']"
    assert f"holds types that scikit-learn does not know, {__name__}.Mine" in told
    assert f"if they are yours, write {line} into model.toml" in told
    (tmp_path / "model.toml").write_text(line)
    assert engines.load(ModelFolder.find(tmp_path), threads=1).predict({"inputs": x[:2]})["predict"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        ("onnxruntime", "onnx", "is for the engine onnx, and onnxruntime is not installed: pip install '.[onnx]'"),
        ("xgboost", "xgboost_table", "for the engine xgboost, and xgboost is not installed: pip install '.[xgboost]'"),
        ("pandas", "sklearn_table", "model.joblib needs pandas, which is not installed: pip install '.[sklearn]'"),
        ("skops.io", "sklearn_skops", "model.skops needs skops.io, which is not installed: pip install '.[sklearn]'"),
    ],
)
def test_a_library_that_is_not_installed_is_told_with_its_extra(copy, monkeypatch, module, name, told):
    path = copy(name)
    # as if it were not there
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"mules.engines.{engines.find(ModelFolder.find(path))}", raising=False)
    assert refusal(path).endswith(told)


def test_a_module_that_a_pickle_needs_is_told(tmp_path, monkeypatch):
    module = type(sys)("somewhere_else")
    module.Mine = type("Mine", (LinearRegression,), {"__module__": "somewhere_else"})
    monkeypatch.setitem(sys.modules, "somewhere_else", module)
    joblib.dump(module.Mine().fit([[1]], [1]), tmp_path / "model.joblib")
    monkeypatch.delitem(sys.modules, "somewhere_else")
    assert refusal(tmp_path).endswith(
        "model.joblib needs the module somewhere_else, which is not installed: install it beside the server"
    )
    # or beside the file
    (tmp_path / "somewhere_else.py").write_text(
        "from sklearn.linear_model import LinearRegression\nclass Mine(LinearRegression): pass\n"
    )
    engines.load(ModelFolder.find(tmp_path), threads=1)


def test_an_encoder_that_refuses_zeros_has_a_sample_of_its_own(train):
    signature = engines.load(ModelFolder.find(train("sklearn_table")[0]), threads=1).signature
    assert signature.samples()["species"].tolist() == [b"setosa"]


def test_a_model_that_refuses_zeros_and_has_no_sample_asks_for_one(tmp_path):
    x = np.array([[1.0, 5.0], [2.0, 6.0]])
    joblib.dump(make_pipeline(OneHotEncoder(), LinearRegression()).fit(x, [1, 2]), tmp_path / "model.joblib")
    told = refusal(tmp_path)
    assert "the model raised ValueError (Found unknown categories [" in told
    assert told.endswith("without a sample: put one row that it takes into a sample.json beside it")
    (tmp_path / "sample.json").write_text('{"inputs": [2, 5]}')
    engines.load(ModelFolder.find(tmp_path), threads=1)
    (tmp_path / "sample.json").write_text('{"inputs": [2, 7]}')
    assert refusal(tmp_path).endswith("on its sample")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (DBSCAN().fit([[1], [2]]), "model.joblib holds a DBSCAN, which has neither predict nor transform"),
        (LinearRegression(), "holds a LinearRegression that does not say how many features it takes: fit it first"),
        ({"a": 1}, "model.joblib holds a dict, which has neither predict nor transform"),
        (
            DummyClassifier().fit([[1], [2]], [[1, 2], [3, 4]]),
            "output 'predict_proba' has shape [2, 1, 2] for 1 rows, and needs a row for each: leave it out of [outputs]"
            " in model.toml",
        ),
    ],
)
def test_what_scikit_learn_cannot_predict_with_is_refused(tmp_path, model, told):
    joblib.dump(model, tmp_path / "model.joblib")
    assert refusal(tmp_path).endswith(told)


def test_an_output_that_is_left_out_is_not_computed(tmp_path):
    joblib.dump(DummyClassifier().fit([[1], [2]], [[1, 2], [3, 4]]), tmp_path / "model.joblib")
    (tmp_path / "model.toml").write_text('[outputs]\npredict = "int64[2]"\n')
    engine = engines.load(ModelFolder.find(tmp_path), threads=1)
    assert engine.predict({"inputs": np.zeros((3, 1))})["predict"].tolist() == [[1, 2]] * 3


def test_columns_that_are_given_by_place_or_mask_are_known_by_name(tmp_path):
    frame = datasets.load_iris(as_frame=True).data.assign(species="setosa", place=3)
    for columns in (["species"], [4], slice(4, 5), slice("species", "species"), [False] * 4 + [True, False]):
        model = make_pipeline(
            make_column_transformer((OneHotEncoder(), columns), remainder="passthrough"), LinearRegression()
        )
        joblib.dump(model.fit(frame, np.arange(len(frame))), tmp_path / "model.joblib")
        species = engines.load(ModelFolder.find(tmp_path), threads=1).signature.inputs[4]
        assert (species.name, species.dtype, species.sample) == ("species", "string", "setosa")


@pytest.mark.parametrize(
    ("name", "toml", "told"),
    [
        ("sklearn_matrix", '[inputs]\ninputs = "float64[5]"', "inputs = 'float64[5]'; the model has float64[4]"),
        ("sklearn_matrix", '[outputs]\nscore = "float64"', "'score' is unknown; the model has predict, predict_proba"),
        ("sklearn_rides", '[inputs]\nfare = "int64"', "'fare' is unknown; the model has DOLocationID, PULocationID, "),
        ("sklearn_table", '[inputs]\nspecies = "string[2]"', "species = 'string[2]': a column has one value in a row"),
        ("sklearn_text", '[inputs]\ntext = "float32"', "text = 'float32'; the model has string"),
        ("onnx", '[inputs]\nX = "float64[64]"', "X = 'float64[64]'; the model has float32[64]"),
        ("xgboost_matrix", '[inputs]\ninputs = "float32[4]"', "inputs = 'float32[4]'; the model has float32[30]"),
        ("lightgbm_matrix", '[outputs]\ny = "float64"', "[outputs] 'y' is unknown; the model has predict"),
        ("torch_script", '[inputs]\nx = "float32[4]"', "must name all inputs of model.pt: input"),
        ("torch_script", '[inputs]\ninput = "string"', "input is a string, and PyTorch has no such tensors"),
        ("torch_script", 'name = "a"', "does not tell the types of its inputs; model.toml has to: [inputs] input = "),
        (
            "torch_script",
            '[inputs]\ninput = "float32[5]"',
            "without a sample: put one row that it takes into a sample.json",
        ),
        ("torch_exported", '[inputs]\ninput = "float32[3]"', "input = 'float32[3]'; the model has float32[4]"),
        ("tflite", '[inputs]\nflower = "int8[4]"', "flower = 'int8[4]'; the model has float32[4]"),
        ("tflite", 'signature = "mine"', "has no signature 'mine'; it has serving_default: set signature in"),
        ("mlflow_table", '[outputs]\nx = "float64"', "[outputs] 'x' is unknown; the model has predict"),
        (
            "sagemaker",
            'content_type = "text/html"',
            "content_type = 'text/html'; it is application/json, text/csv or application/x-npy",
        ),
        ("sagemaker", 'name = "a"', 'write it into model.toml, for example: [inputs] features = "float32[4]"'),
    ],
)
def test_a_signature_that_contradicts_the_artifact_is_refused(copy, name, toml, told):
    path = copy(name)
    declared = path / "model.toml"
    if name == "sagemaker" and "content_type" in toml:
        toml += "\n" + declared.read_text()
    declared.write_text(toml)
    assert told in refusal(path)
