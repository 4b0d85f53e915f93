"""Stage -> plan file (edgekit/native/plan.h) for our own kernels, and for the FPGA overlay. Reads graphs, runs none."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, tensor_of, values
from edgekit.host.lower.native.build import Reading, read
from edgekit.host.lower.native.cut import StagePlan, cut
from edgekit.host.lower.native.drafts import Held

__all__ = ["Held", "Reading", "StagePlan", "plans", "read", "refusal"]
_SHOWN = 4


def plans(graph: Graph, reading: Reading | None = None) -> tuple[StagePlan, ...]:
    """One plan per exit. graph: its weights are constants (pass `constants`). Raises BadInput: what is in the way.

    reading: what `read` made of this graph, where that is known already.
    """
    reading = read(graph) if reading is None else reading
    if reading.refused:
        raise BadInput(refusal(reading.refused))
    known = values(graph.model)
    shapes = {entry.tensor.name: entry.tensor for entry in graph.inputs}
    shapes.update((name, tensor_of(known[name])) for exit_ in graph.exits for name in exit_.tensors)
    return cut(reading.draft, reading.inputs, shapes, [exit_.tensors for exit_ in graph.exits])


def refusal(refused: Mapping[str, str]) -> str:
    """Why a network is no plan, in one line."""
    first = [f"{name}: {why}" for name, why in list(refused.items())[:_SHOWN]]
    more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    return f"the network cannot run on bits and small integers: {'; '.join(first)}{more}"
