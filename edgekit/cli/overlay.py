"""What `convert` says of an FPGA overlay, and the folder that Vivado builds it from. Its figures are estimates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from edgekit.cli.output import console

if TYPE_CHECKING:
    from edgekit.runtime.overlay.design import Design


def write_overlay(bundle: Path, design: Design, board: str) -> Path:
    """Write the project beside the bundle, OUT.overlay/; its folder. Raises BadInput, WorldFailed."""
    from edgekit.host.overlay.project import write_project

    folder = bundle.with_suffix(".overlay")
    write_project(folder, design, board)
    return folder


def overlay_json(design: Design, folder: Path | None) -> dict[str, object]:
    """The design as convert's --json gives it."""
    from edgekit.host.overlay.plan_design import PROVENANCE, describe
    from edgekit.runtime.overlay.cycles import images_per_second, interval_cycles, latency_cycles

    *layers, total = describe(design)
    interval, latency = interval_cycles(design), latency_cycles(design)
    return {
        "design_id": design.design_id,
        "folder": None if folder is None else str(folder),
        "clock_mhz": design.clock_mhz,
        "interval_cycles": interval,
        "latency_cycles": latency,
        "images_per_second": images_per_second(interval, design.clock_mhz),
        "luts": total.luts,
        "ffs": total.ffs,
        "bram36": total.bram36,
        "provenance": PROVENANCE,
        "layers": [
            {
                "name": row.name,
                "what": row.what,
                "pe": row.pe,
                "simd": row.simd,
                "cycles": row.cycles,
                "luts": row.luts,
                "ffs": row.ffs,
                "bram36": row.bram36,
            }
            for row in layers
        ],
    }


def print_overlay(design: Design, folder: Path) -> None:
    """The folding, layer by layer, and what to do with the folder."""
    from edgekit.host.overlay.plan_design import PROVENANCE, describe
    from edgekit.runtime.overlay.cycles import images_per_second, interval_cycles, latency_cycles

    table = Table("layer", "what", "PE", "SIMD", "cycles", "LUT", "FF", "BRAM36", title_justify="left")
    table.title = f"overlay {design.design_id} ({PROVENANCE})"
    for row in describe(design):
        folding = ["" if number is None else str(number) for number in (row.pe, row.simd)]
        counts = [f"{row.cycles:,}", f"{row.luts:,}", f"{row.ffs:,}", f"{row.bram36:g}"]
        table.add_row(row.name, row.what, *folding, *counts)
    console.print(table)
    interval = interval_cycles(design)
    rate = images_per_second(interval, design.clock_mhz)
    speed = f"by the cycle model {rate:,.0f} images/s at {design.clock_mhz:g} MHz, a clock that is assumed"
    cycles = f"{interval:,} cycles from image to image, {latency_cycles(design):,} for one alone"
    console.print(f"{cycles}; {speed}", markup=False, soft_wrap=True)
    how = "vivado -mode batch -source build.tcl"
    console.print(
        f"{folder}/: Verilog and build.tcl; `{how}` there makes the bitstream", markup=False, soft_wrap=True
    )
