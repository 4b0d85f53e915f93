"""Layers with binary weights, the orders that binary networks put them in, and what happens to them between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.host.train.fit import Hook, Moment
from edgekit.host.train.quantizers import Deterministic, PerFilter, Sign, WeightQuantizer
from edgekit.host.train.quantizers.base import bipolar

EPSILON, MOMENTUM = 1e-4, 0.1  # of batch norms: BinaryNet's

Activation: TypeAlias = "Callable[[], nn.Module]"


class BinaryConv2d(nn.Conv2d):
    """A convolution with binary weights and no bias. Padding is by true zeros, as PyTorch pads."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        quantizer: WeightQuantizer | None = None,
    ) -> None:
        super().__init__(channels, width, kernel, stride, padding, bias=False)
        self.quantizer: WeightQuantizer = quantizer or Deterministic()
        self.quantizer.start(self.weight)

    def forward(self, value: Tensor) -> Tensor:
        return functional.conv2d(value, quantized(self), None, self.stride, self.padding)


class BinaryLinear(nn.Linear):
    """A dense layer with binary weights and no bias."""

    def __init__(self, channels: int, width: int, quantizer: WeightQuantizer | None = None) -> None:
        super().__init__(channels, width, bias=False)
        self.quantizer: WeightQuantizer = quantizer or Deterministic()
        self.quantizer.start(self.weight)

    def forward(self, value: Tensor) -> Tensor:
        return functional.linear(value, quantized(self))


BinaryLayer: TypeAlias = "BinaryConv2d | BinaryLinear"


def quantized(layer: BinaryLayer) -> Tensor:
    """The layer's weight as it is multiplied; in an export the operator that makes it of the real one."""
    if torch.onnx.is_in_onnx_export():
        return bipolar(layer.weight, layer.quantizer.scale(layer.weight))
    return layer.quantizer(layer.weight)


def binary_layers(module: nn.Module) -> Iterator[BinaryLayer]:
    """Every layer of the module with binary weights, in order."""
    for layer in module.modules():
        if isinstance(layer, (BinaryConv2d, BinaryLinear)):
            yield layer


class Settle(Hook):
    """After each update, what each quantizer does to its real weights: clips them, takes means out."""

    def __init__(self, module: nn.Module) -> None:
        self._layers = tuple(binary_layers(module))

    def after_step(self, moment: Moment) -> None:
        for layer in self._layers:
            layer.quantizer.settle(layer.weight)


def parameter_groups(module: nn.Module, lr: float) -> list[dict[str, object]]:
    """An optimizer's groups: each binary weight at `lr` times its quantizer's rate, all others at `lr`."""
    layers = list(binary_layers(module))
    taken = {id(layer.weight) for layer in layers}
    groups: list[dict[str, object]] = [
        {"params": [layer.weight], "lr": lr * layer.quantizer.rate(layer.weight)} for layer in layers
    ]
    others = [each for each in module.parameters() if each.requires_grad and id(each) not in taken]
    return [*groups, {"params": others, "lr": lr}] if others else groups


# --- orders of layers -------------------------------------------------------------------------------------------------


def bnn_conv(
    channels: int,
    width: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 0,
    pool: int = 1,
    activation: Activation = Sign,
) -> nn.Sequential:
    """Convolution, largest of each window, batch norm, sign: BNN's order. Binary weights; gamma may become negative.

    The pool stands before the batch norm: on bits it takes the smallest of a window where gamma is negative.
    """
    layers: list[nn.Module] = [BinaryConv2d(channels, width, kernel, stride, padding)]
    layers += [nn.MaxPool2d(pool)] if pool > 1 else []
    return nn.Sequential(*layers, nn.BatchNorm2d(width, EPSILON, MOMENTUM), activation())


def bnn_dense(
    channels: int,
    width: int,
    *,
    last: bool = False,
    dropout: float = 0.0,
    activation: Activation = Sign,
) -> nn.Sequential:
    """Dense layer, batch norm, sign; the last gives the batch norm's output. dropout: of the inputs, in training."""
    layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
    layers += [BinaryLinear(channels, width), nn.BatchNorm1d(width, EPSILON, MOMENTUM)]
    return nn.Sequential(*layers, *([] if last else [activation()]))


def xnor_conv(
    channels: int,
    width: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 0,
    pool: int = 1,
    quantizer: WeightQuantizer | None = None,
) -> nn.Sequential:
    """Batch norm, sign, convolution, largest of each window: XNOR-Net's order, with a scale per filter by default."""
    conv = BinaryConv2d(channels, width, kernel, stride, padding, quantizer or PerFilter())
    pooled: Sequence[nn.Module] = [nn.MaxPool2d(pool)] if pool > 1 else []
    return nn.Sequential(nn.BatchNorm2d(channels, EPSILON, MOMENTUM), Sign(), conv, *pooled)
