"""Steps that change a graph, one a file. Each takes a Graph and returns a new one; none changes what it was given."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from edgekit.core.registry import pick
from edgekit.host.graph import Graph
from edgekit.host.options import read_options, write_options
from edgekit.host.passes import (
    adaround,
    bias_correction,
    confidence,
    constants,
    equalize,
    exits,
    float16,
    fold,
    opset,
    prune_channels,
    prune_magnitude,
    quantize_static,
    quantize_weights,
    recover,
)
from edgekit.host.passes.base import Context, Pass, Step

__all__ = ["PASSES", "Context", "Pass", "Step", "resolve_steps", "run_steps", "step", "unrounded"]

PASSES: Mapping[str, Pass] = {
    entry.name: entry
    for entry in (
        opset.PASS,
        confidence.PASS,
        constants.PASS,
        fold.PASS,
        exits.PASS,
        equalize.PASS,
        prune_channels.PASS,
        prune_magnitude.PASS,
        recover.PASS,
        adaround.PASS,
        quantize_static.PASS,
        quantize_weights.PASS,
        float16.PASS,
        bias_correction.PASS,
    )
}


def step(name: str, where: str = "step", /, **options: Any) -> Step:
    """A pass by name with these options, the rest at their defaults. Raises BadInput for an unknown name or option."""
    return Step(name, read_options(pick("pass", PASSES, name).options, options, f"{where} {name}"))


def unrounded(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps before the first that rounds: what they make is the float network that rounding is compared with."""
    return tuple(itertools.takewhile(lambda entry: not PASSES[entry.name].rounds, steps))


def resolve_steps(graph: Graph, steps: Iterable[Step], context: Context) -> tuple[Step, ...]:
    """The steps with options that leave nothing to be measured when they are taken again. Raises BadInput."""
    found = []
    for entry in steps:
        resolve = PASSES[entry.name].resolve
        taken = entry if resolve is None else Step(entry.name, resolve(graph, entry.options, context))
        found.append(taken)
        graph = run_steps(graph, [taken], context)
    return tuple(found)


def run_steps(graph: Graph, steps: Iterable[Step], context: Context) -> Graph:
    """Apply the steps in order. Raises BadInput where one cannot be taken.

    Until numbers are first rounded, what errors are corrected against is the context's own reference; from then on it
    is the graph before that step.
    """
    rounded = False
    for entry in steps:
        taken, source = PASSES[entry.name], graph
        if taken.rounds and not rounded:
            context, rounded = replace(context, reference=source), True
        make = functools.partial(taken.apply, source, entry.options, context)
        graph = context.made(source, entry.name, write_options(entry.options), make, keep=taken.costly)
    return graph
