"""What processes cost: CPU by the part that they play, memory, switches, and who else used the machine.

Units: seconds of CPU, bytes.
Source: proc(5); fields 14 to 17 of /proc/PID/stat are the times of a process, with its threads that have ended, and of
        its children that have.
"""

import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# the kernel's own threads work for all, and are children of this one
KTHREADD = 2


@dataclass(frozen=True)
class Process:
    """One process, at one moment."""

    parent: int
    name: str
    cpu_s: float


@dataclass(frozen=True)
class Reading:
    """All processes, at one moment."""

    processes: Mapping[int, Process]
    # what the machine below a virtual one kept for itself
    steal_s: float

    def below(self, pid: int) -> set[int]:
        """All processes below a process, and it."""
        children: dict[int, list[int]] = {}
        for child, process in self.processes.items():
            children.setdefault(process.parent, []).append(child)
        found, todo = set(), [pid]
        while todo:
            found.add(pid := todo.pop())
            todo += children.get(pid, [])
        return found


def read() -> Reading:
    """How it stands now."""
    processes = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            # it may have ended since
            with suppress(OSError):
                processes[int(entry.name)] = _process((entry / "stat").read_text())
    steal = Path("/proc/stat").read_text().partition("\n")[0].split()[8]
    return Reading(processes, int(steal) * TICK_S)


def _process(stat: str) -> Process:
    head, _, tail = stat.rpartition(")")
    fields = tail.split()
    return Process(int(fields[1]), head.partition("(")[2], sum(map(int, fields[11:15])) * TICK_S)


def spent(before: Reading, after: Reading, pids: Collection[int]) -> dict[int, float]:
    """What each of some processes used between two readings; who has ended meanwhile is among what its parent used."""
    found = {}
    for pid in pids:
        start = before.processes[pid].cpu_s if pid in before.processes else 0.0
        if pid in after.processes:
            found[pid] = after.processes[pid].cpu_s - start
        elif start:
            found[pid] = -start
    return found


def by_name(before: Reading, after: Reading, ours: Collection[int]) -> dict[str, float]:
    """What all but some processes used, by name; the most first."""
    found = before.processes.keys() | after.processes.keys()
    strangers = {
        pid: process
        for pid in found - set(ours)
        if KTHREADD not in (pid, (process := after.processes.get(pid) or before.processes[pid]).parent)
    }
    used: dict[str, float] = defaultdict(float)
    for pid, cpu_s in spent(before, after, strangers).items():
        used[strangers[pid].name] += cpu_s
    return dict(sorted(used.items(), key=lambda item: -item[1]))


def memory(pid: int) -> tuple[int, int]:
    """Resident set size of a process, and proportional set size, in which what several share counts once."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    kib = {words[0]: int(words[1]) for words in lines}
    return kib["Rss:"] * 1024, kib["Pss:"] * 1024


def switches(pid: int) -> tuple[int, int]:
    """How often a process's threads have gone to sleep, and how often they had to make room for others."""
    slept = moved = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # it may have ended since
        with suppress(OSError):
            words = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
            slept += int(words["voluntary_ctxt_switches"])
            moved += int(words["nonvoluntary_ctxt_switches"])
    return slept, moved
