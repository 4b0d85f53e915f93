"""Layers whose weights are quantized in every pass, and what happens to those weights between steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.host.train.fit import Hook, Moment
from edgekit.host.train.quantizers import Deterministic, WeightQuantizer
from edgekit.host.train.quantizers.base import bipolar, decoded

_BIPOLAR: ContextVar[bool] = ContextVar("weights are exported as BipolarQuant", default=False)


class QuantizedConv2d(nn.Conv2d):
    """A convolution with quantized weights, binary where none are named, and no bias. Padding is by true zeros."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        quantizer: WeightQuantizer | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__(channels, width, kernel, stride, padding, groups=groups, bias=False)
        self.quantizer: WeightQuantizer = quantizer or Deterministic()
        self.quantizer.start(self.weight)

    def forward(self, value: Tensor) -> Tensor:
        return functional.conv2d(value, quantized(self), None, self.stride, self.padding, 1, self.groups)


class QuantizedLinear(nn.Linear):
    """A dense layer with quantized weights, binary where nothing else is said, and no bias."""

    def __init__(self, channels: int, width: int, quantizer: WeightQuantizer | None = None) -> None:
        super().__init__(channels, width, bias=False)
        self.quantizer: WeightQuantizer = quantizer or Deterministic()
        self.quantizer.start(self.weight)

    def forward(self, value: Tensor) -> Tensor:
        return functional.linear(value, quantized(self))


QuantizedLayer: TypeAlias = "QuantizedConv2d | QuantizedLinear"


def quantized(layer: QuantizedLayer) -> Tensor:
    """The layer's weight as it is multiplied; in an export codes and what makes numbers of them.

    Raises BadInput in an export whose codes no file can hold.
    """
    quantizer, weight = layer.quantizer, layer.weight
    if not torch.onnx.is_in_onnx_export():
        return quantizer(weight)
    if _BIPOLAR.get():
        return bipolar(weight, quantizer.scale(weight))
    return decoded(quantizer.codes(weight), quantizer.scale(weight))


@contextlib.contextmanager
def exported_as_bipolar() -> Iterator[None]:
    """Within, exports write BipolarQuant for the weights, as QONNX has it: for weights of two levels alone."""
    token = _BIPOLAR.set(True)
    try:
        yield
    finally:
        _BIPOLAR.reset(token)


def quantized_layers(module: nn.Module) -> Iterator[QuantizedLayer]:
    """Every layer of the module with quantized weights, in order."""
    for layer in module.modules():
        if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
            yield layer


class Settle(Hook):
    """After each update, what each quantizer does to its real weights: clips them, takes means out."""

    def __init__(self, module: nn.Module) -> None:
        self._layers = tuple(quantized_layers(module))

    def after_step(self, moment: Moment) -> None:
        for layer in self._layers:
            layer.quantizer.settle(layer.weight)


def parameter_groups(module: nn.Module, lr: float) -> list[dict[str, object]]:
    """An optimizer's groups: each quantized weight at `lr` times its quantizer's rate, all others at `lr`."""
    layers = list(quantized_layers(module))
    taken = {id(layer.weight) for layer in layers}
    groups: list[dict[str, object]] = [
        {"params": [layer.weight], "lr": lr * layer.quantizer.rate(layer.weight)} for layer in layers
    ]
    others = [each for each in module.parameters() if each.requires_grad and id(each) not in taken]
    return [*groups, {"params": others, "lr": lr}] if others else groups
