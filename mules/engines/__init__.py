"""Engines: one adapter per framework, found from the files that a model folder holds.

Runs in:  mule.
Shapes:   inputs[name] and outputs[name]: (rows, *spec.shape).
Raises:   ModelError when the folder cannot be served; anything else that a model raises while it loads may be tried
          again.
"""

import importlib
import os
from typing import Protocol

from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import SERVING_DEFAULT, Signature
from serving.task import Tensors

# what the files of a folder are served by; a line stands for all that those below it are about
_FILES = (
    {"MLmodel": "mlflow"},
    {"model.py": "python", "inference.py": "sagemaker", "code/inference.py": "sagemaker"},
    {
        "saved_model.pb": "tensorflow",
        "*.keras": "tensorflow",
        "*.tflite": "tflite",
        "*.onnx": "onnx",
        "*.pt2": "torch",
        "*.pt": "torch",
        "*.ts": "torch",
        "*.skops": "sklearn",
        "*.joblib": "sklearn",
        "*.pkl": "sklearn",
        "*.ubj": "xgboost",
        "model.json": "xgboost",
        "*.lgb": "lightgbm",
        "model.txt": "lightgbm",
    },
)
_NAMES = tuple(dict.fromkeys(engine for patterns in _FILES for engine in patterns.values()))
# that need no framework; each other one is called like the extra of the package that brings what it imports
_BARE = ("python", "sagemaker")
# how libraries that are loaded from here on are told of threads
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Engine(Protocol):
    """One loaded model."""

    signature: Signature
    max_batch_rows: int | None  # how many rows one predict takes at the most, None when the model does not mind

    def predict(self, inputs: Tensors) -> Tensors:
        """The outputs of all rows of inputs."""
        ...


def find(folder: ModelFolder) -> str:
    """The name of the engine that serves a folder."""
    name = folder.options.get("engine")
    if name is not None:
        if name not in _NAMES:
            raise ModelError(f"model.toml says engine = {name!r}; it is one of {', '.join(_NAMES)}")
        return str(name)
    for patterns in _FILES:
        found = {
            str(file.relative_to(folder.path)): engine
            for pattern, engine in patterns.items()
            for file in folder.path.glob(pattern)
        }
        if len(set(found.values())) > 1:
            names = " and ".join(f"{file} ({engine})" for file, engine in sorted(found.items()))
            raise ModelError(
                f'{folder.path} holds models of two engines, {names}; say which: engine = "…" in model.toml'
            )
        if found:
            return next(iter(found.values()))
    names = ", ".join(sorted(file.name for file in folder.path.iterdir())[:8])
    known = ", ".join(pattern for patterns in _FILES for pattern in patterns)
    raise ModelError(f"nothing in {folder.path} can be served (found {names}); it needs one of {known}")


def others(engine: Engine) -> dict[str, Engine]:
    """The engines of a model's other signatures, by name, where it has more than one."""
    found: dict[str, Engine] = getattr(engine, "others", {})
    return found


def signatures(engine: Engine) -> dict[str, Signature]:
    """All signatures of a model by name, the default first."""
    name = getattr(engine, "signature_name", SERVING_DEFAULT)
    return {name: engine.signature, **{name: other.signature for name, other in others(engine).items()}}


def most_rows(limit: int, folder: ModelFolder, engine: Engine) -> int:
    """The rows of one predict at the most: the server's own limit, or a lower one of the folder or the engine."""
    limits = (limit, folder.options.get("max_batch_rows"), engine.max_batch_rows)
    return min(rows for rows in limits if rows is not None)


def load(folder: ModelFolder, threads: int) -> Engine:
    """The model of a folder, loaded; threads: how many its framework may use for one predict."""
    name = find(folder)
    for variable in _THREADS:
        os.environ.setdefault(variable, str(threads))
    try:
        module = importlib.import_module(f"mules.engines.{name}")
    except ModuleNotFoundError as error:
        if name in _BARE:
            raise
        raise ModelError(
            f"{folder.path} is for the engine {name}, and {error.name} is not installed: pip install '.[{name}]'"
        ) from error
    engine: Engine = module.load(folder, threads)
    return engine
