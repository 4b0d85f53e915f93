"""Activations of two bits that tell three levels: -1, 0 and 1, as BNN-PYNQ's W1A2 networks have them.

The nearest level (a half goes to 0), with the sign's gradient: unchanged where |x| <= 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.host.train.quantizers.base import DOMAIN

_BITS = 2


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        context.save_for_backward(value.abs().le_(1))
        return value.round().clamp_(-1, 1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (inside,) = context.saved_tensors
        return gradient * inside

    @staticmethod
    def symbolic(graph: Any, value: Any) -> Any:
        scale, zero, bits = (
            graph.op("Constant", value_t=torch.tensor(float(number))) for number in (1, 0, _BITS)
        )
        quant = graph.op(
            f"{DOMAIN}::Quant",
            *(value, scale, zero, bits),
            signed_i=1,
            narrow_i=1,
            rounding_mode_s="ROUND",
        )
        return quant.setType(value.type())


class Ternary(nn.Module):
    """The layer."""

    def forward(self, value: Tensor) -> Tensor:
        return _Ternary.apply(value)


ACTIVATIONS = Ternary
