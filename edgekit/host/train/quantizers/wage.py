"""WAGE's weights, activations and errors of few bits (Wu, Li, Chen, Shi 2018, arXiv 1802.04680).

With s = 2^(1-k), Q(x, k) rounds to multiples of s, a half to the even one, and C(x, k) clips to [-1 + s, 1 - s].
Weights: Q(C(W, k), k) / alpha, what comes back is passed to W unchanged. Activations: Q(C(a, k), k), the gradient zero
where C clips. Errors: Q(C(e / Shift(max |e|), k), k), Shift(x) = 2^round(log2 x), the maximum over the whole tensor.
alpha, a power of two, makes up for weights that start larger than the layer's fan-in asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.host.train.quantizers.base import checked_bits, fans, levels, signed_levels, straight

_LEAST = 1.5  # of sigma: the smallest range that weights start in


def sigma(bits: int) -> float:
    """The step of so many bits."""
    return float(2.0 ** (1 - bits))


def clip(value: Tensor, bits: int) -> Tensor:
    """C(x, k)."""
    return value.clamp(sigma(bits) - 1, 1 - sigma(bits))


def quantize(value: Tensor, bits: int) -> Tensor:
    """Q(x, k), without a gradient of its own."""
    return torch.round(value / sigma(bits)) * sigma(bits)


def shift(value: Tensor) -> Tensor:
    """The power of two nearest to a largest magnitude on a logarithmic scale; 1 for 0."""
    safe = torch.where(value > 0, value, torch.ones_like(value))
    return torch.exp2(torch.round(torch.log2(safe)))


@dataclass(frozen=True)
class WageWeights:
    """Codes of `bits` bits times a power of two. The real weights live on the grid of the update, clipped by C.

    init: weights start uniform within sqrt(init / fan in): 3 in the authors' code, 6 in the paper.
    """

    bits: int = 2
    init: float = 3.0

    def __post_init__(self) -> None:
        checked_bits(self.bits, 2, "weights of WAGE")
        if not self.init > 0:
            raise BadInput(f"wage: init must be above 0, got {self.init}")

    def start(self, weight: Tensor) -> None:
        """Uniform, then on the grid of the codes."""
        widest = max(self._limit(weight), self._least)
        with torch.no_grad():
            weight.uniform_(-widest, widest)
            weight.copy_(quantize(clip(weight, self.bits), self.bits))

    def __call__(self, weight: Tensor) -> Tensor:
        return straight(weight, self.codes(weight) * self.scale(weight))

    def codes(self, weight: Tensor) -> Tensor:
        """Whole numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1. Without gradient."""
        return torch.round(clip(weight.detach(), self.bits) / sigma(self.bits))

    def scale(self, weight: Tensor) -> Tensor:
        """What a code of 1 stands for: sigma / alpha, a power of two that the layer's shape gives."""
        return torch.tensor(sigma(self.bits) / self.alpha(weight))

    def settle(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.copy_(clip(weight, self.bits))

    def rate(self, weight: Tensor) -> float:
        return 1.0

    def alpha(self, weight: Tensor) -> float:
        """max(Shift(least range / range of the fan-in), 1)."""
        return float(max(2.0 ** round(math.log2(self._least / self._limit(weight))), 1.0))

    @property
    def _least(self) -> float:
        return _LEAST * sigma(self.bits)

    def _limit(self, weight: Tensor) -> float:
        return math.sqrt(self.init / fans(weight)[0])


class _Errors(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, bits: int) -> Tensor:
        context.bits = bits
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        scaled = gradient / shift(gradient.abs().max())
        return quantize(clip(scaled, context.bits), context.bits), None

    @staticmethod
    def symbolic(graph: Any, value: Any, bits: int) -> Any:
        del graph, bits
        return value


class WageActivations(nn.Module):
    """ReLU, the quantizer of errors, the quantizer of activations: in the place of a ReLU."""

    relu = True

    def __init__(self, bits: int = 8, errors: int = 8) -> None:
        super().__init__()
        self.bits = checked_bits(bits, 2, "activations of WAGE")
        self.errors = checked_bits(errors, 2, "errors of WAGE")

    @property
    def largest(self) -> int:
        """The largest code."""
        return int(2 ** (self.bits - 1)) - 1

    def forward(self, value: Tensor) -> Tensor:
        value = _Errors.apply(functional.relu(value) if self.relu else value, self.errors)
        if torch.onnx.is_in_onnx_export():
            make = levels if self.relu else signed_levels
            return make(value, sigma(self.bits), self.largest)
        clipped = clip(value, self.bits)
        return straight(clipped, quantize(clipped.detach(), self.bits))


class WageInput(WageActivations):
    """The quantizer of the network's input, from -1 to 1."""

    relu = False


class WageOutput(nn.Module):
    """The quantizer of errors at the scores, which stay as they are."""

    def __init__(self, bits: int = 8, errors: int = 8) -> None:
        super().__init__()
        del bits
        self.errors = checked_bits(errors, 2, "errors of WAGE")

    def forward(self, value: Tensor) -> Tensor:
        made: Tensor = _Errors.apply(value, self.errors)
        return made


WEIGHTS = WageWeights
ACTIVATIONS = WageActivations
INPUTS = WageInput
OUTPUTS = WageOutput
