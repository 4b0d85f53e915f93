"""Operators that multiply by weights: convolutions and dense layers, with what TFLite wants of weights and biases.

int8: symmetric weights, per output channel or per tensor; a bias in int32 with the scale input x weight. Per channel,
a dense layer is written as a 1x1 convolution: FULLY_CONNECTED knows it only from version 12 on, CONV_2D always did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgekit.host.lower.tflite.translate import NONE, Target, Translation
from edgekit.host.lower.tflite.values import (
    Known,
    Order,
    Unsupported,
    attributes,
    first,
    last,
    names,
    optional_input,
)
from edgekit.host.lower.tflite.writer import Array, Quant, options

SAME, VALID = 0, 1
_GROUPED = 6  # the version of CONV_2D that knows groups
_LARGEST_BIAS = 2**31 - 1


@dataclass(frozen=True)
class Weight:
    """A weight's numbers or codes. quant: None where they are numbers."""

    array: Array
    quant: Quant | None

    def moved(self, order: Order) -> Weight:
        """With other axes first."""
        quant = self.quant
        if quant is not None and not quant.per_tensor:
            quant = replace(quant, axis=order.index(quant.axis))
        return Weight(np.ascontiguousarray(self.array.transpose(order)), quant)

    def widened(self, axis: int) -> Weight:
        """With an axis of size 1 put in."""
        quant = self.quant
        if quant is not None and not quant.per_tensor and quant.axis >= axis:
            quant = replace(quant, axis=quant.axis + 1)
        return Weight(np.expand_dims(self.array, axis), quant)


def weight_of(t: Translation, name: str) -> Weight:
    """The weight behind a name. Raises Unsupported where it is computed."""
    entry = t.values[name]
    codes = None if entry.codes is None else t.values[entry.codes]
    if codes is not None and codes.array is not None and codes.array.dtype == np.int8:
        return Weight(codes.array, codes.quant)
    return Weight(t.constant(name), None)


def weight_tensor(t: Translation, weight: Weight, *, codes: bool) -> int:
    """The weight in the file: codes as they are, or behind a DEQUANTIZE that the runtime does once, when it opens."""
    name = t.values.fresh("weight")
    t.values.add_constant(name, weight.array, weight.quant)
    if weight.quant is None or codes:
        return t.values.at(name)
    real = t.values.fresh("weight")
    t.values.known[real] = Known(weight.array.shape, "float32", codes=name)
    return t.values.at(real)


def fits_int8(weight: Weight, channels: int) -> bool:
    """Whether the int8 kernels take the weight: symmetric, one scale for all or one per output channel."""
    quant = weight.quant
    if quant is None or any(quant.zero):
        return False
    return quant.per_tensor or (quant.axis == channels and len(quant.scale) == weight.array.shape[channels])


def bias_tensor(t: Translation, name: str | None, count: int, scales: Quant | None) -> int:
    """The bias in the file: int32 with these scales, or float32. None: zeros."""
    real = np.zeros(count, np.float32) if name is None else t.constant(name)
    real = np.broadcast_to(real.reshape(-1), (count,))
    if scales is None:
        return t.values.file.constant(np.array(real, np.float32))
    scale = np.array(scales.scale, np.float64)
    codes = None if name is None or t.values[name].codes is None else t.values[t.values[name].codes or ""]
    same = (
        codes is not None
        and codes.quant is not None
        and np.allclose(codes.quant.scale, scale, rtol=1e-6, atol=0)
    )
    if same and codes is not None and codes.array is not None and codes.array.dtype == np.int32:
        found = np.broadcast_to(codes.array.reshape(-1), (count,))
    else:
        found = np.rint(real.astype(np.float64) / scale)
        if np.abs(found).max(initial=0) > _LARGEST_BIAS:
            raise Unsupported("its bias does not fit 32 bits at the scale of input x weight")
    return t.values.file.constant(found.astype(np.int32), scales)


def bias_quant(source: Quant, weight: Quant) -> Quant:
    """Scales of the int32 sums."""
    scale = np.float32(source.scale[0]) * np.array(weight.scale, np.float32)
    return Quant(tuple(map(float, np.atleast_1d(scale))), (0,) * np.size(scale), 0)


# --- windows


@dataclass(frozen=True)
class Window:
    """What slides over an image: sizes per axis of the image; pads are (before, after) per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """The kernel's size with its holes."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def is_same(self, sizes: Sequence[int], out: Sequence[int]) -> bool:
        """Whether the pads are those of TFLite's SAME."""
        for size, made, reach, stride, pads in zip(
            sizes, out, self.reach, self.strides, self.pads, strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            if made != -(-size // stride) or pads != (total // 2, total - total // 2):
                return False
        return True

    def in_two(self) -> Window:
        """The same in two dimensions."""
        if len(self.kernel) == 2:
            return self
        return Window((1, *self.kernel), (1, *self.strides), (1, *self.dilations), ((0, 0), *self.pads))


def window(node: ir.Node, kernel: Sequence[int], sizes: Sequence[int], out: Sequence[int]) -> Window:
    """The window of a convolution or pooling over an image of these sizes that gives `out`."""
    told, rank = attributes(node), len(kernel)
    strides = tuple(told.get("strides") or (1,) * rank)
    dilations = tuple(told.get("dilations") or (1,) * rank)
    given = tuple(told.get("pads") or (0,) * (2 * rank))
    pads = tuple(zip(given[:rank], given[rank:], strict=True))
    made = Window(tuple(kernel), strides, dilations, pads)
    auto = told.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((o - 1) * s + r - i, 0) for o, s, r, i in zip(out, strides, made.reach, sizes, strict=True)
        ]
        low = [(total + (auto == "SAME_LOWER")) // 2 for total in totals]
        made = replace(made, pads=tuple((a, total - a) for a, total in zip(low, totals, strict=True)))
    elif auto == "VALID":
        made = replace(made, pads=((0, 0),) * rank)
    elif told.get("ceil_mode", 0):
        beyond = [
            max((o - 1) * s + r - i - a, b)
            for o, s, r, i, (a, b) in zip(out, strides, made.reach, sizes, made.pads, strict=True)
        ]
        made = replace(made, pads=tuple((a, b) for (a, _), b in zip(made.pads, beyond, strict=True)))
    return made


def image(t: Translation, name: str, *, codes: bool) -> int:
    """A value (N, C, L) or (N, C, H, W) as a tensor (N, H, W, C)."""
    rank = t.values.rank(name)
    if rank not in (3, 4):
        raise Unsupported(f"over {rank - 2} dimensions; TFLite has it over 1 and 2")
    tensor = t.operand(name, last(rank), codes=codes)
    if rank == 4:
        return tensor
    n, length, channels = t.values.file.shape(tensor)
    return t.values.reshaped(tensor, (n, 1, length, channels))


def image_output(t: Translation, target: Target, *, codes: bool) -> tuple[int, int]:
    """The tensor (N, H, W, C) an image operator fills, and the one of its result."""
    rank = len(target.shape)
    made = t.output(target, last(rank), codes=codes)
    if rank == 4:
        return made, made
    n, length, channels = t.values.file.shape(made)
    file = t.values.file
    return file.tensor("", (n, 1, length, channels), file.dtype(made), file.quant(made)), made


def close_image(t: Translation, filled: int, made: int) -> None:
    """After the operator: give the result its own shape."""
    if filled != made:
        t.values.reshape_into(filled, made)


def padded(t: Translation, tensor: int, pads: Sequence[tuple[int, int]], value: float | None = None) -> int:
    """An image with a border of zeros (of `value`: a number, or a code)."""
    file = t.values.file
    if not any(map(any, pads)):
        return tensor
    n, h, w, c = file.shape(tensor)
    (top, bottom), (left, right) = pads
    shape = (n, h + top + bottom, w + left + right, c)
    made = file.tensor("", shape, file.dtype(tensor), file.quant(tensor))
    rows = file.constant(np.array([(0, 0), (top, bottom), (left, right), (0, 0)], np.int32))
    if value is None:
        t.values.emit("PAD", [tensor, rows], made)
    else:
        filler = file.constant(np.array([value], file.dtype(tensor)), file.quant(tensor))
        t.values.emit("PADV2", [tensor, rows, filler], made, "PadV2Options")
    return made


# --- convolutions


def conv(t: Translation, node: ir.Node) -> None:
    """Conv, in one or two dimensions, whole, grouped or depthwise."""
    source, weight_name = names(node)[:2]
    weight = weight_of(t, weight_name)
    shape, target = t.values.shape(source), t.target(node, fuse=True)
    group = int(attributes(node).get("group", 1))
    slide = window(node, weight.array.shape[2:], shape[2:], target.shape[2:])
    codes = t.int8(target, [source]) and fits_int8(weight, 0)
    x = image(t, source, codes=codes)
    if weight.array.ndim == 3:
        weight = weight.widened(2)
    same = slide.is_same(shape[2:], target.shape[2:])
    slide = slide.in_two()
    if not same:
        x = padded(t, x, slide.pads)
    depthwise = group > 1 and group == shape[1]
    weight = weight.moved((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    bias = t.values.quant_of(source)
    scales = (
        bias_quant(bias, weight.quant) if codes and bias is not None and weight.quant is not None else None
    )
    inputs = [
        x,
        weight_tensor(t, weight, codes=codes),
        bias_tensor(t, optional_input(node, 2), target.shape[1], scales),
    ]
    filled, made = image_output(t, target, codes=codes)
    settings = {
        "padding": SAME if same else VALID,
        "strideH": slide.strides[0],
        "strideW": slide.strides[1],
        "dilationHFactor": slide.dilations[0],
        "dilationWFactor": slide.dilations[1],
        "fusedActivationFunction": target.activation,
    }
    if depthwise:
        version = 3 if codes else 2 if max(slide.dilations) > 1 else 1
        settings["depthMultiplier"] = target.shape[1] // group
        t.values.file.operator(
            "DEPTHWISE_CONV_2D", version, inputs, [filled], options("DepthwiseConv2DOptions", **settings)
        )
    else:
        version = _GROUPED if group > 1 else 3 if codes else 1
        t.values.file.operator("CONV_2D", version, inputs, [filled], options("Conv2DOptions", **settings))
    close_image(t, filled, made)


def conv_transpose(t: Translation, node: ir.Node) -> None:
    """ConvTranspose: TFLite's SAME where it is that, else the whole result, cut to size; groups as one of zeros."""
    source, weight_name = names(node)[:2]
    told, weight = attributes(node), weight_of(t, weight_name)
    weight = _ungrouped(weight, int(told.get("group", 1)))
    shape, target = t.values.shape(source), t.target(node)
    rank = len(shape) - 2
    strides = tuple(told.get("strides") or (1,) * rank)
    dilations = tuple(told.get("dilations") or (1,) * rank)
    codes = t.int8(target, [source]) and fits_int8(weight, 1)
    x = image(t, source, codes=codes)
    weight = Weight(_with_holes(weight.array, dilations), weight.quant)
    if rank == 1:
        weight, strides = weight.widened(2), (1, *strides)
    n, high, wide, _ = t.values.file.shape(x)
    out = target.shape[2:] if rank == 2 else (1, *target.shape[2:])
    whole = _whole((high, wide), strides, weight)
    begins = _begins(node, whole, out, rank)
    beyond = [max(0, b + o - w) for b, o, w in zip(begins, out, whole, strict=True)]
    if any(beyond):  # the rest of the output, which no window reaches, is reached by zeros
        array = np.pad(weight.array, [(0, 0), (0, 0), *((0, extra) for extra in beyond)])
        weight = Weight(array, weight.quant)
        whole = _whole((high, wide), strides, weight)
    if min(begins) < 0:
        raise Unsupported("with negative pads")
    excess = [w - o for w, o in zip(whole, out, strict=True)]
    same = tuple(out) == (high * strides[0], wide * strides[1]) and begins == tuple(e // 2 for e in excess)
    exact = not any(excess)
    scale = t.values.quant_of(source)
    weight = weight.moved((1, 2, 3, 0))
    scales = (
        bias_quant(scale, weight.quant) if codes and scale is not None and weight.quant is not None else None
    )
    channels = target.shape[1]
    filled, made = image_output(t, target, codes=codes)
    file = t.values.file
    cut = (
        filled
        if same or exact
        else file.tensor("", (n, *whole, channels), file.dtype(filled), file.quant(filled))
    )
    inputs = [
        t.values.ints(file.shape(cut)),
        weight_tensor(t, weight, codes=codes),
        x,
        bias_tensor(t, optional_input(node, 2), channels, scales),
    ]
    padding = SAME if same and not exact else VALID
    settings = options("TransposeConvOptions", padding=padding, strideH=strides[0], strideW=strides[1])
    file.operator("TRANSPOSE_CONV", 3, inputs, [cut], settings)
    if cut != filled:
        begin, size = t.values.ints((0, *begins, 0)), t.values.ints(file.shape(filled))
        t.values.emit("SLICE", [cut, begin, size], filled)
    close_image(t, filled, made)


def _whole(sizes: Sequence[int], strides: Sequence[int], weight: Weight) -> tuple[int, ...]:
    """How far the windows reach together."""
    kernel = weight.array.shape[2:]
    return tuple((size - 1) * s + k for size, s, k in zip(sizes, strides, kernel, strict=True))


def _begins(node: ir.Node, whole: Sequence[int], out: Sequence[int], rank: int) -> tuple[int, ...]:
    """Where the result begins inside all that the windows reach."""
    told = attributes(node)
    pads = tuple(told.get("pads") or (0,) * (2 * rank))[:rank]
    if told.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in told:
        upper = told.get("auto_pad") == "SAME_UPPER"
        totals = [max(w - o, 0) for w, o in zip(whole, out, strict=True)][-rank:]
        pads = tuple(total // 2 if upper else total - total // 2 for total in totals)
    return pads if rank == 2 else (0, *pads)


def _ungrouped(weight: Weight, groups: int) -> Weight:
    """The weight (inputs, outputs / groups, ...) of a ConvTranspose for all inputs and outputs, zero between groups."""
    if groups == 1:
        return weight
    inputs, outputs = weight.array.shape[:2]
    wide = np.zeros((inputs, outputs * groups, *weight.array.shape[2:]), weight.array.dtype)
    share = inputs // groups
    for group in range(groups):
        rows = slice(group * share, (group + 1) * share)
        wide[rows, group * outputs : (group + 1) * outputs] = weight.array[rows]
    quant = weight.quant
    if quant is not None and not quant.per_tensor:
        if quant.axis != 1:
            raise Unsupported("in groups, quantized per input")
        quant = replace(quant, scale=quant.scale * groups, zero=quant.zero * groups)
    if quant is not None and any(quant.zero):
        raise Unsupported("in groups, with asymmetric weights")
    return Weight(wide, quant)


def _with_holes(array: Array, dilations: Sequence[int]) -> Array:
    """A kernel with zeros between its numbers."""
    if max(dilations) == 1:
        return array
    sizes = [(k - 1) * d + 1 for k, d in zip(array.shape[2:], dilations, strict=True)]
    wide = np.zeros((*array.shape[:2], *sizes), array.dtype)
    places = tuple(slice(None, None, d) for d in (1, 1, *dilations))
    wide[places] = array
    return wide


# --- dense layers


def gemm(t: Translation, node: ir.Node) -> None:
    """Gemm: alpha A B + beta C."""
    left, right = names(node)[:2]
    told = attributes(node)
    alpha, beta = float(told.get("alpha", 1.0)), float(told.get("beta", 1.0))
    added = optional_input(node, 2)
    rows, columns = t.target(node).shape
    vector = added is None or (
        t.values.is_constant(added)
        and int(np.prod(t.values.shape(added))) in (1, columns)
        and (len(t.values.shape(added)) == 0 or t.values.shape(added)[-1] in (1, columns))
    )
    if vector and rows > 1 and added is not None and t.values.shape(added)[:1] == (rows,) and columns == 1:
        vector = False  # one number per row is no bias
    if not vector or not t.values.is_constant(right):
        _computed_gemm(t, node, alpha, beta)
        return
    weight = weight_of(t, right)
    if not told.get("transB", 0):
        weight = weight.moved((1, 0))
    if alpha != 1.0:
        weight = Weight(
            np.asarray(t.constant(right) if told.get("transB", 0) else t.constant(right).T)
            * np.float32(alpha),
            None,
        )
    if beta != 1.0 and added is not None:
        added = t.values.add_constant(t.values.fresh("bias"), t.constant(added) * np.float32(beta))
    if told.get("transA", 0):
        turned = t.values.fresh("turned")
        t.transposed(left, turned, (1, 0))
        left = turned
    dense(t, t.target(node, fuse=True), left, weight, added)


def dense(t: Translation, target: Target, source: str, weight: Weight, bias: str | None) -> None:
    """A fully connected layer over the last axis. weight: (outputs, inputs)."""
    shape, file = t.values.shape(source), t.values.file
    count, depth = weight.array.shape
    rows = math.prod(shape[:-1])
    codes = t.int8(target, [source]) and fits_int8(weight, 0)
    x = t.operand(source, first(len(shape)), codes=codes)
    own = first(len(target.shape))
    scale = t.values.quant_of(source)
    scales = (
        bias_quant(scale, weight.quant) if codes and scale is not None and weight.quant is not None else None
    )
    as_conv = codes and weight.quant is not None and not weight.quant.per_tensor
    flat = (1, rows, 1, depth) if as_conv else (rows, depth)
    if as_conv:
        weight = weight.widened(1).widened(1)
    inputs = [
        t.values.reshaped(x, flat),
        weight_tensor(t, weight, codes=codes),
        bias_tensor(t, bias, count, scales),
    ]
    made = t.output(target, own, codes=codes)
    filled = made
    if (*flat[:-1], count) != target.shape:
        filled = file.tensor("", (*flat[:-1], count), file.dtype(made), file.quant(made))
    if as_conv:
        settings = options(
            "Conv2DOptions", padding=VALID, strideH=1, strideW=1, fusedActivationFunction=target.activation
        )
        file.operator("CONV_2D", 3, inputs, [filled], settings)
    else:
        settings = options("FullyConnectedOptions", fusedActivationFunction=target.activation)
        file.operator("FULLY_CONNECTED", 4 if codes else 1, inputs, [filled], settings)
    if filled != made:
        t.values.reshape_into(filled, made)


def matmul(t: Translation, node: ir.Node) -> None:
    """MatMul: by a weight it is a dense layer, else BATCH_MATMUL in float."""
    left, right = names(node)[:2]
    if t.values.is_constant(right) and t.values.rank(right) == 2 and t.values.rank(left) >= 2:
        dense(t, t.target(node, fuse=True), left, weight_of(t, right).moved((1, 0)), None)
        return
    if min(t.values.rank(left), t.values.rank(right)) < 2:
        raise Unsupported("of a vector")
    _batch_matmul(t, left, right, t.result(node, first(len(t.target(node).shape))))


def _batch_matmul(
    t: Translation, left: str, right: str, made: int, *, turn: tuple[bool, bool] = (False, False)
) -> None:
    rank = max(t.values.rank(left), t.values.rank(right))
    a, b = (t.values.at(t.values.padded_rank(name, rank)) for name in (left, right))
    settings = options("BatchMatMulOptions", adjX=turn[0], adjY=turn[1])
    t.values.file.operator("BATCH_MATMUL", 1, [a, b], [made], settings)


def _computed_gemm(t: Translation, node: ir.Node, alpha: float, beta: float) -> None:
    """A Gemm whose second matrix is computed, or whose addend is no vector: in float, step by step."""
    told = attributes(node)
    left, right = names(node)[:2]
    added, shape = optional_input(node, 2), t.target(node).shape
    product, file = file_tensor(t, shape), t.values.file
    turn = (bool(told.get("transA", 0)), bool(told.get("transB", 0)))
    _batch_matmul(t, left, right, product, turn=turn)
    if alpha != 1.0:
        scaled = file_tensor(t, shape)
        t.values.emit("MUL", [product, t.values.float_constant(alpha)], scaled, fusedActivationFunction=NONE)
        product = scaled
    made = t.result(node, first(2))
    if added is None:
        t.values.reshape_into(product, made)
        return
    addend = t.values.at(t.values.padded_rank(added, 2))
    if beta != 1.0:
        scaled = file.tensor("", file.shape(addend), "float32")
        t.values.emit("MUL", [addend, t.values.float_constant(beta)], scaled, fusedActivationFunction=NONE)
        addend = scaled
    t.values.emit("ADD", [product, addend], made, fusedActivationFunction=NONE)


def file_tensor(t: Translation, shape: Sequence[int]) -> int:
    """A float tensor without a name."""
    return t.values.file.tensor("", shape, "float32")


RULES = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
