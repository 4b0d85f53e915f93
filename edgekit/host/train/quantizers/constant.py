"""1-bit weights with a scale that the layer's shape gives (McDonnell 2018, arXiv 1802.08530).

W' = sqrt(gain / fan in) * sign(W): the standard deviation of He's initial weights. The gradient with respect to W' is
passed to W unchanged: neither clipped nor scaled, and the real weights are never clamped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.core.errors import BadInput
from edgekit.host.train.quantizers.base import fans, plus_minus, straight


@dataclass(frozen=True)
class Constant:
    """gain: 2 in residual networks, 4 in plain ones. In a file: one bit each; the scale is one number."""

    gain: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.gain < math.inf:
            raise BadInput(f"constant: gain must be above 0, got {self.gain}")

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, self._spread(weight))

    def __call__(self, weight: Tensor) -> Tensor:
        return straight(weight, plus_minus(weight.detach()) * self._spread(weight))

    def codes(self, weight: Tensor) -> Tensor:
        """-1 or +1 for each weight. Without gradient."""
        return plus_minus(weight.detach())

    def scale(self, weight: Tensor) -> Tensor:
        return torch.tensor(self._spread(weight))

    def settle(self, weight: Tensor) -> None:
        """Nothing: the real weights go where they like."""

    def rate(self, weight: Tensor) -> float:
        return 1.0

    def _spread(self, weight: Tensor) -> float:
        return math.sqrt(self.gain / fans(weight)[0])


WEIGHTS = Constant
