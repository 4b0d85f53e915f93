"""Drive an overlay through its register map: check it, load a plan into it, run images.

The same for board and simulation. Waits are bounded by clock cycles, by the design's own model of how long it takes.
Not thread-safe: one owner at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadBundle, BadInput, WorldFailed
from edgekit.native import plan as pl
from edgekit.native.plan import Plan, PlanTensor
from edgekit.native.plan_door import outside_shape
from edgekit.runtime.overlay import registers as reg
from edgekit.runtime.overlay.cycles import interval_cycles, latency_cycles
from edgekit.runtime.overlay.design import Design
from edgekit.runtime.overlay.device import Device, words
from edgekit.runtime.overlay.loading import loads
from edgekit.runtime.overlay.topology import chain_of

Array = NDArray[Any]
WORD_BYTES = 8
PATIENCE = 4.0  # waits end after so many times the cycles the model tells
SLACK_CYCLES = 20_000


@dataclass(frozen=True)
class Run:
    """What a run brought. sums: int32 (images, h, w, c).

    cycles: clock cycles in which an image was inside. interval_cycles: between the last two images' last sums; 0 where
    there was one.
    """

    sums: NDArray[np.int32]
    cycles: int
    interval_cycles: int


class Overlay:
    """A device that holds a plan. Raises BadBundle, BadInput, WorldFailed: see check and load."""

    def __init__(self, device: Device, plan: Plan, *, patience: float = PATIENCE) -> None:
        self.design = parse_design(plan)
        self.device = device
        self.input: PlanTensor = plan.tensors[plan.marked(outputs=False)[0]]
        self.output: PlanTensor = plan.tensors[plan.marked(outputs=True)[0]]
        self._plan = plan
        self._interval = interval_cycles(self.design)
        self._latency = latency_cycles(self.design)
        self._patience = patience
        self.check()
        self.load()

    def check(self) -> None:
        """Raise BadInput unless the device is an overlay of this register map and of this plan's design."""
        magic = self.device.read(reg.REG_MAGIC)
        if magic != reg.MAGIC:
            raise BadInput(
                f"{self.device.name}: register 0 must read {reg.MAGIC:#010x}, got {magic:#010x}: "
                "load an overlay of edgekit"
            )
        version = self.device.read(reg.REG_VERSION)
        if version >> 16 != reg.VERSION >> 16:
            raise BadInput(
                f"{self.device.name}: its register map has version {version >> 16}, this edgekit speaks "
                f"{reg.VERSION >> 16}: build the overlay again from what convert writes"
            )
        found = "".join(f"{self.device.read(reg.REG_DESIGN_ID_0 + 4 * index):08x}" for index in range(4))
        if found != self.design.design_id:
            raise BadInput(
                f"{self.device.name}: holds design_id {found}, the bundle needs {self.design.design_id}: "
                "load the .bit that was built from this bundle's build.tcl"
            )

    def load(self) -> None:
        """Write weights, thresholds and masks, then let images in."""
        self._control(reg.CONTROL_RESET)
        for load in loads(self._plan, self.design):
            select = load.unit | load.memory << reg.LOAD_SELECT_MEMORY_SHIFT
            self._set(reg.REG_LOAD_SELECT, select | load.lane << reg.LOAD_SELECT_LANE_SHIFT)
            for start in range(0, load.words.size, reg.LOAD_WINDOW_WORDS):
                self._set(reg.REG_LOAD_BASE, start)
                self.device.write(reg.LOAD_WINDOW, load.words[start : start + reg.LOAD_WINDOW_WORDS])
        self._control(reg.CONTROL_START)

    def run(self, images: Array) -> Run:
        """Run images one behind the other. images: (n, ...), each as the plan's input lies outside (plan.h).

        uint8: pixels, or packed bits. Raises BadInput for another shape or dtype, WorldFailed where the sums do not
        come in time or the overlay reports an error; it is reset then and takes images again.
        """
        data = self._as_words(images)
        beats_in, beats_out = data.shape[1], self.design.output_beats * WORD_BYTES
        at_once = max(1, self.device.longest_transfer // max(beats_in, beats_out))
        given = np.zeros((len(data), beats_out), np.uint8)
        self._control(reg.CONTROL_START | reg.CONTROL_CLEAR)
        for start in range(0, len(data), at_once):
            self._transfer(data[start : start + at_once], given[start : start + at_once])
        count = self.output.count
        sums = given.view("<i4")[:, :count].astype(np.int32)
        cycles = self.device.read(reg.REG_CYCLES_LOW)
        cycles |= self.device.read(reg.REG_CYCLES_HIGH) << 32
        interval = self.device.read(reg.REG_INTERVAL) if len(data) > 1 else 0
        return Run(sums.reshape(len(data), self.output.h, self.output.w, self.output.c), cycles, interval)

    def close(self) -> None:
        """Free the device."""
        self.device.close()

    def _as_words(self, images: Array) -> NDArray[np.uint8]:
        """Images as rows of bytes, channels last, filled up to whole words."""
        shape = outside_shape(self.input)
        size = int(np.prod(shape))
        if images.dtype != np.uint8 or not len(images) or images.size != len(images) * size:
            raise BadInput(
                f"images must be uint8 (n, {', '.join(map(str, shape))}), got {images.dtype} {list(images.shape)}"
            )
        rows = images.reshape(len(images), *shape)
        if self.input.type == pl.U8 and self.input.channels_first:
            rows = rows.transpose(0, 2, 3, 1)
        flat = rows.reshape(len(images), size)
        return np.ascontiguousarray(np.pad(flat, [(0, 0), (0, self.design.input_beats * WORD_BYTES - size)]))

    def _transfer(self, data: NDArray[np.uint8], given: NDArray[np.uint8]) -> None:
        self._set(reg.REG_BATCH, len(data))
        limit = int((self._latency + len(data) * self._interval) * self._patience) + SLACK_CYCLES
        self.device.send(data.reshape(-1))
        got = self.device.receive(given.reshape(-1), limit)
        error = self.device.read(reg.REG_ERROR)
        if got == given.size and not error:
            return
        taken, images = self.device.read(reg.REG_TAKEN), self.device.read(reg.REG_IMAGES)
        self.device.abort()
        self._control(reg.CONTROL_RESET)
        self._control(reg.CONTROL_START)
        raise WorldFailed(
            f"{self.device.name}: gave {got} of {given.size} bytes within {limit} cycles (images taken {taken}, given "
            f"{images}, ERROR {error:#x}, {len(data)} wanted); it was reset, try again"
        )

    def _control(self, bits: int) -> None:
        self._set(reg.REG_CONTROL, bits)

    def _set(self, register: int, value: int) -> None:
        self.device.write(register, words(value))


def parse_design(plan: Plan) -> Design:
    """The design that a plan brings, made for exactly this plan. Raises BadBundle where it has none or another's."""
    if not plan.design:
        raise BadBundle(
            "the plan has no overlay design: convert for a profile with an FPGA (pynq-z1, pynq-z2)"
        )
    try:
        design = Design.parse(plan.design)
        layers = chain_of(plan).layers
    except BadBundle:
        raise
    except BadInput as err:
        raise BadBundle(str(err)) from err
    if tuple(item.layer for item in design.layers) != layers:
        raise BadBundle("the overlay's design was made for other layers than the plan has: convert again")
    return design
