"""Batches: what is merged and answered, sliced and joined, is as if it had gone alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from serving.batching import group, join, merge, slices
from serving.errors import EngineError
from serving.task import Reply, Task
from serving.wire import decode_reply, encode_replies, encode_reply

from .strategies import check_same, tensors

ROW_SHAPES = array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)


def task(inputs, number=0):
    rows = len(next(iter(inputs.values())))
    return Task(number.to_bytes(16), "", 0.0, 0.0, rows, inputs)


@st.composite
def batches(draw):
    """Tasks of 1 to 4 rows with the same names, dtypes and shapes."""
    dtypes = draw(st.lists(st.sampled_from(["float32", "int8", "bool", "string"]), min_size=1, max_size=3))
    shapes = [draw(ROW_SHAPES) for _ in dtypes]
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    return [
        task({f"x{i}": draw(tensors((rows, *shapes[i]), [dtype])) for i, dtype in enumerate(dtypes)}) for rows in sizes
    ]


def model(inputs):
    """Works row by row; its output has other names and another shape than its inputs."""
    return {
        "twice": np.concatenate([tensor[:, None] for tensor in [inputs["x0"], inputs["x0"]]], axis=1),
        **{f"same {name}": tensor for name, tensor in inputs.items()},
    }


@given(batches())
def test_the_replies_to_a_batch_are_those_of_one_by_one(batch):
    for number, task in enumerate(batch):
        task.uuid, task.offered = number.to_bytes(16), float(number)
    frames = list(encode_replies(batch, 7, 10.0, 3.0, model(merge(batch))))
    assert len(frames) == len(batch)
    rows = sum(task.rows for task in batch)
    for frame, task in zip(frames, batch, strict=True):
        alone = Reply(task.uuid, 7, (10.0 - task.offered) * 1000, 3.0, model(task.inputs), batch_rows=rows)
        assert frame == encode_reply(alone)
        reply = decode_reply(frame)
        assert (reply.uuid, reply.version, reply.queue_ms) == (task.uuid, 7, (10.0 - task.offered) * 1000)
        check_same(reply.outputs, alone.outputs)


@given(batches(), st.integers(1, 6))
def test_slices_joined_are_the_whole_and_none_is_larger_than_asked(batch, max_batch_rows):
    inputs, rows = merge(batch), sum(task.rows for task in batch)
    parts = list(slices(inputs, rows, max_batch_rows))
    assert [len(part["x0"]) for part in parts[:-1]] == [max_batch_rows] * (len(parts) - 1)
    assert 1 <= len(parts[-1]["x0"]) <= max_batch_rows
    check_same(join(parts), inputs)
    check_same(join([model(part) for part in parts]), model(inputs))


def test_slices_whose_rows_differ_in_size_cannot_be_joined():
    with pytest.raises(EngineError, match="outputs of different sizes"):
        join([{"y": np.zeros((2, 3))}, {"y": np.zeros((2, 4))}])


KINDS = [
    {"x": np.zeros((1, 2), np.float32)},
    {"x": np.zeros((3, 2), np.float32)},
    {"x": np.zeros((1, 2), np.float64)},
    {"x": np.zeros((1, 3), np.float32)},
    {"x": np.zeros((1, 2, 1), np.float32)},
    {"y": np.zeros((1, 2), np.float32)},
    {"x": np.zeros((1, 2), np.float32), "y": np.zeros(1, np.int8)},
    {"x": np.full(1, b"", object)},
]


@given(st.lists(st.sampled_from(KINDS), max_size=12))
def test_group_keeps_every_task_once_and_in_order_with_those_that_it_can_be_merged_with(inputs):
    tasks = [task(each, number) for number, each in enumerate(inputs)]
    batches = group(tasks)
    numbers = [[int.from_bytes(each.uuid) for each in batch] for batch in batches]
    assert sorted(number for batch in numbers for number in batch) == list(range(len(tasks)))
    assert all(batch == sorted(batch) for batch in numbers)
    # the batches stand in the order of their first
    assert [batch[0] for batch in numbers] == sorted(batch[0] for batch in numbers)
    kinds = [{kind(task) for task in batch} for batch in batches]
    assert all(len(each) == 1 for each in kinds)
    assert len(set.union(set(), *kinds)) == len(batches)


def kind(task):
    """Which of KINDS a task is; the first two differ in their rows alone, and no others can be merged."""
    return max(1, next(index for index, inputs in enumerate(KINDS) if inputs is task.inputs))


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_task_are_grouped_too(count):
    tasks = [task(KINDS[0])] * count
    assert [each for batch in group(tasks) for each in batch] == tasks


def test_tasks_of_two_signatures_are_not_merged():
    tasks = [task({"x0": np.zeros((1, 2))}, number) for number in range(4)]
    tasks[1].signature = tasks[3].signature = "other"
    assert group(tasks) == [[tasks[0], tasks[2]], [tasks[1], tasks[3]]]
