"""One measurement: a load on one door of one server, what came of it, and what it cost.

Units: seconds; cores for shares of CPU, 1.0 being a whole one; µs of CPU for a right answer.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.contender import ROLES, Running
from load import cost, loadgen
from load.cost import Reading
from load.loadgen import Counts

WARM_UP_S = 0.5
# the kernel counts CPU in hundredths of a second
IDLE_S = 5.0
# what others may use of a core, before a measurement is made again
MOST_OTHER_CORES = 0.25
TRIES = 3
# what a server may use of a core before a load on it begins
QUIET_CORES = 0.4
SETTLE_PAUSE_S = 0.1
SETTLE_PATIENCE_S = 5.0
SHOWN_OTHERS = 3


@dataclass(frozen=True, kw_only=True)
class Measurement(Counts):
    """What a load of one server came to."""

    server: str
    door: str
    workload: str
    processes: int
    clients: int
    repeat: int
    body_bytes: int
    cpu_us: dict[str, float]
    client_cores: float
    other_cores: float
    others: dict[str, float]
    steal_cores: float
    tries: int = 1

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Measurement":
        """From JSON."""
        return cls(**{name: value for name, value in told.items() if name != "rate"})

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"rate": round(self.rate, 1)}

    @property
    def total_us(self) -> float:
        return sum(self.cpu_us.values())

    @property
    def disturbed(self) -> bool:
        return self.other_cores + self.steal_cores > MOST_OTHER_CORES

    def __str__(self) -> str:
        place = "bare" if self.door == "bare" else "behind nginx"
        clients = f"{self.clients} client{'s' if self.clients > 1 else ''}"
        told = (
            f"{self.workload}, {self.server} {place}, {clients}: {self.rate:,.0f}/s, p50 {self.p50_ms:.2f} ms,"
            f" p99 {self.p99_ms:.2f} ms, {self.total_us:,.0f} µs of CPU"
        )
        if self.refused:
            told += f", {self.refused} refused"
        if self.errors:
            told += f", {self.errors} ERRORS ({self.first_wrong})"
        if self.disturbed:
            others = self.others | ({"the machine below": self.steal_cores} if self.steal_cores else {})
            told += f", disturbed by {', '.join(f'{name} {cores:.0%}' for name, cores in others.items())}"
        return told


@dataclass
class Session:
    """One server from its start to its stop."""

    server: str
    workload: str
    repeat: int
    startup_s: float = 0.0
    rss_bytes: dict[str, int] = field(default_factory=dict)
    pss_bytes: dict[str, int] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    # of ours, before the first request
    idle_cores: float | None = None
    # why it could not be measured
    failure: str = ""


@dataclass(frozen=True)
class Load:
    """What is asked, and how long."""

    workload: str
    processes: int
    work: Path
    body_bytes: int
    seconds: float
    # at the most, while others disturb
    tries: int = TRIES


def take(
    running: Running,
    server: str,
    door: str,
    load: Load,
    clients: int,
    repeat: int,
    say: Callable[[Measurement], None],
) -> Measurement:
    """Measure; where others disturbed, again, and the one that they disturbed least counts."""
    best: Measurement | None = None
    warm_up_s = min(WARM_UP_S, load.seconds)
    for tried in range(1, load.tries + 1):
        settle()
        ran = loadgen.run(running.ports[door], clients, load.seconds, warm_up_s, load.work, cost.read)
        found = _judge(ran, running, server, door, load, clients, repeat)
        say(found)
        if best is None or found.other_cores < best.other_cores:
            best = found
        best = replace(best, tries=tried)
        if not best.disturbed:
            break
    assert best is not None
    return best


def settle() -> None:
    """Wait until the servers have done what the load before asked for and did not wait for."""
    bench = os.getpid()
    deadline = time.monotonic() + SETTLE_PATIENCE_S
    before = cost.read()
    while time.monotonic() < deadline:
        time.sleep(SETTLE_PAUSE_S)
        after = cost.read()
        served = after.below(bench) - {bench}
        if sum(cost.spent(before, after, served).values()) < QUIET_CORES * SETTLE_PAUSE_S:
            return
        before = after


def idle_cores(running: Running) -> float:
    """What a server uses while nobody asks it anything."""
    settle()
    before = cost.read()
    time.sleep(IDLE_S)
    after = cost.read()
    return round(sum(cost.spent(before, after, running.roles()).values()) / IDLE_S, 4)


def warm_up(running: Running, door: str, load: Load, seconds: float) -> Counts:
    """A load that is not counted, so that each process has answered."""
    return loadgen.run(running.ports[door], 16, seconds, 0.0, load.work, lambda: None).counts


def _judge(
    ran: loadgen.Run[Reading], running: Running, server: str, door: str, load: Load, clients: int, repeat: int
) -> Measurement:
    counts = ran.counts
    used = dict.fromkeys(ROLES, 0.0)
    others: dict[str, float] = {}
    steal_s = 0.0
    if ran.before is not None and ran.after is not None:
        before, after = ran.before, ran.after
        bench = os.getpid()
        served = (before.below(bench) | after.below(bench)) - {bench, ran.pid}
        roles = running.roles()
        for pid, cpu_s in cost.spent(before, after, served).items():
            used[roles.get(pid, "other")] += cpu_s
        others = cost.by_name(before, after, served | {bench, ran.pid})
        steal_s = after.steal_s - before.steal_s
    seconds = counts.seconds or 1.0
    return Measurement(
        **asdict(counts),
        server=server,
        door=door,
        workload=load.workload,
        processes=load.processes,
        clients=clients,
        repeat=repeat,
        body_bytes=load.body_bytes,
        cpu_us={role: round(cpu_s / max(1, counts.right) * 1e6, 2) for role, cpu_s in used.items()},
        client_cores=round(counts.cpu_s / seconds, 3),
        other_cores=round(max(0.0, sum(others.values())) / seconds, 3),
        others={name: round(cpu_s / seconds, 3) for name, cpu_s in list(others.items())[:SHOWN_OTHERS] if cpu_s > 0},
        steal_cores=round(steal_s / seconds, 3),
    )


def look(running: Running, session: Session) -> None:
    """Add what the processes of a server have of the machine's memory."""
    for pid, role in running.roles().items():
        try:
            rss, pss = cost.memory(pid)
        except (OSError, KeyError):
            # it has ended
            continue
        session.rss_bytes[role] = session.rss_bytes.get(role, 0) + rss
        session.pss_bytes[role] = session.pss_bytes.get(role, 0) + pss
        session.processes[role] = session.processes.get(role, 0) + 1
