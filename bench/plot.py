"""Plots as PNG, from measurements.

Units: as the axes say.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from bench import ranking
from bench.contender import BARE, NGINX, ROLES
from bench.measurement import Measurement, Session
from bench.ranking import Cell
from bench.workload import WORKLOADS

DPI = 110
ROLE_COLOURS = {"nginx": "#4daf4a", "front": "#ff7f00", "model": "#377eb8", "other": "#999999"}
ROLE_LABELS = {
    "nginx": "nginx",
    "front": "front: HTTP, no model",
    "model": "model (and HTTP, where one process does both)",
    "other": "masters and the like",
}
OUR_COLOURS = ("black", "#b2182b", "#762a83", "#1b7837")
# by the setting of a peer
LINES = {"": "-", "batch": "--"}
MARKERS = "osD^vP*X<>"
# bars that are longer than so many times the shortest are cut off, and say how long they are
LONGEST_BAR = 8.0
MOST_TICKS = 12
MIB = 1 << 20


def clients(measurements: Sequence[Measurement], workload: str, ours: Sequence[str], file: Path) -> None:
    """Rate and latency against the number of clients; a row for the servers behind nginx, one for the bare peers."""
    found = ranking.cells(measurements, workload)
    doors = [door for door in (NGINX, BARE) if any(cell.door == door for cell in found)]
    if not doors:
        return
    figure = Figure(figsize=(15, 0.8 + 4.2 * len(doors)), layout="constrained")
    figure.suptitle(f"{WORKLOADS[workload].label}: {WORKLOADS[workload].title}")
    panels: list[tuple[str, str, Callable[[Measurement], float]]] = [
        ("right answers a second", "linear", lambda measurement: measurement.rate),
        ("median latency, ms", "log", lambda measurement: measurement.p50_ms),
        ("99th percentile of the latency, ms", "log", lambda measurement: measurement.p99_ms),
    ]
    grid = figure.subplots(len(doors), len(panels), squeeze=False)
    styles = _styles(sorted(cell.server for cell in found), ours)
    for door, row in zip(doors, grid, strict=True):
        for (label, scale, quantity), axes in zip(panels, row, strict=True):
            # ours is behind nginx in both
            shown = [cell for cell in found if cell.door == door or cell.server in ours]
            _lines(axes, shown, styles, quantity)
            axes.set_title("peers bare, ours behind nginx" if door == BARE else "all behind nginx", fontsize=10)
            _value_axis(axes, label, logarithmic=scale == "log")
            _count_axis(axes, sorted({cell.clients for cell in found}), "clients")
    _legend(figure, grid[0][0], grid[-1][0])
    figure.savefig(file, dpi=DPI)


def cpu(measurements: Sequence[Measurement], workloads: Sequence[str], ours: Sequence[str], file: Path) -> None:
    """CPU of one request, stacked by role, behind nginx; a panel for each workload."""
    panels = []
    for workload in workloads:
        found = [cell for cell in ranking.cells(measurements, workload) if cell.door == NGINX and cell.rate]
        counts = sorted({cell.clients for cell in found})
        if counts:
            count = 16 if 16 in counts else counts[-1]
            bars = {cell.server: _by_role(cell) for cell in found if cell.clients == count}
            panels.append((f"{WORKLOADS[workload].label}, {count} client{'s' if count > 1 else ''}", bars))
    _bars(panels, ours, "CPU for one request behind nginx, µs", {}, file)


def memory(sessions: Sequence[Session], workloads: Sequence[str], ours: Sequence[str], file: Path) -> None:
    """Proportional set size of all processes, stacked by role, and their resident set size beside it."""
    panels, notes = [], {}
    for workload in workloads:
        by_server: dict[str, list[Session]] = {}
        for session in sessions:
            if session.workload == workload and not session.failure:
                by_server.setdefault(session.server, []).append(session)
        bars = {
            server: {
                role: ranking.Spread.of([session.pss_bytes.get(role, 0) / MIB for session in own]).median
                for role in ROLES
            }
            for server, own in by_server.items()
        }
        if bars:
            panels.append((WORKLOADS[workload].label, bars))
        for server, own in by_server.items():
            resident = statistics.median(sum(session.rss_bytes.values()) / MIB for session in own)
            notes[WORKLOADS[workload].label, server] = f" (RSS {resident:.0f})"
    _bars(panels, ours, "memory with nginx: PSS, MiB", notes, file)


@dataclass(frozen=True)
class Panel:
    """Lines by name, each of points."""

    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    # x in even steps, and not in powers of two
    even: bool = False


def against(panels: Sequence[Panel], title: str, ours: Sequence[str], file: Path) -> None:
    """Panels in rows of two, each with its own legend."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 0.4 + 4.4 * rows), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for panel, axes in zip(panels, grid, strict=False):
        styles = _styles(list(panel.lines), [name for name in ours if name in panel.lines])
        for name, style in styles.items():
            if panel.lines[name]:
                axes.plot(*zip(*sorted(panel.lines[name]), strict=True), label=name, **style)
        if panel.even:
            axes.set_xlabel(panel.x_label)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.grid(alpha=0.3)
        else:
            _count_axis(axes, sorted({x for points in panel.lines.values() for x, _ in points}), panel.x_label)
        _value_axis(axes, panel.y_label, logarithmic=False)
        if len(panel.lines) > 1:
            axes.legend(fontsize=9)
    figure.savefig(file, dpi=DPI)


def _lines(
    axes: Axes,
    found: Sequence[Cell],
    styles: Mapping[str, dict[str, Any]],
    quantity: Callable[[Measurement], float],
) -> None:
    for server, style in styles.items():
        own = sorted((cell for cell in found if cell.server == server), key=lambda cell: cell.clients)
        spreads = [(cell.clients, cell.spread(quantity)) for cell in own]
        # nothing was measured where nothing was right
        points = [(count, spread) for count, spread in spreads if spread.median > 0]
        if points:
            middles = [spread.median for _, spread in points]
            errors = (
                [spread.median - spread.lowest for _, spread in points],
                [spread.highest - spread.median for _, spread in points],
            )
            axes.errorbar([count for count, _ in points], middles, yerr=errors, label=server, capsize=2, **style)


def _count_axis(axes: Axes, counts: Sequence[float], label: str) -> None:
    axes.set_xlabel(label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts if len(counts) <= MOST_TICKS else [2**n for n in range(int(counts[-1]).bit_length())])
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def _value_axis(axes: Axes, label: str, logarithmic: bool) -> None:
    axes.set_ylabel(label)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)


def _styles(names: Sequence[str], ours: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each server is drawn: ours thick and first; the settings of one peer in one colour."""
    ordered = list(dict.fromkeys([*ours, *names]))
    families = list(dict.fromkeys(name.partition("-")[0] for name in ordered if name not in ours))
    styles: dict[str, dict[str, Any]] = {}
    for name in ordered:
        if name in ours:
            place = ours.index(name) % len(OUR_COLOURS)
            styles[name] = {"color": OUR_COLOURS[place], "linewidth": 2.6, "marker": "o", "zorder": 5}
        else:
            family, _, setting = name.partition("-")
            place = families.index(family)
            styles[name] = {
                "color": f"C{place}",
                "linewidth": 1.2,
                "linestyle": LINES.get(setting, ":"),
                "marker": MARKERS[place % len(MARKERS)],
                "markersize": 4,
            }
    return {name: styles[name] for name in ordered if name in names}


def _legend(figure: Figure, *panels: Axes) -> None:
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in entries}
    figure.legend(list(entries.values()), list(entries), loc="outside right upper", fontsize=9)


def _by_role(cell: Cell) -> dict[str, float]:
    return {role: cell.spread(lambda measurement, role=role: measurement.cpu_us[role]).median for role in ROLES}  # type: ignore[misc]


def _bars(
    panels: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]],
    ours: Sequence[str],
    label: str,
    notes: Mapping[tuple[str, str], str],
    file: Path,
) -> None:
    """A panel for each set of bars, the shortest bar above."""
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    tallest = max(len(bars) for _, bars in panels)
    figure = Figure(figsize=(max(8.0, 5.0 * columns), 0.4 + rows * (1.2 + 0.28 * tallest)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for (title, bars), axes in zip(panels, grid, strict=False):
        ordered = sorted(bars.items(), key=lambda item: sum(item[1].values()))
        limit = LONGEST_BAR * sum(ordered[0][1].values()) or 1.0
        limit = min(limit, (1.4 if notes else 1.18) * sum(ordered[-1][1].values()) or 1.0)
        for place, (name, parts) in enumerate(ordered):
            start = 0.0
            for role in ROLES:
                axes.barh(place, parts[role], left=start, color=ROLE_COLOURS[role], height=0.7)
                start += parts[role]
            cut = start > 0.85 * limit
            text = f"{start:.0f}" + notes.get((title, name), "") + (" →" if start > limit else "")
            axes.text(
                min(start, limit) + (-0.01 if cut else 0.01) * limit,
                place,
                text,
                va="center",
                ha="right" if cut else "left",
                fontsize=8,
                color="white" if cut else "black",
                fontweight="bold" if cut else "normal",
            )
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=9)
        for tick, (name, _) in zip(axes.get_yticklabels(), ordered, strict=True):
            tick.set_fontweight("bold" if name in ours else "normal")
        axes.invert_yaxis()
        axes.set_xlim(0, limit)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label, fontsize=9)
    handles = [Patch(color=ROLE_COLOURS[role], label=ROLE_LABELS[role]) for role in ROLES]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * min(2, columns), fontsize=9)
    figure.savefig(file, dpi=DPI)
