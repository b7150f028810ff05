"""All that a search has found, as JSON: for scripts, and for `capacity`, which reads the model and the costs again.

Runs in:  the command line.
Units:    seconds; milliseconds in what ends in _ms.
"""

import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.model import ModelFolder, contents, identity
from serving.settings import Settings, cores, memory_bytes
from tuning.alone import Alone
from tuning.candidates import Evidence
from tuning.pool import Costs, Line
from tuning.promise import Promise
from tuning.rationale import rationale
from tuning.search import Found, Trial, behind_of, others_of

# of what is read again; another is not understood
FORM = 1


def machine() -> dict[str, Any]:
    """What a measurement holds for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "processor": name,
        "cores": cores(),
        "memory_mb": memory_bytes() >> 20,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def model(folder: ModelFolder) -> dict[str, Any]:
    """Which it is: what of it changes, changes its identity."""
    about = {"name": folder.name, "version": folder.version, "path": str(folder.path)}
    return about | {"identity": identity(contents(folder.path, folder.root))}


def as_dict(found: Found, folder: ModelFolder) -> dict[str, Any]:
    """All of it."""
    evidence = found.evidence
    present = evidence.present.setting
    chosen = found.chosen
    return {
        "form": FORM,
        "promise": asdict(found.promise) | {"told": str(found.promise)},
        "rate": found.rate,
        "model": model(folder),
        "machine": machine(),
        "seconds": round(found.seconds, 1),
        "seed": found.seed,
        "others": round(others_of(found), 3),
        "behind": round(behind_of(found), 3),
        "alone": [one.as_dict() for one in evidence.alone.values()],
        "lines": {str(threads): _line(line) for threads, line in evidence.lines.items()},
        "costs": asdict(evidence.costs),
        "rows": list(evidence.rows),
        "batch_wait_ms": evidence.settings.batch_wait_ms,
        "low": found.low.as_dict(),
        "full": found.full.as_dict(),
        "candidates": [
            {"setting": one.pool.setting.as_dict(), "rate": one.rate, "percentile_ms": _ms(one.percentile_s)}
            for one in found.ranked
        ],
        "trials": [_trial(trial, found.promise) for trial in found.trials],
        "present": present.as_dict(),
        "chosen": chosen and chosen.setting.as_dict(),
        "changes": {key: value for (_, key), value in changes(found).items()},
        "rationale": [reason._asdict() for reason in rationale(found)],
    }


def changes(found: Found) -> dict[tuple[str, str], int]:
    """What is to stand in uwsgi.ini."""
    if found.chosen is None or found.chosen is found.present:
        return {}
    return found.chosen.setting.lines(found.evidence.settings)


def _trial(trial: Trial, promise: Promise) -> dict[str, Any]:
    return {
        "setting": trial.setting.as_dict(),
        "held": trial.held,
        "full": trial.full and trial.full.as_dict(),
        "points": [
            {
                "rate": point.rate,
                "predicted_ms": _ms(point.predicted_s),
                "predicted_refused": point.predicted_refused,
                "measured_ms": _ms(point.measured_s(promise)),
                "runs": [run.as_dict() | {"percentile_ms": _ms(promise.of(run.latencies))} for run in point.runs],
            }
            for point in sorted(trial.points, key=lambda point: point.rate)
        ],
    }


def _line(line: Line) -> dict[str, Any]:
    return asdict(line)


def _ms(seconds: float) -> float | None:
    """None for a refusal: JSON has no infinity."""
    return round(seconds * 1000, 3) if math.isfinite(seconds) else None


def write(file: Path, text: str) -> None:
    """All at once, for this user and group."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as out:
            out.write(text)
        Path(name).chmod(0o640)
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)


class Unfit(Exception):
    """What was recorded is of something else, in one sentence."""


def read(file: Path, folder: ModelFolder, settings: Settings, promise: Promise) -> Evidence:
    """What is known of this model on this machine; Unfit where that is nothing."""
    try:
        found: Mapping[str, Any] = json.loads(file.read_bytes())
        if found["form"] != FORM:
            raise Unfit(f"{file} is of another version of muleteer")
        if found["model"]["identity"] != model(folder)["identity"]:
            raise Unfit(f"{file} is of another model, or of this one before it changed")
        here, there = machine(), found["machine"]
        if any(here[key] != there[key] for key in ("processor", "cores")):
            raise Unfit(f"{file} was measured on another machine")
        if found["batch_wait_ms"] != settings.batch_wait_ms:
            raise Unfit(f"{file} was measured with batch_wait_ms = {found['batch_wait_ms']}")
        lines = {int(threads): _tupled(Line, line) for threads, line in found["lines"].items()}
        alone = {one["threads"]: Alone.from_dict(one) for one in found["alone"]}
        costs = _tupled(Costs, found["costs"])
        return Evidence(settings, promise, alone, lines, costs, float(here["cores"]), tuple(found["rows"]))
    except OSError as error:
        raise Unfit(f"there is no {file}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unfit(f"{file} is no record of tune") from error


def _tupled(kind: type[Any], value: Mapping[str, Any]) -> Any:
    return kind(**{key: tuple(one) if isinstance(one, list) else one for key, one in value.items()})
