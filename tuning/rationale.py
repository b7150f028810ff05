"""Why these counts, in plain words and with the numbers that they follow from.

Runs in:  the command line.
Units:    seconds; milliseconds where they are told.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from tuning.candidates import Evidence
from tuning.pool import Outcome, Pool
from tuning.search import DISTURBED, Found, Point, Trial, behind_of, others_of

_PARTS = {
    "mules": "the mules: more of them, or larger batches, would do more",
    "cores": "the cores: all of them are at work, and only more of them would do more",
    "workers": "the workers, of which each does one thing at a time: more of them would do more",
    "nginx": "nginx, which does one thing at a time",
}


class Reason(NamedTuple):
    """A question, and its answer."""

    question: str
    answer: str


def rationale(found: Found) -> Iterator[Reason]:
    """All of it, the choice first."""
    yield Reason("What is recommended?", choice(found))
    if (chosen := found.chosen) is not None:
        yield Reason("Why that many mules?", _why_mules(found, chosen))
        yield Reason("Why that many threads, and that queue?", _why_seats(found, chosen))
        yield Reason("What limits it?", _what_limits(chosen.pool))
        yield Reason("What does it do at twice the rate?", twice(found, chosen))
    yield Reason("How far is the simulation to be trusted?", agreement(found))
    yield Reason("Was the machine quiet?", quiet(found))


def choice(found: Found) -> str:
    """In a sentence or two."""
    rate = f" at {found.rate:g} requests a second" if found.rate else ""
    if (chosen := found.chosen) is None:
        return _none(found, rate)
    held = f"{found.promise}{rate}" if found.rate else f"up to {chosen.held:g} requests a second within {found.promise}"
    if chosen is found.present:
        other = max((trial.held for trial in found.trials if trial is not chosen), default=0.0)
        best = "" if found.rate or not other else f"; the best of the others held {other:g}"
        return f"The present settings are right: {chosen.setting.told()} hold {held}{best}."
    told = f"{chosen.setting.told()} hold {held}."
    present = found.present
    if found.rate and present is not None:
        point = present.at(found.rate)
        if point is not None and not found.promise.holds(point.measured_s(found.promise)):
            told += f" The present settings ({present.setting.told()}) do not: {_measured(found, point)}."
    elif present is not None and present.held:
        told += f" The present settings ({present.setting.told()}) hold it up to {present.held:g}."
    elif present is not None:
        told += f" The present settings ({present.setting.told()}) held it at no rate that was tried."
    return told


def _none(found: Found, rate: str) -> str:
    told = f"Nothing that was tried holds {found.promise}{rate}."
    if (nearest := found.nearest) is not None and (point := nearest.at(found.rate)) is not None:
        told += f" The nearest was {nearest.setting.told()}: {_measured(found, point)}."
    one_s = min(alone.line.of(1, 1) for alone in found.evidence.alone.values())
    if one_s >= found.promise.limit_s:
        return f"{told} The model alone takes {_ms(one_s)} for one row: a faster model, or a longer promise, is needed."
    if found.wanted is not None:
        wanted = found.wanted.pool.setting
        # without a rate those that held none were tried at several
        tried = any(trial.setting == wanted and any(point.runs for point in trial.points) for trial in found.trials)
        why = "on a machine that is quieter" if tried else "which there was no time to try: --minutes gives more"
        return f"{told} The simulation expects it of {wanted.told()}, {why}."
    pool = found.ranked[-1].pool if found.ranked else found.evidence.present
    cores = _cores_needed(found, pool)
    if cores:
        told += f" By the CPU of a request some {cores} cores like these would be needed, not {found.evidence.cores:g}."
    return told


def _cores_needed(found: Found, pool: Pool) -> int:
    limit = pool.limits()["cores"]
    if not found.rate or not math.isfinite(limit):
        return 0
    needed = math.ceil(found.rate / (limit / pool.cores) / 0.8)
    return needed if needed > pool.cores else 0


def _why_mules(found: Found, chosen: Trial) -> str:
    pool = chosen.pool
    line, setting = pool.line, chosen.setting
    each = pool.limits()["mules"] / setting.mules
    told = (
        f"A predict of one row takes {_ms(line.of(1, 1))}, {100 * min(1.0, line.busy):.0f} % of it work for a core,"
        f" and with what a mule does around it one mule answers {each:.0f} requests a second at the most."
    )
    if found.rate:
        use = found.rate / pool.limits()["mules"]
        told += f" {found.rate:g} a second are {100 * use:.0f} % of what {_many(setting.mules, 'mule')} can do"
        fewer = [trial for trial in found.trials if trial.setting.mules < setting.mules and trial.at(found.rate)]
        fewer.sort(key=lambda trial: -trial.setting.mules)
        ranked = next((one for one in reversed(found.ranked) if one.pool.setting.mules < setting.mules), None)
        if fewer:
            told += f"; {_fewer(found, fewer[0])}"
        elif ranked is not None:
            told += f"; with {ranked.pool.setting.mules} the simulation comes to {_found_ms(ranked.percentile_s)}"
        return told + "."
    others = [trial for trial in found.trials if trial.setting.mules != setting.mules and trial.full]
    if others:
        told += (
            " Others held less: "
            + "; ".join(
                f"{_many(trial.setting.mules, 'mule')} {trial.held:g} a second"
                if trial.held
                # it had less with all the clients that there are
                else f"{_many(trial.setting.mules, 'mule')} do {trial.full.answered:.0f} at the most"
                for trial in others
                if trial.full
            )
            + "."
        )
    return told


def _fewer(found: Found, trial: Trial) -> str:
    """Why those are too few."""
    point, many = trial.at(found.rate), _many(trial.setting.mules, "mule")
    assert point is not None
    if trial.pool.limits()["mules"] < found.rate:
        return f"{many} can do {trial.pool.limits()['mules']:.0f}, and refuse the rest"
    return f"{many} would be enough on average, but not when requests come in bursts: {_measured(found, point)}"


def _why_seats(found: Found, chosen: Trial) -> str:
    setting = chosen.setting
    drained = chosen.full.answered if chosen.full else chosen.pool.limit
    limit_s = found.promise.limit_s
    longest = drained * limit_s
    queue = setting.queue(found.evidence.settings)
    told = (
        f"{drained:.0f} requests a second are drained at the most, so {longest:.0f} in {_ms(limit_s)}: whoever has more"
        f" before him comes too late. There are {setting.workers} × {setting.threads} = {setting.seats} seats"
    )
    if setting.seats <= longest:
        told += ", so that whoever has one is answered in time even when all are taken"
    else:
        told += f", in which {_ms(setting.seats / drained)} of work can wait: in bursts some are late"
    told += "; the next request is refused at once, and may try elsewhere."
    if chosen is found.present:
        return f"{told} The queue has {found.evidence.settings.queue} slots."
    return f"{told} The queue has four slots for each seat, {queue} in whole pages, and is never full."


def _what_limits(pool: Pool) -> str:
    limits = pool.limits()
    part = min(limits, key=lambda name: limits[name])
    told = ", ".join(
        f"{name} {limit:.0f}"
        for name, limit in sorted(limits.items(), key=lambda item: item[1])
        if math.isfinite(limit)
    )
    return f"First {_PARTS[part]}. Each by itself could do, requests a second: {told}."


def twice(found: Found, chosen: Trial) -> str:
    """Simulated and measured."""
    rate = found.rate or chosen.held
    outcome = chosen.pool.simulate(2 * rate)
    told = f"At {2 * rate:g} a second, by the simulation: {_came_to(outcome)}."
    point = next((point for point in chosen.points if point.rate >= 1.9 * rate and point.runs), None)
    if point is not None:
        run = point.quiet[0]
        late = sum(found.promise.limit_s < one < math.inf for one in run.latencies) / max(1, run.asked)
        told += (
            f" Measured: {run.answered:.0f} are answered, {100 * late:.0f} % of all too late, and"
            f" {100 * run.refused / max(1, run.asked):.0f} % are refused at once."
        )
    return told + " Nothing breaks down: what is refused is told so by 503 and Retry-After."


def _came_to(outcome: Outcome) -> str:
    answered = sorted(one for one in outcome.latencies if math.isfinite(one))
    p99_s = answered[int(0.99 * (len(answered) - 1))] if answered else math.inf
    return (
        f"{outcome.answered:.0f} are answered, 99 of 100 of them within {_ms(p99_s)}, and"
        f" {100 * outcome.refused:.0f} % are refused at once"
    )


def unknown(evidence: Evidence) -> str:
    """What the simulation does not know of these settings, in a sentence; empty where it knows all."""
    wait_ms = evidence.settings.batch_wait_ms
    if not wait_ms or evidence.present.batch_rows == 1:
        return ""
    return (
        f"The simulation knows nothing of batch_wait_ms = {wait_ms}: a mule that waits for its batch to"
        " fill answers later than it says, so what it expects is too good"
    )


def agreement(found: Found) -> str:
    """Predictions, each made before its point was measured, beside what was measured."""
    pairs = [
        (point.predicted_s, point.measured_s(found.promise))
        for trial in found.trials
        for point in trial.points
        if point.runs and math.isfinite(point.predicted_s) and math.isfinite(point.measured_s(found.promise))
    ]
    told = (
        "It was fed with the model alone, and with what a request costs around it by two runs of the present settings;"
        " no point was looked at before it was predicted."
    )
    chosen = found.chosen.at(found.rate or found.chosen.held) if found.chosen else None
    if chosen is not None and math.isfinite(chosen.predicted_s):
        measured_s = chosen.measured_s(found.promise)
        told += (
            f" For the choice it predicted {found.promise.name} = {_ms(chosen.predicted_s)}, and {_ms(measured_s)} were"
            f" measured: {100 * abs(chosen.predicted_s / measured_s - 1):.0f} % apart."
        )
    if pairs:
        apart = sorted(abs(predicted / measured - 1) for predicted, measured in pairs)
        told += (
            f" Of all {len(pairs)} points that can be compared the middle one is {100 * apart[len(apart) // 2]:.0f} %"
        )
        told += " apart."
    if doubt := unknown(found.evidence):
        told += f" {doubt}; what was measured is as it is."
    return told


def quiet(found: Found) -> str:
    """Whether others were at work on the machine, or the load generator was what held it up."""
    others, behind = others_of(found), behind_of(found)
    generator = found.full.of_request("generator")
    told = (
        f"The load generator ran on the same machine, and took {generator * 1e6:.0f} µs of a core for each request,"
        " which is counted in: clients elsewhere leave that to the server."
    )
    faults = []
    if others > DISTURBED:
        faults.append(f"other programs took up to {100 * others:.0f} % of the cores while it was measured")
    if behind > DISTURBED:
        faults.append(
            f"the load generator could not keep up and sent up to {100 * behind:.0f} % of the requests of a run too"
            " late, for which the server has to answer here"
        )
    if not faults:
        return f"Yes. {told}"
    return (
        f"No: {', and '.join(faults)}; so what was found is too low, and perhaps wrong; run it again when the"
        f" machine is quiet, or on one with more cores. {told}"
    )


def _measured(found: Found, point: Point) -> str:
    measured_s = point.measured_s(found.promise)
    run = point.quiet[0]
    refused = run.refused / max(1, run.asked)
    if refused > 1 - found.promise.percent / 100:
        return f"{100 * refused:.0f} % were refused"
    return f"{found.promise.name} = {_found_ms(measured_s)}"


def _found_ms(seconds: float) -> str:
    return _ms(seconds) if math.isfinite(seconds) else "a refusal"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
