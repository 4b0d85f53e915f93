"""Count what a model does: multiply-accumulates, bytes and kernel calls per layer, as a runtime does it. Runs nothing.

Which operators become one kernel, which of a quantized graph's codes are really converted, and where tensors change
their layout is what onnxruntime's own profile shows (tried with 1.32 on x86); host/op_class.py names the classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgekit.core.cost import LAYOUT, PADDING, STAGE, UNFOLD, VIEW, WEIGHTS, Work
from edgekit.host.graph import static_shape
from edgekit.host.op_class import op_class
from edgekit.host.stored import constant_nodes, folded, multiplies_blocks, weight_bytes

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_CODES = (_QUANTIZE, _DEQUANTIZE)
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")  # move no data
_NOTHING = ("Identity", "Constant", "Dropout", "Shape")  # a runtime takes them out
_ACTIVATIONS = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
)  # done inside the product before
_FUSES = ("Conv", "Gemm")
_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
_INT8_KERNELS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Sigmoid", "LeakyRelu", "Softmax", "Concat", "Split", "Where"),
    *(
        "AveragePool",
        "GlobalAveragePool",
        "MaxPool",
        "Resize",
        "Gather",
        "Transpose",
        "Slice",
        "Expand",
        "Tile",
    ),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "ArgMax", "Relu", "Clip"),
)  # what works on codes; others compute in float, their codes converted before and after
_PASS_CODES = ("MaxPool", "Transpose", *_VIEWS)  # what can as well run on the codes of its output
_FLOAT_FROM_CODES = ("Gemm", "MatMul")  # whose int8 kernel can give a float answer
_PARAMETERS = ("Resize", "Upsample", "Clip", "Pad")  # whose constants say how, and are no data
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_SIZES = {"int8": 1, "float16": 2}
_SMALL_WINDOW = 9
_PIECE = 8  # channels below which a window is gathered number by number
_WEIGHTS_BINS = (
    (2**24, "over16MB"),
    (2**20, "over1MB"),
)  # all weights together: what does not stay in a cache


@dataclass(frozen=True)
class Layer:
    """One operator. format: the number format it computes in. output: the tensor it makes.

    work: the same by class, as the cost model takes it, with the conversions of codes, changes of layout and views that
    this operator brings with it; empty where the kernel of another layer does it.
    """

    name: str
    op: str
    format: str
    macs: int
    bytes: int
    calls: int
    output: str
    work: tuple[Work, ...] = ()


def layers(model: ir.Model) -> tuple[Layer, ...]:
    """The operators of the main graph in order, without the Quantize/DequantizeLinear that kernels absorb.

    The first one's work holds the call of the whole. Weights that are stored in another form count as the floats that
    the runtime makes of them once, when it opens the model.
    """
    model = folded(model)
    once = constant_nodes(model)
    moved, ordered = _layout_changes(model)
    total = sum(int(v.const_value.nbytes) for v in model.graph.initializers.values() if v.const_value)
    weights = next((f"{WEIGHTS}.{name}" for least, name in _WEIGHTS_BINS if total >= least), None)
    found = [
        _layer(node, moved.get(node, 0), weights, in_order=node in ordered)
        for node in model.graph
        if node not in once and _is_layer(node)
    ]
    call = Work(STAGE, "float32", 0, 0, 1)
    return tuple(
        replace(layer, work=(call, *layer.work)) if not k else layer for k, layer in enumerate(found)
    )


def work(found: Iterable[Layer]) -> tuple[Work, ...]:
    """Layers added up by class of operator and format, sorted: what core.cost predicts from."""
    return add_up(entry for layer in found for entry in layer.work)


def add_up(entries: Iterable[Work]) -> tuple[Work, ...]:
    """Work of the same class and format added up, sorted."""
    sums: dict[tuple[str, str], tuple[int, int, int]] = {}
    for entry in entries:
        macs, moved, calls = sums.get((entry.op, entry.format), (0, 0, 0))
        sums[entry.op, entry.format] = (macs + entry.macs, moved + entry.bytes, calls + entry.calls)
    return tuple(Work(op, fmt, *sums[op, fmt]) for op, fmt in sorted(sums))


def _is_layer(node: ir.Node) -> bool:
    """A code at the model's border is a kernel of its own; one inside belongs to the operator it is made for."""
    if node.op_type not in _CODES:
        return node.op_type != "Constant"
    value = node.inputs[0]
    if node.op_type == _QUANTIZE:
        return value is not None and value.is_graph_input()
    return node.outputs[0].is_graph_output()


def _layer(node: ir.Node, moved: int, weights: str | None, *, in_order: bool) -> Layer:
    fmt = _format(node)
    runs = node.op_type not in (*_VIEWS, *_NOTHING) and not _is_fused(node)
    on_codes = fmt == "int8"
    read = sum((_bytes if on_codes else _stored)(value) for value in node.inputs if value is not None)
    if multiplies_blocks(node):
        read = _stored(node.inputs[0]) + weight_bytes(node)
    written = sum(map(_stored_output if on_codes else _stored, node.outputs))
    macs = MACS.get(node.op_type, _no_macs)(node)
    found = []
    if runs:
        kind = op_class(node) + ("" if in_order or node.op_type not in _POOLS else ".unordered")
        found.append(Work(kind, fmt, macs, read + written, 1))
        constants = sum(_bytes(value) for value in node.inputs if value is not None and _is_constant(value))
        if weights is not None and constants:
            vector = ".vector" if ".vector" in kind else ""
            found.append(Work(weights + vector, fmt, 0, constants, 0))
        if node.op_type == "Conv" and macs:
            found += _around_conv(node, fmt, macs)
        if node.op_type in _POOLS:
            found += _windows(node, fmt, kind.removeprefix(node.op_type))
    elif node.op_type in _VIEWS:
        found.append(Work(VIEW, "float32", 0, 0, 1))
    found += _conversions(node, fmt)
    if moved:
        found.append(Work(LAYOUT, fmt, 0, moved, 1))
    return Layer(
        name=node.name or node.op_type,
        op=node.op_type,
        format=fmt,
        macs=macs,
        bytes=read + written if runs else 0,
        calls=int(runs),
        output=node.outputs[0].name or "",
        work=tuple(found),
    )


def _around_conv(node: ir.Node, fmt: str, macs: int) -> Iterator[Work]:
    """Windows unfolded into rows (not for 1x1), and what is multiplied only to fill the last block of channels."""
    weight = _shape(node.inputs[1])
    groups = node.attributes.get_int("group", 1)
    if len(weight) < 3 or (weight[1] == 1 and (groups > 1 or weight[0] == 1)):
        return
    wide = weight[0] // groups
    if math.prod(weight[2:]) > 1:
        kind = UNFOLD
        if weight[1] < _PIECE:
            kind += ".single" if weight[1] == 1 else ".narrow"
            kind += ".small" if math.prod(weight[2:]) <= _SMALL_WINDOW else ""
        yield Work(kind, fmt, 0, macs // max(1, wide) * _SIZES.get(fmt, 4), 0)
    spare = -wide % _BLOCK
    if spare:
        yield Work(PADDING, fmt, 0, macs // wide * spare * _SIZES.get(fmt, 4), 0)


def _windows(node: ir.Node, fmt: str, suffix: str) -> Iterator[Work]:
    """All that a pool's windows read, overlaps counted."""
    attribute = node.attributes.get("kernel_shape")
    if attribute is not None:
        read = math.prod(_shape(node.outputs[0])) * math.prod(attribute.as_ints())
        yield Work(f"{UNFOLD}.{node.op_type}{suffix}", fmt, 0, read * _SIZES.get(fmt, 4), 0)


def _conversions(node: ir.Node, fmt: str) -> Iterator[Work]:
    """The codes that are converted for this operator alone: it computes in float between quantized tensors."""
    if node.op_type in _CODES:
        return
    if fmt != "int8":
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is not None and maker.op_type == _DEQUANTIZE:
                yield Work(_DEQUANTIZE, "int8", 0, _stored(maker.inputs[0]) + _stored(maker.outputs[0]), 1)
    elif node.op_type in _PASS_CODES and node.inputs[0] is not None:
        maker = node.inputs[0].producer()
        if maker is None or maker.op_type != _DEQUANTIZE:  # the codes are made before it instead of behind it
            yield Work(_QUANTIZE, "int8", 0, _stored(node.inputs[0]) + _stored_output(node.outputs[0]), 1)
    readers = [reader for value in node.outputs for reader in value.consumers()]
    if fmt != "int8" or any(reader.op_type != _QUANTIZE for reader in readers):
        for reader in readers:
            if reader.op_type == _QUANTIZE:
                yield Work(_QUANTIZE, "int8", 0, _stored(reader.inputs[0]) + _stored(reader.outputs[0]), 1)


def _format(node: ir.Node) -> str:
    """int8 where there is a kernel on codes for it and it stands between them."""
    if node.op_type in _INTEGER_OPS or node.op_type in _CODES or multiplies_blocks(node):
        return "int8"
    data = [value for value in node.inputs if value is not None and _is_float(value)]
    if node.op_type in _PARAMETERS:
        data = [value for value in data if value.const_value is None]
    makers = [value.producer() for value in data]
    dequantized = bool(data) and all(maker is not None and maker.op_type == _DEQUANTIZE for maker in makers)
    readers = [reader for value in node.outputs for reader in value.consumers()]
    if node.op_type in _PASS_CODES and readers and all(r.op_type == _QUANTIZE for r in readers):
        return "int8"
    if dequantized and node.op_type in _INT8_KERNELS:
        readers += [r for a in readers if a.op_type in ("Relu", "Clip") for r in a.outputs[0].consumers()]
        quantized = any(reader.op_type == _QUANTIZE for reader in readers)
        if quantized or node.op_type in _FLOAT_FROM_CODES:
            return "int8"
    halves = [value for value in (*data, *node.outputs) if value.dtype == ir.DataType.FLOAT16]
    return "float16" if halves else "float32"


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _is_constant(value: ir.Value) -> bool:
    """Weights, as they are or dequantized."""
    if value.const_value is not None:
        return True
    maker = value.producer()
    if maker is None or maker.op_type != _DEQUANTIZE or maker.inputs[0] is None:
        return False
    return maker.inputs[0].const_value is not None


def _is_fused(node: ir.Node) -> bool:
    """Whether the kernel of the operator before this one does it as well: activations, sums behind a convolution."""
    sources = [value for value in node.inputs if value is not None and not _is_constant(value)]
    if node.op_type in _ACTIVATIONS:
        maker = _only_maker(sources[0]) if sources else None
        if maker is None:
            return False
        quantized = node.op_type in ("Relu", "Clip") and any(
            reader.op_type == _QUANTIZE for reader in node.outputs[0].consumers()
        )  # the codes' range is the activation
        return maker.op_type in _FUSES or _is_fused_sum(maker) or (quantized and _format(maker) == "int8")
    if node.op_type == "Add" and len(sources) == 1:  # a bias
        maker = _only_maker(sources[0])
        return maker is not None and maker.op_type in ("Conv", "MatMul") and _format(node) != "int8"
    return _is_fused_sum(node) or _is_gate(node)


def _is_fused_sum(node: ir.Node) -> bool:
    """A residual sum, which a float convolution starts from."""
    if node.op_type != "Add" or _format(node) == "int8":
        return False
    makers = [_only_maker(value) for value in node.inputs if value is not None]
    shapes = {static_shape(value) for value in node.inputs if value is not None}
    return len(shapes) == 1 and any(maker is not None and maker.op_type == "Conv" for maker in makers)


def _is_gate(node: ir.Node) -> bool:
    """x * sigmoid(x) in float is one kernel: the sigmoid's."""
    if node.op_type != "Mul" or len(node.inputs) != 2 or _format(node) == "int8":
        return False
    for value, other in (node.inputs, tuple(reversed(node.inputs))):
        maker = _only_maker(value) if value is not None else None
        if maker is not None and maker.op_type == "Sigmoid" and maker.inputs[0] is other:
            return True
    return False


def _only_maker(value: ir.Value) -> ir.Node | None:
    """What makes the value, where nobody else reads it."""
    return value.producer() if len(value.uses()) == 1 and not value.is_graph_output() else None


def _bytes(value: ir.Value) -> int:
    """What reading the value moves: the codes where it is dequantized on the way."""
    maker = value.producer()
    if maker is not None and maker.op_type == _DEQUANTIZE and maker.inputs[0] is not None:
        return _stored(maker.inputs[0])
    return _stored(value)


def _stored_output(value: ir.Value) -> int:
    """What writing the value moves: the codes where it is quantized at once."""
    readers = value.consumers()
    if len(readers) == 1 and readers[0].op_type == _QUANTIZE:
        return _stored(readers[0].outputs[0])
    return _stored(value)


def _stored(value: ir.Value | None) -> int:
    if value is None:
        return 0
    if value.const_value is not None:
        return int(value.const_value.nbytes)
    shape = static_shape(value)
    if shape is None or value.dtype is None:
        return 0
    return math.ceil(math.prod(shape) * value.dtype.itemsize)


# --- changes of layout ------------------------------------------------------------------------------------------------

_BLOCK = 16  # channels that stand together in the layout of onnxruntime's float convolutions on x86
_KEEPS = (
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Add", "Sum", "Mul", "Concat", "BatchNormalization"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample"),
)  # float operators that take tensors as a convolution gives them
_FIXED = (
    "Reshape",
    "Flatten",
    "MatMul",
    "Gemm",
    "Squeeze",
    "LSTM",
    "GRU",
    "RNN",
    "DepthToSpace",
    "SpaceToDepth",
)


def _layout_changes(model: ir.Model) -> tuple[dict[ir.Node, int], set[ir.Node]]:
    """Bytes that each node re-orders: its input for its own kernel, or its output for those who read it.

    And the nodes that work on tensors in their kernels' layout.

    Float convolutions work on blocks of channels, int8 ones on channels last; what passes elements through keeps that.
    """
    ordered: dict[ir.Value, bool] = {}  # values that are not in the model's own layout
    moved: dict[ir.Node, int] = defaultdict(int)
    in_order: set[ir.Node] = set()
    for node in model.graph:
        data = [value for value in node.inputs if value is not None and not _is_constant(value)]
        if node.op_type in _CODES:
            ordered[node.outputs[0]] = bool(data) and ordered.get(data[0], False)
            continue
        int8 = _format(node) == "int8"
        if node.op_type == "Conv" and data and _takes_blocks(node, int8=int8):
            if not ordered.get(data[0], False) and _channels(data[0]) > (1 if int8 else _BLOCK - 1):
                moved[node] += _bytes(data[0])
            ordered[node.outputs[0]] = True
            in_order.add(node)
            continue
        keeps = (
            bool(data)
            and (node.op_type not in _FIXED if int8 else _keeps_blocks(node, data))
            and any(ordered.get(value, False) for value in data)
        )
        if keeps and not int8:
            keeps = all(ordered.get(value, False) for value in data)
        for value in () if keeps else data:
            maker = value.producer()
            if ordered.get(value, False) and maker is not None and _is_map(value):
                moved[maker if maker.op_type not in _CODES else node] += _bytes(value)
                ordered[value] = False
        for value in node.outputs:
            ordered[value] = keeps
        if keeps:
            in_order.add(node)
    return moved, in_order


def _takes_blocks(node: ir.Node, *, int8: bool) -> bool:
    weight = _shape(node.inputs[1])
    if int8:
        return True
    if len(weight) != 4:
        return False
    groups = node.attributes.get_int("group", 1)
    return groups == 1 or weight[1] == 1 or (weight[1] % _BLOCK == 0 and weight[0] // groups % _BLOCK == 0)


def _keeps_blocks(node: ir.Node, data: list[ir.Value]) -> bool:
    if node.op_type not in _KEEPS:
        return False
    if node.op_type == "Concat":
        return all(_channels(value) % _BLOCK == 0 for value in data)
    return node.op_type not in ("Add", "Sum", "Mul") or len(data) == len(node.inputs)


def _channels(value: ir.Value) -> int:
    shape = _shape(value)
    return shape[1] if len(shape) > 1 else 0


def _is_map(value: ir.Value) -> bool:
    """Whether the order of its elements depends on the layout at all."""
    shape = _shape(value)
    return len(shape) > 2 and shape[1] > 1 and math.prod(shape[2:]) > 1


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
