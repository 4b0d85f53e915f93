"""Write an overlay as a Vivado project: the generated top, the units, build.tcl, a README. Vivado is not run here."""

from __future__ import annotations

from pathlib import Path
from string import Template

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic
from edgekit.host.overlay.vivado import BITSTREAM_XDC, BUILD_TCL, README
from edgekit.runtime.overlay.cycles import images_per_second, interval_cycles, latency_cycles
from edgekit.runtime.overlay.design import Design
from edgekit.runtime.overlay.sources import overlay_sources
from edgekit.runtime.overlay.units import rtl_version
from edgekit.runtime.overlay.verilog import TOP, top

BOARD_PARTS = {"pynq-z1": "www.digilentinc.com:pynq-z1:part0:1.0", "pynq-z2": "tul.com.tw:pynq-z2:part0:1.0"}
PART = "xc7z020clg400-1"  # of both boards


def project_files(design: Design, board: str) -> dict[str, bytes]:
    """Path inside the project -> content: everything that Vivado needs to build the overlay for `board`.

    board: a profile with a known board part (BOARD_PARTS). Raises BadInput for another one, and where the design was
    made for other Verilog sources than are installed.
    """
    if board not in BOARD_PARTS:
        raise BadInput(
            f"build.tcl is written for {', '.join(BOARD_PARTS)}, got {board}: no board part is known for it"
        )
    if design.rtl != rtl_version():
        raise BadInput("the design was made for other Verilog sources than this edgekit has: convert again")
    names = {
        "top": TOP,
        "board": board,
        "part": PART,
        "board_part": BOARD_PARTS[board],
        "clock_mhz": f"{design.clock_mhz:g}",
        "design_id": design.design_id,
        "user_id": design.design_id[:8],
        "interval": str(interval_cycles(design)),
        "latency": str(latency_cycles(design)),
        "rate": f"{images_per_second(interval_cycles(design), design.clock_mhz):,.0f}",
    }
    found = {f"{TOP}.v": top(design).encode(), "design.json": (design.to_json() + "\n").encode()}
    for name, text in (("build.tcl", BUILD_TCL), ("bitstream.xdc", BITSTREAM_XDC), ("README.md", README)):
        found[name] = Template(text).substitute(names).encode()
    rtl = overlay_sources() / "rtl"
    sources = {f"rtl/{entry.name}": entry for entry in rtl.iterdir() if entry.name.endswith((".v", ".vh"))}
    return found | {path: entry.read_bytes() for path, entry in sorted(sources.items())}


def write_project(folder: Path, design: Design, board: str) -> list[Path]:
    """Write project_files below `folder`, made where it is missing; what else stands there stays. Gives their paths.

    Raises BadInput as project_files does, WorldFailed where the disk does not take them.
    """
    files = project_files(design, board)
    try:
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise WorldFailed(f"{folder}: cannot be made a folder: {err.strerror or err}") from err
    for path, content in files.items():
        write_atomic(folder / path, content)
    return [folder / path for path in files]
