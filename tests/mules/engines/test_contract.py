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

from .trained import MODELS, script

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


def write_onnx(path, request):
    import onnx
    from onnx import TensorProto, helper

    def value(name, dtype, *shape):
        return helper.make_tensor_value_info(name, getattr(TensorProto, dtype), ["rows", *shape])

    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Cast", ["k"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "one"], ["factors"]),
        helper.make_node("Mul", ["x", "factors"], ["y"]),
        helper.make_node("ReduceSum", ["x", "one"], ["s"], keepdims=0),
        helper.make_node("Identity", ["text"], ["echo"]),
    ]
    inputs = [value("k", "INT64"), value("text", "STRING"), value("x", "FLOAT", 2)]
    outputs = [value("echo", "STRING"), value("s", "FLOAT"), value("y", "FLOAT", 2)]
    graph = helper.make_graph(nodes, "contract", inputs, outputs, [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path / "contract.onnx")


INFERENCE = """
import json
import numpy as np

def model_fn(model_dir):
    return None

def input_fn(body, content_type):
    return json.loads(body)

def predict_fn(data, model):
    x, k = np.array(data["x"], np.float32), np.array(data["k"], np.float32)
    return {"echo": data["text"], "s": x.sum(axis=-1), "y": x * k[..., None]}

def output_fn(prediction, accept):
    return json.dumps({name: np.asarray(found).tolist() for name, found in prediction.items()})
"""
DECLARED = "\n".join(
    f"[{table}]\n" + "\n".join(f'{name} = "{text}"' for name, text in own.items())
    for table, own in (("inputs", INPUTS), ("outputs", OUTPUTS))
)


def write_sagemaker(path, request):
    (path / "inference.py").write_text(INFERENCE)
    (path / "model.toml").write_text(DECLARED)


def write_sagemaker_row_by_row(path, request):
    write_sagemaker(path, request)
    (path / "model.toml").write_text(f"batched = false\n{DECLARED}")


def _write_torch(path, write):
    import torch

    class Module(torch.nn.Module):
        def forward(self, k: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"s": x.sum(1), "y": x * k.to(torch.float32).unsqueeze(1)}

    write(torch, Module(), path)


def write_torch_script(path, request):
    _write_torch(path, lambda torch, module, path: script(module, path / "model.pt"))
    (path / "model.toml").write_text(f'[inputs]\nk = "{INPUTS["k"]}"\nx = "{INPUTS["x"]}"\n')


def write_torch_exported(path, request):
    def write(torch, module, path):
        rows = torch.export.Dim("rows")
        example = {"k": torch.ones(2, dtype=torch.int64), "x": torch.ones(2, 2)}
        program = torch.export.export(module, (), example, dynamic_shapes={"k": {0: rows}, "x": {0: rows}})
        torch.export.save(program, path / "model.pt2")

    _write_torch(path, write)


def write_tflite(path, request):
    tf = request.getfixturevalue("tf")

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64, "k"), tf.TensorSpec((None, 2), tf.float32, "x")])
    def serve(k, x):
        return {"y": x * tf.cast(k, tf.float32)[:, None], "s": tf.reduce_sum(x, axis=1)}

    module = tf.Module()
    module.serve = serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], module)
    (path / "model.tflite").write_bytes(converter.convert())


def write_mlflow(path, request):
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types import TensorSpec as Tensor

    class Model(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: np.ndarray, params=None):
            x, k = model_input["x"], model_input["k"]
            return {"s": x.sum(axis=1), "y": x * k.astype(np.float32)[:, None]}

    inputs = Schema([Tensor(np.dtype("int64"), (-1,), "k"), Tensor(np.dtype("float32"), (-1, 2), "x")])
    example = {"x": np.ones((2, 2), np.float32), "k": np.ones(2, np.int64)}
    mlflow.pyfunc.save_model(path, python_model=Model(), signature=ModelSignature(inputs), input_example=example)


# the same function, in all of them
WRITERS = {
    "python, batched": write_batched,
    "python, one at a time": write_one_at_a_time,
    "SavedModel": write_saved_model,
    ".keras": write_keras,
    "onnx": write_onnx,
    "sagemaker": write_sagemaker,
    "sagemaker, row by row": write_sagemaker_row_by_row,
}
# without its strings, which these do not have
NUMBERS_ONLY = {
    "TorchScript": write_torch_script,
    ".pt2": write_torch_exported,
    "tflite": write_tflite,
    "mlflow": write_mlflow,
}
TRAINED = {f"trained {name}": name for name in MODELS}
EXPECTED = Signature(specs(INPUTS), specs(OUTPUTS))
EXPECTED_NUMBERS = Signature(EXPECTED.inputs[::2], EXPECTED.outputs[1:])


def load(folder):
    path = list(sys.path)
    try:
        return engines.load(folder, threads=1)
    finally:
        sys.path[:] = path


def inputs_of(signature, rows, binary):
    """Values of all kinds, the same each time, that cannot be written to: as they come from a frame.

    binary: with bytes that are not UTF-8.
    """
    random = np.random.default_rng(7)
    found = {}
    for spec in signature.inputs:
        shape = (rows, *spec.shape)
        if spec.dtype == "string":
            found[spec.name] = np.empty(shape, object)
            found[spec.name].flat = [
                b"",
                "žluťoučký 🐎".encode(),
                b"\xff\0\xfe" if binary else b"",
                b"a\0b",
                b"x" * 9000,
            ][:rows]
            found[spec.name][5:] = b"plain"
        else:
            found[spec.name] = random.uniform(0, 16, shape).astype(spec.dtype)
        found[spec.name].flags.writeable = False
    return found


@pytest.fixture(scope="module", params=[*WRITERS, *NUMBERS_ONLY, "digits", *TRAINED])
def engine(request, tmp_path_factory, train):
    """An engine; its attribute `rows` gives inputs of so many rows."""
    name = request.param
    if name == "digits":
        request.getfixturevalue("tf")
        path = DIGITS
    elif name in TRAINED:
        path, made = train(TRAINED[name])
    else:
        path = tmp_path_factory.mktemp("model")
        (WRITERS | NUMBERS_ONLY)[name](path, request)
    engine = load(ModelFolder.find(path))
    # a trained one may know its values
    own = made.inputs if name in TRAINED else inputs_of(engine.signature, 7, binary=name != "onnx")
    engine.rows = lambda rows: {name: tensor[:rows] for name, tensor in own.items()}
    return engine


class TestEngine:
    @pytest.mark.parametrize("rows", [1, 2, 7])
    def test_predict_gives_what_the_signature_promises_a_row_for_each_row(self, engine, rows):
        outputs = engine.predict(engine.rows(rows))
        assert list(outputs) == [spec.name for spec in engine.signature.outputs]
        check_outputs(outputs, engine.signature, rows)

    def test_rows_do_not_know_of_each_other(self, engine):
        inputs = engine.rows(7)
        together = engine.predict(inputs)
        for row in range(7):
            alone = engine.predict({name: tensor[row : row + 1] for name, tensor in inputs.items()})
            for name, tensor in alone.items():
                if tensor.dtype.kind == "f":
                    np.testing.assert_allclose(tensor[0], together[name][row], rtol=1e-6, atol=1e-6)
                else:
                    assert tensor[0] == together[name][row]

    def test_its_own_samples_are_predicted(self, engine):
        check_outputs(engine.predict(engine.signature.samples(3)), engine.signature, 3)

    def test_what_was_given_before_stays_as_it_was(self, engine):
        first = engine.predict(engine.rows(2))
        kept = {name: tensor.copy() for name, tensor in first.items()}
        engine.predict(engine.signature.samples(2))
        for name, tensor in first.items():
            np.testing.assert_array_equal(tensor, kept[name])


@pytest.mark.parametrize("engine", [*WRITERS, *NUMBERS_ONLY], indirect=True)
class TestTheSameFunction:
    def test_the_signature_is_the_model_s_own(self, engine):
        expected = EXPECTED if engine.rows(1).get("text") is not None else EXPECTED_NUMBERS
        # the order is the file's
        for side in ("inputs", "outputs"):
            assert set(getattr(engine.signature, side)) == set(getattr(expected, side))

    def test_the_outputs_are_those_of_the_function_and_strings_travel(self, engine):
        inputs = engine.rows(7)
        outputs = engine.predict(inputs)
        assert outputs.get("echo", np.array([])).tolist() == inputs.get("text", np.array([])).tolist()
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
