"""Count what a model does: multiply-accumulates, bytes and kernel calls per layer. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.core.cost import Work
from edgekit.host.graph import static_shape

_CODES = ("QuantizeLinear", "DequantizeLinear")
_FREE = (
    "Identity",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Constant",
    "Dropout",
    "Shape",
)  # move no data
_FUSED = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
)  # done inside the product before them
_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class Layer:
    """One operator. format: the number format it computes in. output: the tensor it makes."""

    name: str
    op: str
    format: str
    macs: int
    bytes: int
    calls: int
    output: str


def layers(model: ir.Model) -> tuple[Layer, ...]:
    """The operators of the main graph in order, without the Quantize/DequantizeLinear that kernels absorb."""
    return tuple(_layer(node) for node in model.graph if _is_layer(node))


def work(found: Iterable[Layer]) -> tuple[Work, ...]:
    """Layers added up by operator and format, sorted: what core.cost predicts from."""
    sums: dict[tuple[str, str], tuple[int, int, int]] = {}
    for layer in found:
        macs, moved, calls = sums.get((layer.op, layer.format), (0, 0, 0))
        sums[layer.op, layer.format] = (macs + layer.macs, moved + layer.bytes, calls + layer.calls)
    return tuple(Work(op, fmt, *sums[op, fmt]) for op, fmt in sorted(sums))


def _is_layer(node: ir.Node) -> bool:
    """Whether a kernel of its own runs: a code at the model's border does, one inside is absorbed."""
    if node.op_type not in _CODES:
        return node.op_type != "Constant"
    value = node.inputs[0]
    return node.op_type == "QuantizeLinear" and value is not None and value.is_graph_input()


def _layer(node: ir.Node) -> Layer:
    fmt = _format(node)
    calls = 0 if node.op_type in _FREE or _is_fused(node) else 1
    moved = sum(_bytes(value) for value in node.inputs if value is not None) + sum(
        map(_stored_output, node.outputs)
    )
    return Layer(
        name=node.name or node.op_type,
        op=node.op_type,
        format=fmt,
        macs=MACS.get(node.op_type, _no_macs)(node),
        bytes=moved if calls else 0,
        calls=calls,
        output=node.outputs[0].name or "",
    )


def _format(node: ir.Node) -> str:
    """int8 where the operator reads dequantized tensors only: its kernel then works on the codes."""
    if node.op_type in _INTEGER_OPS or node.op_type in _CODES:
        return "int8"
    data = [value for value in node.inputs if value is not None and _is_float(value)]
    makers = [value.producer() for value in data]
    if data and all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
        return "int8"
    halves = [value for value in (*data, *node.outputs) if value.dtype == ir.DataType.FLOAT16]
    return "float16" if halves else "float32"


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _is_fused(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    maker = source.producer() if source is not None else None
    return node.op_type in _FUSED and maker is not None and maker.op_type in MACS


def _bytes(value: ir.Value) -> int:
    """What reading the value moves: the codes where it is dequantized on the way."""
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0] is not None:
        return _stored(maker.inputs[0])
    return _stored(value)


def _stored_output(value: ir.Value) -> int:
    """What writing the value moves: the codes where it is quantized at once."""
    readers = value.consumers()
    if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
        return _stored(readers[0].outputs[0])
    return _stored(value)


def _stored(value: ir.Value) -> int:
    if value.const_value is not None:
        return int(value.const_value.nbytes)
    shape = static_shape(value)
    if shape is None or value.dtype is None:
        return 0
    return math.ceil(math.prod(shape) * value.dtype.itemsize)


# --- multiply-accumulates ---------------------------------------------------------------------------------------------


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    return (static_shape(value) if value is not None else None) or ()


def _no_macs(node: ir.Node) -> int:
    del node
    return 0


def _conv(node: ir.Node, weight: int = 1) -> int:
    return math.prod(_shape(node.outputs[0])) * math.prod(_shape(node.inputs[weight])[1:])


def _conv_transpose(node: ir.Node) -> int:
    return math.prod(_shape(node.inputs[0])) * math.prod(_shape(node.inputs[1])[1:])


def _gemm(node: ir.Node) -> int:
    transposed = node.attributes.get("transA")
    first = _shape(node.inputs[0])
    depth = first[0 if transposed is not None and transposed.as_int() else 1] if len(first) > 1 else 0
    return math.prod(_shape(node.outputs[0])) * depth


def _matmul(node: ir.Node) -> int:
    first = _shape(node.inputs[0])
    return math.prod(_shape(node.outputs[0])) * first[-1] if first else 0


def _recurrent(node: ir.Node) -> int:
    """Every step multiplies input and state by all gates' weights, which lie in two matrices per direction."""
    steps = math.prod(_shape(node.inputs[0])[:2])
    return steps * (math.prod(_shape(node.inputs[1])) + math.prod(_shape(node.inputs[2])))


MACS: Mapping[str, Callable[[ir.Node], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": lambda node: _conv(node, 3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
