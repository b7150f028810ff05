"""The TensorFlow engine: SavedModels with their signatures, and Keras archives."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from mules import engines
from serving.errors import ModelError
from serving.model import ModelFolder
from serving.signature import TensorSpec

DIGITS = Path(__file__).parents[3] / "models" / "digits"
X = np.arange(6, dtype=np.float32).reshape(3, 2)
# Keras, as it writes the weights of an archive
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def load(folder):
    return engines.load(folder, threads=1)


def texts(specs):
    return {spec.name: str(spec) for spec in specs}


@pytest.fixture
def export(tf, save, tmp_path):
    """The folder of a function's SavedModel; its tensors as {name: (shape, dtype)}."""

    def export(function, tensors, toml="", signature="serving_default"):
        save(
            tmp_path,
            function,
            *(tf.TensorSpec(*spec, name=name) for name, spec in tensors.items()),
            signature=signature,
        )
        (tmp_path / "model.toml").write_text(toml)
        return ModelFolder.find(tmp_path)

    return export


@pytest.fixture
def archive(tmp_path):
    """The folder of a Keras model."""

    def archive(model, toml=""):
        model.save(tmp_path / "model.keras")
        (tmp_path / "model.toml").write_text(toml)
        return ModelFolder.find(tmp_path)

    return archive


def refusal(folder):
    with pytest.raises(ModelError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_second_load_in_one_process_works_and_keeps_the_threads(tf, caplog):
    # TensorFlow refuses new thread counts once it is in use
    first, second = (engines.load(ModelFolder.find(DIGITS), threads) for threads in (1, 2))
    assert "keeps its threads, not 2" in caplog.text
    image = {"image": np.ones((1, 8, 8), np.float32)}
    np.testing.assert_array_equal(first.predict(image)["probabilities"], second.predict(image)["probabilities"])


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_a_batch_of_fixed_size_is_padded(export, tf, rows):
    # the constant fits four rows alone
    engine = load(export(lambda x: {"y": x + tf.ones((4, 2))}, {"x": ((4, 2), "float32")}))
    assert engine.max_batch_rows == 4
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    np.testing.assert_array_equal(engine.predict({"x": x})["y"], x + 1)


def test_strings_are_padded_too(export, tf):
    engine = load(export(lambda x: {"y": tf.strings.join([x, [""] * 4])}, {"x": ((4,), "string")}))
    assert engine.predict({"x": np.array([b"\xff", b"b"], object)})["y"].tolist() == [b"\xff", b"b"]


@pytest.mark.parametrize(
    ("tensors", "toml", "inputs"),
    [
        ({"b": ((None, 2), "float32"), "a": ((None, 2), "float32")}, "", {"a": "float32[2]", "b": "float32[2]"}),
        # what the model leaves open, model.toml may close
        (
            {"b": ((None, None), "float32"), "a": ((None, None), "float32")},
            '[inputs]\nb = "float32[2]"\na = "float32[-1]"',
            {"b": "float32[2]", "a": "float32[-1]"},
        ),
    ],
)
def test_several_inputs_go_by_name(export, tensors, toml, inputs):
    engine = load(export(lambda b, a: {"y": b - a}, tensors, toml))
    assert texts(engine.signature.inputs) == inputs
    assert list(texts(engine.signature.inputs)) == list(inputs)
    np.testing.assert_array_equal(engine.predict({"a": X, "b": X * 3})["y"], X * 2)


def test_the_graph_is_called_unless_it_answers_otherwise_than_the_function(export, tf):
    def calls_the_graph(function):
        engine = load(export(function, {"x": ((None, 2), "float32")}))
        assert engine.predict({"x": X})["y"].shape == X.shape
        return "_shortened" in getattr(engine._function, "__qualname__", "")

    assert calls_the_graph(lambda x: {"y": x * 2})
    # never the same twice
    assert not calls_the_graph(lambda x: {"y": x + tf.random.uniform(tf.shape(x))})


def test_the_model_lives_as_long_as_its_engine(export):
    engine = load(export(lambda x: {"y": x * 2}, {"x": ((None, 2), "float32")}))
    model = weakref.ref(engine._function._muleteer_model)
    gc.collect()
    assert model() is not None
    np.testing.assert_array_equal(engine.predict({"x": X})["y"], X * 2)


def test_a_model_that_never_ends_on_zeros_is_loaded_with_its_sample(export, tf):
    def double(x):
        return {"y": tf.while_loop(lambda v: tf.reduce_max(v) < 1e3, lambda v: [v * 2], [x])[0]}

    folder = export(double, {"x": ((None, 2), "float32")})
    (folder.root / "sample.json").write_text('{"x": [1, 2]}')
    assert load(folder).predict({"x": X[2:]})["y"].tolist() == [[1024, 1280]]


def test_model_toml_may_leave_outputs_out_and_order_them(export):
    toml = '[outputs]\nz = "float32[2]"\nx = "float32[2]"'
    engine = load(export(lambda x: {"x": x, "y": x + 1, "z": x + 2}, {"x": ((None, 2), "float32")}, toml))
    outputs = engine.predict({"x": X})
    assert list(outputs) == ["z", "x"]
    np.testing.assert_array_equal(outputs["z"], X + 2)


def test_a_saved_model_is_served_by_all_its_signatures(tf, tmp_path):
    module = tf.Module()
    vector = tf.TensorSpec((None, 2), tf.float32, "x")
    module.double = tf.function(lambda x: {"y": x * 2}, input_signature=[vector])
    module.count = tf.function(
        lambda s: {"n": tf.strings.length(s)}, input_signature=[tf.TensorSpec((4,), tf.string, "s")]
    )
    # that no client can ask for
    module.sum = tf.function(lambda x: {"y": tf.reduce_sum(x)}, input_signature=[vector])
    signatures = {"serving_default": module.double, "count": module.count, "sum": module.sum}
    tf.saved_model.save(module, str(tmp_path), signatures)
    engine = load(ModelFolder.find(tmp_path))
    assert {name: str(found) for name, found in engines.signatures(engine).items()} == {
        "serving_default": "x float32[2] → y float32[2]",
        "count": "s string → n int32",
    }
    count = engines.others(engine)["count"]
    assert (engine.max_batch_rows, count.max_batch_rows) == (None, 4)
    np.testing.assert_array_equal(engine.predict({"x": X})["y"], X * 2)
    np.testing.assert_array_equal(count.predict({"s": np.array([b"a", b"", b"abc"], object)})["n"], [1, 0, 3])
    (tmp_path / "model.toml").write_text('signature = "count"')
    assert list(engines.signatures(load(ModelFolder.find(tmp_path)))) == ["count", "serving_default"]
    (tmp_path / "model.toml").unlink()
    tf.saved_model.save(module, str(tmp_path), {"double": module.double, "count": module.count})
    assert "has no signature 'serving_default'; it has double, count: " in refusal(ModelFolder.find(tmp_path))


def test_the_only_signature_needs_no_name(export):
    engine = load(export(lambda x: {"y": x * 2}, {"x": ((None, 2), "float32")}, signature="times two"))
    assert list(engines.signatures(engine)) == ["times two"]


def test_another_signature_is_named_in_model_toml(export):
    function, tensors = lambda x: {"y": x * 5}, {"x": ((None, 2), "float32")}
    folder = export(function, tensors, 'signature = "times five"', signature="times five")
    np.testing.assert_array_equal(load(folder).predict({"x": X})["y"], X * 5)


VECTOR = {"x": ((None, 2), "float32")}


@pytest.mark.parametrize(
    ("tensors", "options", "told"),
    [
        (VECTOR, {"toml": 'signature = "mine"'}, "has no signature 'mine'; it has serving_default"),
        ({"x": ((), "float32")}, {}, "'x' has no axis for the rows; export it with one"),
        ({"x": (None, "float32")}, {}, "has no axis for the rows"),
        ({"x": ((None, 2), "bfloat16")}, {}, "'x' has dtype bfloat16, which is not served"),
        ({"x": ((None, 2), "complex64")}, {}, "'x' has dtype complex64, which is not served"),
        ({"x": ((None, 2), "float32"), "z": ((4, 2), "float32")}, {}, "the first axes of the inputs differ"),
        (VECTOR, {"toml": '[inputs]\nz = "float32[2]"'}, "model.toml [inputs] 'z' is unknown; the model has x"),
        (VECTOR, {"toml": '[inputs]\nx = "float64[2]"'}, "[inputs] x = 'float64[2]'; the model has float32[2]"),
        (VECTOR, {"toml": '[inputs]\nx = "float32[3]"'}, "[inputs] x = 'float32[3]'; the model has float32[2]"),
        (VECTOR, {"toml": '[inputs]\nx = "float32[-1]"'}, "[inputs] x = 'float32[-1]'; the model has float32[2]"),
        (VECTOR, {"toml": '[inputs]\nx = "float32"'}, "[inputs] x = 'float32'; the model has float32[2]"),
        (VECTOR, {"toml": '[outputs]\nz = "float32"'}, "[outputs] 'z' is unknown; the model has y"),
        (VECTOR | {"z": ((None,), "int8")}, {"toml": '[inputs]\nz = "int8"'}, "must name all inputs: x, z"),
    ],
)
def test_a_saved_model_that_cannot_be_served_is_refused_in_one_sentence(export, tensors, options, told):
    def serve(x, z=None):
        return {"y": x}

    assert told in refusal(export(serve, tensors, **options))


def test_a_saved_model_without_signatures_is_refused_with_what_to_do(tf, tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path))
    told = refusal(ModelFolder.find(tmp_path))
    assert "has no signature 'serving_default'; it has none: set signature in model.toml, or export one with" in told


def test_an_output_without_rows_is_refused(export, tf):
    assert "'y' has no axis for the rows" in refusal(export(lambda x: {"y": tf.reduce_sum(x)}, VECTOR))


@pytest.fixture
def keras(tf):
    tf.keras.utils.set_random_seed(7)
    return tf.keras


def test_a_sequential_archive_is_served_without_dropout(keras, archive):
    # a Sequential, the commonest of archives, once failed to load
    layers = [keras.Input((2,), name="x"), keras.layers.Dense(8), keras.layers.Dropout(0.9)]
    model = keras.Sequential([*layers, keras.layers.Dense(3, name="y")])
    engine = load(archive(model))
    assert (texts(engine.signature.inputs), texts(engine.signature.outputs)) == (
        {"x": "float32[2]"},
        {"y": "float32[3]"},
    )
    assert engine.max_batch_rows is None
    np.testing.assert_allclose(engine.predict({"x": X})["y"], model(X, training=False), rtol=1e-6, atol=1e-6)


def two(keras, structure):
    """A model that gives b - a and a * 2, with its inputs and outputs in lists or dicts."""
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    minus = keras.layers.Subtract(name="minus")([b, a])
    twice = keras.layers.Rescaling(2.0, name="twice")(a)
    if structure == "lists":
        return keras.Model([b, a], [twice, minus])
    if structure == "nested":
        return keras.Model({"b": [b], "a": a}, [[twice], minus])
    return keras.Model({"b": b, "a": a}, {"z": twice, "y": minus})


@pytest.mark.parametrize(
    ("structure", "toml", "names"),
    [
        ("lists", "", ["a", "b", "minus", "twice"]),
        ("nested", "", ["a", "b", "minus", "twice"]),
        ("dicts", "", ["a", "b", "y", "z"]),
        # names of one's own, in the archive's order: as its lists have it, and by the sorted keys of its dicts
        ("lists", '[inputs]\nq = "float32[2]"\np = "float32[2]"', ["p", "q", "minus", "twice"]),
        ("dicts", '[inputs]\np = "float32[2]"\nq = "float32[2]"', ["p", "q", "y", "z"]),
        ("lists", '[outputs]\nn = "float32[2]"\nm = "float32[2]"', ["a", "b", "m", "n"]),
        # its own names in another order are no new names
        ("lists", '[inputs]\na = "float32[2]"\nb = "float32[2]"', ["a", "b", "minus", "twice"]),
        ("dicts", '[outputs]\nz = "float32[2]"\ny = "float32[2]"', ["a", "b", "y", "z"]),
    ],
)
def test_archives_of_any_structure_go_by_name(keras, archive, structure, toml, names):
    engine = load(archive(two(keras, structure), toml))
    a, b, minus, twice = names
    outputs = engine.predict({a: X, b: X * 5})
    assert outputs.keys() == {minus, twice}
    np.testing.assert_array_equal(outputs[minus], X * 4)
    np.testing.assert_array_equal(outputs[twice], X * 2)


def test_an_archive_may_leave_outputs_out(keras, archive):
    engine = load(archive(two(keras, "dicts"), '[outputs]\ny = "float32[2]"'))
    assert list(engine.predict({"a": X, "b": X})) == ["y"]


@pytest.mark.parametrize("name", ["image-1", "2d", "class", "self", "a b"])
def test_a_name_need_not_be_one_of_python_s(keras, archive, name):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(2.0)])
    engine = load(archive(model, f'[inputs]\n"{name}" = "float32[2]"\n[outputs]\n"{name}" = "float32[2]"'))
    assert engine.signature.inputs == (TensorSpec(name, "float32", (2,)),)
    np.testing.assert_array_equal(engine.predict({name: X})[name], X * 2)


def test_an_archive_with_outputs_of_one_name_wants_names(keras, archive):
    layer, a, b = keras.layers.Rescaling(2.0, name="same"), keras.Input((2,)), keras.Input((2,))
    model = keras.Model([a, b], [layer(a), layer(b)])
    assert "outputs of one name (same, same); name them in model.toml [outputs]" in refusal(archive(model))
    assert "2 outputs; model.toml names 2 and 1" in refusal(archive(model, '[outputs]\ny = "float32[2]"'))
    assert load(archive(model, '[outputs]\ny = "float32[2]"\nz = "float32[2]"')).signature.outputs[1].name == "z"


def test_an_archive_that_does_not_say_what_its_inputs_are_is_refused_in_one_sentence(keras, archive):
    @keras.utils.register_keras_serializable()
    class Own(keras.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    own = Own()
    own(X)
    assert "does not say what its inputs are" in refusal(archive(own))
    with pytest.warns(UserWarning, match="not yet been built"):
        folder = archive(keras.Sequential([keras.layers.Dense(2)]))
    assert "serve what model.export(folder) writes, a SavedModel" in refusal(folder)


def test_what_such_a_model_exports_is_served(keras, tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    model.build((None, 2))
    model.export(tmp_path / "1", verbose=False)
    engine = load(ModelFolder.find(tmp_path))
    (name,), (output,) = texts(engine.signature.inputs), texts(engine.signature.outputs)
    np.testing.assert_allclose(engine.predict({name: X})[output], model(X), rtol=1e-6)
