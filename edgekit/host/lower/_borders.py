"""Hand codes of images from stage to stage with channels last, as onnxruntime's 8-bit convolutions work on them.

onnxruntime puts a Transpose around such convolutions and cancels it with one that is already there: a border in the
order of the ONNX graph costs two re-orderings, one with channels last mostly none. Measured with 1.32 on three stages
(tools/bench/stages.py): 1.06x instead of 1.14x one session at 43 us, 1.03x instead of 1.06x on the demo model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from edgekit.core.manifest import Tensor
from edgekit.host.split import Stage

CHANNELS_LAST = (0, 2, 3, 1)
_BACK = (0, 3, 1, 2)
_CODES = ("uint8", "int8")


def channels_last(
    model: ir.Model, stage: Stage
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Mapping[str, tuple[int, ...]]]:
    """The inputs and outputs of the part, and the order of axes of those that are not as in the stage.

    Changes `model`, the stage's. Only tensors that no one but stages sees: both sides of a border choose alike.
    """
    orders = {
        tensor.name: CHANNELS_LAST
        for tensor in (*stage.inputs, *stage.outputs)
        if tensor.name in stage.handed
        and tensor.dtype in _CODES
        and len(tensor.shape) == len(CHANNELS_LAST)
        and tensor.shape[2] * tensor.shape[3] > 1
    }
    for value in tuple(model.graph.inputs):
        if value.name in orders:
            _takes(model.graph, value)
    for index, value in enumerate(tuple(model.graph.outputs)):
        if value.name in orders:
            model.graph.outputs[index] = _gives(model.graph, value)
    inputs, outputs = (
        tuple(
            replace(tensor, shape=tuple(tensor.shape[axis] for axis in orders[tensor.name]))
            if tensor.name in orders
            else tensor
            for tensor in side
        )
        for side in (stage.inputs, stage.outputs)
    )
    return inputs, outputs, orders


def _takes(graph: ir.Graph, value: ir.Value) -> None:
    """The graph's input comes with channels last; inside it is as it was."""
    node = ir.node("Transpose", [value], {"perm": _BACK})
    inside = node.outputs[0]
    inside.name, inside.type, inside.shape = f"{value.name}/channels_first", value.type, value.shape
    for user, place in tuple(value.uses()):
        if user is not node:
            user.replace_input_with(place, inside)
    value.shape = _last(value)
    graph.insert_before(graph[0], node)


def _gives(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The graph's new output: the same with channels last."""
    node = ir.node("Transpose", [value], {"perm": CHANNELS_LAST})
    given = node.outputs[0]
    given.name, given.type, given.shape = value.name, value.type, _last(value)
    value.name = f"{value.name}/channels_first"
    graph.append(node)
    return given


def _last(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([value.shape[axis] for axis in CHANNELS_LAST])
