"""A WAGE network in whole numbers alone, slow and obvious: what a board without floats would compute. NumPy only.

Activations are int8, weights codes of few bits, sums int32; a layer's result is shifted right by the bits of its scale,
a half to the even number, and clipped. The simulation in floats must give the same scores, exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgekit.core.errors import BadInput
from edgekit.host.train.quantized import QuantizedConv2d, QuantizedLinear
from edgekit.host.train.quantizers.wage import WageActivations, WageInput, WageWeights

Ints = NDArray[np.int32]


def integer_scores(module: nn.Module, value: NDArray[Any]) -> NDArray[np.float64]:
    """Scores [N, classes] of inputs [N, C, H, W], floats from -1 to 1; one multiplication by a power of two at the end.

    The module's layers are taken in the order they were put together: it must be a chain. Raises BadInput for others.
    """
    codes: Ints | None = None
    right = 0  # how many bits the codes stand right of what they mean, in units of one activation
    for layer in module.modules():
        if isinstance(layer, WageInput):
            codes = _clipped(
                np.rint(value * 2 ** (layer.bits - 1)).astype(np.int64), layer.largest, lowest=-layer.largest
            )
        elif isinstance(layer, WageActivations) and codes is not None:
            codes, right = _clipped(_shifted(codes, right), layer.largest, lowest=0), 0
        elif isinstance(layer, (QuantizedConv2d, QuantizedLinear)) and codes is not None:
            codes, right = _product(layer, codes), _bits(layer)
        elif isinstance(layer, nn.MaxPool2d) and codes is not None:
            codes = _pooled(codes, int(layer.kernel_size), int(layer.stride))
        elif isinstance(layer, nn.Flatten) and codes is not None:
            codes = codes.reshape(len(codes), -1)
        elif any(True for _ in layer.parameters(recurse=False)):
            raise BadInput(f"wage: whole numbers know no {type(layer).__name__}")
    if codes is None:
        raise BadInput("wage: the network's input is not quantized")
    activation = next(layer.bits for layer in module.modules() if isinstance(layer, WageActivations))
    return np.asarray(codes * 2.0 ** (-right - (activation - 1)), np.float64)


def _bits(layer: QuantizedConv2d | QuantizedLinear) -> int:
    """How many bits a layer's scale, a power of two, shifts right."""
    if not isinstance(layer.quantizer, WageWeights) or layer.bias is not None:
        raise BadInput("wage: wants layers with WAGE's weights and no bias")
    return -round(math.log2(float(layer.quantizer.scale(layer.weight))))


def _product(layer: QuantizedConv2d | QuantizedLinear, codes: Ints) -> Ints:
    found = layer.quantizer.codes(layer.weight)
    assert found is not None  # noqa: S101  (see _bits)
    weight = found.numpy().astype(np.int32)
    if isinstance(layer, QuantizedLinear):
        return np.asarray(codes @ weight.T, np.int32)
    if layer.groups != 1:
        raise BadInput(f"wage: wants convolutions of one group, got {layer.groups}")
    stride, around = int(layer.stride[0]), int(layer.padding[0])
    padded = np.pad(codes, ((0, 0), (0, 0), (around, around), (around, around)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (2, 3))[
        :, :, ::stride, ::stride
    ]
    return np.asarray(np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True), np.int32)


def _shifted(codes: Ints, bits: int) -> NDArray[np.int64]:
    """codes / 2^bits, a half to the even number, without a float."""
    wide = codes.astype(np.int64)
    if bits <= 0:
        return wide << -bits
    half = np.int64(1) << (bits - 1)
    odd = (wide >> bits) & 1
    return np.asarray((wide + half - 1 + odd) >> bits)


def _clipped(codes: NDArray[np.int64], highest: int, lowest: int) -> Ints:
    return np.asarray(np.clip(codes, lowest, highest), np.int32)


def _pooled(codes: Ints, size: int, stride: int) -> Ints:
    windows = np.lib.stride_tricks.sliding_window_view(codes, (size, size), (2, 3))[:, :, ::stride, ::stride]
    return np.asarray(windows.max((-2, -1)))
