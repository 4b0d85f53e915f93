"""Put each exit's confidence into the graph: the largest softmax probability of its output, a float32 of shape [1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, GraphExit, is_class_vector, made_by, values
from edgekit.host.passes.base import Context, NoOptions, Pass

_AXES_ARE_INPUTS = 18  # since this opset ReduceMax takes its axes as a tensor
_Attributes = dict[str, int | Sequence[int]]


def apply(graph: Graph, options: NoOptions, context: Context) -> Graph:
    """A graph whose exits all have a confidence; the last one may go without where it gives no class vector.

    A network with one exit gets none: nothing is decided there, and computing it would only cost time.

    Raises BadInput for an early exit whose output is no class vector: nothing could decide there.
    """
    del options, context
    model = graph.copy()
    exits = []
    for index, entry in enumerate(graph.exits):
        output = values(model)[entry.output]
        if entry.confidence is not None:
            exits.append(entry)
        elif is_class_vector(output) and len(graph.exits) > 1:
            exits.append(replace(entry, confidence=_add(model, output, entry, graph.opset)))
        elif index + 1 == len(graph.exits):
            exits.append(entry)
        else:
            raise BadInput(
                f"exit {entry.name!r} must give one number per class to decide by, got shape {output.shape}"
            )
    named = values(model)
    model.graph.outputs[:] = [named[name] for entry in exits for name in entry.tensors]
    return replace(graph.with_model(model), exits=tuple(exits))


def _add(model: ir.Model, output: ir.Value, entry: GraphExit, opset: int) -> str:
    """Add the nodes; the confidence's name."""
    name = f"{entry.name}/confidence"
    probabilities = output
    last = made_by(output)
    if last is None or last.op_type != "Softmax":
        probabilities = _node(
            model, "Softmax", [_as_row(model, output, name)], f"{name}/softmax", {"axis": 1}
        )
    elif output.shape is None or len(output.shape) != 2:
        probabilities = _as_row(model, output, name)
    inputs: list[ir.Value] = [probabilities]
    attributes: _Attributes = {"keepdims": 0}
    if opset >= _AXES_ARE_INPUTS:
        inputs.append(_constant(model, f"{name}/axes", np.array([1], np.int64)))
    else:
        attributes["axes"] = [1]
    value = _node(model, "ReduceMax", inputs, name, attributes)
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([1])
    return name


def _as_row(model: ir.Model, value: ir.Value, name: str) -> ir.Value:
    """The class vector as [1, classes]."""
    if value.shape is not None and len(value.shape) == 2 and value.shape[0] == 1:
        return value
    shape = _constant(model, f"{name}/shape", np.array([1, -1], np.int64))
    return _node(model, "Reshape", [value, shape], f"{name}/row", {})


def _node(model: ir.Model, op: str, inputs: list[ir.Value], name: str, attributes: _Attributes) -> ir.Value:
    node = ir.node(op, inputs, attributes, name=name)
    node.outputs[0].name = name
    model.graph.append(node)
    return node.outputs[0]


def _constant(model: ir.Model, name: str, array: np.ndarray[tuple[int], np.dtype[np.int64]]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype, value.shape = ir.DataType.INT64, ir.Shape(array.shape)
    model.graph.register_initializer(value)
    return value


PASS = Pass("confidence", apply, min_sqnr_db=120.0)
