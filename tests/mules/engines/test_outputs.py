"""Outputs: those that model.toml leaves out are not looked at, and each of the others has a row for each."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from sklearn import datasets

from mules import engines
from serving.errors import EngineError, ModelError
from serving.model import ModelFolder

X = np.arange(6, dtype=np.float32).reshape(3, 2)


class Reader(torch.nn.Module):
    """Reads a digit line by line; the state of its GRU has the layers first, then the rows."""

    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(8, 16, batch_first=True)
        self.last = torch.nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found, h = self.gru(image)
        return {"digit": self.last(found[:, -1]), "h": h, "coarse": h.to(torch.bfloat16)}


@pytest.fixture(scope="module")
def reader():
    """A reader that knows some digits, and their images."""
    torch.manual_seed(7)
    x, y = datasets.load_digits(return_X_y=True)
    images, digits = torch.tensor(x.reshape(-1, 8, 8), dtype=torch.float32) / 16, torch.tensor(y)
    network = Reader()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images)["digit"], digits).backward()
        optimizer.step()
    assert (network(images)["digit"].argmax(1) == digits).float().mean() > 0.8
    return network.eval(), images


@pytest.fixture
def load(tmp_path):
    def load(toml=""):
        (tmp_path / "model.toml").write_text(toml)
        return engines.load(ModelFolder.find(tmp_path), threads=1)

    return load


def export(network, images, path, shapes=None):
    with warnings.catch_warnings():
        # of how a GRU keeps its weights
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), path / "model.pt2")


@pytest.mark.parametrize("size", [None, 4])
def test_the_state_of_a_network_may_be_left_out(load, reader, tmp_path, size):
    network, images = reader
    shapes = {"image": {0: torch.export.Dim("rows")}} if size is None else None
    export(network, images[: size or 2], tmp_path, shapes)
    with pytest.raises(ModelError, match="leave it out of"):
        load()
    engine = load('[outputs]\ndigit = "float32[10]"\n')
    with torch.no_grad():
        expected = network(images[: size or 3])["digit"].numpy()
    np.testing.assert_array_equal(engine.predict({"image": images[: size or 3].numpy()})["digit"], expected)
    # those that fill a batch up are cut off again
    np.testing.assert_allclose(engine.predict({"image": images[:2].numpy()})["digit"], expected[:2], rtol=1e-5)


def test_what_is_declared_and_not_there_is_told_beside_all_that_is(load, reader, tmp_path):
    network, images = reader
    export(network, images[:2], tmp_path)
    with pytest.raises(ModelError) as error:
        load('[outputs]\nnumber = "float32[10]"\n')
    assert str(error.value) == "model.toml [outputs] 'number' is unknown; the model has digit, h, coarse"


# each writes y = 2 x, and h, the first two rows of x whatever their number, or a number that no row has


def write_saved_model(path, size, request):
    tf, save = request.getfixturevalue("tf"), request.getfixturevalue("save")

    def serve(x):
        return {"y": x * 2, "h": x[:2], "shift": tf.constant(3.0), "z": tf.constant(1j, shape=(2,))}

    save(path, serve, tf.TensorSpec((size, 2), tf.float32, name="x"))


def write_tflite(path, size, request):
    tf = request.getfixturevalue("tf")

    @tf.function(input_signature=[tf.TensorSpec((size, 2), tf.float32, "x")])
    def serve(x):
        return {"y": x * 2, "h": x[:2], "shift": tf.reduce_sum(x)}

    module = tf.Module()
    module.serve = serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], module)
    (path / "model.tflite").write_bytes(converter.convert())


def write_onnx(path, size, request):
    x, y, shift, h = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [size, 2]), ("y", [size, 2]), ("shift", []), ("h", [None, 2]))
    )
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in (("from", 0), ("to", 2))]
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("ReduceSum", ["x"], ["shift"], keepdims=0),
        helper.make_node("Slice", ["x", "from", "to"], ["h"]),
    ]
    graph = helper.make_graph(nodes, "doubled", [x], [y, shift, h], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path / "doubled.onnx"
    )


def write_mlflow(path, size, request):
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    class Doubled(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: np.ndarray, params=None):
            x = model_input["x"]
            return {"y": x * 2, "h": x[:2], "shift": 3.0, "ragged": [[1], [2, 3]]}

    signature = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (size or -1, 2), "x")]))
    with warnings.catch_warnings():
        # that an example might be saved as well
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(path, python_model=Doubled(), signature=signature)


WRITERS = [write_saved_model, write_tflite, write_onnx, write_mlflow]


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("write", WRITERS)
def test_outputs_without_rows_may_be_left_out(load, tmp_path, request, write, size):
    write(tmp_path, size, request)
    with pytest.raises(ModelError):
        load()
    engine = load('[outputs]\ny = "float32[2]"\n')
    for rows in (1, 3):
        outputs = engine.predict({"x": X[:rows]})
        assert list(outputs) == ["y"]
        np.testing.assert_array_equal(outputs["y"], X[:rows] * 2)


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("write", WRITERS)
def test_an_output_of_another_number_of_rows_is_an_error(load, tmp_path, request, write, size):
    write(tmp_path, size, request)
    told = f"output 'h' has shape [2, 2] for {size or 3} rows"
    # where the artifact does not tell, the load does
    with pytest.raises((EngineError, ModelError)) as error:
        load('[outputs]\ny = "float32[2]"\nh = "float32[2]"\n').predict({"x": X})
    assert told in str(error.value)
