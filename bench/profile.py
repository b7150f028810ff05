"""Where the time of one request goes: stages, CPU, context switches, system calls, and flame graphs of worker and mule.

usage: python -m bench.profile [--seconds S] [--clients NUMBERS] [--mules N] [--out DIR] [MODEL ...]
       python -m bench.profile --keep

For each model folder (bench/models/noop and models/digits), one server as a user starts it, asked for what sample.json
holds.  For each number of clients it is loaded twice: once to see what Server-Timing says, what is left of the client's
time, how often processes sleep and what CPU they use; and once more with strace attached, which slows it down.  Then
py-spy looks at a worker and a mule at the clients' second number.  Writes profile.md, and profile-MODEL-ROLE.svg.

--keep does nothing of that: it counts what the regression guard counts (bench/footprint.py), and keeps the numbers.

Units: seconds, but for what ends in _ms; µs of CPU.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import arena, footprint, report, syscalls
from bench.client import STAGES, Client, Refused, sample_request
from bench.compare import INTERRUPTED, RESULTS, check_tools, numbers
from bench.footprint import ROLES, serving
from bench.report import say
from bench.server import NotInTime, Server
from bench.work import ROOT
from load import cost, loadgen
from load.loadgen import Counts, Item
from nginx import StartError

MODELS = (ROOT / "bench" / "models" / "noop", ROOT / "models" / "digits")
CLIENTS = (1, 16, 64)
MULES = 2
SECONDS = 3.0
WARM_UP_S = 1.0
# of a flame graph, in a second; more slow the process down.  It takes longer than the other looks
SAMPLES = 200
FLAME_LOOKS = 3
# how long it takes to begin
SPY_START_S = 2.0
# of a worker's threads most sleep: what counts is the one that holds the interpreter.  A mule does one thing at a time,
# some of it without the interpreter: wherever it is, asleep as well.  (--native cannot read uWSGI's stacks.)
SPIED = {"worker": ["--gil"], "mule": []}
# calls that come to less for a request are idle ones
LEAST_CALLS = 0.005
SHARES = (0.5, 0.9, 0.99)
TIMES = (*STAGES, "rest", "total")


@dataclass
class Profile:
    """What was seen with so many clients."""

    clients: int
    # each sampled request
    times: list[dict[str, float]] = field(default_factory=list)
    rate: float = 0.0
    # for a request, by role
    cpu_us: dict[str, float] = field(default_factory=dict)
    switches: dict[str, tuple[float, float]] = field(default_factory=dict)
    # with strace: requests a second, and for a request, by role and name: calls, and those that failed
    traced_rate: float = 0.0
    calls: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What processes have used up to a moment."""

    at: float
    cpu: cost.Reading
    switches: Mapping[int, tuple[int, int]]

    @classmethod
    def of(cls, pids: Mapping[int, str]) -> "Reading":
        return cls(time.monotonic(), cost.read(), {pid: cost.switches(pid) for pid in pids})


class Subject:
    """One server under load, with all of one request."""

    def __init__(self, server: Server, model: Path, folder: Path, seconds: float) -> None:
        self.roles = serving(server)
        self._server = server
        self._request = sample_request(model)
        self._seconds = seconds
        self._warm_up = min(WARM_UP_S, seconds)
        self._folder = folder
        self._work = folder / "work"
        # any prediction will do: other tests say which one is right
        loadgen.write_work(self._work, [Item(self._request, *loadgen.contains(""))])

    def profile(self, clients: int) -> Profile:
        """All that is seen with so many clients."""
        profile = Profile(clients)
        self._watch(profile)
        self._trace(profile)
        return profile

    def load(self, clients: int, seconds: float = 0.0, warm_up: float = 0.0) -> loadgen.Run[Reading]:
        """So many clients of the load generator."""
        return loadgen.run(
            self._server.port,
            clients,
            seconds or self._seconds,
            warm_up,
            self._work,
            lambda: Reading.of(self.roles),
        )

    def _watch(self, profile: Profile) -> None:
        """One of the clients takes the time of each of its requests."""
        with Client(self._server.port, self._request) as client:
            self._time(client, profile, self._warm_up)
            profile.times = []
            if profile.clients == 1:
                before = Reading.of(self.roles)
                self._time(client, profile, self._seconds)
                after, answered = Reading.of(self.roles), 0
            else:
                with ThreadPoolExecutor(1) as pool:
                    others = pool.submit(self.load, profile.clients - 1, warm_up=self._warm_up)
                    run, profile.times = self._time_beside(client, others)
                _check(run.counts)
                assert run.before is not None and run.after is not None
                before, after, answered = run.before, run.after, run.counts.right
        answered += len(profile.times)
        profile.rate = answered / (after.at - before.at)
        cpu_s = cost.spent(before.cpu, after.cpu, self.roles)
        for role in ROLES:
            pids = [pid for pid, found in self.roles.items() if found == role]
            profile.cpu_us[role] = sum(cpu_s[pid] for pid in pids) / answered * 1e6
            slept, moved = (
                sum(after.switches[pid][kind] - before.switches[pid][kind] for pid in pids) / answered
                for kind in (0, 1)
            )
            profile.switches[role] = slept, moved

    def _time(self, client: Client, profile: Profile, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            profile.times.append(client.time())

    def _time_beside(
        self, client: Client, others: "Future[loadgen.Run[Reading]]"
    ) -> tuple[loadgen.Run[Reading], list[dict[str, float]]]:
        """The measurement of the others, and the client's times in it."""
        found = []
        while not others.done():
            at = time.monotonic()
            found.append((at, client.time()))
        run = others.result()
        assert run.before is not None and run.after is not None
        return run, [times for at, times in found if run.before.at <= at < run.after.at]

    def _trace(self, profile: Profile) -> None:
        """What strace counts while all of it is asked."""
        with ExitStack() as stack:
            for role in ROLES:
                pids = [pid for pid, found in self.roles.items() if found == role]
                stack.enter_context(syscalls.traced(pids, syscalls.COUNT, self._folder / role))
            counts = self.load(profile.clients).counts
        _check(counts)
        profile.traced_rate = counts.rate
        for role in ROLES:
            told = syscalls.counted((self._folder / role).read_text())
            profile.calls[role] = {
                name: (count.calls / counts.right, count.errors / counts.right) for name, count in told.items()
            }

    def flames(self, clients: int, name: str, out: Path) -> list[Path]:
        """Flame graphs of the worker and the mule that do the most."""
        files = {role: out / f"profile-{name}-{role}.svg" for role in SPIED}
        before = cost.read()
        with ThreadPoolExecutor(len(files) + 1) as pool:
            seconds = FLAME_LOOKS * self._seconds
            load = pool.submit(self.load, clients, seconds + SPY_START_S, self._warm_up)
            time.sleep(self._warm_up)
            used = cost.spent(before, cost.read(), self.roles)
            busiest = {
                role: max((pid for pid, found in self.roles.items() if found == role), key=used.__getitem__)
                for role in files
            }
            list(pool.map(lambda role: _record(busiest[role], seconds, SPIED[role], files[role]), files))
            _check(load.result().counts)
        return list(files.values())


def _record(pid: int, seconds: float, options: Sequence[str], file: Path) -> None:
    """A flame graph of one process."""
    command = [
        str(Path(sys.executable).with_name("py-spy")),
        *("record", "--pid", str(pid), "--duration", str(max(1, round(seconds))), "--rate", str(SAMPLES)),
        *("--function", *options, "--output", str(file)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StartError(f"py-spy has ended: {(done.stderr.strip() or 'it said nothing').splitlines()[0]}")


def _check(counts: Counts) -> None:
    if counts.refused or counts.errors or not counts.right:
        raise NotInTime(f"the load went wrong: {counts}")


def percentiles(values: Sequence[float]) -> str:
    """p50, p90 and p99."""
    ordered = sorted(values)
    return ", ".join(f"{ordered[int((len(ordered) - 1) * share)]:.3f}" for share in SHARES)


def render(name: str, title: str, profiles: Sequence[Profile], flames: Sequence[Path]) -> str:
    """The section of one model."""
    head = ["", *(f"{profile.clients} client{'s' if profile.clients > 1 else ''}" for profile in profiles)]
    rows = [
        [stage, *(percentiles([times[stage] for times in profile.times]) for profile in profiles)] for stage in TIMES
    ]
    rows.append(["requests/s", *(f"{profile.rate:,.0f}" for profile in profiles)])
    for role in ROLES:
        rows.append([f"{role}: CPU, µs", *(f"{profile.cpu_us[role]:.0f}" for profile in profiles)])
    for role in ROLES:
        told = ("{:.2f}, {:.2f}".format(*profile.switches[role]) for profile in profiles)
        rows.append([f"{role}: switches, asleep and displaced", *told])
    parts = [
        title,
        "Stages in ms: p50, p90, p99 of what Server-Timing says, and of the time of one of the clients, a Python"
        " program on the same machine: the rest is that program, nginx, sockets and wake-ups. CPU and context switches"
        " are those of one request.",
        report.table(head, rows),
        "System calls of one request, by strace; those that failed in brackets. It slows the server, so that batches"
        " and waits are others than above: threads hold the interpreter for longer, and those that want it try again"
        " (futex) each 5 ms.",
        report.table(head, call_rows(profiles)),
        "Flame graphs, of a worker's thread that holds the interpreter, and of all that a mule does, asleep as well: "
        + ", ".join(f"[{file.name}]({file.name})" for file in flames)
        + ".",
    ]
    return "\n\n".join(parts)


def call_rows(profiles: Sequence[Profile]) -> list[list[str]]:
    """A row for each role, and for each of its system calls, the commonest first."""
    rows = [["requests/s with strace", *(f"{profile.traced_rate:,.0f}" for profile in profiles)]]
    for role in ROLES:
        rows.append([f"**{role}**", *(f"**{sum(c for c, _ in p.calls[role].values()):.2f}**" for p in profiles)])
        most: dict[str, float] = {}
        for profile in profiles:
            for name, (calls, _) in profile.calls[role].items():
                most[name] = max(most.get(name, 0.0), calls)
        for name, highest in sorted(most.items(), key=lambda item: -item[1]):
            if highest >= LEAST_CALLS:
                rows.append([name, *(_told(*profile.calls[role].get(name, (0.0, 0.0))) for profile in profiles)])
    return rows


def _told(calls: float, errors: float) -> str:
    return f"{calls:.2f} ({errors:.2f})" if errors >= LEAST_CALLS else f"{calls:.2f}"


def profile_of(model: Path, arguments: argparse.Namespace) -> str:
    """The section of one model; its flame graphs are written."""
    name, second = model.name, arguments.clients[min(1, len(arguments.clients) - 1)]
    server = Server({"MODEL": model, "MULES": arguments.mules})
    try:
        say(f"{name}: starting")
        server.wait_ready()
        with tempfile.TemporaryDirectory(prefix="bench-profile-") as folder:
            subject = Subject(server, model, Path(folder), arguments.seconds)
            # TensorFlow's first calls take long
            subject.load(max(arguments.clients), WARM_UP_S)
            profiles = []
            for clients in arguments.clients:
                profiles.append(profile := subject.profile(clients))
                say(
                    f"{name}, {clients} clients: {profile.rate:,.0f}/s,"
                    f" {sum(profile.cpu_us.values()):.0f} µs of CPU,"
                    f" {sum(calls for found in profile.calls.values() for calls, _ in found.values()):.1f} system calls"
                )
            flames = subject.flames(second, name, arguments.out)
            say(f"{name}: flame graphs at {second} clients")
        server.stop()
    finally:
        server.close()
    return render(name, f"{model_path(model)}, {arguments.mules} mules.", profiles, flames)


def model_path(model: Path) -> str:
    """The path of a model, from the tree where it is in it."""
    return str(model.relative_to(ROOT) if model.is_relative_to(ROOT) else model)


def parse() -> argparse.Namespace:
    """What is asked for; all that is missing is said before anything starts."""
    parser = argparse.ArgumentParser(prog="bench.profile", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL", help="model folders (noop and digits)")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="of each look (3)")
    parser.add_argument("--clients", type=numbers, default=CLIENTS, metavar="NUMBERS", help="how many (1,16,64)")
    parser.add_argument("--mules", type=int, default=MULES, metavar="N", help="replicas (2)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go (bench/results)")
    parser.add_argument("--keep", action="store_true", help="only count for the regression guard, and keep the numbers")
    arguments = parser.parse_args()
    arguments.models = [model.resolve() for model in arguments.models or MODELS]
    try:
        check_tools()
        syscalls.program()
        if not syscalls.allowed():
            raise StartError(syscalls.REFUSED)
        for model in arguments.models:
            if not (model / "sample.json").is_file():
                raise StartError(f"{model_path(model)} has no sample.json, which is what is asked")
    except StartError as error:
        parser.error(str(error))
    return arguments


def main() -> int:
    """Look, and write."""
    arguments = parse()
    try:
        with arena.entered():
            if arguments.keep:
                footprint.write(footprint.measure())
                say(f"kept in {footprint.KEPT.relative_to(ROOT)}")
                return 0
            arguments.out.mkdir(parents=True, exist_ok=True)
            for model in arguments.models:
                text = f"{report.machine()}\n\n{profile_of(model, arguments)}"
                print(f"## {model.name}\n\n{text}\n", flush=True)
                report.write(arguments.out / "profile.md", model.name, text)
    except (StartError, NotInTime, Refused) as error:
        say(f"muleteer: {error}")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
