"""Steps that change a graph, one a file. Each takes a Graph and returns a new one; none changes what it was given."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.host.passes import confidence, fold, opset, quantize_static
from edgekit.host.passes.base import Context, Pass

__all__ = ["PASSES", "Context", "Pass"]

PASSES: Mapping[str, Pass] = {
    step.name: step for step in (opset.PASS, confidence.PASS, fold.PASS, quantize_static.PASS)
}
