"""Real models, trained on data sets that ship inside scikit-learn and written as their libraries write them.

Each comes with some rows, as tensors, and with what the library itself answers to them in this process.
"""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
from sklearn import datasets
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

SEED = 7
# of the data, rows that are predicted: from all over it, for it is sorted by class
ROWS = slice(None, None, 17)


@dataclass
class Trained:
    """What a model is asked, and what its library answers."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def strings(values):
    """As a tensor has them."""
    found = np.empty(len(values), object)
    found[:] = [value.encode() for value in values]
    return found


def table(found):
    """The columns of a table as tensors."""
    return {
        name: found[name].to_numpy() if found[name].dtype.kind in "if" else strings(found[name].tolist())
        for name in found.columns
    }


def predictions(model, rows):
    """The outputs of an estimator as tensors."""
    found = {"predict": model.predict(rows)}
    if hasattr(model, "predict_proba"):
        found["predict_proba"] = model.predict_proba(rows)
    return {name: strings(own.tolist()) if own.dtype.kind in "OU" else own for name, own in found.items()}


def flowers():
    """Iris as a table with a column of strings, and the petals' widths."""
    iris = datasets.load_iris(as_frame=True)
    found = iris.data.assign(species=iris.target_names[iris.target])
    return found.drop(columns="petal width (cm)"), found["petal width (cm)"]


def sklearn_matrix(path):
    x, y = datasets.load_iris(return_X_y=True)
    search = GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1]})
    model = search.fit(x, y)
    joblib.dump(model, path / "model.joblib", compress=3)
    return Trained({"inputs": x[ROWS]}, predictions(model, x[ROWS]))


def sklearn_forest(path):
    x, y = datasets.load_diabetes(return_X_y=True)
    model = RandomForestRegressor(20, n_jobs=-1, random_state=SEED).fit(x, y)
    (path / "forest.pkl").write_bytes(pickle.dumps(model))
    return Trained({"inputs": x[ROWS]}, predictions(model, x[ROWS]))


def sklearn_skops(path):
    import skops.io

    x, y = datasets.load_wine(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    skops.io.dump(model, path / "model.skops")
    return Trained({"inputs": x[ROWS]}, predictions(model, x[ROWS]))


def sklearn_rides(path):
    """Rows of named numbers, as of taxi rides."""
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    names = ("PULocationID", "DOLocationID", "trip_distance")
    rows = [dict(zip(names, (int(row[0]), int(row[3]), row[2]), strict=True)) for row in x]
    model = make_pipeline(DictVectorizer(), LinearRegression()).fit(rows, y)
    joblib.dump(model, path / "model.joblib")
    some = rows[ROWS]
    return Trained({name: np.array([float(row[name]) for row in some]) for name in names}, predictions(model, some))


def sklearn_tuple(path):
    """Rows of named strings and numbers; vectorizer and model side by side in one file."""
    found, y = flowers()
    rows = found[["species", "petal length (cm)"]].to_dict("records")
    vectorizer = DictVectorizer()
    model = LinearRegression().fit(vectorizer.fit_transform(rows), y)
    (path / "model.pkl").write_bytes(pickle.dumps((vectorizer, model)))
    some = rows[ROWS]
    inputs = {
        "species": strings([row["species"] for row in some]),
        "petal length (cm)": np.array([row["petal length (cm)"] for row in some]),
    }
    return Trained(inputs, predictions(model, vectorizer.transform(some)))


def sklearn_text(path):
    """Lines of descriptions, and what they describe."""
    loaders = {"iris": datasets.load_iris, "wine": datasets.load_wine, "digits": datasets.load_digits}
    lines = [(line, name) for name, load in loaders.items() for line in load().DESCR.splitlines() if line.strip()]
    texts, labels = zip(*lines, strict=True)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    joblib.dump(model, path / "model.joblib")
    return Trained({"text": strings(texts[ROWS])}, predictions(model, texts[ROWS]))


def sklearn_table(path):
    """An encoder that refuses what it does not know, zeros for one."""
    x, y = flowers()
    encoded = make_column_transformer((OneHotEncoder(), ["species"]), remainder=StandardScaler())
    model = make_pipeline(encoded, LinearRegression()).fit(x, y)
    joblib.dump(model, path / "model.joblib")
    return Trained(table(x[ROWS]), predictions(model, x[ROWS]))


def xgboost_matrix(path):
    import xgboost

    x, y = datasets.load_breast_cancer(return_X_y=True)
    model = xgboost.train({"objective": "binary:logistic", "seed": SEED}, xgboost.DMatrix(x, y), 20)
    model.save_model(path / "model.ubj")
    rows = x[ROWS].astype(np.float32)
    return Trained({"inputs": rows}, {"predict": model.predict(xgboost.DMatrix(rows))})


def xgboost_table(path):
    import xgboost

    x, y = datasets.load_wine(return_X_y=True, as_frame=True)
    model = xgboost.train({"objective": "multi:softprob", "num_class": 3, "seed": SEED}, xgboost.DMatrix(x, y), 10)
    model.save_model(path / "model.json")
    rows = x[ROWS].astype(np.float32)
    return Trained(table(rows), {"predict": model.predict(xgboost.DMatrix(rows))})


def lightgbm_matrix(path):
    import lightgbm

    x, y = datasets.load_diabetes(return_X_y=True)
    model = lightgbm.train({"verbose": -1, "seed": SEED}, lightgbm.Dataset(x, y), 20)
    model.save_model(path / "model.txt")
    return Trained({"inputs": x[ROWS]}, {"predict": model.predict(x[ROWS])})


def lightgbm_table(path):
    import lightgbm

    x, y = datasets.load_wine(return_X_y=True, as_frame=True)
    x.columns = [name.replace("/", "_") for name in x.columns]
    parameters = {"objective": "multiclass", "num_class": 3, "verbose": -1, "seed": SEED}
    model = lightgbm.train(parameters, lightgbm.Dataset(x, y), 10)
    model.save_model(path / "model.lgb")
    return Trained(table(x[ROWS]), {"predict": model.predict(x[ROWS])})


def onnx(path):
    import onnxruntime
    import skl2onnx

    x, y = datasets.load_digits(return_X_y=True)
    x = x.astype(np.float32)
    model = MLPClassifier((32,), max_iter=300, random_state=SEED).fit(x, y)
    proto = skl2onnx.to_onnx(model, x[:1], options={"zipmap": False})
    (path / "digits.onnx").write_bytes(proto.SerializeToString())
    label, probabilities = onnxruntime.InferenceSession(path / "digits.onnx").run(None, {"X": x[ROWS]})
    # what it was converted from, in float64
    np.testing.assert_allclose(probabilities, model.predict_proba(x[ROWS]), rtol=0, atol=1e-5)
    return Trained({"X": x[ROWS]}, {"label": label, "probabilities": probabilities})


def _network():
    """A small network that knows iris, and its data."""
    import torch

    torch.manual_seed(SEED)
    x, y = (torch.tensor(found) for found in datasets.load_iris(return_X_y=True))
    x = x.float()
    network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3), torch.nn.Softmax(1))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(network(x).log(), y).backward()
        optimizer.step()
    network.eval()
    assert (network(x).argmax(1) == y).float().mean() > 0.9
    rows = x[ROWS]
    with torch.no_grad():
        return network, x, Trained({"input": rows.numpy()}, {"output": network(rows).numpy()})


def script(network, file):
    import torch

    with warnings.catch_warnings():
        # that it is deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(file)


def torch_script(path):
    network, _, trained = _network()
    script(network, path / "model.pt")
    (path / "model.toml").write_text('[inputs]\ninput = "float32[4]"\n')
    return trained


def torch_exported(path):
    import torch

    network, x, trained = _network()
    rows = torch.export.Dim("rows")
    torch.export.save(torch.export.export(network, (x[:2],), dynamic_shapes=({0: rows},)), path / "model.pt2")
    return trained


def tflite(path):
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    tf.keras.utils.set_random_seed(SEED)
    x, y = datasets.load_iris(return_X_y=True)
    x = x.astype(np.float32)
    layers = [tf.keras.layers.Dense(16, "relu"), tf.keras.layers.Dense(3, "softmax")]
    network = tf.keras.Sequential([tf.keras.Input((4,), name="flower"), *layers])
    network.compile("adam", "sparse_categorical_crossentropy")
    network.fit(x, y, epochs=3, verbose=0)
    (path / "iris.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(network).convert())
    answers = Interpreter(str(path / "iris.tflite")).get_signature_runner()(flower=x[ROWS])
    # what it was converted from
    np.testing.assert_allclose(answers["output_0"], network(x[ROWS]).numpy(), rtol=0, atol=1e-6)
    return Trained({"flower": x[ROWS]}, answers)


def mlflow_table(path):
    """By its own save_model, with a signature and an input example."""
    import mlflow.sklearn
    from mlflow.models import infer_signature

    x, y = flowers()
    encoded = make_column_transformer((OneHotEncoder(), ["species"]), remainder="passthrough")
    model = make_pipeline(encoded, LinearRegression()).fit(x, y)
    signature = infer_signature(x, model.predict(x))
    with warnings.catch_warnings():
        # of a comparison in MLflow
        warnings.simplefilter("ignore", DeprecationWarning)
        mlflow.sklearn.save_model(model, path, signature=signature, input_example=x[:2], serialization_format="pickle")
    return Trained(table(x[ROWS]), predictions(model, x[ROWS]))


SAGEMAKER = """
import json
import pathlib

import joblib
import numpy as np


def model_fn(model_dir):
    return joblib.load(pathlib.Path(model_dir, "iris.joblib"))


def input_fn(body, content_type):
    assert content_type == "application/json"
    return np.array(json.loads(body)["flowers"])


def predict_fn(data, model):
    return model.predict_proba(data)


def output_fn(prediction, accept):
    return json.dumps({"probabilities": prediction.tolist()}), accept
"""


def sagemaker(path):
    x, y = datasets.load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(x, y)
    joblib.dump(model, path / "iris.joblib")
    (path / "code").mkdir()
    (path / "code" / "inference.py").write_text(SAGEMAKER)
    (path / "model.toml").write_text('[inputs]\nflowers = "float64[4]"\n')
    return Trained({"flowers": x[ROWS]}, {"probabilities": model.predict_proba(x[ROWS])})


MODELS: dict[str, Callable[[Path], Trained]] = {
    made.__name__: made
    for made in (
        sklearn_matrix,
        sklearn_forest,
        sklearn_skops,
        sklearn_rides,
        sklearn_tuple,
        sklearn_text,
        sklearn_table,
        xgboost_matrix,
        xgboost_table,
        lightgbm_matrix,
        lightgbm_table,
        onnx,
        torch_script,
        torch_exported,
        tflite,
        mlflow_table,
        sagemaker,
    )
}
