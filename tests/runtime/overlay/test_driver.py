"""The driver against a device made of Python: what it writes, what it checks, what it says when something is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import overlay_plans
import pytest
from numpy.typing import NDArray
from overlay_foldings import SMALL, with_design

from edgekit.core.errors import BadBundle, BadInput, WorldFailed
from edgekit.native.plan import Linear, Plan
from edgekit.runtime.overlay import registers as reg
from edgekit.runtime.overlay.design import Design
from edgekit.runtime.overlay.driver import Overlay, parse_design
from edgekit.runtime.overlay.loading import loads

Array = NDArray[Any]


class Recorder:
    """A device whose registers hold what was put there; its sums are the images' numbers, counted from 0."""

    name = "recorder"
    longest_transfer = 2**20

    def __init__(self, design: Design, **registers: int) -> None:
        digits = design.design_id
        self.registers = {reg.REG_MAGIC: reg.MAGIC, reg.REG_VERSION: reg.VERSION}
        self.registers |= {reg.REG_DESIGN_ID_0 + 4 * i: int(digits[8 * i : 8 * i + 8], 16) for i in range(4)}
        self.registers |= {getattr(reg, name): value for name, value in registers.items()}
        self.memories: dict[tuple[int, int], int] = {}
        self.controls: list[int] = []
        self.batches: list[int] = []
        self.sent: list[Array] = []
        self.limits: list[int] = []
        self.aborted = 0
        self.closed = False
        self.gives = 1.0  # share of the bytes wanted
        self.output_bytes = design.output_beats * 8
        self._images = 0

    def read(self, address: int) -> int:
        return self.registers.get(address, 0)

    def write(self, address: int, values: Array) -> None:
        assert values.dtype == np.uint32
        if address >= reg.LOAD_WINDOW:
            assert values.size <= reg.LOAD_WINDOW_WORDS
            select, base = self.registers[reg.REG_LOAD_SELECT], self.registers[reg.REG_LOAD_BASE]
            self.memories |= {(select, base + i): int(value) for i, value in enumerate(values)}
            return
        assert values.size == 1
        self.registers[address] = int(values[0])
        if address == reg.REG_CONTROL:
            self.controls.append(int(values[0]))
        if address == reg.REG_BATCH:
            self.batches.append(int(values[0]))

    def send(self, data: Array) -> None:
        self.sent.append(data.copy())

    def receive(self, data: Array, limit_cycles: int) -> int:
        self.limits.append(limit_cycles)
        rows = data.view("<i4").reshape(-1, self.output_bytes // 4)
        for row in rows:
            row[:] = self._images
            self._images += 1
        return int(data.size * self.gives)

    def abort(self) -> None:
        self.aborted += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def plan() -> Plan:
    return with_design(overlay_plans.small_cnv(), SMALL)


def recorder(plan: Plan, **registers: int) -> Recorder:
    return Recorder(Design.parse(plan.design), **registers)


def images_of(count: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), np.uint8)


def test_every_entry_of_every_memory_is_written_before_images_are_let_in(plan: Plan) -> None:
    device = recorder(plan)
    Overlay(device, plan)
    wanted = 0
    for unit in Design.parse(plan.design).units:
        of = unit.parameters
        if unit.kind == "mvu":
            folds = of["MW"] // of["SIMD"] * (of["MH"] // of["PE"])
            wanted += -(-of["PE"] * of["SIMD"] // 32) * folds + of["THRESHOLDS"] * of["MH"]
        elif unit.kind == "pool":
            wanted += -(-of["WIDTH"] // 32) * of["FOLDS"]
    assert len(device.memories) == wanted
    assert device.controls == [reg.CONTROL_RESET, reg.CONTROL_START]


def test_a_weight_lies_where_the_unit_reads_it(plan: Plan) -> None:
    device = recorder(plan)
    overlay = Overlay(device, plan)
    unit = next(unit for unit in overlay.design.units if unit.name == "l1_mvu")
    assert unit.operator is not None
    linear = plan.operators[unit.operator].of
    assert isinstance(linear, Linear)
    rows = linear.weights.reshape(len(linear.weights), -1)
    of = unit.parameters
    simd, pe, folds = of["SIMD"], of["PE"], of["MW"] // of["SIMD"]
    rng = np.random.default_rng(0)
    for row, term in zip(rng.integers(0, of["MH"], 50), rng.integers(0, of["TERMS"], 50), strict=True):
        entry, bit = row // pe * folds + term // simd, row % pe * simd + term % simd
        select = of["UNIT"] | bit // 32 << reg.LOAD_SELECT_LANE_SHIFT
        assert device.memories[select, entry] >> bit % 32 & 1 == rows[row, term]


def test_more_entries_than_the_window_has_come_in_several_blocks() -> None:
    plan = overlay_plans.network((1, 1, 64), (("dense", 40), ("dense", 10)))
    plan = with_design(plan, {"L0": replace(SMALL["L0"], pe=1, simd=1), "L1": SMALL["L1"]})
    device = recorder(plan)
    overlay = Overlay(device, plan)
    unit = next(unit for unit in overlay.design.units if unit.kind == "mvu")
    assert reg.LOAD_WINDOW_WORDS < 64 * 40
    assert {entry for select, entry in device.memories if select == unit.parameters["UNIT"]} == set(
        range(64 * 40)
    )


def test_all_images_of_a_call_are_one_transfer_and_come_back_in_order(plan: Plan) -> None:
    device = recorder(plan)
    overlay = Overlay(device, plan)
    images = images_of(5)
    run = overlay.run(images)
    assert device.batches == [5]
    np.testing.assert_array_equal(device.sent[0].reshape(5, -1)[:, : 12 * 12 * 3], images.reshape(5, -1))
    assert run.sums.shape == (5, 1, 1, 10)
    assert run.sums.dtype == np.int32
    np.testing.assert_array_equal(run.sums[:, 0, 0, 3], range(5))


def test_what_one_transfer_cannot_take_is_sent_in_several(plan: Plan) -> None:
    device = recorder(plan)
    device.longest_transfer = 2 * 54 * 8 + 1
    run = Overlay(device, plan).run(images_of(5))
    assert device.batches == [2, 2, 1]
    np.testing.assert_array_equal(run.sums[:, 0, 0, 0], range(5))


def test_the_64_bit_cycle_counter_is_read_whole(plan: Plan) -> None:
    device = recorder(plan, REG_CYCLES_LOW=5, REG_CYCLES_HIGH=3, REG_INTERVAL=77)
    overlay = Overlay(device, plan)
    run = overlay.run(images_of(2))
    assert run.cycles == (3 << 32) + 5
    assert run.interval_cycles == 77
    assert overlay.run(images_of(1)).interval_cycles == 0


def test_a_wait_grows_with_the_images_and_ends(plan: Plan) -> None:
    device = recorder(plan)
    overlay = Overlay(device, plan)
    overlay.run(images_of(1))
    overlay.run(images_of(11))
    assert device.limits[1] - device.limits[0] == pytest.approx(4 * 10 * 1800)


@pytest.mark.parametrize(
    ("registers", "said"),
    [
        ({"REG_MAGIC": 0}, "register 0 must read 0x454b424e, got 0x00000000"),
        ({"REG_VERSION": 0x20000}, "has version 2, this edgekit speaks 1"),
        ({"REG_DESIGN_ID_2": 0xABCDEF}, "00abcdef"),
    ],
)
def test_a_device_that_is_another_overlay_is_refused(
    plan: Plan, registers: dict[str, int], said: str
) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        Overlay(recorder(plan, **registers), plan)
    assert "\n" not in str(caught.value)


def test_another_design_id_says_which_was_found_which_is_needed_and_what_to_do(plan: Plan) -> None:
    wanted = Design.parse(plan.design).design_id
    with pytest.raises(
        BadInput, match=f"holds design_id 00000000{wanted[8:]}, the bundle needs {wanted}: load"
    ):
        Overlay(recorder(plan, REG_DESIGN_ID_0=0), plan)


def test_a_newer_minor_version_is_accepted(plan: Plan) -> None:
    Overlay(recorder(plan, REG_VERSION=reg.VERSION + 7), plan)


def test_too_few_bytes_are_an_error_and_the_overlay_is_reset(plan: Plan) -> None:
    device = recorder(plan, REG_TAKEN=2, REG_IMAGES=1)
    overlay = Overlay(device, plan)
    device.gives, device.controls = 0.5, []
    with pytest.raises(
        WorldFailed, match=r"gave 40 of 80 bytes .* \(images taken 2, given 1, ERROR 0x0, 2 wanted\)"
    ):
        overlay.run(images_of(2))
    assert device.aborted == 1
    assert device.controls[-2:] == [reg.CONTROL_RESET, reg.CONTROL_START]


def test_an_error_bit_is_an_error_though_all_bytes_came(plan: Plan) -> None:
    device = recorder(plan)
    overlay = Overlay(device, plan)
    device.registers[reg.REG_ERROR] = reg.ERROR_FRAME
    with pytest.raises(WorldFailed, match="ERROR 0x1"):
        overlay.run(images_of(1))


@pytest.mark.parametrize(
    "images", [np.zeros((2, 12, 12, 3), np.int8), np.zeros((2, 12, 12), np.uint8), images_of(0)]
)
def test_other_images_are_refused(plan: Plan, images: Array) -> None:
    with pytest.raises(BadInput, match=r"images must be uint8 \(n, 12, 12, 3\)"):
        Overlay(recorder(plan), plan).run(images)


def test_a_plan_without_a_design_is_refused(plan: Plan) -> None:
    with pytest.raises(BadBundle, match="has no overlay design"):
        parse_design(replace(plan, design=""))
    with pytest.raises(BadBundle, match="design"):
        parse_design(replace(plan, design="{}"))


def test_a_design_of_another_network_is_refused(plan: Plan) -> None:
    other = overlay_plans.network((12, 12, 3), (("conv", 8), ("pool", 2), ("conv", 16), ("dense", 10)))
    with pytest.raises(BadBundle, match="other layers"):
        parse_design(replace(other, design=plan.design))


def test_a_design_whose_units_do_not_hold_the_plan_is_refused(plan: Plan) -> None:
    design = Design.parse(plan.design)
    for kind, changes, said in (
        ("mvu", {"TERMS": 26}, "multiplies 8 rows of 26, the plan has 8 of 27"),
        ("pool", {"FOLDS": 3}, "pools"),
    ):
        units = tuple(
            replace(unit, parameters={**unit.parameters, **changes}) if unit.kind == kind else unit
            for unit in design.units
        )
        with pytest.raises(BadBundle, match=said):
            list(loads(plan, replace(design, units=units)))
    swapped = tuple(
        replace(unit, operator={None: None, 0: 1}.get(unit.operator, 99)) for unit in design.units
    )
    with pytest.raises(BadBundle, match="cannot hold operator 1"):
        list(loads(plan, replace(design, units=swapped)))


def test_closing_frees_the_device(plan: Plan) -> None:
    device = recorder(plan)
    Overlay(device, plan).close()
    assert device.closed
