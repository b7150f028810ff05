"""From measurements to numbers and tables: medians over the repeats, and ratios to the best peer.

A ratio is taken within each repeat, so that the drift of a machine cancels; above 1 ours is better.  At one client the
latency is compared, for with one the rate is its inverse; at more the rate.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import report
from bench.contender import BARE, NGINX, ROLES
from bench.measurement import Measurement, Session
from bench.workload import WORKLOADS

MIB = 1 << 20
# of the best peer: who is slower than that everywhere is not the one to compare with
REACH = 0.5
PLACES = {NGINX: "behind nginx", BARE: "bare"}


@dataclass(frozen=True)
class Spread:
    """Several values of one quantity."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def text(self, format: str) -> str:
        """The median [lowest–highest]; the median alone where there is one value."""
        if self.lowest == self.highest:
            return format % self.median
        return f"{format % self.median} [{format % self.lowest}–{format % self.highest}]"


@dataclass(frozen=True)
class Cell:
    """All repeats of one server at one door with so many clients."""

    server: str
    door: str
    clients: int
    measurements: tuple[Measurement, ...]

    def spread(self, quantity: Callable[[Measurement], float]) -> Spread:
        return Spread.of([quantity(measurement) for measurement in self.measurements])

    @property
    def rate(self) -> float:
        return self.spread(lambda measurement: measurement.rate).median

    @property
    def goodness(self) -> float:
        """What is compared: more is better."""
        return self.spread(_goodness).median

    @property
    def disturbed(self) -> bool:
        return any(measurement.disturbed for measurement in self.measurements)


def _goodness(measurement: Measurement) -> float:
    if measurement.clients == 1:
        return 1000 / measurement.p50_ms if measurement.p50_ms else 0.0
    return measurement.rate


def cells(measurements: Sequence[Measurement], workload: str) -> list[Cell]:
    """The measurements of a workload, repeats joined."""
    found: dict[tuple[str, str, int], list[Measurement]] = {}
    for measurement in measurements:
        if measurement.workload == workload:
            found.setdefault((measurement.server, measurement.door, measurement.clients), []).append(measurement)
    return [Cell(*key, tuple(joined)) for key, joined in found.items()]


def best(found: Sequence[Cell], door: str, clients: int, ours: Sequence[str]) -> Cell | None:
    """The best peer at a door."""
    peers = [cell for cell in found if (cell.door, cell.clients) == (door, clients) and cell.server not in ours]
    # errors are no answers
    return max(peers, key=lambda cell: cell.goodness, default=None)


def in_reach(measurements: Sequence[Measurement], workload: str, server: str, ours: Sequence[str]) -> bool:
    """Whether a server is ours, or may yet turn out to be the best peer somewhere."""
    found = cells(measurements, workload)
    own = [cell for cell in found if cell.server == server]
    # one that was not measured may be the next time
    if server in ours or not own:
        return True
    tops = [(cell, best(found, cell.door, cell.clients, ours)) for cell in own]
    return any(top is not None and cell.goodness >= REACH * top.goodness for cell, top in tops)


def ratio(own: Cell, other: Cell) -> Spread:
    """How much better ours is, by repeats that both have."""
    theirs = {measurement.repeat: _goodness(measurement) for measurement in other.measurements}
    pairs = [(_goodness(mine), theirs[mine.repeat]) for mine in own.measurements if theirs.get(mine.repeat)]
    return Spread.of([mine / its for mine, its in pairs] or [own.goodness / other.goodness if other.goodness else 0.0])


def summary(measurements: Sequence[Measurement], workloads: Sequence[str], ours: Sequence[str]) -> str:
    """A table: each of ours against the best peer, cell by cell."""
    rows = []
    for workload in workloads:
        found = cells(measurements, workload)
        for own in (cell for cell in found if cell.server in ours):
            row = [WORKLOADS[workload].label, str(own.clients), own.server, _compared(own)]
            for door in (NGINX, BARE):
                other = best(found, door, own.clients, ours)
                row += [other.server, _compared(other), ratio(own, other).text("%.2f")] if other else ["–", "–", "–"]
            rows.append(row)
    head = ["workload", "clients", "server", "requests/s; p50 at one client"]
    for place in PLACES.values():
        head += [f"best peer {place}", "its own", "ratio"]
    return report.table(head, rows)


def _compared(cell: Cell) -> str:
    if cell.clients == 1:
        return cell.spread(lambda measurement: measurement.p50_ms).text("%.2f") + " ms"
    return cell.spread(lambda measurement: measurement.rate).text("%.0f")


def details(measurements: Sequence[Measurement], sessions: Sequence[Session], workload: str) -> str:
    """A table: all servers of one workload, the fastest first."""
    found = cells(measurements, workload)
    counts = sorted({cell.clients for cell in found})
    by_place: dict[tuple[str, str], dict[int, Cell]] = {}
    for cell in found:
        by_place.setdefault((cell.server, cell.door), {})[cell.clients] = cell
    head = [
        "server",
        "",
        *(f"{count}: requests/s" for count in counts),
        *(f"{count}: p50, p99, ms" for count in counts),
    ]
    head += [
        *(f"{count}: CPU, µs" for count in counts),
        "RSS, PSS, MiB",
        "of each process",
        "processes",
        "start, s",
        "errors",
    ]
    rows = []
    order = sorted(by_place.items(), key=lambda item: -max(cell.rate for cell in item[1].values()))
    for (server, door), by_count in order:
        row = [server, PLACES[door]]
        for show in (_rate, _latency, _cpu):
            row += [show(by_count[count]) if count in by_count else "–" for count in counts]
        own = [session for session in sessions if (session.server, session.workload) == (server, workload)]
        rows.append([*row, *_session(own, door), _errors(by_count)])
    return report.table(head, rows)


def _rate(cell: Cell) -> str:
    return cell.spread(lambda measurement: measurement.rate).text("%.0f") + ("†" if cell.disturbed else "")


def _latency(cell: Cell) -> str:
    p50 = cell.spread(lambda measurement: measurement.p50_ms).median
    return f"{p50:.2f}, {cell.spread(lambda measurement: measurement.p99_ms).median:.2f}"


def _cpu(cell: Cell) -> str:
    return f"{cell.spread(lambda measurement: measurement.total_us).median:.0f}"


def _session(sessions: Sequence[Session], door: str) -> list[str]:
    good = [session for session in sessions if not session.failure]
    if not good:
        return ["–", "–", "–", "–"]
    # nginx stands beside a bare peer too, and does nothing
    roles = [role for role in ROLES if door == NGINX or role != "nginx"]
    rss, pss, processes = (
        statistics.median(sum(getattr(session, name).get(role, 0) for role in roles) for session in good)
        for name in ("rss_bytes", "pss_bytes", "processes")
    )
    startup = statistics.median(session.startup_s for session in good)
    each = "; ".join(f"{role} {_each(good, role)}" for role in roles if all(one.processes.get(role) for one in good))
    return [f"{rss / MIB:.0f}, {pss / MIB:.0f}", each, f"{processes:.0f}", f"{startup:.1f}"]


def _each(sessions: Sequence[Session], role: str) -> str:
    """RSS and PSS of one process of a role, on average."""
    rss, pss = (
        statistics.median(getattr(session, name)[role] / session.processes[role] for session in sessions)
        for name in ("rss_bytes", "pss_bytes")
    )
    return f"{rss / MIB:.0f}, {pss / MIB:.0f}"


def _errors(by_count: dict[int, Cell]) -> str:
    counted = sum(measurement.errors for cell in by_count.values() for measurement in cell.measurements)
    refused = sum(measurement.refused for cell in by_count.values() for measurement in cell.measurements)
    return f"{counted}" + (f"; {refused} × 503" if refused else "")
