"""Operators that draw many numbers together: normalizations, softmax, reductions and averages over windows."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgekit.host.lower.tflite.movement import made_by
from edgekit.host.lower.tflite.pointwise import Floats, floats, near
from edgekit.host.lower.tflite.products import (
    SAME,
    VALID,
    close_image,
    image,
    image_output,
    padded,
    window,
)
from edgekit.host.lower.tflite.translate import NONE, Translation
from edgekit.host.lower.tflite.values import (
    Order,
    Rule,
    Unsupported,
    attributes,
    first,
    names,
    optional_input,
    shape_of,
    type_of,
)
from edgekit.host.lower.tflite.writer import Quant, options

_SOFTMAX = Quant((1 / 256,), (-128,))  # the only codes that the int8 kernel gives

# --- normalizations


def batch_norm(t: Translation, node: ir.Node) -> None:
    """BatchNormalization with fixed statistics: one multiplication and one addition per channel."""
    source, *rest = names(node)
    scale, bias, mean, variance = (t.constant(name).astype(np.float64) for name in rest)
    factor = scale / np.sqrt(variance + float(attributes(node).get("epsilon", 1e-5)))
    rank = t.values.rank(source)
    shape = (1, -1, *(1,) * (rank - 2))
    made = [
        t.values.add_constant(t.values.fresh("norm"), array.reshape(shape).astype(np.float32))
        for array in (factor, bias - mean * factor)
    ]
    chain, order = floats(t, source)
    scaled = chain.with_("MUL", Floats(t, t.values.at(made[0], order)))
    target = t.target(node, fuse=True)
    y = t.output(target, order, codes=False)
    scaled.with_("ADD", Floats(t, t.values.at(made[1], order)), y, act=target.activation)


def _normalized(t: Translation, chain: Floats, places: Sequence[int], epsilon: float) -> Floats:
    """(x - mean) / sqrt(variance + epsilon) over these axes of the tensor."""
    file, axes = t.values.file, t.values.ints(places)
    shape = [1 if index in places else size for index, size in enumerate(file.shape(chain.tensor))]

    def mean(source: Floats) -> Floats:
        made = file.tensor("", shape, "float32")
        t.values.emit("MEAN", [source.tensor, axes], made, "ReducerOptions", keepDims=True)
        return Floats(t, made)

    centred = chain.with_("SUB", mean(chain))
    variance = mean(centred.with_("MUL", centred))
    root = variance.with_("ADD", epsilon).apply("SQRT", kind="")
    return centred.with_("DIV", root)


def layer_norm(t: Translation, node: ir.Node) -> None:
    """LayerNormalization over the last axes."""
    source, told = names(node)[0], attributes(node)
    rank = t.values.rank(source)
    chain = Floats(t, t.values.at(source))
    places = range(int(told.get("axis", -1)) % rank, rank)
    chain = _normalized(t, chain, tuple(places), float(told.get("epsilon", 1e-5)))
    made, bias = t.result(node, first(rank)), optional_input(node, 2)
    scale = Floats(t, t.values.at(names(node)[1]))
    if bias is None:
        chain.with_("MUL", scale, made)
    else:
        chain.with_("MUL", scale).with_("ADD", Floats(t, t.values.at(bias)), made)


def instance_norm(t: Translation, node: ir.Node) -> None:
    """InstanceNormalization."""
    source, scale, bias = names(node)[:3]
    chain, order = floats(t, source)
    rank = t.values.rank(source)
    places = [order.index(axis) for axis in range(2, rank)]
    chain = _normalized(t, chain, places, float(attributes(node).get("epsilon", 1e-5)))
    shape = (1, -1, *(1,) * (rank - 2))
    factor, offset = (
        Floats(
            t,
            t.values.at(
                t.values.add_constant(t.values.fresh("norm"), t.constant(name).reshape(shape)), order
            ),
        )
        for name in (scale, bias)
    )
    chain.with_("MUL", factor).with_("ADD", offset, t.result(node, order))


def lrn(t: Translation, node: ir.Node) -> None:
    """LRN over an odd number of channels."""
    told = attributes(node)
    size = int(told["size"])
    if size % 2 == 0 or t.values.rank(names(node)[0]) != 4:
        raise Unsupported("of this size or shape")
    x = image(t, names(node)[0], codes=False)
    settings = options(
        "LocalResponseNormalizationOptions",
        radius=size // 2,
        bias=float(told.get("bias", 1.0)),
        alpha=float(told.get("alpha", 1e-4)) / size,
        beta=float(told.get("beta", 0.75)),
    )
    t.values.file.operator("LOCAL_RESPONSE_NORMALIZATION", 1, [x], [t.result(node, (0, 2, 3, 1))], settings)


# --- softmax


def softmax(code: str, t: Translation, node: ir.Node) -> None:
    """Softmax, LogSoftmax: TFLite's is over the last axis; before opset 13 ONNX flattens what comes after."""
    source, told = names(node)[0], attributes(node)
    target, shape = t.target(node), t.values.shape(source)
    rank = len(shape)
    axis = int(told.get("axis", -1 if t.opset >= 13 else 1)) % rank
    whole = t.opset < 13 and math.prod(shape[axis + 1 :]) > 1
    order = _with_last(t, source, axis) if not whole else first(rank)
    quant = target.quant
    codes = code == "SOFTMAX" and t.int8(target, [source]) and quant is not None and near(_SOFTMAX, quant)
    x = t.operand(source, order, codes=codes)
    made = t.output(target, order, codes=codes)
    file, filled = t.values.file, made
    if whole:
        flat = (math.prod(shape[:axis]), math.prod(shape[axis:]))
        x, filled = t.values.reshaped(x, flat), file.tensor("", flat, file.dtype(made), file.quant(made))
    settings = options("SoftmaxOptions", beta=1.0) if code == "SOFTMAX" else options("LogSoftmaxOptions")
    file.operator(code, 2 if codes else 1, [x], [filled], settings)
    if filled != made:
        t.values.reshape_into(filled, made)


def _with_last(t: Translation, name: str, axis: int) -> Order:
    """An order of axes with this one last: one that exists, if any does."""
    shape = t.values.shape(name)
    for order in (*t.values.orders(name), first(len(shape))):
        if axis == order[-1]:
            return order
    if shape[axis] == math.prod(shape):
        return (*(other for other in range(len(shape)) if other != axis), axis)
    return (*(other for other in range(len(shape)) if other != axis), axis)


# --- reductions


def reduction(code: str, t: Translation, node: ir.Node) -> None:
    """ReduceMean, ReduceSum, ReduceMax, ReduceMin, ReduceProd, GlobalAveragePool, GlobalMaxPool."""
    source, target = names(node)[0], t.target(node)
    rank = t.values.rank(source)
    axes, keep = _reduced_axes(t, node, rank)
    if not axes:
        t.values.alias(made_by(node), source)
        return
    order = t.values.preferred([source])
    after = order if keep else _without(order, axes)
    quant = t.values.quant_of(source)
    codes = t.int8(target, [source])
    if code not in ("MEAN", "SUM"):
        codes = codes and target.quant is not None and target.quant.same(quant) and code == "REDUCE_MAX"
    x = t.operand(source, order, codes=codes)
    made = t.output(target, after, codes=codes)
    places = t.values.ints(sorted(order.index(axis) for axis in axes))
    t.values.emit(code, [x, places], made, "ReducerOptions", keepDims=keep)


def _reduced_axes(t: Translation, node: ir.Node, rank: int) -> tuple[tuple[int, ...], bool]:
    if node.op_type.startswith("Global"):
        return tuple(range(2, rank)), True
    told, given = attributes(node), optional_input(node, 1)
    axes = told.get("axes", ()) if given is None else tuple(map(int, t.constant(given).reshape(-1)))
    if not axes and told.get("noop_with_empty_axes", 0):
        return (), True
    return tuple(sorted(axis % rank for axis in axes)) or first(rank), bool(told.get("keepdims", 1))


def _without(order: Order, axes: Sequence[int]) -> Order:
    kept = [axis for axis in order if axis not in axes]
    place = {axis: index for index, axis in enumerate(sorted(kept))}
    return tuple(place[axis] for axis in kept)


def l2_reduction(t: Translation, node: ir.Node) -> None:
    """ReduceL2, ReduceL1, ReduceSumSquare."""
    source = names(node)[0]
    rank = t.values.rank(source)
    axes, keep = _reduced_axes(t, node, rank)
    chain, order = floats(t, source)
    chain = chain.apply("ABS", kind="AbsOptions") if node.op_type == "ReduceL1" else chain.with_("MUL", chain)
    after = order if keep else _without(order, axes)
    made = t.result(node, after)
    file = t.values.file
    summed = file.tensor("", file.shape(made), "float32") if node.op_type == "ReduceL2" else made
    places = t.values.ints(sorted(order.index(axis) for axis in axes))
    t.values.emit("SUM", [chain.tensor, places], summed, "ReducerOptions", keepDims=keep)
    if summed != made:
        t.values.emit("SQRT", [summed], made, "")


def arg_extreme(code: str, t: Translation, node: ir.Node) -> None:
    """ArgMax, ArgMin; the first of equals."""
    source, told = names(node)[0], attributes(node)
    if told.get("select_last_index", 0):
        raise Unsupported("of the last of equals")
    rank = t.values.rank(source)
    axis = int(told.get("axis", 0)) % rank
    order = t.values.preferred([source])
    x, file = t.values.at(source, order), t.values.file
    value = node.outputs[0]
    kind = type_of(value)
    if kind not in ("int32", "int64"):
        raise Unsupported(f"as {kind}")
    after = order if told.get("keepdims", 1) else _without(order, (axis,))
    made = t.values.new(made_by(node), shape_of(value), after, kind)
    short = [size for place, size in enumerate(file.shape(x)) if order[place] != axis]
    filled = made if len(short) == len(after) else file.tensor("", short, kind)
    settings = options(
        "ArgMaxOptions" if code == "ARG_MAX" else "ArgMinOptions", outputType=4 if kind == "int64" else 2
    )
    file.operator(code, 1, [x, t.values.ints([order.index(axis)])], [filled], settings)
    if filled != made:
        t.values.reshape_into(filled, made)


def average_pool(t: Translation, node: ir.Node) -> None:
    """AveragePool; where zeros of the border count otherwise than in TFLite, a map of factors puts it right."""
    source, told, target = names(node)[0], attributes(node), t.target(node)
    shape, out = t.values.shape(source), target.shape
    slide = window(node, told["kernel_shape"], shape[2:], out[2:])
    if max(slide.dilations) > 1:
        raise Unsupported("with dilations")
    counts_zeros = bool(told.get("count_include_pad", 0))
    same = slide.is_same(shape[2:], out[2:]) and not counts_zeros
    factors = None if same else _factors(node, slide.kernel, slide.strides, slide.pads, shape[2:], out[2:])
    quant = t.values.quant_of(source)
    codes = t.int8(target, [source]) and factors is None
    codes = codes and quant is not None and quant.same(target.quant)
    slide = slide.in_two()
    x = image(t, source, codes=codes)
    if not same:
        x = padded(t, x, slide.pads)
    filled, made = image_output(t, target, codes=codes)
    file = t.values.file
    pooled = filled if factors is None else file.tensor("", file.shape(filled), "float32")
    t.values.emit(
        "AVERAGE_POOL_2D", [x], pooled, "Pool2DOptions",
        padding=SAME if same else VALID,
        strideH=slide.strides[0], strideW=slide.strides[1],
        filterHeight=slide.kernel[0], filterWidth=slide.kernel[1],
        fusedActivationFunction=NONE,
    )  # fmt: skip
    if factors is not None:
        Floats(t, pooled).with_("MUL", Floats(t, file.constant(factors)), filled)
    close_image(t, filled, made)


def _factors(
    node: ir.Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    out: Sequence[int],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Window size over what ONNX divides by, per place of the result (1, H, W, 1); None where it is 1 everywhere."""
    told, rank = attributes(node), len(kernel)
    given = tuple(told.get("pads") or (0,) * (2 * rank))
    lines = []
    for axis in range(rank):
        starts = np.arange(out[axis]) * strides[axis] - pads[axis][0]
        low, high = 0, sizes[axis]
        if told.get("count_include_pad", 0):
            low, high = -pads[axis][0], sizes[axis] + min(pads[axis][1], given[rank + axis])
            if told.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
                high = sizes[axis] + pads[axis][1]
        counted = np.minimum(starts + kernel[axis], high) - np.maximum(starts, low)
        lines.append(kernel[axis] / counted)
    lines = [np.ones(1), *lines] if rank == 1 else lines
    factors = np.multiply.outer(lines[0], lines[1])[None, :, :, None].astype(np.float32)
    return None if (factors == 1).all() else factors


_REDUCTIONS = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
    "GlobalAveragePool": "MEAN",
    "GlobalMaxPool": "REDUCE_MAX",
}

RULES: Mapping[str, Rule] = {
    **{op: functools.partial(reduction, code) for op, code in _REDUCTIONS.items()},
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "InstanceNormalization": instance_norm,
    "LRN": lrn,
    "Softmax": functools.partial(softmax, "SOFTMAX"),
    "LogSoftmax": functools.partial(softmax, "LOG_SOFTMAX"),
    "ReduceL1": l2_reduction,
    "ReduceL2": l2_reduction,
    "ReduceSumSquare": l2_reduction,
    "ArgMax": functools.partial(arg_extreme, "ARG_MAX"),
    "ArgMin": functools.partial(arg_extreme, "ARG_MIN"),
    "AveragePool": average_pool,
}
