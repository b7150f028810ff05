"""What a dialect is: how a request asks for a prediction, and how it is answered.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import orjson
from flask import Response

from serving.errors import ServingError
from serving.model import ModelCard
from serving.task import Reply, Tensors

Headers = list[tuple[str, str]]
# the headers that tell what a body is, and the body
Encoded = tuple[Headers, bytes]

JSON: tuple[str, str] = ("Content-Type", "application/json")


def answer(value: Any, status: int = 200) -> Response:
    """A value in JSON, as what is no prediction is answered."""
    return Response(orjson.dumps(value), status, mimetype=JSON[1])


@dataclass(frozen=True, slots=True)
class Call:
    """One request: where it went, what it said, and what it may ask for."""

    environ: Mapping[str, Any]
    route: "Route"
    card: ModelCard
    body: bytes
    max_rows: int
    # of all that is unpacked from the body
    max_bytes: int


class Asked(NamedTuple):
    """What a request asks for."""

    inputs: Tensors
    # the answer's body; of a reply without an error
    encode: Callable[[Reply], Encoded]
    # one of the card's, "" for the default
    signature: str = ""
    # the longest that its client waits
    timeout_s: float = math.inf


class Dialect(Protocol):
    """One way to ask, of one protocol."""

    # the path, as metrics have it
    name: ClassVar[str]

    def decode(self, call: Call) -> Asked:
        """What a request asks for; a ClientError where it cannot be understood."""
        ...

    def refuse(self, error: ServingError, request_id: str, route: "Route") -> tuple[int, str, bytes]:
        """The status, the media type and the body that tell of an error."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """What a path says: the dialect, and the model and the version or label where it names them."""

    dialect: Dialect
    model: str = ""
    version: str = ""
