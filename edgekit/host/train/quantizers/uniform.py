"""Equal steps: quantization-aware training of weights and activations, with observed or with learned ranges.

Observed: a weight's step follows its largest magnitude, as in Jacob et al. 2018 (arXiv 1712.05877); activations keep a
moving average of the largest value of a batch. Learned: the step is trained (LSQ: Esser, McKinstry, Bablani, Appuswamy,
Modha 2020, arXiv 1902.08153): with v / s between -Qn and Qp its gradient is round(v / s) - v / s, outside -Qn or Qp,
all of it times 1 / sqrt(n Qp) for n values. Values get what comes back where they are inside, 0 elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.train.quantizers.base import checked_bits, fans, levels

RANGES = ("observed", "learned")
_MOMENTUM = 0.05  # of a batch in the moving average
_TINIEST = 1e-12


class _Steps(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        return torch.round(value / step).clamp(low, high) * step

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        value, step, context.low, context.high = inputs
        context.save_for_backward(value, step)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        value, step = context.saved_tensors
        scaled = value / step
        inside = (scaled >= context.low) & (scaled <= context.high)
        slope = torch.where(inside, torch.round(scaled) - scaled, scaled.clamp(context.low, context.high))
        whole = gradient * slope
        axes = [axis for axis in range(whole.ndim) if step.ndim == 0 or step.shape[axis] == 1]
        of_step = whole.sum(axes, keepdim=step.ndim > 0) if axes else whole
        return gradient * inside, of_step, None, None


class _Scaled(torch.autograd.Function):
    """The identity whose gradient is multiplied."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, factor: float) -> Tensor:
        del factor
        return value.view_as(value)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        del output
        context.factor = inputs[1]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None


class UniformWeights(nn.Module):
    """Codes from -(2^(bits-1) - 1) to 2^(bits-1) - 1, one step for a layer or for each filter.

    bits: 2 to 8. steps: "observed" or "learned"; a learned step starts at 2 mean |W| / sqrt(Qp), as LSQ's.
    """

    def __init__(self, bits: int = 8, per_filter: bool = True, steps: str = "observed") -> None:
        super().__init__()
        self.high = 2 ** (checked_bits(bits, 2, "uniform weights") - 1) - 1
        if steps not in RANGES:
            raise BadInput(f"uniform weights: steps must be one of {', '.join(RANGES)}, got {steps!r}")
        self.per_filter = per_filter
        self.step = nn.Parameter(torch.empty(0)) if steps == "learned" else None

    def start(self, weight: Tensor) -> None:
        with torch.no_grad():
            weight.normal_(0, math.sqrt(2 / fans(weight)[0]))
        self.adopt(weight)

    def adopt(self, weight: Tensor) -> None:
        """Start a learned step where the weights are."""
        if self.step is not None:
            spread = weight.detach().abs()
            mean = spread.mean(self._axes(weight), keepdim=True) if self.per_filter else spread.mean()
            self.step = nn.Parameter((2 * mean / math.sqrt(self.high)).clamp(min=_TINIEST))

    def forward(self, weight: Tensor) -> Tensor:
        step = self.scale(weight) if self.step is None else self._learning(weight)
        return _Steps.apply(weight, step, -self.high, self.high)

    def codes(self, weight: Tensor) -> Tensor:
        """Whole numbers. Without gradient."""
        return torch.round(weight.detach() / self.scale(weight)).clamp(-self.high, self.high)

    def scale(self, weight: Tensor) -> Tensor:
        """What a code of 1 stands for: one number, or [out, 1, ...]. Without gradient."""
        if self.step is not None:
            return self.step.detach().abs().clamp(min=_TINIEST)
        spread = weight.detach().abs()
        largest = spread.amax(self._axes(weight), keepdim=True) if self.per_filter else spread.max()
        return largest.clamp(min=_TINIEST) / self.high

    def settle(self, weight: Tensor) -> None:
        """Nothing: the real weights go where they like."""

    def rate(self, weight: Tensor) -> float:
        return 1.0

    def _learning(self, weight: Tensor) -> Tensor:
        assert self.step is not None  # noqa: S101
        shared = weight.numel() // self.step.numel()
        return _Scaled.apply(self.step.abs().clamp(min=_TINIEST), 1 / math.sqrt(shared * self.high))

    def _axes(self, weight: Tensor) -> tuple[int, ...]:
        return tuple(range(1, weight.ndim))


class UniformActivations(nn.Module):
    """Activations from 0 to steps * scale in 2^bits levels, in the place of a ReLU.

    ranges: "observed": the range follows the largest value of a batch, and stands still without training; "learned":
    LSQ's step, which starts from the first batch.
    """

    largest: Tensor
    seen: Tensor

    def __init__(self, bits: int = 8, ranges: str = "learned") -> None:
        super().__init__()
        self.steps = 2 ** checked_bits(bits, 1, "uniform activations") - 1
        if ranges not in RANGES:
            raise BadInput(f"uniform activations: ranges must be one of {', '.join(RANGES)}, got {ranges!r}")
        self.step = nn.Parameter(torch.tensor(1.0 / self.steps)) if ranges == "learned" else None
        self.follows = True  # batches as they come; not where samples are put side by side by torch.vmap
        self.register_buffer("largest", torch.tensor(1.0))
        self.register_buffer("seen", torch.tensor(False))

    @property
    def scale(self) -> float:
        """What a code of 1 stands for."""
        return float(self._scale())

    def observe(self, value: Tensor) -> None:
        """Take a batch into account: the first one wholly, later ones for an observed range only."""
        first = not bool(self.seen)
        with torch.no_grad():
            if first and self.step is not None:
                self.step.copy_(2 * value.abs().mean() / math.sqrt(self.steps) + _TINIEST)
            top = value.amax().clamp(min=_TINIEST)
            self.largest.copy_(top if first else self.largest + _MOMENTUM * (top - self.largest))
            self.seen.fill_(True)

    def forward(self, value: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return levels(value, self.scale, self.steps)
        if self.training and self.follows:
            self.observe(value.detach())
        if self.step is None:
            return _Steps.apply(value, self._scale(), 0, self.steps)
        count = value.numel() / max(1, len(value))
        return _Steps.apply(
            value, _Scaled.apply(self._learned(), 1 / math.sqrt(count * self.steps)), 0, self.steps
        )

    def _learned(self) -> Tensor:
        assert self.step is not None  # noqa: S101
        return self.step.abs().clamp(min=_TINIEST)

    def _scale(self) -> Tensor:
        return self.largest / self.steps if self.step is None else self._learned().detach()


WEIGHTS = UniformWeights
ACTIVATIONS = UniformActivations
