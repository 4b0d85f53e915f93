from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from overlay_plans import CNV_FOLDING, cnv, lfc, network, small_cnv

from edgekit.core.errors import BadInput
from edgekit.core.figure import unknown
from edgekit.core.profile import Profile, profile
from edgekit.host.overlay.folding import Limits, choose, limits_of
from edgekit.host.overlay.plan_design import describe, plan_for_overlay
from edgekit.host.overlay.resources import Resources, design_resources
from edgekit.native.plan import Linear, Plan
from edgekit.runtime.overlay.cycles import images_per_second, interval_cycles
from edgekit.runtime.overlay.design import Design, Folding
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import design_for

PYNQ = profile("pynq-z1")
SMALL_PAIR = network((1, 1, 24), (("dense", 12), ("dense", 4)))


def designed(plan: Plan, rate: float | None = None) -> Design:
    return Design.parse(plan_for_overlay(plan, PYNQ, rate).design)


def rate(design: Design) -> float:
    return images_per_second(interval_cycles(design), design.clock_mhz)


def cost(design: Design, limits: Limits) -> float:
    taken = design_resources(design)
    return taken.luts / limits.luts + taken.bram18 / limits.bram18


def test_the_limits_are_seven_tenths_of_the_luts_and_all_block_rams() -> None:
    assert limits_of(PYNQ) == Limits("pynq-z1", 37_240, 53_200, 280, 100.0)


@pytest.mark.parametrize("target", [100.0, 1_000.0, 3_052.0, 9_000.0])
def test_cnv_is_folded_for_a_target_within_the_limits(target: float) -> None:
    design = designed(cnv(), target)
    assert rate(design) >= target
    assert limits_of(PYNQ).hold(design_resources(design))


def test_the_published_rate_takes_no_more_than_the_published_folding() -> None:
    published = design_for(chain_of(cnv()), {name: Folding(*of) for name, of in CNV_FOLDING.items()}, 100.0)
    ours = designed(cnv(), rate(published))
    assert rate(ours) >= rate(published)
    assert cost(ours, limits_of(PYNQ)) <= cost(published, limits_of(PYNQ))


def test_windows_that_skip_pixels_still_take_every_pixel_in_time() -> None:
    """With a stride a sliding-window unit can take more beats than it gives."""
    plan = network((16, 16, 16), (("conv", 16), ("conv", 8), ("dense", 4)))
    strided = list(plan.operators)
    of = strided[1].of
    assert isinstance(of, Linear)
    strided[1] = replace(
        strided[1], of=replace(of, kernel=(1, 1), stride=(4, 4), weights=of.weights[:, :1, :1])
    )
    tensors = list(plan.tensors)
    tensors[2] = replace(tensors[2], h=4, w=4)
    last = strided[2].of
    assert isinstance(last, Linear)
    strided[2] = replace(strided[2], of=replace(last, kernel=(4, 4), weights=last.weights[:, :4, :4]))
    plan = Plan(tuple(tensors), tuple(strided))
    kept = plan_for_overlay(plan, PYNQ, 1e8 / 3_200, {"L1": (1, 1)})
    assert interval_cycles(Design.parse(kept.design)) == 14 * 14 * 16
    with pytest.raises(BadInput, match="no folding is that fast: L1 takes 3,136 cycles an image at least"):
        plan_for_overlay(plan, PYNQ, 1e8 / 3_000, {"L1": (1, 1)})


def test_a_higher_target_never_costs_less_nor_gives_fewer_images() -> None:
    targets = [50.0, 200.0, 800.0, 1_600.0, 3_052.0, 6_000.0, 9_000.0]
    designs = [designed(cnv(), target) for target in targets]
    costs = [cost(design, limits_of(PYNQ)) for design in designs]
    assert costs == sorted(costs)
    assert all(rate(design) >= target for design, target in zip(designs, targets, strict=True))


@pytest.mark.parametrize("plan", [cnv(), lfc(), small_cnv()], ids=["cnv", "lfc", "small"])
def test_without_a_target_it_is_the_fastest_that_fits(plan: Plan) -> None:
    fastest = designed(plan)
    assert limits_of(PYNQ).hold(design_resources(fastest))
    with pytest.raises(BadInput):
        designed(plan, rate(fastest) * 1.001)


def test_no_other_folding_of_a_small_network_is_cheaper_at_its_target() -> None:
    """Against every PE and SIMD of two layers, in either memory."""
    chain, limits = chain_of(SMALL_PAIR), limits_of(PYNQ)
    target = 1e8 / 24
    chosen = choose(chain, limits, target)
    columns = [size for size in range(1, 25) if 24 % size == 0 or size & (size - 1) == 0]
    foldings = [
        [
            Folding(pe, simd, block)
            for pe in (size for size in range(1, rows + 1) if rows % size == 0 or size & (size - 1) == 0)
            for simd in columns
            if simd <= terms
            for block in (True, False)
            if -(-terms // simd) * -(-rows // pe) <= 24
        ]
        for rows, terms in ((12, 24), (4, 12))
    ]
    best = min(
        cost(design_for(chain, {"L0": one, "L1": two}, 100.0), limits)
        for one, two in itertools.product(*foldings)
    )
    assert cost(chosen, limits) == pytest.approx(best, abs=2e-4)


def test_what_cannot_fit_is_refused_with_what_it_needs_and_what_there_is() -> None:
    said = (
        r"^250,000 images/s at 100 MHz needs [\d,]+ LUTs and [\d.]+ block RAMs \(estimated, post-synthesis\), "
        r"pynq-z1 gives 37,240 \(70% of 53,200\) and 140: [\d,]+ images/s is the most that fits$"
    )
    with pytest.raises(BadInput, match=said):
        plan_for_overlay(lfc(), PYNQ, 250_000)


def test_a_network_too_large_in_every_folding_is_refused_with_the_numbers() -> None:
    large = network((1, 1, 3072), (("dense", 2048), ("dense", 10)))
    with pytest.raises(BadInput, match=r"folded as far as it goes, needs .* block RAMs .* gives 37,240"):
        plan_for_overlay(large, PYNQ)


def test_a_rate_beyond_every_folding_names_the_layer_that_bounds_it() -> None:
    with pytest.raises(BadInput, match="no folding is that fast: L0 takes 8,100 cycles an image at least"):
        plan_for_overlay(cnv(), PYNQ, 20_000)
    with pytest.raises(BadInput, match="must be above 0 images/s, got -1"):
        plan_for_overlay(cnv(), PYNQ, -1)


def test_a_given_folding_is_kept_and_judged() -> None:
    design = Design.parse(plan_for_overlay(cnv(), PYNQ, None, CNV_FOLDING).design)
    kept = {item.layer.name: (item.folding.pe, item.folding.simd) for item in design.layers if item.folding}
    assert kept == CNV_FOLDING
    one = Design.parse(plan_for_overlay(cnv(), PYNQ, 1_000, {"L1": (64, 8)}).design)
    assert [str(item.folding) for item in one.layers][1] == "PE 64, SIMD 8"
    with pytest.raises(BadInput, match="the given folding needs"):
        plan_for_overlay(lfc(), PYNQ, None, {"L0": (512, 98), "L1": (512, 64)})
    with pytest.raises(BadInput, match="has no layer L77; it has L0"):
        plan_for_overlay(cnv(), PYNQ, None, {"L77": (1, 1)})
    with pytest.raises(BadInput, match="L1's SIMD must divide its 64 input channels, got 5"):
        plan_for_overlay(cnv(), PYNQ, None, {"L1": (1, 5)})


def test_a_board_without_logic_or_without_its_figures_is_refused() -> None:
    with pytest.raises(BadInput, match="raspberrypi5 has no programmable logic"):
        plan_for_overlay(small_cnv(), profile("raspberrypi5"))
    fpga = PYNQ.fpga
    assert fpga is not None
    board: Profile = replace(PYNQ, fpga=replace(fpga, luts=unknown("1")))
    with pytest.raises(BadInput, match=r"fpga\.luts, which is unknown"):
        plan_for_overlay(small_cnv(), board)


def test_rows_of_a_design_add_up_to_its_total() -> None:
    design = designed(cnv(), 3_052)
    *rows, total = describe(design)
    assert [row.name for row in rows] == [*(item.layer.name for item in design.layers), "bus"]
    assert total.cycles == interval_cycles(design) == max(row.cycles for row in rows)
    taken = design_resources(design)
    assert total.luts == round(taken.luts) == pytest.approx(sum(row.luts for row in rows), abs=len(rows))
    assert total.bram36 == taken.bram36 == sum(row.bram36 for row in rows)
    assert (rows[0].what, rows[2].what, rows[-2].what) == ("64C3 30x30", "P2 14x14", "10FC")
    assert isinstance(rows[0].pe, int)
    assert rows[2].pe is None


def test_limits_count_both_luts_and_block_rams() -> None:
    limits = limits_of(PYNQ)
    assert limits.hold(Resources(37_240, 0, 280))
    assert not limits.hold(Resources(37_241, 0, 0))
    assert not limits.hold(Resources(0, 0, 281))
