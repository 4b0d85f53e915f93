"""The backends overlay-sim and overlay: parts of a bundle on an overlay, with the same bits as the native backend."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import overlay_plans
import pytest
from numpy.typing import NDArray
from overlay_foldings import SMALL, with_design

from edgekit.core.errors import BadBundle, BadInput, MissingExtra
from edgekit.core.manifest import Part, Tensor
from edgekit.native import plan as pl
from edgekit.native.plan import Plan
from edgekit.runtime.backends import Options, Runner, opener
from edgekit.runtime.overlay import registers as reg
from edgekit.runtime.overlay.design import Design
from edgekit.runtime.overlay.simulation import missing

Array = NDArray[Any]
IMAGE, SUMS = Tensor("x", "uint8", (1, 12, 12, 3)), Tensor("sums", "int32", (1, 10))
simulated = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return with_design(overlay_plans.small_cnv(), SMALL)


def part_of(plan: Plan, backend: str = "overlay-sim", **more: Any) -> tuple[bytes, Part]:
    data = pl.encode(plan)
    part = Part(backend, "stages/0.plan", hashlib.sha256(data).hexdigest(), (IMAGE,), (SUMS,))
    return data, replace(part, **more)


def opened(data: bytes, part: Part, options: Options | None = None) -> tuple[Runner, Array, Array]:
    image, sums = np.zeros(part.inputs[0].shape, np.uint8), np.zeros(part.outputs[0].shape, np.int32)
    inputs, outputs = {part.inputs[0].name: image}, {part.outputs[0].name: sums}
    return opener(part.backend)(data, part, inputs, outputs, options or Options()), image, sums


@simulated
def test_it_gives_the_same_bits_as_the_native_backend_and_says_that_it_simulates(plan: Plan) -> None:
    data, part = part_of(plan, design_id=Design.parse(plan.design).design_id)
    runner, image, sums = opened(data, part)
    native, same, wanted = opened(*part_of(plan, "native"))
    rng = np.random.default_rng(0)
    for _ in range(5):
        image[...] = same[...] = rng.integers(0, 256, image.shape)
        runner.run()
        native.run()
        np.testing.assert_array_equal(sums, wanted)
    assert "simulated" in runner.provider


@simulated
def test_parts_of_one_file_share_an_overlay(plan: Plan) -> None:
    data, part = part_of(plan)
    options = Options()
    opened(data, part, options)
    held = dict(options.opened)
    opened(data, part, options)
    assert list(held) == [f"overlay-sim {part.sha256}"]
    assert options.opened == held


@simulated
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"design_id": "0" * 32},
            "its manifest names design_id 00000000000000000000000000000000, the plan holds",
        ),
        ({"inputs": (replace(IMAGE, shape=(1, 12, 12, 1)),)}, "not those its manifest lists"),
        ({"inputs": (replace(IMAGE, name="y"),)}, "not those its manifest lists"),
        ({"outputs": (replace(SUMS, name="x"),)}, "not those its manifest lists"),
        ({"outputs": (replace(SUMS, shape=(1, 9)),)}, "not those its manifest lists"),
    ],
)
def test_a_manifest_that_says_otherwise_is_a_bad_bundle(
    plan: Plan, changes: dict[str, Any], said: str
) -> None:
    data, part = part_of(plan, **changes)
    with pytest.raises(BadBundle, match=said) as caught:
        opened(data, part)
    assert str(caught.value).startswith("stages/0.plan: ")


@simulated
def test_what_is_no_plan_of_an_overlay_is_a_bad_bundle_in_one_line(plan: Plan) -> None:
    data, part = part_of(plan)
    for content in (
        b"",
        b"garbage",
        data[:-8],
        pl.encode(replace(plan, design="")),
        pl.encode(replace(plan, design="x")),
    ):
        with pytest.raises(BadBundle, match=r"^stages/0.plan: ") as caught:
            opened(content, part)
        assert "\n" not in str(caught.value)


# --- the board's backend, with a stand-in for pynq that answers as the right overlay would -------------------------


class Answering:
    """pynq.MMIO of an overlay with a design."""

    design_id = ""

    def __init__(self, base: int, length: int) -> None:
        digits = self.design_id
        self._held = {reg.REG_MAGIC: reg.MAGIC, reg.REG_VERSION: reg.VERSION}
        self._held |= {reg.REG_DESIGN_ID_0 + 4 * i: int(digits[8 * i : 8 * i + 8], 16) for i in range(4)}

    def read(self, offset: int) -> int:
        return self._held.get(offset, 0)

    def write(self, offset: int, data: int | bytes) -> None:
        pass


@pytest.fixture
def pynq(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Any:
    fake: Any = ModuleType("pynq")
    fake.loaded = []

    class Overlay:
        ip_dict: Mapping[str, Any] = {"edgekit_overlay_0": {"phys_addr": 0, "addr_range": 0x2000}}
        axi_dma_0 = object()

        def __init__(self, name: str) -> None:
            bit = Path(name)
            fake.loaded.append((bit.read_bytes(), bit.with_suffix(".hwh").read_bytes()))

    fake.Overlay, fake.MMIO, fake.allocate = Overlay, Answering, None
    monkeypatch.setattr(Answering, "design_id", Design.parse(plan.design).design_id)
    monkeypatch.setitem(sys.modules, "pynq", fake)
    for name in ("edgekit.runtime.overlay.board", "edgekit.runtime.backends.overlay"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield fake
    for name in ("edgekit.runtime.overlay.board", "edgekit.runtime.backends.overlay"):
        sys.modules.pop(name, None)


def members(files: Mapping[str, bytes]) -> Options:
    return Options(members=files.__getitem__)


def test_the_boards_bitstream_comes_out_of_the_bundle(
    plan: Plan, pynq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    name = f"overlay/{Design.parse(plan.design).design_id}"
    data, part = part_of(plan, "overlay", executes_code=True)
    runner, _, _ = opened(data, part, members({f"{name}.bit": b"bits", f"{name}.hwh": b"blocks"}))
    assert pynq.loaded == [(b"bits", b"blocks")]
    assert "board" in runner.provider
    assert "simulated" not in runner.provider


def test_or_from_the_file_that_the_owner_names(
    plan: Plan, pynq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.bit").write_bytes(b"my bits")
    (tmp_path / "mine.hwh").write_bytes(b"my blocks")
    monkeypatch.setenv("EDGEKIT_OVERLAY_BIT", str(tmp_path / "mine.bit"))
    opened(*part_of(plan, "overlay", executes_code=True), members({}))
    assert pynq.loaded == [(b"my bits", b"my blocks")]


def test_without_a_bitstream_it_says_where_one_comes_from(
    plan: Plan, pynq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKIT_OVERLAY_BIT", raising=False)
    with pytest.raises(BadInput, match=r"no member overlay/\w{32}\.bit with its \.hwh, .* build\.tcl"):
        opened(*part_of(plan, "overlay", executes_code=True), members({}))


def test_a_bitstream_of_another_design_is_refused_by_name(
    plan: Plan, pynq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.bit").write_bytes(b"")
    (tmp_path / "mine.hwh").write_bytes(b"")
    monkeypatch.setenv("EDGEKIT_OVERLAY_BIT", str(tmp_path / "mine.bit"))
    wanted = Answering.design_id
    monkeypatch.setattr(Answering, "design_id", "f" * 32)
    with pytest.raises(BadInput, match=f"holds design_id {'f' * 32}, the bundle needs {wanted}"):
        opened(*part_of(plan, "overlay", executes_code=True))


def test_a_part_that_loads_a_bitstream_must_say_that_it_executes_code(plan: Plan, pynq: Any) -> None:
    with pytest.raises(BadBundle, match="executes_code"):
        opened(*part_of(plan, "overlay"))
    assert pynq.loaded == []


def test_without_pynq_the_backend_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynq", None)
    for name in ("edgekit.runtime.overlay.board", "edgekit.runtime.backends.overlay"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingExtra, match="needs the package pynq"):
        opener("overlay")
