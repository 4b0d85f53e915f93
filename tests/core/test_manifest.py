"""The manifest's checks: one line that says where, what was wanted and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bundles import null_files, null_manifest

from edgekit.core.errors import BadBundle
from edgekit.core.manifest import BoardLimits, Manifest


def _good() -> dict[str, Any]:
    files, parts = null_files()
    return null_manifest(files, parts).to_json()


Break = Callable[[dict[str, Any]], object]
BREAKS: dict[str, tuple[Break, str]] = {
    "format missing": (lambda m: m.pop("format"), "format must be"),
    "version zero": (lambda m: m.update(version=0), "version must be a whole number"),
    "version true": (lambda m: m.update(version=True), "version must be a whole number"),
    "name with a slash": (lambda m: m.update(name="a/b"), "name must be a name"),
    "no stages": (lambda m: m.update(stages=[], exits=[]), "at least one"),
    "stages a text": (lambda m: m.update(stages="many"), "stages must be a list"),
    "a stage too few": (lambda m: m["stages"].pop(), "one per stage"),
    "exits out of order": (lambda m: m["exits"].reverse(), "one per stage"),
    "unknown dtype": (lambda m: m["inputs"][0].update(dtype="float31"), "one of float32"),
    "negative shape": (lambda m: m["inputs"][0].update(shape=[1, -4]), "whole number from 1"),
    "rank of nine": (lambda m: m["inputs"][0].update(shape=[1] * 9), "rank 8"),
    "input from nowhere": (
        lambda m: m["stages"][0]["parts"][0]["inputs"][0].update(name="ghost"),
        "'ghost', which nothing before it makes",
    ),
    "a tensor made twice": (
        lambda m: m["stages"][1]["parts"][0].update(outputs=m["stages"][0]["parts"][0]["outputs"]),
        "a second time",
    ),
    "exit of an unmade tensor": (lambda m: m["exits"][0].update(output="ghost"), "does not make"),
    "early exit without confidence": (lambda m: m["exits"][0].update(confidence=None), "needs a confidence"),
    "falling cost": (lambda m: m["exits"][0].update(cost_share=0.9), "growing cost_share"),
    "cost above one": (lambda m: m["exits"][0].update(cost_share=1.5), "from 0 to 1"),
    "points out of order": (lambda m: m["operating_points"].reverse(), "cheapest to full"),
    "a threshold too few": (lambda m: m["operating_points"][0]["thresholds"].pop(), "a threshold per exit"),
    "an infinite threshold": (
        lambda m: m["operating_points"][0].update(thresholds=[float("inf"), 0]),
        "finite number",
    ),
    "an unlisted file": (lambda m: m.update(recipe="other.toml"), "not listed"),
    "a file listed twice": (lambda m: m["files"].append(m["files"][0]), "once"),
    "the report listed": (lambda m: m["files"][0].update(name="report.json"), "once|not listed"),
    "a part with another hash": (
        lambda m: m["stages"][0]["parts"][0].update(sha256="0" * 64),
        "two different sha256",
    ),
    "golden of an unmade tensor": (
        lambda m: m["golden"]["outputs"][0].update(tensor="ghost"),
        "made by no stage",
    ),
    "limits that are no table": (lambda m: m.update(limits=[8]), "limits must be"),
    "a limit that is text": (lambda m: m.update(limits={"latency_ms": "8"}), "limits.latency_ms must be"),
    "a limit below zero": (lambda m: m.update(limits={"memory_mb": -1}), "limits.memory_mb must be"),
    "standard deviation zero": (lambda m: m["inputs"][0]["preprocess"].update(std=[0]), "std"),
    "three means for one channel": (lambda m: m["inputs"][0]["preprocess"].update(mean=[0, 0, 0]), "mean"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_manifest_is_refused_in_one_line(name: str) -> None:
    manifest = _good()
    damage, wanted = BREAKS[name]
    damage(manifest)
    with pytest.raises(BadBundle, match=wanted) as caught:
        Manifest.parse(manifest)
    assert "\n" not in str(caught.value)
    assert "manifest.json" in str(caught.value)


def test_the_unbroken_manifest_is_accepted() -> None:
    manifest = Manifest.parse(_good())
    assert manifest.macs == 400
    assert not manifest.executes_code


def test_limits_are_there_only_where_they_are_set_so_that_older_bundles_keep_their_content() -> None:
    plain = _good()
    assert "limits" not in plain
    limited = Manifest.parse(plain | {"limits": {"latency_ms": 8, "energy_mj": None}})
    assert limited.limits == BoardLimits(latency_ms=8.0)
    assert limited.to_json() == plain | {"limits": {"latency_ms": 8.0}}
