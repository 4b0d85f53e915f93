"""Which nodes to run in int8: the exact optimum of times, conversions between formats, and harm. Times nothing.

Each node costs one thing in float and another in int8, and each tensor between a float and an int8 node costs its
conversion. Two choices a node and costs only between neighbours that differ: a minimum cut finds the best assignment
(Greig, Porteous, Seheult 1989). A weight on harm turns "fastest" into "most gain for the harm".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.host.graph import Graph, static_shape

_NEVER = 1e12  # ms: a node that has no int8 form
_EPSILON = 1e-12
_SOURCE, _SINK = "\0int8", "\0float"


@dataclass(frozen=True)
class Choice:
    """One node: ms in float, ms in int8 (None: it has no int8 form), and what int8 harms."""

    name: str
    float_ms: float
    int8_ms: float | None
    harm: float = 0.0


@dataclass(frozen=True)
class Link:
    """A tensor from one node to another, and the ms of converting it where they differ. None: the network's border.

    harm: of rounding the tensor, which happens also where only its maker is int8.
    """

    maker: str | None
    reader: str | None
    convert_ms: float
    harm: float = 0.0


def assign(choices: Sequence[Choice], links: Sequence[Link], weight: float = 0.0) -> frozenset[str]:
    """Names of the nodes to run in int8: least time + weight * harm. What crosses the network's border is float."""
    capacity: dict[str, dict[str, float]] = {_SOURCE: {}, _SINK: {}}

    def add(start: str, end: str, amount: float) -> None:
        if amount > 0:
            capacity.setdefault(start, {})[end] = capacity.get(start, {}).get(end, 0.0) + amount
            capacity.setdefault(end, {}).setdefault(start, 0.0)

    for choice in choices:
        in_int8 = _NEVER if choice.int8_ms is None else choice.int8_ms + weight * choice.harm
        common = min(choice.float_ms, in_int8)  # paid either way
        add(_SOURCE, choice.name, choice.float_ms - common)
        add(choice.name, _SINK, in_int8 - common)
    known = {choice.name for choice in choices}
    for link in links:
        ends = [end if end in known else _SINK for end in (link.maker, link.reader)]
        if ends[0] != ends[1]:
            add(ends[0], ends[1], link.convert_ms + weight * link.harm)
            add(ends[1], ends[0], link.convert_ms)
    _saturate(capacity)
    return frozenset(_reached(capacity)) & known


def cost_ms(chosen: AbstractSet[str], choices: Sequence[Choice], links: Sequence[Link]) -> float:
    """What an assignment takes: all nodes in their formats, and the conversions between them."""
    nodes = sum(
        choice.int8_ms if choice.name in chosen and choice.int8_ms is not None else choice.float_ms
        for choice in choices
    )
    crossing = (link for link in links if (link.maker in chosen) != (link.reader in chosen))
    return nodes + sum(link.convert_ms for link in crossing)


def links_of(graph: Graph, convert_ms: Callable[[int], float]) -> tuple[Link, ...]:
    """Every float tensor between two nodes, or a node and the border. convert_ms: values -> ms of converting them."""
    links = []
    for node in graph.model.graph:
        for value in node.inputs:
            if value is None or value.is_initializer() or value.dtype != ir.DataType.FLOAT:
                continue
            maker = value.producer()
            links.append(Link(maker.name if maker else None, node.name, convert_ms(_size(value))))
        links += [
            Link(node.name, None, convert_ms(_size(value)))
            for value in node.outputs
            if value.is_graph_output()
        ]
    return tuple(links)


def _size(value: ir.Value) -> int:
    count = 1
    for size in static_shape(value) or ():
        count *= size
    return count


def _saturate(capacity: Mapping[str, dict[str, float]]) -> None:
    """Push flow along shortest paths until none is left (Edmonds, Karp 1972); `capacity` becomes what remains."""
    while (before := _search(capacity)) is not None:
        path = [_SINK]
        while path[-1] != _SOURCE:
            path.append(before[path[-1]])
        steps = list(zip(path[1:], path[:-1], strict=True))
        room = min(capacity[start][end] for start, end in steps)
        for start, end in steps:
            capacity[start][end] -= room
            capacity[end][start] = capacity[end].get(start, 0.0) + room


def _search(capacity: Mapping[str, dict[str, float]]) -> dict[str, str] | None:
    """Breadth first: whom each node was reached from, None where the sink cannot be reached."""
    before: dict[str, str] = {_SOURCE: _SOURCE}
    queue = deque([_SOURCE])
    while queue:
        start = queue.popleft()
        for end, room in capacity[start].items():
            if room > _EPSILON and end not in before:
                before[end] = start
                if end == _SINK:
                    return before
                queue.append(end)
    return None


def _reached(capacity: Mapping[str, dict[str, float]]) -> set[str]:
    """What flow can still reach: the int8 side."""
    seen, queue = {_SOURCE}, deque([_SOURCE])
    while queue:
        for end, room in capacity[queue.popleft()].items():
            if room > _EPSILON and end not in seen:
                seen.add(end)
                queue.append(end)
    return seen
