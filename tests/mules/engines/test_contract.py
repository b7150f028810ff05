"""What every engine does, whatever its framework: one contract over all of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mules import engines
from mules.replica import check_outputs
from serving.model import ModelFolder
from serving.signature import Signature, TensorSpec

DIGITS = Path(__file__).parents[3] / "models" / "digits"
INPUTS = {"k": "int64", "text": "string", "x": "float32[2]"}
OUTPUTS = {"echo": "string", "s": "float32", "y": "float32[2]"}
BATCHED = f"""
class Model:
    inputs = {INPUTS}
    outputs = {OUTPUTS}

    def __init__(self, path):
        pass

    def predict(self, inputs):
        return {{"echo": inputs["text"], "s": inputs["x"].sum(axis=1), "y": inputs["x"] * inputs["k"][:, None]}}
"""
ONE_AT_A_TIME = BATCHED.replace("axis=1", "").replace("[:, None]", "") + "\n    batched = False\n"


def specs(texts):
    return tuple(TensorSpec.parse(*item) for item in texts.items())


def write_batched(path, request):
    (path / "model.py").write_text(BATCHED)


def write_one_at_a_time(path, request):
    (path / "model.py").write_text(ONE_AT_A_TIME)


def write_saved_model(path, request):
    tf, save = request.getfixturevalue("tf"), request.getfixturevalue("save")

    def serve(x, k, text):
        return {"y": x * tf.cast(k, tf.float32)[:, None], "s": tf.reduce_sum(x, axis=1), "echo": text}

    tensors = {"x": ((None, 2), tf.float32), "k": ((None,), tf.int64), "text": ((None,), tf.string)}
    save(path, serve, *(tf.TensorSpec(*spec, name=name) for name, spec in tensors.items()))


def write_keras(path, request):
    keras = request.getfixturevalue("tf").keras
    x, k = keras.Input((2,), name="x"), keras.Input((), dtype="int64", name="k")
    text = keras.Input((), dtype="string", name="text")
    y = x * keras.ops.expand_dims(keras.ops.cast(k, "float32"), -1)
    outputs = {"y": y, "s": keras.ops.sum(x, axis=1), "echo": keras.layers.Identity()(text)}
    keras.Model({"x": x, "k": k, "text": text}, outputs).save(path / "model.keras")


WRITERS = {
    "python, batched": write_batched,
    "python, one at a time": write_one_at_a_time,
    "SavedModel": write_saved_model,
    ".keras": write_keras,
}
EXPECTED = Signature(specs(INPUTS), specs(OUTPUTS))


def load(folder):
    path = list(sys.path)
    try:
        return engines.load(folder, threads=1)
    finally:
        sys.path[:] = path


def inputs_of(signature, rows):
    """Values of all kinds, the same each time, that cannot be written to: as they come from a frame."""
    random = np.random.default_rng(7)
    found = {}
    for spec in signature.inputs:
        shape = (rows, *spec.shape)
        if spec.dtype == "string":
            found[spec.name] = np.empty(shape, object)
            found[spec.name].flat = [b"", "žluťoučký 🐎".encode(), b"\xff\0\xfe", b"a\0b", b"x" * 9000][:rows]
            found[spec.name][5:] = b"plain"
        else:
            found[spec.name] = random.uniform(0, 16, shape).astype(spec.dtype)
        found[spec.name].flags.writeable = False
    return found


@pytest.fixture(scope="module", params=[*WRITERS, "digits"])
def engine(request, tmp_path_factory):
    if request.param == "digits":
        request.getfixturevalue("tf")
        return load(ModelFolder.find(DIGITS))
    path = tmp_path_factory.mktemp("model")
    WRITERS[request.param](path, request)
    return load(ModelFolder.find(path))


class TestEngine:
    @pytest.mark.parametrize("rows", [1, 2, 7])
    def test_predict_gives_what_the_signature_promises_a_row_for_each_row(self, engine, rows):
        outputs = engine.predict(inputs_of(engine.signature, rows))
        assert list(outputs) == [spec.name for spec in engine.signature.outputs]
        check_outputs(outputs, engine.signature, rows)

    def test_rows_do_not_know_of_each_other(self, engine):
        inputs = inputs_of(engine.signature, 7)
        together = engine.predict(inputs)
        for row in range(7):
            alone = engine.predict({name: tensor[row : row + 1] for name, tensor in inputs.items()})
            for name, tensor in alone.items():
                if tensor.dtype.kind == "f":
                    np.testing.assert_allclose(tensor[0], together[name][row], rtol=0, atol=1e-6)
                else:
                    assert tensor[0] == together[name][row]

    def test_zeros_of_the_signature_are_predicted(self, engine):
        check_outputs(engine.predict(engine.signature.samples(3)), engine.signature, 3)

    def test_what_was_given_before_stays_as_it_was(self, engine):
        inputs = inputs_of(engine.signature, 2)
        first = engine.predict(inputs)
        kept = {name: tensor.copy() for name, tensor in first.items()}
        engine.predict(engine.signature.samples(2))
        for name, tensor in first.items():
            np.testing.assert_array_equal(tensor, kept[name])


@pytest.mark.parametrize("engine", WRITERS, indirect=True)
class TestTheSameFunction:
    def test_the_signature_is_the_model_s_own(self, engine):
        assert engine.signature == EXPECTED

    def test_the_outputs_are_those_of_the_function_and_strings_travel(self, engine):
        inputs = inputs_of(engine.signature, 7)
        outputs = engine.predict(inputs)
        assert outputs["echo"].tolist() == inputs["text"].tolist()
        np.testing.assert_array_equal(outputs["y"], inputs["x"] * inputs["k"].astype(np.float32)[:, None])
        np.testing.assert_allclose(outputs["s"], inputs["x"].sum(axis=1), rtol=1e-6)


def test_the_digits_example_reads_its_sample(tf):
    engine = load(folder := ModelFolder.find(DIGITS))
    assert engine.signature == Signature(
        specs({"image": "float32[8, 8]"}), specs({"digit": "int64", "probabilities": "float32[10]"})
    )
    outputs = engine.predict(folder.sample(engine.signature))
    assert outputs["digit"].tolist() == outputs["probabilities"].argmax(axis=1).tolist() == [4]
    assert json.loads((DIGITS / "sample.json").read_text()).keys() == {"image"}
