"""Each framework uses as many threads as it is told."""

import json
import os

import joblib
import pytest
import threadpoolctl
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline

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


def test_what_is_loaded_later_finds_it_in_the_environment(train, monkeypatch):
    for variable in engines._THREADS:
        monkeypatch.delenv(variable, raising=False)
    engines.load(ModelFolder.find(train("sagemaker")[0]), THREADS)
    assert [os.environ[variable] for variable in engines._THREADS] == [str(THREADS)] * 3
    # what the user has said goes first
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    engines.load(ModelFolder.find(train("sagemaker")[0]), THREADS)
    assert os.environ["OMP_NUM_THREADS"] == "1"
