"""WAGE's update and loss: integers instead of an optimizer (Wu, Li, Chen, Shi 2018, arXiv 1802.04680).

g <- eta * g / Shift(max |g|), rounded up or down at random so that it is right on average, over 2^(bits-1); the weight
loses it. eta is a power of two. There is no momentum, and nothing but weights is trained. How large the loss is does
not matter: every gradient is brought to the same size, so rates are no rates of SGD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.host.train.quantized import quantized_weights
from edgekit.host.train.quantizers.wage import WageWeights, shift


class WageUpdate:
    """Weights lose whole multiples of 2^(1-bits). rate: eta at the start; the schedule "lr" is a factor on it."""

    def __init__(self, module: nn.Module, rate: float, bits: int = 8) -> None:
        found = [
            held for held, _, quantizer in quantized_weights(module) if isinstance(quantizer, WageWeights)
        ]
        others = len(list(module.parameters())) - len(found)
        if others or not found:
            raise BadInput(
                f"wage: trains its own weights and nothing else, got {len(found)} of them and {others} "
                "other parameters: take a network without biases and batch norms, and all layers quantized"
            )
        _power(rate)
        self._weights, self._rate, self._steps = found, rate, 2 ** (bits - 1)
        self._eta = rate

    def set(self, values: Mapping[str, float]) -> None:
        self._eta = _power(self._rate * values.get("lr", 1.0))

    def step(self, loss: Tensor) -> bool:
        for weight in self._weights:
            weight.grad = None
        loss.backward()
        with torch.no_grad():
            for weight in self._weights:
                if weight.grad is not None:
                    weight.sub_(stochastic(weight.grad, self._eta) / self._steps)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: it remembers nothing."""


def stochastic(gradient: Tensor, eta: float) -> Tensor:
    """eta * g / Shift(max |g|) as whole numbers: the lower magnitude, and one more with the chance of the rest."""
    scaled = eta * gradient / shift(gradient.abs().max())
    whole = scaled.abs().floor()
    more = torch.rand(scaled.shape) < scaled.abs() - whole
    return torch.sign(scaled) * (whole + more)


def sum_of_squares(scores: Tensor, classes: Tensor) -> Tensor:
    """1/2 sum (y - score)^2 over samples and classes; y: 1 for the sample's class, 0 for all others."""
    targets = functional.one_hot(classes, scores.shape[-1]).to(scores.dtype)
    return 0.5 * (targets - scores).square().sum()


def _power(eta: float) -> float:
    if not eta > 0 or not math.log2(eta).is_integer():
        raise BadInput(f"wage: the rate must be a power of two at every step, got {eta}")
    return eta
