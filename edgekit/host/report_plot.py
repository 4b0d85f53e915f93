"""One picture: accuracy over cost, as inline SVG whose colours the page's style gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from edgekit.core.manifest import Manifest
from edgekit.core.report import PolicyReport, Report

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 40, 48
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # between grid lines
_LINES = 6


@dataclass(frozen=True)
class _Axes:
    """Cost share 0-1 to the right, accuracy from `low` to `high` upwards."""

    low: float
    high: float

    def x(self, cost: float) -> float:
        return _LEFT + cost * (_WIDTH - _LEFT - _RIGHT)

    def y(self, accuracy: float) -> float:
        share = (accuracy - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def plot(manifest: Manifest, report: Report) -> str:
    """Operating points as a line, exits and policies as marks, the model that came in as a dashed line.

    Points that promise agreement have no place among accuracies: they are left out where the metrics differ.
    """
    exits = [(e.cost_share, e.accuracy, e.name) for e in report.exits if e.accuracy is not None]
    policies = [
        (policy_cost(entry, manifest), entry.accuracy, entry.policy)
        for entry in report.policies
        if entry.accuracy is not None
    ]
    points = (
        [(point.cost_share, point.quality) for point in report.operating_points]
        if len(report.exits) > 1 and manifest.quality_metric == report.metric
        else []
    )
    heights = [*(a for _, a, _ in exits), *(a for _, a, _ in policies), *(q for _, q in points)]
    before = report.accuracy.before
    if before is not None:
        heights.append(before)
    if not heights:
        return "<p>Nothing to draw: the data has no labels and the network gives no classes.</p>"
    axes, step = _axes(heights)
    parts = [*_grid(axes, step)]
    if before is not None:
        y = axes.y(before)
        parts.append(f'<line class="before" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    if points:
        path = " ".join(f"{axes.x(cost):.1f},{axes.y(quality):.1f}" for cost, quality in points)
        parts.append(f'<polyline class="points" points="{path}"/>')
        parts += [
            f'<circle class="point" cx="{axes.x(c):.1f}" cy="{axes.y(q):.1f}" r="2.6">'
            f"{_hint('operating point', c, q)}</circle>"
            for c, q in points
        ]
    for cost, accuracy, name in exits:
        x, y = axes.x(cost), axes.y(accuracy)
        parts += [_square(x, y, _hint(name, cost, accuracy)), _label(x, y + 20, name)]
    for cost, accuracy, name in policies:
        x, y = axes.x(cost), axes.y(accuracy)
        parts += [_triangle(x, y, _hint(f"policy {name}", cost, accuracy)), _label(x, y - 13, name)]
    parts += _legend(points=bool(points), before=before is not None)
    label = "Accuracy over the share of multiply-accumulates"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">' + "".join(parts) + "</svg>"
    )


def policy_cost(entry: PolicyReport, manifest: Manifest) -> float:
    """The mean cost share of the requests a policy answered."""
    total = max(1, entry.requests)
    return sum(
        leaving.cost_share * entry.exit_counts.get(leaving.name, 0) / total for leaving in manifest.exits
    )


def _axes(heights: list[float]) -> tuple[_Axes, float]:
    low, high = min(heights), max(heights)
    margin = max(0.002, 0.12 * (high - low))
    low, high = low - margin, high + margin
    step = next((s for s in _STEPS if (high - low) / s <= _LINES), _STEPS[-1])
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return _Axes(max(0.0, low), min(1.0, high)), step  # a share; each step divides 1


def _grid(axes: _Axes, step: float) -> list[str]:
    parts = []
    digits = max(0, -math.floor(math.log10(step * 100) + 1e-9))
    for index in range(round((axes.high - axes.low) / step) + 1):
        value = axes.low + index * step
        y = axes.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * value:.{digits}f} %</text>'
        )
    for percent in range(0, 101, 20):
        x = axes.x(percent / 100)
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{percent} %</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        "mean cost, share of all MACs</text>"
    )
    return parts


def _hint(name: str, cost: float, accuracy: float) -> str:
    return f"<title>{escape(name)}: {100 * accuracy:.2f} % at {100 * cost:.1f} % of the cost</title>"


def _square(x: float, y: float, hint: str) -> str:
    return f'<rect class="exit" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10">{hint}</rect>'


def _triangle(x: float, y: float, hint: str) -> str:
    corners = f"{x:.1f},{y - 8:.1f} {x + 7:.1f},{y + 5:.1f} {x - 7:.1f},{y + 5:.1f}"
    return f'<polygon class="policy" points="{corners}">{hint}</polygon>'


def _label(x: float, y: float, text: str) -> str:
    """A name beside a mark, kept inside the picture."""
    anchor = "end" if x > _WIDTH - _RIGHT - 60 else "middle"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(*, points: bool, before: bool) -> list[str]:
    entries = [(_square(0, 0, ""), "exit alone"), (_triangle(0, 0, ""), "policy")]
    if points:
        line = '<line class="points" x1="-9" x2="9" y1="0" y2="0"/><circle class="point" r="2.6"/>'
        entries.append((line, "operating points (validation)"))
    if before:
        entries.append(('<line class="before" x1="-10" x2="10" y1="0" y2="0"/>', "model that came in"))
    parts, x = [], float(_LEFT + 10)
    for mark, text in entries:
        parts.append(
            f'<g transform="translate({x:.0f},16)">{mark}<text class="name" x="15" y="4">{text}</text></g>'
        )
        x += 36 + 6.6 * len(text)
    return parts
