from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from overlay_plans import CNV_FOLDING, LFC_FOLDING, cnv, lfc

from edgekit.core.errors import BadInput
from edgekit.host.overlay.memories import block_ram, lut_ram
from edgekit.host.overlay.resources import Resources, design_resources, unit_resources
from edgekit.host.overlay.yosys import is_installed, synthesized
from edgekit.runtime.overlay.design import Design, Folding, Unit
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import design_for

PUBLISHED = design_for(chain_of(cnv()), {name: Folding(*of) for name, of in CNV_FOLDING.items()}, 100.0)
UNITS = {unit.name: unit for unit in PUBLISHED.units}
SMALL = 40  # LUTs or flip-flops: of a smaller unit ten per cent are a matter of four

needs_yosys = pytest.mark.skipif(not is_installed(), reason="needs yosys: apt-get install yosys")


def mvu(**changes: int) -> Resources:
    return unit_resources("mvu", {**UNITS["l3_mvu"].parameters, **changes})


def check(units: Sequence[Unit]) -> None:
    """Ten per cent of what yosys counts, for every unit, its LUTs, its flip-flops and its block RAMs."""
    kinds: dict[str, list[Unit]] = {}
    for unit in units:
        kinds.setdefault(unit.kind, []).append(unit)
    for kind, alike in kinds.items():
        distinct = {str(shape(unit)): shape(unit) for unit in alike}
        for parameters, counted in zip(
            distinct.values(), synthesized(kind, list(distinct.values())), strict=True
        ):
            model = unit_resources(kind, parameters)
            said = f"{kind} {parameters}: {model}, yosys {counted}"
            assert model.luts == pytest.approx(counted.luts, rel=0.1, abs=SMALL / 10), said
            assert model.ffs == pytest.approx(counted.ffs, rel=0.1, abs=SMALL / 10), said
            assert model.bram18 == pytest.approx(counted.bram18, rel=0.1), said


def shape(unit: Unit) -> Mapping[str, int]:
    return {name: value for name, value in unit.parameters.items() if name != "UNIT"}


@needs_yosys
def test_a_unit_of_cnv_takes_what_yosys_counts() -> None:
    check([UNITS["l6_mvu"]])


@needs_yosys
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_unit_of_cnv_takes_what_yosys_counts() -> None:
    check(PUBLISHED.units)


@needs_yosys
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_units_of_a_chosen_folding_together_take_what_yosys_counts() -> None:
    """LFC's, the sum over its units: none of them was in the fit."""
    units = lfc_published().units
    counted = Resources(0, 0, 0)
    for unit in units:
        counted += synthesized(unit.kind, [shape(unit)])[0]
    model = design_resources(lfc_published())
    assert model.luts == pytest.approx(counted.luts, rel=0.1)
    assert model.ffs == pytest.approx(counted.ffs, rel=0.1)
    assert model.bram18 == counted.bram18


def lfc_published() -> Design:
    return design_for(chain_of(lfc()), {name: Folding(*of) for name, of in LFC_FOLDING.items()}, 100.0)


def test_cnv_in_its_published_folding_fits_the_board() -> None:
    taken = design_resources(PUBLISHED)
    assert 8_000 < taken.luts < 26_072  # BNN-PYNQ's whole bitstream, with its DMA and interconnect
    assert taken.bram36 < 124


def test_the_weights_of_an_mvu_lie_in_one_memory_or_the_other() -> None:
    block, luts = mvu(BLOCK_RAM=1), mvu(BLOCK_RAM=0)
    assert (block.bram18, luts.bram18) == (16, 0)
    assert luts.luts > block.luts + 16 * 32 * 288 / 64  # RAM64M holds three times 64 bits in four LUTs


@pytest.mark.parametrize("name", ["PE", "SIMD"])
def test_more_at_once_takes_more_luts(name: str) -> None:
    sizes = [mvu(**{name: value}).luts for value in (1, 2, 4, 8, 16, 32, 64)]
    assert sizes == sorted(sizes)


def test_the_place_on_the_load_bus_costs_nothing() -> None:
    assert mvu(UNIT=1) == mvu(UNIT=200)


def test_a_unit_nobody_knows_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        BadInput, match="unknown unit of an overlay 'multiplier'; known: axil_regs, binarize, fifo"
    ):
        unit_resources("multiplier", {})


@pytest.mark.parametrize(
    ("depth", "width", "bram18"),
    [
        (512, 36, 1),
        (36, 32, 1),
        (512, 48, 2),
        (1024, 18, 1),
        (1024, 36, 2),
        (2304, 32, 5),
        (18432, 32, 36),
        (32768, 4, 8),
    ],
)
def test_block_rams_are_counted_in_the_mode_that_takes_least(depth: int, width: int, bram18: int) -> None:
    assert block_ram(depth, width).bram18 == bram18


@pytest.mark.parametrize(
    ("depth", "width", "luts"), [(2, 6, 4), (32, 7, 8), (33, 3, 4), (64, 32, 44), (128, 1, 4), (128, 8, 34)]
)
def test_lut_memories_are_counted_in_fours(depth: int, width: int, luts: int) -> None:
    assert lut_ram(depth, width).luts == luts
