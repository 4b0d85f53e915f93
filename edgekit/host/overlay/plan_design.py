"""A plan with an overlay's design in it, and the design as rows to print: what the converter calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgekit.core.errors import BadInput
from edgekit.core.profile import Profile
from edgekit.host.overlay.folding import choose, limits_of
from edgekit.host.overlay.resources import Resources, unit_resources
from edgekit.native.plan import Plan
from edgekit.runtime.overlay.cycles import unit_cycles
from edgekit.runtime.overlay.design import Design, FoldedLayer
from edgekit.runtime.overlay.topology import DENSE, POOL, chain_of

PROVENANCE = "estimated, post-synthesis"  # of every LUT, flip-flop and block RAM in a row


@dataclass(frozen=True)
class Row:
    """One line of a design: a layer with all units that work for it, the streams' ends, or the total.

    what: the layer in short ("64C3 30x30", "512FC", "P2"). pe, simd: None for what is not folded. cycles: an image
    takes it; of the total: between two images of a stream. bram36: 36-kbit block RAMs, halves are 18-kbit ones.
    """

    name: str
    what: str
    pe: int | None
    simd: int | None
    cycles: int
    luts: int
    ffs: int
    bram36: float


def plan_for_overlay(
    plan: Plan,
    profile: Profile,
    target_images_s: float | None = None,
    folding: Mapping[str, tuple[int, int]] | None = None,
) -> Plan:
    """The same plan with the design of an overlay for `profile` in it.

    target_images_s: at the profile's fpga.clock_mhz; None: the fastest that fits. folding: (PE, SIMD) by layer name
    ("L0", "L1" …), for some layers or all. Raises BadInput, one line: what the overlay does not hold, or what it needs
    and what the board has.
    """
    if target_images_s is not None and not target_images_s > 0:
        raise BadInput(f"the overlay's throughput must be above 0 images/s, got {target_images_s:g}")
    chain = chain_of(plan)
    names = [layer.name for layer in chain.layers if layer.kind != POOL]
    for name in folding or {}:
        if name not in names:
            raise BadInput(f"folding: the overlay has no layer {name}; it has {', '.join(names)}")
    return replace(plan, design=choose(chain, limits_of(profile), target_images_s, folding).to_json())


def describe(design: Design) -> list[Row]:
    """A row for each layer, one for the streams and registers around them ("bus"), and the total."""
    rows = [_row(design, item) for item in design.layers]
    rows.append(_summed(design, "bus", "streams, registers", layer=""))
    last = sum(
        (unit_resources(unit.kind, unit.parameters) for unit in design.units), start=Resources(0, 0, 0)
    )
    slowest = max(row.cycles for row in rows)
    return [*rows, Row("total", "", None, None, slowest, round(last.luts), round(last.ffs), last.bram36)]


def _row(design: Design, item: FoldedLayer) -> Row:
    layer = item.layer
    if layer.kind == POOL:
        what = f"P{layer.kernel[0]} {layer.out_h}x{layer.out_w}"
    elif layer.kind == DENSE:
        what = f"{layer.out_c}FC"
    else:
        what = f"{layer.out_c}C{layer.kernel[0]} {layer.out_h}x{layer.out_w}"
    row = _summed(design, layer.name, what, layer=layer.name)
    return row if item.folding is None else replace(row, pe=item.folding.pe, simd=item.folding.simd)


def _summed(design: Design, name: str, what: str, *, layer: str) -> Row:
    units = [unit for unit in design.units if unit.layer == layer]
    taken = sum((unit_resources(unit.kind, unit.parameters) for unit in units), start=Resources(0, 0, 0))
    slowest = max((unit_cycles(unit) for unit in units), default=0)
    return Row(name, what, None, None, slowest, round(taken.luts), round(taken.ffs), taken.bram36)
