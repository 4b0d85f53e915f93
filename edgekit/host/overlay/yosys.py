"""Synthesize modules of the overlay with yosys for 7-series devices and count what they take. Estimates nothing.

The counts are those of `synth_xilinx -family xc7 -flatten` without buffers at the ports: after synthesis, before any
placement or routing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.core.errors import BadInput, MissingExtra, WorldFailed
from edgekit.host.overlay.resources import Resources
from edgekit.runtime.overlay.sources import overlay_sources

TIMEOUT_S = 1800
# LUTs that a LUT memory or a shift register takes (UG474, 7 Series CLB: 4 LUTs of one SLICEM share an address)
_LUTS = {"RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM256X1S": 4}
_LUTS |= {"SRL16E": 1, "SRLC32E": 1, **{f"LUT{inputs}": 1 for inputs in range(1, 7)}}
_FFS = ("FDRE", "FDSE", "FDCE", "FDPE")


def is_installed() -> bool:
    """Whether a yosys is on the PATH."""
    return shutil.which("yosys") is not None


def synthesized(module: str, runs: Sequence[Mapping[str, int]]) -> list[Resources]:
    """What `module` takes with each set of parameters, one yosys for all.

    Raises MissingExtra where there is no yosys, WorldFailed where it fails or takes longer than half an hour.
    """
    if not is_installed():
        raise MissingExtra("counting an overlay's resources needs yosys: apt-get install yosys")
    rtl = overlay_sources() / "rtl"
    with tempfile.TemporaryDirectory(prefix="edgekit-yosys-") as name:
        folder = Path(name)
        for entry in rtl.iterdir():
            if entry.name.endswith((".v", ".vh")):
                (folder / entry.name).write_bytes(entry.read_bytes())
        (folder / "run.ys").write_text(_script(folder, module, runs), encoding="utf-8")
        _run(folder)
        return [_counted(folder / f"{index}.json") for index in range(len(runs))]


def _script(folder: Path, module: str, runs: Sequence[Mapping[str, int]]) -> str:
    lines = [f"read_verilog -defer -I. {path.name}" for path in sorted(folder.glob("*.v"))]
    lines.append("design -save read")
    for index, parameters in enumerate(runs):
        given = " ".join(f"-chparam {name} {value}" for name, value in parameters.items())
        lines += [
            "design -load read",
            f"hierarchy -check -top {module} {given}",
            "synth_xilinx -family xc7 -flatten -noiopad",
            f"tee -q -o {index}.json stat -json",
        ]
    return "\n".join(lines) + "\n"


def _run(folder: Path) -> None:
    command = ["yosys", "-q", "-s", "run.ys"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise WorldFailed(f"yosys took longer than {TIMEOUT_S} s") from err
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
        raise WorldFailed(f"yosys failed: {' '.join(said)[:300] or f'code {done.returncode}'}")


def _counted(path: Path) -> Resources:
    try:
        cells = json.loads(path.read_text("utf-8"))["design"]["num_cells_by_type"]
    except (OSError, ValueError, KeyError) as err:
        raise BadInput(f"yosys gave no statistics: {err}") from err
    return Resources(
        luts=sum(cells.get(cell, 0) * luts for cell, luts in _LUTS.items()),
        ffs=sum(cells.get(cell, 0) for cell in _FFS),
        bram18=cells.get("RAMB18E1", 0) + 2 * cells.get("RAMB36E1", 0),
    )
