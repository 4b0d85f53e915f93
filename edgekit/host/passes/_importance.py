"""How much each unit matters: by its weights, by what it contributes on data, by what its loss does to the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.host.dependency import Dependency, Group, Layout, Product, Units
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.ort import open_model
from edgekit.host.passes._meet import Rows, meetings
from edgekit.host.passes._patches import matrix_of
from edgekit.host.passes.base import Context
from edgekit.host.sqnr import spread

Costs = NDArray[np.float64]
POINTS = 16  # positions of one sample that are looked at
_NAME = "prune_channels"
_RIDGE = 1e-3  # against the mean variance of a channel
_MOST_POSITIONS = 4096  # of one product: the matrix of their covariance has this side
_ROUNDS = 64  # a large group loses several units at once


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
    for product, found in _moments(graph, known, context, samples):
        _add(costs, _source(product), found.shares(centred=centred))
    return costs


def by_residue(graph: Graph, known: Dependency, context: Context, samples: int) -> Costs:
    """The same for what the other units cannot tell: a group's units go one by one, the others take over their part.

    Optimal Brain Surgeon (Hassibi, Stork 1993) in the space of channels: with M the inverse of the channels' covariance
    (over positions and taps), losing channel c costs its energy times 1 / (C_cc M_cc), and the other channels' weights
    change by w_c M_c / M_cc. What a unit costs when its turn comes is its cost, rising within a group.
    """
    costs = np.zeros(known.units)
    found = [
        (_source(product).units, each.elimination())
        for product, each in _moments(graph, known, context, samples)
    ]
    with context.watch("rank channels", len(known.groups)) as tick:
        for group in known.groups:
            readers_of = [(units, each.copy()) for units, each in found if np.isin(units, group.units).any()]
            _eliminate(group, readers_of, costs)
            tick(1)
    return costs


def _eliminate(group: Group, readers_of: Sequence[tuple[Units, _Elimination]], costs: Costs) -> None:
    """Fill in the costs of a group's units, cheapest first."""
    left = np.array(group.units)
    largest = 0.0
    at_once = max(1, len(left) // _ROUNDS)
    while left.size:
        now = np.zeros(len(costs))
        for units, each in readers_of:
            live = units >= 0
            np.add.at(now, units[live], each.costs()[live])
        order = left[np.argsort(now[left], kind="stable")][:at_once]
        for unit in order.tolist():
            largest = max(largest, float(now[unit]))
            costs[unit] = largest
            for units, each in readers_of:
                for position in np.flatnonzero(units == unit).tolist():
                    each.remove(position)
        left = np.setdiff1d(left, order)


def _moments(
    graph: Graph, known: Dependency, context: Context, samples: int
) -> list[tuple[Product, _Moments]]:
    """What the products that read units met."""
    nodes, products = readers(graph, known)
    sums = {
        node.name or "": _Moments(
            matrix_of(node, _weight_of(node)), _source(products[node.name or ""]).units.size
        )
        for node in nodes
    }
    for met in meetings(graph, nodes, context, samples, POINTS, _NAME):
        for name, columns in met.items():
            sums[name].add(columns)
    return [(products[name], found) for name, found in sums.items()]


def readers(graph: Graph, known: Dependency) -> tuple[list[ir.Node], Mapping[str, Product]]:
    """The products that read units, in the order of the graph, and what is known of them."""
    products = {p.node: p for p in known.products if p.source is not None and not p.depthwise}
    return [node for node in graph.model.graph if (node.name or "") in products], products


class _Moments:
    """Sums over the columns that one product met. positions: on its weight's input axis, each with some taps."""

    def __init__(self, matrix: Rows, positions: int) -> None:
        self.matrix = matrix.astype(np.float32)
        groups, _, inputs = matrix.shape
        taps = inputs // positions
        self.rows = 0
        self.total = np.zeros((groups, positions, taps))
        self.taps = np.zeros((groups, positions, taps, taps))  # within a position
        side = positions if positions <= _MOST_POSITIONS else 0  # beyond, nobody takes over a unit's part
        self.positions = np.zeros((groups, side, side))  # within a tap, over all taps
        self.out_sum = np.zeros(matrix.shape[:2])
        self.out_squares = np.zeros(matrix.shape[:2])

    def add(self, columns: Rows) -> None:
        """columns: (groups, rows, inputs)."""
        groups, rows, _ = columns.shape
        _, positions, taps = self.total.shape
        split = columns.reshape(groups, rows, positions, taps)
        self.rows += rows
        self.total += split.sum(axis=1)
        within = np.moveaxis(split, 1, -1)  # (groups, positions, taps, rows)
        self.taps += within @ np.swapaxes(within, -1, -2)
        if self.positions.size:
            across = np.swapaxes(split, 1, 2).reshape(groups, positions, rows * taps)
            self.positions += across @ np.swapaxes(across, 1, 2)
        made = columns @ np.swapaxes(self.matrix, 1, 2)
        self.out_sum += made.sum(axis=1)
        self.out_squares += np.square(made).sum(axis=1)

    def variance(self) -> float:
        """Of the product's outputs, added up."""
        each = self.out_squares / self.rows - np.square(self.out_sum / self.rows)
        return max(float(each.sum()), 1e-30)

    def covariance(self, *, centred: bool) -> Costs:
        """(groups, positions, taps, taps)."""
        moments = self.taps / self.rows
        if centred:
            mean = self.total / self.rows
            moments = moments - mean[..., :, None] * mean[..., None, :]
        return np.asarray(moments, np.float64)

    def weights(self) -> Costs:
        """(groups, outputs, positions, taps)."""
        return self.matrix.reshape(*self.matrix.shape[:2], *self.total.shape[1:]).astype(np.float64)

    def shares(self, *, centred: bool) -> Costs:
        """Per position its energy in the output over the output's variance."""
        energy = _energy(self.weights(), self.covariance(centred=centred))
        return np.asarray(np.maximum(energy, 0.0) / self.variance(), np.float64)

    def elimination(self) -> _Elimination:
        """What it takes to remove positions one by one."""
        groups, positions, taps = self.total.shape
        if not self.positions.size:
            none = np.zeros((groups, 0, 0))
            return _Elimination(self.weights(), self.covariance(centred=True), none, none, self.variance())
        mean = self.total / self.rows
        across = self.positions / (self.rows * taps) - mean @ np.swapaxes(mean, 1, 2) / taps
        inverse = np.zeros_like(across)
        for g in range(groups):
            ridge = _RIDGE * max(float(np.trace(across[g])) / positions, 1e-30)
            inverse[g] = np.linalg.inv(across[g] + ridge * np.eye(positions))
        return _Elimination(self.weights(), self.covariance(centred=True), across, inverse, self.variance())


@dataclass
class _Elimination:
    """A product's weights while positions go. weights: (groups, outputs, positions, taps).

    taps: covariances within each position; across: of the positions, and their inverse, empty where they are too many.
    """

    weights: Costs
    taps: Costs
    across: Costs
    inverse: Costs
    variance: float

    def copy(self) -> _Elimination:
        return replace(self, weights=self.weights.copy(), inverse=self.inverse.copy())

    def costs(self) -> Costs:
        """Per position what its loss costs now, over the output's variance."""
        energy = _energies(self.weights, self.taps)
        if self.inverse.size:
            variances = np.diagonal(self.across, axis1=1, axis2=2)
            alone = np.diagonal(self.inverse, axis1=1, axis2=2)
            energy = energy * np.clip(1 / np.maximum(variances * alone, 1e-30), 0.0, 1.0)
        return np.asarray(np.maximum(energy, 0.0).sum(axis=0) / self.variance, np.float64)

    def remove(self, position: int) -> None:
        """The others take over what they can."""
        for g in range(self.weights.shape[0] if self.inverse.size else 0):
            line, own = self.inverse[g, position].copy(), float(self.inverse[g, position, position])
            if own <= 0:
                continue
            self.weights[g] -= self.weights[g][:, position][:, None, :] * (line / own)[None, :, None]
            self.inverse[g] -= np.outer(line, line) / own
            self.inverse[g, position, :] = self.inverse[g, :, position] = 0
        self.weights[:, :, position] = 0


def _energies(weights: Costs, taps: Costs) -> Costs:
    """(groups, positions): the mean square of what each position adds to all outputs."""
    grams = np.einsum("goik,goil->gikl", weights, weights, optimize=True)
    return np.asarray((grams * taps).sum(axis=(2, 3)), np.float64)


def _energy(weights: Costs, taps: Costs) -> Costs:
    return np.asarray(_energies(weights, taps).sum(axis=0), np.float64)


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
    units. The error is the mean over outputs of squared difference over variance, on `samples` samples.
    """
    data = context.samples(_NAME)
    outputs = [name for entry in graph.exits for name in entry.outputs]
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


def _source(product: Product) -> Layout:
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
