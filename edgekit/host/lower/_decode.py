"""Write stored weights so that onnxruntime decodes them once, when it opens the file: packed codes and plain operators.

onnxruntime never folds DequantizeLinear: a float product behind one decodes its weight at every run (measured 1.3 to 8
times slower than float). It does fold BitShift, Mod, Cast, Sub and Mul of constants (tried with 1.20 and 1.32): what
then runs is the float network. Large dense layers of int4 blocks become MatMulNBits where that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.host.graph import static_shape
from edgekit.host.stored import (
    GRIDS,
    Codes,
    Floats,
    Stored,
    computes_on_codes,
    is_weight,
    multiplies_blocks,
    pack,
    stored,
    view,
)

DOMAIN = "com.microsoft"
_LEAST_SAVED = 160  # bytes: what the nodes that unpack cost
_WORTH_HALF = 32  # scales: what one more node is worth
_NBITS_ACCURACY = 4  # inputs are rounded to 8 bits a block
_LARGEST_CODE = 2**31 - 1
_VIEWS = ("Reshape", "Slice", "Transpose")
_FLOAT_READERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def decode_weights(model: ir.Model) -> None:
    """Replace every DequantizeLinear of a weight that no integer kernel takes. Changes the model it is given."""
    for node in tuple(model.graph):
        _decode_bias(model, node)
        _code_bias(model, node)
        found = stored(node)
        if found is None or not _is_for_floats(found):
            continue
        if not _multiply_codes(model, found):
            _Decoder(model, found).decode()
    RemoveUnusedNodesPass()(model)
    model.graph.sort()


def _is_for_floats(found: Stored) -> bool:
    """Whether all readers compute in float."""
    value = found.node.outputs[0]
    readers = value.consumers()
    if value.is_graph_output() or not readers:
        return False
    if found.direct:
        return all(reader.op_type in _FLOAT_READERS and not computes_on_codes(reader) for reader in readers)
    return all(reader.op_type in _VIEWS and all(map(is_weight, reader.inputs[1:])) for reader in readers)


def _decode_bias(model: ir.Model, node: ir.Node) -> None:
    """Make floats, of the same size, of the 32-bit codes of a bias that is added to floats."""
    if node.op_type != "DequantizeLinear" or len(node.inputs) < 2 or not all(map(is_weight, node.inputs)):
        return
    old, codes, scale = node.outputs[0], _array(node, 0), _array(node, 1)
    readers = old.consumers()
    if not readers or old.is_graph_output() or codes is None or scale is None or codes.dtype != np.int32:
        return
    if any(reader.op_type not in _FLOAT_READERS or computes_on_codes(reader) for reader in readers):
        return
    if codes.ndim == 1 and scale.dtype == np.float32 and scale.size in (1, codes.size):
        floats = codes.astype(np.float32) * scale
        old.replace_all_uses_with(_constant(model.graph, f"{old.name}/float", floats))


def _code_bias(model: ir.Model, node: ir.Node) -> None:
    """Give a product on codes its float bias in 32 bits, in steps of input times weight, as integer kernels want it."""
    bias = node.inputs[2] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 else None
    if bias is None or bias.const_value is None or not bias.is_initializer() or not computes_on_codes(node):
        return
    scaled = any(
        attribute.as_float() != 1 for key, attribute in node.attributes.items() if key in ("alpha", "beta")
    )
    makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
    steps = [None if maker is None else _array(maker, 1) for maker in makers]
    array = bias.const_value.numpy()
    if scaled or steps[0] is None or steps[1] is None or array.ndim != 1 or array.dtype != np.float32:
        return
    if steps[0].size != 1 or steps[1].size not in (1, array.size) or steps[0].dtype != np.float32:
        return
    scale = np.broadcast_to(steps[0].reshape(-1) * steps[1].reshape(-1), array.shape).astype(np.float32)
    codes = np.rint(array.astype(np.float64) / np.where(scale > 0, scale, 1))
    if not (scale > 0).all() or not (np.abs(codes) < _LARGEST_CODE).all():
        return
    stem = f"{node.outputs[0].name}/bias"
    constants = [
        ("codes", codes.astype(np.int32)),
        ("scale", scale),
        ("zero", np.zeros(codes.shape, np.int32)),
    ]
    inputs = [_constant(model.graph, f"{stem}/{key}", array) for key, array in constants]
    node.replace_input_with(2, _node(model.graph, "DequantizeLinear", stem, *inputs, axis=0))


def _array(node: ir.Node, index: int) -> NDArray[Any] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


class _Decoder:
    """The constants and nodes that make one weight of its codes."""

    def __init__(self, model: ir.Model, found: Stored) -> None:
        self._graph = model.graph
        self._grid = found.grid
        self._old, self._codes, self._scale = _past_views(found)
        self._stem = self._old.name or ""
        self._count = 0

    def decode(self) -> None:
        """Put them in the place of the DequantizeLinear, and of the views behind it that only moved whole scales."""
        grid, scale = self._grid, self._scale
        if self._codes.size * (8 - grid.bits) // 8 >= _LEAST_SAVED:
            numbers, scale = self._unpacked(), scale * np.float32(grid.step)
        else:
            numbers = self._node("Cast", self._constant(self._codes), to=ir.DataType.FLOAT)
        new = self._node("Mul", numbers, self._floats(scale))
        new.type, new.shape = self._old.type, self._old.shape
        self._old.replace_all_uses_with(new)

    def _unpacked(self) -> ir.Value:
        """The codes as floats, in steps of the grid."""
        grid, codes = self._grid, self._codes
        per, packed = 8 // grid.bits, pack(codes, grid)
        shifts = np.arange(per, dtype=np.uint8) * grid.bits
        value = self._node(
            "BitShift", self._constant(packed[:, None]), self._constant(shifts), direction="RIGHT"
        )
        value = self._node("Mod", value, self._constant(np.array([2**grid.bits], np.uint8)))
        if grid.levels:
            levels = self._constant(np.array(grid.levels, np.float32))
            value = self._node("Gather", levels, self._node("Cast", value, to=ir.DataType.INT32), axis=0)
        else:
            value = self._node("Cast", value, to=ir.DataType.FLOAT)
            zero = np.array([-grid.lowest / grid.step], np.float32)
            value = self._node("Sub", value, self._constant(zero))
        if packed.size * per != codes.size:
            value = self._node("Reshape", value, self._constant(np.array([-1], np.int64)))
            bounds = [self._constant(np.array([bound], np.int64)) for bound in (0, codes.size)]
            value = self._node("Slice", value, *bounds)
        return self._node("Reshape", value, self._constant(np.array(codes.shape, np.int64)))

    def _floats(self, scale: Floats) -> ir.Value:
        """In float16 where that loses nothing."""
        with np.errstate(over="ignore"):
            half = scale.astype(np.float16)
        if scale.size < _WORTH_HALF or (half.astype(np.float32) != scale).any():
            return self._constant(scale)
        return self._node("Cast", self._constant(half), to=ir.DataType.FLOAT)

    def _constant(self, array: NDArray[Any]) -> ir.Value:
        return _constant(self._graph, self._fresh(), array)

    def _node(self, op: str, *inputs: ir.Value, **attributes: int | str) -> ir.Value:
        return _node(self._graph, op, self._fresh(), *inputs, **attributes)

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._stem}/decode{self._count}"


def _past_views(found: Stored) -> tuple[ir.Value, Codes, Floats]:
    """(the last value that a scale per channel still fits, codes and scale in its shape)."""
    value, codes, scale = found.node.outputs[0], found.codes, found.scale
    while len(value.uses()) == 1 and not value.is_graph_output():
        (reader,) = value.consumers()
        if reader.op_type not in _VIEWS or reader.inputs[0] is not value:
            break
        seen = view(reader, np.broadcast_to(scale, codes.shape))
        for axis in range(seen.ndim):
            first = np.take(seen, [0], axis)
            seen = first if (seen == first).all() else seen
        if seen.size > scale.size:
            break
        value, codes, scale = reader.outputs[0], view(reader, codes), np.ascontiguousarray(seen)
    return value, codes, scale


def _constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def _node(graph: ir.Graph, op: str, name: str, *inputs: ir.Value, **attributes: int | str) -> ir.Value:
    domain = DOMAIN if op == "MatMulNBits" else ""
    node = ir.node(op, inputs, attributes, domain=domain, name=name)
    node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]


# --- integers ---------------------------------------------------------------------------------------------------------


def _multiply_codes(model: ir.Model, found: Stored) -> bool:
    """Turn the products that read these blocks into MatMulNBits; False where one of them is not fit for it."""
    users = list(_users(found.node.outputs[0]))
    if not users or not all(map(multiplies_blocks, users)):
        return False
    for node in users:
        _write_nbits(model, found, node)
    return True


def _users(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes behind the views of a decoded weight."""
    for reader in value.consumers():
        if reader.op_type in _VIEWS and reader.inputs[0] is value:
            yield from _users(reader.outputs[0])
        else:
            yield reader


def _write_nbits(model: ir.Model, found: Stored, node: ir.Node) -> None:
    """Multiply the codes in the place of a product."""
    graph, name, old, x = model.graph, node.name or "", node.outputs[0], node.inputs[0]
    assert x is not None  # noqa: S101  (see multiplies_blocks)
    depth, block = (static_shape(x) or (0,))[-1], found.codes.shape[1]
    blocks = -(-depth // block)
    width = found.codes.shape[0] // blocks
    stem = f"{old.name}/nbits"
    packed = pack(found.codes, GRIDS["int4"]).reshape(width, blocks, block // 2)
    new = _node(
        graph,
        "MatMulNBits",
        f"{stem}/y",
        x,
        _constant(graph, f"{stem}/codes", packed),
        _constant(graph, f"{stem}/scale", found.scale.reshape(-1)),
        K=depth,
        N=width,
        bits=4,
        block_size=block,
        accuracy_level=_NBITS_ACCURACY,
    )
    made = new.producer()
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        new = _node(graph, "Add", f"{stem}/sum", new, bias)
    output, kind, shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name, new.type, new.shape = output, kind, shape
    if made is not None:
        made.name = name
    model.opset_imports[DOMAIN] = 1
