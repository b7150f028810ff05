"""load/loadgen.c from Python: compiled on the spot, fed with work, and read.

Units: seconds, but for what ends in _ms.
"""

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "load" / "loadgen.c"
PROGRAM = ROOT / "build" / "loadgen"
# what is right of an answer: bytes that its body has, numbers, or all of its body
CONTAINS, NUMBERS, EQUALS = 0, 1, 2

# of one request, as SAMPLES has it
SAMPLE = np.dtype([(name, "<u4") for name in ("due_us", "took_us", "status", "queue_us", "predict_us")])
Samples = npt.NDArray[np.void]

T = TypeVar("T")


class NoCompiler(Exception):
    """The program is not there and cannot be made, in one sentence."""


class Item(NamedTuple):
    """One request, and what its answer has to be."""

    request: bytes
    kind: int
    right: bytes


@dataclass(frozen=True)
class Counts:
    """What came of one measurement; times are of right answers."""

    seconds: float
    right: int
    refused: int
    wrong: int
    cut: int
    failed: int
    stuck: int
    reopened: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    # of the load generator
    cpu_s: float
    first_wrong: str
    # of an open loop: written too long after they fell due
    late: int = 0

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.right / self.seconds if self.seconds > 0 else 0.0

    @property
    def errors(self) -> int:
        return self.wrong + self.cut + self.failed + self.stuck


@dataclass(frozen=True)
class Run(Generic[T]):
    """A measurement, and what was looked at when it began and when it ended."""

    counts: Counts
    pid: int
    before: T | None
    after: T | None


def request(
    body: bytes,
    path: str = "/predict",
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A whole POST; headers: instead of the Content-Type."""
    told = {"Content-Type": content_type} if headers is None else headers
    lines = [f"POST {path} HTTP/1.1", "Host: bench", *(f"{name}: {value}" for name, value in told.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def contains(text: str) -> tuple[int, bytes]:
    """Right is a body that has this text."""
    return CONTAINS, text.encode()


def numbers(values: Sequence[float], tolerance: float) -> tuple[int, bytes]:
    """Right is a body whose numbers are these, in this order."""
    return NUMBERS, struct.pack(f"<{len(values) + 1}d", tolerance, *values)


def equals(body: bytes) -> tuple[int, bytes]:
    """Right is this body."""
    return EQUALS, body


def write_work(file: Path, items: Sequence[Item]) -> None:
    """The file that the program reads."""
    with file.open("wb") as out:
        out.write(struct.pack("<I", len(items)))
        for item in items:
            out.write(struct.pack("<I", len(item.request)) + item.request)
            out.write(struct.pack("<II", item.kind, len(item.right)) + item.right)


def compiled(source: Path = SOURCE, program: Path = PROGRAM, options: Sequence[str] = ()) -> Path:
    """The program, compiled unless it is newer than its source, or there is no compiler, as in the image."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not program.exists() and compiler is None:
        raise NoCompiler(f"a C compiler is missing, for {source.name}: apt-get install gcc libc6-dev")
    if compiler and (not program.exists() or program.stat().st_mtime < source.stat().st_mtime):
        # two may do this at the same time
        unfinished = program.with_name(f"{program.name}.{os.getpid()}")
        command = [compiler, "-O2", "-Wall", "-Wextra", *options, "-o", str(unfinished), str(source), "-lm"]
        try:
            program.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoCompiler(f"{source.name} cannot be compiled into {program.parent}: {error}") from error
        unfinished.rename(program)
    return program


def run(
    port: int,
    clients: int,
    seconds: float,
    warm_up: float,
    work: Path,
    look: Callable[[], T],
    rate: float = 0.0,
    seed: int = 1,
    samples: Path | None = None,
) -> Run[T]:
    """Load a server.  look is called when the warm-up is over, and again at the end.

    rate: of an open loop, requests a second; 0: a closed loop.  samples: a file for all that was counted.
    """
    arguments = ["127.0.0.1", str(port), str(clients), str(seconds), str(warm_up), str(work), str(rate), str(seed)]
    command = [str(compiled()), *arguments, *([str(samples)] if samples else [])]
    before = after = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line == "begin\n":
                before = look()
            elif line == "end\n":
                after = look()
        told = process.stdout.read()
    if process.returncode:
        raise ValueError(f"loadgen ended with {process.returncode}: {''.join(said)}")
    found = json.loads(told)
    del found["connections"]
    return Run(Counts(**found), process.pid, before, after)


def read_samples(file: Path) -> Samples:
    """What a run has written, a row for each request."""
    return np.fromfile(file, dtype=SAMPLE)
