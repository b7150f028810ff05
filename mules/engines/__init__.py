"""Engines: one adapter per framework, found from the files that a model folder holds.

Runs in:  mule.
Shapes:   inputs[name] and outputs[name]: (rows, *spec.shape).
Raises:   ModelError when the folder cannot be served; anything else that a model raises while it loads may be tried
          again.
"""

import importlib
from typing import Protocol

from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import Signature
from serving.task import Tensors

# the first whose pattern matches a file of the folder is taken: a model.py beside a SavedModel is its wrapper
_FILES = {
    "model.py": "python",
    "saved_model.pb": "tensorflow",
    "*.keras": "tensorflow",
}
_ENGINES = tuple(dict.fromkeys(_FILES.values()))


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
    if name is None:
        name = next((engine for pattern, engine in _FILES.items() if any(folder.path.glob(pattern))), None)
    if name is None:
        found = ", ".join(sorted(file.name for file in folder.path.iterdir())[:8])
        raise ModelError(f"nothing in {folder.path} can be served (found {found}); it needs {' or '.join(_FILES)}")
    if name not in _ENGINES:
        raise ModelError(f"model.toml says engine = {name!r}; it is one of {', '.join(_ENGINES)}")
    return str(name)


def load(folder: ModelFolder, threads: int) -> Engine:
    """The model of a folder, loaded; threads: how many its framework may use for one predict."""
    module = importlib.import_module(f"mules.engines.{find(folder)}")
    engine: Engine = module.load(folder, threads)
    return engine
