"""Chart descriptions for ECharts from a view's series. Grey text on clear ground: they sit on light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.fleet.exits import exit_order
from edgekit.fleet.shown import color

_GREY = "#7d8590"
_GRID = "rgba(125,133,144,0.22)"
_PERCENTILES = (("p50", "#1f9e89"), ("p95", "#d9a028"), ("p99", "#cf5c36"))


def latency_chart(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """p50, p95 and p99 over time; spans in which the board was throttled are shaded."""
    lines = [
        _line(name, tint, [[point["at"] * 1000, _round(point["latency_ms"][name])] for point in series])
        for name, tint in _PERCENTILES
    ]
    lines[0]["markArea"] = {
        "silent": True,
        "itemStyle": {"color": "rgba(207,92,54,0.14)"},
        "label": {"color": _GREY, "fontSize": 11},
        "data": _throttled(series),
    }
    return _chart("ms", lines)


def exit_chart(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The share of each exit over time, stacked to 100 %."""
    names = exit_order(name for point in series for name in point["exit_counts"])
    lines = []
    for index, name in enumerate(names):
        data = [[point["at"] * 1000, _share(point["exit_counts"], name)] for point in series]
        line = _line(name, color(index), data)
        lines.append(line | {"stack": "exits", "areaStyle": {"opacity": 0.55}, "lineStyle": {"width": 1}})
    return _chart("%", lines, top=100)


def energy_chart(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Energy per request over time; a gap where nobody knows."""
    data = [[point["at"] * 1000, _round(point["energy_mj"]["mean"])] for point in series]
    return _chart("mJ", [_line("energy per request", "#3f7fbf", data)])


def _chart(unit: str, lines: list[dict[str, Any]], top: float | None = None) -> dict[str, Any]:
    axis = {"axisLabel": {"color": _GREY}, "axisLine": {"lineStyle": {"color": _GRID}}}
    return {
        "animation": False,
        "textStyle": {"color": _GREY, "fontFamily": "inherit"},
        "grid": {"left": 52, "right": 16, "top": 34, "bottom": 28},
        "legend": {"top": 0, "right": 8, "textStyle": {"color": _GREY}, "icon": "roundRect"},
        "tooltip": {
            "trigger": "axis",
            "backgroundColor": "rgba(24,29,35,0.94)",
            "borderWidth": 0,
            "textStyle": {"color": "#f0f3f6"},
        },
        "xAxis": {"type": "time", **axis, "splitLine": {"show": False}},
        "yAxis": {
            "type": "value",
            "name": unit,
            "min": 0,
            "max": top,
            "nameTextStyle": {"color": _GREY, "align": "right"},
            "splitLine": {"lineStyle": {"color": _GRID}},
            **axis,
        },
        "series": lines,
    }


def _line(name: str, tint: str, data: list[list[float | None]]) -> dict[str, Any]:
    return {
        "name": name,
        "type": "line",
        "data": data,
        "showSymbol": len(data) < 3,  # a single point would be invisible
        "symbolSize": 6,
        "itemStyle": {"color": tint},
        "lineStyle": {"width": 2, "color": tint},
    }


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
