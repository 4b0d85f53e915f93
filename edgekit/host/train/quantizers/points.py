"""Weights at a few learned points (differentiable quantization: Polino, Pascanu, Alistarh 2018, arXiv 1802.05668).

W' is the point nearest to W. A point's gradient is the true one, the sum of dL/dW' over the weights that stand at it; W
itself gets none where only the points are learned, or dL/dW' unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.train.quantizers.base import checked_bits


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
    """One layer's 2^bits points, float32 in a file beside `bits` bits a weight. weight: what they start from.

    They start at the middles of 2^bits shares of equally many weights. passed: whether the weights learn as well.
    """

    def __init__(self, weight: Tensor, bits: int, passed: bool = False) -> None:
        super().__init__()
        checked_bits(bits, 1, "points")
        self.passed = passed
        ordered = weight.detach().flatten().sort()[0]
        count = 2**bits
        if ordered.numel() < count:
            raise BadInput(f"points: {count} points want at least as many weights, got {ordered.numel()}")
        middles = ((torch.arange(count, dtype=torch.float64) + 0.5) / count * ordered.numel()).long()
        self.points = nn.Parameter(ordered[middles].clone())

    def forward(self, weight: Tensor) -> Tensor:
        return _Nearest.apply(weight, self.points, self.codes(weight), self.passed)

    def codes(self, weight: Tensor) -> Tensor:
        """The number of the nearest point for each weight, int64; of two equally near ones the lower point's."""
        points, order = self.points.detach().sort()
        borders = (points[1:] + points[:-1]) / 2
        return order[torch.bucketize(weight.detach().contiguous(), borders)]
