"""Binary activations: the sign, whose gradient passes unchanged where |x| <= 1.

Courbariaux et al. 2016, arXiv 1602.02830.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.host.train.quantizers.base import BIPOLAR, bipolar, plus_minus


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        context.save_for_backward(
            value.abs().le_(1)
        )  # 1 and 0 in the value's own type: no cast on the way back
        return plus_minus(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (inside,) = context.saved_tensors
        return gradient * inside


def sign(value: Tensor) -> Tensor:
    """+1 where value >= 0, else -1; backward the gradient of clip(value, -1, 1), both ends included."""
    if torch.onnx.is_in_onnx_export():
        one = torch.ones(())
        return bipolar(value, one) if BIPOLAR.get() else torch.where(value >= 0, one, -one)
    return _Sign.apply(value)


class Sign(nn.Module):
    """sign as a layer."""

    def forward(self, value: Tensor) -> Tensor:
        return sign(value)


ACTIVATIONS = Sign
