"""The Verilog is clean: verilator --lint-only -Wall on every module, alone and in a generated top."""

from __future__ import annotations

import subprocess
from pathlib import Path

import overlay_plans
import pytest
from overlay_foldings import SMALL

from edgekit.runtime.overlay.simulation import missing
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import design_for
from edgekit.runtime.overlay.verilog import top

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
RTL = Path(__file__).parents[3] / "firmware_stubs" / "pynq_bnn" / "rtl"
MODULES = sorted(path.stem for path in RTL.glob("*.v"))
OTHERWISE = {
    "swu": ["-GPAD_TOP=1", "-GPAD_LEFT=2", "-GPAD_RIGHT=1", "-GSTRIDE_H=2", "-GFOLDS=1"],
    "mvu": ["-GIN_BITS=8", "-GSIMD=3", "-GPE=4", "-GMW=27", "-GTERMS=27", "-GACCW=14", "-GBLOCK_RAM=0"],
    "pool": ["-GIN_H=7", "-GIN_W=9", "-GK_W=3", "-GFOLDS=1", "-GWIDTH=40"],
    "width": ["-GIN_WIDTH=8", "-GOUT_WIDTH=64", "-GIN_BEATS=98", "-GOUT_BEATS=13"],
    "narrow": ["-GIN_BEATS=4", "-GOUT_BEATS=13"],
    "widen": ["-GIN_BEATS=9", "-GOUT_BEATS=2"],
    "counter": ["-GCOUNT=1"],
    "popcount": ["-GN=7"],
    "bytesum": ["-GN=1"],
}


def complaints(*arguments: str) -> str:
    command = ["verilator", "--lint-only", "-Wall", f"-I{RTL}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_clean_as_it_stands_and_with_other_parameters(module: str) -> None:
    path = str(RTL / f"{module}.v")
    assert complaints(path) == ""
    if module in OTHERWISE:
        assert complaints(*OTHERWISE[module], path) == ""


def test_a_generated_top_is_clean(tmp_path: Path) -> None:
    path = tmp_path / "edgekit_overlay.v"
    path.write_text(top(design_for(chain_of(overlay_plans.small_cnv()), SMALL, 100.0)))
    assert complaints(str(path)) == ""


def test_lint_sees_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "fifo.v"
    path.write_text((RTL / "fifo.v").read_text().replace("count + 1'b1", "count + 32'd1"))
    assert "WIDTH" in complaints(str(path))
