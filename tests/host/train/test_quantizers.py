"""Quantizers by hand: levels, zero, gradients of the formulas, what an update leaves, learning rates, scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput
from edgekit.host.stored import GRIDS, pack, unpack

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.quantizers import (  # noqa: E402
    Constant,
    Deterministic,
    PerFilter,
    Ternary,
    WeightQuantizer,
    sign,
)

WEIGHTS: list[Callable[[], Any]] = [Deterministic, PerFilter, Constant, lambda: Constant(4.0)]


def passed(function: Any, values: list[float], shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """(what came out, the gradient that went in, the gradient that came back), for numbers that tell places apart."""
    value = torch.tensor(values).reshape(shape).requires_grad_()
    made = function(value)
    gradient = torch.arange(1.0, value.numel() + 1).reshape(shape)
    made.backward(gradient)
    return made.detach(), gradient, value.grad


def test_the_sign_of_zero_is_plus_one_and_of_minus_zero_too() -> None:
    made, _, _ = passed(sign, [-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0], (6,))
    assert made.tolist() == [-1, -1, 1, 1, 1, 1]


def test_the_signs_gradient_passes_where_the_input_is_at_most_one() -> None:
    _, gradient, back = passed(sign, [-1.001, -1.0, -0.3, 0.0, 1.0, 1.001], (6,))
    assert back.tolist() == (gradient * torch.tensor([0.0, 1, 1, 1, 1, 0])).tolist()


def test_signs_stay_exact_in_bfloat16() -> None:
    made = sign(torch.tensor([-0.5, 0.0], dtype=torch.bfloat16))
    assert made.dtype == torch.bfloat16
    assert made.tolist() == [-1, 1]


def test_three_levels_are_the_nearest_ones_with_the_signs_gradient() -> None:
    made, gradient, back = passed(Ternary(), [-1.2, -1.0, -0.51, -0.5, 0.0, 0.5, 0.51, 1.0, 3.0], (9,))
    assert made.tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 1]
    assert back.tolist() == (gradient * torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 1, 0])).tolist()


@pytest.mark.parametrize("make", WEIGHTS)
def test_a_weight_of_zero_counts_as_plus_one(make: Callable[[], Any]) -> None:
    quantizer = make()
    weight = torch.tensor([[0.0, -0.0, 0.5, -0.5]])
    assert (quantizer(weight) / quantizer.scale(weight)).tolist() == [[1, 1, 1, -1]]


def test_binaryconnect_gives_the_signs_and_passes_the_gradient_unchanged() -> None:
    made, gradient, back = passed(Deterministic(), [-3.0, -0.2, 0.0, 0.2, 1.0, 3.0], (2, 3))
    assert made.tolist() == [[-1, -1, 1], [1, 1, 1]]
    assert torch.equal(back, gradient)


def test_binaryconnect_clips_the_real_weights_after_an_update() -> None:
    weight = torch.tensor([[-1.5, -1.0, 0.3, 1.2]])
    Deterministic().settle(weight)
    assert weight.tolist() == [[-1, -1, pytest.approx(0.3), 1]]


@pytest.mark.parametrize(
    ("shape", "fan_in", "fan_out"), [((1024, 784), 784, 1024), ((128, 64, 3, 3), 576, 1152)]
)
def test_the_learning_rate_is_scaled_by_glorots_inverse_spread(
    shape: tuple[int, ...], fan_in: int, fan_out: int
) -> None:
    assert Deterministic().rate(torch.zeros(shape)) == pytest.approx(math.sqrt((fan_in + fan_out) / 1.5))
    assert PerFilter().rate(torch.zeros(shape)) == Constant().rate(torch.zeros(shape)) == 1


def test_xnor_scales_each_filter_by_its_mean_magnitude() -> None:
    values = [0.5, -1.5, 1.0, 0.0, -0.25, 0.25, 0.0, 0.5]
    made, _, _ = passed(PerFilter(), values, (2, 2, 2, 1))
    assert made.flatten().tolist() == [0.75, -0.75, 0.75, 0.75, -0.25, 0.25, 0.25, 0.25]


def test_xnors_scale_has_the_least_squared_error() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1, 40)
    best = float((weight - PerFilter()(weight)).square().sum())
    for factor in (0.97, 1.03):
        assert float((weight - factor * PerFilter()(weight)).square().sum()) > best


def test_xnors_gradient_is_the_papers() -> None:
    values = [0.5, -1.5, 1.0, 0.0, -0.25, 0.25, 0.0, 0.5]
    _, gradient, back = passed(PerFilter(), values, (2, 4))
    inside = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1]])
    alpha = torch.tensor([[0.75], [0.25]])
    assert torch.allclose(back, gradient * (1 / 4 + alpha * inside))


def test_xnor_takes_the_mean_over_input_channels_out_and_clamps() -> None:
    weight = torch.tensor([[[[1.0, 2.0]], [[3.0, -6.0]]]])  # one filter, two channels, 1x2
    PerFilter().settle(weight)
    assert weight.flatten().tolist() == [-1, 1, 1, -1]  # less (2, -2): -1, 4, 1, -4
    torch.manual_seed(0)
    started = torch.empty(8, 16, 3, 3)
    PerFilter().start(started)
    assert torch.allclose(started.mean(1), torch.zeros(8, 3, 3), atol=1e-6)


@pytest.mark.parametrize(("gain", "shape", "fan_in"), [(2.0, (8, 16, 3, 3), 144), (4.0, (10, 50), 50)])
def test_mcdonnells_scale_is_hes_spread_and_no_gradient_is_scaled_or_clipped(
    gain: float, shape: tuple[int, ...], fan_in: int
) -> None:
    torch.manual_seed(0)
    weight = (3 * torch.randn(shape)).requires_grad_()
    made = Constant(gain)(weight)
    assert (
        float(made.detach().abs().max())
        == float(made.detach().abs().min())
        == pytest.approx(math.sqrt(gain / fan_in))
    )
    gradient = torch.randn(shape)
    made.backward(gradient)
    assert torch.equal(weight.grad, gradient)
    before = weight.detach().clone()
    Constant(gain).settle(weight)
    assert torch.equal(weight, before)


def test_mcdonnells_weights_start_with_the_spread_of_the_scale() -> None:
    torch.manual_seed(0)
    weight = torch.empty(64, 64, 3, 3)
    Constant().start(weight)
    assert float(weight.std()) == pytest.approx(float(Constant().scale(weight)), rel=0.02)


@pytest.mark.parametrize("gain", [0.0, -1.0, math.nan, math.inf])
def test_a_gain_that_makes_no_scale_is_refused(gain: float) -> None:
    with pytest.raises(BadInput, match="gain must be above 0"):
        Constant(gain)


@pytest.mark.parametrize("make", WEIGHTS)
def test_what_is_multiplied_is_scale_times_what_a_file_holds(make: Callable[[], Any]) -> None:
    quantizer = make()
    assert isinstance(quantizer, WeightQuantizer)
    torch.manual_seed(1)
    weight = torch.empty(5, 3, 3, 3)
    quantizer.start(weight)
    made, scale, grid = quantizer(weight), quantizer.scale(weight), GRIDS["binary"]
    packed = pack(quantizer.codes(weight).numpy().astype(np.int8), grid)
    assert packed.size == math.ceil(weight.numel() / 8)
    read = torch.from_numpy(unpack(packed, grid, weight.numel())).reshape(weight.shape)
    assert torch.equal(read * scale, made)
