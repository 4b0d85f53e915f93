"""What exits are worth, as pictures: the policy as a strong line, the static exits as marks joined by a thin one.

Used by the report of a conversion, and by `edgekit bench --curves --report`, which has a page of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgekit.core.curves import Curves
from edgekit.core.curves_text import exit_mix, in_points, quality_of, timely, verdict
from edgekit.host.report_axes import Scale
from edgekit.host.report_style import STYLE

_WIDTH, _HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 30, 22, 48
_MARGIN = 0.1  # of the span of what is drawn, above and below
_LETTER = 6.4  # pixels, about
_CLOSE = 6.0  # pixels
_Point = tuple[float, float]


@dataclass(frozen=True)
class _Chart:
    """One picture. y of all points: shares 0-1. hints: what the mark at each point of the line says."""

    across: str
    up: str
    line: tuple[_Point, ...]
    line_name: str
    hints: tuple[str, ...]
    static: tuple[tuple[float, float, str], ...]
    static_name: str
    band: tuple[tuple[float, float, float], ...] = ()  # x, low, high
    percent: bool = False  # across, too


def pictures(curves: Curves) -> str:
    """All charts there are figures for, each with its caption."""
    found = [
        _figure(
            _over_cost(curves),
            "Quality over mean cost, a point per budget. Shaded: the 95 % interval of the lead.",
        )
    ]
    if all(point.ms is not None for point in curves.budget):
        found.append(
            _figure(
                _over_time(curves), f"The same budgets by what their exits typically take, {_origin(curves)}."
            )
        )
    if curves.anytime:
        how = (
            "Really run, deadlines drawn at random"
            if curves.anytime_how == "measured"
            else "Replayed: all samples under each deadline"
        )
        found.append(_figure(_over_deadline(curves), f"{how}, {_origin(curves)}. {timely(curves)}"))
    return "".join(found)


def page(label: str, machine: str, data: str, curves: Curves) -> str:
    """A page of its own, for screen and paper. Loads nothing from anywhere."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(label)}: curves</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"<header><h1>{escape(label)} <small>what its exits are worth</small></h1>"
        f'<p class="verdict">{escape(verdict(curves))}</p>'
        f'<p class="note">On {escape(machine)}, data {escape(data)}.</p></header>\n'
        f"<section><h2>Curves</h2>{pictures(curves)}</section>\n"
        f"<section><h2>Budgets</h2>{tables(curves)}</section>\n"
        "</main></body></html>\n"
    )


def tables(curves: Curves) -> str:
    """The figures behind the charts."""
    head = ("budget", "cost", "time", quality_of(curves), "static", "lead, points", "exits taken, %")
    rows = [
        (
            f"{100 * point.budget:.1f} %",
            f"{100 * point.cost_share:.1f} %",
            "unknown" if point.ms is None else f"{point.ms:.3g} ms",
            f"{100 * point.quality:.2f} %",
            f"{100 * point.static:.2f} %",
            f"{in_points(point.lead)} ({in_points(point.low)} to {in_points(point.high)})",
            exit_mix(point.exit_shares),
        )
        for point in curves.budget
    ]
    text = _table(head, rows)
    if curves.anytime:
        text += "<h2>Deadlines</h2>" + _table(
            ("deadline", "requests", "in time", quality_of(curves), "mean time", "exits taken, %"),
            [
                (
                    f"{point.deadline_ms:.3g} ms",
                    str(point.requests),
                    f"{100 * point.in_time:.2f} %",
                    f"{100 * point.quality:.2f} %",
                    f"{point.ms:.3g} ms",
                    exit_mix(point.exit_shares),
                )
                for point in curves.anytime
            ],
        )
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f'<td class="n">{escape(text)}</td>' for text in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _origin(curves: Curves) -> str:
    how = {"measured": "measured on", "estimated": "estimated from"}.get(
        curves.provenance or "", "as known on"
    )
    return f"{how} {curves.on or 'an unknown machine'}"


# --- which charts -------------------------------------------------------------------------------------------


def _over_cost(curves: Curves) -> _Chart:
    points = sorted(curves.budget, key=lambda point: point.cost_share)
    return _Chart(
        "mean cost, share of all MACs",
        quality_of(curves),
        tuple((point.cost_share, point.quality) for point in points),
        "budget policy",
        tuple(
            f"budget {100 * p.budget:.1f} %: {100 * p.quality:.2f} % at {100 * p.cost_share:.1f} % of the cost, "
            f"{in_points(p.lead)} points from the static exits"
            for p in points
        ),
        tuple((entry.cost_share, entry.quality, entry.name) for entry in curves.static),
        "static exits, mixed",
        tuple((point.cost_share, point.static + point.low, point.static + point.high) for point in points),
        percent=True,
    )


def _over_time(curves: Curves) -> _Chart:
    points = sorted(curves.budget, key=lambda point: point.ms or 0.0)
    return _Chart(
        "time of a request, ms (mean of the exits taken)",
        quality_of(curves),
        tuple((point.ms or 0.0, point.quality) for point in points),
        "budget policy",
        tuple(
            f"budget {100 * p.budget:.1f} %: {100 * p.quality:.2f} % in {p.ms or 0:.3g} ms" for p in points
        ),
        tuple((entry.ms or 0.0, entry.quality, entry.name) for entry in curves.static),
        "static exits, mixed",
    )


def _over_deadline(curves: Curves) -> _Chart:
    points = curves.anytime
    return _Chart(
        "deadline of a request, ms",
        quality_of(curves),
        tuple((point.deadline_ms, point.quality) for point in points),
        "anytime policy",
        tuple(
            f"deadline {p.deadline_ms:.3g} ms: {100 * p.quality:.2f} %, {100 * p.in_time:.2f} % in time, "
            f"{p.requests} requests"
            for p in points
        ),
        tuple((entry.ms or 0.0, entry.quality, entry.name) for entry in curves.static),
        "each exit alone, at its typical time",
    )


# --- drawing ------------------------------------------------------------------------------------------------


def _figure(chart: _Chart, caption: str) -> str:
    return f'<figure>{_draw(chart)}<figcaption class="note">{escape(caption)}</figcaption></figure>'


def _draw(chart: _Chart) -> str:
    across, up = _scales(chart)
    parts = _grid(chart, across, up)
    if chart.band:
        top = [(x, high) for x, _, high in chart.band]
        bottom = [(x, low) for x, low, _ in reversed(chart.band)]
        parts.append(f'<polygon class="band" points="{_path([*top, *bottom], across, up)}"/>')
    static = [(x, y) for x, y, _ in chart.static]
    parts.append(f'<polyline class="static" points="{_path(static, across, up)}"/>')
    parts.append(f'<polyline class="points" points="{_path(chart.line, across, up)}"/>')
    for (x, y), hint in zip(chart.line, chart.hints, strict=True):
        parts.append(
            f'<circle class="point" cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="2.8">'
            f"<title>{escape(hint)}</title></circle>"
        )
    for x, y, name in chart.static:
        parts.append(
            f'<rect class="exit" x="{across.at(x) - 4.5:.1f}" y="{up.at(y) - 4.5:.1f}" width="9" height="9">'
            f"<title>{escape(name)}: {100 * y:.2f} %</title></rect>"
        )
    parts += _labels(chart, across, up)
    label = escape(f"{chart.up} over {chart.across}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">' + "".join(parts) + "</svg>"
    )


def _scales(chart: _Chart) -> tuple[Scale, Scale]:
    heights = [y for _, y in chart.line] + [y for _, y, _ in chart.static]
    low, high = min(heights), max(heights)
    margin = max(0.002, _MARGIN * (high - low))
    places = [x for x, _ in chart.line] + [x for x, _, _ in chart.static]
    left, right = min(places), max(places)
    room = 0.04 * (right - left) or 0.5
    across = Scale(max(0.0, left - room), 1.0 if chart.percent else right + room, _LEFT, _WIDTH - _RIGHT)
    return across, Scale(low - margin, min(high + margin, max(1.0, high)), _HEIGHT - _BOTTOM, _TOP)


def _path(points: Sequence[_Point], across: Scale, up: Scale) -> str:
    """Points as SVG wants them, kept inside the picture: an interval may be wider than it."""
    top, bottom = up.end, up.start
    return " ".join(f"{across.at(x):.1f},{min(max(up.at(y), top), bottom):.1f}" for x, y in points)


def _grid(chart: _Chart, across: Scale, up: Scale) -> list[str]:
    parts = []
    percent_up = Scale(100 * up.low, 100 * up.high, up.start, up.end)
    values, digits = percent_up.lines()
    for value in values:
        y = percent_up.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f} %</text>')
    shown = Scale(100 * across.low, 100 * across.high, across.start, across.end) if chart.percent else across
    values, digits = shown.lines(8)
    unit = " %" if chart.percent else ""
    for value in values:
        x = shown.at(value)
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{up.start}" y2="{up.start + 5}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 19}" text-anchor="middle">{value:.{digits}f}{unit}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(chart.across)}</text>')
    parts.append(f'<text x="{_LEFT - 50}" y="12">{escape(chart.up)}</text>')
    return parts


def _labels(chart: _Chart, across: Scale, up: Scale) -> list[str]:
    """Names beside what they name: each exit's under its mark, the lines' where most room is along them."""
    lines = [
        [(across.at(x), up.at(y)) for x, y in points]
        for points in (chart.line, [(x, y) for x, y, _ in chart.static])
    ]
    drawn = [point for line in lines for point in _dense(line)]
    boxes: list[_Box] = []
    parts = []
    for x, y, name in chart.static:
        under = _Box.of(across.at(x) + 8, up.at(y) + 17, name)
        over = _Box.of(across.at(x) + 8, up.at(y) - 9, name)
        boxes.append(under if not any(under.meets(box) for box in boxes) else over)
        parts.append(boxes[-1].drawn(name, "exit-name"))
    for line, name, kind in zip(
        lines, (chart.line_name, chart.static_name), ("line-name", "exit-name"), strict=True
    ):
        places = [
            _Box.of(x + dx, y + dy, name) for x, y in _dense(line) for dx in (-40, 6) for dy in (-10, 18)
        ]
        middle = (line[0][0] + line[-1][0]) / 2
        best = max(
            places, key=lambda box: (round(box.room(drawn, boxes)), -abs(box.left + box.right - 2 * middle))
        )
        boxes.append(best)
        parts.append(best.drawn(name, kind))
    return parts


def _dense(line: Sequence[_Point]) -> list[_Point]:
    """Points along a line, close enough that none slips under a label."""
    found = list(line[:1])
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        steps = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / _CLOSE))
        found += [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(1, steps + 1)]
    return found


@dataclass(frozen=True)
class _Box:
    """Where a text would stand."""

    left: float
    right: float
    top: float
    bottom: float

    @classmethod
    def of(cls, x: float, baseline: float, text: str) -> _Box:
        """Kept inside the picture."""
        wide = _LETTER * len(text)
        x = min(max(x, _LEFT + 4), _WIDTH - 4 - wide)
        baseline = min(max(baseline, _TOP + 10), _HEIGHT - _BOTTOM - 5)
        return cls(x, x + wide, baseline - 10, baseline + 3)

    def drawn(self, text: str, kind: str) -> str:
        """The text, as SVG."""
        return f'<text class="{kind}" x="{self.left:.1f}" y="{self.bottom - 3:.1f}">{escape(text)}</text>'

    def meets(self, other: _Box) -> bool:
        """Whether two texts lie on each other."""
        return (
            self.left < other.right + 5
            and other.left < self.right + 5
            and self.top < other.bottom + 2
            and other.top < self.bottom + 2
        )

    def room(self, drawn: Sequence[_Point], boxes: Sequence[_Box]) -> float:
        """Pixels to the nearest thing drawn, below zero on a text; no more counts than is needed to be read."""
        if any(self.meets(box) for box in boxes):
            return -1.0
        gap = min(max(self.left - x, x - self.right, self.top - y, y - self.bottom, 0.0) for x, y in drawn)
        return min(gap, _CLOSE)
