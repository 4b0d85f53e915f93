"""Set the smallest weights to zero. Nothing gets faster: the file gets smaller, see lower/_sparse.py.

Depthwise weights and biases stay (Zhu and Gupta 2017, section 4.2). With its default options nothing is set to zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.host.dependency import is_depthwise
from edgekit.host.graph import Graph
from edgekit.host.options import option
from edgekit.host.passes._shrink import replace_weight
from edgekit.host.passes.base import Context, Pass

SCOPES = ("tensor", "global")
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class PruneMagnitude:
    """sparsity: the share of the products' weights that becomes zero.

    scope: "tensor": the same share of every tensor; "global": the smallest of all, so that large tensors lose more.
    keep: nodes whose weights stay as they are.
    """

    sparsity: float = option(0.0, min=0.0, max=1.0)
    scope: str = option("tensor", choices=SCOPES)
    keep: tuple[str, ...] = ()


def apply(graph: Graph, options: PruneMagnitude, context: Context) -> Graph:
    """The graph with that share of its weights zero. Raises BadInput where `keep` names no node."""
    del context
    unknown = set(options.keep) - {node.name for node in graph.model.graph}
    if unknown:
        raise BadInput(f"prune_magnitude: keep names no node of the model: {', '.join(sorted(unknown))}")
    if not options.sparsity:
        return graph
    model = graph.copy()
    weights = prunable(model, options.keep)
    arrays = {name: value.const_value.numpy() for name, value in weights.items() if value.const_value}
    for name, kept in masks(arrays, options).items():
        replace_weight(weights[name], np.where(kept, arrays[name], 0).astype(arrays[name].dtype))
    return graph.with_model(model)


def prunable(model: ir.Model, keep: tuple[str, ...] = ()) -> dict[str, ir.Value]:
    """Weights that may lose numbers: those that only products read, none of them depthwise or named in `keep`."""
    return {
        value.name or "": value
        for value in model.graph.initializers.values()
        if value.dtype in _FLOATS and value.uses() and all(_may(use, keep) for use in value.uses())
    }


def _may(use: Any, keep: tuple[str, ...]) -> bool:
    node: ir.Node = use.node
    if node.op_type not in _PRODUCTS or node.domain not in ("", "ai.onnx") or node.name in keep:
        return False
    if use.idx != 1:
        return False
    return node.op_type not in ("Conv", "ConvTranspose") or not is_depthwise(node)


def masks(weights: Mapping[str, NDArray[Any]], options: PruneMagnitude) -> dict[str, NDArray[np.bool_]]:
    """Weight -> which of its numbers stay. Exactly max(1, round(n (1 - sparsity))) do, per tensor or of all.

    Among equals the first stay. A tensor keeps at least one number.
    """
    if options.scope == "tensor":
        return {name: _largest(np.abs(array), options.sparsity) for name, array in weights.items()}
    sizes = [np.abs(array).reshape(-1).astype(np.float64) for array in weights.values()]
    if not sizes:
        return {}
    flat = _largest(np.concatenate(sizes), options.sparsity)
    parts = _parts(flat, [size.size for size in sizes])
    found = {}
    for (name, array), size, part in zip(weights.items(), sizes, parts, strict=True):
        if not part.any():
            part[int(size.argmax())] = True
        found[name] = part.reshape(array.shape)
    return found


def _parts(flat: NDArray[np.bool_], sizes: list[int]) -> Iterator[NDArray[np.bool_]]:
    start = 0
    for size in sizes:
        yield flat[start : start + size]
        start += size


def _largest(sizes: NDArray[Any], sparsity: float) -> NDArray[np.bool_]:
    """Flags of the largest, in the shape of `sizes`."""
    flat = sizes.reshape(-1)
    count = max(1, round(flat.size * (1 - sparsity)))
    found = np.zeros(flat.size, np.bool_)
    found[np.argsort(-flat, kind="stable")[:count]] = True
    return found.reshape(sizes.shape)


PASS = Pass("prune_magnitude", apply, min_sqnr_db=120.0, options=PruneMagnitude)
