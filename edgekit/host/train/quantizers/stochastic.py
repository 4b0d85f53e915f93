"""BinaryConnect's weights drawn anew in each pass (Courbariaux, Bengio, David 2015, arXiv 1511.00363, section 2.3).

W' is +1 with probability clip((W + 1) / 2, 0, 1), else -1; the gradient with respect to W' is passed to W unchanged,
and W is clipped to [-1, 1] after each update. Without training there are two ways: the authors' code computes with the
real weights, which saves nothing on a board; or with their signs, as the deterministic method does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.host.train.quantizers.base import plus_minus, straight
from edgekit.host.train.quantizers.deterministic import Deterministic


class Stochastic(nn.Module):
    """real: in evaluation the real weights, which a file holds as floats; else their signs, one bit each."""

    def __init__(self, real: bool = True) -> None:
        super().__init__()
        self.real = real
        self._signs = Deterministic()

    def start(self, weight: Tensor) -> None:
        self._signs.start(weight)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            chance = ((weight.detach() + 1) / 2).clamp(0, 1)
            return straight(weight, torch.where(torch.rand_like(chance) < chance, 1.0, -1.0).to(weight.dtype))
        return weight if self.real else plus_minus(weight)

    def codes(self, weight: Tensor) -> Tensor | None:
        """-1 or +1 for each weight; None: the real ones are computed with. Without gradient."""
        return None if self.real else self._signs.codes(weight)

    def scale(self, weight: Tensor) -> Tensor:
        return self._signs.scale(weight)

    def settle(self, weight: Tensor) -> None:
        self._signs.settle(weight)

    def rate(self, weight: Tensor) -> float:
        return self._signs.rate(weight)


WEIGHTS = Stochastic
