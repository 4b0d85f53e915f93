"""The picture of a search: what was tried, as latency over what its answers lost, the mark as large as its files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from edgekit.core.report import Attempt
from edgekit.host.report_axes import Scale

_WIDTH, _HEIGHT = 760, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 30, 44, 50
_SMALLEST, _LARGEST = 5.0, 22.0  # radius of a mark
_NEAR = 14  # pixels: marks this close share one label
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letter(index: int) -> str:
    """What a mark is called in the picture and in the table beside it."""
    more, place = divmod(index, len(_LETTERS))
    return _LETTERS[place] + (str(more) if more else "")


def picture(attempts: Sequence[Attempt]) -> str:
    """Each attempt whose latency is known. To the right: slower; down: worse answers; the mark's area: its size."""
    shown = [(letter(index), entry) for index, entry in enumerate(attempts) if entry.latency_ms is not None]
    if len(shown) < 2:
        return ""
    by_points = all(entry.lost is not None for _, entry in shown)
    worth: Callable[[Attempt], float] = _points if by_points else _decibels
    across = Scale(0.0, max(_ms(entry) for _, entry in shown) * 1.08, _LEFT, _WIDTH - _RIGHT)
    heights = [worth(entry) for _, entry in shown]
    span = max(heights) - min(heights) or 1.0
    up = Scale(min(heights) - 0.15 * span, max(heights) + 0.15 * span, _HEIGHT - _BOTTOM, _TOP)
    largest = max(entry.size_bytes for _, entry in shown) or 1
    parts = [*_grid(across, up, by_points)]
    labels: list[_Label] = []
    for name, entry in sorted(shown, key=lambda each: -each[1].size_bytes):
        x, y = across.at(_ms(entry)), up.at(worth(entry))
        radius = max(_SMALLEST, _LARGEST * math.sqrt(entry.size_bytes / largest))
        kind = "tried chosen" if entry.chosen else "tried"
        hint = f"{name} {entry.label}: {_ms(entry):.4g} ms, {_said(entry)}, {entry.size_bytes / 1e3:.0f} kB"
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(hint)}</title></circle>'
        )
        near = next((one for one in labels if abs(one.x - x) < _NEAR and abs(one.y - y) < _NEAR), None)
        if near is None:
            near = _Label(x, y)
            labels.append(near)
        near.names.append(name)
        near.end = max(near.end, x + radius + 4)
    parts += [
        f'<text class="name" x="{one.end:.1f}" y="{one.y + 4:.1f}">{" ".join(sorted(one.names))}</text>'
        for one in labels
    ]
    label = "What was tried: latency, accuracy and size"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">' + "".join(parts) + "</svg>"
    )


@dataclass
class _Label:
    """Letters of marks that lie on each other, and where they may begin."""

    x: float
    y: float
    names: list[str] = field(default_factory=list)
    end: float = 0.0


def _grid(across: Scale, up: Scale, by_points: bool) -> list[str]:
    parts = []
    values, digits = up.lines()
    for value in values:
        y = up.at(value)
        text = f"{value:+.{digits}f}" if by_points else f"{value:.{digits}f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    values, digits = across.lines()
    parts += [
        f'<text x="{across.at(value):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:.{digits}f}</text>'
        for value in values
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">latency, ms</text>')
    what = "points against float32" if by_points else "SQNR of the answers, dB"
    parts.append(f'<text x="{_LEFT}" y="18">{what}; area of a mark: size of the files</text>')
    return parts


def _ms(entry: Attempt) -> float:
    return entry.latency_ms or 0.0


def _points(entry: Attempt) -> float:
    return 0.0 - (entry.lost or 0.0)


def _decibels(entry: Attempt) -> float:
    return min(60.0, entry.sqnr_db or 0.0)  # the float network's 200 would flatten the rest


def _said(entry: Attempt) -> str:
    return f"{_points(entry):+.2f} points" if entry.lost is not None else f"{_decibels(entry):.0f} dB"
