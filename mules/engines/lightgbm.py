"""LightGBM: a booster in one `*.lgb` file, or in `model.txt`, as Booster.save_model writes it.

Runs in:  mule; the one place where lightgbm is imported, after the fork.
"""

import re
from pathlib import Path
from typing import Any

import lightgbm

from mules.engines.features import Features
from mules.engines.files import reading
from mules.engines.tensors import probe, tensor
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import Signature
from serving.task import Tensors

OUTPUT = "predict"
# what it calls columns that have no names
_NO_NAME = re.compile(r"Column_\d+")


class LightgbmEngine:
    """One booster; its output is what Booster.predict gives."""

    max_batch_rows = None

    def __init__(self, folder: ModelFolder, booster: Any, features: Features, threads: int) -> None:
        self._booster = booster
        self._features = features
        self._threads = threads
        self.signature = Signature(features.specs, probe(folder, features.specs, self._call))

    def predict(self, inputs: Tensors) -> Tensors:
        (spec,) = self.signature.outputs
        return {OUTPUT: tensor(self._call(inputs)[OUTPUT], spec)}

    def _call(self, inputs: Tensors) -> dict[str, Any]:
        return {OUTPUT: self._booster.predict(self._features.matrix(inputs), num_threads=self._threads)}


def load(folder: ModelFolder, threads: int) -> LightgbmEngine:
    """Read the one file of a folder."""
    file = folder.artifact("*.lgb", "model.txt")
    with reading(file):
        _check_end(file)
        booster = lightgbm.Booster(model_file=str(file))
    if booster.pandas_categorical:
        raise ModelError(
            f"{file} was trained on categorical columns of a table: serve the pipeline that encodes them, as a file of"
            " scikit-learn"
        )
    names = booster.feature_name()
    unnamed = all(_NO_NAME.fullmatch(name) for name in names)
    return LightgbmEngine(folder, booster, Features(folder, len(names), () if unnamed else names), threads)


def _check_end(file: Path) -> None:
    # half a tree ends the whole process, and without the last line categories would be forgotten
    lines = file.read_text().rstrip().splitlines()
    if "end of trees" not in lines or not lines[-1].startswith(("end of parameters", "pandas_categorical:")):
        raise ValueError("it has no end")
