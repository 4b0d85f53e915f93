"""Thresholds read off a function: right for every number that can come, whichever way the function runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.host.lower.native import steps
from edgekit.host.lower.native.steps import (
    Domain,
    Line,
    NotMonotone,
    Steps,
    float_at,
    floats,
    line_through,
    scaled,
    steps_of,
)

Array = NDArray[Any]
EPSILON = np.float32(1e-5)


def whole(low: list[int], high: list[int], every: int = 1) -> Domain:
    return scaled(np.array(low), np.array(high), np.ones(len(low)), np.zeros(len(low)), every)


def codes_by(found: Steps, numbers: Array, wanted: Array) -> Array:
    """As the threshold operator counts."""
    at = found.reaching(wanted)
    reached = np.where(
        found.falling[:, None, None], numbers[:, :, None] <= at[:, None], numbers[:, :, None] >= at[:, None]
    )
    return np.asarray(reached.sum(axis=2))


def batch_norm(gamma: Array, beta: Array, mean: Array, variance: Array) -> Callable[[Array], Array]:
    def function(x: Array) -> Array:
        normed = (x - mean[:, None]) / np.sqrt(variance[:, None] + EPSILON)
        return (gamma[:, None] * normed + beta[:, None]).astype(np.float32)

    return function


@given(seed=st.integers(0, 2**32 - 1), terms=st.integers(1, 400))
def test_a_sign_after_batch_normalization_is_right_for_every_sum(seed: int, terms: int) -> None:
    rng = np.random.default_rng(seed)
    gamma, beta, mean = rng.normal(size=(3, 6)).astype(np.float32)
    mean = (mean * np.sqrt(terms)).astype(np.float32)
    gamma[0], beta[1], gamma[2] = 0.0, 0.0, -abs(gamma[2])
    mean[1] = np.round(mean[1])  # a tie that a sum can hit
    norm = batch_norm(gamma, beta, mean, np.full(6, 0.37, np.float32))

    def sign(x: Array) -> Array:
        return np.where(norm(x) >= 0, 1.0, -1.0)

    domain = whole([-terms] * 6, [terms] * 6)
    found = steps_of(sign, domain)
    numbers = np.broadcast_to(np.arange(-terms, terms + 1), (6, 2 * terms + 1))
    if not isinstance(found, Steps):
        raise TypeError(found)
    np.testing.assert_array_equal(
        codes_by(found, numbers, np.array([1.0])), sign(numbers.astype(np.float32)) > 0
    )


@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(1, 8))
def test_a_rounding_quantizer_is_right_for_every_sum(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    scale, offset = rng.normal(size=(2, 4))
    levels = 2**bits

    def quantizer(x: Array) -> Array:
        return np.clip(np.round(scale[:, None] * x / 8 + offset[:, None]), 0, levels - 1)

    domain = whole([-700, -1, -700, 5], [700, 900, -690, 5])
    found = steps_of(quantizer, domain)
    if not isinstance(found, Steps):
        raise TypeError(found)
    for channel, (low, high) in enumerate(zip(domain.low, domain.high, strict=True)):
        numbers = np.broadcast_to(np.arange(low, high + 1), (4, high - low + 1))
        counted = codes_by(found, numbers, np.arange(1, levels))[channel]
        np.testing.assert_array_equal(counted, quantizer(numbers)[channel])


def test_sums_of_one_parity_do_not_see_the_zero_between_them() -> None:
    found = steps_of(np.sign, whole([-3], [3], every=2))
    assert isinstance(found, Steps)
    np.testing.assert_array_equal(found.levels, [-1, 1])
    assert isinstance(steps_of(np.sign, whole([-3], [3])), Steps)
    assert len(steps_of(np.sign, whole([-3], [3])).levels) == 3  # type: ignore[union-attr]


def test_too_many_sums_to_try_are_bisected_and_levels_between_are_found() -> None:
    wide = 40_000_000

    def narrow_steps(x: Array) -> Array:
        return np.clip(np.floor((x.astype(np.float64) - 1_234_567) / 3), 0, 5)

    domain = Domain(np.array([-wide]), np.array([wide]), lambda places: places.astype(np.float64))
    found = steps_of(narrow_steps, domain)
    assert isinstance(found, Steps)
    np.testing.assert_array_equal(found.levels, np.arange(6))
    np.testing.assert_array_equal(found.at[0], 1_234_567 + 3 * np.arange(1, 6))


def test_thresholds_of_floats_are_the_first_float_that_reaches_a_level() -> None:
    scale = np.float32(0.1)

    def quantizer(x: Array) -> Array:
        return np.clip(np.round(x.astype(np.float64) / scale), -128, 127)

    found = steps_of(quantizer, floats(1))
    assert isinstance(found, Steps)
    assert len(found.levels) == 256
    first = float_at(found.at)
    np.testing.assert_array_equal(quantizer(first), found.levels[None, 1:])
    before = np.nextafter(first, np.float32(-np.inf), dtype=np.float32)
    np.testing.assert_array_equal(quantizer(before), found.levels[None, :-1])


def test_a_scaled_sum_is_a_line_and_a_bent_function_neither() -> None:
    domain = whole([-1000, -1000], [1000, 1000])
    found = steps_of(lambda x: x * np.array([[0.5], [-0.25]]) + 3.0, domain)
    assert isinstance(found, Line)
    np.testing.assert_allclose(found.scale, [0.5, -0.25])
    np.testing.assert_allclose(found.bias, [3.0, 3.0])
    assert steps_of(lambda x: np.maximum(x, 0.0), domain) is None
    assert steps_of(lambda x: np.where(x > 3, np.nan, x), domain) is None


def test_what_goes_up_and_down_is_refused() -> None:
    with pytest.raises(NotMonotone):
        steps_of(lambda x: np.where(np.abs(x) < 5, 1.0, -1.0), whole([-10], [10]))


def test_floats_count_in_their_order() -> None:
    numbers = float_at(np.array([-2, -1, 0, 1, 2]))
    assert (np.diff(numbers.astype(np.float64)) > 0).all()
    assert numbers[2] == 0.0
    assert float_at(floats(1).high)[0] == np.finfo(np.float32).max
    assert float_at(floats(1).low)[0] == np.finfo(np.float32).min
    assert floats(1).high[0] < steps.NEVER


def test_levels_that_rounding_blurs_are_one_only_where_none_is_near() -> None:
    blurred = steps_of(lambda x: np.where(x > 0, 1.0, 0.5) + 1e-8 * x, whole([-3], [3]))
    assert isinstance(blurred, Steps)
    assert len(blurred.levels) == 2
    assert not isinstance(steps_of(lambda x: 1e8 + np.floor(x / 2) ** 3, whole([-3], [3])), Steps)
    near = steps_of(lambda x: np.where(x > 0, 1 + 2.0**-20, 1.0), whole([-3], [3]))
    assert isinstance(near, Steps)
    np.testing.assert_array_equal(near.levels, [1.0, 1 + 2.0**-20])


def test_a_huge_channel_hides_no_bend_and_merges_no_scales_of_others() -> None:
    domain = whole([-100, -100, -100], [100, 100, 100])
    assert line_through(lambda x: np.stack([1e8 * x[0], np.maximum(x[1], 0.0), x[2]]), domain) is None
    found = line_through(lambda x: x * np.array([[1e8], [0.5], [0.6]]), domain)
    assert isinstance(found, Line)
    np.testing.assert_allclose(found.scale, [1e8, 0.5, 0.6], rtol=1e-12)


def test_numbers_that_never_occur_are_not_tried_where_sums_are_many() -> None:
    wide = 40_000_000
    domain = Domain(np.array([-wide + 1]), np.array([wide - 1]), lambda places: places.astype(np.float64), 2)
    found = steps_of(np.sign, domain)
    assert isinstance(found, Steps)
    np.testing.assert_array_equal(found.levels, [-1, 1])
    np.testing.assert_array_equal(found.at, [[1]])
