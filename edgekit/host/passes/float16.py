"""Compute in float16 where that keeps its range, or only store weights in it. Inputs and outputs stay float32.

What sums many terms, divides or takes exponents stays float32, and so does what ONNX has no float16 for; Casts stand at
the borders. IEEE 754 binary16: 11 significant bits, largest number 65504, smallest normal 2^-14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, values
from edgekit.host.options import option
from edgekit.host.passes.base import Context, Pass
from edgekit.host.stored import constant_nodes

LARGEST = 65504.0
_LEAST_DB = 50.0  # a weight that float16 rounds worse than this has too many numbers below its normal range
_HEADROOM = 4  # between what calibration saw and the end of the range
_HALF_TYPE = "tensor(float16)"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_PRODUCTS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
)  # what gains; others follow where they read float16 anyway
KEEPS_FLOAT = frozenset(
    (
        *("Softmax", "LogSoftmax", "Softplus", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Div", "Erf"),
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "LRN"),
        *("RMSNormalization", "LpNormalization", "MeanVarianceNormalization", "GlobalAveragePool"),
        *("GlobalLpPool", "LpPool", "AveragePool", "Mean", "Sum", "CumSum", "Einsum", "Attention"),
        *("Resize", "Upsample", "GridSample", "RoiAlign", "NonMaxSuppression", "TopK", "ArgMax", "ArgMin"),
        *("LSTM", "GRU", "RNN", "QuantizeLinear", "DequantizeLinear", "Cast", "CastLike", "Range"),
        *("Constant", "ConstantOfShape", "RandomNormal", "RandomUniform", "Dropout", "STFT", "DFT"),
    )
)  # what loses range or exactness in 16 bits, what makes numbers of nothing, and what converts by itself


@dataclass(frozen=True)
class Float16:
    """keep_float: nodes that stay float32, or whose weights are not stored in float16.

    storage_only: compute in float32. min_size: with it, a weight with fewer numbers stays as it is.
    """

    keep_float: tuple[str, ...] = ()
    storage_only: bool = False
    min_size: int = option(64, min=1)


def apply(graph: Graph, options: Float16, context: Context) -> Graph:
    """The graph with float16 inside. Raises BadInput where keep_float names no node.

    With calibration data, nodes whose tensors come near the end of the range stay float32.
    """
    unknown = sorted(set(options.keep_float) - {node.name or "" for node in graph.model.graph})
    if unknown:
        raise BadInput(f"keep_float names no node of the model: {', '.join(unknown)}")
    model = graph.copy()
    if options.storage_only:
        _store(model, options)
    else:
        _Converter(model, graph.opset, set(why_float(graph, options, context))).convert()
    model.graph.sort()
    return graph.with_model(model)


def why_float(graph: Graph, options: Float16, context: Context) -> Mapping[str, str]:
    """Names of nodes that stay float32 -> why: what the rules and the options say, tensors whose numbers do not fit."""
    reasons: dict[str, str] = {}
    once = constant_nodes(graph.model)
    seen = {} if context.data is None else context.calibration(graph).ranges("minmax")
    for node in graph.model.graph:
        name = node.name or ""
        if node in once:
            reasons[name] = "it is computed once, when the model is opened"
        elif name in options.keep_float:
            reasons[name] = "keep_float says so"
        elif node.op_type in KEEPS_FLOAT or node.op_type.startswith("Reduce"):
            reasons[name] = f"{node.op_type} loses range or exactness in 16 bits"
        elif _slots(node, graph.opset) is None:
            reasons[name] = f"ONNX has no {node.op_type} in float16"
        else:
            why = _misfits(node, seen)
            if why is not None:
                reasons[name] = why
    return reasons


def _misfits(node: ir.Node, seen: Mapping[str, tuple[float, float]]) -> str | None:
    """Which of a node's tensors float16 does not hold."""
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        if value.const_value is not None:
            why = misfit(np.asarray(value.const_value.numpy()))
            if why is not None:
                return f"weight {value.name!r} {why}"
        reach = max(map(abs, seen.get(value.name or "", (0.0, 0.0))))
        if reach > LARGEST / _HEADROOM:
            return f"{value.name!r} reached {reach:.4g} on the calibration data, float16 ends at {LARGEST:g}"
    return None


def misfit(array: NDArray[np.float32]) -> str | None:
    """Why float16 cannot hold a weight; None where it can."""
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= LARGEST:  # also NaN
        return f"has numbers up to {largest:.4g}, float16 ends at {LARGEST:g}"
    off = array.astype(np.float16).astype(np.float64) - array
    signal, noise = (float(np.square(each, dtype=np.float64).sum()) for each in (array, off))
    if noise > signal * 10 ** (-_LEAST_DB / 10):
        return "has most of its numbers below float16's normal range"
    return None


# --- storage ----------------------------------------------------------------------------------------------------------


def _store(model: ir.Model, options: Float16) -> None:
    """Weights in float16 behind a Cast, which a runtime computes once, when it opens the model."""
    for name, value in tuple(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.size < options.min_size or value.dtype != ir.DataType.FLOAT:
            continue
        readers = value.consumers()
        if value.is_graph_output() or not readers or any(reader.op_type in _SCALED for reader in readers):
            continue
        kept = any(reader.name in options.keep_float for reader in readers)
        array = np.asarray(tensor.numpy())
        if kept or misfit(array) is not None:
            continue
        half = _constant(model, f"{name}/float16", array.astype(np.float16))
        cast = _cast(model, half, ir.DataType.FLOAT, f"{name}/float32")
        value.replace_all_uses_with(cast)
        del model.graph.initializers[name]
        cast.name = name


_SCALED = ("QuantizeLinear", "DequantizeLinear")


# --- computing --------------------------------------------------------------------------------------------------------


def _slots(node: ir.Node, opset: int) -> tuple[set[int], set[int]] | None:
    """(inputs, outputs) that may be float16, some of which already are; None where the operator has no float16."""
    if node.domain not in ("", "ai.onnx") or any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    ):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    halves = {
        entry.type_param_str for entry in schema.type_constraints if _HALF_TYPE in entry.allowed_type_strs
    }
    kinds = [schema.inputs[min(index, len(schema.inputs) - 1)].type_str for index in range(len(node.inputs))]
    reads = {
        index
        for index, value in enumerate(node.inputs)
        if value is not None and value.dtype in _FLOATS and kinds[index] in halves
    }
    bound = {kinds[index] for index in reads}
    makes = set()
    for index, value in enumerate(node.outputs):
        if value.dtype != ir.DataType.FLOAT:
            continue
        if schema.outputs[min(index, len(schema.outputs) - 1)].type_str not in bound:
            return None
        makes.add(index)
    return (reads, makes) if reads and makes else None


@dataclass
class _Converter:
    """Walks the nodes in order; knows which values are float16 by now, and the casts made so far."""

    model: ir.Model
    opset: int
    floats: set[str]  # names of nodes that stay float32
    halves: set[ir.Value] = field(default_factory=set)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    def convert(self) -> None:
        """Make every node that may, and gains or follows, compute in float16."""
        inner = _read_inside(self.model)
        outputs = [(value, value.name or "") for value in self.model.graph.outputs]
        self.model.graph.sort()
        for node in tuple(self.model.graph):
            slots = None if (node.name or "") in self.floats else _slots(node, self.opset)
            if slots is not None and self._gains(node) and not inner & set(node.outputs):
                self._to_half(node, *slots)
            else:
                for index, value in enumerate(node.inputs):
                    if value in self.halves:
                        node.replace_input_with(index, self._as(value, ir.DataType.FLOAT))
        for place, (value, name) in enumerate(outputs):
            if value in self.halves:
                cast = self._as(value, ir.DataType.FLOAT)
                value.name, cast.name = f"{name}/float16", name
                self.model.graph.outputs[place] = cast
        for name, value in tuple(self.model.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.model.graph.initializers[name]

    def _gains(self, node: ir.Node) -> bool:
        return node.op_type in _PRODUCTS or any(value in self.halves for value in node.inputs)

    def _to_half(self, node: ir.Node, reads: set[int], makes: set[int]) -> None:
        for index in reads:
            value = node.inputs[index]
            if value is not None and value not in self.halves:
                node.replace_input_with(index, self._as(value, ir.DataType.FLOAT16))
        for index in makes:
            node.outputs[index].type = ir.TensorType(ir.DataType.FLOAT16)  # a copy shares the old one
            self.halves.add(node.outputs[index])

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type: a weight converted now, anything else behind one Cast for all readers."""
        if (value, dtype) not in self.casts:
            suffix = "float16" if dtype == ir.DataType.FLOAT16 else "float32"
            name = f"{value.name}/{suffix}"
            taken = values(self.model)
            while name in taken:
                name += "_"
            if value.const_value is not None and value.is_initializer():
                made = _constant(self.model, name, value.const_value.numpy().astype(np.float16))
            else:
                made = _cast(self.model, value, dtype, name)
            self.casts[value, dtype] = made
        return self.casts[value, dtype]


def _read_inside(model: ir.Model) -> set[ir.Value]:
    """Values of the main graph that inner graphs read: those know them as float32."""
    return {
        value
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.graph is not model.graph
        for value in node.inputs
        if value is not None
    }


def _constant(model: ir.Model, name: str, array: NDArray[np.float16]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.FLOAT16, ir.Shape(array.shape)
    model.graph.register_initializer(value)
    return value


def _cast(model: ir.Model, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
    made = node.outputs[0]
    made.name, made.dtype, made.shape = name, dtype, value.shape
    model.graph.append(node)
    return made


PASS = Pass("float16", apply, min_sqnr_db=40.0, options=Float16, rounds=True)
