"""What the servers are asked: five models, for each its inputs, and their answers as the model itself gives them.

No two answers are alike, so that one which went to another request is seen.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench import train
from bench.work import ROOT
from load import loadgen
from load.loadgen import Item

MODELS = ROOT / "bench" / "models"
INPUTS = 50
# of any two answers that are numbers, one number differs by train.APART
TOLERANCE = 1e-3
IMAGE_NUMBERS = 224 * 224 * 3
CLIENTS = (1, 16, 64)


@dataclass(frozen=True)
class Workload:
    """One model, and how it is asked."""

    name: str
    # as the tables call it
    label: str
    title: str
    model: Path
    processes: int
    # a batch costs less than its rows one by one
    batches: bool
    clients: tuple[int, ...] = CLIENTS

    def items(self, listed: bool = False) -> Iterator[Item]:
        """All requests with their right answers.  listed: each input in a list of one, as some servers want it."""
        for x, y in self._examples():
            body = orjson.dumps({"x": [x] if listed else x}, option=orjson.OPT_SERIALIZE_NUMPY)
            yield Item(loadgen.request(body), *right(y))

    def _examples(self) -> Iterator[tuple[Any, str | Sequence[float]]]:
        examples = self.model / "examples.json"
        if examples.exists():
            for example in json.loads(examples.read_text()):
                yield example["x"], example["y"]
            return
        one = _load(self.model / "model.py").one
        for place in range(INPUTS):
            x = image(place, IMAGE_NUMBERS) if self.model.name == "image" else [place]
            yield x, one(x)


def image(place: int, size: int) -> list[float]:
    """So many numbers with four digits each; the higher the place, the brighter."""
    brightness = 0.1 + 0.9 * (place + 1) / INPUTS
    numbers = np.random.default_rng(place).random(size) * brightness
    # by way of integers, so that each is the shortest that names it
    found: list[float] = (np.rint(numbers * 10000).astype(int) / 10000).tolist()
    return found


def right(answer: str | Sequence[float]) -> tuple[int, bytes]:
    """What an answer of a model looks like in a body."""
    return loadgen.contains(f'"{answer}"') if isinstance(answer, str) else loadgen.numbers(answer, TOLERANCE)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "sleep",
            "W1 sleep",
            "a model that takes 5 ms and one input at a time, 4 processes: at most 800 requests/s",
            MODELS / "sleep",
            4,
            batches=False,
            clients=(1, 4, 16, 64),
        ),
        Workload("noop", "W2 no-op", "a model that does nothing, 2 processes", MODELS / "noop", 2, batches=True),
        Workload(
            "digits",
            "W3 digits",
            "a network of three dense layers, 64 numbers in, TensorFlow, 2 processes",
            train.FOLDER / "digits",
            2,
            batches=True,
        ),
        Workload(
            "cnn",
            "W4 small CNN",
            "three convolutions over 32 x 32 x 3 numbers, TensorFlow, 2 processes",
            train.FOLDER / "cnn",
            2,
            batches=True,
        ),
        Workload(
            "image",
            "image, JSON",
            "224 x 224 x 3 numbers in 1 MB of JSON, and their means, 2 processes",
            MODELS / "image",
            2,
            batches=True,
        ),
    )
}


class WorkFiles:
    """Files for the load generator in a folder, each written when it is asked for first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, tuple[Path, int, bytes]] = {}

    def of(self, workload: Workload, listed: bool = False) -> tuple[Path, int, bytes]:
        """The file, the bytes of a body, and the first request."""
        name = f"{workload.name}-listed" if listed else workload.name
        return self.made(name, lambda: list(workload.items(listed)))

    def made(self, name: str, items: Callable[[], list[Item]]) -> tuple[Path, int, bytes]:
        """The same for any items."""
        if name not in self._written:
            found = items()
            file = self._folder / name
            loadgen.write_work(file, found)
            bodies = [len(item.request.partition(b"\r\n\r\n")[2]) for item in found]
            self._written[name] = file, sum(bodies) // len(bodies), found[0].request
        return self._written[name]


def _load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
