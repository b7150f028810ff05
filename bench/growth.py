"""How ours grows: with mules, with clients, with bytes; and the batches that form.

usage: python -m bench.growth [--seconds S] [--repeats N] [--tries N] [--mules NUMBERS] [--clients NUMBERS]
                              [--batches NUMBERS] [--bodies BYTES] [--peers NAMES] [--out DIR]

mules    the workload sleep, 16 clients for each mule: the rate should be 200/s for each
clients  the workload noop with two mules, from one client to many more than there are threads; who is refused (503)
         asks again when Retry-After says so
batches  the workload digits with two mules: how many rows its batches had
bodies   the workload image with bodies of many sizes, for ours and some peers; one client, for the cost of one request,
         and 16.  max_frame_bytes is raised for it, so that the largest fit

Writes growth.json, a section of compare.md, and plots.  The exit status is 1 where ours gave a wrong answer, and 130
after Ctrl-C, when what was measured is written.

Units: seconds, bytes.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import orjson

import nginx
from bench import arena, measurement, plot, ranking, report
from bench.compare import (
    INTERRUPTED,
    OURS,
    add_options,
    check_tools,
    contenders_of,
    names,
    numbers,
    train_networks,
)
from bench.contender import NGINX, Contender, Muleteer, Running
from bench.measurement import Load, Measurement
from bench.peer import PEERS
from bench.plot import Panel
from bench.report import say
from bench.server import NotInTime
from bench.workload import MODELS, WORKLOADS, WorkFiles, Workload, image, right
from load import loadgen
from load.loadgen import Item

SECONDS = 3.0
REPEATS = 2
MULES = (1, 2, 4, 8)
CLIENTS_OF_A_MULE = 16
CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
BATCH_CLIENTS = (1, 4, 16, 64, 128)
BODIES = (1_000, 8_000, 64_000, 256_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000)
BODY_CLIENTS = (1, 16)
BODY_PEERS = ["mosec", "gunicorn"]
# of the largest body, decoded
BODY_ENVIRON = {"SERVING_MAX_FRAME_BYTES": 8 << 20}
# how many inputs of one size
BODY_INPUTS = 10
MIB = 1 << 20


@dataclass
class Growth:
    """A whole run."""

    machine: str
    settings: dict[str, Any]
    mules: list[Measurement] = field(default_factory=list)
    clients: list[Measurement] = field(default_factory=list)
    bodies: list[Measurement] = field(default_factory=list)
    # by clients: how many batches had so many rows
    batches: dict[int, dict[int, int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """growth.json, a section of compare.md, and the plots."""
        folder.mkdir(parents=True, exist_ok=True)
        told = asdict(self)
        for name in ("mules", "clients", "bodies"):
            told[name] = [found.told() for found in getattr(self, name)]
        (folder / "growth.json").write_text(json.dumps(told, indent=1) + "\n")
        report.write(folder / "compare.md", "Growth", self.render())
        self._plot_growth(folder / "growth.png")
        self._plot_bodies(folder / "bodies.png")

    def render(self) -> str:
        """The tables."""
        parts = [
            self.machine,
            f"{report.repeats(self.settings['repeats'], self.settings['seconds'])}: the medians.",
        ]
        if self.mules:
            rows = [
                [str(count), f"{rate:.0f}", f"{rate / count / 200:.2f}", f"{cpu:.0f}"]
                for count, (rate, _, cpu, _) in _by(self.mules, "processes").items()
            ]
            head = ["mules", "requests/s", "of 200/s for each", "CPU, µs"]
            parts += ["### mules: a model that takes 5 ms", report.table(head, rows)]
        if self.clients:
            rows = [
                [str(count), f"{rate:.0f}", f"{p50:.2f}, {p99:.2f}", f"{cpu:.0f}", f"{refused:.0f}", f"{errors}"]
                for count, (rate, (p50, p99), cpu, (refused, errors)) in _by(self.clients, "clients").items()
            ]
            head = ["clients", "right, requests/s", "p50, p99 of them, ms", "CPU, µs", "503/s", "errors"]
            parts += ["### clients: a model that does nothing, two mules", report.table(head, rows)]
        if self.batches:
            rows = [
                [str(count), f"{_mean(found):.1f}", f"{max(found)}", _most(found)]
                for count, found in self.batches.items()
            ]
            head = ["clients", "rows of a batch, mean", "most", "the commonest"]
            parts += ["### batches: the digits network, two mules", report.table(head, rows)]
        if self.mules or self.clients or self.batches:
            parts.append("![growth](growth.png)")
        if self.bodies:
            parts += ["### bodies: numbers in JSON, and their means", self._bodies_table(), "![bodies](bodies.png)"]
        return "\n\n".join(parts + self.failures)

    def _bodies_table(self) -> str:
        found: dict[tuple[int, str], list[Measurement]] = {}
        for measured in self.bodies:
            found.setdefault((measured.body_bytes, measured.server), []).append(measured)
        rows = []
        for (size, server), own in sorted(found.items()):
            row = [f"{size / 1000:,.0f}", server]
            for clients in BODY_CLIENTS:
                some = [measured for measured in own if measured.clients == clients]
                rate, (p50, _), cpu, (_, errors) = _medians(some) if some else (0.0, (0.0, 0.0), 0.0, (0.0, 0))
                row += [f"{p50:.2f}" if clients == 1 else f"{rate:.0f}", f"{cpu:.0f}", f"{errors}"]
            rows.append(row)
        head = ["body, kB", "server", "1: p50, ms", "1: CPU, µs", "1: errors"]
        return report.table([*head, "16: requests/s", "16: CPU, µs", "16: errors"], rows)

    def _plot_growth(self, file: Path) -> None:
        panels = []
        if self.mules:
            measured = [(float(count), rate) for count, (rate, _, _, _) in _by(self.mules, "processes").items()]
            ideal = [(count, 200 * count) for count, _ in measured]
            panels.append(
                Panel(
                    "mules", "right answers a second (W1)", {"W1 sleep": measured, "200/s for each": ideal}, even=True
                )
            )
        if self.clients:
            by = _by(self.clients, "clients")
            rates = {
                "W2 no-op: right": [(float(count), rate) for count, (rate, _, _, _) in by.items()],
                "W2 no-op: refused (503)": [(float(count), refused) for count, (_, _, _, (refused, _)) in by.items()],
            }
            costs = {"W2 no-op: right": [(float(count), cpu) for count, (_, _, cpu, _) in by.items()]}
            panels += [
                Panel("clients", "answers a second (W2)", rates),
                Panel("clients", "CPU for a right answer, µs (W2)", costs),
            ]
        if self.batches:
            lines = {
                f"{clients} client{'s' if clients > 1 else ''}": [
                    (float(rows), share) for rows, share in _shares(found)
                ]
                for clients, found in self.batches.items()
            }
            panels.append(Panel("rows of a batch", "share of the rows in batches of at most so many (W3)", lines))
        if panels:
            plot.against(panels, "How Muleteer grows", ["W1 sleep", "W2 no-op: right"], file)

    def _plot_bodies(self, file: Path) -> None:
        panels = []
        for clients in BODY_CLIENTS:
            some = [measured for measured in self.bodies if measured.clients == clients]
            lines: dict[str, dict[str, list[tuple[float, float]]]] = {"cpu": {}, "p50": {}, "bytes": {}}
            for server in dict.fromkeys(measured.server for measured in some):
                own = [measured for measured in some if measured.server == server and measured.right]
                by = _by(own, "body_bytes")
                lines["cpu"][server] = [(size / 1000, cpu / 1000) for size, (_, _, cpu, _) in by.items()]
                lines["bytes"][server] = [(size / 1000, size * rate / 1e6) for size, (rate, _, _, _) in by.items()]
                lines["p50"][server] = [(size / 1000, p50) for size, (_, (p50, _), _, _) in by.items()]
            who = f"{clients} client{'s' if clients > 1 else ''}"
            panels += [
                Panel("body, kB", f"CPU for a request, ms ({who})", lines["cpu"], even=True),
                Panel("body, kB", f"median latency, ms ({who})", lines["p50"], even=True)
                if clients == 1
                else Panel("body, kB", f"bodies in MB a second ({who})", lines["bytes"]),
            ]
        if self.bodies:
            plot.against(panels, "Cost against the size of the body, all behind nginx", [OURS], file)


Medians = tuple[float, tuple[float, float], float, tuple[float, int]]


def _by(found: Sequence[Measurement], axis: str) -> dict[int, Medians]:
    """By the values of an axis: rate, (p50, p99), CPU, (refused a second, errors)."""
    joined: dict[int, list[Measurement]] = {}
    for measured in found:
        joined.setdefault(getattr(measured, axis), []).append(measured)
    return {value: _medians(own) for value, own in sorted(joined.items())}


def _medians(found: Sequence[Measurement]) -> Medians:
    rate, p50, p99, cpu, refused = (
        ranking.Spread.of(values).median
        for values in zip(
            *((one.rate, one.p50_ms, one.p99_ms, one.total_us, one.refused / (one.seconds or 1)) for one in found),
            strict=True,
        )
    )
    return rate, (p50, p99), cpu, (refused, sum(one.errors for one in found))


def _shares(batches: Mapping[int, int]) -> list[tuple[int, float]]:
    """By the rows of a batch, the share of all rows that came in batches of at most so many."""
    total = sum(rows * count for rows, count in batches.items())
    sums = accumulate(rows * batches[rows] for rows in sorted(batches))
    return [(rows, found / total) for rows, found in zip(sorted(batches), sums, strict=True)]


def _mean(batches: Mapping[int, int]) -> float:
    return sum(rows * count for rows, count in batches.items()) / sum(batches.values())


def _most(batches: Mapping[int, int]) -> str:
    total = sum(batches.values())
    commonest = Counter(batches).most_common(3)
    return ", ".join(f"{rows} ({count / total:.0%})" for rows, count in commonest)


class Measuring:
    """Servers of different sizes, one after the other."""

    def __init__(self, growth: Growth, seconds: float, tries: int, works: WorkFiles) -> None:
        self._growth = growth
        self._seconds = seconds
        self._tries = tries
        self._works = works

    def mules(self, counts: Sequence[int], repeat: int) -> None:
        for count in counts:
            workload = replace(WORKLOADS["sleep"], processes=count)
            # enough clients, but no more than there are threads
            self._growth.mules += self._measure(workload, [min(128, CLIENTS_OF_A_MULE * count)], repeat)

    def clients(self, counts: Sequence[int], repeat: int) -> None:
        if not counts:
            return
        self._growth.clients += self._measure(WORKLOADS["noop"], counts, repeat)

    def batches(self, counts: Sequence[int]) -> None:
        if not counts:
            return
        workload = replace(WORKLOADS["digits"], model=MODELS / "counted")
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            file, body_bytes, request = self._works.of(WORKLOADS["digits"])
            load = Load("digits", workload.processes, file, body_bytes, self._seconds)
            running = Muleteer().start(workload, request, {"BATCHES": folder})
            try:
                measurement.warm_up(running, NGINX, load, min(2.0, self._seconds))
                for clients in counts:
                    measurement.settle()
                    before = _counted(Path(folder))
                    say(f"digits, batches, {clients} client{'s' if clients > 1 else ''}")
                    loadgen.run(running.ports[NGINX], clients, self._seconds, 0.0, file, lambda: None)
                    self._growth.batches[clients] = dict(sorted((_counted(Path(folder)) - before).items()))
            finally:
                running.stop()

    def bodies(self, contenders: Sequence[Contender], sizes: Sequence[int], repeat: int) -> None:
        if not sizes:
            return
        workload = WORKLOADS["image"]
        for contender in contenders:
            _, _, request = self._works.made("body-1000", lambda: items_of(1000))
            try:
                running = contender.start(workload, request, BODY_ENVIRON)
            except NotInTime as error:
                if contender.ours:
                    raise
                self._growth.failures.append(f"{contender.name} was not measured: {str(error).splitlines()[0]}")
                say(f"NOT MEASURED: {contender.name}: {error}")
                continue
            try:
                for size in sizes:
                    file, body_bytes, _ = self._works.made(f"body-{size}", lambda size=size: items_of(size))  # type: ignore[misc]
                    load = Load("image", workload.processes, file, body_bytes, self._seconds, self._tries)
                    self._growth.bodies += self._take(running, contender.name, load, BODY_CLIENTS, repeat)
            finally:
                running.stop()

    def _measure(self, workload: Workload, clients: Sequence[int], repeat: int) -> list[Measurement]:
        file, body_bytes, request = self._works.of(workload)
        load = Load(workload.name, workload.processes, file, body_bytes, self._seconds, self._tries)
        running = Muleteer().start(workload, request, {})
        try:
            return self._take(running, OURS, load, clients, repeat)
        finally:
            running.stop()

    def _take(
        self, running: Running, server: str, load: Load, clients: Sequence[int], repeat: int
    ) -> list[Measurement]:
        measurement.warm_up(running, NGINX, load, min(2.0, self._seconds))
        return [
            measurement.take(
                running, server, NGINX, load, count, repeat, lambda found: say(f"{found}, {found.processes} processes")
            )
            for count in clients
        ]


def items_of(size: int) -> list[Item]:
    """Requests whose bodies have about so many bytes, and their answers."""
    # a number with four digits after the point, of which the last is seldom a zero, and the comma
    numbers = max(3, int(size / 6.889) // 3 * 3)
    found = []
    for place in range(BODY_INPUTS):
        x = image(place * 5, numbers)
        means = np.asarray(x, np.float32).reshape(-1, 3).mean(axis=0).tolist()
        found.append(Item(loadgen.request(orjson.dumps({"x": x})), *right(means)))
    return found


def _counted(folder: Path) -> "Counter[int]":
    """How many batches had so many rows, by all processes together."""
    found: Counter[int] = Counter()
    for file in folder.iterdir():
        counts = np.fromfile(file, np.uint64)
        found.update({int(rows): int(counts[rows]) for rows in np.flatnonzero(counts)})
    return found


def main() -> int:
    """Run, write, and print the tables."""
    parser = argparse.ArgumentParser(prog="bench.growth", description=(__doc__ or "").partition("\n")[0])
    add_options(parser, SECONDS, REPEATS)
    for name, of, values in (
        ("mules", "mules", MULES),
        ("clients", "clients", CLIENTS),
        ("batches", "clients whose batches are counted", BATCH_CLIENTS),
        ("bodies", "bytes of a body", BODIES),
    ):
        told = f"{of} ({','.join(map(str, values))}); none: ''"
        parser.add_argument(f"--{name}", type=numbers, default=list(values), metavar="NUMBERS", help=told)
    parser.add_argument(
        "--peers",
        type=names(list(PEERS)),
        default=BODY_PEERS,
        metavar="NAMES",
        help=f"beside ours, for the bodies ({','.join(BODY_PEERS)}); none: ''",
    )
    arguments = parser.parse_args()
    try:
        check_tools()
    except nginx.StartError as error:
        parser.error(str(error))
    try:
        with arena.entered(), tempfile.TemporaryDirectory(prefix="bench-work-") as folder:
            contenders = contenders_of([OURS, *arguments.peers], {}, arena.isolate())
            if arguments.batches:
                train_networks(["digits"])
            growth = Growth(report.machine(), {"seconds": arguments.seconds, "repeats": arguments.repeats})
            measuring = Measuring(growth, arguments.seconds, arguments.tries, WorkFiles(Path(folder)))
            try:
                for repeat in range(arguments.repeats):
                    say(f"repeat {repeat + 1} of {arguments.repeats}")
                    measuring.mules(arguments.mules, repeat)
                    measuring.clients(arguments.clients, repeat)
                    if not repeat:
                        measuring.batches(arguments.batches)
                    measuring.bodies(contenders, arguments.bodies, repeat)
            except KeyboardInterrupt:
                growth.write(arguments.out)
                say(f"stopped; what was measured is in {arguments.out}")
                raise
    except KeyboardInterrupt:
        return INTERRUPTED
    growth.write(arguments.out)
    print(growth.render())
    say(f"all numbers, tables and plots are in {arguments.out}")
    measured = [*growth.mules, *growth.clients, *growth.bodies]
    return 1 if any(found.errors for found in measured if found.server == OURS) else 0


if __name__ == "__main__":
    sys.exit(main())
