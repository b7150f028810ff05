"""ONNX: batches of one size, outputs that are no tensors, and what is not served."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from mules import engines
from serving.errors import ModelError, SignatureMismatch
from serving.model import ModelFolder

X = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def load(tmp_path):
    """The engine of a graph that gives its one input again; x: its type and sizes."""

    def load(kind, sizes, toml=""):
        x, y = (helper.make_tensor_value_info(name, kind, sizes) for name in "xy")
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, tmp_path / "echo.onnx")
        (tmp_path / "model.toml").write_text(toml)
        return engines.load(ModelFolder.find(tmp_path), threads=1)

    return load


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_batch_of_fixed_size_is_padded(load, rows):
    engine = load(TensorProto.FLOAT, [3, 2])
    assert engine.max_batch_rows == 3
    np.testing.assert_array_equal(engine.predict({"x": X[:rows]})["y"], X[:rows])


def test_a_size_that_is_any_may_be_said_in_model_toml(load):
    engine = load(TensorProto.FLOAT, ["rows", "columns"], '[inputs]\nx = "float32[2]"')
    assert [str(spec) for spec in (*engine.signature.inputs, *engine.signature.outputs)] == [
        "float32[2]",
        "float32[-1]",
    ]


@pytest.mark.parametrize(
    ("kind", "sizes", "told"),
    [
        (TensorProto.BFLOAT16, ["rows"], "'x' is tensor(bfloat16), which is not served"),
        (TensorProto.FLOAT, [], "'x' has no axis for the rows; export it with one"),
    ],
)
def test_what_is_not_served_is_told(load, kind, sizes, told):
    with pytest.raises(ModelError) as error:
        load(kind, sizes)
    assert told in str(error.value)


def test_bytes_that_are_not_utf8_are_refused(load):
    engine = load(TensorProto.STRING, ["rows"])
    assert engine.predict({"x": np.array(["ž".encode()], object)})["y"].tolist() == ["ž".encode()]
    with pytest.raises(SignatureMismatch, match="input 'x': found bytes that are not UTF-8"):
        engine.predict({"x": np.array([b"\xff"], object)})


def test_an_output_that_is_no_tensor_is_left_out(tmp_path, caplog):
    import skl2onnx

    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(x, y)
    (tmp_path / "iris.onnx").write_bytes(skl2onnx.to_onnx(model, x[:1].astype(np.float32)).SerializeToString())
    engine = engines.load(ModelFolder.find(tmp_path), threads=1)
    assert [spec.name for spec in engine.signature.outputs] == ["output_label"]
    assert "output 'output_probability'" in caplog.text and "is left out" in caplog.text
    assert engine.predict({"X": x[:3].astype(np.float32)})["output_label"].tolist() == [0, 0, 0]
