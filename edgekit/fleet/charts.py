"""Chart descriptions for ECharts from a view's series. Colours are names that the browser looks up: light or dark.

A key that begins with a colon holds JavaScript for NiceGUI; only names of our own stand there, never what a board said.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from edgekit.fleet.exits import exit_order
from edgekit.fleet.shown import EXIT_COLOURS

_PERCENTILES = (("p50", "p50", "solid"), ("p95", "p95", "dashed"), ("p99", "p99", "dotted"))
_GAP = 1.5  # of the usual distance between two points: nothing is drawn across


def _colour(name: str) -> str:
    return f"window.ekColour('{name}')"


def latency_chart(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """p50, p95 and p99 over time; spans in which the board was throttled are shaded."""
    lines = [_line(name, tint, _data(series, _percentile(name)), kind) for name, tint, kind in _PERCENTILES]
    lines[0]["markArea"] = {
        "silent": True,
        "itemStyle": {":color": _colour("warn"), "opacity": 0.14},
        "label": {"show": False},  # the chart's title says what is shaded
        "data": _throttled(series),
    }
    lines[0]["markLine"] = {
        "silent": True,
        "symbol": "none",
        "lineStyle": {":color": _colour("dim"), "type": "dashed"},
        "label": {":color": _colour("dim"), "fontSize": 11, "position": "insideEndTop"},
        "data": _changes(series),
    }
    return _chart("ms", lines)


def exit_chart(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The share of each exit over time, stacked to 100 %."""
    names = exit_order(name for point in series for name in point["exit_counts"])
    lines = []
    for index, name in enumerate(names):
        data = _data(series, _exit_share(name))
        line = _line(name, EXIT_COLOURS[index % len(EXIT_COLOURS)], data)
        lines.append(line | {"stack": "exits", "areaStyle": {"opacity": 0.75}})
    return _chart("%", lines, top=100)


def energy_chart(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Energy per request over time; a gap where nobody knows."""
    data = _data(series, lambda point: _round(point["energy_mj"]["mean"]))
    return _chart("mJ", [_line("energy per request", "one", data)])


def temperature_chart(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The highest temperature of each span; a gap where the board does not say."""
    data = _data(series, lambda point: _round(point.get("temperature_c")))
    return _chart("°C", [_line("temperature", "p99", data)])


def request_chart(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Requests of each span."""
    return _chart("requests", [_line("requests", "one", _data(series, lambda point: point["requests"]))])


def _chart(unit: str, lines: list[dict[str, Any]], top: float | None = None) -> dict[str, Any]:
    dim, grid = _colour("dim"), _colour("line")
    axis = {"axisLabel": {":color": dim, "hideOverlap": True}, "axisLine": {"lineStyle": {":color": grid}}}
    return {
        "animation": False,
        "textStyle": {":color": dim, "fontFamily": "system-ui, sans-serif"},
        "grid": {"left": 56, "right": 16, "top": 34, "bottom": 28},
        "legend": {"top": 0, "right": 8, "type": "scroll", "textStyle": {":color": _colour("ink")}},
        "tooltip": {
            "trigger": "axis",
            "confine": True,
            ":backgroundColor": _colour("card"),
            ":borderColor": grid,
            "textStyle": {":color": _colour("ink")},
            ":valueFormatter": f"(value) => value == null ? 'unknown' : value + ' {unit}'",
        },
        "xAxis": {"type": "time", **axis, "splitLine": {"show": False}},
        "yAxis": {
            "type": "value",
            "name": unit,
            "min": 0,
            "max": top,
            "nameTextStyle": {":color": dim, "align": "right"},
            "splitLine": {"lineStyle": {":color": grid}},
            **axis,
        },
        "series": lines,
    }


def _line(name: str, colour: str, data: list[list[float | None]], kind: str = "solid") -> dict[str, Any]:
    return {
        "name": name,
        "type": "line",
        "data": data,
        "showSymbol": len(data) < 3,  # a single point would be invisible
        "symbolSize": 6,
        "itemStyle": {":color": _colour(colour)},
        "lineStyle": {"width": 2, "type": kind, ":color": _colour(colour)},
    }


def _data(
    series: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]
) -> list[list[float | None]]:
    """Milliseconds and value of each point, and a gap where spans said nothing."""
    times = [point["at"] for point in series]
    usual = min((b - a for a, b in itertools.pairwise(times)), default=0.0)
    found: list[list[float | None]] = []
    for index, point in enumerate(series):
        if index and point["at"] - times[index - 1] > _GAP * usual:
            found.append([1000 * (times[index - 1] + usual), None])
        found.append([1000 * point["at"], value(point)])
    return found


def _percentile(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda point: _round(point["latency_ms"][name])


def _exit_share(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda point: _share(point["exit_counts"], name)


def _changes(series: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A mark where another bundle begins to serve."""
    found = []
    for before, after in itertools.pairwise(series):
        if after.get("bundle") and after["bundle"] != before.get("bundle"):
            at = 500 * (before["at"] + after["at"])
            label = str(after["bundle"])[:40].replace("{", "(")  # in braces ECharts has names of its own
            found.append({"xAxis": at, "name": label, "label": {"formatter": label}})
    return found


def _throttled(series: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Start and end of each run of throttled spans."""
    areas: list[list[dict[str, Any]]] = []
    before = False
    for point in series:
        at = point["at"] * 1000
        if point["throttled"] and not before:
            areas.append([{"name": "throttled", "xAxis": at}, {"xAxis": at}])
        elif point["throttled"]:
            areas[-1][1]["xAxis"] = at
        before = point["throttled"]
    return areas


def _share(counts: dict[str, int], name: str) -> float | None:
    total = sum(counts.values())
    return round(100 * counts.get(name, 0) / total, 2) if total else None


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
