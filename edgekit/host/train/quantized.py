"""Layers whose weights are quantized in every pass, and what happens to those weights between steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.host.stored import grid_of, packed_bytes
from edgekit.host.train.fit import Hook, Moment
from edgekit.host.train.quantizers import Deterministic, WeightQuantizer
from edgekit.host.train.quantizers.base import BIPOLAR, bipolar, coded, decoded


class QuantizedConv2d(nn.Conv2d):
    """A convolution with quantized weights, binary where none are named. Padding is by true zeros; a bias is float."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        quantizer: WeightQuantizer | None = None,
        groups: int = 1,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__(channels, width, kernel, stride, padding, groups=groups, bias=bias)
        self.quantizer: WeightQuantizer = quantizer or Deterministic()
        self.quantizer.start(self.weight)

    def forward(self, value: Tensor) -> Tensor:
        return functional.conv2d(value, quantized(self), self.bias, self.stride, self.padding, 1, self.groups)


class QuantizedLinear(nn.Linear):
    """A dense layer with quantized weights, binary where nothing else is said. A bias is float."""

    def __init__(
        self, channels: int, width: int, quantizer: WeightQuantizer | None = None, *, bias: bool = False
    ) -> None:
        super().__init__(channels, width, bias=bias)
        self.quantizer: WeightQuantizer = quantizer or Deterministic()
        self.quantizer.start(self.weight)

    def forward(self, value: Tensor) -> Tensor:
        return functional.linear(value, quantized(self), self.bias)


QuantizedLayer: TypeAlias = "QuantizedConv2d | QuantizedLinear"


@runtime_checkable
class HasQuantizedWeights(Protocol):
    """A module of an imported model's: its weights are read through quantizers, [out, in, ...] each."""

    def quantized_weights(self) -> Iterator[tuple[nn.Parameter, Tensor, WeightQuantizer]]:
        """(what is trained, a view of it with the output channels first, the quantizer)."""


def quantized_weights(module: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor, WeightQuantizer]]:
    """Every quantized weight of the module, in order: (what is trained, [out, in, ...], its quantizer)."""
    for each in module.modules():
        if isinstance(each, HasQuantizedWeights):
            yield from each.quantized_weights()
    for layer in quantized_layers(module):
        yield layer.weight, layer.weight, layer.quantizer


def quantized(layer: QuantizedLayer) -> Tensor:
    """The layer's weight as it is multiplied; in an export codes and what makes numbers of them, if files hold such."""
    quantizer, weight = layer.quantizer, layer.weight
    if not torch.onnx.is_in_onnx_export():
        return quantizer(weight)
    if BIPOLAR.get():
        return bipolar(weight, quantizer.scale(weight))
    held = coded(quantizer, weight)
    return quantizer(weight) if held is None else decoded(*held)


@contextlib.contextmanager
def exported_as_bipolar() -> Iterator[None]:
    """Within, exports write BipolarQuant, as QONNX has it: for weights of two levels and signs alone."""
    token = BIPOLAR.set(True)
    try:
        yield
    finally:
        BIPOLAR.reset(token)


def quantized_layers(module: nn.Module) -> Iterator[QuantizedLayer]:
    """Every layer of the module with quantized weights, in order."""
    for layer in module.modules():
        if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
            yield layer


class Settle(Hook):
    """After each update, what each quantizer does to its real weights: clips them, takes means out."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = tuple(quantized_weights(module))

    def after_step(self, moment: Moment) -> None:
        for _, weight, quantizer in self._weights:
            quantizer.settle(weight)


def parameter_groups(module: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, object]]:
    """An optimizer's groups: each quantized weight at `lr` times its quantizer's rate, all others at `lr`.

    Weight decay is for weights of two dimensions or more: not for biases, batch norms, and what quantizers learn.
    """
    found = list(quantized_weights(module))
    rates = {id(held): quantizer.rate(weight) for held, weight, quantizer in found}
    quantizers = [quantizer for _, _, quantizer in found if isinstance(quantizer, nn.Module)]
    learned = {id(each) for quantizer in quantizers for each in quantizer.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for each in module.parameters():
        if each.requires_grad:
            decay = weight_decay if each.ndim > 1 and id(each) not in learned else 0.0
            groups.setdefault((lr * rates.get(id(each), 1.0), decay), []).append(each)
    return [
        {"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()
    ]


def packed_weight_bytes(module: nn.Module) -> int:
    """Bytes of all weights that products read: codes in the bits of their format, scales, tables; others as floats.

    Without biases and batch norms, which become biases or thresholds.
    """
    found = {id(held): (weight, quantizer) for held, weight, quantizer in quantized_weights(module)}
    total = 0
    for each in module.parameters():
        held = coded(found[id(each)][1], found[id(each)][0]) if id(each) in found else None
        if held is not None:
            codes, scale = held
            grid = grid_of(codes.numpy())
            total += packed_bytes(codes.numel(), grid.bits) + len(grid.levels) + 4 * scale.numel()
        elif each.ndim > 1:
            total += 4 * each.numel()
    return total
