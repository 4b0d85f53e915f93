"""Which channels of a network must be removed together, and what shrinks with them. Reads a model, changes nothing.

Every product (convolution, dense layer) makes a fresh unit per output channel. Units flow through the graph as arrays
"position on one axis -> unit": activations pass them on, Add and Mul unite what meets, Concat joins, Reshape and
Transpose move them, a product reads them into the axis of its weight. Whatever an operator not known here touches, what
an output shows, and what a graph input brings is frozen: conservative, and so correct.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.host.graph import Graph, inner_graphs, static_shape
from edgekit.host.work import MACS

FROZEN = -1
Units = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """Where units lie in a tensor: position on `axis` -> unit, FROZEN where it can never be removed."""

    axis: int
    units: Units

    def kept(self, removed: Flags) -> NDArray[np.int64]:
        """The positions that stay when these units are removed (one flag per unit)."""
        return np.flatnonzero((self.units == FROZEN) | ~removed[self.units])


@dataclass(frozen=True)
class Product:
    """A node that multiplies by weights. output: its channels; source: of the weight's input axis, None: all stay.

    depthwise: each input channel makes its own output channels, so the input axis counts nothing.
    """

    node: str
    output: Layout | None
    source: Layout | None
    macs: int
    depthwise: bool = False


@dataclass(frozen=True)
class Group:
    """Units that the same products make. name: the first such product's node; channel k of the group is units[k]."""

    name: str
    units: tuple[int, ...]
    products: tuple[str, ...]
    channels: int  # of the first product, per unit


@dataclass(frozen=True)
class Dependency:
    """What can be removed from a graph, and what it takes along.

    layouts: tensor -> where units lie in it. weights: the same for weights, which can have several axes.
    """

    units: int
    groups: tuple[Group, ...]
    products: tuple[Product, ...]
    layouts: Mapping[str, Layout]
    weights: Mapping[str, tuple[Layout, ...]]

    def none_removed(self) -> Flags:
        """One flag per unit, all down."""
        return np.zeros(self.units, np.bool_)

    def macs(self, removed: Flags) -> int:
        """Multiply-accumulates left in all products, as host/work.py counts them in the smaller graph."""
        return sum(_macs_left(product, removed) for product in self.products)

    def is_possible(self, removed: Flags) -> bool:
        """Whether every tensor keeps at least one channel."""
        return all(layout.kept(removed).size for layout in self.layouts.values())


def _macs_left(product: Product, removed: Flags) -> int:
    left = product.macs
    for layout in (product.output, None if product.depthwise else product.source):
        if layout is not None:
            left = left * int(layout.kept(removed).size) // layout.units.size
    return left


def dependency(graph: Graph) -> Dependency:
    """The units of a graph whose shapes are known. Deterministic: groups in the order of the graph."""
    walk = _Walk(graph.model)
    walk.run()
    return walk.result()


# --- the walk ---------------------------------------------------------------------------------------------------------


@dataclass
class _Made:
    """A product as the walk found it, in atoms."""

    node: str
    output: tuple[int, Units] | None
    source: tuple[int, Units] | None
    macs: int
    depthwise: bool = False


class _Walk:
    """Atoms in a union-find; atom 0 is the frozen one."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.parent = [0]
        self.layouts: dict[ir.Value, tuple[int, Units]] = {}
        self.uses: dict[ir.Value, list[tuple[int, Units]]] = {}
        self.products: list[_Made] = []

    # atoms

    def fresh(self, count: int) -> Units:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, atom: int) -> int:
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def roots(self, atoms: Units) -> Units:
        unique, inverse = np.unique(atoms, return_inverse=True)
        found = np.array([self.root(int(atom)) for atom in unique], np.int64)
        return found[inverse].reshape(atoms.shape)

    def unite(self, one: Units, other: Units) -> None:
        """Position by position: what is removed from one goes from the other."""
        pairs = np.unique(np.stack([one.ravel(), other.ravel()], axis=1), axis=0)
        for a, b in pairs.tolist():
            low, high = sorted((self.root(a), self.root(b)))
            self.parent[high] = low  # so that the frozen atom stays root

    def freeze(self, atoms: Units) -> None:
        self.unite(atoms, np.zeros_like(atoms))

    def freeze_value(self, value: ir.Value | None) -> None:
        if value is not None and value in self.layouts:
            self.freeze(self.layouts[value][1])

    # layouts

    def layout(self, value: ir.Value | None) -> tuple[int, Units] | None:
        return None if value is None else self.layouts.get(value)

    def put(self, value: ir.Value, axis: int, units: Units) -> None:
        """units lie on this axis of the value. What has one channel only keeps it."""
        shape = static_shape(value)
        if shape is None or len(units) != shape[axis] or len(units) == 1:
            self.freeze(units)
        elif self.roots(units).any():
            self.layouts[value] = (axis, units)

    def reads(self, weight: ir.Value, axis: int, units: Units) -> None:
        """The weight shrinks with the units on this axis."""
        self.uses.setdefault(weight, []).append((axis, units))

    def barrier(self, node: ir.Node) -> None:
        for value in node.inputs:
            self.freeze_value(value)

    # the model

    def run(self) -> None:
        for node in self.model.graph:
            for value in _captured(node):
                self.freeze_value(value)
            rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            shapes = [static_shape(value) for value in (*node.inputs, *node.outputs) if value is not None]
            if rule is None or None in shapes:
                self.barrier(node)
            else:
                rule(self, node)
            if node.op_type in MACS and not (self.products and self.products[-1].node == node.name):
                self.products.append(_Made(node.name or "", None, None, MACS[node.op_type](node)))
        for value in self.model.graph.outputs:
            self.freeze_value(value)
        for weight, uses in self.uses.items():
            self._tie(weight, uses)

    def _tie(self, weight: ir.Value, uses: Sequence[tuple[int, Units]]) -> None:
        """A weight that several nodes read shrinks for all alike, or not at all."""
        for axis in {axis for axis, _ in uses}:
            found = [units for at, units in uses if at == axis]
            for units in found[1:]:
                self.unite(found[0], units)
            if len(found) < len(weight.uses()) or weight.is_graph_output():
                self.freeze(found[0])

    # the result

    def result(self) -> Dependency:
        numbers: dict[int, int] = {0: FROZEN}
        groups = self._groups(numbers)
        count = len(numbers) - 1

        def numbered(axis: int, units: Units) -> Layout:
            found = [numbers.get(atom, FROZEN) for atom in self.roots(units).tolist()]
            return Layout(axis, np.array(found, np.int64))

        def live(found: tuple[int, Units] | None) -> Layout | None:
            layout = None if found is None else numbered(*found)
            return layout if layout is not None and (layout.units != FROZEN).any() else None

        layouts = {
            value.name or "": layout for value, found in self.layouts.items() if (layout := live(found))
        }
        weights: dict[str, tuple[Layout, ...]] = {}
        for weight, uses in self.uses.items():
            axes = {axis: layout for axis, units in uses if (layout := live((axis, units)))}
            if axes:
                weights[weight.name or ""] = tuple(axes[axis] for axis in sorted(axes))
        products = tuple(
            Product(made.node, live(made.output), live(made.source), made.macs, made.depthwise)
            for made in self.products
        )
        return Dependency(count, groups, products, layouts, weights)

    def _groups(self, numbers: dict[int, int]) -> tuple[Group, ...]:
        """Products that share a unit belong together; units are numbered in the order they are made."""
        found: list[tuple[list[str], dict[int, None], int]] = []
        for made in self.products:
            if made.output is None or made.depthwise:
                continue
            roots = self.roots(made.output[1])
            atoms = dict.fromkeys(atom for atom in roots.tolist() if atom)
            if not atoms:
                continue
            share = int((roots == next(iter(atoms))).sum())
            joined = [entry for entry in found if entry[1].keys() & atoms.keys()]
            first = joined[0] if joined else ([], {}, share)
            for entry in joined[1:]:
                first[0].extend(entry[0])
                first[1].update(entry[1])
                found.remove(entry)
            first[0].append(made.node)
            first[1].update(atoms)
            if not joined:
                found.append(first)
        groups = []
        for nodes, atoms, share in found:
            for atom in atoms:
                numbers[atom] = len(numbers) - 1
            groups.append(Group(nodes[0], tuple(numbers[atom] for atom in atoms), tuple(nodes), share))
        return tuple(groups)


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """What the node's sub-graphs read of the graph around them."""
    for graph in inner_graphs(node):
        for below in ir.traversal.RecursiveGraphIterator(graph):
            yield from (value for value in below.inputs if value is not None)
        yield from graph.outputs


# --- what nodes say of themselves -------------------------------------------------------------------------------------


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """The value's shape, () where it is not known."""
    return () if value is None else static_shape(value) or ()


def constant(node: ir.Node, index: int) -> NDArray[np.generic] | None:
    """What the input holds, where it is a weight."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def given(node: ir.Node, index: int) -> bool:
    """Whether an optional input is there."""
    return index < len(node.inputs) and node.inputs[index] is not None


def integers(node: ir.Node, name: str) -> list[int] | None:
    """An attribute that is a list of numbers."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(number) for number in attribute.as_ints()]


def numbers(node: ir.Node, name: str, index: int) -> list[int] | None:
    """Whole numbers that newer opsets take as an input and older ones as an attribute; None where neither is known."""
    if given(node, index):
        array = constant(node, index)
        return None if array is None else [int(number) for number in array.reshape(-1)]
    return integers(node, name)


def is_depthwise(node: ir.Node) -> bool:
    """Whether each input channel has kernels of its own."""
    group = node.attributes.get_int("group", 1)
    channels = shape_of(node.inputs[0])[1]
    if node.op_type == "ConvTranspose" and shape_of(node.inputs[1])[1] != 1:
        return False
    return group > 1 and group == channels


# --- rules: how units pass an operator --------------------------------------------------------------------------------

Rule = Callable[[_Walk, ir.Node], None]


def _unary(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is not None:
        for value in node.outputs:
            walk.put(value, *found)
    for more in node.inputs[1:]:
        walk.freeze_value(more)


def _broadcast(walk: _Walk, node: ir.Node) -> None:
    """Add, Mul and their like: what meets at a position goes together."""
    out = node.outputs[0]
    rank = len(shape_of(out))
    inputs = [value for value in node.inputs if value is not None]
    axes = {found[0] + rank - len(shape_of(value)) for value in inputs if (found := walk.layout(value))}
    if len(axes) != 1:
        walk.barrier(node)
        return
    (axis,) = axes
    places = [(value, axis - (rank - len(shape_of(value)))) for value in inputs]
    units = next(found[1] for value in inputs if (found := walk.layout(value)))
    _tie(walk, units, [(v, place) for v, place in places if place >= 0 and shape_of(v)[place] != 1])
    walk.put(out, axis, units)


def _tie(walk: _Walk, units: Units, inputs: Sequence[tuple[ir.Value, int]]) -> None:
    """The channels of all inputs, each on its own axis, go together with `units`, or none goes."""
    for value, place in inputs:
        found = walk.layout(value)
        if found is not None:
            walk.unite(units, found[1])
        elif value.const_value is not None:
            walk.reads(value, place, units)
        else:
            walk.freeze(units)


def _per_channel(walk: _Walk, node: ir.Node) -> None:
    """Batch and instance normalisation: one number per channel in each further input."""
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    rest = [value for value in node.inputs[1:] if value is not None]
    used = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    if found[0] != 1 or used or any(value.const_value is None for value in rest):
        walk.barrier(node)
        return
    for value in rest:
        walk.reads(value, 0, found[1])
    walk.put(node.outputs[0], 1, found[1])


def _pool(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    if found[0] != 1 or len(node.outputs) > 1:
        walk.barrier(node)
        return
    walk.put(node.outputs[0], 1, found[1])


def _transpose(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is not None:
        order = integers(node, "perm") or list(range(len(shape_of(node.inputs[0]))))[::-1]
        walk.put(node.outputs[0], order.index(found[0]), found[1])


def _reshape(walk: _Walk, node: ir.Node) -> None:
    """The units of all numbers in the new shape must lie along one axis; along others they are united."""
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    shape, new = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    known = all(value is None or value.const_value is not None for value in node.inputs[1:])
    if not known or math.prod(shape) != math.prod(new) or not math.prod(new):
        walk.barrier(node)
        return
    spread = walk.roots(found[1]).reshape([-1 if axis == found[0] else 1 for axis in range(len(shape))])
    everywhere = np.broadcast_to(spread, shape).reshape(new)
    axes = [axis for axis in range(len(new)) if (everywhere != np.take(everywhere, [0], axis=axis)).any()]
    if not axes:
        walk.barrier(node)
        return
    axis = _kept_axis(node, new, axes)
    lines = np.moveaxis(everywhere, axis, 0).reshape(new[axis], -1)
    if len(axes) > 1:
        walk.unite(np.broadcast_to(lines[:, :1], lines.shape), lines)
    walk.put(node.outputs[0], axis, lines[:, 0].copy())


def _kept_axis(node: ir.Node, shape: Sequence[int], axes: Sequence[int]) -> int:
    """The axis that stays removable: that of channels where somebody reads it so, else the longest."""
    readers = {reader.op_type for reader in node.outputs[0].consumers()}
    if 1 in axes and readers & {"Conv", "ConvTranspose", "BatchNormalization", *POOLS}:
        return 1
    return max(axes, key=lambda axis: (shape[axis], -axis))


def _concat(walk: _Walk, node: ir.Node) -> None:
    out = node.outputs[0]
    rank = len(shape_of(out))
    at = node.attributes.get_int("axis", 1) % rank
    inputs = [value for value in node.inputs if value is not None]
    axes = {found[0] for value in inputs if (found := walk.layout(value))}
    if axes == {at}:
        parts = [
            found[1] if (found := walk.layout(value)) else np.zeros(shape_of(value)[at], np.int64)
            for value in inputs
        ]
        walk.put(out, at, np.concatenate(parts))
        return
    if len(axes) != 1:
        walk.barrier(node)
        return
    (axis,) = axes
    units = next(found[1] for value in inputs if (found := walk.layout(value)))
    _tie(walk, units, [(value, axis) for value in inputs])
    walk.put(out, axis, units)


def _split(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    axis, units = found
    at = node.attributes.get_int("axis", 0) % len(shape_of(node.inputs[0]))
    start = 0
    for value in node.outputs:
        size = shape_of(value)[at]
        walk.put(value, axis, units[start : start + size] if at == axis else units)
        start += size


def slice_of(node: ir.Node, axis: int) -> slice | None:
    """What a Slice takes of this axis, all of it where it says nothing; None where it cannot be told."""
    rank = len(shape_of(node.inputs[0]))
    starts, ends = numbers(node, "starts", 1), numbers(node, "ends", 2)
    axes, steps = numbers(node, "axes", 3), numbers(node, "steps", 4)
    if (
        starts is None
        or ends is None
        or (axes is None and given(node, 3))
        or (steps is None and given(node, 4))
    ):
        return None
    places = [place % rank for place in (axes if axes is not None else range(len(starts)))]
    if axis not in places:
        return slice(None)
    index = places.index(axis)
    return slice(starts[index], ends[index], steps[index] if steps is not None else 1)


def _slice(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    axis, units = found
    taken = slice_of(node, axis)
    if taken is None or (taken != slice(None) and taken.step != 1):
        walk.barrier(node)
        return
    walk.put(node.outputs[0], axis, units[taken])


def _gather(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    walk.freeze_value(node.inputs[1])
    if found is None:
        return
    axis, units = found
    at = node.attributes.get_int("axis", 0) % len(shape_of(node.inputs[0]))
    indices = constant(node, 1)
    if at == axis:
        if indices is None or indices.ndim != 1:
            walk.barrier(node)
        else:
            walk.put(node.outputs[0], axis, units[indices.astype(np.int64)])
        return
    more = len(shape_of(node.inputs[1])) - 1
    walk.put(node.outputs[0], axis + more if at < axis else axis, units)


def _pad(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    axis, units = found
    rank = len(shape_of(node.inputs[0]))
    pads = numbers(node, "pads", 1)
    axes = numbers(node, "axes", 3) if given(node, 3) else list(range(rank))
    if pads is None or axes is None:
        walk.barrier(node)
        return
    places = [place % rank for place in axes]
    before, after = 0, 0
    if axis in places:
        index = places.index(axis)
        before, after = pads[index], pads[index + len(places)]
    mode = node.attributes.get("mode")
    if min(before, after) < 0 or (max(before, after) and mode is not None and mode.as_string() != "constant"):
        walk.barrier(node)
        return
    walk.put(
        node.outputs[0], axis, np.concatenate([np.zeros(before, np.int64), units, np.zeros(after, np.int64)])
    )


def _resize(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    axis, units = found
    mode = node.attributes.get("coordinate_transformation_mode")
    crops = mode is not None and mode.as_string() == "tf_crop_and_resize"
    fixed = all(value is None or value.const_value is not None for value in node.inputs[1:])
    if crops or not fixed or "axes" in node.attributes or shape_of(node.outputs[0])[axis] != len(units):
        walk.barrier(node)
        return
    walk.put(node.outputs[0], axis, units)


def _reduce(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    axis, units = found
    rank = len(shape_of(node.inputs[0]))
    axes = {place % rank for place in numbers(node, "axes", 1) or range(rank)}
    if axis in axes:
        walk.barrier(node)
        return
    gone = 0 if node.attributes.get_int("keepdims", 1) else sum(place < axis for place in axes)
    walk.put(node.outputs[0], axis - gone, units)


def _depth_to_space(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    block = node.attributes.get_int("blocksize", 1) ** 2
    mode = node.attributes.get("mode")
    by_column = mode is not None and mode.as_string() == "CRD"
    if found[0] != 1:
        walk.barrier(node)
        return
    lines = found[1].reshape(-1, block) if by_column else found[1].reshape(block, -1).T
    walk.unite(np.broadcast_to(lines[:, :1], lines.shape), lines)
    walk.put(node.outputs[0], 1, lines[:, 0].copy())


def _space_to_depth(walk: _Walk, node: ir.Node) -> None:
    found = walk.layout(node.inputs[0])
    if found is None:
        return
    if found[0] != 1:
        walk.barrier(node)
        return
    walk.put(node.outputs[0], 1, np.tile(found[1], node.attributes.get_int("blocksize", 1) ** 2))


def _conv(walk: _Walk, node: ir.Node) -> None:
    source, weight = node.inputs[0], node.inputs[1]
    if source is None or weight is None or weight.const_value is None:
        walk.barrier(node)
        return
    found = walk.layout(source)
    if found is not None and found[0] != 1:
        walk.freeze(found[1])
        found = None
    transposed = node.op_type == "ConvTranspose"
    group, wide = node.attributes.get_int("group", 1), shape_of(node.outputs[0])[1]
    read, made = (0, 1) if transposed else (1, 0)  # the weight's axes
    if is_depthwise(node):
        units = np.zeros(wide, np.int64) if found is None else np.repeat(found[1], wide // group)
        walk.reads(weight, 0, units)
        _product(walk, node, 1, units, None, depthwise=True)
        return
    if group > 1 and transposed:
        walk.barrier(node)
        return
    into = None
    if found is not None:  # every group of a grouped convolution loses the same positions
        lines = found[1].reshape(group, -1)
        walk.unite(np.broadcast_to(lines[:1], lines.shape), lines)
        into = (read, lines[0].copy())
        walk.reads(weight, *into)
    units = np.tile(walk.fresh(wide // group), group)
    walk.reads(weight, made, units)
    _product(walk, node, 1, units, into)


def _product(
    walk: _Walk,
    node: ir.Node,
    axis: int,
    units: Units,
    into: tuple[int, Units] | None,
    *,
    depthwise: bool = False,
) -> None:
    """The output's units, and the bias along them."""
    bias = node.inputs[2] if given(node, 2) else None
    if bias is not None:
        shape = shape_of(bias)
        if bias.const_value is None:
            walk.freeze_value(bias)
            walk.freeze(units)
        elif shape and shape[-1] == len(units) > 1:
            walk.reads(bias, len(shape) - 1, units)
    walk.put(node.outputs[0], axis, units)
    made = _Made(node.name or "", (axis, units), into, MACS[node.op_type](node), depthwise)
    walk.products.append(made)


def _gemm(walk: _Walk, node: ir.Node) -> None:
    source, weight = node.inputs[0], node.inputs[1]
    if source is None or weight is None or weight.const_value is None:
        walk.barrier(node)
        return
    turned = node.attributes.get_int("transB", 0)
    found = walk.layout(source)
    if found is not None and found[0] != (0 if node.attributes.get_int("transA", 0) else 1):
        walk.freeze(found[1])
        found = None
    into = None
    if found is not None:
        into = (1 if turned else 0, found[1])
        walk.reads(weight, *into)
    units = walk.fresh(shape_of(node.outputs[0])[1])
    walk.reads(weight, 0 if turned else 1, units)
    _product(walk, node, 1, units, into)


def _matmul(walk: _Walk, node: ir.Node) -> None:
    source, weight = node.inputs[0], node.inputs[1]
    rank, depth = len(shape_of(source)), len(shape_of(weight))
    if source is None or weight is None or weight.const_value is None or rank < 2 or depth < 2:
        walk.barrier(node)
        return
    found = walk.layout(source)
    if found is not None and found[0] != rank - 1:
        walk.freeze(found[1])
        found = None
    into = None
    if found is not None:
        into = (depth - 2, found[1])
        walk.reads(weight, *into)
    shape = shape_of(node.outputs[0])
    units = walk.fresh(shape[-1])
    walk.reads(weight, depth - 1, units)
    walk.put(node.outputs[0], len(shape) - 1, units)
    made = _Made(node.name or "", (len(shape) - 1, units), into, MACS["MatMul"](node))
    walk.products.append(made)


POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_UNARY = (
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Softplus"),
    *(
        "Softsign",
        "Mish",
        "Gelu",
        "Swish",
        "ThresholdedRelu",
        "Clip",
        "Identity",
        "Dropout",
        "Cast",
        "Abs",
        "Neg",
    ),
    *("Exp", "Log", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Erf", "Sin", "Cos", "Shrink"),
)
_BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu", "Where", "Mod")
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_REDUCE = (
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
)
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_VIEWS, _reshape),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(_REDUCE, _reduce),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
