"""How many bytes of weights a part's file holds, and how many they are in the format that computes. Runs nothing.

ONNX, TFLite and plans are read just far enough: constants, and the nodes that a runtime computes once when it opens
the file (codes of few bits decoded to floats). Formats: onnx.proto3 (protobuf encoding), schema.fbs (FlatBuffers
internals), plan.h.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.native.plan import MAGIC, constant_bytes

Shape = tuple[int, ...]
PLAN_MAGIC = MAGIC.to_bytes(4, "little")
_MOST_VALUES = 16  # numbers of a constant that are read: shapes and bounds of slices


@dataclass(frozen=True)
class Weights:
    """file_bytes: of constants, as they are stored. computed_bytes: as the operators read them."""

    file_bytes: int
    computed_bytes: int


def weights_of(data: bytes) -> Weights | None:
    """The weights in a part's file; None where it is neither ONNX, TFLite nor a plan, or cannot be told."""
    try:
        if data[:4] == PLAN_MAGIC:
            held = constant_bytes(data)
            return Weights(held, held)
        return _of_tflite(data) if data[4:8] == b"TFL3" else _of_onnx(data)
    except (IndexError, KeyError, ValueError, TypeError, struct.error):
        return None


# --- ONNX -------------------------------------------------------------------------------------------------------------

# TensorProto.DataType -> bytes of one number
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2, 21: 0.5, 22: 0.5}
_SAME_SHAPE = ("Cast", "DequantizeLinear", "Identity", "Transpose", "Neg")
_INT64, _SPARSE = 7, 15
Value = int | memoryview


@dataclass(frozen=True)
class _Constant:
    shape: Shape
    dtype: int
    numbers: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        return math.ceil(math.prod(self.shape) * _SIZES[self.dtype])


@dataclass
class _Node:
    op: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    to: int | None = None


def _of_onnx(data: bytes) -> Weights | None:
    graphs = [value for key, value in _fields(memoryview(data)) if key == 7]
    if len(graphs) != 1 or not isinstance(graphs[0], memoryview):
        return None
    known: dict[str, _Constant] = {}
    nodes: list[_Node] = []
    for key, value in _fields(graphs[0]):
        if key == 5 and isinstance(value, memoryview):
            name, constant = _tensor(value)
            known[name] = constant
        elif key == _SPARSE:
            return None  # our own sparse storage is decoded by operators: its size in memory is not told here
        elif key == 1 and isinstance(value, memoryview):
            nodes.append(_node(value))
    stored = sum(constant.nbytes for constant in known.values())
    return Weights(stored, sum(constant.nbytes for constant in _read_by_operators(known, nodes)))


def _read_by_operators(known: dict[str, _Constant], nodes: Sequence[_Node]) -> Iterator[_Constant]:
    """What is left of the constants when nodes over nothing but constants have been computed.

    A DequantizeLinear stays: where it reads a weight that integer kernels take, the codes are what computes.
    """
    made: dict[str, _Constant] = {}
    read: dict[str, None] = {}
    for node in nodes:  # in topological order
        inputs = [name for name in node.inputs if name]
        if inputs and node.op != "DequantizeLinear" and all(name in known for name in inputs):
            result = _computed(node, [known[name] for name in inputs])
            if result is not None:
                made[node.outputs[0]] = known[node.outputs[0]] = result
                continue
        read.update(dict.fromkeys(name for name in inputs if name in known))
    return (known[name] for name in read)


def _computed(node: _Node, inputs: Sequence[_Constant]) -> _Constant | None:
    first = inputs[0]
    if node.op in _SAME_SHAPE:
        return _Constant(first.shape, node.to or first.dtype)
    if node.op in ("Mul", "Add", "Sub", "Div", "Mod", "BitShift"):
        return _Constant(_broadcast([value.shape for value in inputs]), first.dtype)
    if node.op == "Reshape" and inputs[1].numbers:
        return _Constant(_reshaped(first.shape, inputs[1].numbers), first.dtype)
    if node.op == "Slice" and len(first.shape) == 1 and inputs[1].numbers and inputs[2].numbers:
        return _Constant((min(first.shape[0], inputs[2].numbers[0]) - inputs[1].numbers[0],), first.dtype)
    return None


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))


def _reshaped(shape: Shape, wanted: Sequence[int]) -> Shape:
    sizes = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    rest = math.prod(size for size in sizes if size != -1)
    return tuple(math.prod(shape) // rest if size == -1 else size for size in sizes)


def _node(data: memoryview) -> _Node:
    made = _Node()
    for key, value in _fields(data):
        if isinstance(value, int):
            continue
        if key == 1:
            made.inputs.append(bytes(value).decode())
        elif key == 2:
            made.outputs.append(bytes(value).decode())
        elif key == 4:
            made.op = bytes(value).decode()
        elif key == 5:
            entries = dict(_fields(value))
            name, number = entries.get(1), entries.get(3)
            if isinstance(name, memoryview) and bytes(name) == b"to" and isinstance(number, int):
                made.to = number
    return made


def _tensor(data: memoryview) -> tuple[str, _Constant]:
    shape: list[int] = []
    dtype, name, numbers = 0, "", ()
    for key, value in _fields(data):
        if key == 1:
            shape += _packed(value)
        elif key == 2 and isinstance(value, int):
            dtype = value
        elif key == 8 and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif key == 9 and isinstance(value, memoryview) and len(value) <= 8 * _MOST_VALUES:
            numbers = struct.unpack(f"<{len(value) // 8}q", value) if len(value) % 8 == 0 else ()
    return name, _Constant(tuple(shape), dtype, numbers if dtype == _INT64 else ())


def _packed(value: Value) -> list[int]:
    """A repeated number: one of them, or all in one field."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(number)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """(number, value) of a protobuf message's fields: a number, or a view of the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > len(data):
            raise ValueError("a field is longer than its message")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return number, at
        if shift > 63:
            raise ValueError("not a number")


# --- TFLite -----------------------------------------------------------------------------------------------------------

# TensorType -> bytes of one number
_TFLITE_SIZES: Mapping[int, float] = {
    0: 4,
    1: 2,
    2: 4,
    3: 1,
    4: 8,
    6: 1,
    7: 2,
    9: 1,
    10: 8,
    15: 4,
    16: 2,
    17: 0.5,
}
_DEQUANTIZE = 6


class _Table:
    """One FlatBuffers table: fields by number, 0 where it has not got one."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        (back,) = struct.unpack_from("<i", data, at)
        self._vtable = at - back
        (self._size,) = struct.unpack_from("<H", data, self._vtable)

    def _place(self, number: int) -> int:
        slot = 4 + 2 * number
        if slot >= self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, self._vtable + slot)
        return self._at + offset if offset else 0

    def number(self, number: int, form: str) -> int:
        place = self._place(number)
        return int(struct.unpack_from(form, self._data, place)[0]) if place else 0

    def _vector(self, number: int) -> tuple[int, int]:
        place = self._place(number)
        if not place:
            return 0, 0
        start = place + struct.unpack_from("<I", self._data, place)[0]
        return start + 4, struct.unpack_from("<I", self._data, start)[0]

    def length(self, number: int) -> int:
        return self._vector(number)[1]

    def numbers(self, number: int) -> Shape:
        start, count = self._vector(number)
        return struct.unpack_from(f"<{count}i", self._data, start)

    def tables(self, number: int) -> list[_Table]:
        start, count = self._vector(number)
        places = range(start, start + 4 * count, 4)
        return [_Table(self._data, at + struct.unpack_from("<I", self._data, at)[0]) for at in places]


def _of_tflite(data: bytes) -> Weights:
    model = _Table(data, struct.unpack_from("<I", data)[0])
    sizes = [buffer.length(0) for buffer in model.tables(4)]
    # the operator's number stands in one byte, in newer files in four
    codes = [max(code.number(0, "<b"), code.number(3, "<i")) for code in model.tables(1)]
    stored = computed = 0
    for graph in model.tables(2):
        tensors = graph.tables(0)
        kept = {
            index: sizes[t.number(2, "<I")] for index, t in enumerate(tensors) if sizes[t.number(2, "<I")]
        }
        stored += sum(kept.values())
        for node in graph.tables(3):
            inputs, outputs = node.numbers(1), node.numbers(2)
            if codes[node.number(0, "<I")] == _DEQUANTIZE and kept.pop(inputs[0], 0):
                made = tensors[outputs[0]]
                kept[outputs[0]] = math.ceil(math.prod(made.numbers(0)) * _TFLITE_SIZES[made.number(1, "<b")])
        computed += sum(kept.values())
    return Weights(stored, computed)
