"""Cross-layer equalization: share a range fairly between a product's output channels and the next one's input channels.

What commutes with a positive factor per channel (ReLU, pooling, layout) lets one layer's channel be divided by it and
the next layer's weights be multiplied: the network stays the same, but no channel is lost in another one's scale (Nagel
et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section 4.1).
What does not commute is left alone: ReLU6, sums of branches, a tensor that has other readers or is an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.host.graph import Graph, static_shape
from edgekit.host.options import option
from edgekit.host.passes._grid import Product, products
from edgekit.host.passes.base import Context, Pass

Array = NDArray[Any]
_ANY_AXIS = (
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Identity",
    "Dropout",
)  # f(s x) = s f(x) for s > 0, element by element
_SPATIAL = (
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
)  # the same within each channel of axis 1
_VIEWS = ("Flatten", "Reshape", "Squeeze")
_ENOUGH = 1e-3  # a factor this near to 1 changes nothing


@dataclass(frozen=True)
class Options:
    """rounds: at most, over all pairs. limit: the largest factor of one channel; its inverse is the smallest."""

    rounds: int = option(40, min=1, max=10_000)
    limit: float = option(1024.0, min=1.0, max=1e6)


@dataclass(frozen=True)
class _Pair:
    """Two products; `biases`: what is added between them per channel; repeat: inputs of the second per channel."""

    first: Product
    second: Product
    biases: tuple[ir.Value, ...]
    repeat: int


def apply(graph: Graph, options: Options, context: Context) -> Graph:
    """The same network with weights equalized; unchanged where no two products can share."""
    del context
    model = graph.copy()
    pairs = _pairs(replace(graph, model=model))
    arrays = {value: _array(value) for pair in pairs for value in _values(pair)}
    factors = [np.ones(_outputs(pair.first, arrays[pair.first.value]).size) for pair in pairs]
    for _ in range(options.rounds):
        moved = 0.0
        for index, pair in enumerate(pairs):
            wanted = factors[index] * _factor(pair, arrays)
            scale = np.clip(wanted, 1 / options.limit, options.limit) / factors[index]
            factors[index] *= scale
            _share(pair, arrays, scale)
            moved = max(moved, float(np.abs(np.log(scale)).max(initial=0.0)))
        if moved < _ENOUGH:
            break
    for value, array in arrays.items():
        made = array.astype(np.float32)
        value.const_value = ir.tensor(made, name=value.name)
    return graph.with_model(model) if pairs else graph


# --- which pairs there are --------------------------------------------------------------------------------------------


def _pairs(graph: Graph) -> list[_Pair]:
    """Every two products that only what commutes with factors lies between. Biases get values of their own."""
    by_node: dict[ir.Node, list[Product]] = {}
    for product in products(graph):
        by_node.setdefault(product.node, []).append(product)
    single = {node: mine[0] for node, mine in by_node.items() if len(mine) == 1 and _is_usable(mine[0])}
    answers = {name for entry in graph.exits for name in entry.tensors}
    found = (_pair(first, single, answers) for first in single.values())
    pairs = [pair for pair in found if pair is not None]
    return [replace(pair, biases=tuple(_own(graph.model, pair))) for pair in pairs]


def _is_usable(product: Product) -> bool:
    """Whether its weight is its own, a matrix or kernel on the right, and its input lies as it should."""
    if product.index != 1 or len(product.value.uses()) > 1 or product.value.is_graph_output():
        return False
    rank = product.array.ndim
    return rank == 2 if product.node.op_type == "MatMul" else rank >= 2


def _pair(first: Product, single: dict[ir.Node, Product], answers: set[str]) -> _Pair | None:
    bias = first.node.inputs[2] if len(first.node.inputs) > 2 else None
    if bias is not None and bias.const_value is None:
        return None
    value = first.node.outputs[0]
    rank = len(value.shape) if value.shape is not None else 0
    axis = rank - 1 if first.node.op_type == "MatMul" else 1
    repeat, channels = 1, _outputs(first, first.array).size
    if rank < 2 or (
        bias is not None and bias.const_value is not None and bias.const_value.size not in (1, channels)
    ):
        return None
    while len(value.uses()) == 1 and not value.is_graph_output() and value.name not in answers:
        node = value.consumers()[0]
        if node.graph is not first.node.graph:
            return None
        if node in single and node.inputs[0] is value:
            second = single[node]
            fits = _inputs(second, second.array).size == channels * repeat
            last = axis == rank - 1 if node.op_type == "MatMul" else axis == 1
            plain = "transA" not in node.attributes or not node.attributes["transA"].as_int()
            return _Pair(first, second, (), repeat) if fits and last and plain else None
        step = _through(node, value, axis, repeat)
        if step is None or len(node.outputs) != 1:
            return None
        axis, repeat = step
        value = node.outputs[0]
        rank = len(value.shape) if value.shape is not None else 0
    return None


def _through(node: ir.Node, value: ir.Value, axis: int, repeat: int) -> tuple[int, int] | None:
    """(axis of channels, numbers of each that lie side by side on it) after a node; None where factors do not pass."""
    before, after = static_shape(value), static_shape(node.outputs[0])
    op = node.op_type
    if before is None or after is None or node.domain not in ("", "ai.onnx"):
        return None
    if op in _ANY_AXIS and node.inputs[0] is value:
        return axis, repeat
    if op == "Clip" and node.inputs[0] is value and _is_relu(node):
        return axis, repeat
    if op == "Add" and _added(node, value, axis, before, after) is not None:
        return axis, repeat
    if op in _SPATIAL and axis == 1 and node.inputs[0] is value:
        return axis, repeat
    if op == "Transpose":
        perm = node.attributes.get("perm")
        order = list(perm.as_ints()) if perm is not None else list(range(len(before)))[::-1]
        return order.index(axis), repeat
    if op in _VIEWS and node.inputs[0] is value:
        return _viewed(before, after, axis, repeat)
    return None


def _viewed(
    before: tuple[int, ...], after: tuple[int, ...], axis: int, repeat: int
) -> tuple[int, int] | None:
    """The same numbers in another shape: channels stay one axis, which may take in all that follow it."""
    outer, inner = int(np.prod(before[:axis])), int(np.prod(before[axis + 1 :]))
    for place, size in enumerate(after):
        if int(np.prod(after[:place])) != outer:
            continue
        if size == before[axis] and before[axis] > 1:
            return place, repeat
        if size == before[axis] * inner and before[axis] > 1:
            return place, repeat * inner
    return None


def _is_relu(node: ir.Node) -> bool:
    """Whether a Clip cuts below 0 only."""
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        attribute = node.attributes.get(name)
        value = node.inputs[index] if len(node.inputs) > index else None
        if attribute is not None:
            bounds.append(attribute.as_float())
        elif value is None:
            bounds.append(None)
        elif value.const_value is None:
            return False
        else:
            bounds.append(float(value.const_value.numpy().reshape(-1)[0]))
    low, high = bounds
    return low == 0.0 and (high is None or high >= float(np.finfo(np.float32).max))


def _added(
    node: ir.Node, value: ir.Value, axis: int, before: tuple[int, ...], after: tuple[int, ...]
) -> ir.Value | None:
    """The constant vector over channels that an Add adds, else None."""
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    if other is None or other.const_value is None or before != after or other.dtype != ir.DataType.FLOAT:
        return None
    shape = tuple(other.const_value.shape.numpy())
    aligned = (1,) * (len(before) - len(shape)) + shape
    alone = all(size == 1 for place, size in enumerate(aligned) if place != axis)
    return other if alone and aligned[axis] == before[axis] else None


def _own(model: ir.Model, pair: _Pair) -> Iterator[ir.Value]:
    """The first product's bias and what is added after it, as values that nothing else reads."""
    node = pair.first.node
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        yield _alone(model, node, 2, _outputs(pair.first, pair.first.array).size)
    value = node.outputs[0]
    while value.consumers()[0] is not pair.second.node:
        node = value.consumers()[0]
        if node.op_type == "Add":
            yield _alone(model, node, 1 if node.inputs[0] is value else 0, None)
        value = node.outputs[0]


def _alone(model: ir.Model, node: ir.Node, index: int, size: int | None) -> ir.Value:
    """An input of the node as a value of its own, as a vector of `size` where that is given."""
    value = node.inputs[index]
    assert value is not None  # noqa: S101  (_pair looked)
    array = _array(value)
    if size is not None and array.size != size:
        array = np.broadcast_to(array.reshape(-1), (size,))
    elif len(value.uses()) == 1 and not value.is_graph_output():
        return value
    name = f"{node.name or node.op_type}/equalized"
    while name in model.graph.initializers:
        name += "_"
    made = ir.Value(name=name, const_value=ir.tensor(array.astype(np.float32), name=name))
    made.dtype, made.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
    model.graph.register_initializer(made)
    node.replace_input_with(index, made)
    return made


# --- ranges and factors -----------------------------------------------------------------------------------------------


def _values(pair: _Pair) -> tuple[ir.Value, ...]:
    return (pair.first.value, pair.second.value, *pair.biases)


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None  # noqa: S101  (only constants come here)
    return np.array(value.const_value.numpy(), np.float64, order="C")


def _factor(pair: _Pair, arrays: dict[ir.Value, Array]) -> Array:
    """s = sqrt(r1 / r2) per channel, 1 where a channel is dead on either side."""
    mine = _outputs(pair.first, arrays[pair.first.value])
    its = _inputs(pair.second, arrays[pair.second.value]).reshape(-1, pair.repeat).max(axis=1)
    live = (mine > 0) & (its > 0)
    return np.where(live, np.sqrt(np.where(live, mine, 1) / np.where(live, its, 1)), 1.0)


def _share(pair: _Pair, arrays: dict[ir.Value, Array], scale: Array) -> None:
    """Divide the first product's channels by the factors, multiply the second one's weights."""
    first = _split(pair.first, arrays[pair.first.value])
    first /= scale.reshape(len(first), -1, 1, 1)
    second = _split(pair.second, arrays[pair.second.value])
    second *= np.repeat(scale, pair.repeat).reshape(len(second), 1, -1, 1)
    for bias in pair.biases:
        array = arrays[bias]
        array /= np.repeat(scale, array.size // scale.size).reshape(array.shape)


def _groups(product: Product) -> int:
    attribute = product.node.attributes.get("group")
    return 1 if attribute is None else attribute.as_int()


def _turned(product: Product) -> bool:
    """Whether the weight lies [in, out]: MatMul's and a Gemm's that is not transposed."""
    attribute = product.node.attributes.get("transB")
    return product.node.op_type in ("MatMul", "Gemm") and not (attribute is not None and attribute.as_int())


def _split(product: Product, array: Array) -> Array:
    """A view [groups, outputs of a group, inputs of a group, kernel] of a weight."""
    groups = _groups(product)
    if product.node.op_type == "ConvTranspose":
        split = array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
        return np.asarray(split.transpose(0, 2, 1, 3))
    if _turned(product):
        return np.asarray(array.T[None, :, :, None])
    return np.asarray(array.reshape(groups, array.shape[0] // groups, array.shape[1], -1))


def _outputs(product: Product, array: Array) -> Array:
    """The largest weight of each output channel."""
    return np.asarray(np.abs(_split(product, array)).max(axis=(2, 3)).reshape(-1))


def _inputs(product: Product, array: Array) -> Array:
    """The largest weight on each input channel."""
    return np.asarray(np.abs(_split(product, array)).max(axis=(1, 3)).reshape(-1))


PASS = Pass("equalize", apply, min_sqnr_db=100.0, options=Options)
