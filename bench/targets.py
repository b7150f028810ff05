"""What ours is held to, and whether a run of bench.compare shows it.

Units: as the texts say.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench import ranking, report
from bench.contender import NGINX
from bench.measurement import Measurement, Session
from bench.ranking import Cell, Spread
from bench.workload import WORKLOADS

# of the best peer behind the same nginx, at more than one client; 1 elsewhere
LEAST_RATIO = {"cnn": 2.0, "image": 1.5}
# of what four processes of 5 ms can do
SLEEP_CLIENTS, LEAST_SLEEP_RATE = 16, 0.96 * 800
# on top of the model's own time
MOST_OVERHEAD_MS = 0.45
MOST_IDLE_CORES = 0.01
# whose CPU is the measure
FRUGAL = "mosec"


@dataclass(frozen=True)
class Target:
    """One of them, and what was found."""

    text: str
    asked: str
    found: str
    met: bool


def table(
    measurements: Sequence[Measurement], sessions: Sequence[Session], model_ms: Mapping[str, float], ours: str
) -> str:
    """All targets that a run says something of; empty where there is none."""
    found = list(of(measurements, sessions, model_ms, ours))
    rows = [[target.text, target.asked, target.found, "yes" if target.met else "NO"] for target in found]
    return report.table(["target", "asked", "found", "met"], rows) if rows else ""


def of(
    measurements: Sequence[Measurement], sessions: Sequence[Session], model_ms: Mapping[str, float], ours: str
) -> Iterator[Target]:
    """The targets, one after the other."""
    for name, workload in WORKLOADS.items():
        cells = [cell for cell in ranking.cells(measurements, name) if cell.door == NGINX]
        own = {cell.clients: cell for cell in cells if cell.server == ours}
        for clients, cell in sorted(own.items()):
            best = ranking.best(cells, NGINX, clients, [ours])
            if best is not None:
                least = LEAST_RATIO.get(name, 1.0) if clients > 1 else 1.0
                ratio = ranking.ratio(cell, best)
                yield Target(
                    f"{workload.label}, {_clients(clients)}: of {best.server}, the best peer",
                    f"≥ {least:.2f}",
                    ratio.text("%.2f"),
                    ratio.median >= least,
                )
        if name == "sleep" and SLEEP_CLIENTS in own:
            rate = own[SLEEP_CLIENTS].spread(lambda found: found.rate)
            yield Target(
                f"{workload.label}, {_clients(SLEEP_CLIENTS)}: requests/s",
                f"≥ {LEAST_SLEEP_RATE:.0f}",
                rate.text("%.0f"),
                rate.median >= LEAST_SLEEP_RATE,
            )
        if name in model_ms and 1 in own:
            most = model_ms[name] + MOST_OVERHEAD_MS
            p50 = own[1].spread(lambda found: found.p50_ms)
            yield Target(
                f"{workload.label}, one client: p50; the model alone takes {model_ms[name]:.2f} ms",
                f"≤ {most:.2f} ms",
                p50.text("%.2f") + " ms",
                p50.median <= most,
            )
        if name == "noop":
            yield from _cpu(cells, own)
    yield from _idle(sessions, ours)


def _cpu(cells: Sequence[Cell], own: Mapping[int, Cell]) -> Iterator[Target]:
    """The CPU of a request, nginx included, at several clients."""
    for clients, cell in sorted(own.items()):
        if clients == 1:
            continue
        others = [other for other in cells if other.clients == clients and other.server.startswith(FRUGAL)]
        for other in sorted(others, key=lambda other: other.server):
            used, most = (one.spread(lambda found: found.total_us) for one in (cell, other))
            yield Target(
                f"{WORKLOADS['noop'].label}, {_clients(clients)}: µs of CPU, as {other.server} at the most",
                f"≤ {most.text('%.0f')}",
                used.text("%.0f"),
                used.median <= most.median,
            )


def _idle(sessions: Sequence[Session], ours: str) -> Iterator[Target]:
    found = [session.idle_cores for session in sessions if session.server == ours and session.idle_cores is not None]
    if found:
        idle = Spread.of(found)
        yield Target(
            "idle: of a core",
            f"< {MOST_IDLE_CORES:.1%}",
            f"{idle.median:.2%}, {idle.highest:.2%} at the most",
            idle.median < MOST_IDLE_CORES,
        )


def _clients(count: int) -> str:
    return f"{count} clients" if count > 1 else "one client"
