"""The commands `tune` and `capacity`: from what is asked to what is printed and written.

Runs in:  the command line.
Raises:   TuneFailed, in one sentence, and what the parts of a search raise.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from load import loadgen
from serving.model import ModelFolder
from serving.settings import Settings, cores
from tuning import calibration, candidates, ini, rationale, record, report
from tuning.alone import Alone
from tuning.candidates import Evidence, Prediction
from tuning.pool import Costs
from tuning.progress import Bar
from tuning.promise import Promise
from tuning.search import Found, Search
from tuning.setting import Setting
from tuning.stack import Stack, others, sweep

# beside a server's own files in its run folder
REPORT = "tune.html"
# what a request costs around the model where nobody has measured it: as tune found it for the digits and for
# examples/fancy with the shipped uwsgi.ini, on a core of a virtual machine of 2026 (AMD EPYC) in a slow hour; in a good
# one it is half of that, but whoever is promised too little is not let down
_COSTS = Costs(90e-6, 240e-6, 0.0, 240e-6, 35e-6, (150e-6, 350e-6, 900e-6))
_OTHER_MULES = (1, 2, 3, 4, 6, 8, 12, 16)


class TuneFailed(Exception):
    """What was asked cannot be done, in one sentence."""


@dataclass(frozen=True)
class Asked:
    """What a command is about."""

    folder: ModelFolder
    settings: Settings
    ini: Path
    run_dir: Path
    environ: Mapping[str, str]
    promise: Promise


def interruptible() -> None:
    """From now on let signals end what was started before they end this process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        # another one does not break off the end
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def tune(
    asked: Asked,
    rate: float,
    minutes: float,
    inputs: Path | None,
    file: Path | None,
    write: bool,
    as_json: bool,
) -> int:
    """Search, report, and write if asked to.  Returns the exit status: 1 where nothing holds the promise."""
    file = (file or asked.run_dir / REPORT).absolute()
    if file.suffix == ".json":
        raise TuneFailed(f"--report {file}: there all that was measured will lie; name the page, as {REPORT}")
    bodies, rows = read_inputs(inputs) if inputs else ((), (1,))
    text = asked.ini.read_text()
    # what takes minutes is not to fail at its end
    _check_folder(file.parent, "set --report to another file")
    if write:
        _check_folder(asked.ini.resolve().parent, "leave out --write, and apply the difference by hand")
    loadgen.compiled()
    sweep()
    if running := others():
        many = "another server runs" if len(running) == 1 else f"{len(running)} other servers run"
        print(f"muleteer: {many} on this machine, and what is found will be too low", file=sys.stderr)

    def start(setting: Setting) -> Stack:
        return Stack(setting, asked.settings, asked.ini, asked.settings.model, asked.environ)

    with Bar() as bar:
        search = Search(asked.folder, asked.settings, start, asked.promise, rate, 60 * minutes, bar)
        found = search.run(bodies, rows)
    changes = record.changes(found)
    difference = ini.difference(text, ini.rewritten(text, changes), asked.ini.name)
    known = record.as_dict(found, asked.folder)
    record.write(file, report.html(found, asked.folder, difference, asked.ini.name))
    record.write(file.with_suffix(".json"), json.dumps(known, indent=1))
    if as_json:
        print(json.dumps(known | {"report": str(file), "difference": difference}))
    else:
        _print(found, difference, file, changes, asked.environ)
    if write and changes:
        ini.write(asked.ini, text, changes, asked.environ)
        print(f"muleteer: written to {asked.ini}; `muleteer reload` lets a server take it", file=sys.stderr)
    return 0 if found.chosen else 1


def _check_folder(folder: Path, fix: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TuneFailed(f"{folder} cannot be made: {error.strerror}; {fix}") from error
    if not os.access(folder, os.W_OK):
        raise TuneFailed(f"{folder} cannot be written to; {fix}")


def _print(
    found: Found,
    difference: str,
    file: Path,
    changes: Mapping[tuple[str, str], int],
    environ: Mapping[str, str],
) -> None:
    for reason in rationale.rationale(found):
        print(f"{reason.question}\n  {reason.answer}")
    if difference:
        print(f"\n{difference}")
    for name in ini.overridden(changes, environ):
        print(f"{name} is set in the environment, and comes before the file.")
    print(f"Report: {file}")


def read_inputs(file: Path) -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """Recorded requests, one JSON body a line, and the rows of each."""
    try:
        lines = [line for line in file.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise TuneFailed(f"--inputs {file}: {error.strerror}") from error
    if not lines:
        raise TuneFailed(f"--inputs {file}: it is empty; put one request a line into it, each a body of POST /predict")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_rows(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise TuneFailed(f"--inputs {file}: line {number} is not JSON: {error}") from error
    return tuple(lines), tuple(rows)


def _rows(body: Any) -> int:
    if isinstance(body, dict) and isinstance(rows := body.get("instances"), list):
        return max(1, len(rows))
    if isinstance(body, dict) and isinstance(inputs := body.get("inputs"), dict):
        return max([1, *(len(rows) for rows in inputs.values() if isinstance(rows, list))])
    return 1


# ---- capacity


def capacity(asked: Asked, mules: Sequence[int], file: Path | None, as_json: bool) -> int:
    """What rate holds the promise, from the simulation alone.  Returns the exit status: 1 where none does."""
    file = (file or asked.run_dir / REPORT).with_suffix(".json")
    try:
        evidence = record.read(file, asked.folder, asked.settings, asked.promise)
        source = f"the model and the costs of a request as tune measured them ({file})"
    except record.Unfit as unfit:
        evidence = _measured(asked)
        source = (
            f"the model alone, measured now; what a request costs around it is this build's default, for {unfit}:"
            " muleteer tune measures it"
        )
    present = Setting.of(asked.settings)
    counts = sorted({present.mules, *(mules or _OTHER_MULES)})
    if not mules:
        # what there is, and what there could be
        counts = [count for count in counts if count == present.mules or count <= evidence.most_mules]
    found = candidates.capacities(evidence, counts)
    own = next(one for one in found if one.pool.setting == present)
    doubt = rationale.unknown(evidence)
    if as_json:
        told = {
            "promise": asdict(asked.promise),
            "source": source,
            "doubt": doubt,
            "present": present.as_dict(),
            "rate": round(own.rate, 1),
        }
        print(json.dumps(told | {"mules": {one.pool.setting.mules: _told(one) for one in found}}))
    else:
        rate = f"up to {own.rate:.0f} requests a second" if own.rate else "no rate at all"
        print(f"{asked.folder.name}, {present.told()}: {asked.promise} holds for {rate}.")
        print(f"By {source}.")
        if doubt:
            print(f"{doubt}.")
        print("\n  mules  highest rate  at the most  limited by")
        for one in found:
            mark = " <" if one is own else ""
            about = _told(one)
            print(
                f"  {one.pool.setting.mules:5}  {one.rate:12.0f}  {one.pool.limit:11.0f}  {about['limited_by']}{mark}"
            )
    return 0 if own.rate else 1


def _told(one: Prediction) -> dict[str, Any]:
    limits = one.pool.limits()
    part = min(limits, key=lambda name: limits[name])
    return {"rate": round(one.rate, 1), "at_the_most": round(one.pool.limit, 1), "limited_by": part}


def _measured(asked: Asked) -> Evidence:
    """What is known of a model that nobody has tuned."""
    threads = Setting.of(asked.settings).replica_threads
    alone = Alone.measure(asked.folder, asked.settings, threads)
    line = alone.line
    if line.busy < calibration.WAITS:
        # beside others it is a little slower; by how much is not known
        line = replace(line, spread=tuple(max(1.0, one) for one in line.spread))
    return Evidence(asked.settings, asked.promise, {threads: alone}, {threads: line}, _COSTS, float(cores()), (1,))
