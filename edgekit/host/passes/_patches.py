"""What each weight of a product meets: columns of its inputs (im2col), at some positions. Changes no graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def matrix_of(node: ir.Node, weight: Array) -> Array:
    """A product's weights as (groups, outputs of a group, inputs of an output); `weight_of` turns it back."""
    groups = _ints(node, "group", [1])[0]
    if node.op_type == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if node.op_type == "ConvTranspose":
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return np.asarray(np.moveaxis(split, 2, 1).reshape(groups, weight.shape[1], -1))
    return np.asarray((weight if _ints(node, "transB", [0])[0] else weight.T)[None])


def weight_of(node: ir.Node, matrix: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `matrix_of` for a weight of this shape."""
    groups = matrix.shape[0]
    if node.op_type == "Conv":
        return matrix.reshape(shape)
    if node.op_type == "ConvTranspose":
        split = matrix.reshape(groups, shape[1], shape[0] // groups, *shape[2:])
        return np.asarray(np.moveaxis(split, 1, 2).reshape(shape))
    return np.asarray(matrix[0] if _ints(node, "transB", [0])[0] else matrix[0].T)


def positions(node: ir.Node, x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> int:
    """At how many positions of one input the weights are used."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        across = _ints(node, "transA", [0])[0]
        return int(np.prod(x_shape)) // max(1, x_shape[0] if across else x_shape[-1])
    spatial = _windows_shape(node, x_shape, weight_shape)
    return x_shape[0] * int(np.prod(spatial))


def columns(node: ir.Node, x: Array, weight_shape: tuple[int, ...], chosen: NDArray[np.int64]) -> Array:
    """The inputs at the chosen positions, (groups, len(chosen), inputs), in the order of `matrix_of`.

    x: the product's input, with its batch. chosen: indices below `positions`.
    """
    if node.op_type not in ("Conv", "ConvTranspose"):
        rows = x.T if _ints(node, "transA", [0])[0] else x.reshape(-1, x.shape[-1])
        return rows[chosen][None]

    def every(steps: list[int], axes: int) -> tuple[slice, ...]:
        return (*(slice(None) for _ in range(axes)), *(slice(None, None, step) for step in steps))

    rank = x.ndim - 2
    groups = _ints(node, "group", [1])[0]
    kernel, strides, dilations, pads = _geometry(node, x.shape, weight_shape)
    if node.op_type == "ConvTranspose":  # the correlation of the stretched input with the mirrored kernel
        stretched = np.zeros(
            (*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype
        )
        stretched[every(strides, 2)] = x
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = [(r - begin, r - end) for r, (begin, end) in zip(reach, pads, strict=True)]
        x, strides = stretched, [1] * rank
    x = _padded(x, pads)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + rank)))
    windows = windows[every([*strides, *dilations], 2)]
    if node.op_type == "ConvTranspose":
        windows = np.flip(windows, tuple(range(2 + rank, 2 + 2 * rank)))
    windows = np.moveaxis(windows, 1, 1 + rank)  # (batch, *positions, channels, *kernel)
    taken = windows[np.unravel_index(chosen, windows.shape[: 1 + rank])]
    return np.ascontiguousarray(np.swapaxes(taken.reshape(len(chosen), groups, -1), 0, 1))


def _geometry(
    node: ir.Node, x_shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> tuple[list[int], list[int], list[int], list[tuple[int, int]]]:
    """(kernel, strides, dilations, pads per axis) as ONNX defines them for Conv and ConvTranspose."""
    rank = len(x_shape) - 2
    kernel = list(weight_shape[2:])
    strides, dilations = _ints(node, "strides", [1] * rank), _ints(node, "dilations", [1] * rank)
    flat = _ints(node, "pads", [0] * 2 * rank)
    pads = list(zip(flat[:rank], flat[rank:], strict=True))
    auto = node.attributes.get("auto_pad")
    how = auto.as_string() if auto is not None else "NOTSET"
    if how.startswith("SAME"):
        pads = []
        for n, k, s, d in zip(x_shape[2:], kernel, strides, dilations, strict=True):
            size = d * (k - 1) + 1
            total = (
                max(0, size - s)
                if node.op_type == "ConvTranspose"
                else max(0, (-(-n // s) - 1) * s + size - n)
            )
            less = total // 2
            pads.append((less, total - less) if how == "SAME_UPPER" else (total - less, less))
    elif how == "VALID":
        pads = [(0, 0)] * rank
    return kernel, strides, dilations, pads


def _windows_shape(node: ir.Node, x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> list[int]:
    kernel, strides, dilations, pads = _geometry(node, x_shape, weight_shape)
    every = zip(x_shape[2:], kernel, strides, dilations, pads, strict=True)
    if node.op_type == "ConvTranspose":
        return [max(0, (n - 1) * s + d * (k - 1) + 1 - sum(p)) for n, k, s, d, p in every]
    return [max(0, (n + sum(p) - d * (k - 1) - 1) // s + 1) for n, k, s, d, p in every]


def _padded(x: Array, pads: list[tuple[int, int]]) -> Array:
    """Zeros around the image; a negative pad cuts."""
    sides = zip(x.shape[2:], pads, strict=True)
    cut = (slice(None), slice(None), *(slice(max(0, -begin), n - max(0, -end)) for n, (begin, end) in sides))
    grown = [(0, 0), (0, 0), *((max(0, begin), max(0, end)) for begin, end in pads)]
    return np.pad(x[cut], grown)


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    value = attribute.value
    return [int(value)] if isinstance(value, int) else [int(entry) for entry in value]
