"""Fitted estimators of scikit-learn: what is in them, and what a row of theirs is made of.

Runs in:  mule.
Shapes:   each input is (rows, *spec.shape).
Raises:   ModelError where no request can hold what one was trained on.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction import DictVectorizer
from sklearn.pipeline import Pipeline

from mules.engines.features import MOST_COLUMNS, Features
from mules.engines.files import extra
from mules.engines.tensors import texts, utf8
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import NUMBERS, STRING, TensorSpec
from serving.task import Tensor, Tensors

TEXT = "text"

# what the methods of an estimator take, made of inputs
Rows = Callable[[Tensors], Any]


def use_threads(estimator: Any, threads: int) -> None:
    """Tell an estimator, and all that are in it, how many threads there are."""
    for one in _within(estimator):
        found = one.get_params(deep=False) if hasattr(one, "get_params") else {}
        # all cores, mostly, where they were there to train; one that was not told uses one in scikit-learn, and all of
        # them in XGBoost and LightGBM
        if found.get("n_jobs") or ("n_jobs" in found and not type(one).__module__.startswith("sklearn.")):
            one.set_params(n_jobs=threads)


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimators right inside of one: those it was made of, and the fitted clones that it predicts with."""
    seen, left = set(), [getattr(estimator, "__dict__", {})]
    while left:
        one = left.pop()
        if isinstance(one, np.ndarray):
            left += one.ravel().tolist() if one.dtype == object else ()
        elif isinstance(one, dict | list | tuple):
            # they may hold each other
            if id(one) not in seen:
                left += one.values() if isinstance(one, dict) else one
            seen.add(id(one))
        elif not isinstance(one, type) and (hasattr(one, "get_params") or type(one).__module__.startswith("sklearn.")):
            yield one


def _within(estimator: Any, parts: Callable[[Any], Iterator[Any]] = _parts) -> list[Any]:
    """All estimators that are in one, itself included."""
    found, left = {}, [estimator]
    while left:
        one = left.pop()
        if id(one) not in found:
            found[id(one)] = one
            left += parts(one)
    return list(found.values())


def _takers(estimator: Any) -> Iterator[Any]:
    """As _parts, but those alone that take the rows as they come."""
    if isinstance(estimator, Pipeline):
        yield estimator.steps[0][1]
    elif not isinstance(estimator, ColumnTransformer):
        yield from _parts(estimator)


def inputs_of(folder: ModelFolder, file: Path, estimator: Any) -> tuple[tuple[TensorSpec, ...], Rows]:
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
    takers = _within(estimator, _takers)
    if not names:
        features = Features(folder, int(count), ())
        return features.specs, features.matrix
    for one in takers:
        _check_categories(file, one)
    pandas = extra("pandas", "sklearn", file)
    known = _known(takers, names, pandas)
    specs = {name: _category(file, name, values) for name, values in known.items()}
    features = Features(folder, int(count), names, known=specs)
    # an encoder does not find numbers among objects
    objects = {name for name, values in known.items() if values.dtype == object}

    def rows(inputs: Tensors) -> Any:
        columns = features.columns(inputs)
        return pandas.DataFrame(
            {name: own.astype(object, copy=False) if name in objects else own for name, own in columns.items()}
        )

    return features.specs, rows


def _check_categories(file: Path, estimator: Any) -> None:
    """Refuse a model of XGBoost or LightGBM that takes columns of pandas' categories."""
    # of either, where it is fitted
    booster = getattr(estimator, "_Booster", None)
    if "c" in (getattr(booster, "feature_types", None) or ()) or getattr(booster, "pandas_categorical", None):
        raise ModelError(
            f"{file} holds a {type(estimator).__name__} that was trained on categorical columns of a table: fit a"
            " pipeline that begins with an OrdinalEncoder of them"
        )


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


def _known(takers: list[Any], names: list[str], pandas: Any) -> dict[str, Tensor]:
    """The values of columns that an encoder knows; none, of those that go to a text vectorizer."""
    found: dict[str, Tensor] = {}
    for taker in takers:
        # gradient boosting encodes categories by itself
        step = getattr(taker, "_preprocessor", None) or taker
        parts = [(_steps(step), names)]
        if isinstance(step, ColumnTransformer):
            parts = [
                (_steps(transformer), [names[place] for place in _places(columns, names, pandas)])
                for _, transformer, columns in step.transformers_
            ]
        for steps, columns in parts:
            if hasattr(steps[0], "build_analyzer"):
                found |= {name: np.empty(0, object) for name in columns}
            for categories in (getattr(one, "categories_", ()) for one in steps):
                # of an encoder that takes the columns one by one; a step before it may have made others of them
                if len(categories) == len(columns):
                    found |= dict(zip(columns, map(np.asarray, categories), strict=True))
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


def _category(file: Path, name: str, known: Tensor) -> TensorSpec:
    """A column of values that are known, the first of which will do as a sample."""
    # no request can hold what is missing
    values = [value for value in known.tolist() if value is not None and value == value]
    sample = values[0] if values else None
    if known.dtype.kind in "OU" and all(isinstance(value, str) for value in values):
        return TensorSpec(name, STRING).with_sample(sample)
    found = known if known.dtype != object else np.asarray(values)
    if found.dtype.name not in NUMBERS or any(isinstance(value, str) for value in values):
        kinds = {type(value).__name__ for value in values} if known.dtype == object else {known.dtype.name}
        told = " and ".join(sorted(kinds))
        raise ModelError(
            f"{file} was trained on a column {name!r} of {told}, and a column of a request is of strings or of numbers:"
            " make it one of these, and fit it again"
        )
    return TensorSpec(name, found.dtype.name).with_sample(sample)
