"""Muleteer and the servers that people would pick instead, side by side on this machine.

usage: python -m bench.compare [--only NAMES] [--workloads NAMES] [--clients NUMBERS] [--seconds S] [--repeats N]
                               [--tries N] [--tree NAME=DIR] [--out DIR]

Ours runs as a user starts it, with the shipped uwsgi.ini but for the number of mules; the peers that `make bench-peers`
has installed run bare and behind an nginx like ours, in the settings that bench/peers/ tells.  All serve the same
models, and the same clients check each answer (load/loadgen.c).  In each repeat every server is started, measured and
stopped once for each workload, so that a machine which becomes slower is slower for all of them.  Of the peers, who was
less than half as good as the best one everywhere in a workload is measured in the first repeat alone.

Writes compare.json, every single measurement; a section of compare.md; and plots.  The exit status is 1 where ours did
not start or gave a wrong answer, and 130 after Ctrl-C, when what was measured is written.

python -m bench.growth is the other half of `make bench`.

Units: seconds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nginx
from bench import alone, arena, measurement, plot, ranking, report, targets, train
from bench.contender import Contender, Hosted, Muleteer, Running
from bench.measurement import Load, Measurement, Session
from bench.peer import ENVIRONMENTS, PEERS
from bench.report import say
from bench.server import NotInTime
from bench.work import ROOT
from bench.workload import WORKLOADS, WorkFiles, Workload
from load import loadgen

RESULTS = ROOT / "bench" / "results"
OURS = "muleteer"
SECONDS = 2.5
REPEATS = 3
INTERRUPTED = 130
# before the first measurement of a door; TensorFlow's first calls take long
WARM_UP_S = 1.5


@dataclass
class Comparison:
    """A whole run."""

    machine: str
    # of each server, its version and how it is set
    versions: dict[str, tuple[str, str]]
    settings: dict[str, Any]
    workloads: list[str]
    ours: list[str]
    measurements: list[Measurement] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    # of each workload, what one row takes without a server
    model_ms: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """compare.json, compare.md, and the plots."""
        folder.mkdir(parents=True, exist_ok=True)
        told = asdict(self) | {"measurements": [found.told() for found in self.measurements]}
        (folder / "compare.json").write_text(json.dumps(told, indent=1) + "\n")
        report.write(folder / "compare.md", "Comparison", self.render())
        for name in self.workloads:
            plot.clients(self.measurements, name, self.ours, folder / f"{name}.png")
        plot.cpu(self.measurements, self.workloads, self.ours, folder / "cpu.png")
        plot.memory(self.sessions, self.workloads, self.ours, folder / "memory.png")

    @classmethod
    def read(cls, file: Path) -> "Comparison":
        told = json.loads(file.read_text())
        told["measurements"] = [Measurement.of(found) for found in told["measurements"]]
        told["sessions"] = [Session(**found) for found in told["sessions"]]
        return cls(**told)

    def render(self) -> str:
        """The tables."""
        parts = [
            self.machine,
            f"{report.repeats(self.settings['repeats'], self.settings['seconds'])}: the median [lowest–highest] of"
            " the repeats; a single number was measured once, and so is a peer that was less than half as good as the"
            " best one everywhere.  A ratio above 1 is ours ahead: of the rates, and at one client of the median"
            " latencies.  † others, or the machine below a virtual one, used more than a quarter of a core meanwhile."
            f"  The load generator used {self.most_client_cores:.2f} of a core at the most.",
            *self.verdicts(),
            ranking.summary(self.measurements, self.workloads, self.ours),
            report.table(["server", "version", "setting"], [[name, *told] for name, told in self.versions.items()]),
            "![CPU for each request](cpu.png) ![memory](memory.png)",
        ]
        for name in self.workloads:
            parts += [
                f"### {WORKLOADS[name].label}: {WORKLOADS[name].title}",
                ranking.details(self.measurements, self.sessions, name),
                f"![{name}: rate and latency against clients]({name}.png)",
            ]
            if failures := self.failures(name):
                parts.append(failures)
        return "\n\n".join(parts)

    @property
    def most_client_cores(self) -> float:
        """What the load generator needed: near to one, it would be what is measured."""
        return max((found.client_cores for found in self.measurements), default=0.0)

    def verdicts(self) -> list[str]:
        """The table of targets, of what was started from this tree."""
        # other trees of ours are no peers
        others = set(self.ours) - {OURS}
        measurements = [found for found in self.measurements if found.server not in others]
        told = targets.table(measurements, self.sessions, self.model_ms, OURS)
        return [told] if told else []

    def failures(self, workload: str) -> str:
        """Who could not be measured, and why."""
        lines = {
            f"- {session.server} was not measured: {session.failure.splitlines()[0]}"
            for session in self.sessions
            if session.workload == workload and session.failure
        }
        return "\n".join(sorted(lines))

    @property
    def ok(self) -> bool:
        """Whether ours was always there, and never wrong."""
        found = [measurement for measurement in self.measurements if measurement.server in self.ours]
        failed = any(session.failure for session in self.sessions if session.server in self.ours)
        return not failed and not any(measurement.errors for measurement in found)


class Walk:
    """Over repeats, workloads, servers, doors and numbers of clients."""

    def __init__(
        self,
        comparison: Comparison,
        contenders: Sequence[Contender],
        clients: Sequence[int],
        seconds: float,
        repeats: int,
        tries: int,
        works: WorkFiles,
    ) -> None:
        self._comparison = comparison
        self._contenders = contenders
        self._clients = clients
        self._seconds = seconds
        self._repeats = repeats
        self._tries = tries
        self._works = works
        self._done = 0
        self._began = time.monotonic()
        self._total = repeats * self._size(self._pairs(0))

    def go(self, folder: Path) -> None:
        """All of it; what has been measured is written after each repeat."""
        say(f"{self._total} measurements of {self._seconds:g} s each")
        for repeat in range(self._repeats):
            pairs = self._pairs(repeat)
            self._total = self._done + (self._repeats - repeat) * self._size(pairs)
            for workload, contender in pairs:
                self._session(contender, workload, repeat)
            self._comparison.write(folder)

    def _pairs(self, repeat: int) -> list[tuple[Workload, Contender]]:
        """Who is asked what; each second time in the other order."""
        measurements = self._comparison.measurements
        contenders = self._contenders[:: -1 if repeat % 2 else 1]
        workloads = [WORKLOADS[name] for name in self._comparison.workloads]
        return [
            (workload, contender)
            for workload in workloads
            for contender in contenders
            if (workload.batches or not contender.batching)
            and (not repeat or ranking.in_reach(measurements, workload.name, contender.name, self._comparison.ours))
        ]

    def _size(self, pairs: Sequence[tuple[Workload, Contender]]) -> int:
        return sum(len(contender.doors) * len(self._counts(workload)) for workload, contender in pairs)

    def _counts(self, workload: Workload) -> Sequence[int]:
        return self._clients or workload.clients

    def _session(self, contender: Contender, workload: Workload, repeat: int) -> None:
        session = Session(contender.name, workload.name, repeat)
        self._comparison.sessions.append(session)
        doors = contender.doors[:: -1 if repeat % 2 else 1]
        expected = self._done + len(doors) * len(self._counts(workload))
        work, body_bytes, request = self._works.of(workload, contender.listed)
        load = Load(workload.name, workload.processes, work, body_bytes, self._seconds, self._tries)
        try:
            running = contender.start(workload, request, {})
            try:
                session.startup_s = round(running.startup_s, 2)
                if contender.ours and not repeat:
                    session.idle_cores = measurement.idle_cores(running)
                for door in doors:
                    measurement.warm_up(running, door, load, min(WARM_UP_S, 2 * self._seconds))
                    for clients in self._counts(workload):
                        self._measure(contender.name, door, load, clients, repeat, running)
                measurement.look(running, session)
            finally:
                running.stop()
        except (NotInTime, OSError, ValueError, subprocess.SubprocessError) as error:
            session.failure = str(error) or type(error).__name__
            say(f"{workload.name}, {contender.name}: NOT MEASURED: {session.failure}")
        self._done = expected

    def _measure(self, server: str, door: str, load: Load, clients: int, repeat: int, running: Running) -> None:
        self._done += 1
        found = measurement.take(running, server, door, load, clients, repeat, self._show)
        self._comparison.measurements.append(found)

    def _show(self, found: Measurement) -> None:
        took = time.monotonic() - self._began
        left = took / self._done * (self._total - self._done)
        say(f"[{self._done}/{self._total}, {left / 60:.0f} min left] {found}")


def contenders_of(only: Sequence[str], trees: Mapping[str, Path], isolated: bool) -> list[Contender]:
    """Those that are asked for and installed; default: all that are installed."""
    ours: list[Contender] = [Muleteer(OURS), *(Muleteer(name, tree) for name, tree in trees.items())]
    found = [server for server in ours if not only or server.name in only]
    missing = set()
    for name, peer in PEERS.items():
        if only and name not in only:
            continue
        if not peer.installed:
            missing.add(peer.environment)
        elif peer.isolated and not isolated:
            say(f"{name} is left out: it listens on all addresses, and only root can give it a network of its own")
        else:
            found.append(Hosted(peer))
    if missing:
        say(f"not installed: {', '.join(name for name in ENVIRONMENTS if name in missing)} (make bench-peers)")
    return found


def train_networks(workloads: Sequence[str]) -> None:
    """The models that are trained, where they are needed and missing; in a process that ends with TensorFlow."""
    missing = [name for name in workloads if name in train.NETWORKS and not WORKLOADS[name].model.exists()]
    if missing:
        say(f"training {', '.join(missing)} (less than a minute)")
        subprocess.run([sys.executable, "-m", "bench.train", *missing], cwd=ROOT, check=True, stdout=sys.stderr)


def check_tools() -> None:
    """Raise StartError where something is missing, and say how to get it."""
    nginx.program()
    try:
        loadgen.compiled()
    except (OSError, subprocess.CalledProcessError) as error:
        raise nginx.StartError(
            f"the load generator cannot be compiled ({error}): apt-get install gcc libc6-dev"
        ) from error


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Takes some of what is known, with commas between them."""

    def parse(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return found

    return parse


def numbers(text: str) -> list[int]:
    """1,16,64"""
    try:
        return [int(number) for number in text.split(",") if number]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between them") from error


def add_options(parser: argparse.ArgumentParser, seconds: float, repeats: int) -> None:
    """How long and how often to measure, and where the results go."""
    parser.add_argument("--seconds", type=float, default=seconds, metavar="S", help=f"a measurement ({seconds:g})")
    parser.add_argument("--repeats", type=int, default=repeats, metavar="N", help=f"of all of it ({repeats})")
    parser.add_argument(
        "--tries",
        type=int,
        default=measurement.TRIES,
        metavar="N",
        help=f"of a measurement that others disturb, at the most ({measurement.TRIES})",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go (bench/results)")


def _tree(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    tree = Path(folder).resolve()
    if not name or not (tree / "entrypoint.sh").exists():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR with a tree of ours in DIR")
    return name, tree


def main() -> int:
    """Run, write, print the summary."""
    parser = argparse.ArgumentParser(prog="bench.compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="NAMES", help=f"servers, of {OURS}, {', '.join(PEERS)} and the trees (all)")
    told = ",".join(WORKLOADS)
    parser.add_argument(
        "--workloads", type=names(list(WORKLOADS)), default=list(WORKLOADS), metavar="NAMES", help=f"({told})"
    )
    parser.add_argument(
        "--clients", type=numbers, default=[], metavar="NUMBERS", help="as 1,16,64 (1,16,64; of sleep 1,4,16,64)"
    )
    add_options(parser, SECONDS, REPEATS)
    parser.add_argument("--tree", type=_tree, action="append", default=[], metavar="NAME=DIR", help="another of ours")
    arguments = parser.parse_args()
    trees = dict(arguments.tree)
    try:
        # of the trees as well, which are known only now
        only = names([OURS, *trees, *PEERS])(arguments.only) if arguments.only else []
        check_tools()
    except (argparse.ArgumentTypeError, nginx.StartError) as error:
        parser.error(str(error))
    try:
        with arena.entered(), tempfile.TemporaryDirectory(prefix="bench-work-") as folder:
            isolated = arena.isolate()
            train_networks(arguments.workloads)
            say("how long the models take by themselves")
            model_ms = {name: alone.measure(WORKLOADS[name].model) for name in arguments.workloads}
            contenders = contenders_of(only, trees, isolated)
            comparison = Comparison(
                report.machine(),
                {contender.name: (contender.version, contender.setting) for contender in contenders},
                {"seconds": arguments.seconds, "repeats": arguments.repeats, "warm_up_s": WARM_UP_S},
                arguments.workloads,
                [contender.name for contender in contenders if contender.ours],
                model_ms=model_ms,
            )
            works = WorkFiles(Path(folder))
            walk = Walk(
                comparison,
                contenders,
                arguments.clients,
                arguments.seconds,
                arguments.repeats,
                arguments.tries,
                works,
            )
            try:
                walk.go(arguments.out)
            except KeyboardInterrupt:
                comparison.write(arguments.out)
                say(f"stopped; what was measured is in {arguments.out}")
                raise
    except KeyboardInterrupt:
        return INTERRUPTED
    for told in (
        *comparison.verdicts(),
        ranking.summary(comparison.measurements, comparison.workloads, comparison.ours),
    ):
        print(told, end="\n\n")
    for name in comparison.workloads:
        if failures := comparison.failures(name):
            print(f"{WORKLOADS[name].label}:\n{failures}")
    say(f"all numbers, tables and plots are in {arguments.out}")
    return 0 if comparison.ok else 1


if __name__ == "__main__":
    sys.exit(main())
