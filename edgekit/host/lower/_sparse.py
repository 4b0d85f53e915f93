"""Store weights that are mostly zero as one bit per number and the other values; onnxruntime decodes them on opening.

Its constant folding computes the nodes written here once (seen in 1.23 and 1.32: what then runs is the same network, in
float and in int8). `sparse_initializer` works too, but spends 4 bytes on each value's place (int32; 8 as ONNX has it).
Nothing runs faster: that would take sparse kernels.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_OPSET = 11  # BitShift, CumSum
_NODES_BYTES = 700  # what the nodes and constants of one weight cost in the file, about
_LEAST_SAVED = 256  # bytes: below that it is not worth the nodes
_BITS = 8
_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.UINT8)


def store_sparse(model: ir.Model) -> None:
    """Replace each weight that becomes smaller so. Changes the model it is given; its outputs stay the same bits."""
    if model.opset_imports.get("", 0) < _OPSET:
        return
    writer = _Writer(model.graph)
    for value in tuple(model.graph.initializers.values()):
        if value.const_value is None or value.dtype not in _TYPES or value.is_graph_output():
            continue
        array = value.const_value.numpy()
        if is_worth_it(array):
            writer.write(value, array)
    model.graph.sort()


def is_worth_it(array: NDArray[np.generic]) -> bool:
    """Whether bits and values are smaller than the weight as it is. -0.0 counts as a value: it stays what it is."""
    others = int(_is_value(array.reshape(-1)).sum())
    stored = -(-array.size // _BITS) + (others + 1) * array.itemsize + _NODES_BYTES
    return stored + _LEAST_SAVED <= array.nbytes


def _is_value(flat: NDArray[np.generic]) -> NDArray[np.bool_]:
    return np.asarray((flat != 0) | np.signbit(flat) if flat.dtype.kind == "f" else flat != 0)


class _Writer:
    """Writes the nodes; small constants are shared between weights."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.shared: dict[str, ir.Value] = {}
        self.taken = {value.name for node in graph for value in node.outputs} | set(graph.initializers)

    def write(self, old: ir.Value, array: NDArray[np.generic]) -> None:
        """bits -> 0 or 1 each -> how many values so far -> the value there, or the 0 that stands first."""
        flat = array.reshape(-1)
        flags = _is_value(flat)
        stem = old.name or ""
        packed = np.packbits(flags, bitorder="little")[:, None]
        values = np.concatenate([np.zeros(1, flat.dtype), flat[flags]])
        bits = self.node(
            "BitShift", stem, self.constant(f"{stem}/bits", packed), self.shifts(), direction="RIGHT"
        )
        bits = self.node("Mod", stem, bits, self.same("two", np.array([2], np.uint8)))
        bits = self.node("Cast", stem, bits, to=ir.DataType.INT32)
        bits = self.node("Reshape", stem, bits, self.same("all", np.array([-1], np.int64)))
        if packed.size * _BITS != flat.size:
            bounds = (
                self.same("zero", np.array([0], np.int64)),
                self.constant(f"{stem}/end", np.array([flat.size])),
            )
            bits = self.node("Slice", stem, bits, *bounds)
        count = self.node("CumSum", stem, bits, self.same("axis", np.array(0, np.int64)))
        place = self.node("Mul", stem, bits, count)
        made = self.node("Gather", stem, self.constant(f"{stem}/values", values), place)
        made = self.node(
            "Reshape", stem, made, self.constant(f"{stem}/shape", np.array(array.shape, np.int64))
        )
        made.type, made.shape = old.type, old.shape
        old.replace_all_uses_with(made)
        self.graph.initializers.pop(stem)

    def shifts(self) -> ir.Value:
        return self.same("shifts", np.arange(_BITS, dtype=np.uint8))

    def same(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        if name not in self.shared:
            self.shared[name] = self.constant(f"sparse/{name}", array)
        return self.shared[name]

    def constant(self, stem: str, array: NDArray[np.generic]) -> ir.Value:
        name = self.fresh(stem)
        value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self.graph.register_initializer(value)
        return value

    def node(self, op: str, stem: str, *inputs: ir.Value, **attributes: int | str) -> ir.Value:
        name = self.fresh(f"{stem}/{op.lower()}")
        node = ir.node(op, inputs, attributes, name=name)
        node.outputs[0].name = name
        self.graph.append(node)
        return node.outputs[0]

    def fresh(self, stem: str) -> str:
        name, count = stem, 1
        while name in self.taken:
            name, count = f"{stem}/{count}", count + 1
        self.taken.add(name)
        return name
