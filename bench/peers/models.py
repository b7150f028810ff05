"""The model of every peer, loaded from the folder that Muleteer serves, so that all run the same code.

Environment: MODEL        the folder: model.py with a function one(x), or 1/ with a SavedModel
             MODEL_PIDS   a folder where each process that loads the model leaves its pid
             BATCH_ROWS   rows that a peer's batching joins at the most
             THREADS      of TensorFlow in each process, as many as Muleteer's replica_threads gives
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

Input = Sequence[float]
# a text, or numbers
Answer = str | list[float]
MOST_ROWS = int(os.environ.get("BATCH_ROWS", "32"))


class Served(Protocol):
    """One loaded model."""

    def one(self, x: Input) -> Answer: ...

    def many(self, xs: Sequence[Input]) -> list[Answer]: ...


class Plain:
    """The function one() of a model.py."""

    def __init__(self, file: Path) -> None:
        spec = importlib.util.spec_from_file_location("model", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.one: Callable[[Input], Answer] = module.one

    def many(self, xs: Sequence[Input]) -> list[Answer]:
        return [self.one(x) for x in xs]


class Network:
    """A SavedModel, warmed up for small and for full batches."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import numpy as np
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(int(os.environ["THREADS"]))
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self._array: Any = np.asarray
        self._dtype = np.float32
        self._constant: Any = tf.constant
        self._model = tf.saved_model.load(str(folder))
        self._function = self._model.signatures["serving_default"]
        (spec,) = self._function.structured_input_signature[1].values()
        for rows in (1, 2, 8, MOST_ROWS):
            self._run(np.zeros((rows, *spec.shape[1:]), np.float32))

    def one(self, x: Input) -> Answer:
        found: list[Answer] = self._run(self._array([x], self._dtype))
        return found[0]

    def many(self, xs: Sequence[Input]) -> list[Answer]:
        return self._run(self._array(xs, self._dtype))

    def _run(self, x: Any) -> list[Answer]:
        answers: list[Answer] = self._function(x=self._constant(x))["y"].numpy().tolist()
        return answers


def load() -> Served:
    """The model that this process serves."""
    folder = Path(os.environ["MODEL"])
    file = folder / "model.py"
    served: Served = Plain(file) if file.exists() else Network(folder / "1")
    Path(os.environ["MODEL_PIDS"], str(os.getpid())).touch()
    return served
