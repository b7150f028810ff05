"""What a server serves, as tables: once, or kept live.

Runs in:  the command line.
Units:    seconds.
"""

import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

# between looks
LOOK_S = 1.0
# where nobody reads it on a terminal, no line is broken
_WIDE = 4096
_STYLES = {
    "ready": "green",
    "spare": "dim",
    "failed": "red",
    "paused": "red",
    "loading": "yellow",
    "draining": "yellow",
}
Ready = Mapping[str, Any]


def console() -> Console:
    """Of the standard output."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


def tables(ready: Ready, pinned: str | None, rates: Mapping[int, float] | None = None) -> RenderableType:
    """What /readyz says; rates: the tasks of each process in a second, where they are known."""
    status, model = ready.get("status", "not ready"), ready.get("model")
    told = f"{status}: {model['name']} ({model['engine']})" if model else status
    parts: list[RenderableType] = [Text(told, _STYLES.get(status, "yellow"))]
    if releases := ready.get("versions", []):
        table = _table("version", "labels", "replicas")
        for one in releases:
            names = [*one["labels"], *(["answers who names none"] if one["default"] else [])]
            table.add_row(str(one["version"]), ", ".join(names), str(one["replicas"]))
        parts.append(table)
    rated = rates is not None
    if replicas := ready.get("replicas", []):
        spare = ready.get("spare") if rated else None
        table = _table("replica", "pid", "version", "state", "tasks", *["a second", "busy"] * rated, "memory", "")
        for one in [*replicas, *([spare] if spare else [])]:
            version = "" if one["version"] is None else str(one["version"])
            live = [f"{(rates or {}).get(one['id'], 0.0):.0f}", f"{one['busy_s']:.1f} s"] if rated else []
            state = Text(one["state"], _STYLES.get(one["state"], ""))
            why = one["reason"] or (one["last_death"] and f"the one before {one['last_death']}") * rated
            memory = f"{one['rss_mb']} MB"
            table.add_row(str(one["id"]), str(one["pid"]), version, state, str(one["tasks"]), *live, memory, why)
        parts.append(table)
    parts += [f"version {version} is not served: {reason}" for version, reason in ready.get("refused", {}).items()]
    if pinned:
        parts.append(f"pinned by `reload --version {pinned}`; `reload --unpin` ends that")
    return Group(*parts)


def watch(look: Callable[[], tuple[Ready, str | None]]) -> None:
    """Keep them live, until Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tasks: dict[int, tuple[int, int]] = {}
    before = time.monotonic()
    with suppress(KeyboardInterrupt), Live(console=console(), auto_refresh=False) as live:
        while True:
            ready, pinned = look()
            now = time.monotonic()
            found = {one["id"]: (one["pid"], one["tasks"]) for one in ready.get("replicas", [])}
            # of the same process: another begins at none
            rates = {
                id: (count - tasks[id][1]) / (now - before)
                for id, (pid, count) in found.items()
                if id in tasks and tasks[id][0] == pid
            }
            live.update(tables(ready, pinned, rates), refresh=True)
            tasks, before = found, now
            time.sleep(LOOK_S)


def _table(*head: str) -> Table:
    table = Table(*head, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns[-1:]:
        column.overflow = "fold"
    return table
