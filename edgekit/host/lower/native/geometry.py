"""Kernels, strides, pads and weights of a graph's layers and pools, as a plan holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgekit.host.graph import static_shape
from edgekit.host.lower.native.chain import POOL
from edgekit.host.lower.native.drafts import Held
from edgekit.host.lower.native.sources import NotHere, Source
from edgekit.host.lower.native.steps import Floats, Whole
from edgekit.host.lower.native.weights import coded
from edgekit.runtime.backends import Array

VIEWS = frozenset(
    ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Expand")
)


@dataclass(frozen=True)
class Geometry:
    """A layer's window. order: for each term of a row in the plan, which of the graph's it is. weight: (out_c, ...)."""

    weight: Array
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    order: Whole
    dense: bool

    def within(self, pads: Sequence[int]) -> Geometry:
        """The same with an explicit border around its input. pads: of all axes, first the beginnings."""
        if any(self.pads):
            raise NotHere("Pad before a convolution that pads as well")
        half = len(pads) // 2
        before, after = ((*[0] * (4 - half), *side[2:]) for side in (pads[:half], pads[half:]))
        return replace(self, pads=(before[0], before[1], after[0], after[1]))

    def on(self, source: Source) -> Geometry:
        """The same for this input. Raises NotHere where its elements stand otherwise than the layer reads them."""
        held = source.held
        if not self.dense:
            if not source.natural:
                raise NotHere("Conv of a tensor whose axes were moved")
            return self
        places = source.places.ravel()
        if len(places) != self.weight.shape[1] or len(np.unique(places)) != held.count:
            raise NotHere("a product with more than one vector")
        return replace(self, kernel=(held.h, held.w), order=np.argsort(places))

    def output(self, held: Held) -> tuple[int, int]:
        """Height and width of what it makes."""
        top, left, bottom, right = self.pads
        return (
            (held.h + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (held.w + left + right - self.kernel[1]) // self.stride[1] + 1,
        )

    @staticmethod
    def bias(node: ir.Node, out_c: int) -> Floats:
        """What is added to each output channel."""
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if value is None:
            return np.zeros(out_c)
        if value.const_value is None:
            raise NotHere("its bias is not a constant")
        beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
        return np.broadcast_to(array_of(value).astype(np.float64).ravel() * beta, out_c)


def conv_geometry(node: ir.Node, weight: Array) -> Geometry:
    """Of a Conv. Raises NotHere for groups, dilation, three axes."""
    if node.attributes.get_int("group", 1) != 1:
        raise NotHere("grouped convolutions have no operator in a plan")
    if any(size != 1 for size in ints_of(node, "dilations", ())):
        raise NotHere("dilated convolutions have no operator in a plan")
    sides = weight.ndim - 2
    if sides not in (1, 2):
        raise NotHere("convolutions over one or two axes only")
    kernel = (*[1] * (2 - sides), *weight.shape[2:])
    stride = (*[1] * (2 - sides), *ints_of(node, "strides", (1,) * sides))
    pads = _conv_pads(node, sides, kernel, stride)
    terms = np.arange(math.prod(weight.shape[1:])).reshape(weight.shape[1], *kernel)
    order = terms.transpose(1, 2, 0).ravel()
    return Geometry(weight, (kernel[0], kernel[1]), (stride[0], stride[1]), pads, order, dense=False)


def _conv_pads(
    node: ir.Node, sides: int, kernel: Sequence[int], stride: Sequence[int]
) -> tuple[int, int, int, int]:
    """top, left, bottom, right."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    pads = ints_of(node, "pads", (0,) * (2 * sides))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        shape, out = static_shape(node.inputs[0]) or (), static_shape(node.outputs[0]) or ()  # type: ignore[arg-type]
        first, last = [], []
        for index in range(sides):
            spatial = 2 - sides + index
            total = max(0, (out[2 + index] - 1) * stride[spatial] + kernel[spatial] - shape[2 + index])
            small, large = total // 2, total - total // 2
            first.append(small if auto == "SAME_UPPER" else large)
            last.append(large if auto == "SAME_UPPER" else small)
        pads = (*first, *last)
    before, after = ((*[0] * (2 - sides), *half) for half in (pads[:sides], pads[sides:]))
    return before[0], before[1], after[0], after[1]


def dense_geometry(node: ir.Node, weight: Array) -> Geometry:
    """Of a Gemm or MatMul. Raises NotHere for a transposed input, and for matrices of matrices."""
    if weight.ndim != 2:
        raise NotHere("a product of more than two axes")
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            raise NotHere("a product with a transposed input")
        matrix = weight if node.attributes.get_int("transB", 0) else weight.T
        alpha = node.attributes.get_float("alpha", 1.0)
        matrix = matrix if alpha == 1.0 else matrix * np.float32(alpha)
    else:
        matrix = weight.T
    return Geometry(matrix, (1, 1), (1, 1), (0, 0, 0, 0), np.arange(matrix.shape[1]), dense=True)


def coding_of(node: ir.Node) -> int | None:
    """Of a layer's weights; None where they are not constants or not few."""
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return None
    array = array_of(weight)
    try:
        geometry = conv_geometry(node, array) if node.op_type == "Conv" else dense_geometry(node, array)
    except NotHere:
        return None
    found = coded(geometry.weight)
    return None if isinstance(found, str) else found.coding


def sum_range(values: Whole, source: Source, *, padded: bool) -> tuple[Whole, Whole]:
    """The smallest and the largest sum of each output channel."""
    least, most = int(source.low.min()), int(source.high.max())
    if padded:
        least, most = min(least, 0), max(most, 0)
    rows = values.reshape(len(values), -1)
    ends = np.stack([rows * least, rows * most])
    return ends.min(axis=0).sum(axis=1), ends.max(axis=0).sum(axis=1)


def window_of(node: ir.Node) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and stride of a pool. Raises NotHere for padding and dilation."""
    kernel = ints_of(node, "kernel_shape", ())
    stride = ints_of(node, "strides", (1,) * len(kernel))
    if any(ints_of(node, "pads", ())) or any(size != 1 for size in ints_of(node, "dilations", ())):
        raise NotHere(f"{node.op_type} with padding or dilation")
    if len(kernel) not in (1, 2):
        raise NotHere(f"{node.op_type} over one or two axes only")
    short = 2 - len(kernel)
    kernel, stride = (*[1] * short, *kernel), (*[1] * short, *stride)
    return (kernel[0], kernel[1]), (stride[0], stride[1])


def pools_of(nodes: Sequence[ir.Node]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Kernel and stride of each pool among the nodes."""
    return [window_of(node) for node in nodes if node.op_type == POOL]


def pooled_size(held: Held, pools: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> tuple[int, int]:
    """Height and width after these pools."""
    h, w = held.h, held.w
    for kernel, stride in pools:
        h, w = (h - kernel[0]) // stride[0] + 1, (w - kernel[1]) // stride[1] + 1
    return h, w


def mean_channels(node: ir.Node, source: Source) -> Whole:
    """The channel that each result of a ReduceMean is the mean of. Raises NotHere where it takes others."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = (
        ints_of(node, "axes", ()) if given is None else tuple(int(axis) for axis in array_of(given).ravel())
    )
    if not axes and _flag(node, "noop_with_empty_axes"):
        raise NotHere("a mean over no axes")
    rank = source.places.ndim
    over = sorted({axis % rank for axis in axes}) or list(range(rank))
    kept = [axis for axis in range(rank) if axis not in over]
    taken = source.places.transpose(*kept, *over)
    rows = taken.reshape(math.prod(taken.shape[: len(kept)]), -1) % source.held.c
    if rows.shape[1] * source.held.c != source.held.count or (rows != rows[:, :1]).any():
        raise NotHere("a mean over other axes than height and width")
    if len(np.unique(rows[:, 0])) != len(rows):
        raise NotHere("a mean over other axes than height and width")
    return np.asarray(rows[:, 0], np.int64)


def _flag(node: ir.Node, name: str) -> bool:
    return bool(node.attributes.get_int(name, 0))


def ints_of(node: ir.Node, name: str, missing: tuple[int, ...]) -> tuple[int, ...]:
    """An attribute of whole numbers."""
    attribute = node.attributes.get(name)
    return missing if attribute is None else tuple(attribute.as_ints())


def array_of(value: ir.Value) -> Array:
    """The numbers of a constant. Raises NotHere for what is none."""
    tensor = value.const_value
    if tensor is None:
        raise NotHere(f"{value.name} is not a constant")
    return tensor.numpy()
