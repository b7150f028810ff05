"""TensorFlow Lite: files without a signature, batches of one size, integers."""

import numpy as np
import pytest

from mules import engines
from serving.errors import ModelError
from serving.model import ModelFolder

X = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def load(tf, tmp_path):
    """The engine of a function of one tensor."""

    def load(function, shape, dtype="float32"):
        tensors = [tf.TensorSpec(shape, dtype, "x")]
        module = tf.Module()
        module.serve = tf.function(function, input_signature=tensors)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serve.get_concrete_function()], module)
        (tmp_path / "model.tflite").write_bytes(converter.convert())
        return engines.load(ModelFolder.find(tmp_path), threads=1)

    return load


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_of_fixed_size_is_padded(load, rows):
    engine = load(lambda x: {"y": x * 2}, (3, 2))
    assert engine.max_batch_rows == 3
    np.testing.assert_array_equal(engine.predict({"x": X[:rows]})["y"], X[:rows] * 2)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_file_without_a_signature_is_served_by_the_names_of_its_tensors(load, tmp_path, rows):
    from tensorflow.lite.tools import flatbuffer_utils

    load(lambda x: {"y": x * 2}, (None, 2))
    file = str(tmp_path / "model.tflite")
    model = flatbuffer_utils.read_model(file)
    model.signatureDefs = None
    flatbuffer_utils.write_model(model, file)
    engine = engines.load(ModelFolder.find(tmp_path), threads=1)
    (given,), (got,) = engine.signature.inputs, engine.signature.outputs
    assert (given.name, str(given)) == ("serving_default_x:0", "float32[2]") and got.name != "y"
    np.testing.assert_array_equal(engine.predict({given.name: X[:rows]})[got.name], X[:rows] * 2)


def test_integers_are_served_as_they_are(load):
    engine = load(lambda x: {"y": x + 1}, (None, 2), "int32")
    assert engine.predict({"x": X.astype(np.int32)})["y"].tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((), "float32", "'x' has no axis for the rows; export it with one"),
        ((None,), "string", "'x' has dtype bytes, which is not served"),
    ],
)
def test_what_is_not_served_is_told(load, tf, shape, dtype, told):
    with pytest.raises(ModelError) as error:
        load(lambda x: {"y": tf.reshape(x, [-1, 1])}, shape, dtype)
    assert told in str(error.value)
