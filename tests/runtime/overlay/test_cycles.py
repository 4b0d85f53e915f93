from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from overlay_plans import CNV_FOLDING, LFC_FOLDING, cnv, lfc, network, small_cnv

from edgekit.native.plan import Plan
from edgekit.runtime.overlay import registers as reg
from edgekit.runtime.overlay.cycles import images_per_second, interval_cycles, latency_cycles, unit_cycles
from edgekit.runtime.overlay.design import Design, FoldedLayer, Folding
from edgekit.runtime.overlay.simulation import missing, simulate
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import design_for

W2A2_PE, W2A2_SIMD = (8, 16, 8, 8, 4, 1, 1, 2, 4), (3, 16, 16, 16, 8, 8, 2, 2, 1)  # BNN-PYNQ, CNV W2A2


def folded(plan: Plan, folding: Mapping[str, tuple[int, int]]) -> Design:
    return design_for(chain_of(plan), {name: Folding(*pair) for name, pair in folding.items()}, 100.0)


def test_the_published_folding_of_cnv_takes_the_published_cycles() -> None:
    design = folded(cnv(), CNV_FOLDING)
    by_layer = {item.layer.name: item.cycles for item in design.layers if item.folding}
    assert by_layer["L0"] == 32_400
    assert by_layer["L6"] == by_layer["L7"] == interval_cycles(design) == 32_768
    assert round(images_per_second(interval_cycles(design), 100)) == 3_052
    assert round(images_per_second(interval_cycles(design), 300)) == 9_155


def test_the_published_folding_of_two_bits_takes_the_published_cycles() -> None:
    """The overlay does not hold W2A2; its folding is one of the same layers."""
    folding = {f"L{index}": pair for index, pair in enumerate(zip(W2A2_PE, W2A2_SIMD, strict=True))}
    design = folded(cnv(), folding)
    assert interval_cycles(design) == 115_200
    assert round(images_per_second(115_200, 100)) == 868


def test_the_published_folding_of_lfc_takes_512_cycles() -> None:
    design = folded(lfc(), LFC_FOLDING)
    assert [item.cycles for item in design.layers[:3]] == [416, 512, 512]
    assert interval_cycles(design) == 512
    assert int(images_per_second(512, 100) / 1000) == 195


def test_cycles_are_the_formula_of_the_paper() -> None:
    for item in folded(cnv(), CNV_FOLDING).layers[:-1]:
        if item.folding is not None:
            layer, folding = item.layer, item.folding
            macs = layer.out_h**2 * layer.kernel[0] ** 2 * layer.in_c * layer.out_c
            assert item.cycles == macs // (folding.pe * folding.simd)


def test_padded_rows_and_columns_cost_whole_folds() -> None:
    layer = chain_of(lfc()).layers[0]
    item = FoldedLayer(layer, Folding(32, 64))
    assert (item.columns, item.rows, item.cycles) == (832, 1024, 13 * 32)


def test_a_stream_that_is_slower_than_every_layer_sets_the_interval() -> None:
    plan = network((16, 16, 8), (("conv", 4), ("dense", 2)))
    design = folded(plan, {"L0": (4, 1), "L1": (2, 4)})
    beats = 14 * 14 * 9 * 8
    assert (
        interval_cycles(design)
        == beats
        == max(unit_cycles(unit) for unit in design.units if unit.kind == "swu")
    )


def simulated(design: Design, images: int) -> tuple[float, int]:
    """Mean cycles between the last images of a stream, and the first one's latency, in the simulated overlay."""
    device = simulate(design)
    try:
        for address, value in (
            (reg.REG_CONTROL, reg.CONTROL_RESET),
            (reg.REG_BATCH, images),
            (reg.REG_CONTROL, reg.CONTROL_START),
        ):
            device.write(address, np.array([value], np.uint32))
        start = device.cycle
        device.send(np.zeros(images * design.input_beats * 8, np.uint8))
        sums = np.zeros(images * design.output_beats * 8, np.uint8)
        assert device.receive(sums, 10**8) == sums.size
        ends = device.cycles_of[design.output_beats - 1 :: design.output_beats].astype(np.int64)
    finally:
        device.close()
    last = images // 2
    return float(np.diff(ends)[-last:].mean()), int(ends[0]) - start


needs_verilator = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@needs_verilator
@pytest.mark.parametrize(
    "folding",
    [
        {"L0": (4, 3), "L1": (8, 8), "L2": (1, 16), "L3": (2, 1)},  # a convolution is slowest
        pytest.param({"L0": (8, 3), "L1": (1, 2), "L2": (4, 16), "L3": (1, 8)}, marks=pytest.mark.slow),
        pytest.param({"L0": (1, 1), "L1": (2, 8), "L2": (1, 9), "L3": (1, 4)}, marks=pytest.mark.slow),
    ],
)
def test_a_small_cnv_in_simulation_takes_the_models_cycles(folding: Mapping[str, tuple[int, int]]) -> None:
    design = folded(small_cnv(), folding)
    interval, latency = simulated(design, 8)
    assert interval == pytest.approx(interval_cycles(design), rel=0.02)
    assert latency == pytest.approx(latency_cycles(design), rel=0.02)


@needs_verilator
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("plan", "folding"), [(cnv(), CNV_FOLDING), (lfc(), LFC_FOLDING)], ids=["cnv", "lfc"]
)
def test_the_published_foldings_in_simulation_take_the_models_cycles(
    plan: Plan, folding: Mapping[str, tuple[int, int]]
) -> None:
    design = folded(plan, folding)
    interval, latency = simulated(design, 10)
    assert interval == pytest.approx(interval_cycles(design), rel=0.02)
    assert latency == pytest.approx(latency_cycles(design), rel=0.02)
