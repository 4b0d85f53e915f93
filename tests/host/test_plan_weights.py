"""Few bits recognised in float weights: the narrowest coding that holds them exactly, a scale for each channel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.host.lower.native.weights import Coded, coded
from edgekit.native import plan

CASES = [
    ([[0.3, -0.3, 0.3], [-2.0, -2.0, 2.0]], plan.BIPOLAR, [[1, -1, 1], [-1, -1, 1]], [0.3, 2.0]),
    ([[0.5, 0.0, -0.5], [0.25, 0.25, 0.25]], plan.TERNARY, [[1, 0, -1], [1, 1, 1]], [0.5, 0.25]),
    ([[0.0, 0.0, 0.0], [1.0, -1.0, 1.0]], plan.TERNARY, [[0, 0, 0], [1, -1, 1]], [1.0, 1.0]),
    ([[-0.2, 0.1, 0.0], [0.1, -0.1, 0.1]], plan.SIGNED2, [[-2, 1, 0], [1, -1, 1]], [0.1, 0.1]),
    ([[0.7, -0.1, 0.3]], plan.INTEGER8, [[7, -1, 3]], [0.1]),
    ([[12.7, -0.1]], plan.INTEGER8, [[127, -1]], [0.1]),
]


@pytest.mark.parametrize(("weight", "coding", "values", "scale"), CASES)
def test_the_narrowest_coding_is_found(
    weight: list[list[float]], coding: int, values: list[list[int]], scale: list[float]
) -> None:
    found = coded(np.array(weight, np.float32))
    assert isinstance(found, Coded)
    assert found.coding == coding
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(2, 8),
    scale=st.floats(1e-4, 100.0),
    channels=st.integers(1, 5),
)
def test_weights_on_a_grid_come_back_exactly(seed: int, bits: int, scale: float, channels: int) -> None:
    rng = np.random.default_rng(seed)
    most = 2 ** (bits - 1) - 1
    values = rng.integers(-most, most + 1, (channels, 3, 3, 4))
    scales = scale * rng.uniform(0.5, 2.0, channels).astype(np.float32)
    weight = (values * scales[:, None, None, None]).astype(np.float32)
    found = coded(weight)
    assert isinstance(found, Coded), found
    rebuilt = (found.values * found.scale[:, None, None, None]).astype(np.float32)
    np.testing.assert_allclose(rebuilt, weight, rtol=1e-5, atol=1e-6 * scale)


def test_ordinary_weights_are_refused_with_what_they_are() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    assert coded(weight) == "its weights take 50 values in output channel 0 and lie on no grid of 8 bits"
    assert coded(np.array([[np.inf, 1.0]])) == "its weights are not all finite"


@pytest.mark.parametrize("weight", [case[0] for case in CASES if case[1] != plan.SIGNED2])
def test_codes_of_negated_rows_stand_for_the_negated_weights(weight: list[list[float]]) -> None:
    found = coded(np.array(weight, np.float32))
    assert isinstance(found, Coded)
    assert found.negatable
    for falling in (False, True):
        codes = found.codes(np.full(len(weight), falling))
        values = codes if found.coding == plan.INTEGER8 else np.array(plan.VALUES[found.coding])[codes]
        np.testing.assert_array_equal(values, -found.values if falling else found.values)


def test_rows_that_hold_minus_two_cannot_be_negated() -> None:
    found = coded(np.array([[-0.2, 0.1]], np.float32))
    assert isinstance(found, Coded)
    assert not found.negatable
