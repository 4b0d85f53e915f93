"""What products meet on calibration data: their input columns at some positions, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.host.calibrate import expose
from edgekit.host.graph import Graph, static_shape
from edgekit.host.passes._patches import columns, positions
from edgekit.host.passes.base import Context
from edgekit.host.sqnr import spread

Array = NDArray[np.float64]
Rows = NDArray[np.float32]


def sources(nodes: Sequence[ir.Node]) -> list[str]:
    """Names of the tensors that these products read, each once."""
    return list(dict.fromkeys(node.inputs[0].name or "" for node in nodes if node.inputs[0] is not None))


def meetings(
    graph: Graph, nodes: Sequence[ir.Node], context: Context, samples: int, points: int, wanted_by: str
) -> Iterator[dict[str, Rows]]:
    """Per sample, node name -> its input columns (groups, rows, inputs) at up to `points` positions.

    nodes: products of the graph. The positions depend on the seed, the sample and the node's place among `nodes` only:
    the same node of a smaller graph meets the same positions. Raises BadInput without data.
    """
    data = context.samples(wanted_by)
    names = sources(nodes)
    if not names:
        return  # asked for nothing, onnxruntime gives everything
    session = expose(graph, names)
    for sample in spread(data.count, samples):
        made = dict(zip(names, session.run(names, data.inputs(sample)), strict=True))
        yield {
            node.name or "": _columns(node, made[_source(node)], (context.seed, sample, place), points)
            for place, node in enumerate(nodes)
        }


def at_one(
    graph: Graph, node: ir.Node, place: int, context: Context, samples: int, points: int, wanted_by: str
) -> Iterator[Rows]:
    """The same for one node, the one in this place, computing nothing beyond it."""
    data = context.samples(wanted_by)
    name = _source(node)
    part = graph.copy()
    found = next(value for each in part.graph for value in each.outputs if value.name == name)
    part.graph.outputs[:] = [found]
    RemoveUnusedNodesPass()(part)
    session = expose(Graph(part, (), graph.inputs), [name])
    for sample in spread(data.count, samples):
        (x,) = session.run([name], data.inputs(sample))
        yield _columns(node, x, (context.seed, sample, place), points)


def _source(node: ir.Node) -> str:
    value = node.inputs[0]
    return "" if value is None else value.name or ""


def _columns(node: ir.Node, x: Rows, seed: tuple[int, ...], points: int) -> Rows:
    weight = node.inputs[1]
    shape = () if weight is None else static_shape(weight) or ()
    count = positions(node, x.shape, shape)
    chosen = np.arange(count)
    if count > points:
        chosen = np.sort(np.random.default_rng(seed).choice(count, points, replace=False))
    return columns(node, x, shape, chosen)
