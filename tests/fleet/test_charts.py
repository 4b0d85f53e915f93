"""Charts' descriptions and the palette, without a browser."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from edgekit.fleet.charts import energy_chart, exit_chart, latency_chart
from edgekit.fleet.screens.style import COLOURS

TEXT_CONTRAST, LINE_CONTRAST = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11


def point(at: float, **more: Any) -> dict[str, Any]:
    usual = {
        "at": at,
        "bundle": "toy/1",
        "throttled": False,
        "requests": 10,
        "latency_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0},
        "exit_counts": {"exit1": 3, "exit2": 1},
        "energy_mj": {"mean": 4.0},
    }
    return usual | more


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb as WCAG defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_they_lie_on(mode: int) -> None:
    grounds = [COLOURS[name][mode] for name in ("page", "card")]
    for ground in grounds:
        for name in ("ink", "dim", "good", "bad", "warn", "link"):
            assert contrast(COLOURS[name][mode], ground) >= TEXT_CONTRAST, (name, ground)
    for name in ("p50", "p95", "p99", "one", *(f"exit-{index}" for index in range(6))):
        assert contrast(COLOURS[name][mode], COLOURS["card"][mode]) >= LINE_CONTRAST, name
    assert contrast(COLOURS["go"][mode], "#ffffff") >= TEXT_CONTRAST
    assert all(a != b for a, b in combinations([COLOURS[name][mode] for name in ("p50", "p95", "p99")], 2))


def test_a_span_without_records_is_a_gap_and_never_zero() -> None:
    data = energy_chart([point(0.0), point(60.0), point(300.0)])["series"][0]["data"]
    assert data == [[0.0, 4.0], [60_000.0, 4.0], [120_000.0, None], [300_000.0, 4.0]]
    unknown = energy_chart([point(0.0, energy_mj={"mean": None})])["series"][0]["data"]
    assert unknown == [[0.0, None]]


def test_exits_are_shares_of_each_span_in_the_order_of_exits() -> None:
    lines = exit_chart([point(0.0), point(60.0, exit_counts={"exit10": 1})])["series"]
    assert [line["name"] for line in lines] == ["exit1", "exit2", "exit10"]
    assert [line["data"][0][1] for line in lines] == [75.0, 25.0, 0.0]
    assert [line["data"][1][1] for line in lines] == [0.0, 0.0, 100.0]


def test_throttling_is_shaded_and_a_new_bundle_is_marked_with_its_name_as_text() -> None:
    points = [
        point(0.0),
        point(60.0, throttled=True),
        point(120.0, throttled=True, bundle="{a}/2"),
        point(180.0),
    ]
    line = latency_chart(points)["series"][0]
    assert [[edge["xAxis"] for edge in area] for area in line["markArea"]["data"]] == [[60_000.0, 120_000.0]]
    assert [(mark["xAxis"], mark["name"]) for mark in line["markLine"]["data"]] == [
        (90_000.0, "(a}/2"),
        (150_000.0, "toy/1"),
    ]
