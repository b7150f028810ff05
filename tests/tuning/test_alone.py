"""The model alone is measured as a line, and asked what it takes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.model import ModelFolder
from serving.settings import Settings
from trial import TrialFailed
from tuning import alone, calibration
from tuning.alone import Alone

from .conftest import SHIPPED

ROOT = Path(__file__).parents[2]
SETTINGS = Settings.read(SHIPPED, {})
WORKS = """
import time
import numpy as np
class Model:
    inputs = {"x": "float32[2]", "inputs": "string"}
    outputs = {"y": "float32"}
    batched = True
    def __init__(self, path): ...
    def predict(self, inputs):
        end = time.perf_counter() + 0.002 + 0.001 * len(inputs["x"])
        while time.perf_counter() < end:
            pass
        return {"y": inputs["x"].sum(axis=1)}
"""


@given(st.floats(0.0001, 0.1), st.floats(0.00001, 0.01), st.lists(st.integers(1, 256), min_size=2, unique=True))
def test_a_line_is_found_again(overhead, row, sizes):
    found = alone.fit(sizes, [overhead + size * row for size in sizes])
    assert found == pytest.approx((overhead, row), rel=0.01, abs=1e-6)


def test_a_line_goes_through_what_is_uneven():
    random = np.random.default_rng(1)
    rows = [size for size in (1, 2, 4, 8, 16, 32) for _ in range(50)]
    took = [(0.002 + 0.0005 * size) * random.lognormal(0, 0.05) for size in rows]
    assert alone.fit(rows, took) == pytest.approx((0.002, 0.0005), rel=0.1)


@pytest.mark.parametrize(
    ("rows", "took", "line"),
    [([1], [0.005], (0.005, 0.0)), ([1, 2], [0.004, 0.002], (0.003, 0.0)), ([1, 2], [0.001, 0.003], (0.0, 0.00125))],
)
def test_a_line_is_never_below_nothing(rows, took, line):
    assert alone.fit(rows, took) == pytest.approx(line)


def test_a_model_that_waits_is_told_from_one_that_computes(tmp_path):
    waits = Alone.measure(ModelFolder.find(ROOT / "examples" / "fancy"), SETTINGS, 1)
    assert waits.line.busy < calibration.WAITS and waits.line.most_rows == 1 and set(waits.points) == {1}
    assert waits.line.overhead_s >= 0.005 and waits.load_s >= 0.05 and waits.mb > 10
    assert set(waits.bodies) == {b'{"text":"hello"}'}
    (tmp_path / "model.py").write_text(WORKS)
    works = Alone.measure(ModelFolder.find(tmp_path), SETTINGS, 1)
    # on a machine with others a core is not always there
    assert works.line.busy > waits.line.busy and max(works.points) >= 32
    assert works.line.overhead_s > 0.001 and works.line.row_s >= 0.0008
    assert works.points[32] > works.points[1]
    body = json.loads(works.bodies[0])
    assert body["instances"][0].keys() == {"x", "inputs"} and len(set(works.bodies)) == 1
    again = Alone.from_dict(json.loads(json.dumps(works.as_dict())))
    assert (again.line, again.points) == (works.line, works.points)


def test_a_model_that_fails_at_larger_batches_than_it_is_asked_for_is_measured_up_to_there(tmp_path):
    fails = (
        "    def predict(self, inputs):\n        if len(inputs['x']) > 40:\n            raise MemoryError('too many')\n"
    )
    (tmp_path / "model.py").write_text(WORKS.replace("    def predict(self, inputs):\n", fails))
    found = Alone.measure(ModelFolder.find(tmp_path), SETTINGS, 1)
    assert max(found.points) == found.line.most_rows == 32
    with pytest.raises(TrialFailed, match="too many"):
        Alone.measure(ModelFolder.find(tmp_path), replace(SETTINGS, max_batch_rows=64), 1)


def test_a_sample_is_varied_where_it_is_of_fractions():
    random = np.random.default_rng(1)
    sample = {"x": np.ones((1, 3), "float32"), "n": np.array([[7]]), "s": np.array([b"a"], dtype=object)}
    rows = alone._varied(sample, 4, random)
    assert rows["x"].shape == (4, 3) and rows["x"].dtype == np.float32 and len(np.unique(rows["x"])) == 12
    assert rows["n"].tolist() == [[7]] * 4 and rows["s"].tolist() == [b"a"] * 4
    assert json.loads(alone.one_row({"s": np.array([b"\xff"], dtype=object)})) == {"s": {"b64": "/w=="}}


def test_a_model_that_cannot_be_loaded_is_told(tmp_path):
    (tmp_path / "model.py").write_text("raise ValueError('no')")
    with pytest.raises(TrialFailed, match="no"):
        Alone.measure(ModelFolder.find(tmp_path), SETTINGS, 1)
