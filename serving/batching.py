"""Batches: the tasks of one predict, counted in rows.

Runs in:  mule.
Shapes:   tensors are (rows, *shape); tasks are merged along the rows.
"""

from collections.abc import Iterator

import numpy as np

from serving.errors import EngineError
from serving.task import Task, Tensors

Batch = list[Task]


def group(tasks: list[Task]) -> list[Batch]:
    """The tasks that can be merged, in the order of their first: same signature, names, dtypes, shapes of one row."""
    if len(tasks) < 2:
        return [tasks] if tasks else []
    signature = tasks[0].signature
    (name, first), *others = tasks[0].inputs.items()
    dtype, shape = first.dtype, first.shape[1:]
    if not others and all(
        len(task.inputs) == 1
        and (tensor := task.inputs.get(name)) is not None
        and tensor.dtype == dtype
        and tensor.shape[1:] == shape
        and task.signature == signature
        for task in tasks
    ):
        # as nearly always
        return [tasks]
    batches: dict[tuple[object, ...], Batch] = {}
    for task in tasks:
        kinds = tuple((name, tensor.dtype, tensor.shape[1:]) for name, tensor in task.inputs.items())
        batches.setdefault((task.signature, kinds), []).append(task)
    return list(batches.values())


def merge(batch: Batch) -> Tensors:
    """The inputs of all tasks, one after the other."""
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([task.inputs[name] for task in batch]) for name in batch[0].inputs}


def slices(inputs: Tensors, rows: int, max_batch_rows: int) -> Iterator[Tensors]:
    """The inputs in slices of at most max_batch_rows."""
    if rows <= max_batch_rows:
        yield inputs
        return
    for start in range(0, rows, max_batch_rows):
        yield {name: tensor[start : start + max_batch_rows] for name, tensor in inputs.items()}


def join(parts: list[Tensors]) -> Tensors:
    """The outputs of all slices, one after the other; EngineError when they differ in the size of a row."""
    if len(parts) == 1:
        return parts[0]
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise EngineError(f"the slices of one request have outputs of different sizes: {error}") from error
