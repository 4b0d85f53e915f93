"""Small networks of one kind of layer, or of the blocks real networks are made of, in float32 or int8. Times none.

Their weights are random: what they compute does not matter, only what it costs. Sizes go from kilobytes to megabytes,
drawn with a seed, so that the rates of MACs, bytes and calls can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgekit.core.manifest import Input, Tensor
from edgekit.host.graph import Graph, GraphExit, infer_shapes

OPSET, IR_VERSION = 17, 8
_SCALE = 0.05  # of all activations: no code is far from the middle
_ZERO = {"uint8": 128, "int8": 0}
_LEAST = {"uint8": 0, "int8": -128}  # the zero point of what is never negative: there a ReLU needs no kernel


_POSITIVE = ("Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax")


@dataclass(frozen=True)
class Case:
    """One network. format: "float32", "uint8" or "int8": the type of its quantized activations."""

    family: str
    index: int
    format: str
    graph: Graph


@dataclass(frozen=True)
class Value:
    """A tensor while a network is written."""

    name: str
    shape: tuple[int, ...]


class Net:
    """Writes a network operator by operator; in int8 every tensor is quantized right behind its operator."""

    def __init__(self, fmt: str, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self._int8 = fmt if fmt in _ZERO else None
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[Value] = []

    def input(self, *shape: int) -> Value:
        """An input of the network."""
        value = Value(f"x{len(self._inputs)}", shape)
        self._inputs.append(value)
        return self._quantized(value)

    def op(
        self,
        kind: str,
        inputs: Sequence[Value | str],
        shape: Sequence[int],
        *,
        codes: bool = True,
        **attributes: Any,
    ) -> Value:
        """An operator with one output of `shape`. codes: quantize it, in an int8 network."""
        made = Value(f"v{len(self._nodes)}", tuple(shape))
        names = [value if isinstance(value, str) else value.name for value in inputs]
        self._nodes.append(helper.make_node(kind, names, [made.name], f"n{len(self._nodes)}", **attributes))
        return self._quantized(made, positive=kind in _POSITIVE) if codes else made

    def conv(
        self,
        x: Value,
        wide: int,
        kernel: Sequence[int] = (3, 3),
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> Value:
        """A convolution that keeps the size (stride 1) or divides it, with a bias and a ReLU."""
        axes = len(x.shape) - 2
        kernel = tuple(kernel) if len(kernel) == axes else (kernel[0],) * axes
        strides = [stride if n > 1 else 1 for n in x.shape[2:]]
        size = [math.ceil(n / s) for n, s in zip(x.shape[2:], strides, strict=True)]
        pads = [
            max(0, (made - 1) * step + taps - n)
            for made, step, taps, n in zip(size, strides, kernel, x.shape[2:], strict=True)
        ]
        inputs: list[Value | str] = [x, *self._product(wide, x.shape[1] // groups, *kernel)]
        shape = (x.shape[0], wide, *size)
        made = self.op(
            "Conv",
            inputs,
            shape,
            codes=not relu,
            kernel_shape=list(kernel),
            strides=strides,
            pads=[*(pad // 2 for pad in pads), *(pad - pad // 2 for pad in pads)],
            group=groups,
        )
        return self.op("Relu", [made], shape) if relu else made

    def gemm(self, x: Value, wide: int) -> Value:
        """A dense layer."""
        return self.op("Gemm", [x, *self._product(wide, x.shape[1])], (x.shape[0], wide), transB=1)

    def matmul(self, x: Value, wide: int) -> Value:
        """Rows times a matrix of weights."""
        weight = self.constant(self.random.normal(0, 0.1, (x.shape[-1], wide)).astype(np.float32))
        return self.op("MatMul", [x, self._weight_codes(weight, (x.shape[-1], wide))], (*x.shape[:-1], wide))

    def unary(self, kind: str, x: Value, **attributes: Any) -> Value:
        """An operator that keeps the shape."""
        return self.op(kind, [x], x.shape, **attributes)

    def binary(self, kind: str, x: Value, y: Value, *, relu: bool = False) -> Value:
        """Two tensors, one possibly repeated; with a ReLU behind them."""
        made = self.op(kind, [x, y], np.broadcast_shapes(x.shape, y.shape), codes=not relu)
        return self.op("Relu", [made], made.shape) if relu else made

    def scalar(self, kind: str, x: Value, number: float, *, codes: bool = True) -> Value:
        """A tensor and a constant."""
        return self.op(kind, [x, self.constant(np.float32(number))], x.shape, codes=codes)

    def per_channel(self, kind: str, x: Value) -> Value:
        """A tensor and a weight for each channel."""
        channels = (x.shape[1], *(1,) * (len(x.shape) - 2))
        weight = self.constant(self.random.uniform(0.5, 1.5, channels).astype(np.float32))
        return self.op(kind, [x, self._activation_codes(Value(weight, channels))], x.shape)

    def pool(self, kind: str, x: Value, window: int, stride: int) -> Value:
        """MaxPool or AveragePool over a square (a stretch where there is one axis)."""
        axes = len(x.shape) - 2
        size = [(n - window) // stride + 1 for n in x.shape[2:]]
        shape = (*x.shape[:2], *size)
        return self.op(kind, [x], shape, kernel_shape=[window] * axes, strides=[stride] * axes)

    def squeeze_excite(self, x: Value, gate: str = "HardSigmoid") -> Value:
        """Channels weighed by what a small network makes of their means (squeeze and excitation)."""
        mean = self.op("GlobalAveragePool", [x], (*x.shape[:2], 1, 1))
        small = self.conv(mean, max(8, x.shape[1] // 4), (1, 1))
        return self.binary("Mul", x, self.unary(gate, self.conv(small, x.shape[1], (1, 1), relu=False)))

    def hard_swish(self, x: Value) -> Value:
        """x * clip(x + 3, 0, 6) / 6 as exporters write it."""
        bounds = [self.constant(np.float32(0)), self.constant(np.float32(6))]
        inner = self.op("Clip", [self.scalar("Add", x, 3.0), *bounds], x.shape)
        return self.scalar("Div", self.binary("Mul", x, inner), 6.0)

    def swish(self, x: Value) -> Value:
        """x * sigmoid(x)."""
        return self.binary("Mul", x, self.unary("Sigmoid", x))

    def constant(self, value: Any) -> str:
        """A weight, as it is."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def case(self, family: str, index: int, fmt: str, *outputs: Value) -> Case:
        """The finished network."""
        out = [helper.make_tensor_value_info(value.name, TensorProto.FLOAT, value.shape) for value in outputs]
        inputs = [
            helper.make_tensor_value_info(value.name, TensorProto.FLOAT, value.shape)
            for value in self._inputs
        ]
        proto = helper.make_model(
            helper.make_graph(self._nodes, family, inputs, out, self._weights),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        model = infer_shapes(ir.from_proto(proto))
        described = tuple(
            Input(Tensor(value.name, "float32", value.shape), "flat", None) for value in self._inputs
        )
        exits = (GraphExit("final", outputs[0].name),)
        return Case(family, index, fmt, Graph(model, exits, described))

    def _product(self, wide: int, *rest: int) -> tuple[str, str]:
        """Weights and bias of a product."""
        weight = self.random.normal(0, math.sqrt(2 / math.prod(rest)), (wide, *rest)).astype(np.float32)
        if self._int8 is None:
            return self.constant(weight), self.constant(np.zeros(wide, np.float32))
        scales = np.full(wide, np.abs(weight).max() / 127, np.float32)
        codes = self.constant(np.round(weight / scales[0]).astype(np.int8))
        weight_zero = self.constant(np.zeros(wide, np.int8))
        bias_zero = self.constant(np.zeros(wide, np.int32))
        inputs = (codes, self.constant(scales), weight_zero)
        bias = (self.constant(np.zeros(wide, np.int32)), self.constant(scales * _SCALE), bias_zero)
        return self._dequantize(inputs, axis=0), self._dequantize(bias, axis=0)

    def _weight_codes(self, name: str, shape: Sequence[int]) -> str:
        if self._int8 is None:
            return name
        codes = self.constant(self.random.integers(-127, 128, shape).astype(np.int8))
        return self._dequantize((codes, self.constant(np.float32(0.01)), self.constant(np.int8(0))))

    def _activation_codes(self, value: Value) -> Value:
        """A constant that meets activations, quantized as they are."""
        if self._int8 is None:
            return value
        kind = np.dtype(self._int8)
        codes = self.constant(self.random.integers(100, 127, value.shape).astype(kind))
        return Value(self._dequantize((codes, self.constant(np.float32(_SCALE)), self._zero())), value.shape)

    def _dequantize(self, inputs: Sequence[str], **attributes: Any) -> str:
        made = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [made], **attributes))
        return made

    def _zero(self, positive: bool = False) -> str:
        kind = self._int8 or "uint8"
        return self.constant(np.array((_LEAST if positive else _ZERO)[kind], kind))

    def _quantized(self, value: Value, positive: bool = False) -> Value:
        if self._int8 is None:
            return value
        scale, zero = self.constant(np.float32(_SCALE)), self._zero(positive)
        codes = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node("QuantizeLinear", [value.name, scale, zero], [codes]))
        return Value(self._dequantize((codes, scale, zero)), value.shape)


# --- families ---------------------------------------------------------------------------------------------------------

_WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_ODD = (10, 12, 20, 24, 36, 40, 56, 72, 88, 104, 120, 136, 200, 232)
_SIDES = (7, 10, 14, 20, 28, 40, 56, 80)
Draw = np.random.Generator
Build = Callable[[Net, Draw], Value | tuple[Value, ...]]


def _pick(draw: Draw, choices: Sequence[int]) -> int:
    return int(choices[int(draw.integers(len(choices)))])


def _between(draw: Draw, low: float, high: float) -> int:
    """Log-uniform: small and large alike."""
    return round(math.exp(draw.uniform(math.log(low), math.log(high))))


def _image(
    net: Net, draw: Draw, widths: Sequence[int] = _WIDTHS, most: int = 200_000, least: int = 700
) -> tuple[Value, int]:
    """An input of about `least` to `most` elements, and its channels."""
    for _ in range(100):
        wide, side = _pick(draw, widths), _pick(draw, _SIDES)
        long = side * _pick(draw, (1, 1, 1, 3))
        if least <= wide * side * long <= most:
            break
    return net.input(1, wide, side, long), wide


def _dense(kernel: Sequence[Sequence[int]], widths: Sequence[int], depth: int = 3) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x, wide = _image(net, draw, widths)
        for _ in range(depth):
            taps = kernel[int(draw.integers(len(kernel)))]
            area, most = math.prod(x.shape[2:]), 6e7
            fits = [w for w in widths if w * wide * math.prod(taps) * area <= most] or [min(widths)]
            wide = _pick(draw, fits)
            x = net.conv(x, wide, taps, stride=2 if draw.random() < 0.2 and x.shape[2] > 7 else 1)
        return x

    return build


def _deep(widths: Sequence[int]) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x, wide = _image(net, draw, widths)
        for _ in range(4):
            side = _pick(draw, (3, 3, 5))
            x = net.conv(x, wide, (side, side), 2 if draw.random() < 0.25 and x.shape[2] > 7 else 1, wide)
        return x

    return build


def _grouped(widths: Sequence[int]) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x, wide = _image(net, draw, [w for w in widths if w % 4 == 0], most=120_000)
        for _ in range(3):
            side = _pick(draw, (1, 3))
            x = net.conv(x, wide, (side, side), 1, _pick(draw, [g for g in (2, 4, 8) if wide % g == 0]))
        return x

    return build


def _first(net: Net, draw: Draw) -> Value:
    """The first layer of image and audio networks: few channels come in."""
    side, kernel = _pick(draw, (32, 64, 96, 160, 224)), _pick(draw, (3, 3, 5, 7))
    x = net.input(1, _pick(draw, (1, 3)), side, side)
    return net.conv(
        x, _pick(draw, (8, 16, 32, 64)), (kernel, kernel), _pick(draw, (1, 2)) if side < 100 else 2
    )


def _thin(net: Net, draw: Draw) -> Value:
    x, _ = _image(net, draw, _WIDTHS[:6])
    side = _pick(draw, (1, 3))
    return net.conv(x, _pick(draw, (1, 2, 4)), (side, side), relu=False)


def _vectors(net: Net, draw: Draw) -> Value:
    """What squeeze and excitation does between its poolings."""
    x = net.input(1, _pick(draw, (16, 64, 128, 256, 512)), 1, 1)
    for _ in range(4):
        x = net.conv(x, _between(draw, 8, 512), (1, 1))
    return x


def _line(groups: bool, taps: Sequence[int], first: Sequence[int]) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        wide = _pick(draw, first)
        x = net.input(1, wide, _pick(draw, (32, 128, 512, 2048 // max(1, wide // 64))))
        for _ in range(3):
            new = wide if groups else _pick(draw, (16, 32, 64, 128))
            x = net.conv(x, new, (_pick(draw, taps),), 1, wide if groups else 1)
            wide = new
        return x

    return build


def _gemms(rows: Sequence[int], low: int, high: int) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x = net.input(_pick(draw, rows), _between(draw, low, high))
        for _ in range(2 if high > 1000 else 4):
            x = net.gemm(x, _between(draw, low, high))
        return x

    return build


def _matmuls(rows: Sequence[int]) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x = net.input(1, _pick(draw, rows), _between(draw, 32, 512))
        for _ in range(3):
            x = net.matmul(x, _between(draw, 32, 512))
        return x

    return build


def _attention(net: Net, draw: Draw) -> Value:
    heads, rows, wide = _pick(draw, (1, 4, 8)), _pick(draw, (16, 40, 80, 196)), _pick(draw, (16, 32, 64))
    q, k, v = (
        net.input(1, heads, rows, wide),
        net.input(1, heads, wide, rows),
        net.input(1, heads, rows, wide),
    )
    scores = net.op(
        "Softmax", [net.op("MatMul", [q, k], (1, heads, rows, rows))], (1, heads, rows, rows), axis=-1
    )
    return net.op("MatMul", [scores, v], v.shape)


def _any_shape(net: Net, draw: Draw) -> Value:
    """1,000 to 600,000 elements; an image or a sequence."""
    if draw.random() < 0.3:
        return net.input(1, _between(draw, 16, 512), _between(draw, 32, 512))
    return _image(net, draw, (*_WIDTHS, *_ODD), most=600_000)[0]


def _unary(kind: str, **attributes: Any) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x = _any_shape(net, draw)
        for _ in range(3):
            x = net.unary(kind, x, **attributes)
        return x

    return build


def _binaries(kind: str) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x = _any_shape(net, draw)
        y = net.input(*x.shape)
        for _ in range(3):
            x = net.binary(kind, x, y)
        return x

    return build


def _scalars(*kinds: str) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x = _any_shape(net, draw)
        for _ in range(2):
            for kind in kinds:
                x = net.scalar(kind, x, 2.0 if kind == "Pow" else 1.5)
        return x

    return build


def _per_channel(kind: str) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x = _any_shape(net, draw)
        for _ in range(3):
            x = net.per_channel(kind, x)
        return x

    return build


def _pools(kind: str, window: int, stride: int) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x, wide = _image(net, draw, most=400_000)
        x = (
            net.conv(x, wide, (1, 1)) if draw.random() < 0.6 else x
        )  # pools stand behind convolutions, in their layout
        return net.pool(kind, x, window, stride)

    return build


def _global(kind: str) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x, _ = _image(net, draw, (*_WIDTHS, *_ODD), most=400_000)
        return net.op(kind, [x], (*x.shape[:2], 1, 1))

    return build


def _concats(net: Net, draw: Draw) -> Value:
    """Branches beside each other, as in inception and dense blocks."""
    x, wide = _image(net, draw, (16, 32, 64, 96), most=150_000)
    parts = [x, *(net.conv(x, wide, (1, 1)) for _ in range(2))]
    return net.op("Concat", parts, (1, 3 * wide, *x.shape[2:]), axis=1)


def _pieces(net: Net, draw: Draw) -> Value:
    """Slices and pads of a tensor."""
    x = _any_shape(net, draw)
    starts, axis = net.constant(np.array([1], np.int64)), net.constant(np.array([1], np.int64))
    for _ in range(2):
        size = x.shape[1] // 2
        ends = net.constant(np.array([1 + size], np.int64))
        x = net.op("Slice", [x, starts, ends, axis], (1, size, *x.shape[2:]))
        pads = np.zeros(2 * len(x.shape), np.int64)
        pads[len(x.shape) + 1] = size
        x = net.op("Pad", [x, net.constant(pads)], (1, 2 * size, *x.shape[2:]))
    return x


def _resizes(mode: str) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x, _ = _image(net, draw, _WIDTHS[:6], most=100_000)
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        how = "asymmetric" if mode == "nearest" else "half_pixel"
        attributes: dict[str, Any] = {"nearest_mode": "floor"} if mode == "nearest" else {}
        shape = (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        return net.op(
            "Resize", [x, "", scales], shape, mode=mode, coordinate_transformation_mode=how, **attributes
        )

    return build


def _softmaxes(axis: int) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x = net.input(1, _between(draw, 8, 100), _between(draw, 16, 2000))
        return net.op("Softmax", [net.op("Softmax", [x], x.shape, axis=axis)], x.shape, axis=axis)

    return build


def _transposes(net: Net, draw: Draw) -> Value:
    x = _any_shape(net, draw)
    order = [0, *range(2, len(x.shape)), 1]
    for _ in range(3):
        x = net.op("Transpose", [x], [x.shape[k] for k in order], perm=order)
        x = net.unary("Relu", x)  # two in a row would be one
    return x


def _shuffles(net: Net, draw: Draw) -> Value:
    """Channels dealt out to other groups."""
    x, wide = _image(net, draw, (32, 64, 96, 128, 256), most=200_000)
    groups = _pick(draw, (2, 4))
    x = net.conv(x, wide, (1, 1), 1, groups)
    five = (1, groups, x.shape[1] // groups, *x.shape[2:])
    y = net.op("Reshape", [x, net.constant(np.array(five, np.int64))], five)
    y = net.op("Transpose", [y], (1, five[2], groups, *x.shape[2:]), perm=[0, 2, 1, 3, 4])
    y = net.op("Reshape", [y, net.constant(np.array(x.shape, np.int64))], x.shape)
    return net.conv(y, wide, (3, 3), 1, wide)


def _filters(net: Net, draw: Draw) -> Value:
    """Long filters over one signal, as at the front of audio networks."""
    x = net.input(1, 1, 1, _pick(draw, (2000, 8000, 20000)))
    taps = _pick(draw, (16, 64, 256))
    return net.conv(x, _pick(draw, (1, 1, 2, 8, 16, 36)), (1, taps), _pick(draw, (2, 16, 64)), relu=False)


def _views(net: Net, draw: Draw) -> Value:
    x = net.input(1, _between(draw, 8, 64), _between(draw, 8, 64))
    shapes = [(1, x.shape[1] * x.shape[2]), x.shape]
    for k in range(8):
        x = net.op("Reshape", [x, net.constant(np.array(shapes[k % 2], np.int64))], shapes[k % 2])
        x = net.unary("Neg", x) if k % 2 else x
    return x


def _reduces(kind: str) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        x = _any_shape(net, draw)
        axes = (2, 3) if len(x.shape) == 4 else (2,)
        shape = [1 if k in axes else n for k, n in enumerate(x.shape)]
        if kind == "ReduceSum":  # its axes are an input since opset 13
            return net.op(kind, [x, net.constant(np.array(axes, np.int64))], shape)
        return net.op(kind, [x], shape, axes=list(axes))

    return build


def _normal(net: Net, draw: Draw) -> Value:
    x = net.input(1, _between(draw, 8, 200), _between(draw, 32, 512))
    scale, bias = (net.constant(np.ones(x.shape[-1], np.float32)) for _ in range(2))
    for _ in range(2):
        x = net.op("LayerNormalization", [x, scale, bias], x.shape, axis=-1)
    return x


def _batch_normal(net: Net, draw: Draw) -> Value:
    x = _any_shape(net, draw)
    weights = [net.constant(np.full(x.shape[1], value, np.float32)) for value in (1, 0, 0, 1)]
    return net.op("BatchNormalization", [x, *weights], x.shape)


def _lrn(net: Net, draw: Draw) -> Value:
    x, _ = _image(net, draw, _WIDTHS[:6])
    return net.op("LRN", [x], x.shape, size=5)


def _upward(net: Net, draw: Draw) -> Value:
    x, wide = _image(net, draw, (16, 32, 64), most=60_000)
    weight = net.random.normal(0, 0.1, (wide, wide // 2, 2, 2)).astype(np.float32)
    shape = (1, wide // 2, 2 * x.shape[2], 2 * x.shape[3])
    return net.op("ConvTranspose", [x, net.constant(weight)], shape, kernel_shape=[2, 2], strides=[2, 2])


def _recurrent(kind: str, gates: int) -> Build:
    def build(net: Net, draw: Draw) -> Value:
        steps, wide, hidden = _pick(draw, (1, 10, 40)), _between(draw, 16, 256), _between(draw, 16, 256)
        x = net.input(steps, 1, wide)
        weights = [
            net.constant(net.random.normal(0, 0.1, (1, gates * hidden, size)).astype(np.float32))
            for size in (wide, hidden)
        ]
        return net.op(kind, [x, *weights], (steps, 1, 1, hidden), hidden_size=hidden)

    return build


# --- blocks of real networks ------------------------------------------------------------------------------------------


def _head(net: Net, x: Value, classes: int) -> Value:
    pooled = net.op("GlobalAveragePool", [x], (*x.shape[:2], 1, 1))
    return net.gemm(net.op("Flatten", [pooled], x.shape[:2]), classes)


def _inverted(act: str, excite: bool) -> Build:
    """Wide in the middle, depthwise, with a residual sum (MobileNet v2 and v3)."""

    def build(net: Net, draw: Draw) -> Value:
        side, base = _pick(draw, (48, 64, 96, 128, 160, 224)), _pick(draw, (8, 16, 24, 32))

        def activated(x: Value) -> Value:
            return {"swish": net.swish, "hard": net.hard_swish}[act](x) if act else x

        relu = not act
        x = activated(net.conv(net.input(1, 3, side, side), base, (3, 3), 2, relu=relu))
        for k in range(_pick(draw, (4, 8))):
            stride = 2 if k % 2 == 0 and x.shape[2] > 7 else 1
            wide = round(base * 1.4 ** (k + 1) / 8) * 8
            y = activated(net.conv(x, x.shape[1] * 4, (1, 1), relu=relu))
            kernel = (3, 3) if k < 4 else (5, 5)
            y = activated(net.conv(y, y.shape[1], kernel, stride, y.shape[1], relu=relu))
            y = net.squeeze_excite(y) if excite and k % 2 else y
            y = net.conv(y, wide if stride == 2 else x.shape[1], (1, 1), relu=False)
            x = net.binary("Add", x, y) if y.shape == x.shape else y
        return _head(net, x, 100)

    return build


def _residual(net: Net, draw: Draw) -> Value:
    """Two 3x3 layers and a sum (ResNet), or three with a bottleneck."""
    side, base, narrow = _pick(draw, (32, 64, 112, 160)), _pick(draw, (16, 32, 64)), draw.random() < 0.5
    x = net.conv(net.input(1, 3, side, side), base, (3, 3), 2 if side > 32 else 1)
    for k in range(_pick(draw, (3, 4, 5))):
        stride = 2 if k and x.shape[2] > 7 else 1
        wide = base * 2 ** min(k, 3)
        if narrow:
            y = net.conv(net.conv(x, wide // 2, (1, 1)), wide // 2, (3, 3), stride)
            y = net.conv(y, wide, (1, 1), relu=False)
        else:
            y = net.conv(net.conv(x, wide, (3, 3), stride), wide, (3, 3), relu=False)
        short = x if x.shape == y.shape else net.conv(x, wide, (1, 1), stride, relu=False)
        x = net.binary("Add", y, short, relu=True)
    return _head(net, x, 100)


def _plain_deep(net: Net, draw: Draw) -> Value:
    """3x3 layers, pools, dense layers (VGG)."""
    side, base = _pick(draw, (32, 48, 64, 96)), _pick(draw, (16, 32, 64))
    x = net.input(1, 3, side, side)
    for k in range(4):
        wide = base * 2 ** min(k, 3)
        x = net.pool("MaxPool", net.conv(net.conv(x, wide), wide), 2, 2)
    flat = math.prod(x.shape)
    x = net.op("Flatten", [x], (1, flat))
    return net.gemm(net.unary("Relu", net.gemm(x, _pick(draw, (128, 512, 1024)))), 100)


def _separable(net: Net, draw: Draw) -> Value:
    """Depthwise and 1x1 in turn (MobileNet v1, DS-CNN)."""
    side, base = _pick(draw, (32, 48, 96, 160, 224)), _pick(draw, (8, 16, 32, 64))
    x = net.conv(net.input(1, _pick(draw, (1, 3)), side, side), base, (3, 3), 2)
    for k in range(_pick(draw, (4, 6, 9))):
        x = net.conv(x, x.shape[1], (3, 3), 2 if k % 2 and x.shape[2] > 7 else 1, x.shape[1])
        x = net.conv(x, base * 2 ** min(k // 2 + 1, 4), (1, 1))
    return _head(net, x, 12)


def _split_and_join(net: Net, draw: Draw) -> Value:
    """Halves of the channels go further and come together again (CSP blocks of detectors), with swish."""
    side, base = _pick(draw, (64, 96, 160, 224)), _pick(draw, (16, 32))
    x = net.swish(net.conv(net.input(1, 3, side, side), base, (3, 3), 2, relu=False))
    for k in range(3):
        wide = base * 2 ** (k + 1)
        x = net.swish(net.conv(x, wide, (3, 3), 2, relu=False))
        left, right = (net.swish(net.conv(x, wide // 2, (1, 1), relu=False)) for _ in range(2))
        y = net.swish(net.conv(net.swish(net.conv(right, wide // 2, relu=False)), wide // 2, relu=False))
        joined = net.op(
            "Concat", [left, right, net.binary("Add", right, y)], (1, wide * 3 // 2, *x.shape[2:]), axis=1
        )
        x = net.swish(net.conv(joined, wide, (1, 1), relu=False))
    return x


def _growing(net: Net, draw: Draw) -> Value:
    """Every layer sees all before it (DenseNet), or squeezes and expands (SqueezeNet)."""
    side, grow = _pick(draw, (28, 56)), _pick(draw, (16, 32))
    x = net.conv(net.input(1, 3, side * 2, side * 2), 2 * grow, (3, 3), 2)
    for k in range(6):
        y = net.conv(net.conv(x, 2 * grow, (1, 1)), grow)
        x = net.op("Concat", [x, y], (1, x.shape[1] + grow, *x.shape[2:]), axis=1)
        if k % 3 == 2:
            x = net.pool("MaxPool", net.conv(x, x.shape[1] // 2, (1, 1)), 3, 2)
    return _head(net, x, 20)


def _over_time(net: Net, draw: Draw) -> Value:
    """Time as an image's width: inverted blocks of long windows with few channels (keyword spotting)."""
    steps, base = _pick(draw, (50, 100, 200)), _pick(draw, (16, 24, 32, 48))
    x = net.conv(net.input(1, _pick(draw, (40, 104)), 1, steps), base, (1, 3))
    for k in range(_pick(draw, (4, 8, 12))):
        stride = 2 if k % 4 == 0 else 1
        y = net.conv(net.conv(x, 3 * base, (1, 1)), 3 * base, (1, 9), stride, 3 * base)
        y = net.conv(y, base, (1, 1), relu=False)
        short = x if stride == 1 else net.conv(x, base, (1, 1), stride, relu=False)
        x = net.binary("Add", short, y, relu=True)
    return _head(net, x, 12)


def _sequence(net: Net, draw: Draw) -> Value:
    """Layers over time, then attention-sized products (speech, text lines)."""
    wide, steps = _pick(draw, (64, 128, 256)), _pick(draw, (40, 100, 200))
    x = net.input(1, _pick(draw, (40, 64)), steps)
    for _ in range(3):
        x = net.conv(x, wide, (3,))
    rows = net.op("Transpose", [x], (1, steps, wide), perm=[0, 2, 1])
    for _ in range(2):
        inner = net.unary("Relu", net.matmul(rows, 2 * wide))
        rows = net.binary("Add", rows, net.matmul(inner, wide))
    return net.op("Softmax", [net.matmul(rows, 60)], (1, steps, 60), axis=-1)


def _large(net: Net, draw: Draw) -> Value:
    """Weights of several megabytes, more than the caches hold, read once for each answer."""
    x = net.input(1, 256, 7, 7)
    for _ in range(_pick(draw, (2, 6, 12))):
        x = net.conv(
            x, _pick(draw, (256, 512, 768)), _pick(draw, (1, 3)) * (1,) * 2 if draw.random() < 0.5 else (3, 3)
        )
    return _head(net, x, 1000)


SINGLE: Mapping[str, tuple[Build, int]] = {
    "Conv.kxk": (_dense(((3, 3), (3, 3), (5, 5), (1, 7), (7, 1)), _WIDTHS), 10),
    "Conv.kxk, odd widths": (_dense(((3, 3), (5, 5)), _ODD), 5),
    "Conv.1x1": (_dense(((1, 1),), _WIDTHS, 4), 10),
    "Conv.1x1, odd widths": (_dense(((1, 1),), _ODD, 4), 6),
    "Conv.depthwise": (_deep(_WIDTHS), 8),
    "Conv.depthwise.odd": (_deep(_ODD), 6),
    "Conv.grouped": (_grouped((128, 192, 256, 384)), 4),
    "Conv.grouped.odd": (_grouped((24, 40, 72, 136, 240)), 4),
    "Conv.narrow": (_first, 14),
    "Conv.thin": (_thin, 5),
    "filters": (_filters, 10),
    "Conv.vector": (_vectors, 4),
    "Conv.line": (_line(groups=False, taps=(3, 5, 9), first=(16, 32, 64, 128)), 4),
    "Conv.line.1x1": (_line(groups=False, taps=(1,), first=(32, 64, 128)), 2),
    "Conv.line.depthwise": (_line(groups=True, taps=(3, 9), first=(16, 64, 128)), 3),
    "Conv.line.narrow": (_line(groups=False, taps=(9, 64), first=(1, 2)), 2),
    "ConvTranspose": (_upward, 3),
    "Gemm": (_gemms((8, 40, 100), 32, 512), 4),
    "Gemm.vector": (_gemms((1,), 16, 400), 4),
    "Gemm.vector.large": (_gemms((1,), 600, 2500), 5),
    "MatMul": (_matmuls((10, 40, 100)), 4),
    "MatMul.vector": (_matmuls((1,)), 2),
    "MatMul.both": (_attention, 4),
    "LSTM": (_recurrent("LSTM", 4), 4),
    "GRU": (_recurrent("GRU", 3), 3),
    **{kind: (_unary(kind), 3) for kind in ("Relu", "Sigmoid", "Tanh", "HardSigmoid", "LeakyRelu", "Erf")},
    **{kind: (_unary(kind), 2) for kind in ("Exp", "Sqrt", "Abs", "Neg", "HardSwish")},
    **{kind: (_binaries(kind), 4) for kind in ("Add", "Mul")},
    **{kind: (_binaries(kind), 2) for kind in ("Sub", "Div")},
    "scalars": (_scalars("Add", "Div", "Mul"), 5),
    "powers": (_scalars("Sub", "Pow"), 3),
    **{f"{kind}.broadcast": (_per_channel(kind), 3) for kind in ("Add", "Mul", "Sub", "Div")},
    "hard swish": (lambda net, draw: net.hard_swish(net.hard_swish(_any_shape(net, draw))), 4),
    "excite": (lambda net, draw: net.squeeze_excite(_image(net, draw)[0]), 4),
    "MaxPool.small": (_pools("MaxPool", 2, 2), 5),
    "MaxPool": (_pools("MaxPool", 3, 2), 4),
    "MaxPool, stride 1": (_pools("MaxPool", 3, 1), 4),
    "MaxPool.wide": (_pools("MaxPool", 5, 1), 4),
    "AveragePool.small": (_pools("AveragePool", 2, 2), 4),
    "AveragePool": (_pools("AveragePool", 3, 1), 4),
    "AveragePool, stride 2": (_pools("AveragePool", 3, 2), 3),
    "GlobalAveragePool": (_global("GlobalAveragePool"), 4),
    "GlobalMaxPool": (_global("GlobalMaxPool"), 2),
    "Concat": (_concats, 4),
    "Slice and Pad": (_pieces, 3),
    "Resize": (_resizes("nearest"), 3),
    "Resize.linear": (_resizes("linear"), 2),
    "Softmax": (_softmaxes(-1), 3),
    "Softmax.inner": (_softmaxes(1), 3),
    "Transpose": (_transposes, 4),
    "shuffle": (_shuffles, 5),
    "View": (_views, 2),
    **{kind: (_reduces(kind), 2) for kind in ("ReduceMean", "ReduceMax", "ReduceSum")},
    "LayerNormalization": (_normal, 3),
    "BatchNormalization": (_batch_normal, 3),
    "LRN": (_lrn, 2),
}
BLOCKS: Mapping[str, tuple[Build, int]] = {
    "inverted": (_inverted("", excite=False), 6),
    "inverted, hard swish, excite": (_inverted("hard", excite=True), 6),
    "inverted, swish, excite": (_inverted("swish", excite=True), 3),
    "residual": (_residual, 8),
    "plain": (_plain_deep, 5),
    "separable": (_separable, 8),
    "split and join": (_split_and_join, 5),
    "growing": (_growing, 5),
    "over time": (_over_time, 5),
    "sequence": (_sequence, 4),
    "large": (_large, 8),
}
_NO_INT8 = ("LSTM", "GRU", "LRN", "LayerNormalization")  # float operators: their own cost is known from there
FAMILIES = {**SINGLE, **BLOCKS}


def cases(
    formats: Sequence[str], families: Sequence[str] = (), most: int | None = None, seed: int = 1
) -> Iterator[Case]:
    """Networks in each format ("float32", or int8 with "uint8" or "int8" activations), always the same.

    families: which, all if none is named. most: at most so many of each. The first of every family comes before the
    second of any, so that whoever stops early has seen all kinds.
    """
    for index, place, family, fmt in _places(formats, families, most):
        draw = np.random.default_rng((seed, place, index))
        net = Net(fmt, index)
        made = FAMILIES[family][0](net, draw)
        yield net.case(family, index, fmt, *(made if isinstance(made, tuple) else (made,)))


def count_cases(formats: Sequence[str], families: Sequence[str] = (), most: int | None = None) -> int:
    """How many `cases` gives."""
    return sum(1 for _ in _places(formats, families, most))


def _places(
    formats: Sequence[str], families: Sequence[str], most: int | None
) -> Iterator[tuple[int, int, str, str]]:
    counts = {family: count if most is None else min(count, most) for family, (_, count) in FAMILIES.items()}
    for index in range(max(counts.values())):
        for place, (family, count) in enumerate(counts.items()):
            if index < count and (not families or family in families):
                for fmt in formats:
                    if fmt == "float32" or family not in _NO_INT8:
                        yield index, place, family, fmt
