"""Which layers in which format: what each node takes in float and in int8, and the reason for its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgekit.core.cost import Work, predict
from edgekit.core.profile import Profile
from edgekit.host.assign import Choice, Link, assign, cost_ms, links_of
from edgekit.host.graph import Graph, initializers
from edgekit.host.node_times import node_times, rounding_ms
from edgekit.host.passes.quantize_static import OPS, float_nodes
from edgekit.host.work import MACS, layers, work
from edgekit.runtime.data import Data

_DENSE = ("Gemm", "MatMul")
_CODE_BYTES = 5  # a float is read and a code written, or the other way round


@dataclass(frozen=True)
class NodeCosts:
    """ms of each node that has a kernel of its own, in the float graph and in the int8 one; ms of converting."""

    in_float: Mapping[str, float]
    in_int8: Mapping[str, float]
    convert_call_ms: float
    convert_value_ms: float
    provenance: str

    def convert_ms(self, count: int) -> float:
        """ms of rounding `count` values to codes, or of reading them back."""
        return self.convert_call_ms + count * self.convert_value_ms


def measured_costs(plain: Graph, quantized: Graph, data: Data) -> NodeCosts:
    """By onnxruntime's profiler, here."""
    call_ms, value_ms = rounding_ms()
    return NodeCosts(node_times(plain, data), node_times(quantized, data), call_ms, value_ms, "measured")


def estimated_costs(plain: Graph, quantized: Graph, profile: Profile) -> NodeCosts | None:
    """By the profile's cost model; None where it lacks a coefficient."""
    tables = [estimates(graph, profile) for graph in (plain, quantized)]
    rounding = [
        predict(profile, [Work("QuantizeLinear", "int8", 0, _CODE_BYTES * n, 1)]).value for n in (1, 10**6)
    ]
    if None in tables or rounding[0] is None or rounding[1] is None:
        return None
    in_float, in_int8 = (table or {} for table in tables)
    value_ms = (rounding[1] - rounding[0]) / (10**6 - 1)
    return NodeCosts(in_float, in_int8, rounding[0] - value_ms, value_ms, "estimated")


def estimates(graph: Graph, profile: Profile) -> dict[str, float] | None:
    """Node -> ms by the profile's cost model, of those with a kernel of their own; None where a coefficient lacks."""
    found = {}
    for layer in layers(graph.model):
        if layer.calls:
            ms = predict(profile, work([layer])).value
            if ms is None:
                return None
            found[layer.name] = ms
    return found


def fastest(
    plain: Graph,
    quantized: Graph,
    costs: NodeCosts,
    harm: Mapping[str, float] | None = None,
    weight: float = 0.0,
) -> frozenset[str]:
    """The nodes to run in int8: least time, plus `weight` ms for each unit of harm (node -> harm of its int8 form)."""
    able = int8_nodes(quantized)
    groups, choices, links = _problem(plain, able, costs, harm or {})
    chosen = assign(choices, links, weight)
    return frozenset(name for group in groups if group[0] in chosen for name in group) & able


def gain(plain: Graph, quantized: Graph, costs: NodeCosts, chosen: frozenset[str]) -> float:
    """How much less the chosen nodes in int8 should take than all of them in int8, as a share of the latter."""
    able = int8_nodes(quantized)
    groups, choices, links = _problem(plain, able, costs, {})
    leaders = [{group[0] for group in groups if not names.isdisjoint(group)} for names in (able, chosen)]
    every, mine = (cost_ms(each, choices, links) for each in leaders)
    return 1 - mine / every if every else 0.0


def _problem(
    plain: Graph, able: frozenset[str], costs: NodeCosts, harm: Mapping[str, float]
) -> tuple[list[list[str]], list[Choice], list[Link]]:
    """What one kernel computes is one choice, by its first node's name; and what passes between them."""
    groups = _groups(plain, costs)
    choices = []
    for members in groups:
        float_ms = sum(costs.in_float.get(name, 0.0) for name in members)
        int8_ms = sum(
            costs.in_int8.get(name, 0.0 if name in able else costs.in_float.get(name, 0.0))
            for name in members
        )
        harmed = sum(harm.get(name, 0.0) for name in members)
        choices.append(Choice(members[0], float_ms, int8_ms if able & set(members) else None, harmed))
    leader = {name: members[0] for members in groups for name in members}
    links = [
        replace(
            link,
            maker=leader.get(link.maker or ""),
            reader=leader.get(link.reader or ""),
            harm=harm.get(link.reader or "", 0.0),
        )
        for link in links_of(plain, costs.convert_ms)
    ]
    return groups, choices, links


def keep_float(plain: Graph, chosen: frozenset[str]) -> tuple[str, ...]:
    """The other nodes that quantize_static would take, in the order of the graph."""
    stays = set(float_nodes(plain))
    return tuple(
        node.name or ""
        for node in plain.model.graph
        if node.op_type in OPS and node.name not in chosen and node.name not in stays
    )


def int8_nodes(quantized: Graph) -> frozenset[str]:
    """Names of the nodes that compute in int8."""
    return frozenset(layer.name for layer in layers(quantized.model) if layer.format == "int8")


def reasons(
    plain: Graph, quantized: Graph, chosen: frozenset[str], costs: NodeCosts | None
) -> dict[str, str]:
    """Node -> why it has its format, for nodes that could have had another or that compute something."""
    able, stays = int8_nodes(quantized), set(float_nodes(plain))
    found = {}
    for node in plain.model.graph:
        name = node.name or ""
        if name in chosen:
            found[name] = _compared(name, costs, "int8")
        elif name in able:
            found[name] = _compared(name, costs, "float32")
        elif name in stays and node.op_type in OPS:
            found[name] = "float32: the last step to an answer, or only decides"
        elif node.op_type not in OPS:
            found[name] = "float32: no int8 form"
        else:
            found[name] = "float32: computed together with its neighbours"
    return found


def _compared(name: str, costs: NodeCosts | None, format_: str) -> str:
    if costs is None:
        return f"{format_}: the profile calls int8 fast, its times are unknown"
    in_float, in_int8 = costs.in_float.get(name), costs.in_int8.get(name)
    if in_float is None or in_int8 is None:
        return f"{format_}: computed together with its neighbours"
    text = f"{1e3 * in_float:.0f} us in float32, {1e3 * in_int8:.0f} in int8 ({costs.provenance})"
    if format_ == "float32" and in_int8 < in_float:
        return f"float32: {text}, and turning its tensors to codes and back would cost more"
    return f"{format_}: {text}"


def _groups(plain: Graph, costs: NodeCosts) -> list[list[str]]:
    """Nodes that one kernel computes, in float or in int8, belong together."""
    nodes = {node.name or "": node for node in plain.model.graph}
    leader = {name: name for name in nodes}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for name, node in nodes.items():
        if name in costs.in_float and (name in costs.in_int8 or node.op_type not in OPS):
            continue
        partner = _fused_with(node, costs)
        if partner in nodes:
            leader[find(name)] = find(partner)
    members: dict[str, list[str]] = {}
    for name in nodes:
        members.setdefault(find(name), []).append(name)
    return list(members.values())


def _fused_with(node: ir.Node, costs: NodeCosts) -> str:
    """The neighbour whose kernel does this node's work: a product's is the next node's, any other's the one before."""
    readers = {reader.name or "" for value in node.outputs for reader in value.consumers()}
    if node.op_type in MACS and len(readers) == 1:
        return next(iter(readers))
    makers = list(_makers(node))
    products = [maker for maker in makers if maker.op_type in MACS and maker.name not in costs.in_float]
    return next((maker.name or "" for maker in (*products, *makers)), "")


def _makers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if maker is not None:
            yield maker


def dense_weight_share(graph: Graph) -> float:
    """Of the float weights' bytes, those of layers that multiply a vector by a matrix."""
    dense = [node for node in graph.model.graph if node.op_type in _DENSE]
    weights = {
        id(value.const_value): value.const_value
        for node in dense
        for value in node.inputs
        if value is not None and value.const_value is not None
    }
    total = float_weight_bytes(graph)
    return sum(int(tensor.nbytes) for tensor in weights.values()) / total if total else 0.0


def float_weight_bytes(graph: Graph) -> int:
    """Of weights that are still 32-bit floats."""
    tensors = (value.const_value for value in initializers(graph.model))
    return sum(
        int(t.nbytes) for t in tensors if t is not None and t.dtype == ir.DataType.FLOAT and t.size > 1
    )
