"""16-bit floats in training: mixed precision (Micikevicius et al. 2018, arXiv 1710.03740).

Weights, activations and what comes back through a product are rounded to the format; products are summed in float32.
The weights that are updated are float32, the master copy; without it updates below half a step of the format vanish.
Batch norms, the softmax and the loss stay float32. The casts are explicit, so that what a test sees is what the format
does, whatever a CPU's own kernels would do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.host.train.quantizers.base import fans

FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16}


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        context.dtype = dtype
        return value.to(dtype).to(value.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(context.dtype).to(gradient.dtype), None

    @staticmethod
    def symbolic(graph: Any, value: Any, dtype: Any) -> Any:
        del graph, dtype
        return value


def rounded_to(value: Tensor, format: str) -> Tensor:  # noqa: A002  (the term)
    """The nearest numbers of the format, in float32; what comes back is rounded to it as well."""
    if format not in FORMATS:
        raise BadInput(f"half: format must be one of {', '.join(FORMATS)}, got {format!r}")
    return _Rounded.apply(value, FORMATS[format])


class HalfWeights:
    """Weights as the products see them. master: whether the updated ones are float32. A file holds those."""

    def __init__(self, format: str = "fp16", master: bool = True) -> None:  # noqa: A002
        rounded_to(torch.zeros(1), format)
        self.format, self.master = format, master

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))
        self.settle(weight)

    def __call__(self, weight: Tensor) -> Tensor:
        return rounded_to(weight, self.format)

    def codes(self, weight: Tensor) -> None:
        """None: they are floats."""

    def scale(self, weight: Tensor) -> Tensor:
        return weight.new_ones(())

    def settle(self, weight: Tensor) -> None:
        """Without a master copy the updated weights are of the format."""
        if not self.master:
            with torch.no_grad():
                weight.copy_(rounded_to(weight, self.format))

    def rate(self, weight: Tensor) -> float:
        return 1.0


class HalfValues(nn.Module):
    """Values of the format, both ways."""

    def __init__(self, format: str = "fp16") -> None:  # noqa: A002
        super().__init__()
        rounded_to(torch.zeros(1), format)
        self.format = format

    def forward(self, value: Tensor) -> Tensor:
        return rounded_to(value, self.format)


class HalfActivations(HalfValues):
    """The same, in the place of a ReLU and behind one."""

    def forward(self, value: Tensor) -> Tensor:
        return rounded_to(functional.relu(value), self.format)


WEIGHTS = HalfWeights
ACTIVATIONS = HalfActivations
ERRORS = HalfValues
INPUTS = HalfValues
OUTPUTS = HalfValues
