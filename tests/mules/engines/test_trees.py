"""XGBoost and LightGBM: what their native files do not tell."""

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost

from mules import engines
from serving.errors import ModelError
from serving.model import ModelFolder

TABLE = pd.DataFrame({"colour": pd.Categorical(["red", "green"] * 50), "size": np.arange(100.0)})
Y = np.arange(100.0)


def refusal(path):
    with pytest.raises(ModelError) as error:
        engines.load(ModelFolder.find(path), threads=1)
    return str(error.value)


def test_categories_that_xgboost_does_not_keep_are_refused(tmp_path):
    xgboost.train({}, xgboost.DMatrix(TABLE, Y, enable_categorical=True), 2).save_model(tmp_path / "model.json")
    assert "model.json has categorical features, and does not tell their categories: serve the pipeline" in refusal(
        tmp_path
    )


def test_categories_of_a_table_that_lightgbm_was_trained_on_are_refused(tmp_path):
    lightgbm.train({"verbose": -1}, lightgbm.Dataset(TABLE, Y), 2).save_model(tmp_path / "model.txt")
    assert "model.txt was trained on categorical columns of a table: serve the pipeline that encodes them" in refusal(
        tmp_path
    )


def test_what_is_missing_is_nan(tmp_path):
    x = np.column_stack([Y, Y])
    x[::3] = np.nan
    booster = xgboost.train({"base_score": 0.5}, xgboost.DMatrix(x, Y), 5)
    booster.save_model(tmp_path / "model.ubj")
    found = engines.load(ModelFolder.find(tmp_path), threads=1).predict({"inputs": x.astype(np.float32)})
    assert found["predict"].tolist() == booster.predict(xgboost.DMatrix(x)).tolist()


def test_linear_boosters_are_served_too(tmp_path):
    x = np.column_stack([Y, Y**2])
    booster = xgboost.train({"booster": "gblinear"}, xgboost.DMatrix(x, Y), 5)
    booster.save_model(tmp_path / "model.ubj")
    found = engines.load(ModelFolder.find(tmp_path), threads=1).predict({"inputs": x.astype(np.float32)})
    assert found["predict"].tolist() == booster.predict(xgboost.DMatrix(x)).tolist()


def test_large_integers_are_not_rounded(tmp_path):
    x = 2**24 + np.arange(64.0)[:, None]
    options = {"verbose": -1, "min_data_in_leaf": 1, "min_data_in_bin": 1}
    booster = lightgbm.train(options, lightgbm.Dataset(x, x[:, 0] % 64 >= 31, feature_name=["id"]), 20)
    booster.save_model(tmp_path / "model.txt")
    (tmp_path / "model.toml").write_text('[inputs]\nid = "int64"\n')
    found = engines.load(ModelFolder.find(tmp_path), threads=1).predict({"id": x[:, 0].astype(np.int64)})
    assert found["predict"].tolist() == booster.predict(x).tolist()


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_a_feature_is_a_number(tmp_path, library):
    x = TABLE[["size"]]
    if library == "xgboost":
        xgboost.train({}, xgboost.DMatrix(x, Y), 2).save_model(tmp_path / "model.ubj")
    else:
        lightgbm.train({"verbose": -1}, lightgbm.Dataset(x, Y), 2).save_model(tmp_path / "model.txt")
    (tmp_path / "model.toml").write_text('[inputs]\nsize = "string"\n')
    assert refusal(tmp_path) == f"model.toml [inputs] size is a string, and {tmp_path} takes numbers alone"
