"""Random small ONNX networks with random weights, the same for the same seed. For property tests of passes.

    random_network(seed) -> onnx.ModelProto             any blocks, 1 to 3 exits, images, sequences or vectors
    random_network(seed, blocks=("conv", "residual"))   only these kinds of block (keys of BLOCKS)
    random_network(seed, kind="vector", opset=13)       kind: "image" (N,C,H,W), "sequence" (N,C,L), "vector" (N,F),
                                                        "channels_last" (an (N,H,W,C) input and Transposes)
    seeds()                                             a hypothesis strategy that gives seeds

Each network has one float32 input of batch 1, outputs `exit1`..., the exits in its metadata, opset 13 or later, and
passes onnx's full check. With hypothesis: `@given(seeds())`, then `random_network(seed)`.
`write_data(path, input_shape(model)[1:])` of tests/networks.py makes data that fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from networks import Builder, Shape

CLASSES = 5
KINDS = ("image", "image", "image", "sequence", "vector", "channels_last")


def seeds() -> st.SearchStrategy[int]:
    """Seeds of random networks."""
    return st.integers(0, 2**20)


@dataclass(frozen=True)
class Map:
    """A tensor (1, channels, *sides)."""

    name: str
    channels: int
    sides: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, self.channels, *self.sides)


class Net(Builder):
    """A builder that names tensors by itself and draws sizes; every block takes a Map and gives a Map."""

    def __init__(self, seed: int, opset: int) -> None:
        super().__init__(seed, opset)
        self.made = 0

    def fresh(self, stem: str) -> str:
        self.made += 1
        return f"{stem}{self.made}"

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def pick(self, *values: Any) -> Any:
        return values[int(self.random.integers(len(values)))]

    def width(self) -> int:
        return int(self.random.integers(3, 13))

    def vector(self, stem: str, size: int, low: float = -0.5, high: float = 0.5) -> str:
        return self.constant(self.fresh(stem), self.random.uniform(low, high, size).astype(np.float32))

    def ints(self, stem: str, *values: int) -> str:
        return self.constant(self.fresh(stem), np.array(values, np.int64))

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.op(kind, inputs, self.fresh(kind.lower()), **attributes)

    def convolve(
        self,
        x: Map,
        wide: int,
        kernel: int = 3,
        stride: int = 1,
        group: int = 1,
        dilation: int = 1,
        bias: bool | None = None,
    ) -> Map:
        rank = len(x.sides)
        reach = dilation * (kernel - 1)
        inputs = [x.name, self.weight(self.fresh("w"), wide, x.channels // group, *[kernel] * rank)]
        if self.chance(0.7) if bias is None else bias:
            inputs.append(self.vector("b", wide))
        before = reach // 2
        made = self.node(
            "Conv",
            inputs,
            kernel_shape=[kernel] * rank,
            pads=[before] * rank + [reach - before] * rank,
            strides=[stride] * rank,
            dilations=[dilation] * rank,
            group=group,
        )
        return Map(made, wide, tuple((side - 1) // stride + 1 for side in x.sides))

    def per_channel(self, x: Map, size: int, low: float, high: float) -> str:
        """A constant that broadcasts over the sides."""
        value = self.random.uniform(low, high, (size, *[1] * len(x.sides))).astype(np.float32)
        return self.constant(self.fresh("k"), value[None] if self.chance(0.5) else value)

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: int) -> str:
        if self.opset >= 18:
            return self.node(kind, [x, self.ints("axes", *axes)], keepdims=keepdims)
        return self.node(kind, [x], axes=list(axes), keepdims=keepdims)


# --- blocks -----------------------------------------------------------------------------------------------------------


def conv(n: Net, x: Map) -> Map:
    stride = n.pick(1, 1, 2) if min(x.sides) > 4 else 1
    return n.convolve(x, n.width(), n.pick(1, 2, 3, 3, 5), stride, dilation=n.pick(1, 1, 2))


def activation(n: Net, x: Map) -> Map:
    kind = n.pick("Relu", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "PRelu", "HardSwish", "Elu")
    inputs = [x.name]
    if kind == "Clip":
        inputs += [n.constant(n.fresh(s), np.array(v, np.float32)) for s, v in (("low", 0.0), ("high", 6.0))]
    if kind == "PRelu":
        inputs.append(
            n.constant(
                n.fresh("slope"),
                n.random.uniform(0, 0.5, (x.channels, *[1] * len(x.sides))).astype(np.float32),
            )
        )
    if kind == "HardSwish" and n.opset < 14:
        kind = "Relu"
    return Map(n.node(kind, inputs), x.channels, x.sides)


def batch_norm(n: Net, x: Map) -> Map:
    ranges = ((0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 1.5))
    made = n.node("BatchNormalization", [x.name, *(n.vector("bn", x.channels, *r) for r in ranges)])
    return Map(made, x.channels, x.sides)


def scale(n: Net, x: Map) -> Map:
    """A per-channel constant, added, multiplied or subtracted, on either side."""
    pair = [x.name, n.per_channel(x, n.pick(x.channels, x.channels, 1), 0.5, 1.5)]
    return Map(n.node(n.pick("Add", "Mul", "Sub"), pair[:: n.pick(1, -1)]), x.channels, x.sides)


def residual(n: Net, x: Map) -> Map:
    """One or two layers beside a skip connection, with a projection where the width changes."""
    wide = n.pick(x.channels, x.channels, n.width())
    y = activation(n, n.convolve(x, n.width()))
    y = batch_norm(n, n.convolve(y, wide)) if n.chance(0.5) else n.convolve(y, wide, n.pick(1, 3))
    skip = x if wide == x.channels and n.chance(0.8) else n.convolve(x, wide, 1)
    pair = [y.name, skip.name]
    return activation(
        n, Map(n.node(n.pick("Add", "Add", "Sub", "Mul"), pair[:: n.pick(1, -1)]), wide, x.sides)
    )


def concat(n: Net, x: Map) -> Map:
    """Two or three branches side by side, sometimes the input among them."""
    parts = [activation(n, n.convolve(x, n.width(), n.pick(1, 3))) for _ in range(n.pick(1, 2))]
    parts.append(x if n.chance(0.5) else n.convolve(x, n.width(), 1))
    made = n.node("Concat", [part.name for part in parts], axis=1)
    return Map(made, sum(part.channels for part in parts), x.sides)


def depthwise(n: Net, x: Map) -> Map:
    """Depthwise, sometimes with two outputs per channel, then pointwise."""
    y = n.convolve(x, x.channels * n.pick(1, 1, 2), group=x.channels)
    return n.convolve(activation(n, y), n.width(), 1)


def grouped(n: Net, x: Map) -> Map:
    """A grouped convolution, its input brought to a width that divides; sometimes a channel shuffle after it."""
    group = n.pick(2, 3)
    x = n.convolve(x, group * n.pick(2, 4), 1)
    wide = group * n.pick(2, 3, 4)
    y = activation(n, n.convolve(x, wide, group=group))
    if n.chance(0.5):
        y = shuffle(n, y, group)
    return n.convolve(y, group * 2, 1, group=group) if n.chance(0.3) else y


def shuffle(n: Net, x: Map, group: int = 2) -> Map:
    """ShuffleNet's: reshape to (group, rest), swap, reshape back."""
    if x.channels % group:
        return x
    rest = x.channels // group
    y = n.node("Reshape", [x.name, n.ints("shape", 1, group, rest, *x.sides)])
    y = n.node("Transpose", [y], perm=[0, 2, 1, *range(3, 3 + len(x.sides))])
    return Map(n.node("Reshape", [y, n.ints("shape", 1, -1, *x.sides)]), x.channels, x.sides)


def squeeze_excite(n: Net, x: Map) -> Map:
    """Channels weighted by a gate computed from their own means, by convolutions or by dense layers."""
    less = max(2, x.channels // 2)
    rank = len(x.sides)
    if n.chance(0.5):
        pooled = Map(n.node("GlobalAveragePool", [x.name]), x.channels, (1,) * rank)
        hidden = n.convolve(pooled, less, 1)
        gate = n.convolve(Map(n.node("Relu", [hidden.name]), less, pooled.sides), x.channels, 1).name
        gate = n.node("Sigmoid", [gate])
    else:
        flat = n.reduce("ReduceMean", x.name, range(2, 2 + rank), 0)
        hidden_name = n.node("Relu", [n.node("MatMul", [flat, n.weight(n.fresh("w"), x.channels, less)])])
        gate = n.node(
            "Gemm",
            [hidden_name, n.weight(n.fresh("w"), x.channels, less), n.vector("b", x.channels)],
            transB=1,
        )
        gate = n.node("Reshape", [n.node("Sigmoid", [gate]), n.ints("shape", 1, x.channels, *[1] * rank)])
    return Map(n.node("Mul", [x.name, gate]), x.channels, x.sides)


def pool(n: Net, x: Map) -> Map:
    if min(x.sides) < 4:
        return x
    rank = len(x.sides)
    made = n.node(n.pick("MaxPool", "AveragePool"), [x.name], kernel_shape=[2] * rank, strides=[2] * rank)
    return Map(made, x.channels, tuple(side // 2 for side in x.sides))


def pad(n: Net, x: Map) -> Map:
    """Zeros around the sides, then a convolution without padding."""
    rank = len(x.sides)
    name = n.node("Pad", [x.name, n.ints("pads", 0, 0, *[1] * rank, 0, 0, *[1] * rank)], mode="constant")
    wide = n.width()
    made = n.node(
        "Conv", [name, n.weight(n.fresh("w"), wide, x.channels, *[3] * rank)], kernel_shape=[3] * rank
    )
    return Map(made, wide, x.sides)


def resize(n: Net, x: Map) -> Map:
    """Twice as large by repetition."""
    if max(x.sides) > 8:
        return x
    factors = n.constant(n.fresh("scales"), np.array([1, 1, *[2] * len(x.sides)], np.float32))
    made = n.node(
        "Resize",
        [x.name, "", factors],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return Map(made, x.channels, tuple(2 * side for side in x.sides))


def transposed(n: Net, x: Map) -> Map:
    """A transposed convolution that doubles the sides."""
    if max(x.sides) > 8:
        return x
    rank, wide = len(x.sides), n.width()
    made = n.node(
        "ConvTranspose",
        [x.name, n.weight(n.fresh("w"), x.channels, wide, *[2] * rank), n.vector("b", wide)],
        kernel_shape=[2] * rank,
        strides=[2] * rank,
    )
    return Map(made, wide, tuple(2 * side for side in x.sides))


def split(n: Net, x: Map) -> Map:
    """Cut in two on the channels; one part is worked on, both come together again."""
    first = max(1, x.channels // 2)
    names = [n.fresh("part"), n.fresh("part")]
    sizes = n.ints("sizes", first, x.channels - first)
    n.nodes.append(onnx.helper.make_node("Split", [x.name, sizes], names, f"n_{names[0]}", axis=1))
    worked = activation(n, n.convolve(Map(names[1], x.channels - first, x.sides), n.width()))
    made = n.node("Concat", [names[0], worked.name], axis=1)
    return Map(made, first + worked.channels, x.sides)


def cut(n: Net, x: Map) -> Map:
    """A Slice on the channels, or on a side."""
    axis = n.pick(1, 2)
    size = x.shape[axis]
    if size < 4:
        return x
    stop = size - 1
    made = n.node("Slice", [x.name, n.ints("s", 1), n.ints("e", stop), n.ints("a", axis)])
    if axis == 1:
        return Map(made, stop - 1, x.sides)
    return Map(made, x.channels, (stop - 1, *x.sides[1:]))


def there_and_back(n: Net, x: Map) -> Map:
    """To channels last, something per channel there, and back."""
    rank = len(x.sides)
    y = n.node("Transpose", [x.name], perm=[0, *range(2, 2 + rank), 1])
    y = n.node("Add", [n.node("Relu", [y]), n.vector("k", x.channels)])
    if n.chance(0.5):  # a pointwise convolution as a MatMul on the last axis
        wide = n.width()
        y = n.node("MatMul", [y, n.weight(n.fresh("w"), x.channels, wide)])
        x = Map(x.name, wide, x.sides)
    return Map(n.node("Transpose", [y], perm=[0, 1 + rank, *range(1, 1 + rank)]), x.channels, x.sides)


BLOCKS: Mapping[str, Callable[[Net, Map], Map]] = {
    maker.__name__: maker
    for maker in (
        *(conv, activation, batch_norm, scale, residual, concat, depthwise, grouped, shuffle, squeeze_excite),
        *(pool, pad, resize, transposed, split, cut, there_and_back),
    )
}

# --- dense layers and heads -------------------------------------------------------------------------------------------


def dense(n: Net, x: str, size: int, wide: int, name: str | None = None) -> str:
    """Gemm either way round, or MatMul and Add."""
    kind = n.pick("gemm", "gemm_t", "matmul")
    last = name or n.fresh("dense")
    if kind == "matmul":
        made = n.node("MatMul", [x, n.weight(n.fresh("w"), size, wide)])
        return n.op("Add", [made, n.vector("b", wide)], last)
    shape = (wide, size) if kind == "gemm_t" else (size, wide)
    return n.op(
        "Gemm", [x, n.weight(n.fresh("w"), *shape), n.vector("b", wide)], last, transB=int(kind == "gemm_t")
    )


def hidden_layers(n: Net, x: str, size: int) -> tuple[str, int]:
    """Dense layers with something between, sometimes a skip connection."""
    for _ in range(n.pick(1, 2, 3)):
        wide = n.width()
        y = n.node(n.pick("Relu", "Tanh", "Sigmoid"), [dense(n, x, size, wide)])
        if n.chance(0.4):
            y = n.node("Add", [y, dense(n, y, wide, wide)])
        x, size = y, wide
    return x, size


def flatten(n: Net, x: Map) -> tuple[str, int]:
    """From a map to a vector, one of the ways exporters know."""
    axes = tuple(range(2, 2 + len(x.sides)))
    kind = n.pick("pool", "mean", "squeeze", "flatten", "reshape", "last")
    if kind == "pool":
        return n.node("Flatten", [n.node("GlobalAveragePool", [x.name])]), x.channels
    if kind == "mean":
        return n.reduce("ReduceMean", x.name, axes, 0), x.channels
    if kind == "squeeze":
        pooled = n.node("GlobalMaxPool", [x.name])
        return n.node("Squeeze", [pooled, n.ints("axes", *axes)]), x.channels
    size = math.prod(x.shape)
    if kind == "flatten":
        return n.node("Flatten", [x.name]), size
    if kind == "reshape":
        return n.node("Reshape", [x.name, n.ints("shape", 1, size)]), size
    turned = n.node("Transpose", [x.name], perm=[0, *axes, 1])
    return n.node("Reshape", [turned, n.ints("shape", 1, -1)]), size


def head(n: Net, x: str, size: int, name: str) -> Sequence[int]:
    """Classes, sometimes through a hidden layer or a softmax; the output's shape."""
    if n.chance(0.3):
        x, size = hidden_layers(n, x, size)
    if n.chance(0.2):
        n.op("Softmax", [dense(n, x, size, CLASSES)], name, axis=1)
    else:
        dense(n, x, size, CLASSES, name)
    return (1, CLASSES)


# --- networks ---------------------------------------------------------------------------------------------------------


def random_network(
    seed: int,
    *,
    kind: str | None = None,
    blocks: Sequence[str] | None = None,
    exits: int | None = None,
    length: int | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A network drawn from the seed. kind: of KINDS; exits: how many; length: blocks before each exit; None: drawn."""
    n = Net(seed, opset)
    drawn_kind, drawn_exits = n.pick(*KINDS), n.pick(1, 1, 2, 3)
    kind, exits = kind or drawn_kind, exits or drawn_exits
    if kind == "vector":
        return _vector_network(n, exits)
    side = n.pick(5, 6, 8, 9)
    sides = (side,) if kind == "sequence" else (side, n.pick(side, side + 1))
    channels = n.pick(1, 3, 4)
    shape: Shape = (1, channels, *sides)
    x = Map("x", channels, sides)
    if kind == "channels_last":
        shape = (1, *sides, channels)
        x = Map(n.node("Transpose", ["x"], perm=[0, 3, 1, 2]), channels, sides)
    outputs: list[tuple[str, Shape]] = []
    names = list(blocks or BLOCKS)
    x = activation(n, n.convolve(x, n.width()))
    for index in range(exits):
        for _ in range(length or n.pick(1, 2, 3)):
            x = BLOCKS[n.pick(*names)](n, x)
        if index:  # what an exit adds must be more than its head
            x = n.convolve(x, n.width())
        vector, size = flatten(n, x)
        outputs.append((f"exit{index + 1}", head(n, vector, size, f"exit{index + 1}")))
    return _finish(n, outputs, shape)


def _vector_network(n: Net, exits: int) -> onnx.ModelProto:
    size = first = n.width() + 4
    x, outputs = "x", []
    for index in range(exits):
        x, size = hidden_layers(n, x, size)
        name = f"exit{index + 1}"
        dense(n, x, size, CLASSES, name)
        outputs.append((name, (1, CLASSES)))
    return _finish(n, outputs, (1, first))


def _finish(n: Net, outputs: Sequence[tuple[str, Shape]], shape: Shape) -> onnx.ModelProto:
    return n.model(outputs, [("x", shape)], exits=[name for name, _ in outputs])


def input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """The only input's shape, batch included."""
    return tuple(size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim)
