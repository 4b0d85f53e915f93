"""Layers of bytes times small integers: every kernel that can run here against numpy and against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from c_programs import built, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.native import door
from edgekit.native import plan as p

Array = NDArray[Any]
RUNNABLE = [row.name for row in door.kernels() if row.family == "dot8" and row.supported]
every_kernel = pytest.mark.parametrize("kernels", RUNNABLE)


def layer(image: Array, weights: Array, stride: tuple[int, int] = (1, 1), **epilogue: Any) -> p.Plan:
    """One layer of int8 weights (out_c, kernel_h, kernel_w, in_c) on an image of uint8 or int8 (h, w, in_c)."""
    kernel = weights.shape[1:3]
    h, w = ((image.shape[axis] - kernel[axis]) // stride[axis] + 1 for axis in (0, 1))
    given_ = p.PlanTensor(p.U8 if image.dtype == np.uint8 else p.I8, *image.shape, is_input=True, name="x")
    made = {
        p.SUMS: (p.I32, 0),
        p.SCALED: (p.F32, 0),
        p.THRESHOLDS: (p.BITS, epilogue.pop("coding", p.BIPOLAR)),
    }
    kind, coding = made[epilogue.get("epilogue", p.SUMS)]
    result = p.PlanTensor(kind, h, w, len(weights), coding=coding, is_output=True, name="y")
    of = p.Linear(weights, p.INTEGER8, kernel, stride, **epilogue)
    return p.Plan((given_, result), (p.Operator(p.LINEAR, (0,), 1, of),))


def codes(plan: p.Plan, image: Array, kernels: str) -> Array:
    """What the layer gives, (h, w, out_c): int32, codes of bits, or float32."""
    opened = door.open_plan(p.encode(plan), kernels=kernels, keep=True)
    result = plan.tensors[1]
    planes = p.PLANES[result.coding] if result.type == p.BITS else 0
    shape = (result.h, result.w, *((planes, (result.c + 7) // 8) if planes else (result.c,)))
    opened.run(
        [image], [np.zeros(shape, {p.BITS: np.uint8, p.I32: np.int32, p.F32: np.float32}[result.type])]
    )
    found = opened.codes(1)
    return found.view(np.float32) if result.type == p.F32 else found


def sums(image: Array, weights: Array, stride: tuple[int, int] = (1, 1)) -> Array:
    """By definition, in 64 bits."""
    windows = np.lib.stride_tricks.sliding_window_view(
        image.astype(np.int64), weights.shape[1:3], axis=(0, 1)
    )
    return np.einsum("yxchw,ohwc->yxo", windows[:: stride[0], :: stride[1]], weights.astype(np.int64))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array, tuple[int, int]]:
    """An image, weights and strides; few channels and many, values anywhere, small, or at the ends of their range."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    side = [
        kernel[axis] + stride[axis] * draw(st.integers(0, 6)) + draw(st.integers(0, 2)) for axis in (0, 1)
    ]
    in_c = draw(st.one_of(st.integers(1, 5), st.integers(6, 40), st.sampled_from([32, 64])))
    out_c = draw(st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 128, 130])))
    dtype = draw(st.sampled_from([np.uint8, np.int8]))
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if draw(st.booleans()):
        image = rng.integers(low, high + 1, (*side, in_c)).astype(dtype)
        weights = rng.integers(-128, 128, (out_c, *kernel, in_c)).astype(np.int8)
    else:
        image = rng.choice([low, high], (*side, in_c)).astype(dtype)
        weights = rng.choice([-128, -1, 1, 127], (out_c, *kernel, in_c)).astype(np.int8)
    return image, weights, stride


@every_kernel
@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_the_sums_are_those_of_the_definition(
    kernels: str, case: tuple[Array, Array, tuple[int, int]]
) -> None:
    image, weights, stride = case
    np.testing.assert_array_equal(
        codes(layer(image, weights, stride), image, kernels), sums(image, weights, stride)
    )


@every_kernel
@pytest.mark.parametrize("weight", [-128, -127, -1, 1, 127])
@pytest.mark.parametrize("value", [0, 1, 127, 128, 255])
def test_no_pair_of_an_input_and_a_weight_saturates(kernels: str, value: int, weight: int) -> None:
    image = np.full((4, 5, 13), value, np.uint8)
    weights = np.full((70, 3, 3, 13), weight, np.int8)
    assert np.unique(codes(layer(image, weights), image, kernels)).tolist() == [9 * 13 * value * weight]


@every_kernel
def test_every_weight_meets_every_input(kernels: str) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    weights = np.arange(-128, 128).astype(np.int8).reshape(256, 1, 1, 1)
    np.testing.assert_array_equal(codes(layer(image, weights), image, kernels), sums(image, weights))


CODINGS = {p.BIPOLAR: 1, p.TERNARY: 2, p.UNSIGNED2: 3, p.SIGNED2: 3}


@every_kernel
@pytest.mark.parametrize("coding", CODINGS)
@settings(max_examples=15, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_codes_count_the_thresholds_that_a_sum_reaches(
    kernels: str, coding: int, case: tuple[Array, Array, tuple[int, int]], seed: int
) -> None:
    image, weights, stride = case
    wanted, rng = sums(image, weights, stride), np.random.default_rng(seed)
    flat = wanted.reshape(-1, len(weights))
    picks = rng.integers(0, len(flat), (len(weights), CODINGS[coding]))
    near = np.take_along_axis(flat.T, picks, axis=1) + rng.integers(-1, 2, picks.shape)
    near[rng.random(picks.shape) < 0.1] = np.iinfo(np.int32).max
    near[rng.random(picks.shape) < 0.1] = np.iinfo(np.int32).min
    thresholds = np.sort(near, axis=1).astype(np.int32)
    plan = layer(image, weights, stride, epilogue=p.THRESHOLDS, coding=coding, thresholds=thresholds)
    reached = (wanted[..., None] >= thresholds) & (thresholds < np.iinfo(np.int32).max)
    np.testing.assert_array_equal(codes(plan, image, kernels), reached.sum(-1))


@every_kernel
def test_every_threshold_splits_the_sums_exactly(kernels: str) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    weights = np.ones((258, 1, 1, 1), np.int8)
    thresholds = np.arange(258, dtype=np.int32)[:, None]
    plan = layer(image, weights, epilogue=p.THRESHOLDS, thresholds=thresholds)
    wanted = np.arange(256)[:, None] >= np.arange(258)
    np.testing.assert_array_equal(codes(plan, image, kernels)[0], wanted)


@every_kernel
@settings(max_examples=15, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_floats_round_the_product_and_the_sum_one_by_one(
    kernels: str, case: tuple[Array, Array, tuple[int, int]], seed: int
) -> None:
    image, weights, stride = case
    rng = np.random.default_rng(seed)
    scale = (rng.normal(size=len(weights)) * 10.0 ** rng.integers(-42, 6, len(weights))).astype(np.float32)
    bias = (rng.normal(size=len(weights)) * 10.0 ** rng.integers(-40, 6, len(weights))).astype(np.float32)
    plan = layer(image, weights, stride, epilogue=p.SCALED, scale=scale, bias=bias)
    wanted = sums(image, weights, stride).astype(np.float32) * scale + bias
    np.testing.assert_array_equal(
        codes(plan, image, kernels).view(np.int32), wanted.astype(np.float32).view(np.int32)
    )


def test_on_random_layers_every_kernel_writes_the_bytes_that_the_reference_writes() -> None:
    said = run(built() / "check_kernels", "1000", "11").splitlines()
    wanted = [[f"{family}:", *names(family)] for family in ("xnor", "dot8")]
    assert [line.split()[:-1] for line in said[:-1]] == wanted


def names(family: str) -> list[str]:
    return [row.name for row in door.kernels() if row.family == family and row.supported]
