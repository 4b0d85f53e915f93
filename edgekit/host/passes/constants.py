"""Compute what depends on no input, and nothing else: weights become plain tensors, all other nodes stay.

What is drawn at random stays random. Unlike `fold` it merges no batch normalization into weights: binary weights stay
binary.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from edgekit.host.graph import Graph, model_bytes
from edgekit.host.ort import open_model
from edgekit.host.passes.base import Context, NoOptions, Pass
from edgekit.host.split import live_nodes, reads

_DRAWN = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Bernoulli", "Multinomial"),
)


def apply(graph: Graph, options: NoOptions, context: Context) -> Graph:
    """The graph with constants for all that no input reaches. Raises BadInput where onnxruntime refuses that part."""
    del options, context
    model = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph.copy()).model
    live = _not_constant(model)
    wanted = {
        value.name or "": value
        for node in model.graph
        if node in live
        for value in reads(node)
        if value.producer() is not None and value.producer() not in live
    }
    wanted.update(
        (value.name or "", value)
        for value in model.graph.outputs
        if value.producer() is not None and value.producer() not in live
    )
    if not wanted:
        return graph.with_model(model)
    part = ir.convenience.extract(model.graph, [], list(wanted.values()))
    session = open_model(model_bytes(ir.Model(part, ir_version=model.ir_version)), optimize=False)
    names = list(wanted)
    for name, array in zip(names, session.run(names, {}), strict=True):
        _replace(model, wanted[name], ir.tensor(array, name=f"{name}/constant"))
    return graph.with_model(RemoveUnusedNodesPass()(model).model)


def _not_constant(model: ir.Model) -> set[ir.Node]:
    """What an input reaches, and what numbers drawn at random reach."""
    live = live_nodes(model)
    for node in model.graph:
        if node.op_type in _DRAWN or any(value.producer() in live for value in reads(node)):
            live.add(node)
    return live


def _replace(model: ir.Model, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    constant = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype))
    constant.shape = ir.Shape(tensor.numpy().shape)
    model.graph.register_initializer(constant)
    for user, place in tuple(value.uses()):
        user.replace_input_with(place, constant)


PASS = Pass("constants", apply, min_sqnr_db=120.0)
