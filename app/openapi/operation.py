"""What there is to tell of one route: its bodies by media type, with examples, and its errors.

Runs in:  worker.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]

JSON = "application/json"
TEXT: Schema = {"type": "string"}
# any bytes, as 3.1 has it
BINARY: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}


@dataclass(frozen=True)
class Example:
    """A body that there might be; headers: what must come with it beside its Content-Type."""

    value: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Body:
    """What is sent or answered in one media type."""

    schema: Schema
    examples: Mapping[str, Example] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Errors:
    """How a dialect tells of an error: the media type, the schema and its name, and one of status, code and title."""

    name: str
    media_type: str
    schema: Schema
    example: Callable[[int, str, str], Any]


@dataclass(frozen=True)
class Operation:
    """One route and method; {model}, {version} and {label} in the path are told by themselves."""

    tag: str
    path: str
    summary: str
    gives: Mapping[str, Body]
    takes: Mapping[str, Body] = field(default_factory=dict)
    method: str = "get"
    description: str = ""
    errors: tuple[Errors, ...] = ()
    # of errors, and the one of not being ready where that is told by the same body as being ready
    statuses: tuple[int, ...] = ()
    not_ready: int = 0
    # of components.parameters and components.headers
    asks: tuple[str, ...] = ()
    tells: tuple[str, ...] = ("X-Request-ID",)

    @property
    def id(self) -> str:
        """Its name in generated clients."""
        return "_".join(re.findall(r"\w+", f"{self.method} {self.path}"))

    @property
    def names(self) -> list[str]:
        """What its path leaves open."""
        return re.findall(r"\{(\w+)\}", self.path)


# what a client may get from a prediction; 414 and 502 are nginx's own
PREDICTION = (400, 404, 413, 414, 415, 500, 502, 503, 504)


def prediction(
    tag: str,
    path: str,
    summary: str,
    takes: Mapping[str, Body],
    gives: Mapping[str, Body],
    errors: tuple[Errors, ...],
    description: str = "",
    asks: tuple[str, ...] = (),
    method: str = "post",
    tells: tuple[str, ...] = (),
    negotiates: bool = False,
) -> Operation:
    """A POST that predicts; negotiates: whether Accept says in which media type it is answered."""
    return Operation(
        tag,
        path,
        summary,
        gives,
        takes,
        method,
        description,
        errors,
        tuple(sorted((*PREDICTION, 406))) if negotiates else PREDICTION,
        asks=("X-Request-Timeout-Ms", "X-Model-Version", "X-Request-ID", *asks),
        tells=("X-Request-ID", "X-Model-Version", "Server-Timing", *tells),
    )
