"""Fold what can be computed now: onnxruntime's hardware-independent rewrites (constants, batch norms, identities)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass, RemoveUnusedOpsetsPass

from edgekit.host.graph import Graph, model_bytes
from edgekit.host.ort import optimize_offline
from edgekit.host.passes.base import Context, NoOptions, Pass


def apply(graph: Graph, options: NoOptions, context: Context) -> Graph:
    """The graph after onnxruntime's basic offline optimizer, which the result can therefore be opened with.

    Raises BadInput where onnxruntime refuses the model.
    """
    del options, context
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        target = Path(folder) / "folded.onnx"
        optimize_offline(model_bytes(graph.model), target)
        proto = onnx.load_model(target)
    model = ir.from_proto(proto)
    for tidy in (
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        NameFixPass(),
        RemoveUnusedOpsetsPass(),
    ):
        model = tidy(model).model
    return graph.with_model(model)


PASS = Pass("fold", apply, min_sqnr_db=90.0)
