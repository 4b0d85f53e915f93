"""A PYNQ board as a Device, through the package `pynq` 3, imported only here. IT HAS NEVER RUN ON A BOARD.

Written against pynq's documented interface (Overlay, MMIO, allocate, lib.dma) and tested with a stand-in that records
calls. The overlay is the block design that convert's build.tcl makes: edgekit_overlay_0 behind axi_dma_0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadInput, MissingExtra, WorldFailed, one_line
from edgekit.runtime.overlay.device import Bytes

try:
    import pynq
except ImportError as err:
    raise MissingExtra("backend overlay needs the package pynq 3, which PYNQ's board images bring") from err

OVERLAY_IP = "edgekit_overlay_0"
DMA_IP = "axi_dma_0"
_GRACE_S = 0.5  # a transfer's set-up and Python's own time, beside the clock cycles


class Board:
    """The programmable logic with a bitstream in it. clock_mhz: what turns a limit in cycles into seconds."""

    name = "overlay on a board"
    longest_transfer = 2**25  # the DMA engine counts 26 bits

    def __init__(self, bit: Path, clock_mhz: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Load a .bit; its .hwh lies beside it. Raises BadInput where pynq refuses it or it is no overlay of ours."""
        try:
            self._overlay = pynq.Overlay(str(bit))
            block = self._overlay.ip_dict[OVERLAY_IP]
            self._registers = pynq.MMIO(block["phys_addr"], block["addr_range"])
            self._dma = getattr(self._overlay, DMA_IP)
        except KeyError as err:
            raise BadInput(f"{bit}: must hold {OVERLAY_IP}: build it with the bundle's build.tcl") from err
        except Exception as err:  # pynq's own errors share no root but Exception
            raise BadInput(f"{bit}: pynq cannot load it: {one_line(err)}") from err
        self._clock_mhz = clock_mhz
        self._clock = clock
        self._buffers: dict[tuple[str, int], Any] = {}

    def read(self, address: int) -> int:
        """See device.Device."""
        return int(self._registers.read(address))

    def write(self, address: int, values: NDArray[np.uint32]) -> None:
        """See device.Device."""
        if values.size == 1:
            self._registers.write(address, int(values[0]))
        else:
            self._registers.write(address, np.ascontiguousarray(values, np.uint32).tobytes())

    def send(self, data: Bytes) -> None:
        """See device.Device."""
        buffer = self._buffer("in", data.size)
        buffer[:] = data
        self._start(self._dma.sendchannel, buffer)

    def receive(self, data: Bytes, limit_cycles: int) -> int:
        """See device.Device."""
        buffer = self._buffer("out", data.size)
        channel = self._dma.recvchannel
        self._start(channel, buffer)
        end = self._clock() + limit_cycles / (self._clock_mhz * 1e6) + _GRACE_S
        while not channel.idle:  # channel.wait() alone would wait for ever
            if self._clock() > end:
                return 0
        try:
            channel.wait()  # hands the buffer back to the processor's caches
        except RuntimeError as err:
            raise WorldFailed(f"{self.name}: the DMA engine failed: {one_line(err)}") from err
        data[:] = buffer
        return int(getattr(channel, "transferred", data.size))

    def abort(self) -> None:
        """See device.Device."""
        for channel in (self._dma.sendchannel, self._dma.recvchannel):
            channel.stop()
            channel.start()

    def close(self) -> None:
        """See device.Device. The bitstream stays loaded."""
        for buffer in self._buffers.values():
            buffer.freebuffer()
        self._buffers.clear()

    def _start(self, channel: Any, buffer: Any) -> None:
        try:
            channel.transfer(buffer)
        except (RuntimeError, ValueError) as err:
            raise WorldFailed(f"{self.name}: the DMA engine takes no transfer: {one_line(err)}") from err

    def _buffer(self, side: str, size: int) -> Any:
        """Contiguous memory of this size: one is kept a side, for batches of one size."""
        held = self._buffers.get((side, size))
        if held is None:
            for key in [key for key in self._buffers if key[0] == side]:
                self._buffers.pop(key).freebuffer()
            held = self._buffers[side, size] = pynq.allocate(shape=(size,), dtype=np.uint8)
        return held
