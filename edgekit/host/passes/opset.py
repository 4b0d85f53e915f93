"""Raise an old opset to the first in which int8 can be written per channel. Newer ones are left as they are."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.ort import open_model
from edgekit.host.passes.base import Context, NoOptions, Pass

OPSET = 13  # DequantizeLinear with an axis


def apply(graph: Graph, options: NoOptions, context: Context) -> Graph:
    """The graph in opset 13 at least; unchanged where onnx cannot raise it, since float does not need it."""
    del options, context
    if graph.opset >= OPSET:
        return graph
    try:
        proto = version_converter.convert_version(graph.proto(), OPSET)
        onnx.checker.check_model(proto, full_check=True)
    except Exception:  # noqa: BLE001  (onnx's errors share no root but Exception)
        return graph
    model = ir.from_proto(proto)
    for tidy in (LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0), NameFixPass()):
        model = tidy(model).model
    try:
        open_model(model_bytes(model))
    except BadInput:
        return graph
    return graph.with_model(model)


PASS = Pass("opset", apply, min_sqnr_db=90.0)
