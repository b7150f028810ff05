"""A chart as SVG that takes its colours from the page it stands in, light or dark, and is read at the width of a phone.

Runs in:  the command line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 44
_TICKS = 5
_KEY = '<svg viewBox="0 0 24 10" aria-hidden="true">'


@dataclass(frozen=True)
class Series:
    """Points by one name; kind: line, dashes, dots or rings."""

    name: str
    kind: str
    points: Points
    # what a pointer is told of each, where it is to be told something
    told: Sequence[str] = ()


@dataclass
class Chart:
    """Two axes and what lies between them."""

    title: str
    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    # lines across: what is promised, and where it is to hold
    y_limit: tuple[str, float] | None = None
    x_mark: tuple[str, float] | None = None
    logarithmic: bool = False
    # x counts something: whole numbers alone
    whole: bool = False

    def svg(self) -> str:
        """The chart, and its legend below."""
        points = [(x, y) for one in self.series for x, y in one.points if math.isfinite(y)]
        if not points:
            return ""
        ys = [y for _, y in points] + ([self.y_limit[1]] if self.y_limit else [])
        xs = [x for x, _ in points] + ([self.x_mark[1]] if self.x_mark else [])
        x_axis = _Axis(0.0, max(xs) * 1.04, _LEFT, _WIDTH - _RIGHT, whole=self.whole)
        if self.logarithmic:
            y_axis = _Axis(min(ys) * 0.8, max(ys) * 1.3, _HEIGHT - _BOTTOM, _TOP, logarithmic=True)
        else:
            y_axis = _Axis(0.0, max(ys) * 1.1, _HEIGHT - _BOTTOM, _TOP)
        parts = [*self._grid(x_axis, y_axis)]
        if self.y_limit:
            parts += self._limit(y_axis, *self.y_limit)
        if self.x_mark:
            place = x_axis.at(self.x_mark[1])
            parts.append(f'<path class="mark" d="M{place:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        for number, one in enumerate(self.series):
            parts += _drawn(one, f"s{number}", x_axis, y_axis)
        label = f"{self.title}: {self.y_label} against {self.x_label}"
        legend = "".join(
            f"<li>{_KEY}{_key(one.kind, f's{number}')}</svg>{escape(one.name)}</li>"
            for number, one in enumerate(self.series)
        )
        if self.x_mark:
            key = '<path class="mark" d="M12 0V10"/>'
            legend += f"<li>{_KEY}{key}</svg>{escape(self.x_mark[0])}</li>"
        return (
            f"<figure><figcaption>{escape(self.title)}</figcaption>"
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
            f'<ul class="legend">{legend}</ul></figure>'
        )

    def _grid(self, x_axis: "_Axis", y_axis: "_Axis") -> list[str]:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = []
        for value in y_axis.ticks():
            place = y_axis.at(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {place:.1f}H{right}"/>')
            parts.append(f'<text class="end" x="{_LEFT - 6}" y="{place + 4:.1f}">{_number(value)}</text>')
        for value in x_axis.ticks():
            place = x_axis.at(value)
            parts.append(f'<path class="grid" d="M{place:.1f} {bottom}v4"/>')
            parts.append(f'<text class="middle" x="{place:.1f}" y="{bottom + 17}">{_number(value)}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
        parts.append(f'<text class="middle" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}">{escape(self.x_label)}</text>')
        middle = (_TOP + bottom) / 2
        parts.append(
            f'<text class="middle" transform="translate(13 {middle}) rotate(-90)">{escape(self.y_label)}</text>'
        )
        return parts

    def _limit(self, y_axis: "_Axis", name: str, value: float) -> list[str]:
        place = y_axis.at(value)
        return [
            f'<path class="limit" d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"/>',
            f'<text class="limit" x="{_LEFT + 6}" y="{place - 5:.1f}">{escape(name)}</text>',
        ]


@dataclass(frozen=True)
class _Axis:
    """Values on one side, places on the other."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return self.begin + (self.end - self.begin) * (value - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if self.high / self.low < 200 else (1,)
            found = [factor * 10.0**power for power in powers for factor in factors]
        else:
            rough = self.high / _TICKS
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
            if self.whole:
                step = max(1.0, round(step))
            found = [step * count for count in range(int(self.high / step) + 1)]
        return [value for value in found if self.low <= value <= self.high]


def _drawn(series: Series, name: str, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    # what lies beyond all that is shown, as a wait without end, is not drawn
    places = [
        (x_axis.at(x), y_axis.at(y), series.told[number] if number < len(series.told) else "")
        for number, (x, y) in enumerate(series.points)
        if math.isfinite(y)
    ]
    if series.kind in ("line", "dashes"):
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
        return [f'<path class="{series.kind} {name}" d="{path}"/>'] if len(places) > 1 else []
    return [
        f'<circle class="{series.kind} {name}" cx="{x:.1f}" cy="{y:.1f}" r="{4.5 if series.kind == "dots" else 7}">'
        f"<title>{escape(told)}</title></circle>"
        for x, y, told in places
    ]


def _key(kind: str, name: str) -> str:
    if kind in ("line", "dashes"):
        return f'<path class="{kind} {name}" d="M1 5H23"/>'
    return f'<circle class="{kind} {name}" cx="12" cy="5" r="4"/>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
