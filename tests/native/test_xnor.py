"""Layers of bits times bits: every kernel that can run here against numpy and, in C, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from c_programs import built, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plan_reference import run as by_definition
from plan_reference import to_outside

from edgekit.native import door
from edgekit.native import plan as p

Array = NDArray[Any]
RUNNABLE = [row.name for row in door.kernels() if row.family == "xnor" and row.supported]
CODINGS = (p.BIPOLAR, p.UNSIGNED2, p.SIGNED2, p.TERNARY)
CHANNELS = st.one_of(st.integers(1, 70), st.sampled_from([64, 96, 128, 130, 192, 256]))
KERNELS = st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (2, 2), (1, 3), (5, 1)])
ALWAYS, NEVER = np.iinfo(np.int32).min, np.iinfo(np.int32).max
every_kernel = pytest.mark.parametrize("kernels", RUNNABLE)


def executed(plan: p.Plan, codes: Array, kernels: str) -> Array:
    """What the plan's only output holds, (h, w, c): codes, sums, or float32."""
    opened = door.open_plan(p.encode(plan), kernels=kernels, keep=True)
    result = plan.tensors[-1]
    empty = to_outside(result, np.zeros((result.h, result.w, result.c), np.int32))
    opened.run([to_outside(plan.tensors[0], codes)], [empty])
    found = opened.codes(len(plan.tensors) - 1)
    return found.view(np.float32) if result.type == p.F32 else found


def layer(source: p.PlanTensor, of: p.Linear, coding: int = p.BIPOLAR) -> p.Plan:
    """One linear operator on a tensor of bits; coding: of what thresholds give."""
    h, w = (
        (size + of.pads[axis] + of.pads[axis + 2] - of.kernel[axis]) // of.stride[axis] + 1
        for axis, size in enumerate((source.h, source.w))
    )
    kinds = {p.SUMS: (p.I32, 0), p.SCALED: (p.F32, 0), p.THRESHOLDS: (p.BITS, coding)}
    kind, made = kinds[of.epilogue]
    result = p.PlanTensor(kind, h, w, len(of.weights), made, is_output=True, name="y")
    return p.Plan((source, result), (p.Operator(p.LINEAR, (0,), 1, of),))


@st.composite
def layers(draw: st.DrawFn) -> tuple[p.PlanTensor, p.Linear, Array]:
    """A tensor of bits, a layer that gives its sums, and codes for the tensor."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    in_c, out_c, coding = draw(CHANNELS), draw(CHANNELS), draw(st.sampled_from(CODINGS))
    dense = draw(st.integers(0, 3)) == 0
    kernel = draw(KERNELS)
    h, w = (kernel[axis] + draw(st.integers(0, 5)) for axis in (0, 1))
    if dense:
        kernel = (h, w)
    pads = (0, 0, 0, 0) if dense else tuple(draw(st.integers(0, kernel[axis % 2] - 1)) for axis in range(4))
    weights_coding = draw(st.sampled_from(CODINGS))
    source = p.PlanTensor(p.BITS, h, w, in_c, coding, is_input=True, name="x")
    of = p.Linear(
        rng.integers(0, p.LEVELS[weights_coding], (out_c, *kernel, in_c)).astype(np.uint8),
        weights_coding,
        kernel,
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        (pads[0], pads[1], pads[2], pads[3]),
        pad=draw(st.sampled_from([p.PAD_MINUS, p.PAD_PLUS, p.PAD_ZERO]))
        if coding == p.BIPOLAR
        else p.PAD_ZERO,
    )
    return source, of, rng.integers(0, p.LEVELS[coding], (h, w, in_c)).astype(np.int32)


def sums(case: tuple[p.PlanTensor, p.Linear, Array]) -> Array:
    return by_definition(layer(case[0], case[1]), [case[2]])[1]


@every_kernel
@settings(max_examples=40, deadline=None)
@given(case=layers())
def test_the_sums_are_those_of_the_definition(
    kernels: str, case: tuple[p.PlanTensor, p.Linear, Array]
) -> None:
    np.testing.assert_array_equal(executed(layer(case[0], case[1]), case[2], kernels), sums(case))


@every_kernel
@pytest.mark.parametrize("coding", CODINGS)
@settings(max_examples=12, deadline=None)
@given(case=layers(), seed=st.integers(0, 2**32 - 1))
def test_codes_count_the_thresholds_that_a_sum_reaches(
    kernels: str, coding: int, case: tuple[p.PlanTensor, p.Linear, Array], seed: int
) -> None:
    source, of, given_ = case
    wanted, rng = sums(case), np.random.default_rng(seed)
    flat = wanted.reshape(-1, len(of.weights))
    picks = rng.integers(0, len(flat), (len(of.weights), p.LEVELS[coding] - 1))
    near = np.take_along_axis(flat.T, picks, axis=1) + rng.integers(-1, 2, picks.shape)
    near[rng.random(picks.shape) < 0.1] = NEVER
    near[rng.random(picks.shape) < 0.1] = ALWAYS
    thresholds = np.sort(near, axis=1).astype(np.int32)
    plan = layer(source, replace(of, epilogue=p.THRESHOLDS, thresholds=thresholds), coding)
    reached = (wanted[..., None] >= thresholds) & (thresholds < NEVER)
    np.testing.assert_array_equal(executed(plan, given_, kernels), reached.sum(-1))


@every_kernel
@settings(max_examples=15, deadline=None)
@given(case=layers(), seed=st.integers(0, 2**32 - 1))
def test_floats_round_the_product_and_the_sum_one_by_one(
    kernels: str, case: tuple[p.PlanTensor, p.Linear, Array], seed: int
) -> None:
    source, of, given_ = case
    rng, out_c = np.random.default_rng(seed), len(of.weights)
    scale = (rng.normal(size=out_c) * 10.0 ** rng.integers(-42, 6, out_c)).astype(np.float32)
    bias = (rng.normal(size=out_c) * 10.0 ** rng.integers(-40, 6, out_c)).astype(np.float32)
    plan = layer(source, replace(of, epilogue=p.SCALED, scale=scale, bias=bias))
    wanted = sums(case).astype(np.float32) * scale + bias
    np.testing.assert_array_equal(executed(plan, given_, kernels).view(np.int32), wanted.view(np.int32))


@every_kernel
@pytest.mark.parametrize("n", [1, 2, 9, 31, 32, 33, 63, 64, 65, 127, 128, 130, 200])
def test_every_sum_meets_every_threshold(kernels: str, n: int) -> None:
    source = p.PlanTensor(p.BITS, 1, n + 1, n, p.BIPOLAR, is_input=True, name="x")
    ones = np.tri(n + 1, n, -1, np.int32)[None]  # pixel x has x ones, so its sum is 2 x - n
    thresholds = np.array([*range(-n - 1, n + 3), ALWAYS, NEVER], np.int32)[:, None]
    weights = np.ones((len(thresholds), 1, 1, n), np.uint8)
    of = p.Linear(weights, p.BIPOLAR, (1, 1), epilogue=p.THRESHOLDS, thresholds=thresholds)
    wanted = 2 * np.arange(n + 1)[:, None] - n >= thresholds[:, 0].astype(np.int64)
    np.testing.assert_array_equal(executed(layer(source, of), ones, kernels)[0], wanted)


@every_kernel
def test_a_sum_of_many_terms_does_not_overflow_the_narrow_counters(kernels: str) -> None:
    n = 70_000  # more than 16 bits hold, all differing
    source = p.PlanTensor(p.BITS, 1, 1, n, p.BIPOLAR, is_input=True, name="x")
    weights = np.zeros((3, 1, 1, n), np.uint8)
    of = p.Linear(weights, p.BIPOLAR, (1, 1))
    found = executed(layer(source, of), np.ones((1, 1, n), np.int32), kernels)
    assert found.ravel().tolist() == [-n] * 3


def test_on_random_layers_every_kernel_writes_the_bytes_that_the_reference_writes() -> None:
    said = run(built() / "check_xnor", "1", "100").splitlines()
    assert [line.split()[0] for line in said] == RUNNABLE
