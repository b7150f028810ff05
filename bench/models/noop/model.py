"""No work at all: what is measured is the server.

Runs in:  mule; and, by one(), in every peer.
"""

from collections.abc import Sequence
from typing import Any


def one(x: Sequence[int]) -> str:
    """The answer to one input."""
    return f"ok:{int(x[0])}"


class Model:
    inputs = {"x": "int64[1]"}
    outputs = {"y": "string"}

    def __init__(self, path: str) -> None:
        pass

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": [one(x) for x in inputs["x"].tolist()]}
