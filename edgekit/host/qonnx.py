"""Take QONNX in: its operators become ONNX's own at load, and quantized weights plain initializers. Trains nothing.

QONNX writes a quantized network as floats with quantizers between them: BipolarQuant, Quant (IntQuant), Trunc and
MultiThreshold (https://github.com/fastmachinelearning/qonnx, release 1.0; Pappalardo et al., "QONNX: Representing
Arbitrary-Precision Quantized Neural Networks", arXiv 2206.07527). Brevitas exports such files. Each node becomes
standard operators that give the same float32 numbers (qonnx_nodes.py); their names begin with the node's. What can be
computed from constants alone is, so that later parts know a weight's bits by its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import version_converter
from onnx.reference import ReferenceEvaluator

from edgekit.core.errors import BadInput, one_line
from edgekit.host.graph import infer_shapes, initializers, inner_graphs
from edgekit.host.qonnx_nodes import DOMAINS, Expansion, initializer

Array = NDArray[Any]

_OPSET = 13  # the oldest in which all operators of the expansions exist
_ANNOTATIONS = "quant_parameter_tensor_names"  # onnx-ir's key of QONNX's datatypes; the values say it all
_NEVER_FOLDED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)


def raised(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model in opset 13 at least where it has QONNX's operators. Raises BadInput where onnx cannot raise it."""
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), _OPSET)
    if opset >= _OPSET or not any(node.domain in DOMAINS for node in nodes):
        return proto
    try:
        return version_converter.convert_version(proto, _OPSET)
    except Exception as err:  # onnx's errors share no root but Exception
        raise BadInput(
            f"{path}: QONNX operators need opset {_OPSET}, the model has {opset} and onnx cannot raise it "
            f"({one_line(err)[:120]}): export it with opset_version={_OPSET}"
        ) from err


def expand(model: ir.Model, path: Path) -> None:
    """Replace all QONNX nodes of the main graph. Changes the model, whose nodes all have names.

    Raises BadInput, naming node and operator: an operator that is not built, a rounding mode or an attribute that QONNX
    does not have, a bit width or thresholds that are no constants.
    """
    if not any(node.domain in DOMAINS for node in model.graph):
        return
    infer_shapes(model)
    names = {value.name for node in model.graph for value in node.outputs} | {n.name for n in model.graph}
    names.update(value.name for value in (*model.graph.inputs, *initializers(model)))
    turned: dict[ir.Value, ir.Value] = {}
    for node in tuple(model.graph):  # in order: what a node reads is computed before it where that can be
        made = Expansion(model, node, path, names, turned).run() if node.domain in DOMAINS else [node]
        for standard in made:
            _fold(model, standard)
    for domain in DOMAINS:
        model.opset_imports.pop(domain, None)
    for value in (*model.graph.inputs, *initializers(model), *(v for n in model.graph for v in n.outputs)):
        value.meta.pop(_ANNOTATIONS, None)


# --- what is computed now ---------------------------------------------------------------------------------------------


def _fold(model: ir.Model, node: ir.Node) -> None:
    """Compute a node that reads constants alone: what unpacks a weight, quantizes it, or views it afterwards.

    QuantizeLinear and DequantizeLinear stay, and what reads them: what they say is not to be lost.
    """
    read = [value for value in node.inputs if value is not None]
    stays = node.domain not in ("", "ai.onnx") or node.op_type in _NEVER_FOLDED or any(inner_graphs(node))
    if stays or not read or any(value.const_value is None for value in read):
        return
    if any(value.is_graph_output() for value in node.outputs):
        return
    given = {value.name or "": value.const_value.numpy() for value in read if value.const_value is not None}
    try:
        found = _computed(node, given, model.opset_imports.get("", _OPSET))
    except Exception:  # noqa: BLE001  (an operator that onnx's reference does not have: the runtime will compute it)
        return
    for value, array in zip(node.outputs, found, strict=True):
        name, value.name = value.name or "", f"{value.name}/computed"
        value.replace_all_uses_with(initializer(model, name, array))
    model.graph.remove(node, safe=True)


def _computed(node: ir.Node, given: Mapping[str, Array], opset: int) -> list[Array]:
    """A node's outputs, by onnx's reference: numpy, in the types that the arrays have."""
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in given.items()
    ]
    outputs = [onnx.helper.make_empty_tensor_value_info(value.name or "") for value in node.outputs]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "constant", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, dict(given))]
