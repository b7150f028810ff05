"""What a run leaves: Markdown tables under the machine and the build that they were taken on.

A results file has one section for each instrument; a new run replaces its own.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from bench.work import ROOT

TITLE = "# Results\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also straight to the eye; numbers to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def machine() -> str:
    """The machine and all versions that matter, in a sentence or two."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or "nginx"
    uwsgi = Path(sys.executable).with_name("uwsgi")
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model[1] if model else platform.machine()}), {memory_gib:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, nginx {_version([nginx, '-v'])}, "
        f"uWSGI {_version([str(uwsgi), '--version'])}, TensorFlow {_tensorflow()}; "
        f"{date.today().isoformat()}, commit {commit()}."
    )


def repeats(count: int, seconds: float) -> str:
    """How often and how long was measured."""
    return f"{count} repeat{'s' if count > 1 else ''} of {seconds:g} s each"


def say(text: str) -> None:
    """A word on how far it is."""
    print(text, file=sys.stderr, flush=True)


def write(file: Path, name: str, text: str) -> None:
    """Put a section into a results file, in place of the one of that name."""
    old = file.read_text() if file.exists() else TITLE
    parts = re.split(r"^(?=## )", old, flags=re.M)
    section = f"## {name}\n\n{text.strip()}\n"
    kept = [part.strip() + "\n" for part in parts if not part.startswith(f"## {name}\n")]
    place = next((place for place, part in enumerate(parts) if part.startswith(f"## {name}\n")), len(kept))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*kept[:place], section, *kept[place:]]))


def _version(command: list[str]) -> str:
    told = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"\d+(\.\d+)+", told.stdout + told.stderr)
    return found[0] if found else "?"


def _tensorflow() -> str:
    for name in ("tensorflow-cpu", "tensorflow"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"


def commit(tree: Path = ROOT) -> str:
    """What git calls the code of a tree."""
    told = subprocess.run(
        ["git", "-C", tree, "describe", "--always", "--dirty=, with changes"], capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"
