"""Cut a graph into one stage per exit. A quantized graph is cut at QuantizeLinear's output, a float one at the tensor.

A stage is what its exit needs and no earlier exit did. Whatever a later stage needs of an earlier one is handed over;
where the graph quantizes that tensor, its codes are, and the next stage starts with their DequantizeLinear: then the
stages compute exactly what the whole graph does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedOpsetsPass

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Tensor
from edgekit.host.graph import Graph, GraphExit, infer_shapes, inner_graphs, static_shape, tensor_of, values


@dataclass(frozen=True)
class Stage:
    """What runs from one exit to the next: a model of its own, what it takes and what it gives.

    handed: names of those tensors at its borders that only stages see, so that a lowering may lay them out as it likes.
    """

    index: int
    exit: GraphExit
    model: ir.Model
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]  # the exit's tensors first, then what later stages need
    handed: frozenset[str] = frozenset()


def split(graph: Graph) -> tuple[Stage, ...]:
    """One stage per exit, in order. Raises BadInput where an exit adds nothing or a hand-over's shape is unknown."""
    whole = infer_shapes(graph.copy())
    source = whole.graph
    home = _homes(graph, whole)
    taken = _hand_overs(whole, home)
    named = values(whole)
    public = {value.name for value in source.inputs}.union(*(entry.tensors for entry in graph.exits))
    stages = []
    for index, entry in enumerate(graph.exits):
        inputs = [named[name] for name in taken[index]]
        handed = [
            name
            for name in dict.fromkeys(name for later in taken[index + 1 :] for name in later)
            if home.get(named[name].producer()) == index and name not in entry.tensors
        ]
        outputs = [named[name] for name in (*entry.tensors, *handed)]
        part = ir.convenience.extract(source, inputs, outputs)
        _sort_weights(part)
        model = ir.Model(part, ir_version=whole.ir_version)
        for tidy in (NameFixPass(), RemoveUnusedOpsetsPass()):
            model = tidy(model).model
        tensors = [tuple(tensor_of(value) for value in side) for side in (inputs, outputs)]
        _fix_shapes(model, (*tensors[0], *tensors[1]))
        private = frozenset(value.name or "" for value in (*inputs, *outputs)) - public
        stages.append(Stage(index, entry, infer_shapes(model), tensors[0], tensors[1], private))
    return tuple(stages)


def _homes(graph: Graph, model: ir.Model) -> Mapping[ir.Node | None, int]:
    """Node -> the first stage that needs it. What comes from weights alone is nobody's: each stage has its own."""
    named = values(model)
    live = live_nodes(model)
    home: dict[ir.Node | None, int] = {}
    for index, entry in enumerate(graph.exits):
        before = len(home)
        stack = [named[name].producer() for name in entry.tensors]
        while stack:
            node = stack.pop()
            if node is None or node in home or node not in live:
                continue
            home[node] = index
            stack.extend(value.producer() for value in reads(node))
        if len(home) == before and not any(named[name].producer() in home for name in entry.tensors):
            raise BadInput(f"output {entry.output!r} does not depend on an input: it is always the same")
        if len(home) == before:
            raise BadInput(f"exit {entry.name!r} needs nothing that an earlier exit does not already compute")
    for node in model.graph:  # an earlier stage quantizes what it hands on
        if node.op_type == "QuantizeLinear" and node in home and node.inputs[0] is not None:
            home[node] = min(home[node], home.get(node.inputs[0].producer(), home[node]))
    return home


def live_nodes(model: ir.Model) -> set[ir.Node]:
    """The nodes that depend on an input."""
    live: set[ir.Node] = set()
    for node in model.graph:
        if any(value.is_graph_input() or value.producer() in live for value in reads(node)):
            live.add(node)
    return live


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, in its sub-graphs too."""
    yield from (value for value in node.inputs if value is not None)
    for graph in inner_graphs(node):
        for below in ir.traversal.RecursiveGraphIterator(graph):
            yield from (value for value in below.inputs if value is not None and value.graph is node.graph)


def _hand_overs(model: ir.Model, home: Mapping[ir.Node | None, int]) -> list[list[str]]:
    """Per stage the tensors it takes: inputs of the network, and what earlier stages made."""
    stages = max(home.values()) + 1
    taken: list[dict[str, None]] = [{} for _ in range(stages)]
    for node in model.graph:
        index = home.get(node)
        if index is None or _is_pair_end(node):
            continue
        for value in reads(node):
            crossing = _before_pair_end(value)
            if crossing.is_graph_input() or home.get(crossing.producer(), index) < index:
                taken[index][crossing.name or ""] = None
    return [list(names) for names in taken]


def _is_pair_end(node: ir.Node) -> bool:
    """Whether this DequantizeLinear ends a pair: it then belongs to whoever reads it."""
    if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return False
    maker = node.inputs[0].producer()
    return maker is not None and maker.op_type == "QuantizeLinear"


def _before_pair_end(value: ir.Value) -> ir.Value:
    """The quantized tensor behind a pair's end, else the value itself."""
    node = value.producer()
    if node is not None and _is_pair_end(node) and node.inputs[0] is not None:
        return node.inputs[0]
    return value


def _sort_weights(part: ir.Graph) -> None:
    """extract keeps weights in a set: give them an order, so that the same graph gives the same stage."""
    for name in sorted(part.initializers):
        part.initializers[name] = part.initializers.pop(name)


def _fix_shapes(model: ir.Model, tensors: tuple[Tensor, ...]) -> None:
    """The part's borders have the shapes the whole graph gave them."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in shapes and static_shape(value) is None:
            value.shape = ir.Shape(shapes[value.name])
