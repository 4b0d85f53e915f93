"""Walk an ONNX graph once and write every node: what is constant is computed, pairs of Q and DQ become int8 kernels.

An operator runs on codes where all it reads is dequantized and all that reads it quantizes in one way; else it runs in
float between DEQUANTIZE and QUANTIZE, which is what the ONNX graph says, only slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from edgekit.core.errors import one_line
from edgekit.host.lower.tflite.values import (
    SHIFT,
    Known,
    Order,
    Unsupported,
    Values,
    attributes,
    first,
    grouped_axes,
    last,
    names,
    normalized,
    shape_of,
    squeezed,
    type_of,
)
from edgekit.host.lower.tflite.writer import Array, Quant, options

NONE, RELU, RELU_N1, RELU6 = 0, 1, 2, 3  # fused activations, as the schema numbers them
_MOST_REASON = 160
_VIEWS = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
_COMPUTED = {"float32", "float16", "int32", "int64", "bool"}  # types of numbers that kernels compute with


@dataclass(frozen=True)
class Target:
    """Where an operator's result goes: behind the activation that is fused into it, in front of its QuantizeLinear."""

    value: ir.Value
    activation: int = NONE
    quant: Quant | None = None
    fused: tuple[ir.Node, ...] = ()
    quantizers: tuple[ir.Node, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, in ONNX's order."""
        return shape_of(self.value)


@dataclass
class Translation:
    """A graph on its way. movers: operators that take any type. problems: what could not be written, by node."""

    graph: ir.Graph
    opset: int
    values: Values = field(default_factory=Values)
    movers: frozenset[str] = frozenset()
    problems: list[str] = field(default_factory=list)
    _done: set[ir.Node] = field(default_factory=set)

    # --- where results go

    def target(self, node: ir.Node, *, fuse: bool = False) -> Target:
        """What becomes of a node's first output."""
        value, activation = node.outputs[0], NONE
        fused: tuple[ir.Node, ...] = ()
        reader = next(iter(value.consumers()), None)
        if fuse and reader is not None and len(value.uses()) == 1 and not value.is_graph_output():
            activation = self._fusable(reader)
            if activation != NONE:
                value, fused = reader.outputs[0], (reader,)
        readers = tuple(value.consumers())
        quant = None
        if readers and not value.is_graph_output() and all(_quantizes(reader, value) for reader in readers):
            found = [self._quantizer(reader)[0] for reader in readers]
            quant = found[0] if found[0].per_tensor and all(found[0].same(other) for other in found) else None
        return Target(value, activation, quant, fused, readers if quant is not None else ())

    def _fusable(self, node: ir.Node) -> int:
        if node.op_type == "Relu":
            return RELU
        if node.op_type != "Clip":
            return NONE
        limits = self.clip_limits(node)
        return {(0.0, 6.0): RELU6, (-1.0, 1.0): RELU_N1, (0.0, np.inf): RELU}.get(limits, NONE)

    def clip_limits(self, node: ir.Node) -> tuple[float, float]:
        """What a Clip cuts at; infinities where it has no limit. Raises Unsupported where they are computed."""
        told, given = attributes(node), names(node)
        limits = [told.get("min", -np.inf), told.get("max", np.inf)]
        for index, name in enumerate(given[1:3]):
            if name:
                limits[index] = float(self.number(name))
        return float(limits[0]), float(limits[1])

    def number(self, name: str) -> float:
        """A constant with one value."""
        return float(self.constant(name).reshape(-1)[0])

    def constant(self, name: str) -> Array:
        """A constant's numbers. Raises Unsupported where it is computed."""
        if name not in self.values.known:
            raise Unsupported(f"{name!r} must be a constant")
        return self.values.constant(name)

    def int8(self, target: Target, inputs: Sequence[str]) -> bool:
        """Whether an operator can run on codes: all it reads has them, and so has its result."""
        quants = [self.values.quant_of(name) for name in inputs]
        codes = [self.values[name].codes for name in inputs]
        return target.quant is not None and all(
            quant is not None and quant.per_tensor and code is not None and self.values[code].dtype == "int8"
            for quant, code in zip(quants, codes, strict=True)
        )

    def output(self, target: Target, order: Order, *, codes: bool) -> int:
        """The tensor for an operator's result, as codes or as numbers."""
        name = target.value.name or ""
        self._done.update(target.fused)
        if not codes or target.quant is None:
            return self.values.new(name, target.shape, order, type_of(target.value))
        made = [reader.outputs[0].name or "" for reader in target.quantizers]
        tensor = self.values.new(made[0], target.shape, order, "int8", target.quant)
        for other in made[1:]:
            self.values.alias(other, made[0])
        self._done.update(target.quantizers)
        self.values.known[name] = Known(target.shape, "float32", codes=made[0])
        return tensor

    def result(self, node: ir.Node, order: Order, dtype: str | None = None) -> int:
        """The tensor for a float operator's result that nothing is fused into."""
        value = node.outputs[0]
        return self.values.new(value.name or "", shape_of(value), order, dtype or type_of(value))

    def code_input(self, name: str, order: Order) -> int:
        """The codes behind a float value, as a tensor."""
        codes = self.values[name].codes
        if codes is None:
            raise Unsupported(f"{name!r} has no codes")
        return self.values.at(codes, order)

    def operand(self, name: str, order: Order, *, codes: bool) -> int:
        """A value as a tensor: its codes, or its numbers."""
        return self.code_input(name, order) if codes else self.values.at(name, order)

    # --- values that only move: their codes move with them

    def transposed(self, source: str, made: str, perm: Sequence[int]) -> None:
        """A value with its axes in another order: the same tensors. perm: axis of the source per axis of the result."""
        entry = self.values[source]
        shape = tuple(entry.shape[axis] for axis in perm)
        if entry.codes is not None:
            self.transposed(entry.codes, f"{made}#codes", perm)
            self.values.known[made] = Known(shape, entry.dtype, codes=f"{made}#codes")
            return
        place = {axis: index for index, axis in enumerate(perm)}
        quant = entry.quant
        if quant is not None and not quant.per_tensor:
            quant = replace(quant, axis=place[quant.axis])
        if entry.array is not None:
            self.values.add_constant(made, entry.array.transpose(perm), quant)
            return
        forms = {tuple(place[axis] for axis in order): tensor for order, tensor in entry.forms.items()}
        self.values.known[made] = Known(shape, entry.dtype, quant, forms=forms)

    def reshaped(self, source: str, made: str, shape: Sequence[int]) -> None:
        """A value in another shape: the bytes stay where they are wherever some order of its axes allows that."""
        entry, shape = self.values[source], tuple(shape)
        if entry.codes is not None:
            self.reshaped(entry.codes, f"{made}#codes", shape)
            self.values.known[made] = Known(shape, entry.dtype, codes=f"{made}#codes")
            return
        if entry.array is not None:
            quant = entry.quant if entry.quant is None else reshaped_quant(entry.quant, entry.shape, shape)
            self.values.add_constant(made, entry.array.reshape(shape), quant)
            return
        found = [(order, carried(entry.shape, shape, order)) for order in entry.forms]
        able = [(order, after) for order, after in found if after is not None]
        if not able:
            last_order = last(len(shape))
            before = carried(shape, entry.shape, last_order)
            wanted = (
                (before, last_order) if before is not None else (first(len(entry.shape)), first(len(shape)))
            )
            able = [wanted]
        forms = {
            after: self.values.reshaped(self.values.at(source, order), [shape[axis] for axis in after], made)
            for order, after in able
        }
        self.values.known[made] = Known(shape, entry.dtype, entry.quant, forms=forms)

    def through(
        self, source: str, made: str, shape: Sequence[int], orders: tuple[Order, Order]
    ) -> tuple[int, int]:
        """(the tensor to read, the tensor to fill) of an operator that moves numbers, and codes just as well.

        orders: of the source and of the result.
        """
        entry, (before, after) = self.values[source], orders
        codes = None if entry.codes is None else self.values[entry.codes]
        if codes is not None and codes.quant is not None and codes.quant.per_tensor and codes.dtype == "int8":
            filled = self.values.new(f"{made}#codes", shape, after, "int8", codes.quant)
            self.values.known[made] = Known(tuple(shape), entry.dtype, codes=f"{made}#codes")
            return self.values.at(entry.codes or "", before), filled
        return self.values.at(source, before), self.values.new(made, shape, after, entry.dtype)

    # --- the walk

    def border(self, value: ir.Value, order: Order) -> int:
        """The tensor of an input of the graph."""
        dtype, shape = type_of(value), shape_of(value)
        quant = self._border_quant(value)
        name = value.name or ""
        if quant is not None and dtype == "uint8":
            raw = Quant(quant.scale, tuple(zero + SHIFT for zero in quant.zero))
            tensor = self.values.file.tensor(name, [shape[axis] for axis in order], dtype, raw)
            self.values.known[name] = Known(shape, "int8", quant)
            inner = self.values.file.tensor("", self.values.file.shape(tensor), "int8", quant)
            self.values.file.operator("QUANTIZE", 2, [tensor], [inner], options("QuantizeOptions"))
            self.values.known[name].forms[order] = inner
            return tensor
        tensor = self.values.file.tensor(name, [shape[axis] for axis in order], dtype, quant)
        self.values.known[name] = Known(shape, dtype, quant, forms={order: tensor})
        if dtype == "float16":
            raise Unsupported("inputs of float16")
        return tensor

    def handed(self, value: ir.Value, order: Order) -> int:
        """The tensor of what an earlier stage hands over: codes are int8 there already."""
        quant = self._border_quant(value)
        dtype = "int8" if quant is not None and type_of(value) == "uint8" else type_of(value)
        return self.values.new(value.name or "", shape_of(value), order, dtype, quant)

    def _border_quant(self, value: ir.Value) -> Quant | None:
        readers = list(value.consumers())
        if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
            return None
        return self._pair(readers[0], value)[0]

    def constants(self) -> None:
        """Take in the weights."""
        for name, value in self.graph.initializers.items():
            if value.const_value is not None:
                self._add_weight(name, value.const_value)

    def _add_weight(self, name: str, tensor: Any) -> None:
        array = np.asarray(tensor.numpy())
        if array.dtype.name in ("int4", "uint4"):  # of ml_dtypes: stored as bytes here
            array = array.astype(np.int8 if array.dtype.name == "int4" else np.uint8)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.values.add_constant(name, array)

    def run(self, rules: Mapping[str, Callable[[Translation, ir.Node], None]]) -> None:
        """Write all nodes. What cannot be written is put down in `problems`, and the walk goes on."""
        for node in self.graph:
            if node in self._done or any(name and name not in self.values.known for name in names(node)):
                continue  # written with another, or behind one that is in `problems`
            try:
                self._node(node, rules)
            except Unsupported as err:
                self._give_up(node, str(err))
            except (KeyError, ValueError, IndexError, TypeError, AttributeError) as err:
                self._give_up(node, f"{type(err).__name__}: {one_line(err)}"[:_MOST_REASON])

    def _node(self, node: ir.Node, rules: Mapping[str, Callable[[Translation, ir.Node], None]]) -> None:
        if node.op_type == "QuantizeLinear":
            self._quantize(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantize(node)
        elif node.op_type == "Shape":
            sizes = np.array(shape_of(_required(node, 0)), np.int64)
            told = attributes(node)
            self.values.add_constant(_name(node), sizes[told.get("start", 0) : told.get("end")])
        elif all(name == "" or self.values.is_constant(name) for name in names(node)):
            self._constant_node(node, rules)
        elif node.domain not in ("", "ai.onnx") or node.op_type not in rules:
            raise Unsupported("there is no such operator in TFLite")
        else:
            if node.op_type not in self.movers:
                self._check_types(node)
            if node.op_type != "Split" and any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
                raise Unsupported("with a second output")
            rules[node.op_type](self, node)

    def _check_types(self, node: ir.Node) -> None:
        """Numbers of 8 and 16 bits are codes to the kernels, and some abort where they are none."""
        kinds = {self.values[name].dtype for name in names(node) if name}
        for kind in sorted(kinds - _COMPUTED):
            raise Unsupported(f"of {kind}")

    def _give_up(self, node: ir.Node, why: str) -> None:
        self.problems.append(f"node {node.name!r} ({node.op_type}): {why}")
        for value in node.outputs:
            if value.name and value.name not in self.values.known:
                with contextlib.suppress(Unsupported):
                    shape = shape_of(value)
                    self.values.new(value.name, shape, first(len(shape)), type_of(value))

    def _constant_node(
        self, node: ir.Node, rules: Mapping[str, Callable[[Translation, ir.Node], None]]
    ) -> None:
        """What depends on constants alone is a constant: codes that only move stay codes, all else is computed."""
        stored = any(name and self.values[name].codes is not None for name in names(node))
        if stored and node.op_type in _VIEWS:
            with contextlib.suppress(Unsupported):
                rules[node.op_type](self, node)
                return
        self._compute(node)
        if stored:
            self._halve(node)

    def _halve(self, node: ir.Node) -> None:
        """Weights whose codes TFLite cannot hold: in float16, where that keeps them to its 11 bits."""
        for value in node.outputs:
            array = self.values.constant(value.name or "")
            if array.dtype != np.float32:
                continue
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if np.allclose(half.astype(np.float32), array, rtol=2.0**-11, atol=0):
                self.values.add_constant(value.name or "", half)

    def _compute(self, node: ir.Node) -> None:
        """Compute a node now."""
        if not node.inputs:
            raise Unsupported("it makes values of its own")
        given = {name: self.values.constant(name) for name in names(node) if name}
        graph = onnx.helper.make_graph(
            [ir.to_proto(node)],
            "constant",
            [_info(name, array) for name, array in given.items()],
            [onnx.ValueInfoProto(name=value.name) for value in node.outputs if value.name],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)], ir_version=10
        )
        for value, array in zip(node.outputs, ReferenceEvaluator(model).run(None, given), strict=True):
            made = np.asarray(array)
            self.values.add_constant(
                value.name or "", made.astype(np.float32) if made.dtype == np.float64 else made
            )

    # --- codes

    def _pair(self, node: ir.Node, codes: ir.Value) -> tuple[Quant, int]:
        """How a QuantizeLinear or DequantizeLinear reads codes, and their shift."""
        given, told = names(node), attributes(node)
        if told.get("block_size", 0):
            raise Unsupported("quantized in blocks")
        scale = self.constant(given[1])
        zero = self.constant(given[2]) if len(given) > 2 and given[2] else None
        if zero is None and type_of(codes) != "uint8":
            zero = np.zeros(1, type_of(codes))
        return normalized(scale, zero, int(told.get("axis", 1)), len(shape_of(node.outputs[0])))

    def _quantizer(self, node: ir.Node) -> tuple[Quant, int]:
        return self._pair(node, node.outputs[0])

    def _dequantize(self, node: ir.Node) -> None:
        source = _required(node, 0)
        name = source.name or ""
        entry = self.values[name]
        if entry.array is not None and self._in_blocks(node):
            self._compute(node)
            self._halve(node)
            return
        if entry.array is None:
            quant, _ = self._pair(node, source)
            if not quant.same(entry.quant):
                raise Unsupported("its codes are read in two ways")
        else:
            quant, shift = self._pair(node, source)
            codes = f"{name}#codes"
            array = entry.array if shift == 0 else (entry.array.astype(np.int16) - shift).astype(np.int8)
            self.values.add_constant(codes, array, quant)
            name = codes
        self.values.known[_name(node)] = Known(entry.shape, "float32", codes=name)

    def _in_blocks(self, node: ir.Node) -> bool:
        return bool(attributes(node).get("block_size", 0)) or self.constant(names(node)[1]).ndim > 1

    def _quantize(self, node: ir.Node) -> None:
        name, made = names(node)[0], _name(node)
        quant, shift = self._quantizer(node)
        entry = self.values[name]
        if self.values.is_constant(name):
            self._quantize_constant(self.values.constant(name), made, quant)
            return
        if shift == 0 and type_of(node.outputs[0]) not in ("int8", "uint8"):
            raise Unsupported(f"quantizes to {type_of(node.outputs[0])}")
        if not quant.per_tensor:
            raise Unsupported("quantizes an activation per channel")
        if entry.codes is not None and quant.same(self.values.quant_of(name)):
            self.values.alias(made, entry.codes)
            return
        order = next(iter(self.values.orders(name)), first(len(entry.shape)))
        self.requantize(name, made, quant, order)

    def requantize(self, name: str, made: str, quant: Quant, order: Order) -> int:
        """A float value in codes, or codes in other codes."""
        codes = self.values.quant_of(name) is not None
        source = self.operand(name, order, codes=codes)
        tensor = self.values.new(made, self.values.shape(name), order, "int8", quant)
        self.values.file.operator(
            "QUANTIZE", 2 if codes else 1, [source], [tensor], options("QuantizeOptions")
        )
        return tensor

    def quantized_constant(self, name: str, quant: Quant) -> str:
        """A constant's codes, as a value of their own."""
        made = self.values.fresh(name)
        self._quantize_constant(self.values.constant(name), made, quant)
        return made

    def _quantize_constant(self, array: Array, made: str, quant: Quant) -> None:
        shape = [1] * array.ndim
        if not quant.per_tensor:
            shape[quant.axis] = -1
        scale = np.array(quant.scale, np.float32).reshape(shape if array.ndim else ())
        zero = np.array(quant.zero, np.int64).reshape(shape if array.ndim else ())
        codes = np.clip(np.rint(array / scale) + zero, -SHIFT, SHIFT - 1).astype(np.int8)
        self.values.add_constant(made, codes, quant)


def reshaped_quant(quant: Quant, before: Sequence[int], after: Sequence[int]) -> Quant:
    """How the codes of a reshaped constant are read. Raises Unsupported where its channels are no axis any more."""
    if quant.per_tensor:
        return quant
    for group, others in grouped_axes(before, after):
        if group == [quant.axis] and len(others) == 1:
            return replace(quant, axis=others[0])
    raise Unsupported("quantized in blocks")


def carried(before: Sequence[int], after: Sequence[int], order: Order) -> Order | None:
    """The order of a reshaped value's axes where the bytes of `order` can stay as they are; None where they cannot."""
    axes = list(squeezed(order, before))
    made: list[int] = []
    groups = {group[0]: (group, others) for group, others in grouped_axes(before, after)}
    while axes:
        group, others = groups.get(axes[0], ([], []))
        if not group or axes[: len(group)] != group:
            return None
        made += others
        axes = axes[len(group) :]
    for usual in (last(len(after)), first(len(after))):
        if squeezed(usual, after) == tuple(made):
            return usual
    return (*(axis for axis, size in enumerate(after) if size == 1), *made)


def _quantizes(node: ir.Node, value: ir.Value) -> bool:
    return node.op_type == "QuantizeLinear" and node.inputs[0] is value


def _required(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise Unsupported(f"its input {index} is missing")
    return value


def _name(node: ir.Node) -> str:
    return node.outputs[0].name or ""


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, array.shape)
