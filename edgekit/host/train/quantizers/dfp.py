"""Dynamic fixed point in training (Das et al. 2018, arXiv 1802.00930): integers with one exponent for a whole tensor.

Weights, activations and what comes back through a product are rounded to it in each pass; batch norms, the loss and the
weights that are updated stay float32. Products are computed in float32 here: what they are of is exact, and their sums
round where a board that adds short chains of integers to a float32 rounds as well, if not at the same places.
host/train/dfp16.py has the integers themselves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.host.train.quantizers.base import fans

_FEWEST, _MOST = 4, 16


def step_of(value: Tensor, bits: int) -> Tensor:
    """2^E of the shared exponent: E = exponent of the largest magnitude - (bits - 2), one more where that rounds up."""
    top = value.abs().max()
    _, exponent = torch.frexp(torch.where(top > 0, top, torch.ones_like(top)))
    step = torch.exp2((exponent - 1 - (bits - 2)).to(value.dtype))
    return torch.where(torch.round(top / step) > 2 ** (bits - 1) - 1, 2 * step, step)


class _Fixed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, bits: int) -> Tensor:
        context.bits = bits
        step = step_of(value, bits)
        return torch.round(value / step) * step

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        step = step_of(gradient, context.bits)
        return torch.round(gradient / step) * step, None

    @staticmethod
    def symbolic(graph: Any, value: Any, bits: int) -> Any:
        del graph, bits
        return value


def fixed(value: Tensor, bits: int) -> Tensor:
    """The value in dynamic fixed point of so many bits; what comes back is rounded in the same way."""
    return _Fixed.apply(value, bits)


def _checked(bits: int) -> int:
    if not _FEWEST <= bits <= _MOST:
        raise BadInput(f"dfp: bits must be {_FEWEST} to {_MOST}, got {bits}")
    return bits


class DfpWeights:
    """Weights as the products see them. A file holds the float32 ones: the paper has no format for boards."""

    def __init__(self, bits: int = 16) -> None:
        self.bits = _checked(bits)

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))

    def __call__(self, weight: Tensor) -> Tensor:
        return fixed(weight, self.bits)

    def codes(self, weight: Tensor) -> None:
        """None: 16 bits are more than files hold codes of."""

    def scale(self, weight: Tensor) -> Tensor:
        return step_of(weight.detach(), self.bits)

    def settle(self, weight: Tensor) -> None:
        """Nothing: the master copy is float32."""

    def rate(self, weight: Tensor) -> float:
        return 1.0


class DfpValues(nn.Module):
    """Values in dynamic fixed point, both ways; without training as they are."""

    def __init__(self, bits: int = 16) -> None:
        super().__init__()
        self.bits = _checked(bits)

    def forward(self, value: Tensor) -> Tensor:
        return fixed(value, self.bits) if self.training else value


class DfpActivations(DfpValues):
    """The same, in the place of a ReLU and behind one."""

    def forward(self, value: Tensor) -> Tensor:
        return super().forward(functional.relu(value))


WEIGHTS = DfpWeights
ACTIVATIONS = DfpActivations
ERRORS = DfpValues
INPUTS = DfpValues
OUTPUTS = DfpValues
