"""The orders that binary networks put their layers in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import nn

from edgekit.host.train.quantized import QuantizedConv2d, QuantizedLinear
from edgekit.host.train.quantizers import PerFilter, Sign, WeightQuantizer

EPSILON, MOMENTUM = 1e-4, 0.1  # of batch norms: BinaryNet's

Activation: TypeAlias = "Callable[[], nn.Module]"


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
    layers: list[nn.Module] = [QuantizedConv2d(channels, width, kernel, stride, padding)]
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
    layers += [QuantizedLinear(channels, width), nn.BatchNorm1d(width, EPSILON, MOMENTUM)]
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
    conv = QuantizedConv2d(channels, width, kernel, stride, padding, quantizer or PerFilter())
    pooled: Sequence[nn.Module] = [nn.MaxPool2d(pool)] if pool > 1 else []
    return nn.Sequential(nn.BatchNorm2d(channels, EPSILON, MOMENTUM), Sign(), conv, *pooled)
