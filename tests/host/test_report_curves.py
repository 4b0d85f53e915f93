"""The charts of curves: well-formed, self-contained, inside the picture, and saying what the figures say."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from edgekit.core.curves import AnytimePoint, BudgetPoint, Curves, Lead, StaticExit
from edgekit.core.curves_text import timely, verdict
from edgekit.host.report_axes import Scale
from edgekit.host.report_curves import page, pictures

EVIL = '<script>alert("x")</script>'


@pytest.fixture
def curves() -> Curves:
    static = (
        StaticExit("exit1", 0.2, 0.90, 1.0),
        StaticExit("exit2", 0.5, 0.92, 2.0),
        StaticExit("exit3", 1.0, 0.93, 4.0),
    )
    budget = tuple(
        BudgetPoint(c, c, q, q - 0.01, 0.004, 0.016, (1 - c, 0.0, c), 4 * c)
        for c, q in ((0.2, 0.90), (0.4, 0.925), (0.6, 0.93), (1.0, 0.93))
    )
    anytime = tuple(
        AnytimePoint(float(d), 100, 0.9 + 0.007 * d, 0.99, 1.0, (1.0, 0.0, 0.0)) for d in (1, 2, 3, 4)
    )
    return Curves(
        "top1",
        1000,
        static,
        budget,
        Lead(0.01, 0.004, 0.016, 0.8, True),
        anytime,
        "measured",
        "measured",
        "a board",
    )


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(part) for part in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_there_is_a_chart_over_cost_over_time_and_over_deadlines(curves: Curves) -> None:
    labels = [svg.get("aria-label") for svg in svgs(pictures(curves))]
    assert labels == [
        "accuracy over mean cost, share of all MACs",
        "accuracy over time of a request, ms (mean of the exits taken)",
        "accuracy over deadline of a request, ms",
    ]


def test_what_nobody_timed_is_not_drawn(curves: Curves) -> None:
    untimed = replace(
        curves,
        static=tuple(replace(entry, ms=None) for entry in curves.static),
        budget=tuple(replace(point, ms=None) for point in curves.budget),
        anytime=(),
        anytime_how=None,
        provenance=None,
        on=None,
    )
    assert len(svgs(pictures(untimed))) == 1
    assert "unknown" in page("toy/1", "here", "x.npz", untimed)


def test_every_mark_and_label_lies_inside_its_picture(curves: Curves) -> None:
    wide = replace(curves, budget=tuple(replace(point, low=-0.5, high=0.5) for point in curves.budget))
    for svg in svgs(pictures(wide)):
        _, _, width, height = map(float, svg.get("viewBox", "").split())
        for node in svg.iter():
            places = [(node.get("cx"), node.get("cy")), (node.get("x"), node.get("y"))]
            places += [tuple(pair.split(",")) for pair in (node.get("points") or "").split()]  # type: ignore[misc]
            for x, y in places:
                if x is not None and y is not None:
                    assert 0 <= float(x) <= width
                    assert 0 <= float(y) <= height


def test_static_exits_are_marks_joined_by_a_thin_line_and_everything_is_named(curves: Curves) -> None:
    for svg in svgs(pictures(curves)):
        assert len(svg.findall("rect")) == len(curves.static)
        assert {line.get("class") for line in svg.findall("polyline")} == {"static", "points"}
        texts = {node.text for node in svg.findall("text")}
        assert {"exit1", "exit2", "exit3", "accuracy"} <= texts
        assert texts & {"budget policy", "anytime policy"}


def test_the_verdict_says_what_the_figures_say(curves: Curves) -> None:
    assert "nowhere significantly below" in verdict(curves)
    assert "+1.00 points of accuracy (95 %: +0.40 to +1.60)" in verdict(curves)
    assert curves.lead is not None
    worse = replace(curves, metric="agreement", lead=replace(curves.lead, mean=-0.00001, nowhere_below=False))
    assert "somewhere significantly below" in verdict(worse)
    assert "+0.00 points of agreement" in verdict(worse)
    assert "nothing to compare" in verdict(replace(curves, lead=None))
    assert "In time: 99.00 %" in timely(curves)


def test_the_page_needs_nothing_from_elsewhere_and_escapes_everything(curves: Curves) -> None:
    hostile = replace(curves, on=EVIL, static=tuple(replace(entry, name=EVIL) for entry in curves.static))
    text = page(EVIL, EVIL, EVIL, hostile)
    assert not re.search(r"(src|href|url)\s*[=(]", text)
    assert "http" not in text
    assert "<script" not in text
    ET.fromstring(text.split("</style></head>\n", 1)[1].removesuffix("</html>\n"))


def test_one_level_of_quality_and_one_of_cost_can_be_drawn(curves: Curves) -> None:
    flat = replace(
        curves,
        static=tuple(replace(entry, quality=1.0, ms=1.0) for entry in curves.static),
        budget=tuple(replace(point, quality=1.0, ms=1.0, cost_share=1.0) for point in curves.budget),
        anytime=curves.anytime[:1],
    )
    assert len(svgs(pictures(flat))) == 3


def test_grid_lines_are_round_and_within_the_axis() -> None:
    values, digits = Scale(0.123, 0.987, 0, 100).lines()
    assert [round(value, digits) for value in values] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_drawing_does_not_load_the_converter() -> None:
    """`edgekit bench --report` runs on boards: no onnx, no onnx-ir."""
    heavy = ("onnx", "onnx_ir", "torch")
    code = f"import sys, edgekit.host.report_curves; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
