"""The board's Device against a stand-in for the package pynq that records what is called: no board was at hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput, MissingExtra, WorldFailed

BOARD = "edgekit.runtime.overlay.board"


class Buffer(np.ndarray):  # type: ignore[type-arg]
    """As pynq.allocate gives it."""

    freed = False

    def freebuffer(self) -> None:
        self.freed = True


class Channel:
    """One direction of the DMA engine: a transfer is done after `after` looks at `idle`."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.fill: np.ndarray | None = None
        self.after = 2
        self.fails = False
        self._left = 0

    def transfer(self, buffer: Buffer) -> None:
        if self.fails:
            raise RuntimeError("DMA channel not idle")
        self.calls.append(("transfer", buffer))
        self._left = self.after
        if self.fill is not None:
            buffer[:] = self.fill[: buffer.size]

    @property
    def idle(self) -> bool:
        self._left -= 1
        return self._left < 0

    def wait(self) -> None:
        self.calls.append("wait")

    def stop(self) -> None:
        self.calls.append("stop")

    def start(self) -> None:
        self.calls.append("start")


class Registers:
    """pynq.MMIO."""

    def __init__(self, base: int, length: int) -> None:
        self.base, self.length = base, length
        self.written: list[Any] = []

    def read(self, offset: int) -> np.uint32:
        return np.uint32(offset + 1)

    def write(self, offset: int, data: int | bytes) -> None:
        assert type(data) in {int, bytes}
        self.written.append((offset, data))


@pytest.fixture
def pynq(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fake: Any = ModuleType("pynq")
    fake.loaded, fake.allocated = [], []
    fake.ip_dict = {"edgekit_overlay_0": {"phys_addr": 0x43C00000, "addr_range": 0x2000}}
    fake.dma = SimpleNamespace(sendchannel=Channel(), recvchannel=Channel())

    def overlay(name: str) -> Any:
        if not Path(name).exists():
            raise OSError(f"Bitstream file {name} does not exist.")
        fake.loaded.append(name)
        return SimpleNamespace(ip_dict=fake.ip_dict, axi_dma_0=fake.dma)

    def mmio(base: int, length: int) -> Registers:
        fake.registers = Registers(base, length)
        return fake.registers

    def allocate(shape: tuple[int, ...], dtype: Any) -> Buffer:
        fake.allocated.append(np.zeros(shape, dtype).view(Buffer))
        return fake.allocated[-1]

    fake.Overlay, fake.MMIO, fake.allocate = overlay, mmio, allocate
    monkeypatch.setitem(sys.modules, "pynq", fake)
    monkeypatch.delitem(sys.modules, BOARD, raising=False)
    yield fake
    sys.modules.pop(BOARD, None)


@pytest.fixture
def bit(tmp_path: Path) -> Path:
    path = tmp_path / "overlay.bit"
    path.write_bytes(b"bits")
    return path


def board(bit: Path, **more: Any) -> Any:
    return import_module(BOARD).Board(bit, 100.0, **more)


def test_it_loads_the_bitstream_and_maps_the_overlays_registers(pynq: Any, bit: Path) -> None:
    device = board(bit)
    assert pynq.loaded == [str(bit)]
    assert (pynq.registers.base, pynq.registers.length) == (0x43C00000, 0x2000)
    assert device.read(8) == 9
    assert type(device.read(8)) is int


def test_one_word_is_written_as_a_number_and_several_as_bytes(pynq: Any, bit: Path) -> None:
    device = board(bit)
    device.write(4, np.array([7], np.uint32))
    device.write(0x1000, np.array([1, 0x01020304], np.uint32))
    assert pynq.registers.written == [(4, 7), (0x1000, b"\x01\0\0\0\x04\x03\x02\x01")]


def test_images_and_sums_pass_through_contiguous_buffers(pynq: Any, bit: Path) -> None:
    device = board(bit)
    pynq.dma.recvchannel.fill = np.arange(80, dtype=np.uint8)
    device.send(np.full(432, 5, np.uint8))
    data = np.zeros(80, np.uint8)
    assert device.receive(data, 1000) == 80
    np.testing.assert_array_equal(data, np.arange(80))
    (_, sent), *_ = pynq.dma.sendchannel.calls
    assert isinstance(sent, Buffer)
    assert sent.shape == (432,)
    assert (sent == 5).all()
    assert pynq.dma.recvchannel.calls[-1] == "wait"  # or the processor reads its old cache


def test_buffers_of_the_same_size_are_used_again_and_others_freed(pynq: Any, bit: Path) -> None:
    device = board(bit)
    for size in (64, 64, 128):
        device.send(np.zeros(size, np.uint8))
    assert [(buffer.size, buffer.freed) for buffer in pynq.allocated] == [(64, True), (128, False)]
    device.close()
    assert all(buffer.freed for buffer in pynq.allocated)


def test_a_transfer_that_never_ends_is_given_up_after_its_cycles(pynq: Any, bit: Path) -> None:
    ticks = iter(np.arange(0, 100, 0.1))
    device = board(bit, clock=lambda: float(next(ticks)))
    pynq.dma.recvchannel.after = 10**9
    assert device.receive(np.zeros(8, np.uint8), 100_000_000) == 0  # one second at 100 MHz
    assert 1.4 < next(ticks) < 1.9


def test_abort_stops_and_starts_both_directions(pynq: Any, bit: Path) -> None:
    board(bit).abort()
    assert pynq.dma.sendchannel.calls == ["stop", "start"]
    assert pynq.dma.recvchannel.calls == ["stop", "start"]


def test_a_dma_engine_that_refuses_is_one_line(pynq: Any, bit: Path) -> None:
    device = board(bit)
    pynq.dma.sendchannel.fails = True
    with pytest.raises(WorldFailed, match="takes no transfer: DMA channel not idle"):
        device.send(np.zeros(8, np.uint8))


def test_a_bitstream_that_is_missing_or_none_of_ours_is_one_line(
    pynq: Any, bit: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="pynq cannot load it"):
        board(tmp_path / "missing.bit")
    pynq.ip_dict = {}
    with pytest.raises(BadInput, match="must hold edgekit_overlay_0"):
        board(bit)


def test_without_pynq_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynq", None)
    monkeypatch.delitem(sys.modules, BOARD, raising=False)
    with pytest.raises(MissingExtra, match="needs the package pynq"):
        import_module(BOARD)
