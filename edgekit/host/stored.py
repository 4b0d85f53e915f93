"""Read how a graph stores the weights of its products: as floats, in float16, or as codes of few bits. Changes nothing.

quantize_weights writes codes as a matrix, one group a row, behind DequantizeLinear(axis=0) and the views that give the
weight its shape: no integer kernel takes such a product for its own, it computes in float. Codes that a product reads
straight from DequantizeLinear are taken by integer kernels where its other input is dequantized as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.core.errors import BadInput
from edgekit.host.graph import static_shape, values

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]

INTEGER = "edgekit.integer"  # metadata of a DequantizeLinear: a product may be computed on its codes
_READERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather")
_VIEWS = ("Reshape", "Slice", "Transpose")
_RANDOM = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_CODES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
_BLOCKS = (32, 64, 128, 256)  # that onnxruntime's MatMulNBits has kernels for
_DEEP, _LARGE, _FEW_ROWS = (
    256,
    2**18,
    16,
)  # measured: from here, and up to so many rows, it is faster than float
_TABLE_BITS = (1, 2, 4)  # of tables, as bytes divide
_SMALLEST_FIRST = ("binary", "ternary", "int2", "int4", "int8")


@dataclass(frozen=True)
class Grid:
    """Levels -qmax, -qmax + step, ..., qmax. bits: of one code in a file; lowest: what the code 0 in a file means.

    levels: in their place a table of up to 2^bits codes, ascending; a code in a file is a number in it.
    """

    name: str
    bits: int
    qmax: int
    step: int
    lowest: int
    levels: tuple[int, ...] = ()

    def holds(self, codes: Codes) -> bool:
        """Whether every code is one that a file in this format can hold."""
        if not codes.size:
            return True
        if self.levels:
            return bool(np.isin(codes, self.levels).all())
        top = self.lowest + self.step * (2**self.bits - 1)
        inside = self.lowest <= int(codes.min()) and int(codes.max()) <= top
        return inside and (self.step == 1 or not bool(((codes - self.lowest) % self.step).any()))


# int2: four levels without a zero, as the best uniform quantizer of a symmetric density has them (Max 1960)
GRIDS: Mapping[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid("int8", 8, 127, 1, -128),
        Grid("int4", 4, 7, 1, -8),
        Grid("int2", 2, 3, 2, -3),
        Grid("ternary", 2, 1, 1, -1),
        Grid("binary", 1, 1, 2, -1),
    )
}


def grid_of(codes: Codes) -> Grid:
    """The format with the fewest bits that holds the codes: a grid, or a table where they are few and no grid does."""
    plain = next(GRIDS[name] for name in _SMALLEST_FIRST if GRIDS[name].holds(codes))
    if plain.bits <= min(_TABLE_BITS):
        return plain
    found = np.unique(codes)
    for bits in _TABLE_BITS:
        if bits < plain.bits and found.size <= 2**bits:
            levels = tuple(int(level) for level in found)
            return Grid(f"table{bits}", bits, max(map(abs, levels)), 1, levels[0], levels)
    return plain


# --- packing ----------------------------------------------------------------------------------------------------------


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of so many codes."""
    return -(-count * bits // 8)


def pack(codes: Codes, grid: Grid) -> NDArray[np.uint8]:
    """Codes in C order as bytes, the first code in a byte's lowest bits; 8-bit codes as they are."""
    flat = codes.reshape(-1)
    if grid.bits == 8:
        return np.ascontiguousarray(flat).view(np.uint8)
    per = 8 // grid.bits
    if grid.levels:
        numbers = np.searchsorted(np.array(grid.levels, np.int8), flat).astype(np.uint8)
    else:
        numbers = ((flat.astype(np.int16) - grid.lowest) // grid.step).astype(np.uint8)
    slots = np.zeros((packed_bytes(flat.size, grid.bits), per), np.uint8)
    slots.reshape(-1)[: flat.size] = numbers
    shifts = np.arange(per, dtype=np.uint8) * grid.bits
    return np.asarray(np.bitwise_or.reduce(slots << shifts, axis=1), np.uint8)


def unpack(packed: NDArray[np.uint8], grid: Grid, count: int) -> Codes:
    """The first `count` codes in bytes: the inverse of `pack`. Raises BadInput where there are not as many bytes."""
    if packed.size != packed_bytes(count, grid.bits):
        wanted = packed_bytes(count, grid.bits)
        raise BadInput(f"{count} {grid.name} codes must be {wanted} bytes, got {packed.size}")
    if grid.bits == 8:
        return np.asarray(packed.reshape(-1).view(np.int8).copy())
    shifts = np.arange(8 // grid.bits, dtype=np.uint8) * grid.bits
    numbers = (packed.reshape(-1, 1) >> shifts) & (2**grid.bits - 1)
    numbers = numbers.reshape(-1)[:count]
    if grid.levels:
        if numbers.max(initial=0) >= len(grid.levels):
            raise BadInput(
                f"codes of a table of {len(grid.levels)} levels must be below that, got {numbers.max()}"
            )
        return np.asarray(np.array(grid.levels, np.int8)[numbers])
    return np.asarray(numbers.astype(np.int16) * grid.step + grid.lowest, np.int8)


# --- in a graph -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Codes of one weight. node: their DequantizeLinear. codes: less their zero point. scale: shaped to multiply them.

    direct: a product reads the node itself, no view of it.
    """

    node: ir.Node
    codes: Codes
    scale: Floats
    direct: bool

    @property
    def grid(self) -> Grid:
        """The format with the fewest bits that holds the codes."""
        return grid_of(self.codes)


def stored_weights(node: ir.Node) -> str | None:
    """The format of a layer's weights: "int8", "int4", "int2", "ternary", "binary", "table1" to "table4" or "float16".

    None: as computed.
    """
    if node.op_type not in _READERS:
        return None
    for value in node.inputs[:2]:  # not the bias
        maker = None if value is None else before_views(value).producer()
        if maker is None:
            continue
        if _half(maker) is not None:
            return "float16"
        found = stored(maker)
        if found is not None:
            return "int8" if found.direct and computes_on_codes(node) else found.grid.name
    return None


def weight_bytes(node: ir.Node) -> int:
    """Bytes that a node's constant inputs take in a file: codes in the bits of their format, with their scales."""
    return sum(_bytes_of(node, value) for value in node.inputs if value is not None)


def _bytes_of(node: ir.Node, value: ir.Value) -> int:
    if value.const_value is not None:
        return int(value.const_value.nbytes)
    maker = before_views(value).producer()
    if maker is None:
        return 0
    half = _half(maker)
    if half is not None:
        return int(half.nbytes)
    found = stored(maker)
    if found is None:
        return 0
    bits = 8 if found.direct and computes_on_codes(node) else found.grid.bits
    levels = len(found.grid.levels) if bits < 8 else 0
    return packed_bytes(found.codes.size, bits) + levels + int(found.scale.nbytes)


def stored(node: ir.Node) -> Stored | None:
    """The codes of a DequantizeLinear whose inputs are all weights; None where they are not, or in no known form."""
    if node.op_type != "DequantizeLinear" or not all(map(is_weight, node.inputs)):
        return None
    codes, scale, zero = (_array(node, index) for index in range(3))
    if codes is None or scale is None or node.inputs[0] is None or node.inputs[0].dtype not in _CODES:
        return None
    if scale.dtype != np.float32 or scale.ndim > 1 or node.attributes.get_int("block_size", 0) != 0:
        return None
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[node.attributes.get_int("axis", 1)] = scale.size
    if (zero is not None and zero.any()) or codes.dtype != np.int8:
        whole = codes.astype(np.int16)
        if zero is not None:
            whole -= zero.astype(np.int16).reshape(shape if zero.size > 1 else [1] * codes.ndim)
        if whole.min(initial=0) < -128 or whole.max(initial=0) > 127:
            return None
        codes = whole.astype(np.int8)
    direct = any(reader.op_type in _READERS for reader in node.outputs[0].consumers())
    return Stored(node, codes, scale.reshape(shape), direct)


def computes_on_codes(node: ir.Node) -> bool:
    """Whether integer kernels may do a node: it reads dequantized codes on both sides, and can give what is read.

    A convolution on integers gives codes, a dense layer floats as well; there is none that transposes.
    """
    makers = [value.producer() for value in node.inputs[:2] if value is not None]
    if not all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
        return False
    if node.op_type != "Conv":
        return node.op_type != "ConvTranspose"
    readers = list(node.outputs[0].consumers())
    readers += [after for reader in readers for value in reader.outputs for after in value.consumers()]
    return any(reader.op_type == "QuantizeLinear" for reader in readers)


def multiplies_blocks(node: ir.Node) -> bool:
    """Whether a dense layer may round its input to 8 bits and multiply int4 blocks, and is large enough to gain by it.

    The rows of the codes must be its output channels, and it must do no more than multiply and add a bias.
    """
    if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return False
    x, weight = node.inputs[:2]
    if x is None or weight is None or x is weight:
        return False
    source = before_views(weight)
    maker = source.producer()
    if maker is None or INTEGER not in maker.metadata_props:
        return False
    found, x_shape, shape = stored(maker), static_shape(x), static_shape(weight)
    if found is None or x_shape is None or shape is None or len(shape) != 2 or len(x_shape) < 2:
        return False
    turned = _is_turned(weight)
    if turned == (node.attributes.get_int("transB", 0) != 0) or node.attributes.get_int("transA", 0) != 0:
        return False
    if any(
        attribute.as_float() != 1 for key, attribute in node.attributes.items() if key in ("alpha", "beta")
    ):
        return False
    depth, width = shape if turned else shape[::-1]
    large = depth >= _DEEP and depth * width >= _LARGE
    if not large or math.prod(x_shape[:-1]) > _FEW_ROWS:
        return False
    codes = found.codes
    fits = codes.ndim == 2 and codes.shape[1] in _BLOCKS and GRIDS["int4"].holds(codes)
    return fits and codes.shape[0] == width * -(-depth // codes.shape[1])


def _is_turned(value: ir.Value) -> bool:
    """Whether the views of a matrix transpose it."""
    turned = False
    node = value.producer()
    while node is not None and node.op_type in _VIEWS:
        turned ^= node.op_type == "Transpose"
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return turned


def float_weight(value: ir.Value) -> Floats | None:
    """What a constant that is stored in another form is in float32; None where it is computed in a way unknown here."""
    node = value.producer()
    if node is None:
        known = is_weight(value) and value.dtype == ir.DataType.FLOAT and value.const_value is not None
        return np.asarray(value.const_value.numpy(), np.float32) if known and value.const_value else None
    half = _half(node)
    if half is not None and value.dtype == ir.DataType.FLOAT:
        return np.asarray(half.numpy(), np.float32)
    found = stored(node)
    if found is not None:
        return found.codes.astype(np.float32) * found.scale
    if node.op_type not in _VIEWS or node.inputs[0] is None or not all(map(is_weight, node.inputs[1:])):
        return None
    inner = float_weight(node.inputs[0])
    return None if inner is None else np.ascontiguousarray(view(node, inner))


def view(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    """What a Reshape, Transpose or Slice by constants makes of an array."""
    numbers: list[NDArray[Any] | None] = [_array(node, index) for index in range(1, len(node.inputs))]
    if node.op_type == "Transpose":
        attribute = node.attributes.get("perm")
        return np.asarray(array.transpose(None if attribute is None else attribute.as_ints()))
    if node.op_type == "Reshape":
        sizes = [] if numbers[0] is None else numbers[0].tolist()
        allowed = node.attributes.get_int("allowzero", 0)
        return array.reshape([size if size or allowed else array.shape[k] for k, size in enumerate(sizes)])
    starts, ends, axes, steps = ([] if row is None else row.tolist() for row in [*numbers, None, None][:4])
    places = [slice(None)] * array.ndim
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        places[axes[index] if axes else index] = slice(start, end, steps[index] if steps else None)
    return array[tuple(places)]


def folded(model: ir.Model) -> ir.Model:
    """A copy whose weights are plain floats again where the runtime makes them so when it opens the model.

    The floats are computed when somebody reads them. What integer kernels take as codes stays.
    """
    copy, source = model.clone(), values(model)
    made: dict[str, ir.Value] = {}
    for node in copy.graph:
        if node.op_type in (*_VIEWS, "Cast", "DequantizeLinear") or multiplies_blocks(node):
            continue
        for index, value in enumerate(node.inputs):
            shape = None if value is None else static_shape(value)
            if value is None or shape is None or not _is_decoded(node, value):
                continue
            name = f"{value.name}/float"
            if name not in made:
                tensor = ir.LazyTensor(
                    _reader(source[value.name or ""]), ir.DataType.FLOAT, ir.Shape(shape), name=name
                )
                made[name] = ir.Value(name=name, const_value=tensor)
                made[name].dtype, made[name].shape = ir.DataType.FLOAT, ir.Shape(shape)
                copy.graph.register_initializer(made[name])
            node.replace_input_with(index, made[name])
    RemoveUnusedNodesPass()(copy)
    return copy


def _is_decoded(node: ir.Node, value: ir.Value) -> bool:
    """Whether the value is a stored weight that this node reads as float."""
    maker = before_views(value).producer()
    if maker is None or value.dtype != ir.DataType.FLOAT:
        return False
    if _half(maker) is not None:
        return True
    found = stored(maker)
    return found is not None and not (value.producer() is maker and _may_take_codes(node))


def _may_take_codes(node: ir.Node) -> bool:
    """Whether a kernel on codes could take the node: not where it multiplies floats."""
    return node.op_type not in _READERS or computes_on_codes(node)


def _reader(value: ir.Value) -> Callable[[], ir.TensorProtocol]:
    def read() -> ir.TensorProtocol:
        array = float_weight(value)
        assert array is not None  # noqa: S101  (the same walk found it)
        return ir.tensor(array)

    return read


def constant_nodes(model: ir.Model) -> set[ir.Node]:
    """Nodes of the main graph that depend on weights alone: a runtime computes them once, when it opens the model."""
    found: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type in _RANDOM or any(entry.type in _GRAPHS for entry in node.attributes.values()):
            continue
        if all(is_weight(value) or (value and value.producer() in found) for value in node.inputs):
            found.add(node)
    return found


def before_views(value: ir.Value) -> ir.Value:
    """The value that views only show in another shape or order."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        if not all(map(is_weight, node.inputs[1:])):
            break
        value = node.inputs[0]
        node = value.producer()
    return value


def is_weight(value: ir.Value | None) -> bool:
    """Whether the value is a constant of the model, or an input that is left out."""
    return value is None or (value.const_value is not None and value.is_initializer())


def _half(node: ir.Node) -> ir.TensorProtocol | None:
    """The float16 weight behind a Cast."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    if source is None or source.dtype != ir.DataType.FLOAT16 or not is_weight(source):
        return None
    return source.const_value


def _array(node: ir.Node, index: int) -> NDArray[Any] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()
