"""Where a finished network can be cut: tensors after which an early answer is worth a try. Runs nothing, fits nothing.

Any tensor can be one: a stage holds all that the exit there needs, and `split` hands over every tensor that is alive.
So the choice is by cost: cuts spread over the work of the network, each where the least has to be handed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.core.errors import BadInput
from edgekit.host.exits.heads import channel_axis
from edgekit.host.graph import Graph, is_class_vector, made_by, static_shape, values
from edgekit.host.split import live_nodes, reads
from edgekit.host.work import layers

EARLIEST, LATEST = 0.02, 0.9  # shares of the MACs: before nothing is known, after nothing is left to save
_RANKS = (2, 3, 4)  # batch first
_MOST_VALUES = 2**22  # of a tensor that a head reads
MOST_FEATURES = 4096  # that a head takes from it
_SCORES = ("Sigmoid", "HardSigmoid")


@dataclass(frozen=True)
class Cut:
    """A tensor that an exit can stand behind. node: what makes it. shape: of the tensor, batch first.

    cost_share: MACs of all it needs, over the network's. handed_bytes: of all tensors that cross the border there.
    """

    node: str
    tensor: str
    shape: tuple[int, ...]
    cost_share: float
    handed_bytes: int


def check_can_have_exits(graph: Graph) -> None:
    """Raises BadInput where early answers make no sense: several exits already, an answer that is not one class."""
    if len(graph.exits) > 1:
        raise BadInput(f"--exits is for a network without early exits, this one has {len(graph.exits)} exits")
    (last,) = graph.exits
    if last.also:
        raise BadInput(f"--exits wants a classifier with one output, got {', '.join(last.outputs)}")
    output = values(graph.model)[last.output]
    if not is_class_vector(output) or output.dtype != ir.DataType.FLOAT:
        kind = "unknown type" if output.dtype is None else str(output.dtype).lower()
        raise BadInput(
            f"--exits wants a classifier that gives one number per class, got {last.output!r} of shape "
            f"{list(static_shape(output) or ())} ({kind})"
        )
    if last_op(output) in _SCORES:
        raise BadInput(
            f"--exits wants a classifier that chooses one class, got {last.output!r} from a {last_op(output)}: scores "
            "of labels that may hold together"
        )


def last_op(value: ir.Value) -> str:
    """What makes the numbers, whatever reshapes them afterwards: the operator's name, "" for an input or a constant."""
    node = made_by(value)
    return "" if node is None else node.op_type


def spread_cuts(graph: Graph, most: int) -> tuple[Cut, ...]:
    """At most `most` cuts from the cheapest to the dearest, spread over the network's MACs.

    In each equal part of them it is the tensor where the fewest bytes cross the border; of equals the last, so that
    activations and pools that cost nothing stand before the border.
    """
    width = (LATEST - EARLIEST) / most
    best: dict[int, Cut] = {}
    for cut in _all_cuts(graph):
        if EARLIEST <= cut.cost_share < LATEST:
            place = int((cut.cost_share - EARLIEST) / width)
            if place not in best or cut.handed_bytes <= best[place].handed_bytes:
                best[place] = cut
    return tuple(cut for _, cut in sorted(best.items()))


def named_cuts(graph: Graph, names: Sequence[str]) -> tuple[Cut, ...]:
    """The cuts behind these nodes or tensors, cheapest first. Raises BadInput for one that cannot be a cut."""
    every = {cut.tensor: cut for cut in _all_cuts(graph)}
    by_node = {cut.node: cut for cut in every.values()}
    found = []
    for name in names:
        cut = every.get(name) or by_node.get(name)
        if cut is None:
            known = ", ".join(cut.node for cut in spread_cuts(graph, 6)) or "none"
            raise BadInput(
                f"--exits: no exit can stand behind {name!r}; a node or tensor of the folded network that depends "
                f"on the input, with at most {MOST_FEATURES} channels, is wanted, such as {known}"
            )
        found.append(cut)
    ordered = sorted(found, key=lambda cut: cut.cost_share)
    if len({cut.tensor for cut in ordered}) != len(ordered):
        raise BadInput(f"--exits names the same place twice: {', '.join(names)}")
    return tuple(ordered)


def _all_cuts(graph: Graph) -> Iterator[Cut]:
    """Every tensor that could be a cut, in the order of the graph."""
    model = graph.model
    live = live_nodes(model)
    nodes = [node for node in model.graph if node in live]
    macs = {layer.output: layer.macs for layer in layers(model)}
    costs = [macs.get(node.outputs[0].name or "", 0) for node in nodes]
    whole = sum(costs)
    if not whole:
        return
    before = _ancestors(nodes)
    last = before[values(model)[graph.exits[-1].output].producer()]
    for node in nodes:
        tensor = node.outputs[0]
        shape = static_shape(tensor)
        if shape is None or len(shape) not in _RANKS or shape[0] != 1 or tensor.dtype != ir.DataType.FLOAT:
            continue
        mine = before[node]
        size = math.prod(shape)
        if mine == last or mine & last != mine or not 1 < size <= _MOST_VALUES:
            continue
        if (shape[1] if len(shape) == _RANKS[0] else shape[channel_axis(tensor)]) > MOST_FEATURES:
            continue
        inside = [(mine >> place) & 1 for place in range(len(nodes))]
        share = sum(cost for cost, is_in in zip(costs, inside, strict=True) if is_in) / whole
        if 0 < share < 1:
            handed = _handed(nodes, inside)
            yield Cut(node.name or "", tensor.name or "", shape, share, handed)


def _ancestors(nodes: Sequence[ir.Node]) -> Mapping[ir.Node | None, int]:
    """Node -> all that it needs, itself included, as bits by its place."""
    found: dict[ir.Node | None, int] = {None: 0}
    for place, node in enumerate(nodes):
        bits = 1 << place
        for value in reads(node):
            bits |= found.get(value.producer(), 0)
        found[node] = bits
    return found


def _handed(nodes: Sequence[ir.Node], inside: Sequence[int]) -> int:
    """Bytes of all tensors made inside that are read outside."""
    home = dict(zip(nodes, inside, strict=True))
    crossing: set[ir.Value] = set()
    for node, is_in in zip(nodes, inside, strict=True):
        if not is_in:
            crossing.update(value for value in reads(node) if home.get(value.producer(), 0))  # type: ignore[arg-type]
    return sum(
        math.ceil(math.prod(static_shape(value) or (1,)) * (value.dtype.itemsize if value.dtype else 4))
        for value in crossing
    )
