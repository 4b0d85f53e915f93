from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from overlay_plans import CNV_FOLDING, LFC_FOLDING, cnv, lfc, small_cnv

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.host.overlay.project import BOARD_PARTS, project_files, write_project
from edgekit.native.plan import Plan
from edgekit.runtime.overlay.design import Design, Folding
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import design_for
from edgekit.runtime.overlay.verilog import top

SMALL_FOLDING = {"L0": (4, 3), "L1": (8, 8), "L2": (1, 16), "L3": (2, 1)}
NETWORKS = {"small": (small_cnv(), SMALL_FOLDING), "cnv": (cnv(), CNV_FOLDING), "lfc": (lfc(), LFC_FOLDING)}


def design_of(plan: Plan, folding: dict[str, tuple[int, int]]) -> Design:
    return design_for(chain_of(plan), {name: Folding(*pair) for name, pair in folding.items()}, 100.0)


SMALL = design_of(*NETWORKS["small"])


@pytest.mark.skipif(shutil.which("verilator") is None, reason="needs verilator: apt-get install verilator")
@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cnv", "lfc"))]
)
def test_the_generated_top_and_the_units_lint_without_a_warning(tmp_path: Path, name: str) -> None:
    write_project(tmp_path, design_of(*NETWORKS[name]), "pynq-z1")
    sources = [str(path) for path in sorted(tmp_path.glob("rtl/*.v"))]
    command = ["verilator", "--lint-only", "-Wall", f"-I{tmp_path}/rtl", "--top-module", "edgekit_overlay"]
    done = subprocess.run(
        [*command, f"{tmp_path}/edgekit_overlay.v", *sources], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_top_holds_every_unit_once_with_its_parameters() -> None:
    text = top(SMALL)
    for unit in SMALL.units:
        found = re.findall(rf"^    {unit.kind} #\((.*)\) {unit.name} \($", text, re.MULTILINE)
        assert len(found) == 1, unit.name
        given = {
            name: value for name, value in re.findall(r"\.(\w+)\(([^)]*)\)", found[0]) if name != "DESIGN_ID"
        }
        assert {name: int(value) for name, value in given.items()} == dict(unit.parameters)
    assert f"128'h{SMALL.design_id}" in text


def test_a_design_without_its_ends_is_no_overlay() -> None:
    with pytest.raises(BadInput, match="must begin with stream_in"):
        top(replace(SMALL, units=SMALL.units[1:]))


def test_a_project_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    write_project(tmp_path, SMALL, "pynq-z2")
    written = {
        str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert (
        written == project_files(SMALL, "pynq-z2") == project_files(Design.parse(SMALL.to_json()), "pynq-z2")
    )
    assert {
        "edgekit_overlay.v",
        "build.tcl",
        "README.md",
        "design.json",
        "rtl/mvu.v",
        "rtl/registers.vh",
    } <= set(written)


def test_a_project_is_written_for_a_board_that_is_known_and_sources_that_are_here(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no board part is known"):
        project_files(SMALL, "raspberrypi5")
    with pytest.raises(BadInput, match="other Verilog sources than this edgekit has"):
        project_files(replace(SMALL, rtl="0" * 64), "pynq-z1")
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldFailed, match="cannot be made a folder"):
        write_project(tmp_path / "file", SMALL, "pynq-z1")


STUBS = """\
set called {}
proc unknown {name args} {
    lappend ::called $name
    if {$name eq "get_property"} {
        return [dict get {PROGRESS 100% STATS.WNS WNS_VALUE} [lindex $args 0]]
    }
    return "$name-result"
}
"""


def run_tcl(folder: Path, wns: str) -> subprocess.CompletedProcess[str]:
    """build.tcl with Vivado's commands as stubs: its Tcl, its variables and the order of its steps."""
    runs = folder / "vivado" / "edgekit_overlay.runs" / "impl_1"
    handoff = folder / "vivado" / "edgekit_overlay.gen" / "sources_1" / "bd" / "overlay" / "hw_handoff"
    for made, name in ((runs, "overlay_wrapper.bit"), (handoff, "overlay.hwh")):
        made.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(name)
    script = STUBS.replace("WNS_VALUE", wns) + f"source {folder}/build.tcl\nputs $called\n"
    return subprocess.run(["tclsh"], input=script, capture_output=True, text=True, check=False)


needs_tcl = pytest.mark.skipif(shutil.which("tclsh") is None, reason="needs tclsh: apt-get install tcl")


@needs_tcl
@pytest.mark.parametrize("board", list(BOARD_PARTS))
def test_build_tcl_runs_to_its_end_and_leaves_bit_and_hwh(tmp_path: Path, board: str) -> None:
    write_project(tmp_path, SMALL, board)
    done = run_tcl(tmp_path, "0.5")
    assert done.stderr == ""
    assert (tmp_path / "edgekit_overlay.bit").read_text() == "overlay_wrapper.bit"
    assert (tmp_path / "edgekit_overlay.hwh").read_text() == "overlay.hwh"
    assert "launch_runs" in done.stdout
    assert SMALL.design_id in done.stdout


@needs_tcl
def test_build_tcl_ends_with_an_error_where_the_clock_is_not_met(tmp_path: Path) -> None:
    write_project(tmp_path, SMALL, "pynq-z1")
    assert "timing is not met at 100 MHz" in run_tcl(tmp_path, "-0.1").stderr
    assert not (tmp_path / "edgekit_overlay.bit").exists()


def test_build_tcl_connects_every_port_of_the_top(tmp_path: Path) -> None:
    text = project_files(SMALL, "pynq-z1")["build.tcl"].decode()
    for port in ("s_axil", "s_axis", "m_axis", "aclk", "aresetn", "irq"):
        assert f"edgekit_overlay_0/{port}" in text
    assert "CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ $clock_mhz" in text
    assert "set clock_mhz 100\n" in text
