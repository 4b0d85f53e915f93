"""Stage -> ONNX file for onnxruntime: opset and IR version at or below what the board's release loads."""

from __future__ import annotations

import itertools

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes.common import DeduplicateInitializersPass

from edgekit.core.errors import BadInput, one_line
from edgekit.core.profile import Backend
from edgekit.host.graph import model_bytes
from edgekit.host.lower._borders import channels_last
from edgekit.host.lower._decode import decode_weights
from edgekit.host.lower._sparse import store_sparse
from edgekit.host.lower.base import LoweredPart
from edgekit.host.split import Stage
from edgekit.host.stored import constant_nodes

NAME = "onnxruntime"
_PRODUCER = "edgekit"
_CODES = ("QuantizeLinear", "DequantizeLinear")
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_USUAL_IR = 10  # of what onnx 1.16 and later write for opset 21; older readers are asked for through max_ir


def lower(stage: Stage, backend: Backend) -> tuple[LoweredPart, ...]:
    """The stage's one part. The same stage gives the same bytes. Raises BadInput where its opset is too new."""
    model = _below_ceiling(stage, backend.max_opset)
    model.ir_version = min(_USUAL_IR, backend.max_ir or _USUAL_IR)
    model.producer_name, model.producer_version = _PRODUCER, None
    model.doc_string = model.domain = None
    model.graph.name = f"stage{stage.index}"
    model.graph.doc_string = None
    DeduplicateInitializersPass()(model)
    store_sparse(model)
    inputs, outputs, orders = channels_last(model, stage)
    _shorten(model)
    return (LoweredPart(NAME, "onnx", model_bytes(model), inputs, outputs, orders),)


def _shorten(model: ir.Model) -> None:
    """Drop what the runtime finds out by itself, and names that only we read. Layers keep theirs."""
    if any(attribute.type in _GRAPHS for node in model.graph for attribute in node.attributes.values()):
        return  # inner graphs see our names
    border = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    inner = [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    inner = [value for value in inner if value.name not in border]
    taken = border | {value.name for value in inner}
    names = (name for name in map(str, itertools.count()) if name not in taken)
    for value in inner:
        value.name = next(names)
        value.shape = value.type = None  # a weight's tensor says both
    folded = constant_nodes(model)
    for node in model.graph:
        if node.op_type in _CODES or node in folded:
            node.name = ""
        node.doc_string = None
        node.metadata_props.clear()


def _below_ceiling(stage: Stage, ceiling: int | None) -> ir.Model:
    model = stage.model.clone()
    decode_weights(model)
    opset = model.opset_imports.get("", 0)
    if ceiling is None or opset <= ceiling:
        return model
    try:
        lowered = version_converter.convert_version(ir.to_proto(model), ceiling)
        onnx.checker.check_model(
            lowered, full_check=True
        )  # the converter has been seen to write what is no ONNX
        return ir.from_proto(lowered)
    except Exception as err:  # onnx's errors share no root but Exception
        raise BadInput(
            f"the board's onnxruntime loads opset {ceiling} at most, the model uses {opset}, and onnx cannot lower it: "
            f"{one_line(err)[:120]}"
        ) from err
