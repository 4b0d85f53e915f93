"""tools/train_table.py: a short run of some recipes, what it writes, and that nothing is trained twice."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from fashion_data import made_up, script

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the extra train (PyTorch) is not installed"
)


@pytest.fixture(scope="module")
def tool() -> Any:
    return script("train_table")


def test_a_quick_run_writes_a_row_for_each_recipe_and_a_second_one_trains_nothing(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made_up(tmp_path)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    line = [
        "--quick",
        "--only",
        "float32,apprentice-b-twn",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
    ]
    assert tool.main(line) == 0
    said = capsys.readouterr()
    page = (tmp_path / "out" / "training.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:4] for row in page.splitlines() if row.startswith("| ")][1:]
    assert [[cell.strip() for cell in row[:2]] for row in rows] == [
        ["float32", "small-wide"],
        ["float32", "small"],
        ["apprentice-b-twn", "small"],
    ]
    assert page in said.out
    runs = json.loads((tmp_path / "out" / "training.json").read_text(encoding="utf-8"))["runs"]
    student = runs[-1]
    assert student["recipe"] == "apprentice-b-twn"
    assert student["samples"] == {"train": 300, "held_out": 40}
    assert student["bundle_bytes"] > student["weight_bytes"] / 4
    assert student["latency_ms"] > 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "train_table").iterdir()}
    assert len(kept) == 9  # of each of three: figures, model, what the board measured
    assert tool.main(line) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (tmp_path / "out" / "training.md").read_text(encoding="utf-8") == page


def line_of(tool: Any, recipe: str, *accuracy: float) -> Any:
    return tool.Line(recipe, "small", accuracy, {})


@pytest.mark.parametrize(
    ("recipe", "accuracy", "said"),
    [
        ("twn", (0.89, 0.89), "met"),
        ("twn", (0.885, 0.885), "MISSED by 0.50"),
        ("apprentice-b-twn", (0.88, 0.89), "met"),
        ("apprentice-b-twn", (0.87, 0.87), "MISSED by 1.00"),
        ("wrpn-w2a4", (0.1, 0.1), "met"),
        ("wrpn-w2a4", (0.5, 0.5), "MISSED"),
        ("float32", (0.9, 0.9), ""),
    ],
)
def test_a_verdict_says_by_how_much_a_line_is_missed(
    tool: Any, recipe: str, accuracy: tuple[float, ...], said: str
) -> None:
    means = {"float32": 0.90, "twn": 0.88}
    _, got = tool.verdict_of(line_of(tool, recipe, *accuracy), means)
    assert got.endswith(said)
    assert ("MISSED" in got) == ("MISSED" in said)


def test_spread_is_over_seeds(tool: Any) -> None:
    assert line_of(tool, "twn", 0.9).spread == 0.0
    assert line_of(tool, "twn", 0.88, 0.90).spread == pytest.approx(0.0141421, rel=1e-4)
