"""A long steady load, and what grows under it.

usage: python -m bench.soak [--minutes N] [--requests N] [--share S] [--model digits|fancy] [--out FILE]

The shipped settings, at SHARE of what the server can do.  Every SAMPLE_S seconds: PSS, RSS, private memory and open
files of every process, items in the cache, System V semaphores.  The first quarter is for caches and allocators
to fill up.  It grows what is larger in the last quarter than in the second, by the medians, and by more than its margin
(MARGINS).

It goes on, twice as long at the most, until REQUESTS were answered right.  The exit status is 1 unless they were,
nothing grows, and nothing was wrong, lost or hung.

Units: seconds, unless a name says bytes.
"""

import argparse
import ctypes
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.load import Load, Work
from bench.server import Server
from bench.work import DIGITS, FANCY, ROOT, Digits, Fancy

SAMPLE_S = 10.0
CALIBRATION_S = 5.0
CONNECTIONS = 16
DEADLINE_S = 5.0
MIB = 1 << 20
# a request leaves a line; nobody reads so many
MAX_LOG_BYTES = 64 * MIB
SEM_GETPID = 11


@dataclass(frozen=True)
class Margin:
    """By how much a median may be above the one before, in parts of it and in units."""

    part: float
    units: int


# files come and go with requests that are on their way; semaphores do not
MARGINS = {
    "PSS": Margin(0.02, MIB),
    "RSS": Margin(0.02, MIB),
    "private": Margin(0.02, MIB),
    "files": Margin(0.0, CONNECTIONS),
    "items": Margin(0.0, 2 * CONNECTIONS),
    "semaphores": Margin(0.0, 0),
}
# (process or part, quantity): one number for each sample
Series = dict[tuple[str, str], list[float]]


class Sampler:
    """What a server takes of the machine, again and again."""

    def __init__(self, server: Server) -> None:
        self.series: Series = {}
        self._server = server
        # none of them should end meanwhile
        self._processes = server.processes()
        self._libc = ctypes.CDLL(None)

    def sample(self) -> None:
        for pid, role in sorted(self._processes.items()):
            name = f"{role} {pid}"
            lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
            kib = {words[0]: int(words[1]) for words in lines}
            self._put(name, "PSS", kib["Pss:"] * 1024)
            self._put(name, "RSS", kib["Rss:"] * 1024)
            # what it shares with no other: neither frames and replies, nor what was there before the fork
            self._put(name, "private", (kib["Private_Clean:"] + kib["Private_Dirty:"]) * 1024)
            self._put(name, "files", len(list(Path(f"/proc/{pid}/fd").iterdir())))
        self._put("cache", "items", self._cache_items())
        self._put("server", "semaphores", self._semaphores())
        log = self._server.run_dir / "access.log"
        if log.stat().st_size > MAX_LOG_BYTES:
            # nginx appends
            os.truncate(log, 0)

    def _put(self, name: str, quantity: str, value: float) -> None:
        self.series.setdefault((name, quantity), []).append(value)

    def _cache_items(self) -> int:
        with socket.socket(socket.AF_UNIX) as stats:
            stats.settimeout(5)
            stats.connect(str(next(self._server.run_dir.glob("uwsgi-*/stats.sock"))))
            told = b""
            while part := stats.recv(65536):
                told += part
        return sum(int(cache["items"]) for cache in json.loads(told)["caches"])

    def _semaphores(self) -> int:
        """Sets that a process of the server was the last to use, or to make."""
        ids = [int(line.split()[1]) for line in Path("/proc/sysvipc/sem").read_text().splitlines()[1:]]
        return sum(self._libc.semctl(id, 0, SEM_GETPID) in self._processes for id in ids)


def with_stats(folder: Path) -> Path:
    """The shipped uwsgi.ini, and a socket that tells of the cache."""
    ini = folder / "uwsgi.ini"
    own = "[uwsgi]\nstats = $(RUN_DIR)/stats.sock\nstats-no-cores = true\n"
    ini.write_text((ROOT / "uwsgi.ini").read_text().replace("[uwsgi]\n", own, 1))
    return ini


def grows(values: Sequence[float], margin: Margin) -> bool:
    """The rule: the median of the last quarter against that of the second."""
    quarter = len(values) // 4
    second = statistics.median(values[quarter : 2 * quarter])
    last = statistics.median(values[-quarter:])
    return last > second * (1 + margin.part) + margin.units


def render(series: Series) -> tuple[str, list[str]]:
    """A table of all series, and the names of those that grow."""
    rows, growing = [], []
    for (name, quantity), values in series.items():
        quarter = len(values) // 4
        unit = MIB if quantity in ("PSS", "RSS", "private") else 1
        numbers = [values[0], statistics.median(values), statistics.median(values[-quarter:])]
        verdict = "grows" if grows(values, MARGINS[quantity]) else "does not grow"
        if verdict == "grows":
            growing.append(f"{quantity} of {name}")
        rows.append(
            [
                name,
                f"{quantity}, MiB" if unit == MIB else quantity,
                *(f"{number / unit:.1f}" if unit == MIB else f"{number:.0f}" for number in numbers),
                verdict,
            ]
        )
    return report.table(["process", "quantity", "first", "median", "last quarter", "verdict"], rows), growing


def load_for(server: Server, work: Work, name: str, rate: float | None) -> Load:
    return Load(server.port, work, connections=CONNECTIONS, rate=rate, deadline_s=DEADLINE_S, name=name)


def soak(model: Path, minutes: float, share: float, requests: int, folder: Path) -> tuple[str, bool]:
    """One run: its report as Markdown, and whether all is well."""
    work: Work = Digits(model) if model == DIGITS else Fancy("soak")
    mules = 4 if model == FANCY else 2
    environ = {"MODEL": model, "MULES": mules, "INI": with_stats(folder), "SERVING_DEADLINE_MS": int(DEADLINE_S * 1000)}
    server = Server(environ)
    load: Load | None = None
    try:
        server.wait_ready()
        load = load_for(server, work, "capacity", None).start()
        time.sleep(CALIBRATION_S)
        capacity = load.stop().right / CALIBRATION_S
        report.say(f"{capacity:.0f} requests/s at the most; {minutes:g} minutes at {share * capacity:.0f}")
        sampler = Sampler(server)
        cpu, began = time.process_time(), time.monotonic()
        load = load_for(server, work, "soak", share * capacity).start()
        until = began + minutes * 60
        # a server that is too slow for so many, or answers no more, has not passed
        while time.monotonic() < until or (load.tally.right < requests and time.monotonic() < until + minutes * 60):
            time.sleep(SAMPLE_S)
            sampler.sample()
            tally = load.tally
            report.say(
                f"  {time.monotonic() - began:.0f} s: {tally.sent} sent, {tally.right} right, {tally.wrong} wrong, "
                f"{tally.lost} lost, {tally.hung} hung"
            )
        tally = load.stop()
        took_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
        status = server.stop()
    finally:
        if load is not None:
            with suppress(Exception):
                load.stop()
        server.close()
    text, growing = render(sampler.series)
    ok = not (growing or status or tally.wrong or tally.lost or tally.hung) and tally.right >= requests
    verdict = f"Grows: {', '.join(growing)}." if growing else "Does not grow."
    head = (
        f"{report.machine()}\n\n"
        f"{model.name} with {mules} mules, {took_s / 60:.1f} minutes at {tally.sent / took_s:.0f} requests/s,"
        f" {share:.0%} of the {capacity:.0f} that it can do: {tally.sent} sent, {tally.right} right,"
        f" {tally.wrong} wrong, {tally.lost} lost, {tally.hung} hung, the slowest {tally.slowest_s:.2f} s; the"
        f" client cost {cpu_s / tally.sent * 1e6:.0f} µs of CPU per request.\n\n"
        f"A sample every {SAMPLE_S:.0f} s.  It grows what is larger in the last quarter than in the second, by the"
        f" medians, by more than 2 % and 1 MiB, {MARGINS['files'].units} files, {MARGINS['items'].units} items of the"
        f" cache, or any semaphore.  **{verdict}**"
    )
    losses = [f"- {loss.kind} {loss.request_id}: {loss.detail}" for loss in tally.losses[:10]]
    return "\n\n".join([head, text, *(["\n".join(losses)] if losses else [])]), ok


def main() -> int:
    """Run, print the report, and say whether all is well."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="how long (30)")
    parser.add_argument("--requests", type=int, default=1_000_000, help="right answers at the least (1000000)")
    parser.add_argument("--share", type=float, default=0.7, help="of what the server can do (0.7)")
    parser.add_argument("--model", choices=["digits", "fancy"], default="digits", help="what is served (digits)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report into this Markdown file too")
    arguments = parser.parse_args()
    if arguments.minutes * 60 < 8 * SAMPLE_S:
        parser.error(f"--minutes {arguments.minutes:g} is too short for quarters; {8 * SAMPLE_S / 60:.1f} would do")
    with tempfile.TemporaryDirectory(prefix="muleteer-bench-") as folder:
        model = DIGITS if arguments.model == "digits" else FANCY
        text, ok = soak(model, arguments.minutes, arguments.share, arguments.requests, Path(folder))
    print(text)
    if arguments.out:
        report.write(arguments.out, f"Soak, {arguments.model}", text)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
