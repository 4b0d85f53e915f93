"""Figures as the page writes them: short, with their unit; what is unknown is a dash and says why on hover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.fleet.exits import exit_order

UNKNOWN = "–"


def ms(value: float | None) -> str:
    """A latency with three significant digits."""
    return UNKNOWN if value is None else f"{_digits(value)} ms"


def count(value: int | None) -> str:
    """A whole number with thin spaces between thousands."""
    return UNKNOWN if value is None else f"{value:,}".replace(",", "\u202f")


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %"


def energy(value: Mapping[str, Any]) -> str:
    """Energy per request; where it comes from stands beside it."""
    return UNKNOWN if value["mean"] is None else f"{_digits(value['mean'])} mJ"


def energy_source(value: Mapping[str, Any]) -> str:
    """How the figure came about: `simulated`, or `mixed: measured, simulated`; why there is none."""
    if value["mean"] is None:
        return value["why"] or "unknown"
    if len(value["provenances"]) > 1:
        return f"{value['provenance']}: {', '.join(value['provenances'])}"
    return str(value["provenance"])


def ago(then: float | None, now: float) -> str:
    """How long ago something was."""
    if then is None:
        return "never"
    seconds = max(0.0, now - then)
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"


def exit_mix(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each exit with its share in percent, in the exits' order."""
    total = sum(counts.values())
    return [
        {"name": name, "count": number, "share": 100 * number / total, "color": color(index)}
        for index, (name, number) in enumerate((name, counts[name]) for name in exit_order(counts))
        if total
    ]


def color(index: int) -> str:
    """The colour of the index-th exit, from early and cheap to late, as the style sheet calls it (screens/style.py)."""
    return f"var(--{EXIT_COLOURS[index % len(EXIT_COLOURS)]})"


EXIT_COLOURS = tuple(f"exit-{index}" for index in range(6))


def _digits(value: float) -> str:
    return (
        f"{value:.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
        if value >= 0.1
        else f"{value:.3g}"
    )
