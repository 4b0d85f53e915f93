"""Operators that move numbers and change none: they run on codes as they are, and the codes' scale stays."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.host.lower.tflite.products import SAME, VALID, close_image, image, padded, window
from edgekit.host.lower.tflite.translate import NONE, Translation
from edgekit.host.lower.tflite.values import (
    Order,
    Unsupported,
    attributes,
    first,
    last,
    names,
    optional_input,
    shape_of,
    type_of,
)
from edgekit.host.lower.tflite.writer import Array, options

_LOWEST = float(np.finfo(np.float32).min)
_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp")


def made_by(node: ir.Node) -> str:
    """The name of a node's first output."""
    return node.outputs[0].name or ""


def result_shape(node: ir.Node) -> tuple[int, ...]:
    """The shape of a node's first output."""
    return shape_of(node.outputs[0])


# --- shapes


def reshape(t: Translation, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the shape is known, whatever says it."""
    t.reshaped(names(node)[0], made_by(node), result_shape(node))


def identity(t: Translation, node: ir.Node) -> None:
    """Identity, Dropout."""
    t.values.alias(made_by(node), names(node)[0])


def transpose(t: Translation, node: ir.Node) -> None:
    """Transpose: nothing is written, the same tensor is another value's."""
    rank = len(result_shape(node))
    t.transposed(names(node)[0], made_by(node), attributes(node).get("perm") or first(rank)[::-1])


def expand(t: Translation, node: ir.Node) -> None:
    """Expand, by TILE."""
    source, shape = names(node)[0], result_shape(node)
    wide = t.values.padded_rank(source, len(shape))
    tile_to(t, wide, made_by(node), shape)


def tile(t: Translation, node: ir.Node) -> None:
    """Tile."""
    tile_to(t, names(node)[0], made_by(node), result_shape(node))


def tile_to(t: Translation, source: str, made: str, shape: Sequence[int]) -> None:
    """A value repeated along its axes until it has this shape."""
    order = t.values.preferred([source])
    before = t.values.shape(source)
    x, y = t.through(source, made, shape, (order, order))
    times = t.values.ints([shape[axis] // before[axis] for axis in order])
    t.values.file.operator("TILE", 1, [x, times], [y], options("TileOptions"))


def cast(t: Translation, node: ir.Node) -> None:
    """Cast; between float16 and float32 there is nothing to do."""
    source, kind = names(node)[0], type_of(node.outputs[0])
    have = t.values[source].dtype
    kind = "float32" if kind in ("float16", "float64") else kind
    have = "float32" if have in ("float16", "float64") else have
    if have == kind:
        t.values.alias(made_by(node), source)
        return
    order = t.values.preferred([source])
    x = t.values.at(source, order)
    made = t.values.new(made_by(node), t.values.shape(source), order, kind)
    t.values.file.operator("CAST", 1, [x], [made], options("CastOptions"))


# --- parts of tensors


def slice_(t: Translation, node: ir.Node) -> None:
    """Slice, its limits in inputs or (before opset 10) attributes."""
    source, told = names(node)[0], attributes(node)
    shape = t.values.shape(source)
    if "starts" in told:
        starts, ends = told["starts"], told["ends"]
        axes, steps = told.get("axes") or first(len(starts)), (1,) * len(starts)
    else:
        starts, ends = (_ints(t, optional_input(node, index)) for index in (1, 2))
        axes = _ints(t, optional_input(node, 3)) or first(len(starts))
        steps = _ints(t, optional_input(node, 4)) or (1,) * len(starts)
    begin, step = [0] * len(shape), [1] * len(shape)
    for axis, start, end, by in zip(axes, starts, ends, steps, strict=True):
        begin[axis], _, step[axis] = slice(start, end, by).indices(shape[axis])
    cut(t, source, made_by(node), begin, result_shape(node), step)


def _ints(t: Translation, name: str | None) -> tuple[int, ...]:
    return () if name is None else tuple(map(int, t.constant(name).reshape(-1)))


def cut(
    t: Translation,
    source: str,
    made: str,
    begin: Sequence[int],
    shape: Sequence[int],
    step: Sequence[int] | None = None,
) -> None:
    """A part of a value, from `begin` on, of this shape."""
    order = t.values.preferred([source])
    x, y = t.through(source, made, shape, (order, order))
    begins = [begin[axis] for axis in order]
    sizes = [shape[axis] for axis in order]
    steps = [1 if step is None else step[axis] for axis in order]
    if all(by == 1 for by in steps):
        t.values.emit("SLICE", [x, t.values.ints(begins), t.values.ints(sizes)], y)
        return
    ends = [b + n * by for b, n, by in zip(begins, sizes, steps, strict=True)]
    mask = sum(1 << index for index, end in enumerate(ends) if end < 0)
    inputs = [x, t.values.ints(begins), t.values.ints([max(end, 0) for end in ends]), t.values.ints(steps)]
    t.values.emit("STRIDED_SLICE", inputs, y, endMask=mask)


def split(t: Translation, node: ir.Node) -> None:
    """Split: a SLICE for each part."""
    source = names(node)[0]
    rank = t.values.rank(source)
    axis = int(attributes(node).get("axis", 0)) % rank
    begin = [0] * rank
    for value in node.outputs:
        shape = shape_of(value)
        if value.name and (value.uses() or value.is_graph_output()):
            cut(t, source, value.name, begin, shape)
        begin[axis] += shape[axis]


def concat(t: Translation, node: ir.Node) -> None:
    """Concat: in int8 all parts must have the scale of the whole, so those that have another are brought to it."""
    given, target = names(node), t.target(node)
    rank = len(target.shape)
    axis = int(attributes(node)["axis"]) % rank
    order = t.values.preferred(given)
    place = order.index(axis)
    version, fields = 1, {"axis": place, "fusedActivationFunction": NONE}
    if target.quant is not None:
        version = 2
        tensors = []
        for name in given:
            if target.quant.same(t.values.quant_of(name)):
                tensors.append(t.code_input(name, order))
            elif t.values.is_constant(name):
                tensors.append(t.values.at(t.quantized_constant(name, target.quant), order))
            else:
                tensors.append(t.requantize(name, t.values.fresh(name), target.quant, order))
        made = t.output(target, order, codes=True)
    elif _share_codes(t, given):
        version = 2
        pairs = [t.through(name, made_by(node), target.shape, (order, order)) for name in given[:1]]
        tensors = [t.code_input(name, order) for name in given]
        made = pairs[0][1]
    else:
        tensors = [t.values.at(name, order) for name in given]
        made = t.result(node, order, t.values[given[0]].dtype)
    t.values.file.operator(
        "CONCATENATION", version, tensors, [made], options("ConcatenationOptions", **fields)
    )


def _share_codes(t: Translation, given: Sequence[str]) -> bool:
    quants = [t.values.quant_of(name) for name in given]
    head = quants[0]
    computed = not any(t.values.is_constant(name) for name in given)
    return computed and head is not None and head.per_tensor and all(head.same(quant) for quant in quants)


def gather(t: Translation, node: ir.Node) -> None:
    """Gather along one axis."""
    source, index_name = names(node)[:2]
    rank = t.values.rank(source)
    axis = int(attributes(node).get("axis", 0)) % rank
    shape = result_shape(node)
    if t.values.is_constant(index_name):
        array = t.constant(index_name).astype(np.int64)
        array = np.where(array < 0, array + t.values.shape(source)[axis], array).astype(np.int32)
        indices, depth = t.values.file.constant(array), array.ndim
    else:
        indices, depth = t.values.at(index_name), t.values.rank(index_name)
    order = t.values.preferred([source]) if depth < 2 and not t.values.is_constant(source) else first(rank)
    place = order.index(axis)
    after = order if depth == 1 else first(len(shape))
    if depth == 0:
        after = tuple(a - (a > axis) for a in order if a != axis)
    x, y = t.through(source, made_by(node), shape, (order, after))
    t.values.emit("GATHER", [x, indices], y, axis=place, batchDims=0)


def taken(t: Translation, tensor: int, place: int, indices: Array) -> int:
    """A tensor's entries along one of its own axes."""
    file = t.values.file
    if np.array_equal(indices, np.arange(file.shape(tensor)[place])):
        return tensor
    shape = list(file.shape(tensor))
    shape[place] = len(indices)
    made = file.tensor("", shape, file.dtype(tensor), file.quant(tensor))
    t.values.emit("GATHER", [tensor, t.values.ints(indices.tolist())], made, axis=place, batchDims=0)
    return made


# --- borders and windows


def pad(t: Translation, node: ir.Node) -> None:
    """Pad: with a constant, by reflection, or with the edge."""
    source, told = names(node)[0], attributes(node)
    rank = t.values.rank(source)
    if "pads" in told:
        given, value = told["pads"], float(told.get("value", 0.0))
        axes: tuple[int, ...] = first(rank)
    else:
        given = _ints(t, optional_input(node, 1))
        filler = optional_input(node, 2)
        value = 0.0 if filler is None else t.number(filler)
        axes = _ints(t, optional_input(node, 3)) or first(rank)
    rows = [(0, 0)] * rank
    for index, axis in enumerate(axes):
        rows[axis] = (int(given[index]), int(given[index + len(axes)]))
    mode = told.get("mode", "constant")
    shape = t.values.shape(source)
    if mode == "constant" and any(min(row) < 0 for row in rows):
        smaller, begin = t.values.fresh(source), [max(-low, 0) for low, _ in rows]
        sizes = [n - max(-a, 0) - max(-b, 0) for n, (a, b) in zip(shape, rows, strict=True)]
        cut(t, source, smaller, begin, sizes)
        source, rows = smaller, [(max(a, 0), max(b, 0)) for a, b in rows]
    order = t.values.preferred([source])
    x, y = t.through(source, made_by(node), result_shape(node), (order, order))
    placed = [rows[axis] for axis in order]
    if mode != "constant":
        numpy_mode: Any = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}.get(mode)
        if numpy_mode is None:
            raise Unsupported(f"in mode {mode!r}")
        for place, row in enumerate(placed):
            x = taken(t, x, place, np.pad(np.arange(t.values.file.shape(x)[place]), row, numpy_mode))
        t.values.reshape_into(x, y)
        return
    table = t.values.file.constant(np.array(placed, np.int32))
    quant = t.values.file.quant(y)
    if value == 0.0:
        t.values.emit("PAD", [x, table], y)
        return
    if quant is not None:
        value = float(np.clip(np.rint(value / np.float32(quant.scale[0])) + quant.zero[0], -128, 127))
    filler_tensor = t.values.file.constant(np.array([value], t.values.file.dtype(y)), quant)
    t.values.emit("PADV2", [x, table, filler_tensor], y, "PadV2Options")


def max_pool(t: Translation, node: ir.Node) -> None:
    """MaxPool; a border that TFLite does not know is written in front, with what no maximum takes."""
    source, told = names(node)[0], attributes(node)
    shape, out = t.values.shape(source), result_shape(node)
    slide = window(node, told["kernel_shape"], shape[2:], out[2:])
    if max(slide.dilations) > 1:
        raise Unsupported("with dilations")
    same = slide.is_same(shape[2:], out[2:])
    slide = slide.in_two()
    order = last(len(shape))
    x, y = t.through(source, made_by(node), out, (order, order))
    file = t.values.file
    if len(shape) == 3:
        x = t.values.reshaped(x, (file.shape(x)[0], 1, *file.shape(x)[1:]))
    elif len(shape) != 4:
        raise Unsupported(f"over {len(shape) - 2} dimensions; TFLite has it over 1 and 2")
    if not same:
        low = -128.0 if file.dtype(x) == "int8" else _LOWEST
        x = padded(t, x, slide.pads, None if _never_negative(node) else low)
    filled = y if len(shape) == 4 else file.tensor("", _two(file.shape(y)), file.dtype(y), file.quant(y))
    t.values.emit(
        "MAX_POOL_2D", [x], filled, "Pool2DOptions",
        padding=SAME if same else VALID,
        strideH=slide.strides[0], strideW=slide.strides[1],
        filterHeight=slide.kernel[0], filterWidth=slide.kernel[1],
        fusedActivationFunction=NONE,
    )  # fmt: skip
    close_image(t, filled, y)


def _two(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0], 1, *shape[1:])


def _never_negative(node: ir.Node) -> bool:
    """Whether what a node reads cannot be below zero: then a border of zeros hides no maximum."""
    value = node.inputs[0]
    maker = None if value is None else value.producer()
    while maker is not None and maker.op_type in (
        "QuantizeLinear",
        "DequantizeLinear",
        "MaxPool",
        "Identity",
    ):
        value = maker.inputs[0]
        maker = None if value is None else value.producer()
    return maker is not None and maker.op_type in _NOT_NEGATIVE


# --- sizes of images


def resize(t: Translation, node: ir.Node) -> None:
    """Resize of an image: nearest (by the runtime's own rule, or a GATHER per axis) and linear."""
    source, told = names(node)[0], attributes(node)
    before, after = t.values.shape(source), result_shape(node)
    if len(before) not in (3, 4) or before[:2] != after[:2]:
        raise Unsupported("of other axes than those of an image")
    scales = _scales(t, node, before, after)
    mode = told.get("mode", "nearest")
    if mode in ("linear", "bilinear"):
        _linear(t, node, scales)
        return
    if mode != "nearest":
        raise Unsupported(f"in mode {mode!r}")
    rule = functools.partial(_nearest, told, upsample=node.op_type == "Upsample" or t.opset < 11)
    indices = [rule(*row) for row in zip(before[2:], after[2:], scales, strict=True)]
    order = last(len(before))
    x, y = t.through(source, made_by(node), after, (order, order))
    for half in (False, True):
        if len(before) == 4 and all(
            np.array_equal(index, _runtime_nearest(a, b, half=half))
            for index, a, b in zip(indices, before[2:], after[2:], strict=True)
        ):
            version = 3 if half else 2 if t.values.file.dtype(y) == "int8" else 1
            settings = options("ResizeNearestNeighborOptions", alignCorners=False, halfPixelCenters=half)
            size = t.values.ints(after[2:])
            t.values.file.operator("RESIZE_NEAREST_NEIGHBOR", version, [x, size], [y], settings)
            return
    for place, index in enumerate(indices, start=1):
        x = taken(t, x, place, index)
    t.values.reshape_into(x, y)


def _scales(t: Translation, node: ir.Node, before: Sequence[int], after: Sequence[int]) -> list[float]:
    """Of the image's axes, as ONNX computes coordinates by them."""
    told = attributes(node)
    if told.get("antialias", 0):
        raise Unsupported("with antialias")
    if node.op_type == "Upsample" and "scales" in told:
        return [float(scale) for scale in told["scales"][2:]]
    name = optional_input(node, 1 if node.op_type == "Upsample" or t.opset < 11 else 2)
    given = () if name is None else tuple(map(float, t.constant(name).reshape(-1)))
    if given:
        axes = told.get("axes") or first(len(given))
        by_axis = {axis % len(before): scale for axis, scale in zip(axes, given, strict=True)}
        return [by_axis.get(axis, 1.0) for axis in range(2, len(before))]
    return [b / a for a, b in zip(before[2:], after[2:], strict=True)]


def _coordinates(mode: str, size: int, made: int, scale: float) -> Array:
    x = np.arange(made, dtype=np.float64)
    if mode == "asymmetric":
        return np.asarray(x / scale)
    if mode == "align_corners":
        return np.asarray(x * (size - 1) / max(made - 1, 1))
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and made > 1):
        return np.asarray((x + 0.5) / scale - 0.5)
    if mode == "pytorch_half_pixel":
        return np.zeros(1)
    raise Unsupported(f"with coordinates {mode!r}")


def _nearest(told: Any, size: int, made: int, scale: float, *, upsample: bool) -> Array:
    """Which source index each place takes (ONNX, operator Resize)."""
    if upsample:
        return np.asarray(np.clip(np.floor(np.arange(made) / scale), 0, size - 1).astype(np.int64))
    x = _coordinates(told.get("coordinate_transformation_mode", "half_pixel"), size, made, scale)
    rounding = told.get("nearest_mode", "round_prefer_floor")
    found = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }[rounding]
    return np.asarray(np.clip(found, 0, size - 1).astype(np.int64))


def _runtime_nearest(size: int, made: int, *, half: bool) -> Array:
    """What RESIZE_NEAREST_NEIGHBOR takes, computed in float32 as it does."""
    scale = np.float32(size) / np.float32(made)
    offset = np.float32(0.5 if half else 0.0)
    x = np.floor((np.arange(made, dtype=np.float32) + offset) * scale)
    return np.asarray(np.clip(x, 0, size - 1).astype(np.int64))


def _linear(t: Translation, node: ir.Node, scales: Sequence[float]) -> None:
    source, told = names(node)[0], attributes(node)
    before, target = t.values.shape(source), t.target(node)
    after = target.shape
    mode = told.get("coordinate_transformation_mode", "half_pixel")
    if node.op_type == "Upsample" or t.opset < 11:
        mode = "asymmetric"
    if mode == "pytorch_half_pixel" and min(after[2:]) > 1:
        mode = "half_pixel"
    if mode not in ("asymmetric", "half_pixel", "align_corners"):
        raise Unsupported(f"linear with coordinates {mode!r}")
    exact = all(abs(a * s - b) < 1e-3 for a, b, s in zip(before[2:], after[2:], scales, strict=True))
    if not exact:
        raise Unsupported("linear by scales that do not give whole sizes")
    codes = (
        t.int8(target, [source]) and target.quant is not None and target.quant.same(t.values.quant_of(source))
    )
    x = image(t, source, codes=codes)
    order = last(len(before))
    y = t.output(target, order, codes=codes)
    file = t.values.file
    filled = y if len(before) == 4 else file.tensor("", _two(file.shape(y)), file.dtype(y), file.quant(y))
    version = 3 if mode == "half_pixel" else 2 if codes else 1
    settings = options(
        "ResizeBilinearOptions", alignCorners=mode == "align_corners", halfPixelCenters=mode == "half_pixel"
    )
    size = t.values.ints(after[2:] if len(before) == 4 else (1, *after[2:]))
    file.operator("RESIZE_BILINEAR", version, [x, size], [filled], settings)
    close_image(t, filled, y)


def depth_to_space(t: Translation, node: ir.Node) -> None:
    """DepthToSpace: as the reshapes and the transposition that ONNX defines it by."""
    source, told = names(node)[0], attributes(node)
    n, c, h, w = t.values.shape(source)
    block = int(told["blocksize"])
    less = c // block**2
    if told.get("mode", "DCR") == "DCR":
        _in_blocks(t, node, source, (n, block, block, less, h, w), (0, 3, 4, 1, 5, 2))
    else:
        _in_blocks(t, node, source, (n, less, block, block, h, w), (0, 1, 4, 2, 5, 3))


def space_to_depth(t: Translation, node: ir.Node) -> None:
    """SpaceToDepth, likewise."""
    source, told = names(node)[0], attributes(node)
    n, c, h, w = t.values.shape(source)
    block = int(told["blocksize"])
    perm = (0, 3, 5, 1, 2, 4) if told.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    _in_blocks(t, node, source, (n, c, h // block, block, w // block, block), perm)


def _in_blocks(t: Translation, node: ir.Node, source: str, shape: Sequence[int], perm: Order) -> None:
    wide, turned = t.values.fresh(source), t.values.fresh(source)
    t.reshaped(source, wide, shape)
    t.transposed(wide, turned, perm)
    t.reshaped(turned, made_by(node), result_shape(node))


RULES = {
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Identity": identity,
    "Dropout": identity,
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "Cast": cast,
    "Slice": slice_,
    "Split": split,
    "Concat": concat,
    "Gather": gather,
    "Pad": pad,
    "MaxPool": max_pool,
    "Resize": resize,
    "Upsample": resize,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
