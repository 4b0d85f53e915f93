"""DoReFa-Net's weights, activations and gradients of few bits (Zhou et al. 2016, arXiv 1606.06160).

q_k(r) rounds r in [0, 1] to the nearest of 2^k levels, a half to the even one; its gradient is passed unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.host.train.quantizers.base import (
    WeightQuantizer,
    checked_bits,
    fans,
    levels,
    plus_minus,
    rounded,
    straight,
)


class ClippedActivation(nn.Module):
    """Activations in [0, 1] with 2^bits levels, in the place of a ReLU: no gradient where the input is outside."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.steps = 2 ** checked_bits(bits, 1, "activations") - 1
        self.scale = 1 / self.steps

    def forward(self, value: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return levels(value, self.scale, self.steps)
        return rounded(value.clamp(0, 1), self.steps)


@dataclass(frozen=True)
class TanhWeights:
    """DoReFa's weights: 2 q_k(tanh W / (2 max |tanh W|) + 1/2) - 1; the largest |tanh W| has a gradient as well.

    bits: 2 to 8; the levels are the odd multiples of 1 / (2^bits - 1), so there is no zero. With one bit DoReFa takes
    the sign times mean |W| of the layer: SignTimesMean.
    """

    bits: int

    def __post_init__(self) -> None:
        checked_bits(self.bits, 2, "weights of DoReFa")

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))

    def __call__(self, weight: Tensor) -> Tensor:
        bounded = torch.tanh(weight)
        largest = bounded.abs().max().clamp(min=torch.finfo(weight.dtype).tiny)
        return 2 * rounded(bounded / (2 * largest) + 0.5, 2**self.bits - 1) - 1

    def codes(self, weight: Tensor) -> Tensor:
        """Odd numbers from -(2^bits - 1) to 2^bits - 1. Without gradient."""
        return torch.round(self(weight.detach()) * (2**self.bits - 1))

    def scale(self, weight: Tensor) -> Tensor:
        """What a code of 1 stands for: known from the bits."""
        return weight.detach().new_tensor(1 / (2**self.bits - 1))

    def settle(self, weight: Tensor) -> None:
        """Nothing: tanh bounds the weights."""

    def rate(self, weight: Tensor) -> float:
        return 1.0


@dataclass(frozen=True)
class SignTimesMean:
    """DoReFa's weights of one bit: sign W times one mean |W| for the layer, the gradient passed unchanged."""

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))

    def __call__(self, weight: Tensor) -> Tensor:
        return straight(weight, plus_minus(weight.detach()) * self.scale(weight))

    def codes(self, weight: Tensor) -> Tensor:
        """-1 or +1 for each weight. Without gradient."""
        return plus_minus(weight.detach())

    def scale(self, weight: Tensor) -> Tensor:
        return weight.detach().abs().mean()

    def settle(self, weight: Tensor) -> None:
        """Nothing: the real weights go where they like."""

    def rate(self, weight: Tensor) -> float:
        return 1.0


class _Coarse(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, bits: int, random: torch.Generator | None) -> Tensor:
        context.bits, context.random = bits, random
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return rounded_gradient(gradient, context.bits, context.random), None, None


class CoarseGradients(nn.Module):
    """The identity going forward; going back DoReFa's gradients of 2^bits levels. random: of the noise."""

    def __init__(self, bits: int, random: torch.Generator | None = None) -> None:
        super().__init__()
        self.bits, self.random = checked_bits(bits, 1, "gradients"), random

    def forward(self, value: Tensor) -> Tensor:
        return _Coarse.apply(value, self.bits, self.random)


def rounded_gradient(gradient: Tensor, bits: int, random: torch.Generator | None = None) -> Tensor:
    """A gradient [N, ...] with 2^bits levels for each sample: 2 m (q_k(g / 2m + 1/2 + noise) - 1/2), m its largest |g|.

    The noise is uniform over one step, so that a value between two levels comes out right on average.
    """
    steps = 2**bits - 1
    largest = gradient.abs().flatten(1).amax(1).reshape(-1, *[1] * (gradient.ndim - 1))
    noise = (torch.rand(gradient.shape, generator=random, dtype=gradient.dtype) - 0.5) / steps
    unit = (gradient / torch.where(largest > 0, 2 * largest, 1) + 0.5 + noise).clamp(0, 1)
    return 2 * largest * (torch.round(unit * steps) / steps - 0.5)


def dorefa_weights(bits: int) -> WeightQuantizer:
    """The method's quantizer for so many bits, 1 to 8."""
    return SignTimesMean() if bits == 1 else TanhWeights(bits)


WEIGHTS = dorefa_weights
ACTIVATIONS = ClippedActivation
ERRORS = CoarseGradients
