"""What gRPC costs beside HTTP: the same row by the same client library, tritonclient, over both.

usage: python -m bench.calls [--seconds S] [--repeats N] [--out DIR]

A row of digits, and a row of 150,000 float32 numbers (600 KB) whose three means are asked for; one client, and two,
each a process with one connection.  The ways are measured in turns on one server in each repeat.

The clients share the cores with the server, and tritonclient takes as much of them as the server does: the rate tells
of both, and the CPU of the server alone.

Writes a section of compare.md.

Units: seconds; µs of CPU of the server for an answer.
"""

import argparse
import multiprocessing
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import report
from bench.compare import RESULTS
from bench.ranking import Spread
from bench.server import Server
from bench.work import DIGITS
from bench.workload import WORKLOADS
from load import cost

SECONDS = 3.0
REPEATS = 5
WARM_UP = 50
CLIENTS = (1, 2)
ENVIRON = {"SERVING_MAX_FRAME_BYTES": 2 << 20}
WAYS = ("http", "grpc")
MODELS = {"digits": (DIGITS, "image", (1, 8, 8)), "image": (WORKLOADS["image"].model, "x", (1, 150_000))}


@dataclass(frozen=True)
class Taken:
    """What one load came to."""

    rate: float
    p50_ms: float
    cpu_us: float


@dataclass(frozen=True)
class Job:
    """What one client asks."""

    way: str
    address: str
    model: str
    seconds: float


def ask(job: Job) -> tuple[int, list[float]]:
    """All of a client's life: how many right answers there were, and what those took that were timed."""
    call, expected = _call(job)
    right, times = 0, []
    for _ in range(WARM_UP):
        call()
        right += 1
    end = time.monotonic() + job.seconds
    while (start := time.monotonic()) < end:
        found = call()
        times.append(time.monotonic() - start)
        if not np.allclose(found, expected, rtol=1e-4):
            raise ValueError(f"a wrong answer by {job.way}: {found}")
        right += 1
    return right, times


def _call(job: Job) -> tuple[Callable[[], npt.NDArray[Any]], npt.NDArray[Any]]:
    """A call of the library, and its right answer."""
    from tritonclient import grpc, http

    library: Any = grpc if job.way == "grpc" else http
    _, name, shape = MODELS[job.model]
    row = np.random.default_rng(1).random(shape, np.float32)
    client = library.InferenceServerClient(job.address)

    def call() -> npt.NDArray[Any]:
        tensor = library.InferInput(name, row.shape, "FP32").set_data_from_numpy(row)
        found = client.infer(job.model, [tensor])
        answer: npt.NDArray[Any] = found.as_numpy("probabilities" if job.model == "digits" else "y")
        return answer

    means = row.reshape(1, -1, 3).mean(axis=1) if job.model == "image" else call()
    return call, means


def take(server: Server, way: str, port: int, model: str, clients: int, seconds: float) -> Taken:
    """One load."""
    job = Job(way, f"127.0.0.1:{port}", model, seconds)
    with multiprocessing.get_context("spawn").Pool(clients) as pool:
        # they have imported all that they need
        pool.map(ask, [Job(way, job.address, model, 0.0)] * clients)
        before = cost.read()
        found = pool.map(ask, [job] * clients, chunksize=1)
        after = cost.read()
    answers = sum(right for right, _ in found)
    times = [one for _, own in found for one in own]
    used = sum(cost.spent(before, after, server.processes()).values())
    return Taken(len(times) / seconds, statistics.median(times) * 1000, used / answers * 1e6)


def measure(model: str, seconds: float, repeats: int) -> dict[tuple[str, int], list[Taken]]:
    """By way and clients, on one server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = Server({"MODEL": MODELS[model][0], "GRPC_PORT": port, **ENVIRON}).wait_ready()
    ports = {"http": server.port, "grpc": port}
    found: dict[tuple[str, int], list[Taken]] = {(way, clients): [] for clients in CLIENTS for way in WAYS}
    try:
        for repeat in range(repeats):
            for way, clients in found:
                taken = take(server, way, ports[way], model, clients, seconds)
                found[way, clients].append(taken)
                report.say(f"{model}, {way}, {clients}, repeat {repeat + 1}: {taken}")
    finally:
        server.close()
    return found


def table(found: dict[tuple[str, int], list[Taken]]) -> str:
    """Medians, with the lowest and the highest; ratios are taken within each repeat, so that drift cancels."""
    rows = []
    for (way, clients), taken in found.items():
        others = found["http", clients]
        rows.append(
            [
                way,
                str(clients),
                Spread.of([one.rate for one in taken]).text("%.0f"),
                Spread.of([one.p50_ms for one in taken]).text("%.2f"),
                Spread.of([one.cpu_us for one in taken]).text("%.0f"),
                Spread.of([one.rate / http.rate for one, http in zip(taken, others, strict=True)]).text("%.2f"),
                Spread.of([one.cpu_us / http.cpu_us for one, http in zip(taken, others, strict=True)]).text("%.2f"),
            ]
        )
    head = ["over", "clients", "answers/s", "p50, ms", "server's CPU, µs", "of HTTP's rate", "of HTTP's CPU"]
    return report.table(head, rows)


def main() -> int:
    """Run, write, and print the tables."""
    parser = argparse.ArgumentParser(prog="bench.calls", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"a measurement ({SECONDS:g})")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help=f"of all of it ({REPEATS})")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go (bench/results)")
    arguments = parser.parse_args()
    names = {"digits": "a row of digits, 256 bytes", "image": "a row of 600,000 bytes"}
    parts = [report.machine(), f"{report.repeats(arguments.repeats, arguments.seconds)}: medians [lowest–highest]."]
    for model, told in names.items():
        parts.append(f"### {told}\n\n{table(measure(model, arguments.seconds, arguments.repeats))}")
    text = "\n\n".join(parts)
    report.write(arguments.out / "compare.md", "gRPC", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
