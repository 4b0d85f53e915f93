"""What a quantizer of weights is, and the one ONNX operator that all of them export to."""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from edgekit.core.errors import BadInput

DOMAIN = (
    "qonnx.custom_op.general"  # of the operators that QONNX adds (Pappalardo et al. 2022, arXiv 2206.07527)
)
OPERATOR = "BipolarQuant"
BIPOLAR: ContextVar[bool] = ContextVar("two levels are exported as BipolarQuant", default=False)
MOST_BITS = 8
_CODES = 255
_LARGEST_CODE = 127  # of int8, the same on both sides


@runtime_checkable
class WeightQuantizer(Protocol):
    """A few levels, whole multiples of a scale, for a layer's weights. The weight itself stays real (the "shadow")."""

    def start(self, weight: Tensor) -> None:
        """Fill a new layer's weight [out, in, ...] from PyTorch's generator."""

    def __call__(self, weight: Tensor) -> Tensor:
        """scale * codes, with the gradient of the method."""

    def codes(self, weight: Tensor) -> Tensor | None:
        """Whole numbers, one for each weight; None: it is not of few levels when it is used. Without gradient."""

    def scale(self, weight: Tensor) -> Tensor:
        """What a code of 1 stands for: one number, or one per filter [out, 1, ...]. Without gradient."""

    def settle(self, weight: Tensor) -> None:
        """What the method does to the weight after each update, in place."""

    def rate(self, weight: Tensor) -> float:
        """The factor on the learning rate of this weight."""


def plus_minus(value: Tensor) -> Tensor:
    """+1 where value >= 0, else -1, in the value's own type."""
    one = torch.ones((), dtype=value.dtype)
    return torch.copysign(one, value + 0.0)  # -0 + 0 is +0; where() took 20 times as long


def fans(weight: Tensor) -> tuple[int, int]:
    """(fan in, fan out) of a weight [out, in, ...]: terms of one sum, and sums that one input is a term of."""
    window = math.prod(weight.shape[2:])
    return weight.shape[1] * window, weight.shape[0] * window


class _Straight(torch.autograd.Function):
    generate_vmap_rule = True  # an imported model's samples lie side by side by torch.vmap

    @staticmethod
    def forward(value: Tensor, made: Tensor) -> Tensor:
        del value
        return made.view_as(made)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        del context, inputs, output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        del context
        return gradient, None

    @staticmethod
    def symbolic(graph: Any, value: Any, made: Any) -> Any:
        del graph, value
        return made


def straight(value: Tensor, made: Tensor) -> Tensor:
    """`made` of the value, without gradient of its own; what comes back is passed to the value unchanged."""
    return _Straight.apply(value, made)


def rounded(value: Tensor, steps: int) -> Tensor:
    """The nearest multiple of 1 / steps, a half to the even one, and the gradient as it comes."""
    return straight(value, torch.round(value.detach() * steps) / steps)


class _Levels(torch.autograd.Function):
    """What activations in equal steps from 0 are in a file: QuantizeLinear and DequantizeLinear, clipped before."""

    @staticmethod
    def forward(context: Any, value: Tensor, scale: float, steps: int) -> Tensor:
        del context
        return torch.round(value / scale).clamp(0, steps) * scale

    @staticmethod
    def symbolic(graph: Any, value: Any, scale: float, steps: int) -> Any:
        low, high, step = (
            graph.op("Constant", value_t=torch.tensor(each)) for each in (0.0, scale * steps, scale)
        )
        zero = graph.op("Constant", value_t=torch.tensor(0, dtype=torch.uint8))
        clipped = graph.op("Clip", value, low, high) if steps < _CODES else value  # 8 bits end by themselves
        codes = graph.op("QuantizeLinear", clipped, step, zero)
        return graph.op("DequantizeLinear", codes, step, zero).setType(value.type())


def levels(value: Tensor, scale: float, steps: int) -> Tensor:
    """The nearest of 0, scale, ..., steps * scale, for export alone: a pair that integer kernels are made of."""
    return _Levels.apply(value, scale, steps)


class _SignedLevels(torch.autograd.Function):
    """The same on both sides of 0."""

    @staticmethod
    def forward(context: Any, value: Tensor, scale: float, steps: int) -> Tensor:
        del context
        return torch.round(value / scale).clamp(-steps, steps) * scale

    @staticmethod
    def symbolic(graph: Any, value: Any, scale: float, steps: int) -> Any:
        low, high, step = (
            graph.op("Constant", value_t=torch.tensor(each))
            for each in (-scale * steps, scale * steps, scale)
        )
        zero = graph.op("Constant", value_t=torch.tensor(0, dtype=torch.int8))
        codes = graph.op("QuantizeLinear", graph.op("Clip", value, low, high), step, zero)
        return graph.op("DequantizeLinear", codes, step, zero).setType(value.type())


def signed_levels(value: Tensor, scale: float, steps: int) -> Tensor:
    """The nearest of -steps * scale, ..., steps * scale, for export alone."""
    return _SignedLevels.apply(value, scale, steps)


def checked_bits(bits: int, fewest: int, what: str) -> int:
    """The number, if there are so few and so many. Raises BadInput."""
    if not fewest <= bits <= MOST_BITS:
        raise BadInput(f"{what}: bits must be {fewest} to {MOST_BITS}, got {bits}")
    return bits


class _Bipolar(torch.autograd.Function):
    """BipolarQuant as PyTorch's exporter writes it; in a pass without gradients the same numbers."""

    @staticmethod
    def forward(context: Any, value: Tensor, scale: Tensor) -> Tensor:
        del context
        return plus_minus(value) * scale

    @staticmethod
    def symbolic(graph: Any, value: Any, scale: Any) -> Any:
        return graph.op(f"{DOMAIN}::{OPERATOR}", value, scale).setType(value.type())


def bipolar(value: Tensor, scale: Tensor) -> Tensor:
    """scale * (+1 where value >= 0, else -1): for export alone, without gradient. The scale becomes a constant."""
    return _Bipolar.apply(value, _constant(scale))


class _Decoded(torch.autograd.Function):
    """DequantizeLinear as PyTorch's exporter writes it. codes: int8; scale: float32 [] or [out]."""

    @staticmethod
    def forward(context: Any, codes: Tensor, scale: Tensor) -> Tensor:
        del context
        return codes.float() * scale.reshape(-1, *[1] * (codes.ndim - 1))

    @staticmethod
    def symbolic(graph: Any, codes: Any, scale: Any) -> Any:
        return graph.op("DequantizeLinear", codes, scale, axis_i=0)


def decoded(codes: Tensor, scale: Tensor) -> Tensor:
    """scale * codes, for export alone: both become constants, the codes int8."""
    return _Decoded.apply(_constant(codes), _constant(scale))


def table_step(levels: Tensor) -> Tensor:
    """What a code of 1 stands for where the largest of a few free levels is the code 127."""
    return levels.abs().max().clamp(min=torch.finfo(levels.dtype).tiny * _LARGEST_CODE) / _LARGEST_CODE


@runtime_checkable
class Adopting(Protocol):
    """A quantizer that learns something of its own, and starts that from weights that are trained already."""

    def adopt(self, weight: Tensor) -> None:
        """Look at the weight [out, in, ...]; it stays what it is."""


def adopt(quantizer: WeightQuantizer, weight: Tensor) -> None:
    """Give a quantizer weights that are trained already, in place of start()."""
    quantizer.settle(weight)
    if isinstance(quantizer, Adopting):
        quantizer.adopt(weight)


def coded(quantizer: WeightQuantizer, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """(codes, int8; scale, one number or one per filter) of a weight, as files hold them; None: they cannot.

    DoReFa's of 8 bits are odd numbers up to 255: such weights are floats in a file.
    """
    codes, scale = quantizer.codes(weight.detach()), quantizer.scale(weight.detach())
    if codes is None or float(codes.abs().max()) > _LARGEST_CODE:
        return None
    return codes.to(torch.int8), scale.reshape(()) if scale.numel() == 1 else scale.flatten()


def _constant(value: Tensor) -> Tensor:
    """The same numbers where a trace cannot see where they come from: it keeps them as they are."""
    return torch.from_numpy(value.detach().numpy().copy())
