"""Ten times what a server can do, for a minute: what it still does, how long that takes, and how soon it is well again.

usage: python -m bench.overload [--seconds N] [--times X] [--out FILE]

For each case, one server of examples/fancy with four mules: the peak is what PEAK_CONNECTIONS clients get that ask
without a pause; then CONNECTIONS clients ask at TIMES as much, whatever they are answered; then one asks until it is
answered as before.  The exit status is 1 unless with the shipped deadline the goodput stays above 90 % of the peak, 99
of 100 accepted requests make their deadline, and 99 of 100 refusals take at most REFUSAL_MS; and in all cases no answer
is wrong, lost or hung, the memory stays flat, and it recovers within a second.

Units: seconds.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.load import Load, ask
from bench.server import Server
from bench.work import FANCY, Fancy

MULES = 4
PEAK_CONNECTIONS = 32
PEAK_S = 10.0
CONNECTIONS = 400
# how long after the end it may still be unwell, before that is called a failure to recover
RECOVERY_S = 10.0
MIB = 1 << 20
REFUSAL_MS = 20
# a median of the second half may be above that of the first quarter by so much
MEMORY_MARGIN = 0.05


@dataclass(frozen=True)
class Case:
    """One server, and what it has to do with its overload."""

    name: str
    deadline_ms: int
    # whether goodput and latencies have to be as promised
    timed: bool = True


CASES = (
    # all threads wait long before anything is late
    Case("shipped deadline", 5000),
    # what the threads wait for takes longer than the deadline leaves, so that the app refuses, not nginx: that costs it
    # most of a core, which the client and nginx want as well
    Case("short deadline", 100, timed=False),
)


@dataclass
class Result:
    case: Case
    peak: float
    offered: float
    goodput: float
    refused: float
    p99_ms: float
    refusal_p99_ms: float
    late: int
    wrong: int
    lost: int
    hung: int
    memory_mib: tuple[float, float]
    recovery_s: float

    def verdict(self) -> list[str]:
        """What is not as promised."""
        found, timed = [], self.case.timed
        if timed and self.goodput < 0.9 * self.peak:
            found.append(f"the goodput is {self.goodput / self.peak:.0%} of the peak")
        if timed and self.p99_ms > self.case.deadline_ms:
            found.append(f"99 of 100 took up to {self.p99_ms:.0f} ms")
        if timed and self.refusal_p99_ms > REFUSAL_MS:
            found.append(f"99 of 100 refusals took up to {self.refusal_p99_ms:.0f} ms")
        if self.wrong or self.lost or self.hung:
            found.append(f"{self.wrong} wrong, {self.lost} lost, {self.hung} hung")
        if self.memory_mib[1] > self.memory_mib[0] * (1 + MEMORY_MARGIN):
            found.append("the memory grows")
        if self.recovery_s > 1:
            found.append(f"it recovers after {self.recovery_s:.1f} s")
        return found


def play(case: Case, seconds: float, times: float) -> Result:
    """One case."""
    server = Server({"MODEL": FANCY, "MULES": MULES, "SERVING_DEADLINE_MS": case.deadline_ms})
    try:
        server.wait_ready()
        deadline_s = case.deadline_ms / 1000
        peak_load = Load(
            server.port, Fancy("peak"), connections=PEAK_CONNECTIONS, rate=None, deadline_s=deadline_s, name="peak"
        )
        peak_load.start()
        time.sleep(PEAK_S)
        peak = peak_load.stop().right / PEAK_S
        report.say(f"{case.name}: {peak:.0f} requests/s at the most; {seconds:.0f} s at {times * peak:.0f}")
        load = Load(
            server.port,
            Fancy("overload"),
            connections=CONNECTIONS,
            rate=times * peak,
            deadline_s=deadline_s,
            name="load",
            refusals={"503", "504"},
        ).start()
        memory, began = [], time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(1)
            memory.append(rss(server))
        took_s = time.monotonic() - began
        tally = load.stop()
        recovery_s = recover(server, deadline_s)
        accepted_s, refused_s = durations(server.run_dir / "access.log")
        server.stop()
    finally:
        server.close()
    late = tally.refused["504"]
    quarter = max(1, len(memory) // 4)
    return Result(
        case,
        peak,
        tally.sent / took_s,
        tally.right / took_s,
        tally.refused["503"] / took_s,
        p99(accepted_s) * 1000,
        p99(refused_s) * 1000,
        late,
        tally.wrong,
        tally.lost,
        tally.hung,
        (statistics.median(memory[:quarter]) / MIB, statistics.median(memory[-quarter:]) / MIB),
        recovery_s,
    )


def durations(log: Path) -> tuple[list[float], list[float]]:
    """How long nginx says that the accepted and the refused requests of the overload took.

    The client, which shares the cores, is late itself.
    """
    accepted: list[float] = []
    refused: list[float] = []
    for line in map(json.loads, log.read_text().splitlines()):
        if line["request_id"].startswith("load-"):
            (refused if line["status"] == 503 else accepted).append(line["total_s"])
    return accepted, refused


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)] if seconds else 0.0


def rss(server: Server) -> int:
    """Proportional set size of all processes, so that what they share counts once."""
    total = 0
    for pid in server.processes():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def recover(server: Server, deadline_s: float) -> float:
    """How long after the end of the load the last request was refused or slow."""
    began = time.monotonic()
    last_bad = began
    number = 0
    while time.monotonic() - began < RECOVERY_S and time.monotonic() - last_bad < 2:
        number += 1
        sent = time.monotonic()
        answer = ask(server.port, Fancy("after").body(number), f"after-{number}", deadline_s + 3)
        if answer.status != 200 or time.monotonic() - sent > min(0.1, deadline_s):
            last_bad = time.monotonic()
    return last_bad - began


def render(results: Sequence[Result]) -> str:
    head = [
        "case",
        "deadline, ms",
        "peak, /s",
        "asked, /s",
        "goodput, /s",
        "of the peak",
        "refused, /s",
        "p99 of the accepted, ms",
        "p99 of the refused, ms",
        "at their deadline",
        "wrong",
        "lost",
        "hung",
        "memory, MiB, first and last quarter",
        "recovered after, s",
    ]
    rows = [
        [
            result.case.name,
            str(result.case.deadline_ms),
            f"{result.peak:.0f}",
            f"{result.offered:.0f}",
            f"{result.goodput:.0f}",
            f"{result.goodput / result.peak:.0%}",
            f"{result.refused:.0f}",
            f"{result.p99_ms:.0f}",
            f"{result.refusal_p99_ms:.0f}",
            str(result.late),
            str(result.wrong),
            str(result.lost),
            str(result.hung),
            f"{result.memory_mib[0]:.0f}, {result.memory_mib[1]:.0f}",
            f"{result.recovery_s:.2f}",
        ]
        for result in results
    ]
    return report.table(head, rows)


def main() -> int:
    """Run, print the report, and say whether all is well."""
    parser = argparse.ArgumentParser(prog="bench.overload", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each overload (60)")
    parser.add_argument("--times", type=float, default=10, help="what the server can do (10)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report into this Markdown file too")
    arguments = parser.parse_args()
    results = [play(case, arguments.seconds, arguments.times) for case in CASES]
    faults = [f"- {result.case.name}: {fault}" for result in results for fault in result.verdict()]
    text = "\n\n".join(
        [
            report.machine(),
            f"examples/fancy (5 ms a row, one at a time) with {MULES} mules; {CONNECTIONS} clients on the same machine"
            f" ask {arguments.times:g} times as often as it can answer, as far as they get to it.",
            render(results),
            *(["\n".join(faults)] if faults else []),
        ]
    )
    print(text)
    if arguments.out:
        report.write(arguments.out, "Overload", text)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
