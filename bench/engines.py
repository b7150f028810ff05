"""What an engine costs: one row, alone and in a batch of 32, by way of the engine and by calling its library.

usage: python -m bench.engines [--only NAMES] [--repeats N] [--out DIR]
       python -m bench.engines train NAME FOLDER
       python -m bench.engines library NAME FOLDER

For each engine a model is trained on handwritten digits, 64 numbers in and 10 out, and written as its library does.
Then it is measured in turn by way of the engine (muleteer models verify, from arrays by name to arrays by name, as a
replica calls it) and in a process that calls the library as its documents tell, from an array to an array; both with
one thread, as often as a fifth of a second holds.  The table has the medians of all repeats, with the lowest and the
highest.

Writes engines.json and a section of compare.md.

Units: microseconds of one row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import report
from bench.compare import RESULTS, names
from bench.ranking import Spread
from bench.report import say
from bench.work import ROOT

REPEATS = 5
ROWS = (1, 32)
SEED = 7
HIDDEN = 128
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Array = npt.NDArray[Any]
Call = Callable[[Array], Any]


@dataclass
class Costs:
    """Of one engine, microseconds of a row in each repeat, by the rows of a predict."""

    name: str
    engine_us: dict[int, list[float]]
    library_us: dict[int, list[float]]


@dataclass(frozen=True)
class Subject:
    """One engine: how a model for it is trained and written, and how its library is called in process."""

    title: str
    train: Callable[[Path], None]
    library: Callable[[Path], Call]
    # of the numbers that it takes
    dtype: str = "float32"


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x.astype(np.float32), y


def _keras() -> Any:
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    layers = [tf.keras.layers.Dense(HIDDEN, "relu"), tf.keras.layers.Dense(10, "softmax")]
    network = tf.keras.Sequential([tf.keras.Input((64,), name="x"), *layers])
    network.compile("adam", "sparse_categorical_crossentropy")
    network.fit(*_digits(), epochs=3, verbose=0)
    return network


def _train_tensorflow(folder: Path) -> None:
    _keras().export(folder, verbose=False)


def _tensorflow(folder: Path) -> Call:
    import tensorflow as tf

    _tensorflow_threads(tf)
    model = tf.saved_model.load(str(folder))
    function = model.signatures["serving_default"]
    (name,) = function.structured_input_signature[1]

    def call(rows: Array) -> Any:
        return {key: found.numpy() for key, found in function(**{name: tf.constant(rows)}).items()}, model

    return call


def _tensorflow_threads(tf: Any) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _train_tflite(folder: Path) -> None:
    import tensorflow as tf

    (folder / "digits.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(_keras()).convert())


def _tflite(folder: Path) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(folder / "digits.tflite"), num_threads=1).get_signature_runner("serving_default")
    (name,) = runner.get_input_details()
    return lambda rows: runner(**{name: rows})


def _mlp() -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((HIDDEN,), max_iter=20, random_state=SEED)


def _fitted(model: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        # that it has not converged
        warnings.simplefilter("ignore")
        return model.fit(*_digits())


def _train_sklearn(folder: Path) -> None:
    import joblib

    joblib.dump(_fitted(_mlp()), folder / "digits.joblib")
    (folder / "model.toml").write_text('[outputs]\npredict_proba = "float64[10]"\n')


def _sklearn(folder: Path) -> Call:
    import joblib

    call: Call = joblib.load(folder / "digits.joblib").predict_proba
    return call


def _train_onnx(folder: Path) -> None:
    import skl2onnx

    proto = skl2onnx.to_onnx(_fitted(_mlp()), _digits()[0][:1], options={"zipmap": False})
    (folder / "digits.onnx").write_bytes(proto.SerializeToString())
    (folder / "model.toml").write_text('[outputs]\nprobabilities = "float32[10]"\n')


def _onnx(folder: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "digits.onnx", options, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(["probabilities"], {"X": rows})


def _train_torch(folder: Path) -> None:
    import torch

    torch.manual_seed(SEED)
    network = torch.nn.Sequential(
        torch.nn.Linear(64, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10), torch.nn.Softmax(1)
    ).eval()
    rows = torch.export.Dim("rows")
    program = torch.export.export(network, (torch.tensor(_digits()[0][:2]),), dynamic_shapes=({0: rows},))
    torch.export.save(program, folder / "digits.pt2")


def _torch(folder: Path) -> Call:
    import torch

    torch.set_num_threads(1)
    module = torch.export.load(folder / "digits.pt2").module()

    def call(rows: Array) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(rows)).numpy()

    return call


def _train_xgboost(folder: Path) -> None:
    import xgboost

    options = {"objective": "multi:softprob", "num_class": 10, "nthread": 1, "seed": SEED}
    xgboost.train(options, xgboost.DMatrix(*_digits()), 20).save_model(folder / "digits.ubj")


def _xgboost(folder: Path) -> Call:
    import xgboost

    booster = xgboost.Booster({"nthread": 1}, model_file=folder / "digits.ubj")
    return lambda rows: booster.predict(xgboost.DMatrix(rows, nthread=1))


def _train_lightgbm(folder: Path) -> None:
    import lightgbm

    options = {"objective": "multiclass", "num_class": 10, "verbose": -1, "num_threads": 1, "seed": SEED}
    lightgbm.train(options, lightgbm.Dataset(*_digits()), 20).save_model(folder / "digits.lgb")


def _lightgbm(folder: Path) -> Call:
    import lightgbm

    booster = lightgbm.Booster(model_file=folder / "digits.lgb")
    return lambda rows: booster.predict(rows, num_threads=1)


def _train_mlflow(folder: Path) -> None:
    import mlflow.sklearn
    from mlflow.models import infer_signature

    model = _fitted(_mlp())
    x, _ = _digits()
    folder.rmdir()
    mlflow.sklearn.save_model(
        model,
        folder,
        signature=infer_signature(x, model.predict_proba(x)),
        pyfunc_predict_fn="predict_proba",
        serialization_format="pickle",
    )


def _mlflow(folder: Path) -> Call:
    import mlflow.pyfunc

    call: Call = mlflow.pyfunc.load_model(str(folder)).predict
    return call


_INFERENCE = """
import json
import pathlib

import joblib
import numpy as np


def model_fn(model_dir):
    return joblib.load(pathlib.Path(model_dir, "digits.joblib"))


def input_fn(body, content_type):
    return np.array(json.loads(body)["x"], np.float32)


def predict_fn(data, model):
    return model.predict_proba(data)


def output_fn(prediction, accept):
    return json.dumps(prediction.tolist())
"""
_MODEL = """
import pathlib

import joblib


class Model:
    inputs = {"x": "float32[64]"}
    outputs = {"y": "float32[10]"}

    def __init__(self, path):
        self.model = joblib.load(pathlib.Path(path, "digits.joblib"))

    def predict(self, inputs):
        return {"y": self.model.predict_proba(inputs["x"])}
"""


def _train_sagemaker(folder: Path) -> None:
    _train_sklearn(folder)
    (folder / "inference.py").write_text(_INFERENCE)
    (folder / "model.toml").write_text('[inputs]\nx = "float32[64]"\n')


def _train_python(folder: Path) -> None:
    _train_sklearn(folder)
    (folder / "model.toml").unlink()
    (folder / "model.py").write_text(_MODEL)


SUBJECTS = {
    "tensorflow": Subject("SavedModel, a dense network", _train_tensorflow, _tensorflow),
    "tflite": Subject("the same network", _train_tflite, _tflite),
    "onnx": Subject("a dense network, from scikit-learn", _train_onnx, _onnx),
    "torch": Subject("`.pt2`, a dense network", _train_torch, _torch),
    "sklearn": Subject("a dense network, `predict_proba`", _train_sklearn, _sklearn, "float64"),
    "xgboost": Subject("200 trees", _train_xgboost, _xgboost),
    "lightgbm": Subject("200 trees", _train_lightgbm, _lightgbm, "float64"),
    "mlflow": Subject("pyfunc of scikit-learn's", _train_mlflow, _mlflow),
    "sagemaker": Subject("four functions around scikit-learn's", _train_sagemaker, _sklearn),
    "python": Subject("a class around scikit-learn's", _train_python, _sklearn),
}


def render(costs: list[Costs]) -> str:
    """The table."""
    rows = []
    for found in costs:
        row = [found.name, SUBJECTS[found.name].title]
        for count in ROWS:
            engine, library = Spread.of(found.engine_us[count]), Spread.of(found.library_us[count])
            row += [engine.text("%.1f"), library.text("%.1f"), f"{engine.median - library.median:+.1f}"]
        rows.append(row)
    head = ["engine", "model"]
    for count in ROWS:
        head += [f"{count}: engine, µs", f"{count}: library, µs", f"{count}: more, µs"]
    return report.table(head, rows)


def measure(name: str, folder: Path, repeats: int) -> Costs:
    """Train a model for an engine, and measure it in turn by both ways."""
    _run(["bench.engines", "train", name, str(folder)])
    commands = {
        "engine": ["muleteer", "models", "verify", "--json", "--model", str(folder)],
        "library": ["bench.engines", "library", name, str(folder)],
    }
    found: dict[str, list[dict[str, float]]] = {way: [] for way in commands}
    for _ in range(repeats):
        for way, command in commands.items():
            found[way].append(json.loads(_run(command))["ms"])
    all_us = {
        way: {rows: [round(one[str(rows)] / rows * 1000, 3) for one in own] for rows in ROWS}
        for way, own in found.items()
    }
    return Costs(name, all_us["engine"], all_us["library"])


def _run(command: list[str]) -> str:
    """The last line that a module prints, run in a process of its own."""
    serving = {"SERVING_REPLICA_THREADS": "1", "SERVING_MAX_BATCH_ROWS": str(ROWS[-1])}
    environ = os.environ | ONE_THREAD | serving | {"TF_CPP_MIN_LOG_LEVEL": "3", "MLFLOW_DISABLE_TELEMETRY": "true"}
    told = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environ, capture_output=True, text=True)
    if told.returncode:
        raise ValueError(f"{' '.join(command)}: {told.stderr.strip()[-800:]}")
    return told.stdout.splitlines()[-1] if told.stdout else ""


def _ms(call: Call, rows: Array) -> float:
    # the first one may take longer
    call(rows)
    calls, took_s = timeit.Timer(partial(call, rows)).autorange()
    return took_s / calls * 1000


def _in_child(verb: str, name: str, folder: str) -> None:
    path = Path(folder)
    if verb == "train":
        path.mkdir(parents=True)
        SUBJECTS[name].train(path)
        return
    call, dtype = SUBJECTS[name].library(path), SUBJECTS[name].dtype
    # zeros, as the engine's warm-up has them
    print(json.dumps({"ms": {rows: _ms(call, np.zeros((rows, 64), dtype)) for rows in ROWS}}))


def main() -> int:
    """Measure, write, print the table."""
    if sys.argv[1:2] in (["train"], ["library"]):
        _in_child(*sys.argv[1:])
        return 0
    parser = argparse.ArgumentParser(prog="bench.engines", description=(__doc__ or "").partition("\n")[0])
    told = ",".join(SUBJECTS)
    parser.add_argument("--only", type=names(list(SUBJECTS)), default=list(SUBJECTS), metavar="NAMES", help=f"({told})")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help=f"of all of it ({REPEATS})")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go (bench/results)")
    arguments = parser.parse_args()
    costs = []
    with tempfile.TemporaryDirectory(prefix="bench-engines-") as folder:
        for name in arguments.only:
            costs.append(measure(name, Path(folder, name), arguments.repeats))
            say(f"{name}: {costs[-1].engine_us} µs, the library {costs[-1].library_us}")
    text = "\n\n".join(
        [
            report.machine(),
            "Microseconds of one row, alone and in a batch of 32: by way of the engine, and by calling the library in"
            f" process; one thread; medians of {arguments.repeats} [lowest–highest].",
            render(costs),
        ]
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "engines.json").write_text(json.dumps([asdict(found) for found in costs], indent=1) + "\n")
    report.write(arguments.out / "compare.md", "Engines", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
