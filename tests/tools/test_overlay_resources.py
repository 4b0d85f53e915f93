"""tools/bench/overlay_resources.py: what it compares, how it fits, what it writes; yosys does not run here."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from overlay_plans import CNV_FOLDING, cnv

from edgekit.host.overlay import coefficients
from edgekit.host.overlay.resources import Resources, unit_resources
from edgekit.runtime.overlay.design import Folding
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import design_for

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "overlay_resources.py"


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_overlay_resources", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_overlay_resources"] = module
    spec.loader.exec_module(module)
    return module


bench = imported()


@pytest.fixture
def kept_weights():
    """The weights in use come back after a test that fits others."""
    tables = (coefficients.LUTS, coefficients.FFS)
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.update(kept)
    bench.forget()


def test_its_cnv_is_the_published_one() -> None:
    foldings = {name: Folding(*pair) for name, pair in CNV_FOLDING.items()}
    design = design_for(chain_of(cnv()), foldings, 100.0)
    theirs = [(unit.kind, unit.parameters) for unit in bench.cnv()]
    assert theirs == [(unit.kind, unit.parameters) for unit in design.units]


def test_the_fit_has_seen_none_of_cnvs_large_units() -> None:
    def key(kind, of):
        return kind, tuple(sorted((name, value) for name, value in of.items() if name != "UNIT"))

    seen = {key(kind, of) for kind, of in bench.grid()}
    large = [unit for unit in bench.cnv() if unit.kind in {"mvu", "swu", "pool"}]
    assert len(large) == 9 + 5 + 2
    assert not [unit.name for unit in large if key(unit.kind, unit.parameters) in seen]


def test_every_kind_of_unit_is_in_the_grid_and_estimated() -> None:
    points = list(bench.grid())
    assert {kind for kind, _ in points} == set(coefficients.LUTS) == set(coefficients.FFS)
    assert all(unit_resources(kind, of).luts > 0 for kind, of in points)


@pytest.mark.usefixtures("kept_weights")
def test_the_fit_finds_the_weights_that_made_the_counts() -> None:
    points = [point for point in bench.grid() if point[0] == "fifo"]
    made = {"address": 3.0, "small": 5.0, "unit": 11.0}
    coefficients.LUTS["fifo"] = made
    bench.forget()
    counts = [unit_resources(kind, of) for kind, of in points]
    coefficients.LUTS["fifo"] = dict.fromkeys(made, 0.0)
    bench.fit(points, counts)
    assert coefficients.LUTS["fifo"] == pytest.approx(made, abs=0.1)


def test_an_error_counts_against_forty_at_least() -> None:
    off = bench.errors(Resources(12, 100, 2), Resources(8, 80, 1))
    assert off == {"LUT": 10.0, "FF": 25.0, "BRAM18": 100.0}


def test_a_target_is_met_within_ten_per_cent_of_yosys_by_the_worst_unit(capsys) -> None:
    points = [("fifo", {"WIDTH": 16, "DEPTH": 2}), ("fifo", {"WIDTH": 128, "DEPTH": 2})]
    counts = [unit_resources(*point) for point in points]
    assert bench.compared(points, counts, "x")[0]["met"]
    counts[1] = Resources(counts[1].luts / 1.2, counts[1].ffs, 0)
    (target,) = bench.compared(points, counts, "x")
    assert not target["met"]
    assert target["value"] == pytest.approx(20, abs=0.1)
    assert "'WIDTH': 128" in capsys.readouterr().err


def test_results_are_kept_for_the_sources_they_are_of(tmp_path, monkeypatch) -> None:
    asked = []

    def fake(kind, runs):
        asked.append((kind, len(runs)))
        return [Resources(1, 2, 3) for _ in runs]

    monkeypatch.setattr(bench, "synthesized", fake)
    file = tmp_path / "kept.jsonl"
    points = [("fifo", {"WIDTH": 1, "DEPTH": 2}), ("pool", {"WIDTH": 1, "UNIT": 7})]
    assert bench.Results(file).of(points) == [Resources(1, 2, 3)] * 2
    assert bench.Results(file).of(points) == [Resources(1, 2, 3)] * 2
    assert asked == [("fifo", 1), ("pool", 1)]
    monkeypatch.setattr(bench, "rtl_version", lambda: "others")
    bench.Results(file).of(points[:1])
    assert asked[2:] == [("fifo", 1)]
