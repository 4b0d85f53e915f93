"""Weights of -1 and +1 by their sign, kept within [-1, 1] (BinaryConnect: Courbariaux et al. 2015, 1511.00363).

The gradient with respect to the binary weight is applied to the real one. The learning rate of each layer is
multiplied by sqrt((fan in + fan out) / 1.5), the inverse of Glorot's initial spread: without it the real weights, which
start all over [-1, 1], hardly ever change sign (the authors' code has it, the paper names it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgekit.host.train.quantizers.base import fans, plus_minus


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor) -> Tensor:
        del context
        return plus_minus(weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        del context
        return gradient


@dataclass(frozen=True)
class Deterministic:
    """Weights of BinaryConnect and of binarized networks. In a file: one bit each, no scale."""

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.uniform_(-1, 1)

    def __call__(self, weight: Tensor) -> Tensor:
        return _StraightThrough.apply(weight)

    def codes(self, weight: Tensor) -> Tensor:
        """-1 or +1 for each weight. Without gradient."""
        return plus_minus(weight.detach())

    def scale(self, weight: Tensor) -> Tensor:
        return torch.ones(())

    def settle(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.clamp_(-1, 1)

    def rate(self, weight: Tensor) -> float:
        return math.sqrt(sum(fans(weight)) / 1.5)


WEIGHTS = Deterministic
