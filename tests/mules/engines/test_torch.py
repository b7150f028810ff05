"""PyTorch: how programs take their inputs and give their outputs."""

import numpy as np
import pytest
import torch

from mules import engines
from serving.errors import ModelError
from serving.model import ModelFolder

from .trained import script

X = np.arange(6, dtype=np.float32).reshape(3, 2)
ROWS = torch.export.Dim("rows")


class Several(torch.nn.Module):
    def forward(self, x: torch.Tensor, factor: torch.Tensor, plus: torch.Tensor):
        return x * factor[:, None], x + plus[:, None]


class Set(torch.nn.Module):
    def forward(self, x: torch.Tensor, times: int, plus=None, *, y: torch.Tensor, mode: str = "up", shift=0.5):
        found = x * times if mode == "up" else x
        return (found + shift if plus is None else found + plus) - y


class Listed(torch.nn.Module):
    def forward(self, both: list[torch.Tensor]):
        return both[0] + both[1]


@pytest.fixture
def load(tmp_path):
    def load(module, args, kwargs=None, toml="", shapes=None):
        torch.export.save(torch.export.export(module, args, kwargs, dynamic_shapes=shapes), tmp_path / "model.pt2")
        (tmp_path / "model.toml").write_text(toml)
        return engines.load(ModelFolder.find(tmp_path), threads=1)

    return load


def test_arguments_go_by_place_and_by_name_and_outputs_are_numbered(load):
    one, rows = torch.ones(2), {0: ROWS}
    shapes = {"x": rows, "factor": rows, "plus": rows}
    engine = load(Several(), (torch.ones(2, 2),), {"plus": one, "factor": one * 2}, shapes=shapes)
    assert {spec.name for spec in engine.signature.inputs} == {"x", "factor", "plus"}
    assert [spec.name for spec in engine.signature.outputs] == ["output_0", "output_1"]
    factor, plus = np.float32([2, 3, 4]), np.float32([5, 6, 7])
    outputs = engine.predict({"x": X, "factor": factor, "plus": plus})
    np.testing.assert_array_equal(outputs["output_0"], X * factor[:, None])
    np.testing.assert_array_equal(outputs["output_1"], X + plus[:, None])


def test_what_is_no_tensor_is_as_it_was_when_the_program_was_exported(load):
    rows = {0: ROWS}
    shapes = {"x": rows, "times": None, "plus": None, "y": rows, "mode": None, "shift": None}
    own = {"y": torch.ones(2, 2), "mode": "up", "shift": 0.25}
    engine = load(Set(), (torch.ones(2, 2), 3, None), own, shapes=shapes)
    assert {spec.name: str(spec) for spec in engine.signature.inputs} == {"x": "float32[2]", "y": "float32[2]"}
    np.testing.assert_array_equal(engine.predict({"x": X, "y": X})["output"], X * 3 + np.float32(0.25) - X)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_batch_of_fixed_size_is_padded(load, rows):
    engine = load(torch.nn.Identity(), (torch.ones(2, 2),))
    assert engine.max_batch_rows == 2
    np.testing.assert_array_equal(engine.predict({"input": X[:rows]})["output"], X[:rows])


def test_a_program_for_one_row_takes_one(load):
    engine = load(torch.nn.Identity(), (torch.ones(1, 2),))
    assert engine.max_batch_rows == 1
    np.testing.assert_array_equal(engine.predict({"input": X[:1]})["output"], X[:1])


@pytest.mark.parametrize(
    ("module", "args", "told"),
    [
        (
            Listed(),
            ([torch.ones(2), torch.ones(2)],),
            "takes lists or dicts of tensors; export a module that takes each",
        ),
        (torch.nn.Identity(), (torch.ones(2, dtype=torch.complex64),), "has dtype complex64, which is not served"),
        (torch.nn.Identity(), (torch.ones(2, dtype=torch.bfloat16),), "has dtype bfloat16, which is not served"),
        (torch.nn.Identity(), (torch.tensor(1.0),), "has no axis for the rows; export it with one"),
        (Several(), (torch.ones(3, 3), torch.ones(1), torch.ones(3)), "the first axes of the inputs differ: 3, 1, 3"),
    ],
)
def test_what_is_not_served_is_told(load, module, args, told):
    with pytest.raises(ModelError) as error:
        load(module, args)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_torchscript_takes_its_inputs_as_model_toml_names_them(tmp_path):
    script(Several(), tmp_path / "model.ts")
    (tmp_path / "model.toml").write_text('[inputs]\nplus = "float32"\nx = "float32[2]"\nfactor = "float32"\n')
    engine = engines.load(ModelFolder.find(tmp_path), threads=1)
    one = np.ones(3, np.float32)
    outputs = engine.predict({"x": X, "factor": one, "plus": one * 2})
    np.testing.assert_array_equal(outputs["output_1"], X + 2)


def test_weights_without_their_module_are_no_torchscript(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.toml").write_text('[inputs]\nx = "float32[2]"\n')
    with pytest.raises(ModelError) as error:
        engines.load(ModelFolder.find(tmp_path), threads=1)
    assert "model.pt cannot be read" in str(error.value)
    assert str(error.value).endswith(
        "torch.jit.script(model).save(file) writes, and better is a .pt2 of torch.export.save"
    )
