"""The canary: the sample, its stored answer, and what counts as the same."""

import numpy as np
import pytest

from mules.canary import Canary
from serving.errors import EngineError
from serving.signature import Signature, TensorSpec

SAMPLE = {"x": np.array([[1, 2]], np.float32)}
SPECS = {
    "float32": TensorSpec("y", "float32", (2,)),
    "int64": TensorSpec("y", "int64", (2,)),
    "string": TensorSpec("y", "string", (2,)),
}


def y(*values, dtype="float32"):
    return {"y": np.array([values], object if dtype == "string" else dtype)}


class Engine:
    """Answers with a row for each row, from a list of rows; the last one for ever."""

    max_batch_rows = None

    def __init__(self, *answers, dtype="float32"):
        self.signature = Signature((TensorSpec("x", "float32", (2,)),), (SPECS[dtype],))
        self.answers = list(answers)

    def predict(self, inputs):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return {name: tensor.repeat(len(inputs["x"]), axis=0) for name, tensor in answer.items()}


def test_what_the_model_said_in_its_warm_up_is_what_it_must_say():
    engine = Engine(y(1, 2))
    canary = Canary(engine, SAMPLE)
    assert [rows for rows, _ in canary.warm_up(8)] == [1, 8]
    canary.sing()
    engine.answers = [y(1, 3)]
    with pytest.raises(EngineError, match="output 'y' of the sample differs from the stored answer"):
        canary.sing()


def test_a_model_of_one_row_is_measured_once():
    assert [rows for rows, _ in Canary(Engine(y(1, 2)), SAMPLE).warm_up(1)] == [1]


def test_a_model_that_draws_random_numbers_is_held_to_dtype_and_shape_alone():
    engine = Engine(y(1, 2), y(3, 4), y(5, 6))
    canary = Canary(engine, SAMPLE)
    canary.warm_up(1)
    engine.answers = [y(7, 8)]
    canary.sing()
    engine.answers = [{"y": np.ones((1, 3), np.float32)}]
    with pytest.raises(EngineError, match="for one row"):
        canary.sing()


def test_the_answer_of_the_folder_counts_also_for_a_model_that_draws_random_numbers():
    with pytest.raises(EngineError, match=r"differs from answer\.json"):
        Canary(Engine(y(3, 4), y(1, 2)), SAMPLE, y(1, 2)).warm_up(1)
    canary = Canary(Engine(y(1, 2), y(1, 2), y(3, 4)), SAMPLE, y(1, 2))
    canary.warm_up(1)
    with pytest.raises(EngineError, match="differs from the stored answer"):
        canary.sing()


@pytest.mark.parametrize(
    ("dtype", "stored", "found", "same"),
    [
        ("float32", (1.0, 1000.0), (1.0005, 1000.5), True),
        ("float32", (1.0, 1000.0), (1.01, 1000.0), False),
        ("float32", (0.0, 0.0), (5e-6, 0.0), True),
        ("float32", (np.nan, np.inf), (np.nan, np.inf), True),
        ("float32", (1.0, 2.0), (np.nan, 2.0), False),
        ("float32", (np.inf, 2.0), (-np.inf, 2.0), False),
        ("int64", (1, 2), (1, 2), True),
        ("int64", (10**15, 2), (10**15 + 1, 2), False),
        ("string", (b"a", b"b"), (b"a", b"b"), True),
        ("string", (b"a", b"b"), (b"a", b"c"), False),
    ],
)
def test_sums_may_be_taken_in_another_order_and_nothing_else_may_differ(dtype, stored, found, same):
    engine = Engine(y(*found, dtype=dtype), dtype=dtype)
    canary = Canary(engine, SAMPLE, y(*stored, dtype=dtype))
    if same:
        canary.warm_up(2)
        canary.sing()
    else:
        with pytest.raises(EngineError, match="the canary is wrong"):
            canary.warm_up(2)


def test_a_model_with_outputs_of_any_size_may_not_change_its_size():
    engine = Engine(y(1, 2))
    engine.signature = Signature(engine.signature.inputs, (TensorSpec("y", "float32", (-1,)),))
    canary = Canary(engine, SAMPLE)
    canary.warm_up(1)
    engine.answers = [y(1, 2, 3)]
    with pytest.raises(EngineError, match="differs from the stored answer"):
        canary.sing()
