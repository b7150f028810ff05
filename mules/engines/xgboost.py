"""XGBoost: a booster in one `*.ubj` file, or in `model.json`, as save_model writes it.

Runs in:  mule; the one place where xgboost is imported, after the fork.
"""

import json
from functools import partial

import xgboost

from mules.engines.booster import BoosterEngine
from mules.engines.features import Features
from mules.engines.files import reading
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.task import Tensor

# of its numbers; NaN is what is missing
DTYPE = "float32"


def load(folder: ModelFolder, threads: int) -> BoosterEngine:
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
    features = Features(folder, booster.num_features(), booster.feature_names, DTYPE)
    # trees need no copy into a DMatrix, which takes longer than they do
    answer = partial(booster.inplace_predict, validate_features=False)
    if json.loads(booster.save_config())["learner"]["gradient_booster"]["name"] == "gblinear":
        answer = partial(_predict, booster)
    return BoosterEngine(folder, features, DTYPE, answer)


def _predict(booster: xgboost.Booster, rows: Tensor) -> Tensor:
    return booster.predict(xgboost.DMatrix(rows), validate_features=False)
