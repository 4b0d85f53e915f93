"""Static int8: QuantizeLinear/DequantizeLinear pairs in the graph, weights per channel, ranges from calibration.

onnxruntime's QDQ writer is the engine; the ranges are ours. What only decides (confidences) and the answers themselves
stay float: a decision or a top-1 must not hang on an 8-bit step.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedOpsetsPass
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgekit.core.errors import BadInput, one_line
from edgekit.host.calibrate import METHODS, Range
from edgekit.host.graph import Graph, static_shape, values
from edgekit.host.options import option
from edgekit.host.passes.base import Context, Pass
from edgekit.host.passes.opset import OPSET

PER_CHANNEL = True
OPS = (
    *(
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Mul",
        "Relu",
        "Clip",
        "LeakyRelu",
        "Sigmoid",
        "Concat",
        "Split",
    ),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Pad", "Slice", "Gather", "Transpose"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
)
_ALREADY = (
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
)
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm")  # whose third input is a bias
_FLOAT_OUTPUT = ("Gemm", "MatMul")  # int8 kernels that can give a float answer
_TAIL = (
    *("Softmax", "LogSoftmax", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
    *("GlobalAveragePool", "AveragePool", "ReduceMean"),
)


@dataclass(frozen=True)
class Int8:
    """How int8 is written on one board. activation: "uint8" or "int8", whichever has fused kernels.

    reduce_range: weights in 7 bits, for processors whose 8-bit products saturate in 16 bits. method: how the ranges
    are found; keep_float: nodes that stay as they are.
    """

    activation: str = option("uint8", choices=("uint8", "int8"))
    reduce_range: bool = False
    method: str = option("minmax", choices=tuple(METHODS))
    keep_float: tuple[str, ...] = ()


def apply(graph: Graph, options: Int8, context: Context) -> Graph:
    """The graph in int8, over ranges calibrated on the context's data. Raises BadInput without data."""
    if is_quantized(graph):
        raise BadInput("quantize_static needs a float model, got one that is quantized already")
    if graph.opset < OPSET:
        raise BadInput(
            f"quantize_static needs opset {OPSET}, and onnx cannot raise this model's {graph.opset}"
        )
    kept = {*float_nodes(graph), *options.keep_float}
    unknown = kept - {node.name for node in graph.model.graph}
    if unknown:
        raise BadInput(f"keep_float names no node of the model: {', '.join(sorted(map(str, unknown)))}")
    ranges = context.calibration(graph, "quantize_static", options.method).ranges(options.method)
    answers = [name for entry in graph.exits for name in entry.outputs]
    source = graph.copy()
    kept |= set(_own_biases(source))
    model = _write_qdq(ir.to_proto(source), options, ranges, sorted(kept))
    for name in answers:
        _float_answer(model, name)
    for tidy in (NameFixPass(), RemoveUnusedOpsetsPass()):
        model = tidy(model).model
    model.graph.sort()
    return graph.with_model(model)


def is_quantized(graph: Graph) -> bool:
    """Whether some integer arithmetic is in the graph already."""
    return any(node.op_type in _ALREADY for node in graph.model.graph)


def float_nodes(graph: Graph) -> tuple[str, ...]:
    """Names of nodes that stay float: those no answer needs (confidences), and the last steps to an answer."""
    answers = [name for entry in graph.exits for name in entry.outputs]
    wanted = _ancestors(graph.model, answers)
    decide = [node.name or "" for node in graph.model.graph if node not in wanted]
    tails = [node.name or "" for name in answers for node in _tail(values(graph.model)[name])]
    return tuple(dict.fromkeys((*decide, *tails)))


def _ancestors(model: ir.Model, names: list[str]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    named = values(model)
    stack = [named[name].producer() for name in names]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.add(node)
            stack.extend(value.producer() for value in node.inputs if value is not None)
    return found


def _tail(value: ir.Value) -> Iterator[ir.Node]:
    """The steps after the last product: pooling, views, a bias that is added, softmax."""
    node = value.producer()
    while node is not None:
        data = [entry for entry in node.inputs if entry is not None and not entry.is_initializer()]
        adds_bias = node.op_type == "Add" and len(data) == 1
        if not data or not (node.op_type in _TAIL or adds_bias):
            return
        yield node
        node = data[0].producer()


def _write_qdq(proto: onnx.ModelProto, int8: Int8, found: Mapping[str, Range], kept: list[str]) -> ir.Model:
    ranges = {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}
    activation = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}[int8.activation]
    data = TensorsData(CalibrationMethod.MinMax, ranges)
    try:
        with _quiet():
            engine = QDQQuantizer(
                proto,
                PER_CHANNEL,
                int8.reduce_range,
                QuantType.QInt8,
                activation,
                data,
                [],
                kept,
                list(OPS),
                {},
            )
            engine.quantize_model()
            written: ir.Model = ir.from_proto(engine.model.model)
        return written
    except Exception as err:  # the engine stumbles in its own ways over what it does not know
        raise BadInput(
            f"onnxruntime's int8 writer cannot handle this network: {one_line(err)[:200]}"
        ) from err


def _own_biases(model: ir.Model) -> Iterator[str]:
    """Give each product a bias vector of its own; names of Gemms whose bias is no vector.

    The engine wants vectors, and copies a shared bias under a name that another tensor may have.
    """
    for node in model.graph:
        bias = node.inputs[2] if node.op_type in _PRODUCTS and len(node.inputs) > 2 else None
        if bias is None or bias.const_value is None:
            continue
        array = bias.const_value.numpy().reshape(-1) if bias.const_value.size in (1, _width(node)) else None
        if array is None:
            yield node.name or ""
        elif bias.const_value.shape != (_width(node),) or len(bias.uses()) > 1:
            taken = model.graph.initializers
            stem = f"{node.name}/bias"
            name = next(n for n in (stem, *(f"{stem}/{k}" for k in range(len(taken) + 1))) if n not in taken)
            whole = np.ascontiguousarray(np.broadcast_to(array, (_width(node),)))
            vector = ir.Value(name=name, const_value=ir.tensor(whole, name=name))
            vector.dtype, vector.shape = bias.const_value.dtype, ir.Shape(whole.shape)
            model.graph.register_initializer(vector)
            node.replace_input_with(2, vector)


def _width(node: ir.Node) -> int:
    """How many channels a product makes."""
    shape = static_shape(node.outputs[0]) or ()
    return shape[-1 if node.op_type == "Gemm" else 1] if len(shape) > 1 else 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The engine speaks through the root logger about tensors it rightly leaves alone."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


def _float_answer(model: ir.Model, output: str) -> None:
    """Where a product gives the answer, leave out the pair that would round it to 8 bits."""
    value = values(model)[output]
    node = value.producer()
    while node is not None:
        pair = _pair(node)
        if pair is not None:
            quantize, source = pair
            maker = source.producer()
            if maker is None or maker.op_type not in _FLOAT_OUTPUT:
                return
            name, rounded = node.outputs[0].name, node.outputs[0]
            is_output = rounded.is_graph_output()
            rounded.replace_all_uses_with(source, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            if not quantize.outputs[0].uses():
                model.graph.remove(quantize, safe=True)
            if is_output:
                rounded.name = f"{name}/rounded"
                source.name = name
            return
        if node.op_type not in (*_TAIL, "Add"):
            return
        data = [entry for entry in node.inputs if entry is not None and entry.producer() is not None]
        node = data[0].producer() if data else None


def _pair(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """For a DequantizeLinear behind a QuantizeLinear: that one, and the float tensor before both."""
    if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    quantize = node.inputs[0].producer()
    if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.inputs[0] is None:
        return None
    return quantize, quantize.inputs[0]


PASS = Pass("quantize_static", apply, min_sqnr_db=15.0, options=Int8, rounds=True)
