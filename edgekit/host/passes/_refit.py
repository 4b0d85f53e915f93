"""After channels are gone: fit what reads the rest to what it used to make, by least squares on calibration data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.host.dependency import Dependency, Flags, Product, shape_of
from edgekit.host.graph import Graph
from edgekit.host.passes._importance import readers
from edgekit.host.passes._meet import Rows, at_one, meetings
from edgekit.host.passes._patches import matrix_of, weight_of
from edgekit.host.passes._shrink import new_weight
from edgekit.host.passes.base import Context

_NAME = "prune_channels"
_MOST_INPUTS = 4608  # of one output: the matrix to solve has this side
_RIDGE = 1e-3  # against the mean square of an input
_POINTS = 16
_HELD_BYTES = 192 * 2**20  # of outputs that refitted products are to have again
Matrix = NDArray[np.float64]


def compensate(
    graph: Graph, known: Dependency, removed: Flags, small: Graph, context: Context, samples: int
) -> Graph:
    """`small` with the mean part of the removed channels in the biases of what read them.

    graph: before the removal. Exact for a channel that is constant; at padded borders the mean over positions counts.
    """
    nodes, products = readers(graph, known)
    nodes = [node for node in nodes if _lost(products[node.name or ""], removed)]
    sums: dict[str, Matrix] = {}
    rows: dict[str, int] = {}
    for met in meetings(graph, nodes, context, samples, _POINTS, _NAME):
        for name, columns in met.items():
            sums[name] = sums.get(name, 0.0) + columns.sum(axis=1, dtype=np.float64)
            rows[name] = rows.get(name, 0) + columns.shape[1]
    model = small.copy()
    there = {node.name: node for node in model.graph}
    for node in nodes:
        name = node.name or ""
        matrix = matrix_of(node, _weight(node)).astype(np.float64)
        gone = ~_columns_kept(products[name], removed, matrix.shape[2])
        means = sums[name] / rows[name]
        change = np.einsum("goi,gi->go", matrix[:, :, gone], means[:, gone])
        add_bias(model, there[name], _kept_outputs(products[name], removed, change))
    return small.with_model(model)


def reconstruct(
    graph: Graph,
    known: Dependency,
    removed: Flags,
    small: Graph,
    context: Context,
    samples: int,
    *,
    nearest: bool = False,
) -> Graph:
    """`small` with the weights of each product refitted, first to last, to the outputs the product had in `graph`.

    Each is fitted on what it meets now, after all before it were fitted (He, Zhang, Sun 2017, arXiv 1707.06168,
    section 3.2), ridge regression towards its old weights. All that meet other inputs than before; nearest: only those
    that lost some. Where one has too many inputs, its bias alone is fitted.
    """
    nodes, products = readers(graph, known)
    changed = _changed(graph, known, removed)
    if nearest:
        lost = {name for name, product in products.items() if _lost(product, removed)}
        changed = {node for node in changed if node.name in lost}
    nodes = [node for node in nodes if node in changed]
    matrices = {node.name or "": matrix_of(node, _weight(node)).astype(np.float32) for node in nodes}
    numbers = samples * sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices.values())
    points = int(np.clip(_HELD_BYTES // (4 * max(1, numbers)), 1, _POINTS))
    wanted: dict[str, list[Rows]] = {name: [] for name in matrices}
    for met in meetings(graph, nodes, context, samples, points, _NAME):
        for name, columns in met.items():
            wanted[name].append(columns @ np.swapaxes(matrices[name], 1, 2))
    now = small
    with context.watch("refit channels", len(nodes)) as tick:
        for place, node in enumerate(nodes):
            name = node.name or ""
            after = next(each for each in now.model.graph if each.name == name)
            met_now = at_one(now, after, place, context, samples, points, _NAME)
            made = (_kept_outputs(products[name], removed, each, axis=2) for each in wanted.pop(name))
            now = _fitted(now, name, zip(met_now, made, strict=True))
            tick(1)
    return now


def _fitted(graph: Graph, name: str, pairs: Iterable[tuple[Rows, Rows]]) -> Graph:
    """The graph with the product's weights and bias fitted to (inputs, outputs without bias) pairs."""
    model = graph.copy()
    node = next(each for each in model.graph if each.name == name)
    weight = _weight(node)
    matrix = matrix_of(node, weight).astype(np.float64)
    groups, outputs, inputs = matrix.shape
    solves = inputs <= _MOST_INPUTS
    xx = np.zeros((groups, inputs, inputs) if solves else 0)
    xy = np.zeros((groups, inputs, outputs) if solves else 0)
    x_sum, y_sum, rows = np.zeros((groups, inputs)), np.zeros((groups, outputs)), 0
    for x32, y32 in pairs:
        x = x32.astype(np.float64)
        y = y32.reshape(x32.shape[1], groups, outputs).swapaxes(0, 1).astype(np.float64)
        if solves:
            xx += np.swapaxes(x, 1, 2) @ x
            xy += np.swapaxes(x, 1, 2) @ y
        x_sum += x.sum(axis=1)
        y_sum += y.sum(axis=1)
        rows += x.shape[1]
    x_mean, y_mean = x_sum / rows, y_sum / rows
    if not can_add_bias(node):
        x_mean, y_mean = np.zeros_like(x_mean), np.zeros_like(y_mean)
    for g in range(groups if solves else 0):
        square = xx[g] / rows - np.outer(x_mean[g], x_mean[g])
        cross = xy[g] / rows - np.outer(x_mean[g], y_mean[g])
        ridge = _RIDGE * max(float(np.trace(square)) / inputs, 1e-12)
        left = cross - square @ matrix[g].T  # what the old weights do not tell
        matrix[g] += np.linalg.solve(square + ridge * np.eye(inputs), left).T
    if solves:
        set_weight(model, node, 1, weight_of(node, matrix, weight.shape).astype(weight.dtype))
    if can_add_bias(node):
        add_bias(model, node, (y_mean - np.einsum("goi,gi->go", matrix, x_mean)).reshape(-1))
    return graph.with_model(model)


def _changed(graph: Graph, known: Dependency, removed: Flags) -> set[ir.Node]:
    """Nodes that meet other inputs than before: they lost some, or come after one that did."""
    lost = {p.node for p in known.products if _lost(p, removed)}
    found: set[ir.Node] = set()
    for node in graph.model.graph:
        before = (value.producer() for value in node.inputs if value is not None)
        if node.name in lost or any(each in found for each in before if each is not None):
            found.add(node)
    return found


def _lost(product: Product, removed: Flags) -> bool:
    return product.source is not None and product.source.kept(removed).size < product.source.units.size


def _columns_kept(product: Product, removed: Flags, inputs: int) -> NDArray[np.bool_]:
    if product.source is None:
        raise AssertionError(product.node)
    units = product.source.units
    flags = np.zeros(units.size, np.bool_)
    flags[product.source.kept(removed)] = True
    return np.repeat(flags, inputs // units.size)


def _kept_outputs(
    product: Product, removed: Flags, array: NDArray[Any], axis: int | None = None
) -> NDArray[Any]:
    """What belongs to outputs that stay: of (groups, outputs) as (n,), of (groups, rows, outputs) as (rows, n)."""
    flat = array.reshape(-1) if axis is None else np.swapaxes(array, 0, 1).reshape(array.shape[1], -1)
    return flat if product.output is None else flat[..., product.output.kept(removed)]


# --- biases -----------------------------------------------------------------------------------------------------------


def can_add_bias(node: ir.Node) -> bool:
    """Whether the product has a bias, or can be given one."""
    return node.op_type != "MatMul" or _adder(node) is not None


def add_bias(model: ir.Model, node: ir.Node, change: Matrix) -> None:
    """Add to the product's bias, which is made where there is none; nothing where it cannot have one."""
    holder, place = (node, 2) if node.op_type != "MatMul" else _adder(node) or (None, 0)
    if holder is None:
        return
    old = holder.inputs[place] if len(holder.inputs) > place else None
    if old is None:
        holder.resize_inputs(3)
        dtype = _weight(node).dtype
        holder.replace_input_with(place, new_weight(model, f"{node.name}/bias", change.astype(dtype)))
    elif old.const_value is not None:
        array = old.const_value.numpy()
        set_weight(model, holder, place, (array + change).astype(array.dtype))


def _adder(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add that gives a MatMul its bias, and which input that is."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type != "Add":
        return None
    place = 1 - uses[0].idx
    bias = uses[0].node.inputs[place]
    wide = shape_of(node.outputs[0])[-1:]
    known = bias is not None and bias.const_value is not None
    return (uses[0].node, place) if known and shape_of(bias) == wide else None


def set_weight(model: ir.Model, node: ir.Node, place: int, array: NDArray[np.generic]) -> None:
    """Another tensor for this input of this node only; its name stays where nobody else reads it."""
    old = node.inputs[place]
    if old is None:
        raise AssertionError(node.name)
    if len(old.uses()) == 1:
        old.const_value = ir.tensor(np.ascontiguousarray(array), name=old.name)
        old.shape = ir.Shape(array.shape)
    else:
        node.replace_input_with(
            place, new_weight(model, f"{old.name}/{node.name}", np.ascontiguousarray(array))
        )


def _weight(node: ir.Node) -> Rows:
    value = node.inputs[1]
    if value is None or value.const_value is None:
        raise AssertionError(node.name)
    return value.const_value.numpy()
