"""Put a recipe's quantizers into a network of plain layers. Changes the module in place; trains nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.train.imported import Imported
from edgekit.host.train.networks.condensenet import learned
from edgekit.host.train.parts import activations_of, borders_of, errors_of, weights_of
from edgekit.host.train.quantized import QuantizedConv2d, QuantizedLinear
from edgekit.host.train.quantizers.base import WeightQuantizer, adopt
from edgekit.host.train.recipe import TrainRecipe

_EPSILON = 1e-4  # of a batch norm behind the last layer: BinaryNet's
_ACTIVATIONS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class _Place:
    """A module inside another one."""

    parent: nn.Module
    name: str
    module: nn.Module

    def put(self, module: nn.Module) -> None:
        setattr(self.parent, self.name, module)


def compress(module: nn.Module, recipe: TrainRecipe, *, fresh: bool) -> nn.Module:
    """The network with the recipe's layers; it is the same object, unless the scores get a batch norm.

    fresh: each quantizer fills its layer's weight from PyTorch's generator; else the weights stay what they are. Raises
    BadInput where the network has no layers to quantize, or a part of the recipe is not known.
    """
    make_weights, make_activation, make_errors = weights_of(recipe), activations_of(recipe), errors_of(recipe)
    if isinstance(module, Imported):
        return _imported(module, recipe)
    layers = list(_places(module, (nn.Conv2d, nn.Linear)))
    if make_weights is not None:
        if learned(module):
            raise BadInput(
                f"recipe {recipe.name}: convolutions that learn their groups are not quantized while they do: train by "
                "the recipe condensenet first, and compress the file"
            )
        chosen = _without_edges(layers, first=recipe.layers.first, last=recipe.layers.last)
        if not chosen:
            raise BadInput(
                f"recipe {recipe.name}: the network has {len(layers)} layers with weights, "
                "and none is left to quantize beside the first and the last"
            )
        for place in chosen:
            made: nn.Module = quantized_layer(place.module, make_weights(), fresh=fresh)
            place.put(made if make_errors is None else nn.Sequential(made, make_errors()))
    if make_activation is not None:
        places = list(_places(module, _ACTIVATIONS))
        if not places:
            raise BadInput(f"recipe {recipe.name}: the network has no ReLU in whose place activations go")
        kept = 1 if recipe.layers.last_activation == "float" else 0
        for place in places[: len(places) - kept]:
            place.put(make_activation())
    first, last = borders_of(recipe)
    if first is not None and last is not None:
        return nn.Sequential(first, module, last)
    if recipe.layers.output_norm:
        return _Normed(module, affine=recipe.layers.output_norm == "learned")
    return module


def _imported(module: Imported, recipe: TrainRecipe) -> Imported:
    """The same for an imported model, whose graph stays as it is."""
    make_weights, make_activation = weights_of(recipe), activations_of(recipe)
    layers = recipe.layers
    if recipe.errors.kind or any(border is not None for border in borders_of(recipe)):
        raise BadInput(
            f"recipe {recipe.name}: errors are quantized in networks of ours only, not in an ONNX model"
        )
    if make_weights is not None:
        module.quantize(make_weights, first=layers.first == "quantized", last=layers.last == "quantized")
    if make_activation is not None:
        module.quantize_activations(make_activation, last=layers.last_activation == "quantized")
    return module


def quantized_layer(layer: nn.Module, quantizer: WeightQuantizer, *, fresh: bool) -> nn.Module:
    """A layer of the same sizes with quantized weights. Raises BadInput for one that there is no such layer of."""
    if isinstance(layer, nn.Conv2d):
        square = {layer.kernel_size[0] == layer.kernel_size[1], layer.stride[0] == layer.stride[1]}
        around = layer.padding
        if square != {True} or layer.dilation != (1, 1) or isinstance(around, str) or around[0] != around[1]:
            raise BadInput(f"quantized layers have square kernels and no dilation, got {layer}")
        made: QuantizedConv2d | QuantizedLinear = QuantizedConv2d(
            *(layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], around[0]),
            quantizer=quantizer,
            groups=layer.groups,
            bias=layer.bias is not None,
        )
    elif isinstance(layer, nn.Linear):
        made = QuantizedLinear(layer.in_features, layer.out_features, quantizer, bias=layer.bias is not None)
    else:
        raise BadInput(f"only convolutions and dense layers are quantized, got {type(layer).__name__}")
    with torch.no_grad():
        if layer.bias is not None and made.bias is not None:
            made.bias.copy_(layer.bias)
        if not fresh:
            made.weight.copy_(layer.weight)
            adopt(made.quantizer, made.weight)
    return made


class _Normed(nn.Module):
    """A network whose only exit's scores go through a batch norm."""

    def __init__(self, module: nn.Module, *, affine: bool) -> None:
        super().__init__()
        self.module = module
        last = [each for each in module.modules() if isinstance(each, (nn.Conv2d, nn.Linear))][-1]
        classes = last.out_features if isinstance(last, nn.Linear) else last.out_channels
        self.norm = nn.BatchNorm1d(int(classes), _EPSILON, affine=affine)

    def forward(self, value: Tensor) -> Tensor:
        made = self.module(value)
        if not isinstance(made, Tensor):
            raise TypeError("a batch norm of the scores wants a network with one exit")
        normed: Tensor = self.norm(made)
        return normed


def _places(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[_Place]:
    """Modules of exactly these kinds, in the order in which the network was put together."""
    for name, child in list(module.named_children()):
        if type(child) in kinds:
            yield _Place(module, name, child)
        else:
            yield from _places(child, kinds)


def _without_edges(layers: list[_Place], *, first: str, last: str) -> list[_Place]:
    start = 1 if first == "float" else 0
    return layers[start : len(layers) - (1 if last == "float" else 0)]
