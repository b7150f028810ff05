"""scikit-learn: an estimator or a pipeline in one `*.skops`, `*.joblib` or `*.pkl` file.

Each of its methods that applies is an output: `predict`, `predict_proba`, or `transform` where it has neither;
model.toml [outputs] may leave some out, and what is left out is not computed.  What a row is made of is read from the
first step: names and values for a DictVectorizer, one string for a text vectorizer, columns where it was trained on a
table with names, else a matrix.  A file may hold a tuple of fitted steps, for example a DictVectorizer and a model.

A pickle, and joblib writes pickles, runs whatever code is in it when it is read: serve only what you have made.
A `.skops` file names the types in it, and those that scikit-learn does not know are refused unless model.toml lists
them: trusted = ["my_module.MyStep"].  Modules beside the file can be imported.

Runs in:  mule; the one place where sklearn is imported, after the fork.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction import DictVectorizer
from sklearn.pipeline import Pipeline, make_pipeline
from threadpoolctl import threadpool_limits

from mules.engines.features import MOST_COLUMNS, Features
from mules.engines.files import extra, reading
from mules.engines.tensors import probe, tensor, texts, utf8
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import NUMBERS, STRING, Signature, TensorSpec
from serving.task import Tensors

TEXT = "text"
_METHODS = ("predict", "predict_proba")
# of what has none of these
_TRANSFORM = "transform"

# what the methods of an estimator take, made of inputs
Rows = Callable[[Tensors], Any]


class SklearnEngine:
    """A fitted estimator."""

    max_batch_rows = None

    def __init__(self, folder: ModelFolder, estimator: Any, inputs: tuple[TensorSpec, ...], rows: Rows) -> None:
        self._estimator = estimator
        self._rows = rows
        declared = folder.declared("outputs")
        methods = _methods(estimator)
        wanted = [spec.name for spec in declared or () if spec.name in methods] or methods
        outputs = probe(folder, inputs, lambda found: self._call(wanted, found))
        self.signature = Signature(inputs, outputs)

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
    _use_threads(estimator, threads)
    return SklearnEngine(folder, estimator, *_inputs(folder, file, estimator))


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


def _use_threads(estimator: Any, threads: int) -> None:
    for one in _within(estimator):
        found = one.get_params(deep=False) if hasattr(one, "get_params") else {}
        # all cores, mostly, where they were there to train; one that was not told uses one in scikit-learn, and all of
        # them in XGBoost and LightGBM
        if found.get("n_jobs") or ("n_jobs" in found and not type(one).__module__.startswith("sklearn.")):
            one.set_params(n_jobs=threads)


def _within(found: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """All estimators that are in one, itself included, and the fitted clones that it predicts with."""
    seen = set() if seen is None else seen
    if id(found) in seen or isinstance(found, type):
        return
    seen.add(id(found))
    if isinstance(found, dict):
        parts: Any = found.values()
    elif isinstance(found, np.ndarray):
        parts = found.ravel().tolist() if found.dtype == object else ()
    elif isinstance(found, list | tuple):
        parts = found
    elif hasattr(found, "get_params") or type(found).__module__.startswith("sklearn."):
        yield found
        parts = getattr(found, "__dict__", {}).values()
    else:
        return
    for part in parts:
        yield from _within(part, seen)


def _methods(estimator: Any) -> list[str]:
    """The methods that are outputs."""
    found = [name for name in _METHODS if hasattr(estimator, name)]
    return found or [name for name in (_TRANSFORM,) if hasattr(estimator, name)]


def _dense(found: Any) -> Any:
    return found.toarray() if hasattr(found, "toarray") else found


def _inputs(folder: ModelFolder, file: Path, estimator: Any) -> tuple[tuple[TensorSpec, ...], Rows]:
    """The inputs of an estimator, and how to make of them what its methods take."""
    first = _first(estimator)
    if isinstance(first, DictVectorizer):
        return _named(folder, file, first)
    if hasattr(first, "build_analyzer"):
        (spec,) = folder.narrowed("inputs", (TensorSpec(TEXT, STRING),))
        # one that was told of another encoding may take them
        strict = (getattr(first, "encoding", ""), getattr(first, "decode_error", "")) == ("utf-8", "strict")
        return (spec,), lambda inputs: (utf8(TEXT, inputs[TEXT]) if strict else texts(inputs[TEXT])).tolist()
    count = getattr(estimator, "n_features_in_", None)
    if count is None:
        raise ModelError(
            f"{file} holds a {type(estimator).__name__} that does not say how many features it takes: fit it first"
        )
    names = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    if not names:
        features = Features(folder, int(count), ())
        return features.specs, features.matrix
    pandas = extra("pandas", "sklearn", file)
    columns = Features(folder, int(count), names, known=_known(estimator, names, pandas))
    return columns.specs, lambda inputs: pandas.DataFrame(columns.columns(inputs))


def _first(estimator: Any) -> Any:
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[0][1]
    return estimator


def _named(folder: ModelFolder, file: Path, vectorizer: Any) -> tuple[tuple[TensorSpec, ...], Rows]:
    """A row of named features: those of which it knows values are strings, the others numbers.

    It may leave some out, as where the vectorizer was trained.
    """
    known: dict[str, TensorSpec] = {}
    # 0 and nothing are the same in a matrix, but not in a sparse one
    nothing: float | str = "NaN" if vectorizer.sparse else 0.0
    declared = folder.declared("inputs") or ()
    for feature in vectorizer.get_feature_names_out():
        name, value = _feature(feature, vectorizer.separator, declared)
        if value is None:
            known.setdefault(name, TensorSpec(name, "float64", (), nothing).with_sample(0.0))
        else:
            # a value that it does not know is nothing
            default = None if f"{name}{vectorizer.separator}" in vectorizer.vocabulary_ else ""
            known.setdefault(name, TensorSpec(name, STRING, (), default).with_sample(value))
    if len(known) > MOST_COLUMNS:
        raise ModelError(
            f"{file} begins with a DictVectorizer of {len(known)} names, and a request can name {MOST_COLUMNS}:"
            " give it a matrix, or fewer names"
        )
    features = Features(folder, len(known), list(known), known=known)

    def rows(inputs: Tensors) -> list[dict[str, Any]]:
        columns = {name: column.tolist() for name, column in features.columns(inputs).items()}
        return [
            {name: value for name, value in zip(columns, values, strict=True) if nothing == 0.0 or value == value}
            for values in zip(*columns.values(), strict=True)
        ]

    return features.specs, rows


def _feature(feature: str, separator: str, declared: tuple[TensorSpec, ...]) -> tuple[str, str | None]:
    """The name of a feature, and its value if that is a string; only model.toml knows of a separator in a name."""
    for spec in declared:
        if spec.dtype != STRING and feature == spec.name:
            return feature, None
        if spec.dtype == STRING and feature.startswith(spec.name + separator):
            return spec.name, feature.removeprefix(spec.name + separator)
    name, found, value = feature.partition(separator)
    return name, value if found else None


def _known(estimator: Any, names: list[str], pandas: Any) -> dict[str, TensorSpec]:
    """The columns that an encoder knows the values of, or that go to a text vectorizer."""
    step = _first(estimator)
    if isinstance(step, ColumnTransformer):
        parts = [
            (_steps(transformer), [names[place] for place in _places(columns, names, pandas)])
            for _, transformer, columns in step.transformers_
        ]
    else:
        parts = [(_steps(estimator), names)]
    found: dict[str, TensorSpec] = {}
    for steps, columns in parts:
        if hasattr(steps[0], "build_analyzer"):
            found |= {name: TensorSpec(name, STRING) for name in columns}
        for categories in (getattr(one, "categories_", ()) for one in steps):
            # of an encoder that takes the columns one by one; a step before it may have made others of them
            if len(categories) == len(columns):
                found |= {name: _category(name, known) for name, known in zip(columns, categories, strict=True)}
                break
    return found


def _steps(transformer: Any) -> list[Any]:
    return [step for _, step in transformer.steps] if isinstance(transformer, Pipeline) else [transformer]


def _places(columns: Any, names: list[str], pandas: Any) -> list[int]:
    """The places of columns that a ColumnTransformer was given by name, place, mask or slice."""
    ends = [columns.start, columns.stop] if isinstance(columns, slice) else np.atleast_1d(columns).tolist()
    places = pandas.Series(range(len(names)), names)
    by_name = any(isinstance(end, str) for end in ends)
    found: list[int] = np.atleast_1d((places.loc if by_name else places.iloc)[columns]).tolist()
    return found


def _category(name: str, values: Any) -> TensorSpec:
    """A column of values that are known, the first of which will do as a sample."""
    known = np.asarray(values)
    if known.dtype.name in NUMBERS:
        return TensorSpec(name, known.dtype.name).with_sample(known[0].item())
    return TensorSpec(name, STRING).with_sample(next((value for value in known.tolist() if isinstance(value, str)), ""))
