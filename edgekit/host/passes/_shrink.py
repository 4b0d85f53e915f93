"""Cut units out of a model: slice every weight along its axes, and write anew what says a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.host.dependency import (
    Dependency,
    Flags,
    Layout,
    constant,
    given,
    is_depthwise,
    numbers,
    shape_of,
    slice_of,
)
from edgekit.host.graph import Graph, values

_Int64s = NDArray[np.int64]


def shrink(graph: Graph, known: Dependency, removed: Flags) -> Graph:
    """The graph without the removed units (one flag per unit of `known`, which belongs to this very graph)."""
    model = graph.copy()
    cut = _Cut(model, known, removed)
    for node in model.graph:  # before the weights shrink: they ask for old shapes
        rule = _RULES.get(node.op_type)
        if rule is not None:
            rule(cut, node)
    for value in model.graph.initializers.values():
        axes = known.weights.get(value.name or "")
        if axes is not None and value.const_value is not None:
            array = value.const_value.numpy()
            for layout in axes:
                array = np.take(array, layout.kept(removed), axis=layout.axis)
            replace_weight(value, np.ascontiguousarray(array))
    for node in model.graph:
        for value in node.outputs:
            if value.name in known.layouts:
                value.shape = None  # inferred anew
    return graph.with_model(model)


def replace_weight(value: ir.Value, array: NDArray[np.generic]) -> None:
    """Another tensor for a weight; the old one may belong to other models and stays as it is."""
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def new_weight(model: ir.Model, stem: str, array: NDArray[np.generic]) -> ir.Value:
    """A weight of the model's, its name made from `stem`."""
    taken = {*values(model), *model.graph.initializers}
    name = next(name for name in (stem, *(f"{stem}/{k}" for k in range(len(taken) + 1))) if name not in taken)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor)
    value.dtype, value.shape = tensor.dtype, ir.Shape(array.shape)
    model.graph.register_initializer(value)
    return value


class _Cut:
    """What the rules need: old shapes, and what stays of them."""

    def __init__(self, model: ir.Model, known: Dependency, removed: Flags) -> None:
        self.model, self.known, self.removed = model, known, removed

    def layout(self, value: ir.Value | None) -> Layout | None:
        return None if value is None else self.known.layouts.get(value.name or "")

    def kept(self, layout: Layout) -> _Int64s:
        return layout.kept(self.removed)

    def shape(self, value: ir.Value | None) -> list[int]:
        """The value's new shape."""
        shape, layout = list(shape_of(value)), self.layout(value)
        if layout is not None:
            shape[layout.axis] = int(self.kept(layout).size)
        return shape

    def put(self, node: ir.Node, index: int, name: str, content: list[int] | _Int64s) -> None:
        """The numbers as an input of the node where it has that, else as the attribute."""
        if given(node, index):
            old = constant(node, index)  # the inputs of a Slice must be of one type
            array = np.asarray(content, np.int64 if old is None else old.dtype)
            node.replace_input_with(index, new_weight(self.model, f"{node.name}/{name}", array))
        else:
            node.attributes[name] = ir.AttrInt64s(name, [int(number) for number in content])


def _group(cut: _Cut, node: ir.Node) -> None:
    """A depthwise convolution has as many groups as channels."""
    layout = cut.layout(node.inputs[0])
    if layout is not None and is_depthwise(node):
        node.attributes["group"] = ir.AttrInt64("group", int(cut.kept(layout).size))


def _reshape(cut: _Cut, node: ir.Node) -> None:
    if cut.layout(node.outputs[0]) is not None:
        if "allowzero" in node.attributes:
            node.attributes.pop("allowzero")  # no size is zero
        cut.put(node, 1, "shape", cut.shape(node.outputs[0]))


def _split(cut: _Cut, node: ir.Node) -> None:
    layout = cut.layout(node.inputs[0])
    at = node.attributes.get_int("axis", 0) % max(1, len(shape_of(node.inputs[0])))
    if layout is None or layout.axis != at:
        return
    sizes = [cut.shape(value)[at] for value in node.outputs]
    if "num_outputs" in node.attributes:
        node.attributes.pop("num_outputs")
    if not given(node, 1) and cut.model.opset_imports.get("", 0) >= _SPLIT_IS_INPUT:
        node.resize_inputs(2)
        node.replace_input_with(1, new_weight(cut.model, f"{node.name}/split", np.array(sizes, np.int64)))
    else:
        cut.put(node, 1, "split", sizes)


_SPLIT_IS_INPUT = 13


def _slice(cut: _Cut, node: ir.Node) -> None:
    layout = cut.layout(node.inputs[0])
    if layout is None:
        return
    taken = slice_of(node, layout.axis)
    if taken is None or taken == slice(None):
        return
    old = range(layout.units.size)[taken]
    kept = cut.kept(layout)
    before, after = int((kept < old.start).sum()), int((kept < old.stop).sum())
    starts, ends = numbers(node, "starts", 1) or [], numbers(node, "ends", 2) or []
    rank = len(shape_of(node.inputs[0]))
    places = [place % rank for place in numbers(node, "axes", 3) or range(len(starts))]
    index = places.index(layout.axis)
    starts[index], ends[index] = before, after
    cut.put(node, 1, "starts", starts)
    cut.put(node, 2, "ends", ends)


def _gather(cut: _Cut, node: ir.Node) -> None:
    layout = cut.layout(node.inputs[0])
    at = node.attributes.get_int("axis", 0) % max(1, len(shape_of(node.inputs[0])))
    indices = constant(node, 1)
    if layout is None or layout.axis != at or indices is None:
        return
    kept = cut.kept(layout)
    wanted = indices.astype(np.int64) % layout.units.size
    cut.put(node, 1, "indices", np.searchsorted(kept, wanted[np.isin(wanted, kept)]))


def _resize(cut: _Cut, node: ir.Node) -> None:
    layout = cut.layout(node.inputs[0])
    sizes = constant(node, 3)
    if layout is not None and sizes is not None and sizes.size:
        cut.put(node, 3, "sizes", cut.shape(node.outputs[0]))


_RULES: Mapping[str, Callable[[_Cut, ir.Node], None]] = {
    "Conv": _group,
    "ConvTranspose": _group,
    "Reshape": _reshape,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Resize": _resize,
}
