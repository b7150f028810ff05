"""The report: one HTML file without a script, which needs nothing from elsewhere.

Runs in:  the command line.
"""

import math
from collections.abc import Iterator
from html import escape

import numpy as np

from serving.model import ModelFolder
from tuning import record
from tuning.chart import Chart, Series
from tuning.rationale import choice, rationale
from tuning.search import Found, Trial

_STEPS = 14
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #60666d; --line: #d9dce0; --ground: #fff; --raised: #f6f7f8;
  --one: #1f6feb; --two: #b35900; --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --faint: #9aa2ab; --line: #363b42; --ground: #15181c;
  --raised: #1d2126; --one: #6cabff; --two: #f0a35e; --good: #56d364; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.25rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .1rem; }
p { margin: .3rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.faint, figcaption, .legend { color: var(--faint); font-size: .875rem; }
.choice { border-left: 4px solid var(--good); background: var(--raised); padding: .8rem 1rem; margin: 1.2rem 0;
  border-radius: 0 6px 6px 0; }
.choice.none { border-color: var(--bad); }
.choice p { font-size: 1.05rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .7rem .8rem; min-width: 0; }
figcaption { font-weight: 600; color: var(--ink); margin-bottom: .3rem; }
figure > svg { display: block; width: 100%; height: auto; overflow: visible; }
text { fill: var(--faint); font: 12px system-ui, sans-serif; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--line); fill: none; } .axis { stroke: var(--faint); fill: none; }
path.limit { stroke: var(--bad); stroke-dasharray: 5 4; fill: none; } text.limit { fill: var(--bad); }
.mark { stroke: var(--good); stroke-width: 2; fill: none; }
.line, .dashes { fill: none; stroke-width: 2; } .dashes { stroke-dasharray: 2 4; }
.s0 { --own: var(--one); } .s1 { --own: var(--two); } .s2 { --own: var(--good); } .s3 { --own: var(--faint); }
.line, .dashes { stroke: var(--own); } .dots { fill: var(--own); }
.rings { fill: none; stroke: var(--own); stroke-width: 2; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .4rem 0 0; padding: 0; }
.legend svg { width: 24px; height: 10px; margin-right: .4rem; overflow: visible; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { text-align: right; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--faint); font-weight: 600; }
tr.chosen td { font-weight: 600; } .over { color: var(--bad); }
pre { background: var(--raised); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
"""


def html(found: Found, folder: ModelFolder, difference: str, ini: str) -> str:
    """All of it."""
    promise, rate = str(found.promise), f" at {found.rate:g} requests a second" if found.rate else ""
    charts = [chart.svg() for chart in (_curve(found), _frontier(found), _line(found)) if chart is not None]
    reasons = [f"<h3>{escape(one.question)}</h3><p>{escape(one.answer)}</p>" for one in list(rationale(found))[1:]]
    change = f"<h2>What changes in {escape(ini)}</h2><pre>{escape(difference)}</pre>" if difference else ""
    none = "" if found.chosen else " none"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>muleteer tune: {escape(folder.name)}</title>
<style>{_STYLE}</style>
<header>
<h1>{escape(folder.name)}, version {folder.version}: {escape(promise + rate)}</h1>
<p class="faint">{escape(_made(found))}</p>
</header>
<section class="choice{none}"><p>{escape(choice(found))}</p></section>
<section class="charts">{"".join(charts)}</section>
{change}
<h2>Why</h2>
{"".join(reasons)}
<h2>What was tried</h2>
<div class="scroll">{_table(found)}</div>
<h2>The model alone</h2>
<div class="scroll">{_alone(found)}</div>
</html>
"""


def _made(found: Found) -> str:
    here = record.machine()
    return (
        f"Measured in {found.seconds:.0f} s on {here['processor']}, {here['cores']} cores,"
        f" {here['memory_mb'] >> 10} GB, Linux {here['kernel']}, Python {here['python']};"
        f" the load was drawn with the seeds from {found.seed} on."
    )


def _shown(found: Found) -> Trial | None:
    return found.chosen or found.nearest


def _curve(found: Found) -> Chart | None:
    """Throughput against latency, of the choice: simulated and measured."""
    trial = _shown(found)
    if trial is None:
        return None
    promise, rate = found.promise, found.rate or trial.held
    limit = 1.15 * max([trial.pool.limit, *(point.rate for point in trial.points if point.rate <= 1.3 * rate)])
    curve, median = [], []
    for step in range(1, _STEPS + 1):
        at = limit * step / _STEPS
        outcome = trial.pool.simulate(at, 8000)
        answered = outcome.latencies[np.isfinite(outcome.latencies)]
        if not len(answered):
            continue
        # of those that are answered: beyond what it can do the others are refused
        curve.append((at, promise.of(answered) * 1000))
        median.append((at, float(np.median(answered)) * 1000))
    points = []
    for point in trial.points:
        for run in point.quiet:
            answered = run.latencies[np.isfinite(run.latencies)]
            if len(answered):
                found_ms = promise.of(answered) * 1000
                told = f"{point.rate:g} a second: {found_ms:.3g} ms, {run.refused} of {run.asked} refused"
                points.append(((point.rate, found_ms), told))
    points = [one for one in points if one[0][0] <= limit]
    return Chart(
        f"Throughput against latency: {_many(trial.setting.mules, 'mule')}",
        "requests a second that come",
        f"{promise.name} of those answered, ms",
        [
            Series(f"simulated {promise.name}", "line", curve),
            Series(f"measured {promise.name}", "dots", [one for one, _ in points], [told for _, told in points]),
            Series("simulated median", "dashes", median),
        ],
        (str(promise), promise.limit_s * 1000),
        ("the rate that it is for", rate) if found.chosen else None,
        logarithmic=True,
    )


def _frontier(found: Found) -> Chart | None:
    """The candidates: what each count of mules comes to."""
    promise = found.promise
    if found.rate:
        predicted = [(one.pool.setting.mules, one.percentile_s * 1000) for one in found.ranked]
        measured = [
            (trial.setting.mules, point.measured_s(promise) * 1000)
            for trial in found.trials
            if (point := trial.at(found.rate)) is not None
        ]
        label, limit = f"{promise.name} at {found.rate:g} a second, ms", (str(promise), promise.limit_s * 1000)
    else:
        predicted = [(one.pool.setting.mules, one.rate) for one in found.ranked]
        measured = [(trial.setting.mules, trial.held) for trial in found.trials if trial.held]
        label, limit = f"highest rate with {promise}", None
    predicted = [(x, y) for x, y in predicted if math.isfinite(y) and y]
    measured = [(x, y) for x, y in measured if math.isfinite(y)]
    chosen = [(x, y) for x, y in measured if found.chosen and x == found.chosen.setting.mules][:1]
    if not predicted and not measured:
        return None
    series = [Series("simulated", "dots", predicted), Series("measured", "rings", measured)]
    return Chart(
        "The candidates, by their mules",
        "mules",
        label,
        [*series, Series("chosen", "dots", chosen)] if chosen else series,
        limit,
        logarithmic=bool(found.rate),
        whole=True,
    )


def _line(found: Found) -> Chart | None:
    """The model alone: rows against milliseconds."""
    series = []
    for threads, alone in found.evidence.alone.items():
        name = f" with {_many(threads, 'thread')}" if len(found.evidence.alone) > 1 else ""
        points = [(rows, seconds * 1000) for rows, seconds in alone.points.items()]
        line = alone.line
        fitted = [(rows, (line.overhead_s + rows * line.row_s) * 1000) for rows in (0, *alone.points)]
        series += [Series(f"measured{name}", "dots", points), Series(f"a + b·n{name}", "line", fitted)]
    if all(len(alone.points) < 2 for alone in found.evidence.alone.values()):
        # one row at a time: there is no line to be seen
        return None
    return Chart("The model alone", "rows of a predict", "ms", series)


def _table(found: Found) -> str:
    """Each trial and each point."""
    head = ["setting", "at the most", "rate", "predicted", "measured", "refused", "CPU of others"]
    rows = []
    for trial in found.trials:
        full = f"{trial.full.answered:.0f}/s" if trial.full else ""
        kind = ' class="chosen"' if trial is found.chosen else ""
        points = sorted((point for point in trial.points if point.runs), key=lambda point: point.rate)
        for number, point in enumerate(points):
            measured_s, run = point.measured_s(found.promise), point.quiet[0]
            over = "" if found.promise.holds(measured_s) else ' class="over"'
            setting = trial.setting.told() if not number else ""
            cells = [setting, full if not number else "", f"{point.rate:g}/s", _ms(point.predicted_s)]
            cells += [f"<span{over}>{_ms(measured_s)}</span>", f"{100 * run.refused / max(1, run.asked):.1f} %"]
            rows.append((kind, [*cells, f"{100 * run.others:.0f} %"]))
        if not points:
            rows.append((kind, [trial.setting.told(), full, *[""] * 5]))
    return _tabled(head, rows)


def _alone(found: Found) -> str:
    head = ["framework threads", "a, of a predict", "b, of a row", "CPU", "loads in", "one more mule"]
    rows = [
        (
            "",
            [
                str(threads),
                _ms(alone.line.overhead_s),
                _ms(alone.line.row_s),
                f"{100 * alone.line.busy:.0f} % of a core",
                f"{alone.load_s:.1f} s",
                f"{alone.mb} MB",
            ],
        )
        for threads, alone in found.evidence.alone.items()
    ]
    return _tabled(head, rows)


def _tabled(head: list[str], rows: list[tuple[str, list[str]]]) -> str:
    def line(tag: str, cells: list[str]) -> Iterator[str]:
        return (f"<{tag}>{cell}</{tag}>" for cell in cells)

    body = "".join(f"<tr{kind}>{''.join(line('td', cells))}</tr>" for kind, cells in rows)
    return f"<table><thead><tr>{''.join(line('th', head))}</tr></thead><tbody>{body}</tbody></table>"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if math.isfinite(seconds) else "refused"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
