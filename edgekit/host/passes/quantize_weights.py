"""Store weights in few bits, compute in float: codes and scales behind DequantizeLinear, activations left alone.

The codes stand as a matrix, one group a row, behind DequantizeLinear(axis=0); Reshape, Slice and Transpose of constants
give the weight its shape. That is valid from opset 13 for every format and block, and no runtime takes the product for
an integer one. A lowering packs the codes to their real size; a weight on its grid already stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph
from edgekit.host.options import option
from edgekit.host.passes._grid import CLIPS, GRIDS, Product, products, quantize, rows
from edgekit.host.passes._writer import Writer
from edgekit.host.passes.base import Context, Pass
from edgekit.host.passes.opset import OPSET
from edgekit.host.stored import INTEGER

_RECURRENT = ("LSTM", "GRU", "RNN")
_RECURRENT_AXES = (0, 1)  # direction and gate's unit: [directions, gates * hidden, in]
_AS_TABLE = "Gather"


@dataclass(frozen=True)
class QuantizeWeights:
    """format: of the codes. block: weights along the reduction that share a scale; 0: all of an output channel.

    clip: "max" or "mse", how a scale is found (see _grid.quantize). layers: nodes whose weights are stored so; none:
    all. keep_float: nodes whose weights are not. min_size: a weight with fewer numbers stays float: codes cost nodes.
    integer: dense layers of int4 blocks may round their inputs to 8 bits and multiply integers where the runtime has
    such a kernel and the layer is large enough to gain.
    """

    format: str = option("int8", choices=tuple(GRIDS))
    block: int = option(0, min=0, max=2**20)
    clip: str = option("mse", choices=CLIPS)
    layers: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    min_size: int = option(128, min=1)
    integer: bool = False


def apply(graph: Graph, options: QuantizeWeights, context: Context) -> Graph:
    """The graph with its weights behind DequantizeLinear. Raises BadInput for unknown names and NaN weights."""
    del context
    if graph.opset < OPSET:
        raise BadInput(
            f"quantize_weights needs opset {OPSET}, and onnx cannot raise this model's {graph.opset}"
        )
    names = {node.name for node in graph.model.graph}
    for key in ("layers", "keep_float"):
        unknown = sorted(set(getattr(options, key)) - names)
        if unknown:
            raise BadInput(f"{key} names no node of the model: {', '.join(unknown)}")
    working = replace(graph, model=graph.copy())
    for weight in chosen_weights(working, options):
        _store(working.model, weight, options)
    working.model.graph.sort()
    return graph.with_model(working.model)


def chosen_weights(graph: Graph, options: QuantizeWeights) -> Iterator[Product]:
    """The weights that the options name, each once: of products, recurrent layers and tables that Gather reads."""
    found: dict[str, list[Product]] = {}
    for weight in (*products(graph), *_others(graph)):
        found.setdefault(weight.value.name or "", []).append(weight)
    for users in found.values():
        value, names = users[0].value, {user.name for user in users}
        shared_with_others = len(value.uses()) > len(users) or value.is_graph_output()
        if shared_with_others or names & set(options.keep_float):
            continue
        if options.layers and not names & set(options.layers):
            continue
        if value.const_value is not None and value.const_value.size >= options.min_size:
            yield users[0]


def _others(graph: Graph) -> Iterator[Product]:
    """Weights of layers that are no products of one matrix."""
    for node in graph.model.graph:
        if node.op_type in _RECURRENT:
            entries: list[tuple[int, tuple[int, ...]]] = [(index, _RECURRENT_AXES) for index in (1, 2)]
        elif node.op_type == _AS_TABLE and node.attributes.get_int("axis", 0) == 0:
            entries = [(0, (0,))]
        else:
            continue
        for index, axes in entries:
            value = node.inputs[index]
            if value is not None and value.is_initializer() and value.const_value is not None:
                floats = value.dtype == ir.DataType.FLOAT and len(value.const_value.shape) > len(axes)
                if floats and value.const_value.size:
                    yield Product(node, index, value, axes)


def _store(model: ir.Model, weight: Product, options: QuantizeWeights) -> None:
    """Put codes, scale and the nodes that make the weight of them in its place."""
    grid, value = GRIDS[options.format], weight.value
    layout = rows(weight.array.shape, weight.axes, options.block)
    name = value.name or ""
    try:
        codes, scale = quantize(layout.take(weight.array), grid, options.clip, layout.used)
    except BadInput as err:
        raise BadInput(f"weight {name!r} of {weight.name!r}: {err}") from err
    made = Writer(model, name)
    zero = np.zeros(scale.shape, np.int8)
    current = made.node(
        "DequantizeLinear",
        made.constant("codes", codes),
        made.constant("scale", scale),
        made.constant("zero", zero),
        axis=0,
    )
    if options.integer and options.block and options.format == "int4":
        node = current.producer()
        assert node is not None  # noqa: S101  (it was just made)
        node.metadata_props[INTEGER] = "allowed"
    if layout.used is not None:
        shape = np.array([layout.channels, -1], np.int64)
        current = made.node("Reshape", current, made.constant("channels", shape))
        bounds = [
            made.constant(key, np.array([number], np.int64))
            for key, number in (("from", 0), ("to", layout.depth), ("along", 1))
        ]
        current = made.node("Slice", current, *bounds)
    current = made.node("Reshape", current, made.constant("shape", np.array(layout.moved, np.int64)))
    if layout.order != tuple(range(len(layout.order))):
        back = [int(axis) for axis in np.argsort(layout.order)]
        current = made.node("Transpose", current, perm=back)
    value.replace_all_uses_with(current)
    del model.graph.initializers[name]
    current.name = name
    current.dtype, current.shape = ir.DataType.FLOAT, ir.Shape(layout.shape)


PASS = Pass("quantize_weights", apply, min_sqnr_db=20.0, options=QuantizeWeights, rounds=True)
