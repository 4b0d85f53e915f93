"""An overlay's design as frozen data: folded layers and the hardware units they became; to and from JSON.

Depends on shapes and folding only, never on weights: one bitstream serves every network of that shape. Chooses and
estimates nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.runtime.overlay.topology import CONVOLUTION, DENSE, KINDS, Layer

FORMAT = 1
WIRING = 1  # of the generated top: part of design_id, raised when verilog.py connects units otherwise
# Verilog module -> its parameters (axil_regs has DESIGN_ID besides)
UNIT_KINDS: Mapping[str, tuple[str, ...]] = {
    "stream_in": ("BEATS",),
    "binarize": ("UNIT", "LANES"),
    "width": ("IN_WIDTH", "OUT_WIDTH", "IN_BEATS", "OUT_BEATS"),
    "fifo": ("WIDTH", "DEPTH"),
    "swu": (
        *("WIDTH", "FOLDS", "IN_H", "IN_W", "K_H", "K_W", "STRIDE_H", "STRIDE_W"),
        *("PAD_TOP", "PAD_LEFT", "PAD_BOTTOM", "PAD_RIGHT", "PAD_ONE"),
    ),
    "mvu": ("UNIT", "IN_BITS", "SIMD", "PE", "MW", "MH", "TERMS", "ACCW", "THRESHOLDS", "BLOCK_RAM"),
    "pool": ("UNIT", "WIDTH", "FOLDS", "IN_H", "IN_W", "K_H", "K_W"),
    "stream_out": ("BEATS",),
    "axil_regs": ("INPUT_BEATS", "OUTPUT_BEATS", "UNITS"),
}
_MAY_BE_ZERO = (
    "UNIT",
    "PAD_TOP",
    "PAD_LEFT",
    "PAD_BOTTOM",
    "PAD_RIGHT",
    "PAD_ONE",
    "THRESHOLDS",
    "BLOCK_RAM",
)
LARGEST_UNIT = 254  # as the load bus counts them
_IDENTIFIER = re.compile("[A-Za-z][A-Za-z0-9_]{0,63}")  # of Verilog: a design's names become its text


@dataclass(frozen=True)
class Folding:
    """Rows (pe) and columns (simd) of a layer's matrix that are multiplied at once. block_ram: where weights lie."""

    pe: int
    simd: int
    block_ram: bool = True

    def __str__(self) -> str:
        return f"PE {self.pe}, SIMD {self.simd}"


@dataclass(frozen=True)
class FoldedLayer:
    """A layer with its folding; None for pools."""

    layer: Layer
    folding: Folding | None

    @property
    def rows_at_once(self) -> int:
        """PE; 1 for pools."""
        return 1 if self.folding is None else self.folding.pe

    @property
    def columns_at_once(self) -> int:
        """SIMD; 1 for pools."""
        return 1 if self.folding is None else self.folding.simd

    @property
    def columns(self) -> int:
        """Terms rounded up to whole beats of SIMD (MW)."""
        return _up(self.layer.terms, self.columns_at_once)

    @property
    def rows(self) -> int:
        """Outputs rounded up to whole beats of PE (MH)."""
        return _up(self.layer.out_c, self.rows_at_once)

    @property
    def depth(self) -> int:
        """Cycles for one vector: synapse folds times neuron folds."""
        if self.folding is None:
            return 1
        return (self.columns // self.folding.simd) * (self.rows // self.folding.pe)

    @property
    def cycles(self) -> int:
        """Cycles an image takes its matrix-vector unit (OFM^2 K^2 C_in C_out / (PE SIMD))."""
        return self.layer.positions * self.depth


@dataclass(frozen=True)
class Unit:
    """One instance of a Verilog module. kind: the module; parameters: by the names the module has.

    operator: the plan's operator whose weights, thresholds or mask it holds, or None. layer: the name of the layer it
    works for ("" for what belongs to none). frames: how often one image runs through it: vectors of an mvu, frames of a
    width, beats of a fifo or binarize, 1 otherwise.
    """

    kind: str
    name: str
    parameters: Mapping[str, int]
    operator: int | None = None
    layer: str = ""
    frames: int = 1


@dataclass(frozen=True)
class Design:
    """What stands in Plan.design. units: in stream order; axil_regs last. clock_mhz: assumed, for every rate we state.

    rtl: sha256 of the Verilog sources it was made for. input_beats, output_beats: 64-bit words of one image.
    """

    layers: tuple[FoldedLayer, ...]
    units: tuple[Unit, ...]
    input_beats: int
    output_beats: int
    clock_mhz: float
    rtl: str

    @cached_property
    def design_id(self) -> str:
        """32 hexadecimal digits over all that shapes the hardware; weights and the assumed clock do not."""
        hardware = {
            "wiring": WIRING,
            "rtl": self.rtl,
            "input_beats": self.input_beats,
            "output_beats": self.output_beats,
            "units": [[unit.kind, unit.name, dict(unit.parameters)] for unit in self.units],
        }
        return hashlib.sha256(checks.canonical_json(hardware)).hexdigest()[:32]

    def to_json(self) -> str:
        """One line of JSON, the same bytes for the same design; parse reads it back."""
        data = {
            "format": FORMAT,
            "design_id": self.design_id,
            "rtl": self.rtl,
            "clock_mhz": self.clock_mhz,
            "input_beats": self.input_beats,
            "output_beats": self.output_beats,
            "layers": [
                asdict(folded.layer) | {"folding": folded.folding and asdict(folded.folding)}
                for folded in self.layers
            ],
            "units": [asdict(unit) | {"parameters": dict(unit.parameters)} for unit in self.units],
        }
        return checks.canonical_json(data).decode()

    @classmethod
    def parse(cls, text: str) -> Design:
        """Read to_json's text. Raises BadInput that says which key is wrong, and for a design_id not its own."""
        where = "design"
        data = checks.table(checks.parse_json(text.encode(), where), where)
        version = checks.integer(data.get("format"), f"{where}.format", 1)
        if version > FORMAT:
            raise BadInput(
                f"{where}: format {version} is newer than this edgekit reads ({FORMAT}): update edgekit"
            )
        design = cls(
            layers=checks.rows(data.get("layers"), f"{where}.layers", _layer),
            units=checks.rows(data.get("units"), f"{where}.units", _unit),
            input_beats=checks.integer(data.get("input_beats"), f"{where}.input_beats", 1, 2**32 - 1),
            output_beats=checks.integer(data.get("output_beats"), f"{where}.output_beats", 1, 2**32 - 1),
            clock_mhz=checks.number(data.get("clock_mhz"), f"{where}.clock_mhz", 1e-3, 1e4),
            rtl=checks.sha256(data.get("rtl"), f"{where}.rtl"),
        )
        if data.get("design_id") != design.design_id:
            raise checks.wrong(f"{where}.design_id", design.design_id, data.get("design_id"))
        return design


def _layer(data: object, where: str) -> FoldedLayer:
    table = checks.table(data, where)

    def numbers(key: str, count: int) -> tuple[Any, ...]:
        found = checks.rows(
            table.get(key), f"{where}.{key}", lambda item, at: checks.integer(item, at, 0, 65535)
        )
        if len(found) != count:
            raise checks.wrong(f"{where}.{key}", f"{count} whole numbers", list(found))
        return found

    sizes = {key: checks.integer(table.get(key), f"{where}.{key}", 1) for key in _SIZES}
    layer = Layer(
        name=checks.name(table.get("name"), f"{where}.name"),
        kind=checks.choice(table.get("kind"), f"{where}.kind", KINDS),
        **sizes,
        kernel=numbers("kernel", 2),
        stride=numbers("stride", 2),
        pads=numbers("pads", 4),
        pad_one=checks.flag(table.get("pad_one"), f"{where}.pad_one"),
        input_bits=checks.integer(table.get("input_bits"), f"{where}.input_bits", 1, 8),
        gives_sums=checks.flag(table.get("gives_sums"), f"{where}.gives_sums"),
        operator=checks.integer(table.get("operator"), f"{where}.operator"),
    )
    folding = checks.optional(table.get("folding"), f"{where}.folding", _folding)
    if (folding is not None) != (layer.kind in {CONVOLUTION, DENSE}):
        raise checks.wrong(
            f"{where}.folding", "given for layers with weights and null for pools", table.get("folding")
        )
    return FoldedLayer(layer, folding)


def _folding(data: object, where: str) -> Folding:
    table = checks.table(data, where)
    return Folding(
        pe=checks.integer(table.get("pe"), f"{where}.pe", 1),
        simd=checks.integer(table.get("simd"), f"{where}.simd", 1),
        block_ram=checks.flag(table.get("block_ram"), f"{where}.block_ram"),
    )


def _unit(data: object, where: str) -> Unit:
    table = checks.table(data, where)
    kind = checks.choice(table.get("kind"), f"{where}.kind", tuple(UNIT_KINDS))
    parameters = checks.table(table.get("parameters"), f"{where}.parameters")
    if set(parameters) != set(UNIT_KINDS[kind]):
        raise checks.wrong(
            f"{where}.parameters", f"those of {kind} ({', '.join(UNIT_KINDS[kind])})", list(parameters)
        )
    layer = table.get("layer")
    return Unit(
        kind=kind,
        name=_identifier(table.get("name"), f"{where}.name"),
        parameters={
            name: checks.integer(
                value, f"{where}.parameters.{name}", int(name not in _MAY_BE_ZERO), 2**31 - 1
            )
            for name, value in parameters.items()
        },
        operator=checks.optional(table.get("operator"), f"{where}.operator", checks.integer),
        layer="" if layer == "" else checks.name(layer, f"{where}.layer"),
        frames=checks.integer(table.get("frames"), f"{where}.frames", 1),
    )


def _identifier(value: object, where: str) -> str:
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise checks.wrong(where, "an identifier of Verilog (letters, digits and '_', at most 64)", value)
    return value


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


_SIZES = tuple(field.name for field in fields(Layer) if field.name[:3] in {"in_", "out"})
