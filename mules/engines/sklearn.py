"""scikit-learn: an estimator or a pipeline in one `*.skops`, `*.joblib` or `*.pkl` file.

Each of its methods that applies is an output: `predict`, `predict_proba`, or `transform` where it has neither;
model.toml [outputs] may leave some out, and what is left out is not computed.  What a row is made of is read from the
first step: names and values for a DictVectorizer, one string for a text vectorizer, columns where it was trained on a
table with names, else a matrix.  A file may hold a tuple of fitted steps, for example a DictVectorizer and a model.

A pickle, and joblib writes pickles, runs whatever code is in it when it is read: serve only what you have made.
A `.skops` file names the types in it, and those that scikit-learn does not know are refused unless model.toml lists
them: trusted = ["my_module.MyStep"].  Modules beside the file can be imported.

Runs in:  mule; with estimators.py the one place where sklearn is imported, after the fork.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from mules.engines.estimators import Rows, inputs_of, use_threads
from mules.engines.files import extra, reading
from mules.engines.tensors import probe, tensor
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import Signature, TensorSpec
from serving.task import Tensors

_METHODS = ("predict", "predict_proba")
# of what has none of these
_TRANSFORM = "transform"


class SklearnEngine:
    """A fitted estimator."""

    max_batch_rows = None

    def __init__(self, folder: ModelFolder, estimator: Any, inputs: tuple[TensorSpec, ...], rows: Rows) -> None:
        self._estimator = estimator
        self._rows = rows
        declared = folder.declared("outputs")
        methods = _methods(estimator)
        wanted = [spec.name for spec in declared or () if spec.name in methods] or methods
        self.signature = Signature(inputs, probe(folder, inputs, lambda found: self._call(wanted, found)))

    def predict(self, inputs: Tensors) -> Tensors:
        found = self._call([spec.name for spec in self.signature.outputs], inputs)
        return {spec.name: tensor(found[spec.name], spec) for spec in self.signature.outputs}

    def _call(self, methods: Sequence[str], inputs: Tensors) -> dict[str, Any]:
        rows = self._rows(inputs)
        return {name: _dense(getattr(self._estimator, name)(rows)) for name in methods}


def load(folder: ModelFolder, threads: int) -> SklearnEngine:
    """Read the one file of a folder."""
    threadpool_limits(threads)
    file = folder.artifact("*.skops", "*.joblib", "*.pkl")
    # the user's own steps
    sys.path.append(str(folder.path.resolve()))
    with reading(file):
        estimator = _read_skops(file, folder) if file.suffix == ".skops" else joblib.load(file)
        if isinstance(estimator, tuple | list):
            estimator = make_pipeline(*estimator)
        # of a search
        estimator = getattr(estimator, "best_estimator_", estimator)
    if not _methods(estimator):
        raise ModelError(f"{file} holds a {type(estimator).__name__}, which has neither predict nor transform")
    use_threads(estimator, threads)
    return SklearnEngine(folder, estimator, *inputs_of(folder, file, estimator))


def _read_skops(file: Path, folder: ModelFolder) -> Any:
    io = extra("skops.io", "sklearn", file)
    trusted = folder.options.get("trusted", [])
    strange = sorted(set(io.get_untrusted_types(file=file)) - set(trusted))
    if strange:
        raise ModelError(
            f"{file} holds types that scikit-learn does not know, {', '.join(strange)};"
            f" if they are yours, write trusted = {strange} into model.toml"
        )
    return io.load(file, trusted=trusted)


def _methods(estimator: Any) -> list[str]:
    """The methods that are outputs."""
    found = [name for name in _METHODS if hasattr(estimator, name)]
    return found or [name for name in (_TRANSFORM,) if hasattr(estimator, name)]


def _dense(found: Any) -> Any:
    return found.toarray() if hasattr(found, "toarray") else found
