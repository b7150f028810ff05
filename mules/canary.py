"""The canary: the folder's sample, predicted at the start and now and then, and compared with its stored answer.

The stored answer is the folder's own (answer.json), or else what the model said in its warm-up.  One that answers the
same sample twice in two ways, as one that draws random numbers does, is held to dtype and shape alone.

Runs in:  mule.
Raises:   EngineError when an answer is not the stored one.
"""

import time

import numpy as np

from mules import engines
from serving.errors import EngineError
from serving.signature import STRING, Signature
from serving.task import Tensors

# between two runs of one model: batches, threads and cores change the order of sums
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5


class Canary:
    """One loaded model and its sample."""

    def __init__(self, engine: engines.Engine, sample: Tensors, answer: Tensors | None = None) -> None:
        self._engine = engine
        self.sample = sample
        self._answer = answer

    def warm_up(self, max_batch_rows: int) -> list[tuple[int, float]]:
        """Predict one row and a full batch, each twice, so that no request pays for the first time.

        Returns rows and seconds of the later ones.
        """
        took = []
        answers = []
        for rows in sorted({1, max_batch_rows}):
            inputs = {name: tensor.repeat(rows, axis=0) for name, tensor in self.sample.items()}
            for turn in range(2):
                start = time.monotonic()
                outputs = self._engine.predict(inputs)
                took_s = time.monotonic() - start
                check_outputs(outputs, self._engine.signature, rows)
                if rows == 1:
                    answers.append(outputs)
                if turn:
                    took.append((rows, took_s))
        if self._answer is not None:
            _compare(answers[0], self._answer, "answer.json")
        elif _difference(*answers) is None:
            self._answer = answers[0]
        return took

    def sing(self) -> None:
        """Predict the sample once more; EngineError when it is not what it was."""
        outputs = self._engine.predict(self.sample)
        check_outputs(outputs, self._engine.signature, 1)
        if self._answer is not None:
            _compare(outputs, self._answer, "the stored answer")


def check_outputs(outputs: Tensors, signature: Signature, rows: int) -> None:
    """Raise EngineError unless a model gave what its signature says, a row for each row."""
    for spec in signature.outputs:
        tensor = outputs[spec.name]
        if tensor.shape == (rows, *spec.shape) and tensor.dtype == spec.numpy:
            continue
        if tensor.ndim == 0 or len(tensor) != rows:
            raise EngineError(f"output {spec.name!r} has shape {list(tensor.shape)} for {rows} rows")
        dtype = STRING if tensor.dtype.kind == "O" else tensor.dtype.name
        fits = len(tensor.shape) == len(spec.shape) + 1 and all(
            want in (-1, size) for want, size in zip(spec.shape, tensor.shape[1:], strict=True)
        )
        if dtype != spec.dtype or not fits:
            raise EngineError(f"output {spec.name!r} is {dtype}{list(tensor.shape[1:])} for one row, not {spec}")


def _compare(outputs: Tensors, answer: Tensors, what: str) -> None:
    if name := _difference(outputs, answer):
        raise EngineError(f"the canary is wrong: output {name!r} of the sample differs from {what}")


def _difference(outputs: Tensors, answer: Tensors) -> str | None:
    """The name of an output that is not the same in both."""
    for name, expected in answer.items():
        tensor = outputs[name]
        if tensor.shape != expected.shape:
            return name
        if expected.dtype.kind == "f":
            same = np.allclose(tensor, expected, _RELATIVE, _ABSOLUTE, equal_nan=True)
        else:
            same = bool(np.array_equal(tensor, expected))
        if not same:
            return name
    return None
