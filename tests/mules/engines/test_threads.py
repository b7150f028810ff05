"""Each framework uses as many threads as it is told."""

import gc
import json
import os
from types import FunctionType, ModuleType

import joblib
import lightgbm
import numpy as np
import pytest
import threadpoolctl
import xgboost
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mules import engines
from serving.model import ModelFolder

# neither one, nor the cores of most machines
THREADS = 3


@pytest.fixture
def load(train):
    def load(name):
        return engines.load(ModelFolder.find(train(name)[0]), THREADS)

    yield load
    threadpoolctl.threadpool_limits(1)


def test_onnxruntime(load):
    options = load("onnx")._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (THREADS, 1)


def test_pytorch(load):
    import torch

    load("torch_exported")
    assert torch.get_num_threads() == THREADS


def test_xgboost(load):
    config = json.loads(load("xgboost_matrix")._answer.func.__self__.save_config())
    assert config["learner"]["generic_param"]["nthread"] == str(THREADS)


@pytest.mark.parametrize("name", ["sklearn_matrix", "mlflow_table"])
def test_the_pools_of_numpy_and_openmp(load, name):
    load(name)
    assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} == {THREADS}


def test_the_jobs_of_estimators(tmp_path):
    x, y = load_iris(return_X_y=True)
    model = make_pipeline(RandomForestClassifier(3, n_jobs=-1)).fit(x, y)
    joblib.dump(model, tmp_path / "model.joblib")
    forest = engines.load(ModelFolder.find(tmp_path), THREADS)._estimator.steps[0][1]
    assert forest.n_jobs == THREADS
    # one that was not told uses one, and stays so
    joblib.dump(RandomForestClassifier(3).fit(x, y), tmp_path / "model.joblib")
    assert engines.load(ModelFolder.find(tmp_path), THREADS)._estimator.n_jobs is None


def test_the_jobs_of_fitted_clones(tmp_path):
    x, y = load_iris(return_X_y=True)
    forest, neighbours = RandomForestClassifier(3, n_jobs=-1), KNeighborsClassifier(n_jobs=2)
    vote = VotingClassifier([("forest", make_pipeline(StandardScaler(), forest)), ("near", neighbours)], n_jobs=-1)
    stack = StackingClassifier([("vote", vote)], OneVsRestClassifier(forest), cv=2)
    model = make_pipeline(StandardScaler(), CalibratedClassifierCV(stack, cv=2)).fit(x, y)
    expected = model.predict_proba(x)
    joblib.dump(model, tmp_path / "model.joblib")
    engine = engines.load(ModelFolder.find(tmp_path), THREADS)
    kinds = RandomForestClassifier, KNeighborsClassifier, VotingClassifier
    jobs = [one.n_jobs for one in every(engine._estimator, kinds)]
    assert set(jobs) == {THREADS} and len(jobs) > 10
    np.testing.assert_array_equal(engine.predict({"inputs": x})["predict_proba"], expected)


def every(root, kinds):
    """All objects of these classes that are reached from one."""
    seen, left = {}, [root]
    while left:
        one = left.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen[id(one)] = one
            left += gc.get_referents(one)
    return [one for one in seen.values() if isinstance(one, kinds)]


@pytest.mark.parametrize("wrapper", [lightgbm.LGBMClassifier(verbose=-1), xgboost.XGBClassifier()])
def test_the_jobs_of_other_libraries_that_take_all_cores_when_they_are_not_told(tmp_path, wrapper):
    x, y = load_iris(return_X_y=True)
    model = VotingClassifier([("own", wrapper.set_params(n_estimators=2))], voting="soft").fit(x, y)
    joblib.dump(model, tmp_path / "model.joblib")
    (own,) = engines.load(ModelFolder.find(tmp_path), THREADS)._estimator.estimators_
    assert own.n_jobs == THREADS
    if isinstance(own, xgboost.XGBClassifier):
        config = json.loads(own.get_booster().save_config())
        assert config["learner"]["generic_param"]["nthread"] == str(THREADS)


def test_the_jobs_of_estimators_in_a_model_of_mlflow(tmp_path):
    import mlflow.sklearn
    from mlflow.models import infer_signature

    x, y = load_iris(return_X_y=True)
    model = VotingClassifier([("forest", RandomForestClassifier(3, n_jobs=-1))]).fit(x, y)
    mlflow.sklearn.save_model(model, tmp_path, signature=infer_signature(x, y), serialization_format="pickle")
    engine = engines.load(ModelFolder.find(tmp_path), THREADS)
    (forest,) = engine._model.get_raw_model().estimators_
    assert forest.n_jobs == THREADS


def test_what_is_loaded_later_finds_it_in_the_environment(train, monkeypatch):
    for variable in engines._THREADS:
        monkeypatch.delenv(variable, raising=False)
    engines.load(ModelFolder.find(train("sagemaker")[0]), THREADS)
    assert [os.environ[variable] for variable in engines._THREADS] == [str(THREADS)] * 3
    # what the user has said goes first
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    engines.load(ModelFolder.find(train("sagemaker")[0]), THREADS)
    assert os.environ["OMP_NUM_THREADS"] == "1"
