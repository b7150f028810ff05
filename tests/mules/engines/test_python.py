"""The Python engine: a folder with model.py and in it a class Model."""

import numpy as np
import pytest

from mules import engines
from serving.errors import EngineError, ModelError
from serving.signature import TensorSpec

ECHO = """
class Model:
    inputs = {"x": "float32[2]"}
    outputs = {"y": "float32[2]"}

    def __init__(self, path):
        self.path = path

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


def load(folder):
    return engines.load(folder, threads=1)


@pytest.fixture
def answer(write):
    """What the engine makes of what predict returns for one row."""

    def answer(spec, returned):
        source = f"""
from numpy import *
class Model:
    inputs = {{"x": "float32"}}
    outputs = {{"y": "{spec}"}}
    def __init__(self, path): pass
    def predict(self, inputs): return {returned}
"""
        return load(write(model_py=source)).predict({"x": np.zeros(1, np.float32)})["y"]

    return answer


@pytest.mark.parametrize(
    ("toml", "inputs", "outputs"),
    [
        ("", "float32[2]", "float32[2]"),
        ('[inputs]\nx = "float64[-1, 3]"', "float64[-1, 3]", "float32[2]"),
        ('[outputs]\ny = "int32"', "float32[2]", "int32"),
        ('[inputs]\nx = "string"\n[outputs]\ny = "bool[4]"', "string", "bool[4]"),
    ],
)
def test_model_toml_goes_before_the_class(write, toml, inputs, outputs):
    signature = load(write(model_py=ECHO, model_toml=toml)).signature
    assert signature.inputs == (TensorSpec.parse("x", inputs),)
    assert signature.outputs == (TensorSpec.parse("y", outputs),)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("", "model.py has no class Model"),
        ("def Model(path): pass", "model.py has no class Model"),
        ("class Model: pass", 'the inputs are not declared; write inputs = {"name": "float32[8, 8]"} in class Model'),
        (
            'class Model: inputs = {"x": "int8"}',
            'the outputs are not declared; write outputs = {"name": "float32[8, 8]"} in class Model,'
            ' or [outputs] name = "float32[8, 8]" in model.toml',
        ),
        ('class Model: inputs = ["x"]', 'Model.inputs: expected names with their types, for example image = "float32'),
        ('class Model: inputs = {"x": "float8"}', "x = 'float8': float8 is not one of bool, int8"),
        ('class Model: inputs = {"x": "[2]"}', "write it as dtype[sizes of one row], for example float32[8, 8]"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_with_what_to_write(write, source, told):
    with pytest.raises(ModelError) as error:
        load(write(model_py=source))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source", ["raise OSError('later')", ECHO.replace("self.path = path", "raise OSError('later')")]
)
def test_what_a_model_raises_while_it_loads_may_be_tried_again(write, source):
    with pytest.raises(OSError, match="later"):
        load(write(model_py=source))


def test_modules_and_files_beside_model_py_are_found(write):
    source = ECHO.replace("self.path = path", "self.k = k + int(Path(path, 'factor.txt').read_text())")
    source = source.replace('inputs["x"]', 'inputs["x"] * self.k')
    source = f"from pathlib import Path\nfrom a_neighbour import k\n{source}"
    engine = load(write(model_py=source, a_neighbour_py="k = 3", factor_txt="4"))
    assert engine.predict({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[7, 7]]


@pytest.mark.parametrize("batched", [True, False])
def test_inputs_may_be_written_to_and_the_caller_s_stay(write, batched):
    source = ECHO.replace("return", 'inputs["x"] += 1\n        return') + f"    batched = {batched}"
    x = np.zeros((2, 2), np.float32)
    x.flags.writeable = False
    assert load(write(model_py=source)).predict({"x": x})["y"].tolist() == [[1, 1], [1, 1]]
    assert not x.any()


def test_a_model_may_use_its_output_array_again(write):
    # the first slice of a request larger than a batch once became a copy of the last
    source = ECHO.replace("self.path = path", "self.y = numpy.zeros((1, 2), 'float32')")
    source = source.replace("return", 'self.y[:] = inputs["x"]\n        return').replace(
        '{"y": inputs["x"]}', '{"y": self.y}'
    )
    engine = load(write(model_py=f"import numpy\n{source}"))
    first, second = (engine.predict({"x": np.full((1, 2), value, np.float32)})["y"] for value in (1, 2))
    assert (first.tolist(), second.tolist()) == ([[1, 1]], [[2, 2]])


def test_one_at_a_time_sees_plain_values_and_takes_batches_of_one(write):
    source = """
class Model:
    inputs = {"i": "int64", "f": "float32", "b": "bool", "t": "string", "x": "float32[2]", "ts": "string[1]"}
    outputs = {"types": "string[6]"}
    batched = False
    def __init__(self, path): pass
    def predict(self, inputs): return {"types": [type(value).__name__ for value in inputs.values()]}
"""
    engine = load(write(model_py=source))
    assert engine.max_batch_rows == 1
    types = engine.predict(engine.signature.samples(2))["types"].tolist()
    assert types == [[b"int", b"float", b"bool", b"str", b"ndarray", b"ndarray"]] * 2


def test_strings_are_str_where_they_are_utf8_and_bytes_otherwise(write):
    source = ECHO.replace("float32[2]", "string").replace('inputs["x"]', '[repr(text) for text in inputs["x"]]')
    texts = np.array(["ž".encode(), b"\xff", b""], object)
    assert load(write(model_py=source)).predict({"x": texts})["y"].tolist() == ["'ž'".encode(), b"b'\\xff'", b"''"]


@pytest.mark.parametrize(
    ("spec", "returned", "expected"),
    [
        ("float32[2]", '{"y": [[1, 2.5]]}', np.array([[1, 2.5]], np.float32)),
        ("float32", '{"y": array([0.1])}', np.array([0.1], np.float32)),
        ("float16", '{"y": [nan]}', np.array([np.nan], np.float16)),
        ("int64", '{"y": [3.0]}', np.array([3])),
        ("uint8", '{"y": [255]}', np.array([255], np.uint8)),
        ("uint64[2]", '{"y": [[1, 2**63 + 1]]}', np.array([[1, 2**63 + 1]], np.uint64)),
        ("bool", '{"y": [True]}', np.array([True])),
        ("float32", '{"y": [True], "more": None}', np.array([1], np.float32)),
        ("string", '{"y": ["ž"]}', np.array(["ž".encode()], object)),
        ("string", '{"y": [b"\\xff"]}', np.array([b"\xff"], object)),
        ("string[2]", '{"y": array([["a", "b"]])}', np.array([[b"a", b"b"]], object)),
    ],
)
def test_what_predict_returns_becomes_what_it_declares(answer, spec, returned, expected):
    found = answer(spec, returned)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("spec", "returned", "told"),
    [
        ("float32", "None", "Model.predict returned NoneType; expected a dict of its outputs"),
        ("float32", "[1.0]", "Model.predict returned list"),
        ("float32", '{"z": [1.0]}', "Model.predict returned no y"),
        ("float32[2]", '{"y": [[1, 2], [3]]}', "output 'y':"),
        ("float32", '{"y": ["1.5"]}', "found; expected float32"),
        ("float32", '{"y": [None]}', "'y': object found; expected float32"),
        ("float32", '{"y": [1j]}', "'y': complex128 found; expected float32"),
        ("int64", '{"y": [1.5]}', "'y': float64 found with values that int64 cannot hold"),
        ("int64", '{"y": [nan]}', "'y': cannot convert float NaN to integer; expected int64"),
        ("int64", '{"y": array([nan])}', "'y': float64 found with values that int64 cannot hold"),
        ("uint8", '{"y": [256]}', "'y': Python integer 256 out of bounds for uint8; expected uint8"),
        ("uint8", '{"y": array([256])}', "'y': int64 found with values that uint8 cannot hold"),
        ("uint8", '{"y": array([-1], dtype="int8")}', "'y': int8 found with values that uint8 cannot hold"),
        ("bool", '{"y": [2]}', "'y': int64 found with values that bool cannot hold"),
        ("string", '{"y": [1]}', "'y': int found; expected str or bytes"),
        ("string[2]", '{"y": ["ab"]}', "'y' has 1 axes and should have 2: string[2]"),
    ],
)
def test_what_predict_may_not_return_is_an_engine_error(answer, spec, returned, told):
    with pytest.raises(EngineError) as error:
        answer(spec, returned)
    assert told in str(error.value)
