"""The report's page: complete, safe, and in need of nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from bundles import null_files, null_manifest

from edgekit.core.curves import BudgetPoint, Curves, Lead, StaticExit
from edgekit.core.manifest import Manifest, OperatingPoint
from edgekit.core.report import (
    Attempt,
    Change,
    DataUse,
    Dropped,
    ExitParity,
    ExitReport,
    Latency,
    LayerReport,
    Parity,
    PolicyReport,
    Report,
)
from edgekit.host.report_html import Page, render, verdict

EVIL = '<script>alert("x")</script>'


@pytest.fixture
def manifest() -> Manifest:
    return null_manifest(*null_files())


@pytest.fixture
def report(manifest: Manifest) -> Report:
    names = [leaving.name for leaving in manifest.exits]
    return Report(
        bundle="toy/3",
        profile="raspberrypi5",
        made="2030-01-01T00:00:00+00:00",
        versions={"edgekit": "1", "onnxruntime": "2"},
        metric="top1",
        accuracy=Change(0.93, 0.928),
        size_bytes=Change(900_000.0, 300_000.0),
        latency_before=Latency(mean=2.0),
        latency_after=Latency(mean=1.0),
        latency_provenance="estimated",
        latency_on="profile raspberrypi5",
        exits=tuple(ExitReport(name, 0.9 + 0.01 * i, 0.3 * (i + 1), None) for i, name in enumerate(names)),
        policies=(PolicyReport("full", 100, 0.928, {names[-1]: 100}, Latency()),),
        operating_points=manifest.operating_points,
        layers=(
            LayerReport("conv1", "Conv", "int8", 0, 1e6, 33.3),
            LayerReport("add", "Add", "int8", 0, 0.0, None),
        ),
        dropped=(Dropped("*", "prune", "it costs too much"),),
        limits_missed=("max-size-kb: wanted at most 100 kB, got 300 kB",),
        data=(DataUse("calibration", "calib.npz", 1000, labelled=True),),
    )


def page(manifest: Manifest, report: Report, recipe: str = "format = 1\n") -> str:
    return render(Page(manifest, report, recipe, "c" * 64, 400_000))


def test_the_page_needs_nothing_from_elsewhere(manifest: Manifest, report: Report) -> None:
    text = page(manifest, report)
    assert not re.search(r"(src|href|url)\s*[=(]", text)
    assert "http" not in text
    assert "@import" not in text
    assert "<script" not in text


def test_the_page_is_well_formed(manifest: Manifest, report: Report) -> None:
    body = page(manifest, report).split("</style></head>\n", 1)[1].removesuffix("</html>\n")
    root = ET.fromstring(body)
    assert root.find(".//svg") is not None
    titles = [heading.text for heading in root.iter("h2")]
    assert {
        "Accuracy over cost",
        "Exits",
        "Policies",
        "Layers",
        "Taken back",
        "Limits",
        "Data",
        "Recipe",
    } <= set(titles)


def test_what_is_unknown_is_called_so(manifest: Manifest, report: Report) -> None:
    blank = replace(
        report, latency_before=Latency(), latency_after=Latency(), latency_provenance=None, latency_on=None
    )
    text = page(manifest, blank)
    assert "unknown → unknown" in text
    assert "nobody measured it on raspberrypi5" in text


def test_texts_from_the_bundle_are_never_markup(manifest: Manifest, report: Report) -> None:
    hostile = replace(
        report,
        bundle=EVIL,
        latency_on=EVIL,
        dropped=(Dropped(EVIL, EVIL, EVIL),),
        limits_missed=(EVIL,),
        layers=(LayerReport(EVIL, EVIL, EVIL, 0, 1.0, None),),
        data=(DataUse(EVIL, EVIL, 1, labelled=False),),
        exits=(ExitReport(EVIL, 0.5, 0.5, None),),
        policies=(PolicyReport(EVIL, 1, 0.5, {EVIL: 1}, Latency()),),
        versions={EVIL: EVIL},
    )
    text = render(Page(manifest, hostile, EVIL, EVIL))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "2.0× faster (estimated), 3.0× smaller, accuracy -0.20 points."),
        ({"latency_provenance": "measured"}, "2.0× faster, 3.0× smaller, accuracy -0.20 points."),
        (
            {"latency_after": Latency(mean=4.0)},
            "2.0× slower (estimated), 3.0× smaller, accuracy -0.20 points.",
        ),
        ({"accuracy": Change(0.9, 0.9)}, "2.0× faster (estimated), 3.0× smaller, accuracy unchanged."),
        ({"latency_after": Latency(), "accuracy": Change(None, None)}, "3.0× smaller."),
        (
            {"latency_after": Latency(mean=2.01), "size_bytes": Change(3.0, 2.99)},
            "as fast as before (estimated), as large as before, accuracy -0.20 points.",
        ),
        ({"metric": "agreement"}, "2.0× faster (estimated), 3.0× smaller, agreement -0.20 points."),
    ],
)
def test_the_verdict_is_one_sentence(report: Report, changes: dict[str, object], said: str) -> None:
    assert verdict(replace(report, **changes)) == said  # type: ignore[arg-type]


def test_a_report_without_any_accuracy_still_has_a_page(manifest: Manifest, report: Report) -> None:
    bare = replace(
        report,
        accuracy=Change(None, None),
        exits=tuple(replace(entry, accuracy=None) for entry in report.exits),
        policies=(),
        operating_points=(),
    )
    assert "Nothing to draw" in page(manifest, bare)


def tried(
    label: str, ms: float | None, lost: float | None, size: int = 1000, *, chosen: bool = False
) -> Attempt:
    return Attempt(
        label, "top1", lost, 30.0, size, ms, None if ms is None else "measured", chosen, f"why {label}"
    )


def test_what_was_tried_is_a_picture_and_a_table_with_the_same_letters(
    manifest: Manifest, report: Report
) -> None:
    attempts = (
        tried("float32", 2.0, 0.0, 4000),
        tried("int8", 1.0, 0.25, chosen=True),
        tried("untimed", None, 0.1),
        tried(EVIL, 1.01, 0.26),
    )
    page = render(Page(manifest, replace(report, tried=attempts), "", "0" * 64))
    assert EVIL not in page
    svg = next(part for part in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "What was tried" in part)
    root = ET.fromstring(svg)
    marks = [node for node in root.iter() if node.tag.endswith("circle")]
    assert len(marks) == 3  # what nobody timed has no place
    assert [mark.get("class") for mark in marks].count("tried chosen") == 1
    radius = {mark[0].text.split(":")[0]: float(mark.get("r", 0)) for mark in marks}  # type: ignore[union-attr]
    assert radius["A float32"] > radius["B int8"]
    assert "B D" in {node.text for node in root.iter() if node.tag.endswith("text")}  # they lie on each other
    assert "<td>int8 ✓</td>" in page
    assert "-0.25" in page
    assert "why untimed" in page


def test_a_layers_weights_time_and_reason_are_told(manifest: Manifest, report: Report) -> None:
    layer = LayerReport(
        "conv1", "Conv", "float32", 0, 1e6, 33.3, "int4", 0.5, "estimated", "float32: slow in int8"
    )
    page = render(Page(manifest, replace(report, layers=(layer,)), "", "0" * 64))
    row = re.search(r"<tr><td>conv1</td>.*?</tr>", page)
    assert row is not None
    assert "int4" in row[0]
    assert "slow in int8" in row[0]
    assert "estimated from profile raspberrypi5" in page


def test_a_binary_network_has_neither_candidates_nor_noise(manifest: Manifest, report: Report) -> None:
    layers = (
        LayerReport("conv1", "Conv", "w1a8", 0, 1e6, None),
        LayerReport("d", "MatMul", "w1a1", 1, 3e6, None),
    )
    page = render(Page(manifest, replace(report, layers=layers, tried=(), dropped=()), "", "0" * 64))
    assert "<td>w1a8</td>" in page
    for absent in ("SQNR", "What was tried", "Taken back", "keep_float", "the recipe said"):
        assert absent not in page
    assert "Taken back" in render(Page(manifest, replace(report, layers=layers), "", "0" * 64))


def test_parity_of_two_runtimes_is_shown_where_there_is_one(manifest: Manifest, report: Report) -> None:
    assert "Two runtimes" not in render(Page(manifest, report, "", "0" * 64))
    rows = (ExitParity("exit1", 0.995, 1.5, 0.25),)
    parity = Parity(("onnxruntime", "litert"), 200, rows, (rows, rows))
    page = render(Page(manifest, replace(report, parity=parity), "", "0" * 64))
    assert "onnxruntime and litert" in page
    assert "litert and float32" in page
    assert "99.50 %" in page
    assert Report.parse(replace(report, parity=parity).to_json()) == replace(report, parity=parity)


def test_curves_are_drawn_where_the_report_has_them(manifest: Manifest, report: Report) -> None:
    assert "What the exits are worth" not in page(manifest, report)
    exits = tuple(StaticExit(e.name, e.cost_share, e.accuracy or 0.0) for e in report.exits)
    points = tuple(
        BudgetPoint(e.cost_share, e.cost_share, e.quality, e.quality, -0.01, 0.01, (1.0, 0.0, 0.0))
        for e in exits
    )
    curves = Curves("top1", 100, exits, points, Lead(0.0, -0.01, 0.01, 0.8, nowhere_below=True))
    with_curves = replace(report, curves=curves)
    text = page(manifest, with_curves)
    assert "What the exits are worth" in text
    assert "nowhere significantly below" in text
    assert Report.parse(with_curves.to_json()) == with_curves


def test_exits_say_how_often_they_answer_as_the_last_one(manifest: Manifest, report: Report) -> None:
    agreeing = replace(report, exits=tuple(replace(entry, agreement=0.9876) for entry in report.exits))
    assert "98.76 %" in page(manifest, agreeing)
    assert Report.parse(agreeing.to_json()) == agreeing


def test_a_long_table_of_points_is_thinned_its_ends_kept_and_says_what_is_promised_at_least(
    manifest: Manifest, report: Report
) -> None:
    points = tuple(
        OperatingPoint((i / 100, 0.9994), 0.25 + 0.015 * i, (0.5, 0.3, 0.2), 0.9, 0.8111) for i in range(47)
    )
    text = page(manifest, replace(report, operating_points=(*points, *report.operating_points[-1:])))
    assert "81.11 %" in text
    assert "0.999400" in text
    assert "25 of 48 points" in text
    assert "never / never" in text


def test_the_axis_of_accuracy_ends_at_100_percent(manifest: Manifest, report: Report) -> None:
    wide = (replace(report.exits[0], accuracy=0.26), *report.exits[1:])
    text = page(manifest, replace(report, exits=wide, accuracy=Change(1.0, 0.98)))
    assert ">100 %</text>" in text
    assert "120 %" not in text


def test_promised_agreement_is_not_drawn_among_accuracies(manifest: Manifest, report: Report) -> None:
    point = OperatingPoint((0.5,) * (len(manifest.exits) - 1), 0.5, (1.0,) * len(manifest.exits), 0.9)
    told = replace(report, operating_points=(point,))
    drawn = {
        metric: 'class="points"'
        in render(Page(replace(manifest, quality_metric=metric), told, "", "0" * 64, 1))
        for metric in ("top1", "agreement")
    }
    assert drawn == {"top1": True, "agreement": False}
