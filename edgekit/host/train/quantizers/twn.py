"""Ternary weights with a threshold and one scale a layer (TWN: Li, Zhang, Liu 2016, arXiv 1605.04711).

W' = alpha * {-1, 0, +1}: zero where |W| <= 0.7 * mean |W|, and alpha the mean of |W| over what is not zero, the scale
with the least squared error for that threshold. The gradient with respect to W' is passed to W unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.core.errors import BadInput
from edgekit.host.train.quantizers.base import fans, straight

THRESHOLD = 0.7  # of mean |W|: the authors' approximation for normal and uniform weights


@dataclass(frozen=True)
class Twn:
    """threshold: of the mean magnitude. In a file: two bits each, and one float32 a layer."""

    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise BadInput(f"twn: threshold must be above 0, got {self.threshold}")

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))

    def __call__(self, weight: Tensor) -> Tensor:
        return straight(weight, self.codes(weight) * self.scale(weight))

    def codes(self, weight: Tensor) -> Tensor:
        """-1, 0 or +1 for each weight. Without gradient."""
        real = weight.detach()
        return torch.sign(real) * (real.abs() > self.threshold * real.abs().mean())

    def scale(self, weight: Tensor) -> Tensor:
        """One number; 0 where no weight is above the threshold, which only a layer of equal magnitudes can do."""
        kept = self.codes(weight).abs()
        return (weight.detach().abs() * kept).sum() / kept.sum().clamp(min=1)

    def settle(self, weight: Tensor) -> None:
        """Nothing: the real weights go where they like."""

    def rate(self, weight: Tensor) -> float:
        return 1.0


WEIGHTS = Twn
