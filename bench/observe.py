"""What it costs to see what the server does: its rate while it counts, and while it does not.

usage: python -m bench.observe [--seconds S] [--out DIR]

The model does nothing (W2), so nothing hides the cost.  One server counts in some tenths of a second and not in others,
off, on, on, off, by the clock (bench/switched.py), under one load without a pause: two servers, or two runs of one, are
further apart by themselves than what is looked for.  The ratio is taken within each four tenths, so that the machine's
moods cancel, and is told as the median with the interval in which it lies with 95 % (by rank: Conover, Practical
Nonparametric Statistics, 3.2).  Beside it stands that of the last two tenths to the first two, which do the same.

Writes a section of compare.md.

Units: seconds; answers a second.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench import arena, counting, report
from bench.compare import RESULTS
from bench.server import Server
from bench.work import ROOT
from bench.workload import WORKLOADS
from load import loadgen

SECONDS = 240.0
# the server has slices for no more
MOST_S = 800.0
WARM_UP = 2.0
CLIENTS = 16
# as bench/switched.py has them
SLICE_S = 0.1
SLICES = 9_000
# off, on, on, off
TURN = 4


def environ(folder: Path) -> dict[str, str]:
    """Of the server that is switched; the folder gets its settings and its numbers."""
    settings = folder / "uwsgi.ini"
    shipped = (ROOT / "uwsgi.ini").read_text()
    settings.write_text(shipped.replace("module = wsgi:application", "module = bench.switched:application"))
    return {"INI": str(settings), "SWITCHED": str(folder / "ended")}


def measure(seconds: float) -> npt.NDArray[np.int64]:
    """How many were answered in each slice of each turn: (turns, TURN)."""
    workload = WORKLOADS["noop"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = folder / "work"
        loadgen.write_work(work, list(workload.items()))
        server = Server({"MODEL": workload.model, **environ(folder)})
        try:
            server.wait_ready()
            report.say(f"{seconds:g} s of load")
            run = loadgen.run(server.port, CLIENTS, seconds, WARM_UP, work, lambda: read(folder / "ended"))
        finally:
            server.close()
    counts = run.counts
    if counts.errors or run.before is None or run.after is None:
        raise ValueError(f"{counts.errors} requests failed: {counts.first_wrong}")
    return turns(run.before, run.after)


def read(ended: Path) -> npt.NDArray[np.int64]:
    """How many ended in each slice so far, in all workers."""
    found: npt.NDArray[np.int64] = np.fromfile(ended, np.int64).reshape(-1, SLICES).sum(0)
    return found


def turns(before: npt.NDArray[np.int64], after: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Those that began and ended between two looks: (turns, TURN)."""
    first, last = np.flatnonzero(before)[-1] // TURN + 1, np.flatnonzero(after)[-1] // TURN
    return after[first * TURN : last * TURN].reshape(-1, TURN)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """In which the median lies with 95 %; of fewer than six, the lowest and the highest."""
    ordered, count = sorted(values), len(values)
    # how many of them lie below the median is binomial; each end is to be missed by one in 40 at the most
    place, ways = 0, 1
    while (ways := ways + math.comb(count, place + 1)) * 40 <= 2**count:
        place += 1
    return ordered[place], ordered[-1 - place]


def table(found: npt.NDArray[np.int64]) -> str:
    """Rates, and the ratios within turns."""
    off, on = found[:, [0, 3]].sum(1), found[:, [1, 2]].sum(1)
    rows = []
    for name, some, others in (
        ("counted, to not counted", on, off),
        ("last two tenths, to the first two", found[:, 2:].sum(1), found[:, :2].sum(1)),
    ):
        ratios = (some / others).tolist()
        low, high = interval(ratios)
        rates = [f"{statistics.median(ends) / (2 * SLICE_S):.0f}" for ends in (some.tolist(), others.tolist())]
        rows.append([name, *rates, f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"])
    return report.table(["", "answers/s", "to", "ratio"], rows)


def main() -> int:
    """Run, write, and print the table."""
    parser = argparse.ArgumentParser(prog="bench.observe", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"of load ({SECONDS:g})")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go (bench/results)")
    arguments = parser.parse_args()
    if not 1 <= arguments.seconds <= MOST_S:
        parser.error(f"--seconds {arguments.seconds:g}: expected 1 to {MOST_S:g}")
    with arena.entered():
        found = measure(arguments.seconds)
    text = "\n\n".join(
        [
            report.machine(),
            f"{len(found)} turns of {TURN * SLICE_S:g} s, {CLIENTS} clients, a model that does nothing: medians, and"
            " those of the ratios (with their 95 % intervals).",
            table(found),
            f"Counting by itself takes {counting.took_us():.1f} µs for an answer.",
        ]
    )
    report.write(arguments.out / "compare.md", "Being seen", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
