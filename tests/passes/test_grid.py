"""Grids of weights: nearest levels, the same codes found again, bits packed and back, and which weights there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Builder, save

from edgekit.core.errors import BadInput
from edgekit.host.load import load
from edgekit.host.passes._grid import (
    CLIPS,
    GRIDS,
    Grid,
    Product,
    dequantize,
    pack,
    packed_bytes,
    products,
    quantize,
    rows,
    snap,
    unpack,
)

FEW = settings(max_examples=60, deadline=None)
INTEGERS = [GRIDS[name] for name in ("int8", "int4", "int2")]
grids = st.sampled_from(list(GRIDS.values()))
clips = st.sampled_from(CLIPS)
blocks = st.integers(0, 9)


@st.composite
def weights(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], tuple[int, ...]]:
    """A weight of one to four axes, and those that tell its groups apart; zeros, tiny and huge numbers among them."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = random.normal(0, 10.0 ** random.integers(-4, 3), shape)
    array *= random.choice([1, 1, 1, 0, 1e-12, 50], shape)
    axes = draw(st.sampled_from([(), (0,), (len(shape) - 1,), (0, len(shape) - 1)]))
    return array.astype(np.float32), tuple(sorted({axis for axis in axes if len(shape) > 1}))


@FEW
@given(weights(), grids, clips, clips, blocks)
def test_a_weight_on_its_grid_stays_as_it_is(
    given_: tuple[Any, tuple[int, ...]], grid: Grid, clip: str, again: str, block: int
) -> None:
    array, axes = given_
    once = snap(array, axes, grid, block=block, clip=clip)
    np.testing.assert_array_equal(snap(once, axes, grid, block=block, clip=again), once)


@FEW
@given(weights(), st.sampled_from(INTEGERS), clips, blocks)
def test_what_lies_within_the_grid_is_off_by_half_a_step_at_most(
    given_: tuple[Any, tuple[int, ...]], grid: Grid, clip: str, block: int
) -> None:
    layout = rows(given_[0].shape, given_[1], block)
    matrix = layout.take(given_[0])
    codes, scale = quantize(matrix, grid, clip, layout.used)
    off = np.abs(dequantize(codes, scale) - matrix)
    inside = np.abs(matrix) <= grid.qmax * scale[:, None]
    half = np.broadcast_to(0.5 * grid.step * scale[:, None] * (1 + 1e-5), off.shape)
    assert (off[inside] <= half[inside]).all()
    outside = codes[~inside]
    assert (np.abs(outside) == grid.qmax).all()
    if clip == "max":  # nothing lies outside but by the rounding of the scale
        assert (np.abs(matrix) <= grid.qmax * scale[:, None] * (1 + 2**-10)).all()


@FEW
@given(weights(), grids, blocks)
def test_mse_is_never_worse_than_max(given_: tuple[Any, tuple[int, ...]], grid: Grid, block: int) -> None:
    array, axes = given_
    errors = [
        float(np.square(snap(array, axes, grid, block=block, clip=clip).astype(np.float64) - array).sum())
        for clip in ("mse", "max")
    ]
    assert errors[0] <= errors[1] * (1 + 1e-3)  # a scale is rounded to 11 bits


@FEW
@given(weights(), grids, clips, blocks)
def test_codes_are_levels_and_their_products_with_the_scale_are_exact(
    given_: tuple[Any, tuple[int, ...]], grid: Grid, clip: str, block: int
) -> None:
    layout = rows(given_[0].shape, given_[1], block)
    codes, scale = quantize(layout.take(given_[0]), grid, clip, layout.used)
    assert set(np.unique(codes)) <= set(range(-grid.qmax, grid.qmax + 1, grid.step))
    exact = codes.astype(np.float64) * scale.astype(np.float64)[:, None]
    np.testing.assert_array_equal(dequantize(codes, scale), exact)
    assert (scale > 0).all()


@FEW
@given(weights(), st.integers(0, 40))
def test_a_weight_comes_back_from_its_rows(given_: tuple[Any, tuple[int, ...]], block: int) -> None:
    array, axes = given_
    layout = rows(array.shape, axes, block)
    matrix = layout.take(array)
    assert matrix.shape == (layout.channels * layout.blocks, layout.block)
    np.testing.assert_array_equal(layout.give(matrix), array)
    used = layout.used
    assert (matrix.size if used is None else used.sum()) == array.size


@FEW
@given(grids, st.integers(0, 67), st.integers(0, 2**32 - 1))
def test_packed_codes_have_their_real_size_and_come_back(grid: Grid, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    numbers = random.integers(0, 2**grid.bits, count)
    if grid.name == "ternary":
        numbers = numbers % 3
    codes = (numbers * grid.step + grid.lowest).astype(np.int8)
    packed = pack(codes, grid)
    assert packed.nbytes == packed_bytes(count, grid.bits) == -(-count * grid.bits // 8)
    np.testing.assert_array_equal(unpack(packed, grid, count), codes)


def test_the_first_code_lies_in_the_lowest_bits() -> None:
    assert pack(np.array([-8, 7, 0], np.int8), GRIDS["int4"]).tolist() == [0xF0, 0x08]
    assert pack(np.array([1, -1, -1, 1, 1, 1, 1, -1, 1], np.int8), GRIDS["binary"]).tolist() == [0x79, 0x01]
    assert pack(np.array([-1, 0, 1, -1], np.int8), GRIDS["ternary"]).tolist() == [0b00_10_01_00]


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(BadInput, match="9 int4 codes must be 5 bytes, got 4"):
        unpack(np.zeros(4, np.uint8), GRIDS["int4"], 9)


def test_ternary_is_twns_threshold_and_mean() -> None:
    w = np.array([[0.1, -0.2, 0.5, -1.0]], np.float32)  # mean |w| = 0.45, threshold 0.315
    codes, scale = quantize(w, GRIDS["ternary"], "max")
    assert codes.tolist() == [[0, 0, 1, -1]]
    assert scale[0] == pytest.approx(0.75, rel=1e-3)


def test_the_ternary_threshold_of_least_error_is_found(random: np.random.Generator) -> None:
    w = random.standard_t(3, size=(20, 12)).astype(np.float32)
    codes, scale = quantize(w, GRIDS["ternary"], "mse")
    best = np.square(dequantize(codes, scale) - w).sum(axis=1)
    for keep in range(1, 13):  # every way to keep the largest
        size = np.abs(w)
        kept = size >= -np.sort(-size, axis=1)[:, keep - 1 : keep]
        alpha = (size * kept).sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True)
        assert (best <= np.square(np.sign(w) * kept * alpha - w).sum(axis=1) * (1 + 1e-4)).all()


def test_binary_is_the_mean_size_times_the_sign_and_zero_counts_as_positive() -> None:
    codes, scale = quantize(np.array([[0.0, -0.0, 2.0, -4.0]], np.float32), GRIDS["binary"])
    assert codes.tolist() == [[1, 1, 1, -1]]
    assert scale.tolist() == [1.5]


def test_zeros_stay_zeros_on_integer_grids() -> None:
    for name in ("int8", "int4", "ternary"):
        assert not snap(np.zeros((2, 3), np.float32), (0,), GRIDS[name]).any()


def test_filling_up_a_block_does_not_change_its_scale() -> None:
    w = np.array([[1.0, 1.0, 1.0, -3.0]], np.float32)
    for name, want in (("binary", [1.0, 3.0]), ("ternary", [1.0, 3.0])):
        layout = rows(w.shape, (0,), 3)  # the second block holds one weight and two zeros
        _, scale = quantize(layout.take(w), GRIDS[name], "max", layout.used)
        assert scale.tolist() == want


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(BadInput, match="weights must be finite"):
        quantize(np.array([[1.0, bad]], np.float32), GRIDS["int8"])


# --- which weights there are ------------------------------------------------------------------------------------------


def found(b: Builder, tmp_path: Path, shape: tuple[int, ...], x: tuple[int, ...]) -> dict[str, Product]:
    graph = load(save(b.model([("y", shape)], [("x", x)]), tmp_path / "m.onnx")).graph
    return {product.name: product for product in products(graph)}


def test_the_axis_of_output_channels_is_known_for_every_product(tmp_path: Path) -> None:
    b = Builder()
    t = b.op("Conv", ["x", b.weight("conv", 6, 3, 3)], "c", pads=[1, 1])  # 1-D
    t = b.op("Conv", [t, b.weight("deep", 6, 1, 3)], "d", group=6, pads=[1, 1])
    t = b.op("ConvTranspose", [t, b.weight("up", 6, 4, 2)], "u")
    t = b.op("ConvTranspose", [t, b.weight("deep_up", 4, 1, 1)], "v", group=4)
    t = b.op("MatMul", [b.weight("left", 5, 4), t], "l")
    t = b.op("MatMul", [t, b.weight("stack", 1, 11, 7)], "s")
    t = b.op("Reshape", [t, b.constant("flat", np.array([5, 7]))], "r")
    t = b.op("Gemm", [t, b.weight("g0", 7, 3), b.weight("b0", 3)], "g")
    b.op("Gemm", [t, b.weight("g1", 2, 3)], "y", transB=1)
    axes = {name: (p.index, p.axes) for name, p in found(b, tmp_path, (5, 2), (1, 3, 10)).items()}
    assert axes == {
        "n_c": (1, (0,)),
        "n_d": (1, (0,)),
        "n_u": (1, (1,)),
        "n_v": (1, (0,)),
        "n_l": (0, (0,)),
        "n_s": (1, (0, 2)),
        "n_g": (1, (1,)),
        "n_y": (1, (0,)),
    }


def test_products_of_two_activations_and_computed_weights_are_not_listed(tmp_path: Path) -> None:
    b = Builder()
    b.op("MatMul", ["x", "x"], "square")
    b.op("Neg", [b.weight("w", 4, 4)], "computed")
    b.op("MatMul", ["square", "computed"], "y")
    assert not found(b, tmp_path, (4, 4), (4, 4))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)
