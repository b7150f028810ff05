"""What it costs to see what the server does: its rate with and without, in turns.

usage: python -m bench.observe [--seconds S] [--repeats N] [--out DIR]

The model does nothing (W2), so nothing hides the cost.  All servers run side by side, and one of them is asked at a
time; each repeat asks them all, in an order that turns.  One of them runs twice: so far two servers are apart that do
the same.  Ratios are taken within each repeat, so that the machine's
moods cancel, and are told as their median with the interval in which it lies with 95 % (by rank: Conover, Practical
Nonparametric Statistics, 3.2).

Writes a section of compare.md.

Units: seconds; µs of CPU of the server for an answer.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import arena, counting, report
from bench.compare import RESULTS
from bench.ranking import Spread
from bench.server import Server
from bench.work import ROOT
from bench.workload import WORKLOADS
from load import cost, loadgen

SECONDS = 0.5
WARM_UP = 0.3
REPEATS = 150
CLIENTS = 16
SHIPPED = "as shipped"
UNCOUNTED = "without metrics"
AGAIN = "without, once more"


@dataclass(frozen=True)
class Taken:
    """What one load came to."""

    rate: float
    cpu_us: float


def ways(folder: Path) -> dict[str, dict[str, str]]:
    """By name, the environment of each server; the others are compared with the first."""
    uncounted = folder / "uwsgi.ini"
    shipped = (ROOT / "uwsgi.ini").read_text()
    uncounted.write_text(shipped.replace("module = wsgi:application", "module = bench.uncounted:application"))
    return {UNCOUNTED: {"INI": str(uncounted)}, AGAIN: {"INI": str(uncounted)}, SHIPPED: {}}


def take(server: Server, work: Path, seconds: float) -> Taken:
    """One load."""
    run = loadgen.run(server.port, CLIENTS, seconds, WARM_UP, work, cost.read)
    counts = run.counts
    if counts.errors or run.before is None or run.after is None:
        raise ValueError(f"{counts.errors} requests failed: {counts.first_wrong}")
    used = sum(cost.spent(run.before, run.after, server.processes()).values())
    return Taken(counts.rate, used / counts.right * 1e6)


def measure(environs: Mapping[str, Mapping[str, str]], seconds: float, repeats: int) -> dict[str, list[Taken]]:
    """All of them, in turns."""
    workload = WORKLOADS["noop"]
    found: dict[str, list[Taken]] = {name: [] for name in environs}
    with ExitStack() as ends, tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        loadgen.write_work(work, list(workload.items()))
        servers = {}
        for name, environ in environs.items():
            server = Server({"MODEL": workload.model, **environ})
            ends.callback(server.close)
            servers[name] = server.wait_ready()
        names = list(servers)
        for repeat in range(repeats):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                found[name].append(take(servers[name], work, seconds))
                report.say(f"repeat {repeat + 1} of {repeats}, {name}: {found[name][-1]}")
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """In which the median lies with 95 %; of fewer than six, the lowest and the highest."""
    ordered, count = sorted(values), len(values)
    # how many of them lie below the median is binomial
    place, below = 0, 0.5**count
    while (below := below + math.comb(count, place + 1) * 0.5**count) <= 0.025:
        place += 1
    return ordered[place], ordered[-1 - place]


def table(found: Mapping[str, Sequence[Taken]]) -> str:
    """Medians, and ratios to the first of them."""
    rows = []
    base = next(iter(found.values()))
    for name, taken in found.items():
        row = [
            name,
            Spread.of([one.rate for one in taken]).text("%.0f"),
            Spread.of([one.cpu_us for one in taken]).text("%.0f"),
        ]
        for pairs in (
            [one.rate / other.rate for one, other in zip(taken, base, strict=True)],
            [one.cpu_us / other.cpu_us for one, other in zip(taken, base, strict=True)],
        ):
            low, high = interval(pairs)
            row.append(f"{statistics.median(pairs):.3f} ({low:.3f} to {high:.3f})")
        rows.append(row)
    return report.table(["", "answers/s", "server's CPU, µs", "of the first's rate", "of its CPU"], rows)


def main() -> int:
    """Run, write, and print the table."""
    parser = argparse.ArgumentParser(prog="bench.observe", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"a measurement ({SECONDS:g})")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help=f"of all of it ({REPEATS})")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go (bench/results)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, arena.entered():
        found = measure(ways(Path(folder)), arguments.seconds, arguments.repeats)
    text = "\n\n".join(
        [
            report.machine(),
            f"{report.repeats(arguments.repeats, arguments.seconds)}, {CLIENTS} clients, a model that does nothing:"
            " medians [lowest–highest], and medians of the ratios (with their 95 % intervals).",
            table(found),
            f"Counting by itself takes {counting.took_us():.1f} µs for an answer.",
        ]
    )
    report.write(arguments.out / "compare.md", "Being seen", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
