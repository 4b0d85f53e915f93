"""A function of one number per channel, as a piece of the graph says it: evaluated by onnxruntime, never re-derived.

Between a layer's sums and the quantizer that follows stand scales, batch normalization, clips, roundings, poolings.
Folding them by formula goes wrong at ties (one sum in about half of the channels with negative gamma in BNN-PYNQ's own
export), so they are run on numbers instead, and thresholds are read off (see steps.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from edgekit.core.errors import one_line
from edgekit.host.graph import model_bytes
from edgekit.host.ort import OpenModel, open_model
from edgekit.runtime.backends import Array

ELEMENTWISE = frozenset(
    (
        *(
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Neg",
            "Min",
            "Max",
            "Clip",
            "Relu",
            "LeakyRelu",
            "PRelu",
            "Elu",
            "Selu",
        ),
        *("Round", "Floor", "Ceil", "Sign", "Where", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        *(
            "Equal",
            "Not",
            "And",
            "Or",
            "Cast",
            "CastLike",
            "Identity",
            "Dropout",
            "BatchNormalization",
            "Abs",
        ),
        *("Tanh", "Sigmoid", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Erf", "Exp", "Sqrt", "Pow"),
        *("QuantizeLinear", "DequantizeLinear"),
    )
)
WIDENING = frozenset(("Unsqueeze", "ReduceSum", "Squeeze"))  # a comparison with many thresholds, added up
POOL = "MaxPool"
_CHUNK = 1 << 22  # values evaluated at a time


@dataclass(frozen=True)
class Chain:
    """What the nodes between `root` and `value` make of a number. Both have their channels on axis 1.

    pools: the MaxPool nodes on the way; they pass a number through. channels: how many.
    """

    root: ir.Value
    value: ir.Value
    nodes: tuple[ir.Node, ...]
    rank: int
    channels: int
    opsets: Mapping[str, int]
    ir_version: int
    _opened: list[tuple[OpenModel, str]] = field(default_factory=list, repr=False, compare=False)

    @property
    def pools(self) -> tuple[ir.Node, ...]:
        """In the order in which they are applied."""
        return tuple(node for node in self.nodes if node.op_type == POOL)

    def upto(self, value: ir.Value) -> Chain:
        """The same root, an earlier end."""
        wanted, stack = set(), [value]
        mine = set(self.nodes)
        while stack:
            node = stack.pop().producer()
            if node is not None and node in mine and node not in wanted:
                wanted.add(node)
                stack.extend(entry for entry in node.inputs if entry is not None)
        nodes = tuple(node for node in self.nodes if node in wanted)
        return Chain(self.root, value, nodes, self.rank, self.channels, self.opsets, self.ir_version)

    def __call__(self, numbers: Array) -> Array:
        """numbers: float32 (channels, count), what the root may hold. Returns what the value then holds.

        Raises ValueError where the nodes do more than one number at a time.
        """
        if not self.nodes:
            return numbers
        if not self._opened:
            self._opened.append(self._open())
        session, name = self._opened[0]
        size = max(1, _CHUNK // max(1, self.channels))
        pieces = [
            self._run(session, name, numbers[:, start : start + size])
            for start in range(0, numbers.shape[1], size)
        ]
        return np.concatenate(pieces, axis=1)

    @property
    def constants(self) -> tuple[ir.Value, ...]:
        """What the nodes read beside the root."""
        read = (entry for node in self.nodes for entry in node.inputs if entry is not None)
        return tuple(entry for entry in read if entry.const_value is not None)

    @property
    def is_alike(self) -> bool:
        """Whether it is one function for all elements, wherever they stand: no constant has more than one number."""
        alone = all(math.prod(_shape(entry)) == 1 for entry in self.constants)
        return alone and not any(node.op_type in WIDENING for node in self.nodes)

    def over(self, channels: int) -> Chain:
        """The same on another number of channels; only where it is alike for all."""
        return Chain(self.root, self.value, self.nodes, self.rank, channels, self.opsets, self.ir_version)

    def _run(self, session: OpenModel, name: str, numbers: Array) -> Array:
        wanted = count = numbers.shape[1]
        sizes = {1, self.channels, *(int(size) for entry in self.constants for size in _shape(entry))}
        while count in sizes:  # a constant with as many numbers would be taken for one per channel
            count += 1
        numbers = np.concatenate([numbers, np.repeat(numbers[:, -1:], count - wanted, axis=1)], axis=1)
        if self.rank == 2:
            fed = np.ascontiguousarray(numbers.T)
        else:
            fed = numbers.reshape(1, self.channels, count, *[1] * (self.rank - 3))
        try:
            made = session.run(None, {name: fed})[0]
        except Exception as err:  # onnxruntime's errors share no root but Exception
            raise ValueError(one_line(err)) from err
        if made.shape != fed.shape:
            raise ValueError(f"from {fed.shape} to {made.shape}")
        flat = made.T if self.rank == 2 else made.reshape(self.channels, count)
        return np.asarray(flat[:, :wanted], np.float64)

    def _open(self) -> tuple[OpenModel, str]:
        """The nodes as a model of their own; its input is the root with any number of places."""
        clones: dict[ir.Value, ir.Value] = {}
        count = ir.SymbolicDim("count")
        shape: Sequence[int | ir.SymbolicDim] = (
            (count, self.channels) if self.rank == 2 else (1, self.channels, count, *[1] * (self.rank - 3))
        )
        source = ir.Value(name="root", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        clones[self.root] = source
        weights: dict[str, ir.Value] = {}
        made = []
        if self.root.dtype not in (None, ir.DataType.FLOAT):  # numbers come as float32
            typed = ir.node("Cast", [source], {"to": self.root.dtype})
            typed.outputs[0].name = "typed"
            clones[self.root] = typed.outputs[0]
            made.append(typed)
        for node in self.nodes:
            if node.op_type == POOL:
                clones[node.outputs[0]] = clones[node.inputs[0]]  # type: ignore[index]
                continue
            made.append(_copied(node, clones, weights))
        end = clones[self.value]
        cast = ir.node("Cast", [end], {"to": ir.DataType.FLOAT})
        cast.outputs[0].name = "out"
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [source],
            [cast.outputs[0]],
            nodes=[*made, cast],
            initializers=list(weights.values()),
            opset_imports=dict(self.opsets),
            name="chain",
        )
        model = NameFixPass()(ir.Model(graph, ir_version=self.ir_version)).model
        return open_model(model_bytes(model), optimize=False), "root"


def _shape(value: ir.Value) -> tuple[int, ...]:
    return () if value.const_value is None else tuple(value.const_value.numpy().shape)


def _copied(node: ir.Node, clones: dict[ir.Value, ir.Value], weights: dict[str, ir.Value]) -> ir.Node:
    """The node in the chain's own model; what it gives is noted among the clones."""
    inputs = [None if entry is None else _clone(entry, clones, weights) for entry in node.inputs]
    copy = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.name = f"v{len(clones)}"
        clones[old] = new
    return copy


def _clone(value: ir.Value, clones: dict[ir.Value, ir.Value], weights: dict[str, ir.Value]) -> ir.Value:
    if value not in clones:
        if value.const_value is None:
            raise AssertionError(f"{value.name} is neither the root's nor a constant")
        copy = ir.Value(name=f"c{len(clones)}", const_value=value.const_value)
        copy.type, copy.shape = value.type, value.shape
        clones[value] = copy
        weights[copy.name or ""] = copy
    return clones[value]
