"""How much each unit matters: by its weights, by what it contributes on data, by what its loss does to the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.host.dependency import Dependency, Layout, Product
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.ort import open_model
from edgekit.host.passes._meet import Rows, meetings
from edgekit.host.passes._patches import matrix_of
from edgekit.host.passes.base import Context
from edgekit.host.sqnr import spread

Costs = NDArray[np.float64]
POINTS = 16  # positions of one sample that are looked at
_NAME = "prune_channels"


def by_weights(graph: Graph, known: Dependency, power: int) -> Costs:
    """The norm (l1, l2) of the weights that make a unit, against the mean of its product's (Li et al. 2017).

    Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710, rank within a layer; dividing by the layer's
    mean makes layers comparable.
    """
    costs = np.zeros(known.units)
    nodes = {node.name: node for node in graph.model.graph}
    for product in known.products:
        weight = _weight(nodes[product.node])
        axis = next((at for at in _made_axes(nodes[product.node])), 0)
        if product.output is None or weight is None:
            continue
        if weight.shape[axis] != product.output.units.size:  # grouped ConvTranspose: frozen anyway
            continue
        sizes = np.abs(weight.astype(np.float64)) ** power
        norms = np.moveaxis(sizes, axis, 0).reshape(weight.shape[axis], -1).sum(axis=1) ** (1 / power)
        _add(costs, product.output, norms / max(float(norms.mean()), 1e-30))
    return costs


def _made_axes(node: ir.Node) -> list[int]:
    if node.op_type == "Conv":
        return [0]
    if node.op_type == "ConvTranspose":
        group = node.attributes.get("group")
        return [0 if group is not None and group.as_int() > 1 else 1]
    turned = node.attributes.get("transB")
    if turned is not None and turned.as_int():
        return [0]
    weight = node.inputs[1]
    return [len(weight.shape) - 1] if weight is not None and weight.shape is not None else []


def by_contribution(
    graph: Graph, known: Dependency, context: Context, samples: int, *, centred: bool
) -> Costs:
    """The mean squared part a unit has in the outputs of the products that read it, against those outputs' variance.

    The sum over its readers. centred: without the unit's mean, which its readers' biases can take over.
    """
    costs = np.zeros(known.units)
    nodes, products = readers(graph, known)
    sums: dict[str, _Moments] = {}
    for met in meetings(graph, nodes, context, samples, POINTS, _NAME):
        for node in nodes:
            name = node.name or ""
            if name not in sums:
                sums[name] = _Moments(matrix_of(node, _weight_of(node)))
            sums[name].add(met[name], products[name])
    for name, found in sums.items():
        _add(costs, _layout(products[name]), found.shares(products[name], centred=centred))
    return costs


def readers(graph: Graph, known: Dependency) -> tuple[list[ir.Node], Mapping[str, Product]]:
    """The products that read units, in the order of the graph, and what is known of them."""
    products = {p.node: p for p in known.products if p.source is not None and not p.depthwise}
    return [node for node in graph.model.graph if (node.name or "") in products], products


class _Moments:
    """Sums over columns that one product met."""

    def __init__(self, matrix: Rows) -> None:
        self.matrix = matrix.astype(np.float32)
        self.rows = 0
        self.total = np.zeros(0)
        self.squares = np.zeros(0)
        self.out_sum = np.zeros(matrix.shape[:2])
        self.out_squares = np.zeros(matrix.shape[:2])

    def add(self, columns: Rows, product: Product) -> None:
        """columns: (groups, rows, inputs)."""
        split = columns.reshape(*columns.shape[:2], _layout(product).units.size, -1)
        if not self.rows:
            self.total = np.zeros((split.shape[0], *split.shape[2:]))
            self.squares = np.zeros((*self.total.shape, split.shape[-1]))
        self.rows += columns.shape[1]
        self.total += split.sum(axis=1)
        turned = np.moveaxis(split, 1, -1)  # (groups, positions, kernel, rows)
        self.squares += turned @ np.swapaxes(turned, -1, -2)
        made = columns @ np.swapaxes(self.matrix, 1, 2)
        self.out_sum += made.sum(axis=1)
        self.out_squares += np.square(made).sum(axis=1)

    def shares(self, product: Product, *, centred: bool) -> Costs:
        """Per position on the weight's input axis, its energy in the output over the output's variance."""
        mean = self.total / self.rows
        moments = self.squares / self.rows
        if centred:
            moments = moments - mean[..., :, None] * mean[..., None, :]
        size = _layout(product).units.size
        weights = self.matrix.reshape(*self.matrix.shape[:2], size, -1).astype(np.float64)
        grams = np.einsum("goik,goil->gikl", weights, weights, optimize=True)
        energy = (grams * moments).sum(axis=(0, 2, 3))
        variance = (self.out_squares / self.rows - np.square(self.out_sum / self.rows)).sum()
        return np.asarray(np.maximum(energy, 0.0) / max(float(variance), 1e-30), np.float64)


def by_answers(
    graph: Graph,
    known: Dependency,
    costs: Costs,
    stops: Mapping[str, Sequence[NDArray[np.int64]]],
    without: Callable[[NDArray[np.int64]], Graph],
    context: Context,
    samples: int,
) -> Costs:
    """`costs` scaled, group by group, so that their running sum is the measured error of the answers.

    stops: group -> sets of its units, each holding the one before, whose removal is tried. without: the graph less some
    units. The error is the mean over exits of squared difference over variance, on `samples` samples.
    """
    data = context.samples(_NAME)
    outputs = [entry.output for entry in graph.exits]
    chosen = spread(data.count, samples)
    inputs = [data.inputs(index) for index in chosen]
    session = open_model(model_bytes(graph.model))
    wanted = [session.run(outputs, sample) for sample in inputs]
    spreads = [
        max(float(np.var(np.stack([answers[k] for answers in wanted]), axis=0).sum()), 1e-30)
        for k in range(len(outputs))
    ]
    scaled: Costs = np.array(costs)
    with context.watch("rank channels", len(stops)) as tick:
        for sets in stops.values():
            before_units, before_error = np.zeros(0, np.int64), 0.0
            for units in sets:
                trial = open_model(model_bytes(without(units).model))
                got = [trial.run(outputs, sample) for sample in inputs]
                error = float(
                    np.mean(
                        [
                            np.mean([np.square(w[k] - g[k]).sum() for w, g in zip(wanted, got, strict=True)])
                            / s
                            for k, s in enumerate(spreads)
                        ]
                    )
                )
                part = np.setdiff1d(units, before_units)
                more = max(error - before_error, 1e-3 * error, 1e-12)
                scaled[part] = more * _weights(costs[part])
                before_units, before_error = units, max(error, before_error)
            tick(1)
    return scaled


def _weights(costs: Costs) -> Costs:
    """The costs as parts of their sum; equal parts where all are 0."""
    total = float(costs.sum())
    parts: Costs = np.full(len(costs), 1.0 / len(costs)) if total <= 0 else costs / total
    return parts


def _add(costs: Costs, layout: Layout, amounts: Costs) -> None:
    live = layout.units >= 0
    np.add.at(costs, layout.units[live], amounts[live])


def _layout(product: Product) -> Layout:
    if product.source is None:
        raise AssertionError(product.node)
    return product.source


def _weight(node: ir.Node) -> Rows | None:
    value = node.inputs[1]
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _weight_of(node: ir.Node) -> Rows:
    weight = _weight(node)
    if weight is None:
        raise AssertionError(node.name)
    return weight
