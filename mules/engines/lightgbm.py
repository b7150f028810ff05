"""LightGBM: a booster in one `*.lgb` file, or in `model.txt`, as Booster.save_model writes it.

Runs in:  mule; the one place where lightgbm is imported, after the fork.
"""

import re
from functools import partial
from pathlib import Path

import lightgbm

from mules.engines.booster import BoosterEngine
from mules.engines.features import Features
from mules.engines.files import reading
from serving.errors import ModelError
from serving.model import ModelFolder

DTYPE = "float64"
# what it calls columns that have no names
_NO_NAME = re.compile(r"Column_\d+")


def load(folder: ModelFolder, threads: int) -> BoosterEngine:
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
    features = Features(folder, len(names), () if unnamed else names, DTYPE)
    return BoosterEngine(folder, features, DTYPE, partial(booster.predict, num_threads=threads))


def _check_end(file: Path) -> None:
    # half a tree ends the whole process, and without the last line categories would be forgotten
    lines = file.read_text().rstrip().splitlines()
    if "end of trees" not in lines or not lines[-1].startswith(("end of parameters", "pandas_categorical:")):
        raise ValueError("it has no end")
