#!/usr/bin/env python3
"""How near the overlay's resource model comes to yosys, and the fit of its weights.

    python tools/bench/overlay_resources.py [--quick] [--write] [--keep FILE]

Runs `synth_xilinx -family xc7 -flatten` over a grid of each unit's parameters (about a quarter of an hour on one core),
fits the weights of edgekit/runtime/overlay/resources.py by least squares of relative errors, and compares the model
with yosys for every unit of CNV in its published folding (the fit has seen none of its mvu, swu and pool) and for the
grid. --write puts the weights into coefficients.py. --quick fits nothing and compares a few units of CNV. --keep: a
file of yosys' results for these Verilog sources, read and added to. An error counts against at least 40 LUTs or
flip-flops: below that it is a matter of four of them. All figures are estimates after synthesis; nothing is placed or
routed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.core.errors import EdgekitError
from edgekit.host.overlay import coefficients
from edgekit.host.overlay.resources import Resources, _estimated, terms_of, unit_resources
from edgekit.host.overlay.yosys import synthesized
from edgekit.runtime.measure import machine_name
from edgekit.runtime.overlay.design import Folding, Unit
from edgekit.runtime.overlay.topology import CONVOLUTION, DENSE, POOL, Chain, Layer
from edgekit.runtime.overlay.units import design_for, rtl_version

Parameters = Mapping[str, int]
LEAST = 40  # LUTs or flip-flops that an error is counted against
LIMIT = 10  # percent
AT_ONCE = 4  # runs of one yosys, between two lines of progress
CNV_FOLDING = ((16, 3), (32, 32), (16, 32), (16, 32), (4, 32), (1, 32), (1, 4), (1, 8), (4, 1))
QUICK = ("l0_narrow", "l1_width", "l2_swu", "l6_mvu", "l8_wait", "p1_pool")
COEFFICIENTS = Path(coefficients.__file__)


# --- what is synthesized ----------------------------------------------------------------------------------------------


def cnv() -> list[Unit]:
    """The units of BNN-PYNQ's CNV in the folding that was published."""
    layers: list[Layer] = []
    side, channels, names = 32, 3, iter(f"L{index}" for index in range(9))
    for outputs in (64, 64, 0, 128, 128, 0, 256, 256, 512, 512, 10):
        bits = 1 if layers else 8
        if not outputs:
            layer = Layer(
                f"P{side}", POOL, side, side, channels, side // 2, side // 2, channels, (2, 2), (2, 2)
            )
        elif side > 3:
            shape = (side, side, channels, side - 2, side - 2, outputs)
            layer = Layer(next(names), CONVOLUTION, *shape, (3, 3), input_bits=bits)
        else:
            columns = side * side * channels
            layer = Layer(next(names), DENSE, 1, 1, columns, 1, 1, outputs, gives_sums=outputs == 10)
        layers.append(layer)
        side, channels = layer.out_h, layer.out_c
    foldings = {f"L{index}": Folding(*pair) for index, pair in enumerate(CNV_FOLDING)}
    chain = Chain(tuple(layers), 0, 0, 3072, 3072)
    return list(design_for(chain, foldings, 100.0).units)


def grid() -> Iterator[tuple[str, Parameters]]:
    """Modules with parameters; the mvus' folds are drawn from a fixed seed."""
    draw = random.Random(5)
    small = (
        (1, 1),
        (1, 8),
        (2, 4),
        (3, 2),
        (3, 16),
        (4, 4),
        (4, 16),
        (5, 3),
        (6, 8),
        (7, 4),
        (8, 1),
        (8, 8),
        (8, 32),
    )
    middle = (
        (9, 4),
        (12, 4),
        (14, 7),
        (16, 2),
        (16, 8),
        (16, 16),
        (18, 4),
        (20, 5),
        (24, 8),
        (28, 4),
        (32, 1),
        (32, 4),
    )
    large = (
        (32, 8),
        (36, 4),
        (48, 4),
        (49, 7),
        (56, 8),
        (64, 2),
        (64, 8),
        (64, 16),
        (96, 4),
        (112, 2),
        (128, 1),
    )
    for simd, pe in (*small, *middle, *large, (128, 4), (32, 24)):
        drawn = (draw.choice([1, 2, 4, 9, 16, 18, 36]), draw.choice([1, 2, 4, 8, 16, 20]))
        yield "mvu", _mvu(simd, pe, *drawn, block_ram=draw.choice([0, 1, 1]))
    for simd, pe in ((1, 1), (1, 4), (4, 2), (8, 5), (16, 2), (32, 5), (64, 1), (16, 10)):
        yield "mvu", _mvu(simd, pe, draw.choice([2, 8, 16, 32]), draw.choice([1, 2, 5]), thresholds=0)
    bytes_in = (
        (1, 1),
        (1, 4),
        (1, 8),
        (1, 16),
        (3, 4),
        (3, 8),
        (2, 8),
        (4, 4),
        (6, 4),
        (8, 2),
        (3, 32),
        (1, 32),
    )
    for simd, pe in bytes_in:
        folds = (draw.choice([9, 9, 25]), draw.choice([1, 2, 4, 8]))
        yield "mvu", _mvu(simd, pe, *folds, bits=8, block_ram=draw.choice([0, 1]))
    for simd, pe in ((4, 2), (1, 4)):
        yield "mvu", _mvu(simd, pe, 9, 2, bits=8, thresholds=0)
    for numbers in _SWUS:
        yield "swu", _swu(*numbers)
    for width, beats, h, w, kernel in _POOLS:
        yield "pool", {"WIDTH": width, "FOLDS": beats, "IN_H": h, "IN_W": w, "K_H": kernel, "K_W": kernel}
    for given, wanted, frame in _WIDTHS:
        common = math.lcm(given, wanted)
        taken, made = frame or (common // given, common // wanted)
        yield "width", {"IN_WIDTH": given, "OUT_WIDTH": wanted, "IN_BEATS": taken, "OUT_BEATS": made}
    yield from (("fifo", {"WIDTH": width, "DEPTH": depth}) for width, depth in _FIFOS)
    for lanes in (4, 8, 16):
        yield "binarize", {"LANES": lanes}
    for words in (1, 13, 98, 128, 6000):
        yield "stream_in", {"BEATS": words}
        yield "stream_out", {"BEATS": words}
    yield "axil_regs", {"INPUT_BEATS": 98, "OUTPUT_BEATS": 5, "UNITS": 17}


_SWUS = (  # width, folds, height, width, kernel, stride, padding
    *((8, 1, 32, 32, 3, 1, 0), (4, 16, 16, 16, 3, 1, 0), (64, 1, 8, 8, 3, 1, 0), (16, 2, 20, 20, 5, 1, 0)),
    *((1, 8, 9, 9, 3, 1, 0), (8, 4, 28, 28, 5, 1, 0), (32, 1, 28, 28, 3, 1, 0), (32, 2, 30, 30, 3, 1, 1)),
    *((16, 4, 14, 14, 3, 1, 1), (8, 1, 32, 32, 3, 1, 1), (24, 1, 32, 32, 3, 2, 1), (32, 2, 16, 16, 3, 2, 0)),
    *((64, 4, 56, 56, 3, 1, 1), (32, 4, 7, 7, 3, 1, 1), (16, 8, 28, 28, 1, 2, 0), (24, 1, 64, 64, 5, 2, 2)),
)
_POOLS = (  # width, folds, height, width, kernel
    *((8, 1, 10, 10, 2), (4, 16, 12, 12, 2), (64, 2, 16, 16, 2), (1, 16, 8, 8, 2), (32, 1, 9, 9, 3)),
    *((16, 4, 15, 15, 2), (8, 8, 24, 24, 2), (32, 4, 56, 56, 2), (2, 64, 14, 14, 2)),
)
_EXACT = (
    *(
        (4, 32),
        (1, 4),
        (1, 32),
        (2, 64),
        (8, 32),
        (12, 32),
        (5, 16),
        (32, 8),
        (32, 16),
        (32, 4),
        (64, 1),
        (64, 24),
    ),
    *((64, 16), (32, 128), (24, 64), (10, 32), (3, 8), (48, 64), (64, 40)),
)
_FRAMED = (
    *((8, 64, (98, 13)), (512, 64, (1, 5)), (160, 64, (1, 3)), (320, 64, (1, 5)), (32, 64, (10, 5))),
    *(
        (64, 8, (7, 50)),
        (16, 64, (13, 4)),
        (8, 49, (98, 16)),
        (128, 64, (5, 9)),
        (32, 16, (3, 5)),
        (256, 64, (2, 7)),
    ),
)
_WIDTHS: tuple[tuple[int, int, tuple[int, int] | None], ...] = (*((*pair, None) for pair in _EXACT), *_FRAMED)
_FIFOS = (
    (8, 4),
    (8, 8),
    (32, 12),
    (1, 2),
    (4, 2),
    (128, 2),
    (512, 2),
    (8, 64),
    (32, 32),
    (64, 13),
    (16, 20),
    (64, 16),
    (2, 256),
    (3, 1024),
)


def _mvu(
    simd: int, pe: int, synapse: int, neuron: int, *, bits: int = 1, thresholds: int = 1, block_ram: int = 1
) -> Parameters:
    terms = simd * synapse
    width = math.ceil(math.log2(terms + 2)) if bits == 1 else 1 + math.ceil(math.log2(255 * terms + 2))
    sizes = {"IN_BITS": bits, "SIMD": simd, "PE": pe, "MW": terms, "MH": pe * neuron, "TERMS": terms}
    return sizes | {"ACCW": width, "THRESHOLDS": thresholds, "BLOCK_RAM": block_ram}


def _swu(width: int, folds: int, h: int, w: int, kernel: int, stride: int, pad: int) -> Parameters:
    sides = dict.fromkeys(("PAD_TOP", "PAD_LEFT", "PAD_BOTTOM", "PAD_RIGHT"), pad)
    sizes = {"WIDTH": width, "FOLDS": folds, "IN_H": h, "IN_W": w, "K_H": kernel, "K_W": kernel}
    return sizes | {"STRIDE_H": stride, "STRIDE_W": stride, "PAD_ONE": 0} | sides


# --- yosys' results ---------------------------------------------------------------------------------------------------


class Results:
    """What yosys said, by module and parameters, for the sources as they are; in a file where one is given."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._rtl = file, rtl_version()
        self._found: dict[str, Resources] = {}
        for line in file.read_text("utf-8").splitlines() if file and file.exists() else ():
            rtl, key, counts = json.loads(line)
            if rtl == self._rtl:
                self._found[key] = Resources(*counts)

    def of(self, wanted: Sequence[tuple[str, Parameters]]) -> list[Resources]:
        """The counts of these units, synthesized where they are not known."""
        for kind in dict.fromkeys(kind for kind, _ in wanted):
            new = [of for each, of in wanted if each == kind and self._key(kind, of) not in self._found]
            for at in range(0, len(new), AT_ONCE):
                self._add(kind, new[at : at + AT_ONCE])
                print(f"{kind}: {min(at + AT_ONCE, len(new))} of {len(new)}", file=sys.stderr, flush=True)
        return [self._found[self._key(kind, of)] for kind, of in wanted]

    def _add(self, kind: str, runs: Sequence[Parameters]) -> None:
        for of, counts in zip(runs, synthesized(kind, runs), strict=True):
            self._found[self._key(kind, of)] = counts
            if self._file is not None:
                line = [self._rtl, self._key(kind, of), [counts.luts, counts.ffs, counts.bram18]]
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def _key(self, kind: str, of: Parameters) -> str:
        return f"{kind} {json.dumps({name: value for name, value in of.items() if name != 'UNIT'}, sort_keys=True)}"


# --- fit --------------------------------------------------------------------------------------------------------------


def fit(wanted: Sequence[tuple[str, Parameters]], counts: Sequence[Resources]) -> None:
    """Replace the weights in coefficients by those that fit; the fifo first, since width units hold one."""
    kinds = sorted({kind for kind, _ in wanted}, key=lambda kind: kind != "fifo")
    for kind in kinds:
        rows = [
            (terms_of(kind, of), taken)
            for (each, of), taken in zip(wanted, counts, strict=True)
            if each == kind
        ]
        coefficients.LUTS[kind] = _solved(
            [(terms.luts, terms.fixed.luts, taken.luts) for terms, taken in rows]
        )
        coefficients.FFS[kind] = _solved([(terms.ffs, terms.fixed.ffs, taken.ffs) for terms, taken in rows])
    forget()


def forget() -> None:
    """Estimates made with other weights than those in coefficients now."""
    _estimated.cache_clear()


def _solved(rows: Sequence[tuple[Mapping[str, float], float, float]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for terms, _, _ in rows for name in terms))
    if not names:
        return {}
    weights = np.array([1 / max(total, LEAST) for _, _, total in rows])
    matrix = np.array([[float(terms.get(name, 0)) for name in names] for terms, _, _ in rows])
    wanted = np.array([total - fixed for _, fixed, total in rows])
    damping = 1e-3 * np.eye(len(names)) * np.linalg.norm(matrix * weights[:, None], axis=0)
    left = np.vstack([matrix * weights[:, None], damping])
    right = np.concatenate([wanted * weights, np.zeros(len(names))])
    solution, *_ = np.linalg.lstsq(left, right, rcond=None)
    return {name: round(float(value), 3) for name, value in zip(names, solution, strict=True)}


def write() -> None:
    """coefficients.py with the weights as they are now."""
    head = COEFFICIENTS.read_text("utf-8").partition("LUTS")[0]
    tables = "".join(f"{name}: dict[str, dict[str, float]] = {table!r}\n" for name, table in _tables())
    COEFFICIENTS.write_text(head + tables, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(COEFFICIENTS)], check=False)


def _tables() -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    for name, table in (("LUTS", coefficients.LUTS), ("FFS", coefficients.FFS)):
        yield name, {kind: dict(table[kind]) for kind in sorted(table)}


# --- what is told -----------------------------------------------------------------------------------------------------


def errors(model: Resources, counted: Resources) -> dict[str, float]:
    """Percent of what yosys counted, of LEAST at least; block RAMs of one at least."""
    pairs = {"LUT": (model.luts, counted.luts), "FF": (model.ffs, counted.ffs)}
    found = {name: 100 * (said - real) / max(real, LEAST) for name, (said, real) in pairs.items()}
    return found | {"BRAM18": 100 * (model.bram18 - counted.bram18) / max(counted.bram18, 1)}


def compared(
    wanted: Sequence[tuple[str, Parameters]], counts: Sequence[Resources], label: str
) -> list[dict[str, Any]]:
    """One target for each kind of unit: the worst error of its LUTs, flip-flops and block RAMs."""
    worst: dict[str, list[float]] = {}
    for (kind, of), counted in zip(wanted, counts, strict=True):
        off = errors(unit_resources(kind, of), counted)
        largest = max(off.items(), key=lambda item: abs(item[1]))
        worst.setdefault(kind, []).append(abs(largest[1]))
        if abs(largest[1]) > LIMIT:
            print(
                f"{label} {kind} {dict(of)}: {largest[0]} {largest[1]:+.1f} %, yosys {counted}",
                file=sys.stderr,
            )
    return [
        {"name": f"{label} {kind}: worst of {len(found)}", **_target(found)} for kind, found in worst.items()
    ]


def _target(found: Sequence[float]) -> dict[str, Any]:
    value = {
        "value": round(max(found), 2),
        "min": round(min(found), 2),
        "max": round(max(found), 2),
        "unit": "%",
    }
    return value | {"target": f"<= {LIMIT}", "met": max(found) <= LIMIT}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few units, and no fit")
    parser.add_argument("--write", action="store_true", help="put the fitted weights into coefficients.py")
    parser.add_argument("--keep", type=Path, help="a file of yosys' results, read and added to")
    wanted = parser.parse_args()
    results = Results(wanted.keep)
    units = [(unit.kind, unit.parameters) for unit in cnv() if not wanted.quick or unit.name in QUICK]
    targets: list[dict[str, Any]] = []
    try:
        if not wanted.quick:
            points = list(grid())
            counts = results.of(points)
            fit(points, counts)
            targets += compared(points, counts, "grid")
            if wanted.write:
                write()
        targets += compared(units, results.of(units), "CNV")
    except EdgekitError as err:
        print(f"overlay_resources: {err}", file=sys.stderr)
        return err.exit_code
    version = subprocess.run(["yosys", "-V"], capture_output=True, text=True, check=False).stdout.split()[1]
    result = {
        "machine": machine_name(),
        "versions": {"yosys": version, "rtl": rtl_version()[:12]},
        "rounds": 1,
        "provenance": "estimated, post-synthesis",
        "coefficients": dict(_tables()),
        "targets": targets,
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
