"""5 ms for each input, one at a time: a model that waits, and of which nothing else is known.

Runs in:  mule; and, by one(), in every peer.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

PREDICT_S = 0.005

_turn = threading.Lock()


def one(x: Sequence[int]) -> str:
    """The answer to one input."""
    with _turn:
        time.sleep(PREDICT_S)
    return f"ok:{int(x[0])}"


class Model:
    inputs = {"x": "int64[1]"}
    outputs = {"y": "string"}
    batched = False

    def __init__(self, path: str) -> None:
        pass

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": one(inputs["x"])}
