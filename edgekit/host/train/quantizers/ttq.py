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
from edgekit.host.train.quantizers.base import fans

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
    """One layer's. In a file: two bits each, and two float32 a layer. Weight decay is for the real weights alone.

    threshold: of the largest magnitude. positive, negative: what the scales start at.
    """

    def __init__(self, threshold: float = THRESHOLD, positive: float = 1.0, negative: float = 1.0) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise BadInput(f"ttq: threshold must be above 0 and below 1, got {threshold}")
        self.threshold = threshold
        self.positive = nn.Parameter(torch.tensor(float(positive)))
        self.negative = nn.Parameter(torch.tensor(float(negative)))

    def start(self, weight: Tensor) -> None:
        """Fill a new layer's weight from PyTorch's generator."""
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))

    def forward(self, weight: Tensor) -> Tensor:
        return _Scaled.apply(weight, self.positive, self.negative, self.threshold)

    def codes(self, weight: Tensor) -> Tensor:
        """-1, 0 or +1 for each weight. Without gradient."""
        real = weight.detach()
        return torch.sign(real) * (real.abs() > self.threshold * real.abs().max())


WEIGHTS = Ttq
