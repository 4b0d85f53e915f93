"""The same networks twice, for binary.py: as a plan of ours and as an onnxruntime model in fp32 and in int8 QDQ.

Weights are random and the two do not compute the same values: shapes and operators are what is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.native import plan as p

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """kernel x kernel over in_c channels of a side x side input; kernel == side: dense. pool: 2x2 behind it."""

    side: int
    in_c: int
    out_c: int
    kernel: int = 3
    pad: int = 1
    pool: bool = False

    @property
    def out_side(self) -> int:
        return self.side + 2 * self.pad - self.kernel + 1

    @property
    def macs(self) -> int:
        return self.out_side**2 * self.kernel**2 * self.in_c * self.out_c


CNV = (  # BNN-PYNQ: valid convolutions of a 3 x 32 x 32 image
    Layer(32, 3, 64, pad=0),
    Layer(30, 64, 64, pad=0, pool=True),
    Layer(14, 64, 128, pad=0),
    Layer(12, 128, 128, pad=0, pool=True),
    Layer(5, 128, 256, pad=0),
    Layer(3, 256, 256, pad=0),
    Layer(1, 256, 512, 1, 0),
    Layer(1, 512, 512, 1, 0),
    Layer(1, 512, 10, 1, 0),
)


def plan_of(layers: tuple[Layer, ...], *, first: int = p.BITS, last: int = p.THRESHOLDS) -> bytes:
    """A chain of W1A1 layers. first: type of the input (BITS, or U8); last: epilogue of the last layer."""
    draw = np.random.default_rng(1)
    side, channels = layers[0].side, layers[0].in_c
    coding = p.BIPOLAR if first == p.BITS else 0
    tensors = [p.PlanTensor(first, side, side, channels, coding, is_input=True, name="x")]
    operators: list[p.Operator] = []
    for index, layer in enumerate(layers):
        ends = index == len(layers) - 1
        epilogue = last if ends else p.THRESHOLDS
        terms = layer.kernel**2 * layer.in_c
        middle = terms * 127.5 if tensors[-1].type == p.U8 else 0
        spread = 74 * np.sqrt(terms) if tensors[-1].type == p.U8 else np.sqrt(terms)
        linear = p.Linear(
            draw.integers(0, 2, (layer.out_c, layer.kernel, layer.kernel, layer.in_c)).astype(np.uint8),
            p.BIPOLAR,
            (layer.kernel, layer.kernel),
            pads=(layer.pad,) * 4,
            pad=p.PAD_MINUS if tensors[-1].type == p.BITS else p.PAD_ZERO,
            epilogue=epilogue,
        )
        made = {"type": p.BITS, "coding": p.BIPOLAR}
        if epilogue == p.THRESHOLDS:
            at = np.rint(draw.normal(0 * middle, spread, (layer.out_c, 1))).astype(np.int32)
            linear = p.Linear(**{**linear.__dict__, "thresholds": at})
        else:
            made = {"type": p.F32 if epilogue == p.SCALED else p.I32, "coding": 0}
        if epilogue == p.SCALED:
            floats = draw.normal(0, 1, (2, layer.out_c)).astype(np.float32)
            linear = p.Linear(**{**linear.__dict__, "scale": floats[0], "bias": floats[1]})
        size = layer.out_side
        tensors.append(p.PlanTensor(made["type"], size, size, layer.out_c, made["coding"]))
        operators.append(p.Operator(p.LINEAR, (len(tensors) - 2,), len(tensors) - 1, linear))
        if layer.pool:
            tensors.append(p.PlanTensor(p.BITS, size // 2, size // 2, layer.out_c, p.BIPOLAR))
            operators.append(
                p.Operator(p.POOL, (len(tensors) - 2,), len(tensors) - 1, p.Window((2, 2), (2, 2)))
            )
    tensors[-1] = p.PlanTensor(**{**tensors[-1].__dict__, "is_output": True, "name": "y"})
    return p.encode(p.Plan(tuple(tensors), tuple(operators)))


class _Model:
    """An ONNX graph that grows."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, value: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def bytes(self, given: tuple[int, list[int]], last: str, made: int) -> bytes:
        output = helper.make_tensor_value_info(last, made, None)
        image = helper.make_tensor_value_info("x", *given)
        graph = helper.make_graph(self.nodes, "chain", [image], [output], self.weights)
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def _input_shape(layer: Layer) -> list[int]:
    return [1, layer.in_c, layer.side, layer.side] if not _dense(layer) else [1, layer.in_c]


def _dense(layer: Layer) -> bool:
    return layer.side == 1


def fp32_of(layers: tuple[Layer, ...]) -> bytes:
    """Convolution or product with its bias, Relu, pooling: what a float network of these layers is."""
    draw, model, last = np.random.default_rng(1), _Model(), "x"
    flat = _dense(layers[0])
    for index, layer in enumerate(layers):
        if _dense(layer) and not flat:
            last, flat = model.node("Flatten", last), True
        fan_in = layer.kernel**2 * layer.in_c
        shape = (layer.in_c, layer.out_c) if flat else (layer.out_c, layer.in_c, layer.kernel, layer.kernel)
        weight = model.weight(draw.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32))
        bias = model.weight(draw.normal(0, 0.1, layer.out_c).astype(np.float32))
        if flat:
            last = model.node("Gemm", last, weight, bias)
        else:
            last = model.node(
                "Conv", last, weight, bias, kernel_shape=[layer.kernel] * 2, pads=[layer.pad] * 4
            )
        if index < len(layers) - 1 or not flat:
            last = model.node("Relu", last)
        if layer.pool:
            last = model.node("MaxPool", last, kernel_shape=[2, 2], strides=[2, 2])
    return model.bytes((TensorProto.FLOAT, _input_shape(layers[0])), last, TensorProto.FLOAT)


def int8_of(layers: tuple[Layer, ...]) -> bytes:
    """The same in QDQ: uint8 activations, int8 weights with a scale for each output channel; uint8 in and out."""
    draw, model, last = np.random.default_rng(1), _Model(), "x"
    flat = _dense(layers[0])
    scale, zero = np.float32(1 / 64), np.uint8(0)

    def quantize(name: str) -> str:
        return model.node("QuantizeLinear", name, model.weight(np.array(scale)), model.weight(np.array(zero)))

    def dequantize(name: str) -> str:
        return model.node(
            "DequantizeLinear", name, model.weight(np.array(scale)), model.weight(np.array(zero))
        )

    for layer in layers:
        if _dense(layer) and not flat:
            last, flat = quantize(model.node("Flatten", dequantize(last))), True
        fan_in = layer.kernel**2 * layer.in_c
        shape = (layer.in_c, layer.out_c) if flat else (layer.out_c, layer.in_c, layer.kernel, layer.kernel)
        scales = (draw.uniform(0.5, 1, layer.out_c) * 3 / 127 * np.sqrt(2 / fan_in)).astype(np.float32)
        codes = model.weight(draw.integers(-127, 128, shape).astype(np.int8))
        zeros = model.weight(np.zeros(layer.out_c, np.int8))
        axis = 1 if flat else 0
        weight = model.node("DequantizeLinear", codes, model.weight(scales), zeros, axis=axis)
        bias_codes = model.weight(draw.integers(-1000, 1000, layer.out_c).astype(np.int32))
        bias_zeros = model.weight(np.zeros(layer.out_c, np.int32))
        bias = model.node("DequantizeLinear", bias_codes, model.weight(scales * scale), bias_zeros, axis=0)
        if flat:
            last = model.node("Gemm", dequantize(last), weight, bias)
        else:
            pads = [layer.pad] * 4
            last = model.node(
                "Conv", dequantize(last), weight, bias, kernel_shape=[layer.kernel] * 2, pads=pads
            )
        last = quantize(model.node("Relu", last))
        if layer.pool:
            last = quantize(model.node("MaxPool", dequantize(last), kernel_shape=[2, 2], strides=[2, 2]))
    return model.bytes((TensorProto.UINT8, _input_shape(layers[0])), last, TensorProto.UINT8)
