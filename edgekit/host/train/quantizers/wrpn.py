"""Weights in equal steps between -1 and 1 (WRPN: Mishra, Nurvitadhi, Cook, Marr 2017, arXiv 1709.01134).

Its activations are DoReFa's. The other half of the method is a network with wider layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.host.train.quantizers.base import checked_bits, fans, rounded


@dataclass(frozen=True)
class ClippedWeights:
    """WRPN's weights: W clipped to [-1, 1], then the nearest multiple of 1 / (2^(bits-1) - 1); no gradient outside.

    bits: 2 to 8. Two bits are -1, 0, +1 with a threshold of 1/2: a network that starts with small weights is all zero
    there and stays so. Start from a trained one, or take more bits.
    """

    bits: int

    def __post_init__(self) -> None:
        checked_bits(self.bits, 2, "weights of WRPN")

    @property
    def steps(self) -> int:
        """How many levels are above 0: 2^(bits-1) - 1, as the paper has it."""
        return int(2 ** (self.bits - 1) - 1)

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))

    def __call__(self, weight: Tensor) -> Tensor:
        return rounded(weight.clamp(-1, 1), self.steps)

    def codes(self, weight: Tensor) -> Tensor:
        """Whole numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1. Without gradient."""
        return torch.round(weight.detach().clamp(-1, 1) * self.steps)

    def scale(self, weight: Tensor) -> Tensor:
        """What a code of 1 stands for: known from the bits."""
        return weight.detach().new_tensor(1 / self.steps)

    def settle(self, weight: Tensor) -> None:
        """Nothing: the clip is part of going forward."""

    def rate(self, weight: Tensor) -> float:
        return 1.0


WEIGHTS = ClippedWeights
