"""Grids of weights: few symmetric levels, a scale per output channel or per block along the reduction. Makes no graph.

A group is what shares a scale. Weights lie as a matrix with one group a row: `Rows` says how. A scale has so few
significant bits that every code times it is exact in float32; and some code of a group is the largest of its grid
(where not all weights are 0). So whoever quantizes a weight on its grid again finds the same scale and codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.core.registry import pick
from edgekit.host.graph import Graph
from edgekit.host.stored import GRIDS, Codes, Floats, Grid, pack, packed_bytes, unpack

__all__ = [
    "CLIPS",
    "GRIDS",
    "Codes",
    "Floats",
    "Grid",
    "Product",
    "Rows",
    "dequantize",
    "pack",
    "packed_bytes",
    "products",
    "quantize",
    "rows",
    "snap",
    "to_nearest",
    "unpack",
]

CLIPS = ("max", "mse")
_LEAST_CLIP = {8: 0.6, 4: 0.4, 2: 0.2}  # by bits: how far the mse search pulls the largest weight in
_CLIP_STEP = 0.025
_REFINED = 2  # rounds of least squares after it
_AT_ONCE = 2**18  # weights handled together: stays in the cache
_TINIEST = 2.0**-100  # the scale of a group of zeros
_TWN = 0.7  # of mean |w|: below it a ternary weight is 0
_SCALE_BITS = 11  # significant bits of a scale: float16 holds them


# --- which weights there are ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """A node that multiplies with a constant float32 weight. index: which of its inputs that is.

    axes: those that tell groups apart, all others are summed over; the last of them is the output channel's.
    """

    node: ir.Node
    index: int
    value: ir.Value
    axes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or ""

    @property
    def array(self) -> Floats:
        """The weight. Not to be written to."""
        tensor = self.value.const_value
        assert tensor is not None  # noqa: S101  (products() gives no other)
        return np.asarray(tensor.numpy(), np.float32)

    @property
    def axis(self) -> int | None:
        """The weight's axis of output channels; None where it is one vector."""
        return self.axes[-1] if self.axes else None


def products(graph: Graph) -> tuple[Product, ...]:
    """Conv, ConvTranspose, Gemm and MatMul nodes with a constant float32 weight, in the graph's order.

    A weight that nodes share comes once for each. Weights that are dequantized or computed are not listed.
    """
    return tuple(
        Product(node, index, value, axes)
        for node in graph.model.graph
        if node.domain in ("", "ai.onnx") and node.op_type in _AXES
        for index, value in enumerate(node.inputs[:2])
        if value is not None and _is_weight(value)
        for axes in (_AXES[node.op_type](node, index, len(value.shape or ())),)
        if axes is not None
    )


def _is_weight(value: ir.Value) -> bool:
    return (
        value.is_initializer()
        and value.const_value is not None
        and value.dtype == ir.DataType.FLOAT
        and bool(value.const_value.size)
    )


def _conv(node: ir.Node, index: int, rank: int) -> tuple[int, ...] | None:
    del node, rank
    return (0,) if index == 1 else None


def _conv_transpose(node: ir.Node, index: int, rank: int) -> tuple[int, ...] | None:
    """[in, out / group, ...]. Where each group makes one channel, the groups lie along axis 0."""
    del rank
    if index != 1:
        return None
    weight = node.inputs[1]
    per_group = weight.shape[1] if weight is not None and weight.shape is not None else 0
    return (0,) if node.attributes.get_int("group", 1) > 1 and per_group == 1 else (1,)


def _gemm(node: ir.Node, index: int, rank: int) -> tuple[int, ...] | None:
    del rank
    if index == 0:
        return (1,) if node.attributes.get_int("transA", 0) else (0,)
    return (0,) if node.attributes.get_int("transB", 0) else (1,)


def _matmul(node: ir.Node, index: int, rank: int) -> tuple[int, ...] | None:
    del node
    summed = rank - 1 if index == 0 or rank == 1 else rank - 2
    return tuple(axis for axis in range(rank) if axis != summed)


_AXES = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul}


# --- how a weight lies as a matrix of groups --------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """A weight of `shape` as a matrix [channels * blocks, block]: one group a row, a channel's rows together.

    The last block of a channel is filled up with zeros.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    block: int

    @property
    def order(self) -> tuple[int, ...]:
        """The weight's axes, those that tell channels apart first."""
        return (*self.axes, *(axis for axis in range(len(self.shape)) if axis not in self.axes))

    @property
    def moved(self) -> tuple[int, ...]:
        """The weight's shape in that order."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def channels(self) -> int:
        """Rows, were there no blocks."""
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def depth(self) -> int:
        """Numbers of one channel."""
        return math.prod(self.shape) // max(1, self.channels)

    @property
    def blocks(self) -> int:
        """Blocks of one channel."""
        return -(-self.depth // self.block)

    @property
    def used(self) -> NDArray[np.bool_] | None:
        """Which numbers of the matrix are weights; None: all."""
        if self.blocks * self.block == self.depth:
            return None
        inside = np.arange(self.blocks * self.block) < self.depth
        return np.tile(inside.reshape(self.blocks, self.block), (self.channels, 1))

    def take(self, array: NDArray[Any]) -> NDArray[Any]:
        """The weight as a matrix."""
        flat = array.transpose(self.order).reshape(self.channels, self.depth)
        missing = self.blocks * self.block - self.depth
        if missing:
            flat = np.pad(flat, ((0, 0), (0, missing)))
        return np.ascontiguousarray(flat.reshape(self.channels * self.blocks, self.block))

    def give(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """The matrix as a weight: the inverse of `take`."""
        flat = matrix.reshape(self.channels, self.blocks * self.block)[:, : self.depth]
        return np.ascontiguousarray(flat.reshape(self.moved).transpose(np.argsort(self.order)))


def rows(shape: Sequence[int], axes: tuple[int, ...], block: int = 0) -> Rows:
    """How a weight's groups lie. block: numbers along the reduction that share a scale; 0: all of a channel."""
    whole = Rows(tuple(shape), axes, 1).depth
    return Rows(tuple(shape), axes, block if 0 < block < whole else whole)


# --- codes and scales -------------------------------------------------------------------------------------------------


def quantize(
    matrix: Floats, grid: Grid, clip: str = "max", used: NDArray[np.bool_] | None = None
) -> tuple[Codes, Floats]:
    """(codes, one scale per row) of a matrix with one group a row. codes * scale is on the grid.

    Integer grids round to nearest. clip "max": the largest weight gets the largest code. "mse": the scale, at most that
    one, with the least squared error found by trying clips and then refining by least squares. Ternary: TWN (Li, Zhang,
    Liu 2016, arXiv 1605.04711), 0 where |w| <= 0.7 mean |w|, else the mean of those above; "mse" finds the threshold
    with the least squared error exactly. Binary: BWN (Rastegari et al. 2016, arXiv 1603.05279), mean |w| times the
    sign, that of 0 being +. Raises BadInput for NaN, infinity or an unknown clip.
    """
    pick("clip", dict.fromkeys(CLIPS), clip)
    if not np.isfinite(matrix).all():
        raise BadInput("weights must be finite numbers, got NaN or infinity")
    codes = np.empty(matrix.shape, np.int8)
    scale = np.empty(len(matrix), np.float32)
    for part in _parts(matrix):
        inside = None if used is None else used[part]
        codes[part], scale[part] = _METHODS.get(grid.name, _uniform)(matrix[part], grid, clip, inside)
    return codes, scale


def dequantize(codes: Codes, scale: Floats) -> Floats:
    """The weights that codes and a scale per row stand for; exact for the scales of `quantize`."""
    return codes.astype(np.float32) * scale[:, None]


def to_nearest(matrix: Floats, scale: Floats, grid: Grid) -> Codes:
    """The nearest code of each number, one scale per row; what lies outside gets the outermost code."""
    levels = np.rint((matrix / scale[:, None] + grid.qmax) / grid.step)
    top = 2 * grid.qmax // grid.step
    return np.asarray(np.clip(levels, 0, top) * grid.step - grid.qmax).astype(np.int8)


def snap(array: Floats, axes: tuple[int, ...], grid: Grid, *, block: int = 0, clip: str = "max") -> Floats:
    """The weight with every number on its grid."""
    layout = rows(array.shape, axes, block)
    codes, scale = quantize(layout.take(array), grid, clip, layout.used)
    snapped: Floats = layout.give(dequantize(codes, scale))
    return snapped


def _parts(matrix: Floats) -> Iterator[slice]:
    step = max(1, _AT_ONCE // max(1, matrix.shape[1]))
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def _short(scale: NDArray[Any]) -> Floats:
    """Scales with so few significant bits that codes times them are exact."""
    mantissa, exponent = np.frexp(np.maximum(scale.astype(np.float64), _TINIEST))
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, _SCALE_BITS)), exponent - _SCALE_BITS), np.float32)


_Quantized = tuple[Codes, Floats]
_Used = NDArray[np.bool_] | None


def _uniform(matrix: Floats, grid: Grid, clip: str, used: _Used) -> _Quantized:
    top = np.abs(matrix).max(axis=1) / grid.qmax
    scale = _short(top)
    codes = to_nearest(matrix, scale, grid)
    if clip == "max":
        return codes, scale
    error = _error(matrix, codes, scale, used)
    for tried in np.arange(1 - _CLIP_STEP, _LEAST_CLIP[grid.bits] - 1e-9, -_CLIP_STEP):
        _take_better(matrix, grid, used, (codes, scale, error), _short(top * tried))
    for _ in range(_REFINED):
        kept = codes if used is None else codes * used
        power = np.einsum("ij,ij->i", kept, kept, dtype=np.float64)
        fitted = np.einsum("ij,ij->i", kept, matrix, dtype=np.float64) / np.maximum(power, 1)
        _take_better(matrix, grid, used, (codes, scale, error), _short(fitted))
    return codes, scale


def _take_better(
    matrix: Floats, grid: Grid, used: _Used, best: tuple[Codes, Floats, NDArray[np.float64]], scale: Floats
) -> None:
    """Replace rows of `best` where this scale gives less error and still reaches the outermost code."""
    codes = to_nearest(matrix, scale, grid)
    error = _error(matrix, codes, scale, used)
    reached = codes if used is None else codes * used
    better = (error < best[2]) & (np.abs(reached).max(axis=1) == grid.qmax)
    for mine, other in zip(best, (codes, scale, error), strict=True):
        mine[better] = other[better]  # type: ignore[index]


def _error(matrix: Floats, codes: Codes, scale: Floats, used: _Used) -> NDArray[np.float64]:
    """Squared error of each row."""
    off = dequantize(codes, scale) - matrix
    if used is not None:
        off *= used
    return np.asarray(np.einsum("ij,ij->i", off, off, dtype=np.float64))


def _ternary(matrix: Floats, grid: Grid, clip: str, used: _Used) -> _Quantized:
    size = np.abs(matrix).astype(np.float64)
    count = np.full(len(matrix), matrix.shape[1]) if used is None else used.sum(axis=1)
    if clip == "max":
        kept = size > _TWN * (size.sum(axis=1) / count)[:, None]
    else:  # keeping the k largest, the error falls by (their sum)^2 / k
        ordered = -np.sort(-size, axis=1)
        gain = np.cumsum(ordered, axis=1) ** 2 / np.arange(1, matrix.shape[1] + 1)
        least = np.take_along_axis(ordered, gain.argmax(axis=1)[:, None], axis=1)
        kept = (size >= least) & (size > 0)
    scale = _short((size * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1))
    return (np.sign(matrix) * kept).astype(np.int8), scale


def _binary(matrix: Floats, grid: Grid, clip: str, used: _Used) -> _Quantized:
    del clip  # the mean is the best scale there is
    count = np.full(len(matrix), matrix.shape[1]) if used is None else used.sum(axis=1)
    scale = _short(np.abs(matrix).sum(axis=1, dtype=np.float64) / count)
    return np.where(matrix >= 0, 1, -1).astype(np.int8), scale


_METHODS = {"ternary": _ternary, "binary": _binary}
