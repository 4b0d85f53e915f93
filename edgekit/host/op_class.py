"""Which class of work an operator is: kinds of layers that one rate of MACs, bytes and calls describes. Counts nothing.

A class is a path, from the operator's name to what makes its kernel faster or slower: the cost model asks for the
closest one that a profile knows (core/cost.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgekit.host.graph import static_shape

_VECTOR = 16  # channels that a kernel handles at once, on the processors with the widest registers
_NARROW = 8  # input channels below which a convolution has little to multiply at a time
_LARGE = 2**20  # weights of a product with a vector that are read from behind the nearest caches
_IMAGE_RANK = 4
_ALIASES = {"Sum": "Add", "Upsample": "Resize"}  # the same work by another name


def op_class(node: ir.Node) -> str:
    """The class of an operator, "Conv.depthwise.odd"; its name alone where nothing more is told apart."""
    name = _ALIASES.get(node.op_type, node.op_type)
    return ".".join((name, *_RULES.get(name, _plain)(node)))


def _plain(node: ir.Node) -> tuple[str, ...]:
    del node
    return ()


def _conv(node: ir.Node) -> tuple[str, ...]:
    weight, out = _shape(node.inputs[1]), _shape(node.outputs[0])
    if len(weight) < 3 or len(out) < 3:
        return ()
    groups = node.attributes.get_int("group", 1)
    wide, taps = weight[1], math.prod(weight[2:])
    odd: tuple[str, ...] = ()
    if groups > 1:
        kind = "depthwise" if wide == 1 else "grouped"
        odd = ("odd",) if weight[0] % _VECTOR or (wide > 1 and wide % _VECTOR) else ()
    elif wide == weight[0] == 1:
        kind = "single"
    elif math.prod(out[2:]) == 1:
        kind = "vector"
    elif wide < _NARROW:
        kind = "narrow"
    elif weight[0] < _NARROW:
        kind = "thin"
    else:
        kind = "1x1" if taps == 1 else "kxk"
    line = ("line",) if len(weight) < _IMAGE_RANK else ()
    return (*line, kind, *odd)


def _product(node: ir.Node) -> tuple[str, ...]:
    """Of matrices: a vector times weights is bound by reading them; two tensors that are both made here."""
    out = _shape(node.outputs[0])
    weight = node.inputs[1]
    if weight is None or not _is_constant(weight):
        return ("both",)
    if math.prod(out[:-1]) > 1:
        return ()
    return ("vector", "large") if math.prod(_shape(weight)) * 4 > _LARGE else ("vector",)


def _binary(node: ir.Node) -> tuple[str, ...]:
    """Element by element, or one side repeated: a single number, or one for each channel."""
    shapes = [_shape(value) for value in node.inputs if value is not None]
    sizes = [math.prod(shape) for shape in shapes]
    if len(set(sizes)) == 1:
        return ()
    return ("scalar",) if min(sizes) == 1 else ("broadcast",)


def _pool(node: ir.Node) -> tuple[str, ...]:
    attribute = node.attributes.get("kernel_shape")
    window = math.prod(attribute.as_ints()) if attribute is not None else 0
    return ("small",) if window <= 4 else ("wide",) if window > 9 else ()


def _resize(node: ir.Node) -> tuple[str, ...]:
    attribute = node.attributes.get("mode")
    return () if attribute is None or attribute.as_string() == "nearest" else ("linear",)


def _axis(node: ir.Node) -> tuple[str, ...]:
    """Over the last axis, or over one that first must be brought there."""
    rank = len(_shape(node.inputs[0]))
    axis = node.attributes.get_int("axis", -1)
    inner = math.prod(_shape(node.inputs[0])[axis + 1 :]) if 0 <= axis < rank else 1
    return ("inner",) if inner > 1 else ()


def _transpose(node: ir.Node) -> tuple[str, ...]:
    """Whole rows move, or single elements."""
    attribute = node.attributes.get("perm")
    rank = len(_shape(node.inputs[0]))
    order = list(attribute.as_ints()) if attribute is not None else list(reversed(range(rank)))
    if rank > _IMAGE_RANK:
        return ("deep",)
    return ("rows",) if order and order[-1] == rank - 1 else ()


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    return (static_shape(value) if value is not None else None) or ()


def _is_constant(value: ir.Value) -> bool:
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0] is not None:
        return maker.inputs[0].const_value is not None
    return value.const_value is not None


_RULES: Mapping[str, Callable[[ir.Node], tuple[str, ...]]] = {
    "Conv": _conv,
    "Gemm": _product,
    "MatMul": _product,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"), _binary),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    "Resize": _resize,
    **dict.fromkeys(("Softmax", "LogSoftmax"), _axis),
    "Transpose": _transpose,
}
