"""Boosters, of XGBoost and LightGBM: rows of numbers in, one output, `predict`, which is what Booster.predict gives.

Runs in:  mule.
Raises:   ModelError when model.toml has a feature that is no number.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mules.engines.features import Features
from mules.engines.tensors import probe, tensor
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import STRING, Signature
from serving.task import Tensor, Tensors

OUTPUT = "predict"


class BoosterEngine:
    """One booster; answer: what it gives for a matrix of the dtype that it computes with."""

    max_batch_rows = None

    def __init__(self, folder: ModelFolder, features: Features, dtype: str, answer: Callable[[Tensor], Any]) -> None:
        if strings := [spec.name for spec in features.specs if spec.dtype == STRING]:
            raise ModelError(f"model.toml [inputs] {strings[0]} is a string, and {folder.path} takes numbers alone")
        self._features = features
        self._dtype = dtype
        self._answer = answer
        self.signature = Signature(features.specs, probe(folder, features.specs, self._call))

    def predict(self, inputs: Tensors) -> Tensors:
        (spec,) = self.signature.outputs
        return {OUTPUT: tensor(self._call(inputs)[OUTPUT], spec)}

    def _call(self, inputs: Tensors) -> dict[str, Any]:
        # never as integers: LightGBM makes float32 of them, which does not hold all
        return {OUTPUT: self._answer(np.ascontiguousarray(self._features.matrix(inputs), self._dtype))}
