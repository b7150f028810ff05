"""XGBoost: a booster in one `*.ubj` file, or in `model.json`, as save_model writes it.

Runs in:  mule; the one place where xgboost is imported, after the fork.
"""

import json
from typing import Any

import numpy as np
import xgboost

from mules.engines.features import Features
from mules.engines.files import reading
from mules.engines.tensors import probe, tensor
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import Signature
from serving.task import Tensors

OUTPUT = "predict"


class XgboostEngine:
    """One booster; its output is what Booster.predict gives."""

    max_batch_rows = None

    def __init__(self, folder: ModelFolder, booster: Any, features: Features) -> None:
        self._booster = booster
        self._features = features
        self._linear = json.loads(booster.save_config())["learner"]["gradient_booster"]["name"] == "gblinear"
        self.signature = Signature(features.specs, probe(folder, features.specs, self._call))

    def predict(self, inputs: Tensors) -> Tensors:
        (spec,) = self.signature.outputs
        return {OUTPUT: tensor(self._call(inputs)[OUTPUT], spec)}

    def _call(self, inputs: Tensors) -> dict[str, Any]:
        # NaN is what is missing
        rows = np.ascontiguousarray(self._features.matrix(inputs), np.float32)
        if self._linear:
            return {OUTPUT: self._booster.predict(xgboost.DMatrix(rows), validate_features=False)}
        # trees need no copy into a DMatrix, which takes longer than they do
        return {OUTPUT: self._booster.inplace_predict(rows, validate_features=False)}


def load(folder: ModelFolder, threads: int) -> XgboostEngine:
    """Read the one file of a folder."""
    file = folder.artifact("*.ubj", "model.json")
    with reading(file):
        booster = xgboost.Booster({"nthread": threads}, model_file=file)
    booster.set_param({"nthread": threads})
    if "c" in (booster.feature_types or ()):
        raise ModelError(
            f"{file} has categorical features, and does not tell their categories: serve the pipeline that encodes"
            " them, as a file of scikit-learn"
        )
    return XgboostEngine(folder, booster, Features(folder, booster.num_features(), booster.feature_names, "float32"))
