"""Ternary weights with two learned scales a layer (TTQ: Zhu, Han, Mao, Dally 2017, arXiv 1612.01064).

W' = {-w_n, 0, +w_p}: zero where |W| <= t * max |W|. The scales' gradients are the true ones: dL/dw_p is the sum of
dL/dW' over the positive weights, dL/dw_n minus the sum over the negative ones. W gets dL/dW' times w_p, 1, or w_n.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.train.quantizers.base import fans, table_step

THRESHOLD = 0.05  # of max |W|, the authors'


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, positive: Tensor, negative: Tensor, threshold: float) -> Tensor:
        limit = threshold * weight.abs().max()
        above, below = weight > limit, weight < -limit
        context.save_for_backward(above, below, positive, negative)
        return above * positive - below * negative

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        above, below, positive, negative = context.saved_tensors
        one = torch.ones_like(gradient)
        factor = torch.where(above, positive, torch.where(below, negative, one))
        return gradient * factor, (gradient * above).sum(), -(gradient * below).sum(), None


class Ttq(nn.Module):
    """One layer's. In a file: two bits each, a table of three levels and one float32 a layer.

    The levels of a file are multiples of 1/127 of the larger scale: in evaluation mode the weights stand there. Weight
    decay is for the real weights alone. threshold: of the largest magnitude. positive, negative: what the scales start
    at; 0: at the mean magnitude of the weights that they stand for.
    """

    def __init__(self, threshold: float = THRESHOLD, positive: float = 1.0, negative: float = 1.0) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise BadInput(f"ttq: threshold must be above 0 and below 1, got {threshold}")
        if min(positive, negative) < 0:
            raise BadInput(f"ttq: scales must be at least 0, got {positive} and {negative}")
        self.threshold = threshold
        self._first = (float(positive), float(negative))
        self.positive = nn.Parameter(torch.tensor(self._first[0] or 1.0))
        self.negative = nn.Parameter(torch.tensor(self._first[1] or 1.0))

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))
        self.adopt(weight)

    def adopt(self, weight: Tensor) -> None:
        """Start the scales where the weights are, if nothing else was said."""
        real = weight.detach()
        for first, scale, sign in zip(self._first, (self.positive, self.negative), (1, -1), strict=True):
            chosen = real[sign * real > self.threshold * real.abs().max()]
            if not first and chosen.numel():
                with torch.no_grad():
                    scale.copy_(chosen.abs().mean())

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training:
            return self.codes(weight) * self.scale(weight)
        return _Scaled.apply(weight, self.positive, self.negative, self.threshold)

    def signs(self, weight: Tensor) -> Tensor:
        """-1, 0 or +1 for each weight. Without gradient."""
        real = weight.detach()
        return torch.sign(real) * (real.abs() > self.threshold * real.abs().max())

    def codes(self, weight: Tensor) -> Tensor:
        """Three whole numbers from -127 to 127, one of them 0, the largest magnitude 127. Without gradient."""
        signs, step = self.signs(weight), self.scale(weight)
        above, below = (torch.round(scale.detach() / step) for scale in (self.positive, self.negative))
        return torch.where(signs > 0, above, torch.where(signs < 0, -below, torch.zeros(())))

    def scale(self, weight: Tensor) -> Tensor:
        """What a code of 1 stands for: the larger of both scales over 127."""
        del weight
        return table_step(torch.stack([self.positive.detach(), self.negative.detach()]))

    def settle(self, weight: Tensor) -> None:
        """Nothing: the real weights go where they like."""

    def rate(self, weight: Tensor) -> float:
        return 1.0


WEIGHTS = Ttq
