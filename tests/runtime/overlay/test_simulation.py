"""The whole overlay in Verilator against the plan by its definition: small networks, every kind of layer and fault."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import overlay_plans
import plan_reference
import pytest
from numpy.typing import NDArray
from overlay_foldings import SMALL, with_design

from edgekit.core.errors import BadBundle, BadInput, MissingExtra, WorldFailed
from edgekit.native import plan as pl
from edgekit.native.plan import Linear, Operator, Plan, PlanTensor, Threshold, Window
from edgekit.runtime.overlay import registers as reg
from edgekit.runtime.overlay import simulation as sim
from edgekit.runtime.overlay.cycles import interval_cycles, latency_cycles
from edgekit.runtime.overlay.design import Design, Folding
from edgekit.runtime.overlay.driver import Overlay
from edgekit.runtime.overlay.simulation import Simulation, missing, simulate
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import columns_may_be_padded, rows_may_be_padded

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
Array = NDArray[Any]


def opened(plan: Plan, *, seed: int = 0, **more: Any) -> tuple[Overlay, Simulation]:
    simulation = simulate(Design.parse(plan.design), seed)
    return Overlay(simulation, plan, **more), simulation


def wanted(plan: Plan, images: Array) -> Array:
    """By the definition in plan.h."""
    source = plan.tensors[plan.marked(outputs=False)[0]]
    last = plan.marked(outputs=True)[0]
    inside = [image.transpose(1, 2, 0) if source.channels_first else image for image in images]
    codes = [plan_reference.from_outside(source, image) for image in inside]
    return np.stack([plan_reference.run(plan, [code])[last] for code in codes])


@pytest.fixture(scope="module")
def small() -> Plan:
    return with_design(overlay_plans.small_cnv(), SMALL)


def images_of(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3), np.uint8)


@pytest.mark.parametrize("stalls", [(0, 0), (30, 0), (0, 60), (70, 70)])
def test_sums_are_those_of_the_plan_whatever_the_streams_do(small: Plan, stalls: tuple[int, int]) -> None:
    overlay, simulation = opened(small, seed=sum(stalls))
    simulation.stall(*stalls)
    images = images_of(5)
    np.testing.assert_array_equal(overlay.run(images).sums, wanted(small, images))


def test_cycles_are_those_of_the_model(small: Plan) -> None:
    overlay, _ = opened(small)
    many, one = overlay.run(images_of(12)), overlay.run(images_of(1))
    assert many.interval_cycles == pytest.approx(interval_cycles(overlay.design), rel=0.02)
    assert (many.cycles - one.cycles) / 11 == pytest.approx(interval_cycles(overlay.design), rel=0.02)
    assert one.cycles == pytest.approx(latency_cycles(overlay.design), rel=0.05)


def test_other_weights_run_on_the_same_overlay(small: Plan) -> None:
    overlay, simulation = opened(small)
    retrained = with_design(overlay_plans.small_cnv(seed=7), SMALL)
    images = images_of(3)
    other = Overlay(simulation, retrained)
    np.testing.assert_array_equal(other.run(images).sums, wanted(retrained, images))
    assert overlay.design.design_id == other.design.design_id


# --- other shapes ------------------------------------------------------------------------------------------


def linear(
    rng: np.random.Generator, source: PlanTensor, rows: int, *, last: bool = False, **more: Any
) -> tuple[Linear, PlanTensor]:
    kernel = more.pop("kernel", (source.h, source.w))
    of = Linear(rng.integers(0, 2, (rows, *kernel, source.c)).astype(np.uint8), pl.BIPOLAR, kernel, **more)
    h, w = (
        (size + of.pads[at] + of.pads[at + 2] - kernel[at]) // of.stride[at] + 1
        for at, size in enumerate((source.h, source.w))
    )
    spread = int((kernel[0] * kernel[1] * source.c) ** 0.5) * (147 if source.type == pl.U8 else 1) + 1
    thresholds = rng.integers(-spread, spread + 1, (rows, 1)).astype(np.int32)
    thresholds[: rows // 4] = rng.choice([np.iinfo(np.int32).min, np.iinfo(np.int32).max], (rows // 4, 1))
    if last:
        return of, PlanTensor(pl.I32, h, w, rows, is_output=True, name="y")
    return (
        replace(of, epilogue=pl.THRESHOLDS, thresholds=thresholds),
        PlanTensor(pl.BITS, h, w, rows, coding=pl.BIPOLAR),
    )


def chain(source: PlanTensor, steps: Sequence[Any]) -> Plan:
    """steps: what makes (kind, parameters, tensor) of the tensor before."""
    return functools.reduce(grown, steps, Plan((source,), ()))


def grown(plan: Plan, step: Any) -> Plan:
    """The plan with one more operator."""
    kind, of, made = step(plan.tensors[-1])
    last = len(plan.tensors) - 1
    return Plan((*plan.tensors, made), (*plan.operators, Operator(kind, (last,), last + 1, of)))


def layer(rng: np.random.Generator, rows: int, **more: Any) -> Any:
    def step(source: PlanTensor) -> tuple[int, Linear, PlanTensor]:
        return (pl.LINEAR, *linear(rng, source, rows, **more))

    return step


def pooled(rng: np.random.Generator, side: int) -> Any:
    def step(source: PlanTensor) -> tuple[int, Window, PlanTensor]:
        of = Window((side, side), (side, side), rng.integers(0, 2, source.c).astype(np.bool_))
        made = PlanTensor(pl.BITS, source.h // side, source.w // side, source.c, coding=pl.BIPOLAR)
        return pl.POOL, of, made

    return step


def binarized(threshold: int) -> Any:
    def step(source: PlanTensor) -> tuple[int, Threshold, PlanTensor]:
        of = Threshold(np.full((source.c, 1), threshold, np.int32))
        return pl.THRESHOLD, of, PlanTensor(pl.BITS, source.h, source.w, source.c, coding=pl.BIPOLAR)

    return step


def padded_strided(rng: np.random.Generator) -> tuple[Plan, dict[str, Folding]]:
    source = PlanTensor(pl.U8, 9, 8, 2, is_input=True, channels_first=True, name="x")
    steps = [
        layer(rng, 6, kernel=(3, 3), pads=(1, 1, 1, 1), pad=pl.PAD_ZERO),
        layer(rng, 10, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1), pad=pl.PAD_PLUS),
        layer(rng, 8, kernel=(1, 1)),
        pooled(rng, 2),
        layer(rng, 5, kernel=(1, 1), stride=(2, 1), last=True),
    ]
    return chain(source, steps), {
        "L0": Folding(3, 1),
        "L1": Folding(5, 3),
        "L2": Folding(2, 5, block_ram=False),
        "L3": Folding(1, 8),
    }


def five_by_five(rng: np.random.Generator) -> tuple[Plan, dict[str, Folding]]:
    source = PlanTensor(pl.U8, 11, 11, 1, is_input=True, name="x")
    steps = [
        binarized(100),
        layer(rng, 4, kernel=(5, 5), pads=(2, 0, 1, 2), pad=pl.PAD_MINUS),
        layer(rng, 3, kernel=(5, 4), stride=(2, 3)),
        layer(rng, 7, last=True),
    ]
    return chain(source, steps), {"L0": Folding(4, 1), "L1": Folding(1, 2), "L2": Folding(4, 5)}


def packed_bits(rng: np.random.Generator) -> tuple[Plan, dict[str, Folding]]:
    source = PlanTensor(pl.BITS, 1, 1, 75, coding=pl.BIPOLAR, is_input=True, name="x")
    steps = [layer(rng, 13), layer(rng, 9), layer(rng, 3, last=True)]
    return chain(source, steps), {"L0": Folding(4, 7), "L1": Folding(5, 6), "L2": Folding(2, 9)}


def bytes_dense(rng: np.random.Generator) -> tuple[Plan, dict[str, Folding]]:
    source = PlanTensor(pl.U8, 3, 3, 3, is_input=True, name="x")
    steps = [layer(rng, 8), layer(rng, 1, last=True)]
    return chain(source, steps), {"L0": Folding(2, 5), "L1": Folding(1, 3)}


@pytest.mark.parametrize("make", [padded_strided, five_by_five, packed_bits, bytes_dense])
def test_every_kind_of_layer_and_input_gives_the_plans_sums(make: Any) -> None:
    plan, foldings = make(np.random.default_rng(5))
    plan = with_design(plan, foldings)
    source = plan.tensors[0]
    rng = np.random.default_rng(6)
    high = 256 if source.type == pl.U8 else 2
    codes = rng.integers(0, high, (6, source.h, source.w, source.c)).astype(np.uint8)
    images = np.stack([plan_reference.to_outside(source, code) for code in codes])
    overlay, simulation = opened(plan)
    run = overlay.run(images)
    np.testing.assert_array_equal(run.sums, wanted(plan, images))
    assert run.interval_cycles <= interval_cycles(overlay.design) * 1.02 + 2
    simulation.stall(50, 50)
    np.testing.assert_array_equal(overlay.run(images).sums, run.sums)


def drawn(seed: int) -> tuple[Plan, dict[str, Folding]]:
    """A random chain and a random folding of it."""
    rng = np.random.default_rng(seed)
    h, w, c = (int(size) for size in rng.integers((4, 4, 1), (11, 11, 6)))
    if rng.random() < 0.3:
        plan = chain(PlanTensor(pl.BITS, h, w, 8 * c, coding=pl.BIPOLAR, is_input=True, name="x"), [])
    else:
        source = PlanTensor(pl.U8, h, w, c, is_input=True, channels_first=bool(rng.integers(0, 2)), name="x")
        plan = chain(source, [binarized(128)] if rng.random() < 0.3 else [])
    count = int(rng.integers(1, 5))
    for index in range(count):
        last = index == count - 1
        plan = grown(plan, _random_layer(rng, plan.tensors[-1], last=last))
        tensor = plan.tensors[-1]
        if not last and min(tensor.h, tensor.w) >= 2 and rng.random() < 0.4:
            plan = grown(plan, pooled(rng, int(rng.integers(1, 3))))
    return plan, _folded_at_random(plan, rng)


def _random_layer(rng: np.random.Generator, tensor: PlanTensor, *, last: bool) -> Any:
    rows = int(rng.integers(1, 20))
    if min(tensor.h, tensor.w) <= 2 or rng.random() < 0.25:
        return layer(rng, rows, last=last)
    kernel = tuple(int(rng.choice([k for k in (1, 2, 3, 5) if k <= side])) for side in (tensor.h, tensor.w))
    pads = tuple(int(rng.integers(0, min(2, kernel[at % 2] - 1) + 1)) for at in range(4))
    stride = tuple(rng.integers(1, 3, 2).tolist())
    pad = pl.PAD_ZERO if tensor.type == pl.U8 else int(rng.integers(0, 2))
    return layer(rng, rows, last=last, kernel=kernel, stride=stride, pads=pads, pad=pad)


def _folded_at_random(plan: Plan, rng: np.random.Generator) -> dict[str, Folding]:
    layers = chain_of(plan).layers
    foldings = {}
    for index, item in enumerate(layers):
        if not item.has_weights:
            continue
        simd = [n for n in range(1, item.in_c + 1) if columns_may_be_padded(item) or item.in_c % n == 0]
        pe = [n for n in range(1, item.out_c + 1) if rows_may_be_padded(layers, index) or item.out_c % n == 0]
        foldings[item.name] = Folding(
            int(rng.choice(pe)), int(rng.choice(simd[-12:])), bool(rng.integers(0, 2))
        )
    return foldings


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(15))
def test_random_networks_at_random_foldings_give_the_plans_sums(seed: int) -> None:
    plan, foldings = drawn(seed)
    plan = with_design(plan, foldings)
    source = plan.tensors[0]
    codes = np.random.default_rng(seed).integers(
        0, 256 if source.type == pl.U8 else 2, (5, source.h, source.w, source.c)
    )
    images = np.stack([plan_reference.to_outside(source, code.astype(np.uint8)) for code in codes])
    overlay, simulation = opened(plan, seed=seed)
    right = wanted(plan, images)
    run = overlay.run(images)
    np.testing.assert_array_equal(run.sums, right)
    assert run.interval_cycles <= interval_cycles(overlay.design) * 1.02 + 2
    simulation.stall(seed * 5, 60)
    np.testing.assert_array_equal(overlay.run(images).sums, right)


# --- registers and faults ------------------------------------------------------------------------------------


def test_images_wait_outside_until_they_are_let_in(small: Plan) -> None:
    overlay, simulation = opened(small)
    simulation.write(reg.REG_CONTROL, np.zeros(1, np.uint32))
    simulation.send(overlay._as_words(images_of(1)).reshape(-1))
    simulation.tick(100)
    assert simulation.beats_taken == 0
    simulation.write(reg.REG_CONTROL, np.array([reg.CONTROL_START], np.uint32))
    simulation.tick(10)
    assert simulation.beats_taken > 0


def test_status_interrupts_and_counts_follow_the_images(small: Plan) -> None:
    overlay, simulation = opened(small)
    assert simulation.read(reg.REG_STATUS) == reg.STATUS_IDLE
    simulation.write(reg.REG_IRQ_ENABLE, np.array([reg.IRQ_ENABLE_IDLE], np.uint32))
    words = overlay._as_words(images_of(2))
    simulation.write(reg.REG_BATCH, np.array([2], np.uint32))
    simulation.send(words.reshape(-1))
    simulation.tick(200)
    assert simulation.read(reg.REG_STATUS) == reg.STATUS_BUSY
    assert not simulation.irq
    data = np.zeros(2 * overlay.design.output_beats * 8, np.uint8)
    assert simulation.receive(data, 100_000) == data.size
    assert simulation.irq
    assert simulation.read(reg.REG_IRQ_STATUS) == reg.IRQ_STATUS_IMAGE | reg.IRQ_STATUS_IDLE
    simulation.write(reg.REG_IRQ_STATUS, np.array([reg.IRQ_STATUS_IDLE], np.uint32))
    assert not simulation.irq
    assert simulation.read(reg.REG_IRQ_STATUS) == reg.IRQ_STATUS_IMAGE
    assert [simulation.read(at) for at in (reg.REG_TAKEN, reg.REG_IMAGES)] == [2, 2]
    assert simulation.read(reg.REG_STATUS) == reg.STATUS_IDLE


def test_a_transfer_that_ends_inside_an_image_is_an_error_that_says_so(small: Plan) -> None:
    overlay, simulation = opened(small)
    simulation.send(overlay._as_words(images_of(1)).reshape(-1)[:-8])
    simulation.tick(5000)
    assert simulation.beats_taken == overlay.design.input_beats - 1
    assert simulation.read(reg.REG_ERROR) == reg.ERROR_FRAME
    assert simulation.read(reg.REG_STATUS) & reg.STATUS_FAILED
    simulation.write(reg.REG_ERROR, np.array([reg.ERROR_FRAME], np.uint32))
    assert simulation.read(reg.REG_ERROR) == 0


def test_loading_while_an_image_is_inside_is_an_error(small: Plan) -> None:
    overlay, simulation = opened(small)
    simulation.send(overlay._as_words(images_of(1)).reshape(-1))
    simulation.tick(50)
    simulation.write(reg.LOAD_WINDOW, np.zeros(1, np.uint32))
    assert simulation.read(reg.REG_ERROR) == reg.ERROR_LOAD_WHILE_BUSY


def test_a_reset_in_the_middle_leaves_weights_and_nothing_else(small: Plan) -> None:
    overlay, simulation = opened(small)
    images = images_of(4, seed=3)
    right = wanted(small, images)
    for ticks in (7, 133, 900, 2000):
        simulation.send(overlay._as_words(images).reshape(-1))
        simulation.tick(ticks)
        simulation.abort()
        simulation.write(reg.REG_CONTROL, np.array([reg.CONTROL_RESET], np.uint32))
        simulation.write(reg.REG_CONTROL, np.array([reg.CONTROL_START], np.uint32))
        assert simulation.read(reg.REG_STATUS) == reg.STATUS_IDLE
        np.testing.assert_array_equal(overlay.run(images).sums, right)
        assert [simulation.read(at) for at in (reg.REG_TAKEN, reg.REG_IMAGES)] == [4, 4]
        assert simulation.read(reg.REG_STATUS) == reg.STATUS_IDLE


def test_images_that_do_not_come_back_in_time_are_one_line_and_the_next_ones_run(small: Plan) -> None:
    overlay, simulation = opened(small, patience=0.001)
    simulation.stall(100, 0)
    with pytest.raises(
        WorldFailed, match=r"gave 0 of 80 bytes within \d+ cycles \(images taken 0, given 0, ERROR 0x0"
    ):
        overlay.run(images_of(2))
    simulation.stall(0, 0)
    images = images_of(2)
    np.testing.assert_array_equal(overlay.run(images).sums, wanted(small, images))


# --- building ------------------------------------------------------------------------------------------------


def test_a_simulation_is_built_once(small: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    design = Design.parse(small.design)
    simulate(design)

    def compile_again(*_: Any) -> None:
        pytest.fail("compiled again")

    monkeypatch.setattr(sim, "_compile", compile_again)
    simulate(design)


def test_a_damaged_library_in_the_cache_is_built_again(
    small: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damaged, right = tmp_path / "damaged.so", sim.build
    damaged.write_bytes(b"half of it")
    monkeypatch.setattr(sim, "build", lambda verilog: damaged if damaged.exists() else right(verilog))
    simulate(Design.parse(small.design)).close()
    assert not damaged.exists()


def test_missing_tools_are_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing() == (
        "simulating an overlay needs no-such-compiler, which is not on PATH: apt-get install verilator g++"
    )
    sim._tools.cache_clear()
    with pytest.raises(MissingExtra, match="no-such-compiler"):
        sim.build("module edgekit_overlay; endmodule")
    sim._tools.cache_clear()


def test_verilog_that_verilator_refuses_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="verilator refuses") as caught:
        sim.build("module edgekit_overlay; wire wire; endmodule")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "overlay-sim").iterdir()) == []


def test_a_design_for_other_verilog_is_refused(small: Plan) -> None:
    with pytest.raises(BadBundle, match="convert again"):
        simulate(replace(Design.parse(small.design), rtl="0" * 64))
