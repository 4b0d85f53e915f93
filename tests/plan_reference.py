"""Plans by their definition (plan.h), value by value in numpy: slow, and nothing of how the C executor does it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.native import plan as p

Array = NDArray[Any]
PAD_VALUES = {p.PAD_MINUS: -1, p.PAD_PLUS: 1, p.PAD_ZERO: 0}


def run(plan: p.Plan, inputs: Sequence[Array]) -> dict[int, Array]:
    """Every tensor (h, w, c): codes of bits, integers, float32. inputs: in the same form, in the plan's order."""
    held = dict(zip(plan.marked(outputs=False), inputs, strict=True))
    with np.errstate(all="ignore"):
        for operator in plan.operators:
            sources = [(plan.tensors[index], held[index]) for index in operator.inputs]
            made = plan.tensors[operator.output]
            held[operator.output] = _OPERATORS[operator.kind](operator.of, made, *sources)
    return held


def values_of(tensor: p.PlanTensor, codes: Array) -> Array:
    """What codes stand for, int64; floats as they are."""
    if tensor.type == p.F32:
        return codes
    return np.array(p.VALUES[tensor.coding])[codes] if tensor.type == p.BITS else codes.astype(np.int64)


def to_outside(tensor: p.PlanTensor, codes: Array) -> Array:
    """The array that stands for a tensor outside the plan."""
    if tensor.type == p.BITS:
        planes = [p._plane(codes, tensor.coding, index) for index in range(p.PLANES[tensor.coding])]
        return np.packbits(np.stack(planes, axis=2), axis=-1, bitorder="little")
    dtype = {p.U8: np.uint8, p.I8: np.int8, p.I32: np.int32, p.F32: np.float32}[tensor.type]
    ordered = codes.transpose(2, 0, 1) if tensor.channels_first else codes
    return np.ascontiguousarray(ordered.astype(dtype))


def from_outside(tensor: p.PlanTensor, array: Array) -> Array:
    """The inverse of to_outside."""
    if tensor.type != p.BITS:
        return array
    planes = np.unpackbits(array, axis=-1, count=tensor.c, bitorder="little").astype(np.int32)
    if tensor.coding == p.BIPOLAR:
        return planes[:, :, 0]
    return planes[:, :, 0] + planes[:, :, 1] * (1 if tensor.coding == p.TERNARY else 2)


def windows(h: int, w: int, of: Any) -> list[tuple[int, int]]:
    """Upper left corners of all windows in an h x w tensor, row by row."""
    return list(
        itertools.product(
            range(0, h - of.kernel[0] + 1, of.stride[0]), range(0, w - of.kernel[1] + 1, of.stride[1])
        )
    )


def linear(of: p.Linear, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    top, left, bottom, right = of.pads
    padded = np.pad(
        values_of(*source), [(top, bottom), (left, right), (0, 0)], constant_values=PAD_VALUES[of.pad]
    )
    weights = of.weights.astype(np.int64)
    if of.coding != p.INTEGER8:
        weights = np.array(p.VALUES[of.coding])[of.weights]
    corners = windows(*padded.shape[:2], of)
    cut = [padded[y : y + of.kernel[0], x : x + of.kernel[1]].ravel() for y, x in corners]
    sums = (np.array(cut) @ weights.reshape(len(weights), -1).T).reshape(made.h, made.w, made.c)
    if of.epilogue == p.SUMS:
        return sums
    if of.epilogue == p.SCALED:
        assert of.scale is not None
        return sums.astype(np.float32) * of.scale + of.bias
    ends = np.iinfo(np.int32)
    assert of.thresholds is not None
    reached = (sums[..., None] >= of.thresholds) | (of.thresholds == ends.min)
    return np.asarray((reached & (of.thresholds != ends.max)).sum(axis=-1))


def quantize(of: p.Quantize, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    low = -128 if made.type == p.I8 else 0
    steps = np.rint(source[1] / np.float32(of.scale)).astype(np.float64) + of.zero_point
    return np.where(np.isnan(steps), of.zero_point, np.clip(steps, low, low + 255)).astype(np.int64)


def threshold(of: p.Threshold, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    x = values_of(*source)[..., None]
    falling = np.zeros(made.c, np.bool_) if of.falling is None else of.falling
    reached = np.where(falling[:, None], x <= of.thresholds, x >= of.thresholds)
    return np.asarray(reached.sum(axis=-1) + of.first)


def pool(of: p.Window, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    _, codes = source
    cut = [
        codes[y : y + of.kernel[0], x : x + of.kernel[1]].reshape(-1, made.c)
        for y, x in windows(*codes.shape[:2], of)
    ]
    largest, smallest = np.array([c.max(axis=0) for c in cut]), np.array([c.min(axis=0) for c in cut])
    mask = np.zeros(made.c, np.bool_) if of.smallest is None else of.smallest
    return np.where(mask, smallest, largest).reshape(made.h, made.w, made.c)


def total(of: p.Window, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    values = values_of(*source)
    sums = [
        values[y : y + of.kernel[0], x : x + of.kernel[1]].sum(axis=(0, 1))
        for y, x in windows(*values.shape[:2], of)
    ]
    return wrapped(np.array(sums).reshape(made.h, made.w, made.c))


def wrapped(sums: Array) -> Array:
    """As 32 bits hold them."""
    return sums.astype(np.int64).astype(np.uint64).astype(np.uint32).view(np.int32)


def add(of: None, made: p.PlanTensor, *sources: tuple[p.PlanTensor, Array]) -> Array:
    first, second = (values_of(*source) for source in sources)
    return first + second if made.type == p.F32 else wrapped(first + second)


def affine(of: p.Affine, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    return np.asarray(values_of(*source).astype(np.float32) * of.scale + of.bias)


def requantize(of: p.Requantize, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    product = source[1].astype(np.int64) * of.multiplier.astype(np.int64) + of.addend
    return np.clip(product >> of.shift.astype(np.int64), of.low, of.high)


def softmax(of: None, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    raised = np.exp((source[1] - source[1].max()).astype(np.float64))  # differences are rounded to float32
    return np.asarray((raised / raised.sum()).astype(np.float32))


def confidence(of: None, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    return softmax(of, made, source).max().reshape(1, 1, 1)


def copy(of: None, made: p.PlanTensor, source: tuple[p.PlanTensor, Array]) -> Array:
    return source[1].reshape(made.h, made.w, made.c)


_OPERATORS: dict[int, Any] = {
    p.QUANTIZE: quantize,
    p.LINEAR: linear,
    p.THRESHOLD: threshold,
    p.POOL: pool,
    p.SUM: total,
    p.ADD: add,
    p.AFFINE: affine,
    p.REQUANTIZE: requantize,
    p.SOFTMAX: softmax,
    p.CONFIDENCE: confidence,
    p.COPY: copy,
}
