"""Dynamic fixed point: integers against a 64-bit oracle, exponents, chains that 32 bits hold, and training in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput
from edgekit.host.train.dfp16 import (
    Fixed,
    Sums,
    add,
    down_convert,
    largest,
    matmul,
    multiply,
    safe_chain,
    to_fixed,
)

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.quantizers.dfp import DfpActivations, DfpValues, DfpWeights, fixed, step_of  # noqa: E402


def drawn(*shape: int, seed: int = 0, size: float = 1.0) -> Any:
    return np.random.default_rng(seed).normal(0, size, shape)


def oracle(first: Fixed, second: Fixed) -> Any:
    """The exact product in 64-bit integers."""
    return first.codes.astype(np.int64) @ second.codes.astype(np.int64)


@pytest.mark.parametrize("bits", [8, 14, 15, 16])
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 3e4, 1e20])
def test_the_largest_code_uses_the_top_bit_and_no_number_is_further_off_than_half_a_step(
    bits: int, size: float
) -> None:
    values = drawn(200, size=size)
    made = to_fixed(values, bits)
    top = int(np.abs(made.codes).max())
    assert 2 ** (bits - 2) <= top <= largest(bits)
    assert np.abs(made.floats() - values).max() <= 2.0 ** (made.exponent - 1)


def test_the_exponent_is_looked_at_again_after_rounding() -> None:
    """32767.6 of a step rounds up to 32768, which 16 bits do not hold."""
    values = np.array([1 - 2.0**-17, 0.25])
    made = to_fixed(values, 16)
    assert made.exponent == -14
    assert made.codes.tolist() == [2**14, 2**12]
    value = torch.tensor(values, dtype=torch.float64)
    assert float(step_of(value, 16)) == 2.0**-14


def test_zeros_have_an_exponent_and_values_that_are_not_finite_have_none() -> None:
    assert to_fixed(np.zeros(3)).exponent == 0
    assert not to_fixed(np.zeros(3)).codes.any()
    assert not fixed(torch.zeros(3), 16).any()
    with pytest.raises(BadInput, match="values must be finite"):
        to_fixed(np.array([1.0, np.nan]))


def test_products_multiply_codes_and_add_exponents() -> None:
    first, second = to_fixed(drawn(50)), to_fixed(drawn(50, seed=1, size=30.0))
    made = multiply(first, second)
    assert np.array_equal(made.codes, first.codes.astype(np.int64) * second.codes)
    assert made.exponent == first.exponent + second.exponent
    extreme = Fixed(np.array([largest(16)], np.int32), 0, 16)
    assert multiply(extreme, extreme).codes.tolist() == [largest(16) ** 2]


def test_sums_shift_the_smaller_exponents_codes_to_the_larger_one() -> None:
    made = add(Sums(np.array([100, -7], np.int32), 2), Sums(np.array([1, 1], np.int32), 5))
    assert made.exponent == 5
    assert made.codes.tolist() == [(100 >> 3) + 1, (-7 >> 3) + 1]
    far = add(Sums(np.array([2**30, -(2**30)], np.int32), -100), Sums(np.array([3, 3], np.int32), 0))
    assert far.codes.tolist() == [3, 2]
    with pytest.raises(BadInput, match="does not fit 32 bits"):
        add(Sums(np.array([2**31 - 1], np.int32), 0), Sums(np.array([1], np.int32), 0))


@pytest.mark.parametrize("top", [1, 32767, 32768, 65535, 2**30, 2**31 - 1])
def test_down_conversion_keeps_the_top_bit(top: int) -> None:
    made = down_convert(Sums(np.array([top, -top, 5], np.int32), -3), 16)
    right = max(0, top.bit_length() - 15)
    assert made.exponent == -3 + right
    assert made.codes[0] == top >> right <= largest(16)
    assert made.codes[1] >= -largest(16)
    if top > largest(16):
        assert made.codes[0] >= 2**14


@pytest.mark.parametrize(("bits", "longest"), [(16, 2), (15, 8), (14, 32)])
def test_every_bit_less_makes_the_safe_chain_four_times_as_long(bits: int, longest: int) -> None:
    assert safe_chain(bits) == longest
    worst = Fixed(np.full((1, longest + 1), largest(bits), np.int32), 0, bits)
    column = Fixed(worst.codes.reshape(-1, 1), 0, bits)
    made = matmul(Fixed(worst.codes[:, :longest], 0, bits), Fixed(column.codes[:longest], 0, bits))
    assert float(made[0, 0]) == np.float32(longest * largest(bits) ** 2)
    with pytest.raises(BadInput, match="take a shorter chain or fewer bits"):
        matmul(worst, column, longest + 1)


@pytest.mark.parametrize("bits", [8, 14, 15, 16])
@pytest.mark.parametrize("seed", range(5))
def test_chains_in_integers_are_exact_and_their_float_sum_is_what_float32_can_hold(
    bits: int, seed: int
) -> None:
    first, second = to_fixed(drawn(6, 40, seed=seed), bits), to_fixed(drawn(40, 5, seed=seed + 50), bits)
    exponent = first.exponent + second.exponent
    one = safe_chain(bits)
    parts = [
        oracle(Fixed(first.codes[:, at : at + one], 0, bits), Fixed(second.codes[at : at + one], 0, bits))
        for at in range(0, 40, one)
    ]
    wanted = np.zeros((6, 5), np.float32)
    for part in parts:
        assert np.abs(part).max() <= 2**31 - 1
        wanted += np.ldexp(part.astype(np.float32), exponent)
    assert np.array_equal(matmul(first, second), wanted)
    exact = np.ldexp(oracle(first, second).astype(np.float64), exponent)
    scale = np.abs(first.floats()) @ np.abs(second.floats())
    assert (np.abs(wanted - exact) <= 40 * 2.0**-24 * scale).all()


def test_an_order_of_signs_that_overflows_on_the_way_is_refused_though_the_end_would_fit() -> None:
    row = Fixed(np.full((1, 4), largest(16), np.int32), 0, 16)
    column = Fixed(np.array([[largest(16)], [largest(16)], [largest(16)], [-largest(16)]], np.int32), 0, 16)
    with pytest.raises(BadInput, match="does not fit 32 bits"):
        matmul(row, column, 4)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match=r"got \[2, 3\] x \[2, 3\] and 2"):
        matmul(to_fixed(drawn(2, 3)), to_fixed(drawn(2, 3)))


@pytest.mark.parametrize("bits", [8, 16])
def test_training_sees_the_same_numbers_as_the_integers(bits: int) -> None:
    values = drawn(64, 3).astype(np.float32)
    wanted = to_fixed(values, bits).floats()
    assert np.array_equal(fixed(torch.from_numpy(values), bits).double().numpy(), wanted)
    assert np.array_equal(DfpWeights(bits)(torch.from_numpy(values)).double().numpy(), wanted)


def test_errors_are_fixed_point_as_well() -> None:
    value = torch.zeros(100, requires_grad=True)
    sent = torch.from_numpy(drawn(100).astype(np.float32))
    DfpValues(8).train()(value).backward(sent)
    assert np.array_equal(value.grad.double().numpy(), to_fixed(sent.numpy(), 8).floats())


def test_activations_are_relus_and_floats_without_training() -> None:
    value = torch.tensor([-1.0, 0.3, 1.0])
    assert DfpActivations(4).eval()(value).tolist() == [0, pytest.approx(0.3), 1]
    assert DfpActivations(4).train()(value).tolist() == [0, 0.25, 1]


@pytest.mark.parametrize("bits", [3, 17])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(BadInput, match="bits must be 4 to 16"):
        DfpWeights(bits)
