"""Random small binary networks as QONNX, the same for the same seed: for property tests of what reads and runs them.

    binary_network(seed)                                    any blocks, 1 to 3 exits, images or vectors
    binary_network(seed, weights=("w1",), acts=("a1",))     only these quantizers (of WEIGHTS and ACTS)
    binary_network(seed, first="uint8", blocks=("conv",))   what the first layer reads (FIRST), kinds of block (BLOCKS)
    binary_inputs(model, count, seed)                       inputs that fit, each with batch 1: (1, c, h, w) or (1, c)

Every quantizer is a node of the domain "qonnx.custom_op.general", on weights as well. Each value that a quantizer or a
MultiThreshold compares keeps its distance from the value where the answer changes (2 % of the step between sums), or
stands on it exactly and in numbers that no order of operations rounds (scales that are powers of two): so the hidden
bits are the same however floats are rounded, and only the outputs need a tolerance where scales="any".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from networks import Builder, Shape
from numpy.typing import NDArray
from onnx import TensorProto, helper

DOMAIN = "qonnx.custom_op.general"
CLASSES = 5
EPSILON = 2.0**-10  # of batch normalizations; 1 - EPSILON as a variance gives a factor of exactly 1
MARGIN = 0.02  # of the step between sums

# weights: bits, signed, narrow; "w1" is BipolarQuant, "w1q" a Quant of 1 bit (bipolar as well), "w3" a ternary one
WEIGHTS: Mapping[str, tuple[int, int, int] | None] = {
    "w1": None,
    "w1q": (1, 1, 1),
    "w3": (2, 1, 1),
    "w2": (2, 1, 0),
    "w8": (8, 1, 1),
}
# activations: "a1" is BipolarQuant, "a3" ternary, "a2s" -2 to 1, "a2" 0 to 3
ACTS: Mapping[str, tuple[int, int, int] | None] = {
    "a1": None,
    "a1q": (1, 1, 1),
    "a3": (2, 1, 1),
    "a2s": (2, 1, 0),
    "a2": (2, 0, 0),
}
FIRST = ("quant8", "unsigned8", "uint8", "uint8_shifted", "bits", "quant2")
SCALES = ("one", "powers", "any")
HEADS = ("dense", "hidden", "average", "average_quantized", "average_last")


@dataclass(frozen=True)
class Act:
    """Values low..high (integers) times unit, of shape (1, channels, *sides)."""

    name: str
    channels: int
    sides: tuple[int, ...]
    unit: float
    low: int
    high: int
    kind: str  # of ACTS, or "" for the input's


@dataclass(frozen=True)
class Acc:
    """Sums: integers times units[channel], about `spread` of them wide."""

    name: str
    channels: int
    sides: tuple[int, ...]
    units: NDArray[np.float64]
    spread: float


class Net(Builder):
    """A builder that names tensors by itself and draws quantizers."""

    def __init__(
        self, seed: int, opset: int, weights: Sequence[str], acts: Sequence[str], scales: str
    ) -> None:
        super().__init__(seed, opset)
        self.made = 0
        self.weight_kinds, self.act_kinds, self.scales = tuple(weights), tuple(acts), scales

    def fresh(self, stem: str) -> str:
        self.made += 1
        return f"{stem}{self.made}"

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def pick(self, *values: Any) -> Any:
        return values[int(self.random.integers(len(values)))]

    def width(self) -> int:
        return int(self.pick(2, 3, 5, 7, 8, 9, 13, 16, 17, 31, 33))

    def numbers(self, stem: str, value: Any) -> str:
        return self.constant(self.fresh(stem), np.array(value, np.float32))

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.op(kind, inputs, self.fresh(kind.lower()), **attributes)

    def scale(self) -> float:
        if self.scales == "one":
            return 1.0
        if self.scales == "powers":
            return float(2.0 ** self.random.integers(-4, 2))
        return float(np.float32(self.random.uniform(0.05, 0.9)))

    def quant(self, x: str, scale: Any, form: tuple[int, int, int] | None) -> str:
        """BipolarQuant where form is None, else Quant of (bits, signed, narrow)."""
        factor = self.numbers("scale", scale)
        if form is None:
            return self.node("BipolarQuant", [x, factor], domain=DOMAIN)
        bits, signed, narrow = form
        zero, width = self.numbers("zero", 0.0), self.numbers("bits", float(bits))
        attributes = {"signed": signed, "narrow": narrow, "rounding_mode": "ROUND"}
        return self.node("Quant", [x, factor, zero, width], domain=DOMAIN, **attributes)

    def weights_of(
        self, shape: Sequence[int], axis: int = 0, kind: str | None = None, one_scale: bool = False
    ) -> tuple[str, NDArray[np.float64], float]:
        """A quantized weight: its tensor, the scale of each output channel (along axis), its root mean square."""
        kind = kind or self.pick(*self.weight_kinds)
        form = WEIGHTS[kind]
        channels = shape[axis]
        scales = np.full(channels, self.scale())
        per_channel = not one_scale and self.scales != "one" and self.chance(0.4)
        if per_channel:
            scales = np.array([self.scale() for _ in range(channels)])
        sizes = [channels if index == axis else 1 for index in range(len(shape))]
        given = scales.reshape(sizes) if per_channel else scales[0]
        top = 1.0 if form is None or form[0] == 1 else 2.0 ** (form[0] - 1)
        value = self.random.uniform(-top, top, tuple(shape)) * scales.reshape(sizes)
        name = self.constant(self.fresh("w"), value.astype(np.float32))
        return self.quant(name, given, form), scales.astype(np.float32).astype(np.float64), top * 0.7


def grid(form: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Lowest and highest code of a quantizer, and the step between codes."""
    if form is None or (form[0] == 1 and form[1]):
        return -1, 1, 2
    bits, signed, narrow = form
    if not signed:
        return 0, 2**bits - 1 - narrow, 1
    return narrow - 2 ** (bits - 1), 2 ** (bits - 1) - 1, 1


def cuts(form: tuple[int, int, int] | None, scale: float) -> NDArray[np.float64]:
    """The values where a quantizer's answer changes."""
    low, high, step = grid(form)
    return np.array([0.0]) if step == 2 else (np.arange(low, high) + 0.5) * scale


# --- from sums to quantized values ------------------------------------------------------------------------------------


def exact(units: NDArray[np.float64]) -> bool:
    return all(math.frexp(unit)[0] == 0.5 for unit in units)


def batch_norm(n: Net, x: Acc, levels: NDArray[np.float64]) -> str:
    """Batch normalization before a quantizer that changes its answer at `levels`: gamma of either sign, and 0."""
    rows = [draw_norm(n, unit, x.spread, levels) for unit in x.units]
    names = [n.numbers(stem, values) for stem, values in zip("gbmv", np.array(rows).T, strict=True)]
    return n.node("BatchNormalization", [x.name, *names], epsilon=EPSILON)


def draw_norm(n: Net, unit: float, spread: float, levels: NDArray[np.float64]) -> tuple[float, ...]:
    """gamma, beta, mean, variance of one channel."""
    while True:
        if math.frexp(unit)[0] == 0.5 and n.chance(0.15):  # sums fall exactly on the threshold
            return n.pick(-1.0, 1.0), 0.0, round(n.random.normal(0, spread / 2)) * unit, 1 - EPSILON
        width = spread * unit * n.random.uniform(0.5, 1.5)
        reach = float(np.abs(levels).max()) or 1.0
        gamma, beta = n.random.uniform(0.5, 1.5) * reach, n.random.uniform(-0.5, 0.5) * reach
        gamma *= n.pick(-1, 1, 1)
        mean, variance = n.random.normal(0, spread / 3) * unit, width**2
        values = tuple(float(np.float32(v)) for v in (gamma, beta, mean, variance))
        if n.chance(0.06):
            if np.abs(levels - values[1]).min() > MARGIN * reach:
                return (0.0, *values[1:])
            continue
        gamma, beta, mean, variance = values
        reached = (mean + (levels - beta) * math.sqrt(variance + EPSILON) / gamma) / unit
        if np.abs(reached - np.round(reached)).min() > MARGIN:
            return values


def multi_threshold(n: Net, x: Acc, kind: str) -> Act:
    """MultiThreshold instead of batch normalization and quantizer; thresholds per channel, or shared."""
    form = ACTS[kind]
    low, high, step = grid(form)
    count = (high - low) // step
    shared = len(set(x.units)) == 1 and n.chance(0.3)
    rows = []
    for unit in x.units[:1] if shared else x.units:
        middle, apart = n.random.normal(0, x.spread / 3), x.spread * n.random.uniform(0.3, 0.8)
        places = np.sort(np.round(middle + apart * (np.arange(count) - (count - 1) / 2)))
        offset = 0.0 if exact(x.units) and n.chance(0.3) else n.random.uniform(-0.6, -0.4)
        rows.append((places + offset) * unit)
    attributes = {
        "out_scale": float(step),
        "out_bias": float(low),
        "data_layout": "NCHW" if x.sides else "NC",
    }
    dtype = "BIPOLAR" if step == 2 else ("UINT2" if low == 0 else "INT2")
    made = n.node(
        "MultiThreshold", [x.name, n.numbers("t", rows)], domain=DOMAIN, out_dtype=dtype, **attributes
    )
    return Act(made, x.channels, x.sides, 1.0, low, high, kind)


def quantized(n: Net, x: Acc, kind: str | None = None, scale: float | None = None) -> Act:
    """Sums through batch normalization and a quantizer, or through a MultiThreshold where no scale is asked for."""
    kind = kind or n.pick(*n.act_kinds)
    if scale is None and n.chance(0.2):
        return multi_threshold(n, x, kind)
    scale = n.scale() if scale is None else scale
    form = ACTS[kind]
    y = batch_norm(n, x, cuts(form, scale))
    if kind == "a2" and n.chance(0.5):
        y = n.node("Relu", [y])
    low, high, _ = grid(form)
    return Act(n.quant(y, scale, form), x.channels, x.sides, float(np.float32(scale)), low, high, kind)


def convolved(
    n: Net,
    x: Act,
    wide: int,
    kernel: int,
    stride: int = 1,
    padding: str = "zero",
    kind: str | None = None,
    one_scale: bool = False,
) -> Acc:
    """A convolution with quantized weights. padding: none, zero, or a value's own (minus, plus) put there by a Pad."""
    name, sides = x.name, x.sides
    reach = kernel // 2 if padding != "none" else 0
    pads = [reach] * 4
    if padding in ("minus", "plus") and reach:
        border = n.numbers("border", x.unit * (x.low if padding == "minus" else x.high))
        where = n.constant(n.fresh("pads"), np.array([0, 0, reach, reach, 0, 0, reach, reach], np.int64))
        name, pads = n.node("Pad", [name, where, border], mode="constant"), [0] * 4
    weight, scales, size = n.weights_of((wide, x.channels, kernel, kernel), 0, kind, one_scale)
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
    made = n.node("Conv", [name, weight], **attributes)
    sides = tuple((side + 2 * reach - kernel) // stride + 1 for side in sides)
    spread = math.sqrt(x.channels * kernel**2) * size * max(abs(x.low), x.high) * 0.7
    return Acc(made, wide, sides, scales * x.unit, max(spread, 1.0))


def max_pooled(n: Net, x: Act | Acc) -> Any:
    kernel, stride = n.pick((2, 2), (2, 2), (3, 2), (2, 1))
    if min(x.sides) < kernel + 1:
        return x
    made = n.node("MaxPool", [x.name], kernel_shape=[kernel] * 2, strides=[stride] * 2)
    return replace(x, name=made, sides=tuple((side - kernel) // stride + 1 for side in x.sides))


# --- blocks -----------------------------------------------------------------------------------------------------------


def conv(n: Net, x: Act) -> Act:
    """Convolution, batch normalization, quantizer; sometimes a max pool before or after them."""
    kernel = n.pick(1, 3, 3, 5)
    padding = n.pick("none", "zero", "zero", "minus", "plus")
    if padding in ("minus", "plus") and x.kind not in ("a1", "a1q"):  # other values have zero among them
        padding = "zero"
    if padding == "none" and min(x.sides) < kernel:
        padding = "zero"
    stride = n.pick(1, 1, 2) if min(x.sides) >= kernel else 1
    y = convolved(n, x, n.width(), kernel, stride, padding)
    if n.chance(0.25):
        y = max_pooled(n, y)
    z = quantized(n, y)
    return max_pooled(n, z) if n.chance(0.25) else z  # type: ignore[no-any-return]


def residual(n: Net, x: Act) -> Act:
    """Convolution, batch normalization and quantizer beside a skip connection; the two added, and quantized again."""
    kind = x.kind or n.pick(*n.act_kinds)
    if not x.kind:
        x = quantized(n, convolved(n, x, n.width(), 3), kind, n.scale())
    y = quantized(n, convolved(n, x, x.channels, 3), kind, x.unit)
    made = n.node("Add", [x.name, y.name] if n.chance(0.5) else [y.name, x.name])
    return quantized(n, Acc(made, x.channels, x.sides, np.full(x.channels, x.unit), 2.0))


def two_paths(n: Net, x: Act) -> Act:
    """The sums of two convolutions added before batch normalization, as where a shortcut has one of its own."""
    wide = n.width()
    kind = n.pick("w1", "w3")
    kind = kind if kind in n.weight_kinds else n.weight_kinds[0]
    scales, n.scales = n.scales, "one"  # both sums need the same step
    y, z = (convolved(n, x, wide, kernel, kind=kind, one_scale=True) for kernel in (3, 1))
    n.scales = scales
    return quantized(n, replace(y, name=n.node("Add", [y.name, z.name])))


def pool(n: Net, x: Act) -> Act:
    return max_pooled(n, x)  # type: ignore[no-any-return]


def average(n: Net, x: Act) -> Act:
    """An average pool, then batch normalization and a quantizer."""
    if min(x.sides) < 3:
        return x
    made = n.node("AveragePool", [x.name], kernel_shape=[2, 2], strides=[2, 2])
    sides = tuple(side // 2 for side in x.sides)
    return quantized(n, Acc(made, x.channels, sides, np.full(x.channels, x.unit / 4), 4.0))


BLOCKS: Mapping[str, Callable[[Net, Act], Act]] = {
    maker.__name__: maker for maker in (conv, residual, two_paths, pool, average)
}

# --- dense layers and heads -------------------------------------------------------------------------------------------


def dense(n: Net, x: Act, wide: int, name: str | None = None, bias: bool = False) -> Acc:
    """Gemm, or MatMul on the transposed quantized weights or on weights stored that way."""
    size = x.channels
    kind = n.pick("gemm", "transposed", "matmul")
    made = name or n.fresh("dense")
    if kind == "matmul":
        weight, scales, rms = n.weights_of((size, wide), 1)
    else:
        weight, scales, rms = n.weights_of((wide, size), 0)
    if kind == "transposed":
        weight = n.node("Transpose", [weight], perm=[1, 0])
    if kind == "gemm":
        more = [n.numbers("b", n.random.normal(0, 1, wide))] if bias else []
        n.op("Gemm", [x.name, weight, *more], made, transB=1)
    else:
        n.op("MatMul", [x.name, weight], made)
    spread = math.sqrt(size) * rms * max(abs(x.low), x.high) * 0.7
    return Acc(made, wide, (), scales * x.unit, max(spread, 1.0))


def flat(n: Net, x: Act) -> Act:
    if not x.sides:
        return x
    size = math.prod((x.channels, *x.sides))
    if n.chance(0.5):
        made = n.node("Flatten", [x.name])
    else:
        shape = n.constant(n.fresh("shape"), np.array([1, size], np.int64))
        made = n.node("Reshape", [x.name, shape])
    return replace(x, name=made, channels=size, sides=())


def hidden(n: Net, x: Act) -> Act:
    return quantized(n, dense(n, x, n.width()))


def averaged(n: Net, x: Act) -> Act:
    """A global average pool, flattened. Its values keep the unit of one term."""
    made = n.node("Flatten", [n.node("GlobalAveragePool", [x.name])])
    return replace(x, name=made, sides=())


def fits_a_byte(x: Act) -> bool:
    """Whether a global average has no more values than a layer with an input of 8 bits can tell apart."""
    _, _, step = grid(ACTS.get(x.kind))
    return max(-x.low, x.high) * math.prod(x.sides) // step <= 127


def head(n: Net, x: Act, name: str, kind: str) -> None:
    """The classes at an exit: what the last dense layer sums, with or without a scale and a bias."""
    if kind == "average_last" and x.sides:
        y = convolved(n, x, CLASSES, 1)
        n.op("Flatten", [n.node("GlobalAveragePool", [y.name])], name)
        return
    if kind == "average" and x.sides and fits_a_byte(x):
        x = averaged(n, x)
    elif kind.startswith("average") and x.sides:
        count = math.prod(x.sides)
        y = averaged(n, x)
        units = np.full(x.channels, x.unit / count)
        x = quantized(n, Acc(y.name, x.channels, (), units, math.sqrt(count) + 1))
    else:
        x = flat(n, x)
        if kind == "hidden":
            x = hidden(n, x)
    last(n, x, name)


def last(n: Net, x: Act, name: str) -> None:
    ending = n.pick("sums", "bias", "norm", "scaled")
    if ending in ("sums", "bias"):
        dense(n, x, CLASSES, name, bias=ending == "bias")
        return
    y = dense(n, x, CLASSES)
    if ending == "norm":
        ranges = ((0.5, 1.5), (-0.5, 0.5), (-2.0, 2.0), (0.5, 4.0))
        names = [n.numbers("n", n.random.uniform(*ends, CLASSES)) for ends in ranges]
        n.op("BatchNormalization", [y.name, *names], name)
    else:
        made = n.node("Sub", [y.name, n.numbers("mean", n.random.normal())])
        made = n.node("Div", [made, n.numbers("deviation", n.random.uniform(1, 3))])
        made = n.node("Mul", [made, n.numbers("factor", n.random.uniform(0.5, 2))])
        n.op("Add", [made, n.numbers("offset", n.random.normal())], name)


# --- networks ---------------------------------------------------------------------------------------------------------


def first_layer(n: Net, first: str, channels: int, sides: tuple[int, ...]) -> Act:
    """The network's input, as values that a layer of integers can read."""
    forms = {"quant8": (8, 1, 0, 2.0**-7), "unsigned8": (8, 0, 0, 2.0**-8), "quant2": (2, 1, 1, 1.0)}
    if first == "bits":
        return Act(n.quant("x", 1.0, None), channels, sides, 1.0, -1, 1, "a1")
    if first == "uint8":
        return Act(n.node("Cast", ["x"], to=TensorProto.FLOAT), channels, sides, 1.0, 0, 255, "")
    if first == "uint8_shifted":
        made = n.node("Mul", [n.node("Cast", ["x"], to=TensorProto.FLOAT), n.numbers("f", 2.0**-7)])
        return Act(n.node("Sub", [made, n.numbers("one", 1.0)]), channels, sides, 2.0**-7, -128, 127, "")
    bits, signed, narrow, scale = forms[first]
    low, high, _ = grid((bits, signed, narrow))
    made = n.quant("x", scale, (bits, signed, narrow))
    return Act(made, channels, sides, scale, low, high, "a3" if first == "quant2" else "")


def binary_network(
    seed: int,
    *,
    kind: str | None = None,
    weights: Sequence[str] = ("w1", "w1", "w1q", "w3", "w2"),
    acts: Sequence[str] = ("a1", "a1", "a1q", "a3", "a2s", "a2"),
    blocks: Sequence[str] | None = None,
    first: str | None = None,
    heads: Sequence[str] | None = None,
    exits: int | None = None,
    length: int | None = None,
    scales: str = "powers",
    opset: int = 13,
) -> onnx.ModelProto:
    """A network drawn from the seed. kind: "image" or "vector"; length: blocks (hidden layers) before each exit.

    weights, acts, first, blocks, heads, scales: what is drawn from (WEIGHTS, ACTS, FIRST, BLOCKS, HEADS, SCALES).
    """
    n = Net(seed, opset, weights, acts, scales)
    drawn = n.pick("image", "image", "image", "vector"), n.pick(*FIRST), n.pick(1, 1, 2, 3)
    kind, first, exits = kind or drawn[0], first or drawn[1], exits or drawn[2]
    channels, sides = n.pick(1, 3, 4), (n.pick(7, 8, 9), n.pick(7, 8, 10))
    if kind == "vector":
        channels, sides = n.pick(9, 20, 33, 70), ()
    x = first_layer(n, first, channels, sides)
    names = [f"exit{index + 1}" for index in range(exits)]
    for name in names:
        for _ in range(length or n.pick(1, 2, 3)):
            block = hidden if kind == "vector" else BLOCKS[n.pick(*(blocks or BLOCKS))]
            x = block(n, x)
        if kind == "image" and not x.kind:  # a head reads what a layer made, not the input
            x = conv(n, x)
        head(n, x, name, n.pick(*(heads or HEADS)))
    return finished(n, names, (1, channels, *sides), first)


def finished(n: Net, exits: Sequence[str], shape: Shape, first: str) -> onnx.ModelProto:
    model = n.model([(name, (1, CLASSES)) for name in exits], [("x", shape)], exits=exits)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    if first.startswith("uint8"):
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    helper.set_model_props(model, {"edgekit.exits": json.dumps([{"name": e, "output": e} for e in exits])})
    return model


def binary_inputs(model: onnx.ModelProto, count: int, seed: int = 0) -> list[NDArray[Any]]:
    """Inputs for the network: pixels 0 to 255, or floats of -1.2 to 1.2."""
    kind = model.graph.input[0].type.tensor_type
    shape = (count, *(size.dim_value for size in kind.shape.dim))
    random = np.random.default_rng(seed)
    if kind.elem_type == TensorProto.UINT8:
        return list(random.integers(0, 256, shape, np.uint8))
    return list(random.uniform(-1.2, 1.2, shape).astype(np.float32))
