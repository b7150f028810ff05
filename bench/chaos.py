"""Faults under load: what a real server loses when its processes are killed, stopped, poisoned, flooded and reloaded.

usage: python -m bench.chaos [--short] [--only ROW] [--seed N] [--out FILE]

Each row starts a server of its own, loads it with a checking client at LOAD_SHARE of what it can do, and does one fault
again and again.  A fault comes only when the pool is whole again after the one before, so that another replica is
always alive.  The promise: nobody but the sender of an input that kills notices more than a wait.

The exit status is 1 unless, in every row, all faults were done, the pool was whole after each, and nothing was wrong,
lost or hung (bench/load.py says what these are); in the long form, also where an answer took longer than a row allows.

Units: seconds.
"""

import argparse
import http.client
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from bench import report
from bench.load import CUT, PATIENCE_S, REFUSED, Load, Loss, Tally, Work, ask
from bench.server import NotInTime, Server, alive, wait_until
from bench.work import DIGITS, FANCY, ROOT, Digits, Fancy

PERILOUS = ROOT / "bench" / "models" / "perilous"
DEADLINE_S = 5.0
LOAD_SHARE = 0.4
CALIBRATION_S = 2.0
# few, so that no full batches make it look faster than it is for single requests
CALIBRATION_CONNECTIONS = 8
RECOVERY_S = 30.0
# the longest that a client of the killed waits, in the long form
PATIENT_S = 1.5
# after each recovery, so that faults fall on all phases of the load
LONGEST_PAUSE_S = 0.3
PREDICT_TIMEOUT_S = 2
SHOWN_LOSSES = 5
# for a point that the core passes seldom
POINT_PATIENCE_S = 1.5
# the page that the mules of kill_at_points look at, as long as bench/models/perilous has it
POINT_BYTES = 64
CGROUP_BYTES = 256 << 20


@dataclass(frozen=True)
class Row:
    """One fault, and the load under which it is done."""

    name: str
    fault: str
    play: Callable[["Stage"], None]
    short: int
    long: int
    model: Path = FANCY
    environ: Mapping[str, object] = field(default_factory=dict)
    mules: int = 4
    connections: int = 16
    # None: as much as is answered
    share: float | None = LOAD_SHARE
    refusals: Collection[str] = ()
    # several clients at the same moment, so that batches form
    burst: bool = False
    # of the long form, which runs alone on its machine
    slowest_s: float | None = None


@dataclass
class Result:
    """What became of a row."""

    row: Row
    asked: int
    done: int
    tally: Tally
    rate: float
    took_s: float
    notes: list[str]
    # beyond wrong, lost and hung: a pool that was not whole again, a server that did not stop
    failures: list[str]

    @property
    def ok(self) -> bool:
        tally = self.tally
        return not (tally.wrong or tally.lost or tally.hung or self.failures) and self.done >= self.asked > 0

    def cells(self) -> list[str]:
        tally = self.tally
        refused = ", ".join(f"{count} × {what}" for what, count in sorted(tally.refused.items()))
        return [
            self.row.fault,
            str(self.done),
            str(tally.sent),
            str(tally.right),
            refused or "0",
            str(tally.wrong),
            str(tally.lost),
            str(tally.hung),
            f"{tally.longest_gap_s:.2f} s",
            f"{tally.slowest_s:.2f} s",
        ]


HEAD = ["fault", "times", "sent", "right", "expected refusals", "wrong", "lost", "hung", "longest gap", "slowest"]


class Stage:
    """One row while it runs: its server, its load, and what happened so far."""

    def __init__(
        self, row: Row, times: int, dice: random.Random, capacities: dict[Path, float], environ: dict[str, object]
    ) -> None:
        self.row = row
        self.times = times
        self.dice = dice
        self.done = 0
        self.tally = Tally()
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.environ = environ
        self.fresh = False
        self.rate = 0.0
        self.server: Server
        # how many replicas are ready when all is well
        self.whole = 0
        self._capacities = capacities
        self._work: Work | None = None
        self._load: Load | None = None
        self._starts = 0
        self._guilty = 0
        self._keep = False
        self._events: list[tuple[float, str]] = []
        self._began = time.monotonic()

    def start(self) -> None:
        """A ready server under load."""
        row = self.row
        self._starts += 1
        environ = {"MODEL": row.model, "MULES": row.mules, "SERVING_DEADLINE_MS": int(DEADLINE_S * 1000)}
        self.server = Server(environ | dict(row.environ) | self.environ)
        self.server.wait_ready()
        self.whole = self.server.readyz().get("ready_replicas", 0)
        name = f"{row.name}{self._starts}"
        self._work = digits() if row.model == DIGITS else Fancy(name)
        if row.share is not None and row.model not in self._capacities:
            self._capacities[row.model] = self._capacity(self._work)
        self.rate = self._capacities[row.model] * row.share if row.share is not None else 0.0
        self._load = Load(
            self.server.port,
            self._work,
            connections=row.connections,
            rate=self.rate or None,
            deadline_s=DEADLINE_S,
            name=name,
            refusals=row.refusals,
            fresh=self.fresh,
            burst=row.burst,
        ).start()
        # mules that have not answered yet do not take part
        self.pause(0.5)

    def _capacity(self, work: Work) -> float:
        load = Load(
            self.server.port,
            work,
            connections=CALIBRATION_CONNECTIONS,
            rate=None,
            deadline_s=DEADLINE_S,
            name=f"{self.row.name}-capacity",
        ).start()
        time.sleep(CALIBRATION_S)
        return load.stop().right / CALIBRATION_S

    def finish(self, reread: bool = False) -> None:
        """End the load, then the server, and say what is known of each loss.  reread: of nginx's log, what it never
        read was refused.
        """
        if self._load is None:
            return
        load, self._load = self._load, None
        tally = load.stop()
        if reread:
            self._excuse_unread(tally)
        try:
            status = self.server.stop()
            if status:
                self.fail(f"the server ended with status {status}: {self.server.output[-500:]}")
        except subprocess.TimeoutExpired:
            self.fail("the server did not stop")
        for loss in tally.losses[:SHOWN_LOSSES]:
            self._explain(loss)
        if tally.losses or self.failures:
            self._keep = True
        self.tally.add(tally)
        self.server.close(self._keep)
        if self._keep:
            say(f"    its logs: {self.server.run_dir}")

    def close(self) -> None:
        """After whatever happened."""
        self._keep = self._keep or bool(self.failures or self.tally.losses)
        try:
            self.finish()
        finally:
            if hasattr(self, "server"):
                self.server.close(self._keep)

    def _excuse_unread(self, tally: Tally) -> None:
        # what lay in the socket when it was closed, read by nobody
        read = self.server.requests_read()
        for loss in list(tally.losses):
            if loss.detail.startswith(CUT) and loss.request_id not in read:
                tally.excuse(loss, "cut unread")

    def _explain(self, loss: Loss) -> None:
        say(
            f"    {loss.kind} {loss.request_id}: {loss.detail}; "
            f"sent at {loss.sent_at - self._began:.3f} s, ended after {loss.ended_at - loss.sent_at:.3f} s"
        )
        near = [
            (at, event) for at, event in self._events if -1 < at - loss.sent_at < min(2, loss.ended_at - loss.sent_at)
        ]
        for at, event in near:
            say(f"      {at - self._began:.3f} s: {event}")
        for line in self.server.lines_about(loss.request_id):
            say(f"      {line}")

    def fail(self, what: str) -> None:
        say(f"    {what}")
        self.failures.append(what)

    def note(self, event: str) -> None:
        self._events.append((time.monotonic(), event))

    def did(self, event: str, times: int = 1) -> None:
        """Count a fault, and show how far it is."""
        self.note(event)
        self.done += times
        so_far = self._load.tally if self._load else Tally()
        losses = [self.tally, so_far]
        progress(
            f"  {self.row.name}: {self.done}/{self.times}, {sum(tally.right for tally in losses)} right, "
            f"{sum(tally.wrong for tally in losses)} wrong, {sum(tally.lost for tally in losses)} lost, "
            f"{sum(tally.hung for tally in losses)} hung"
        )

    def pause(self, least_s: float = 0.05) -> None:
        time.sleep(least_s + self.dice.random() * LONGEST_PAUSE_S)

    def ready(self) -> list[int]:
        """The pids of the replicas that are in service."""
        return [replica["pid"] for replica in self.server.readyz().get("replicas", []) if replica["ready"]]

    def has_workers(self, count: int, gone: int) -> bool:
        return not alive(gone) and len(self.server.of_role("worker")) == count

    def kill(self, pid: int, number: signal.Signals, role: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        self.did(f"{number.name} to {role} {pid}")

    def recover(self, gone: Collection[int] = ()) -> None:
        """Wait until these are replaced and the pool is whole."""

        def whole() -> bool:
            if self.server.process.poll() is not None:
                raise NotInTime(f"the server has ended: {self.server.output[-500:]}")
            ready = self.ready()
            return len(ready) >= self.whole and not set(gone) & set(ready) and not any(map(alive, gone))

        missing = f"the {len(gone)} that went are replaced and {self.whole} replicas are ready"
        wait_until(whole, missing, RECOVERY_S)
        self.note("the pool is whole")
        self.pause()

    def send_guilty(self, text: str, codes: Collection[str], again: bool = False) -> None:
        """A request that kills, which has to be told so.  again: and to stay away for a while."""
        self._guilty += 1
        id = f"{self.row.name}-guilty-{self._guilty}"
        sent_at = time.monotonic()
        self.tally.sent += 1
        kind = "lost"
        try:
            answer = ask(self.server.port, b'{"text":"%s"}' % text.encode(), id, DEADLINE_S + PATIENCE_S)
        except TimeoutError:
            kind, detail = "hung", "no answer to the guilty"
        except (OSError, http.client.HTTPException) as error:
            detail = f"no answer to the guilty: {error!r}"
        else:
            if answer.code in codes and answer.status >= 500 and (answer.retry_after or not again):
                self.tally.refused[f"{answer.status} to the guilty"] += 1
                return
            kind = "wrong"
            detail = f"the guilty was told {answer.status} {answer.code or answer.body!r}"
            if again:
                detail += f" with Retry-After {answer.retry_after}, the second time"
        loss = Loss(kind, id, sent_at, time.monotonic(), detail)
        self.tally.lose(loss)
        if len(self.tally.losses) <= SHOWN_LOSSES:
            self._explain(loss)


# ---- the faults


def kill_mules(stage: Stage) -> None:
    """One, two or three at the same moment, one is always left."""
    while stage.done < stage.times:
        ready = stage.ready()
        count = min(stage.dice.choice((1, 1, 1, 2, 3)), len(ready) - 1, stage.times - stage.done)
        victims = stage.dice.sample(ready, count)
        for pid in victims:
            stage.kill(pid, signal.SIGKILL, "mule")
        stage.recover(victims)


def kill_workers(stage: Stage) -> None:
    count = len(stage.server.of_role("worker"))
    while stage.done < stage.times:
        victim = stage.dice.choice(stage.server.of_role("worker"))
        stage.kill(victim, signal.SIGKILL, "worker")
        wait_until(partial(stage.has_workers, count, victim), "the worker is replaced", RECOVERY_S)
        stage.recover()


def kill_at_points(stage: Stage) -> None:
    """Before, during and after each call that a mule makes on the queue, the cache and their locks."""
    folder = Path(str(stage.environ["CHAOS_DIR"]))
    token, point = folder / "token", folder / "point"
    points: list[str] = []
    unreached: set[str] = set()
    while stage.done < stage.times:
        if not points:
            # the mules write down which calls they make
            calls = sorted(set((folder / "calls").read_text().split()))
            points = [f"{when} {call}" for call in calls for when in ("before", "during", "after")]
            points = [at for at in points if at not in unreached]
            stage.dice.shuffle(points)
        at = points.pop()
        before = stage.ready()
        token.touch()
        with point.open("r+b") as file:
            file.write(at.encode().ljust(POINT_BYTES, b"\0"))
        try:
            wait_until(lambda: not token.exists(), at, POINT_PATIENCE_S, 0.01)
        except NotInTime:
            # taken away by both at the same moment: one of them has it
            with suppress(FileNotFoundError):
                token.unlink()
                unreached.add(at)
                continue
        finally:
            with point.open("r+b") as file:
                file.write(bytes(POINT_BYTES))
        victims = wait_until(partial(dead, before), f"a mule died {at}", 5)
        stage.did(f"SIGKILL {at} in mule {victims[0]}")
        stage.recover(victims)
    stage.notes.append(where_it_fell((folder / "kills").read_text().splitlines(), unreached))


def where_it_fell(lines: list[str], unreached: Collection[str]) -> str:
    """What the mules wrote before they died, summed up."""
    late = lines.count("outlived the call")
    points = [line.split() for line in lines if not line.startswith("outlived")]
    when = Counter(words[0] for words in points)
    calls = Counter(words[1] for words in points)
    told = (
        f"{when['before']} before a call, {when['during'] - late} inside, {late} soon after, "
        f"{when['after']} right after: " + ", ".join(f"{call} {count}" for call, count in sorted(calls.items()))
    )
    return told + (f"; not reached: {', '.join(sorted(unreached))}" if unreached else "")


def stop_mules(stage: Stage) -> None:
    """SIGSTOP, and nobody ever continues it."""
    while stage.done < stage.times:
        victim = stage.dice.choice(stage.ready())
        stage.kill(victim, signal.SIGSTOP, "mule")
        stage.recover([victim])


def poison(word: str) -> Callable[[Stage], None]:
    """An input that kills its replica, twice the same, in the middle of good ones."""

    def play(stage: Stage) -> None:
        while stage.done < stage.times:
            text = f"{word} {stage.done}"
            stage.did(f"poison: {text}")
            stage.send_guilty(text, {"replica_crashed"})
            stage.send_guilty(text, {"replica_crashed"}, again=True)
            stage.recover()

    return play


def sleep_for_ever(stage: Stage) -> None:
    while stage.done < stage.times:
        before = stage.ready()
        stage.did("an input that sleeps")
        stage.send_guilty(f"sleep {stage.done}", {"replica_crashed", "deadline"})
        # whoever sleeps is not found by its heartbeat: it is busy
        wait_until(partial(dead, before), "the replica that sleeps is ended", RECOVERY_S)
        stage.recover()


def eat_memory(stage: Stage) -> None:
    poison("memory")(stage)
    cgroup = stage.environ.get("CHAOS_CGROUP")
    if cgroup:
        kills = oom_kills(Path(str(cgroup)))
        stage.notes.append(f"killed by the kernel's OOM killer: {kills} times, in a cgroup")
        log = (stage.server.run_dir / "server.log").read_text()
        told = len(re.findall(r"replica \d+ \(pid \d+\) .*, out of memory", log))
        if told < kills:
            stage.fail(f"the log tells of {told} of {kills} out-of-memory kills")
    else:
        stage.notes.append("no cgroup can be made here: RLIMIT_AS, and abort() where memory is not given")


def overflow(stage: Stage) -> None:
    """Far more clients than threads; counted are the seconds of it."""
    while stage.done < stage.times:
        time.sleep(1)
        stage.did("a second of overflow")
    stage.finish()
    if not stage.tally.refused["503"]:
        stage.fail("nothing was refused: that was no overflow")


def reload(*arguments: str) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        while stage.done < stage.times:
            before = set(stage.ready())
            told = stage.server.command("reload", *arguments)
            stage.did(f"reload {' '.join(arguments)}")
            if told.returncode:
                stage.fail(f"reload ended with {told.returncode}: {told.stdout}{told.stderr}")
            if kept := before & set(stage.ready()):
                stage.fail(f"reload left the replicas {kept} as they were")
            stage.recover()

    return play


def terminate(stage: Stage) -> None:
    """SIGTERM under load, in turns with fresh and with kept connections.

    Accepted is what nginx has read: it logs each such request.  What its listening socket, or a kept connection, held
    unread in the moment of its close is cut by the kernel; no server can help that, and a client may send it again.
    """
    while stage.done < stage.times:
        if stage.done:
            stage.fresh = not stage.fresh
            stage.start()
        stage.pause(0.5)
        stage.did("SIGTERM to the supervisor")
        try:
            stage.server.stop()
        except subprocess.TimeoutExpired:
            stage.fail("the server did not stop")
        stage.finish(reread=True)


# ---- what they need


def dead(pids: Collection[int]) -> list[int]:
    return [pid for pid in pids if not alive(pid)]


@cache
def digits() -> Digits:
    return Digits()


@cache
def make_cgroup() -> Path | None:
    """A memory cgroup below this process's own; None where that is not allowed."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        limit = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = root / path.lstrip("/") / f"muleteer-chaos-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(CGROUP_BYTES))
            with suppress(OSError):
                (folder / "memory.swap.max").write_text("0")
            return folder
        except OSError:
            folder.rmdir()
    return None


def oom_kills(cgroup: Path) -> int:
    for name in ("memory.events", "memory.oom_control"):
        with suppress(OSError):
            words = (cgroup / name).read_text().split()
            return int(words[words.index("oom_kill") + 1])
    return 0


def rows() -> list[Row]:
    """All rows that this build can play."""
    # known to this build or not: a setting that is not known refuses to start
    timeout = {"SERVING_PREDICT_TIMEOUT_S": PREDICT_TIMEOUT_S}
    found = [
        Row("mules", "`kill -9` of mules", kill_mules, 16, 100, slowest_s=PATIENT_S),
        Row(
            "mules-digits",
            "`kill -9` of mules, TensorFlow",
            kill_mules,
            2,
            20,
            model=DIGITS,
            mules=3,
            slowest_s=PATIENT_S,
        ),
        Row("workers", "`kill -9` of workers", kill_workers, 10, 50, slowest_s=PATIENT_S),
        Row(
            "points",
            "`kill -9` of a mule in a queue or cache call",
            kill_at_points,
            16,
            108,
            PERILOUS,
            burst=True,
            connections=32,
            slowest_s=PATIENT_S,
        ),
        Row("stopped", "`kill -STOP` of a mule", stop_mules, 2, 10),
        Row("exit", "an input that exits", poison("exit"), 2, 10, model=PERILOUS, burst=True, connections=32),
        Row(
            "segfault", "an input that segfaults", poison("segfault"), 2, 10, model=PERILOUS, burst=True, connections=32
        ),
        Row(
            "sleep",
            "an input that sleeps for ever",
            sleep_for_ever,
            1,
            5,
            PERILOUS,
            timeout,
            burst=True,
            connections=32,
        ),
        Row("memory", "an input that eats all memory", eat_memory, 1, 5, model=PERILOUS, burst=True, connections=32),
        Row(
            "overflow",
            "200 clients for 16 threads, seconds",
            overflow,
            4,
            30,
            environ={"THREADS": 8},
            connections=200,
            share=None,
            refusals={"503"},
        ),
        Row("term", "`SIGTERM`", terminate, 2, 20, refusals={REFUSED}),
    ]
    found.insert(-1, Row("rolling", "rolling restart", reload(), 2, 10))
    found.insert(-1, Row("reload", "full reload", reload("--all"), 2, 10))
    return found


@contextmanager
def scene(row: Row) -> Iterator[dict[str, object]]:
    """What a row needs beside its server, as the environment that tells its model."""
    if row.play is kill_at_points:
        with tempfile.TemporaryDirectory(prefix="muleteer-bench-") as folder:
            Path(folder, "point").write_bytes(bytes(POINT_BYTES))
            for name in ("kills", "calls"):
                Path(folder, name).touch()
            yield {"CHAOS_DIR": folder}
    elif row.play is eat_memory and (cgroup := make_cgroup()):
        yield {"CHAOS_CGROUP": cgroup}
        wait_until(lambda: not (cgroup / "cgroup.procs").read_text(), "the cgroup is empty", 10)
        cgroup.rmdir()
    else:
        yield {}


def run(row: Row, short: bool, seed: int, capacities: dict[Path, float]) -> Result:
    """Play one row."""
    began = time.monotonic()
    times = row.short if short else row.long
    with scene(row) as environ:
        stage = Stage(row, times, random.Random(f"{seed} {row.name}"), capacities, environ)
        try:
            stage.start()
            row.play(stage)
        except NotInTime as error:
            stage.fail(str(error))
        finally:
            stage.close()
    if not short and row.slowest_s is not None and stage.tally.slowest_s > row.slowest_s:
        stage.fail(f"the slowest answer took {stage.tally.slowest_s:.2f} s, over {row.slowest_s:g} s")
    took_s = time.monotonic() - began
    return Result(row, times, stage.done, stage.tally, stage.rate, took_s, stage.notes, stage.failures)


def render(results: list[Result], seed: int) -> str:
    """The results as Markdown."""
    parts = [f"{report.machine()} Seed {seed}.", report.table(HEAD, [result.cells() for result in results])]
    for result in results:
        rate = f"{result.rate:.0f} requests/s" if result.rate else "as many as are answered"
        told = [f"{rate}, {result.took_s:.0f} s", *result.notes, *(f"FAILED: {what}" for what in result.failures)]
        if result.done < result.asked:
            told.append(f"FAILED: {result.done} of {result.asked}")
        parts.append(f"- {result.row.fault}: {'; '.join(told)}")
    return "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:])


_last_progress = 0.0


def progress(text: str) -> None:
    """A line that the next one overwrites; where nobody looks, one now and then."""
    global _last_progress
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif time.monotonic() - _last_progress > 10:
        _last_progress = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(f"\r\033[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def main() -> int:
    """Play the rows, print the table, and say whether all is well."""
    parser = argparse.ArgumentParser(prog="bench.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="few faults of each kind: some three minutes")
    parser.add_argument("--only", action="append", metavar="ROW", help="one row; may be given more than once")
    parser.add_argument("--seed", type=int, default=7, help="of the choice of victims and moments (7)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table into this Markdown file too")
    arguments = parser.parse_args()
    chosen = rows()
    if arguments.only:
        names = [row.name for row in chosen]
        if unknown := set(arguments.only) - set(names):
            parser.error(f"there is no row {', '.join(sorted(unknown))}; the rows are {', '.join(names)}")
        chosen = [row for row in chosen if row.name in arguments.only]
    capacities: dict[Path, float] = {}
    results = []
    for row in chosen:
        say(f"{row.name}: {row.fault}")
        results.append(run(row, arguments.short, arguments.seed, capacities))
        say(f"  {'ok' if results[-1].ok else 'FAILED'} after {results[-1].took_s:.0f} s")
    text = render(results, arguments.seed)
    print(text)
    if arguments.out:
        report.write(arguments.out, "Faults", text)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
