"""Weights at a few learned points (differentiable quantization: Polino, Pascanu, Alistarh 2018, arXiv 1802.05668).

W' is the point nearest to W. A point's gradient is the true one, the sum of dL/dW' over the weights that stand at it; W
itself gets dL/dW' unchanged, or none where only the points are learned.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.train.quantizers.base import checked_bits, fans, table_step

_MOST_BITS = 4


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, points: Tensor, codes: Tensor, passed: bool) -> Tensor:
        context.save_for_backward(codes)
        context.count, context.passed = len(points), passed
        del weight
        return points[codes]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (codes,) = context.saved_tensors
        sums = gradient.new_zeros(context.count).index_add(0, codes.flatten(), gradient.flatten())
        return gradient if context.passed else None, sums, None, None


class Points(nn.Module):
    """One layer's 2^bits points. In a file: `bits` bits a weight, a table of levels and one float32.

    They start at the middles of 2^bits shares of equally many weights. passed: whether the weights learn as well. The
    levels of a file are multiples of 1/127 of the largest: in evaluation mode the weights stand there.
    """

    def __init__(self, bits: int, passed: bool = True) -> None:
        super().__init__()
        self.bits, self.passed = checked_bits(bits, 1, "points"), passed
        if bits > _MOST_BITS:
            raise BadInput(f"points: bits must be 1 to {_MOST_BITS}, got {bits}: more levels need no table")
        self.points = nn.Parameter(torch.linspace(-1, 1, 2**bits))

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))
        self.adopt(weight)

    def adopt(self, weight: Tensor) -> None:
        """Put the points where the weights are."""
        ordered = weight.detach().flatten().sort()[0]
        count = 2**self.bits
        if ordered.numel() < count:
            raise BadInput(f"points: {count} points want at least as many weights, got {ordered.numel()}")
        middles = ((torch.arange(count, dtype=torch.float64) + 0.5) / count * ordered.numel()).long()
        with torch.no_grad():
            self.points.copy_(ordered[middles])

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training:
            return self.codes(weight) * self.scale(weight)
        return _Nearest.apply(weight, self.points, self.numbers(weight), self.passed)

    def numbers(self, weight: Tensor) -> Tensor:
        """The number of the nearest point for each weight, int64; of two equally near ones the lower point's."""
        points, order = self.points.detach().sort()
        borders = (points[1:] + points[:-1]) / 2
        return order[torch.bucketize(weight.detach().contiguous(), borders)]

    def codes(self, weight: Tensor) -> Tensor:
        """Whole numbers from -127 to 127, at most 2^bits different ones. Without gradient."""
        return torch.round(self.points.detach() / self.scale(weight))[self.numbers(weight)]

    def scale(self, weight: Tensor) -> Tensor:
        """What a code of 1 stands for: the largest point's magnitude over 127."""
        del weight
        return table_step(self.points.detach())

    def settle(self, weight: Tensor) -> None:
        """Nothing: the real weights go where they like."""

    def rate(self, weight: Tensor) -> float:
        return 1.0


WEIGHTS = Points
