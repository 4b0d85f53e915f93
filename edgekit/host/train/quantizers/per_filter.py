"""Binary weights with one real scale per filter (BWN, XNOR-Net: Rastegari et al. 2016, arXiv 1603.05279).

W' = alpha * sign(W), alpha = mean |W| over the filter: the scale with the least squared error. The gradient is
dL/dW = dL/dW' * (1/n + alpha * 1{|W| < 1}), n weights in a filter. After each update the mean over input channels is
taken out of the real weights and they are clamped to [-1, 1], as the authors' code does before each pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgekit.host.train.quantizers.base import fans, plus_minus


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, alpha: Tensor) -> Tensor:
        context.save_for_backward(weight, alpha)
        return plus_minus(weight) * alpha

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight, alpha = context.saved_tensors
        return gradient * (1 / fans(weight)[0] + alpha * (weight.abs() < 1)), None


@dataclass(frozen=True)
class PerFilter:
    """Weights of XNOR-Net. In a file: one bit each, and one float32 per filter."""

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))
        self.settle(weight)

    def __call__(self, weight: Tensor) -> Tensor:
        return _Scaled.apply(weight, self.scale(weight))

    def codes(self, weight: Tensor) -> Tensor:
        """-1 or +1 for each weight. Without gradient."""
        return plus_minus(weight.detach())

    def scale(self, weight: Tensor) -> Tensor:
        return weight.detach().abs().mean(tuple(range(1, weight.ndim)), keepdim=True)

    def settle(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.sub_(weight.mean(1, keepdim=True)).clamp_(-1, 1)

    def rate(self, weight: Tensor) -> float:
        return 1.0


WEIGHTS = PerFilter
