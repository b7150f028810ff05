"""TensorFlow, once for all, SavedModels of small functions, and trained models."""

import functools
import os

import pytest

from mules import engines

from .trained import MODELS

# as the engine does before the import
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="package", autouse=True)
def own_threads():
    """What an engine says of threads to all that is loaded later is for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in engines._THREADS:
            patch.setenv(variable, "1")
        yield


@pytest.fixture(scope="session")
def tf():
    # by way of the engine, which sets its environment first
    from mules.engines import tensorflow

    return tensorflow.tf


@pytest.fixture(scope="session")
def save(tf):
    """Writes the SavedModel of a function of these tensors."""

    def save(path, function, *tensors, signature="serving_default"):
        module = tf.Module()
        module.serve = tf.function(function, input_signature=tensors)
        tf.saved_model.save(module, str(path), signatures={signature: module.serve})

    return save


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """The folder of a model of trained.py, made when it is asked for first, and what its library answers."""

    @functools.cache
    def train(name):
        path = tmp_path_factory.mktemp(name)
        made = MODELS[name](path)
        for tensor in made.inputs.values():
            # as they come from a frame
            tensor.flags.writeable = False
        return path, made

    return train
