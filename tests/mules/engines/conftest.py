"""TensorFlow, once for all, and SavedModels of small functions."""

import pytest


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
