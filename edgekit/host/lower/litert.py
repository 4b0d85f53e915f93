"""Stage -> .tflite file for LiteRT and tflite-runtime: QDQ pairs become int8 kernels with the same scales.

At the border of the network the tensors are those of the ONNX graph: a file whose image comes in as N, C, H, W begins
with a TRANSPOSE. What one stage hands to the next stays as the kernels have it: int8, channels last.
"""

from __future__ import annotations

from dataclasses import replace

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Tensor
from edgekit.core.profile import Backend
from edgekit.host.graph import Graph
from edgekit.host.lower.base import LoweredPart
from edgekit.host.split import Stage

NAME = "litert"
_SHOWN = 5


def lower(stage: Stage, backend: Backend) -> tuple[LoweredPart, ...]:
    """The stage's one part. The same stage gives the same bytes.

    Raises BadInput naming the nodes that TFLite has no operator for, MissingExtra without ai-edge-litert.
    """
    from edgekit.host.lower.tflite.rules import translate

    made = translate(stage.model, stage.handed, [tensor.name for tensor in stage.outputs])
    if made.problems:
        raise BadInput(refusal(made.problems))
    inputs, outputs = (
        tuple(_as_written(tensor, *made.border(tensor.name)) for tensor in side)
        for side in (stage.inputs, stage.outputs)
    )
    content = made.to_bytes([t.name for t in inputs], [t.name for t in outputs], f"stage{stage.index}")
    orders = {name: order for name, order in made.orders.items() if order != tuple(sorted(order))}
    return (LoweredPart(backend.name, "tflite", content, inputs, outputs, orders),)


def unsupported(graph: Graph) -> tuple[str, ...]:
    """What keeps a graph from becoming .tflite: a line for each node, naming it, its operator and why. Runs nothing."""
    from edgekit.host.lower.tflite.rules import translate

    return tuple(translate(graph.model, (), ()).problems)


def refusal(problems: tuple[str, ...]) -> str:
    """The problems as one line."""
    more = len(problems) - _SHOWN
    rest = f"; and {more} more" if more > 0 else ""
    return f"TFLite cannot hold this network: {'; '.join(problems[:_SHOWN])}{rest}"


def _as_written(tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> Tensor:
    return replace(tensor, dtype=dtype, shape=shape)
