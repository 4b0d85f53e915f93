"""Early exits for a finished classifier: a head behind each cut, fitted without labels to the network's own answers.

What the network computes stays exactly as it was. Where to cut and which head stands there is decided beforehand
(host/exits/plan.py); this pass makes them. With its default options there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgekit.core.errors import BadInput
from edgekit.host.exits.cuts import check_can_have_exits, last_op, named_cuts
from edgekit.host.exits.heads import (
    LINEAR,
    MOST_SAMPLES,
    Head,
    Place,
    Seen,
    fit_linear,
    hidden_of,
    place_of,
    samples_seen,
    see,
)
from edgekit.host.graph import Graph, GraphExit, static_shape, values
from edgekit.host.options import option
from edgekit.host.passes import confidence
from edgekit.host.passes.base import Context, NoOptions, Pass
from edgekit.host.train import require_torch

_AXES_ARE_INPUTS = 18  # since this opset ReduceMean takes its axes as a tensor
_Attributes = dict[str, int | Sequence[int]]


@dataclass(frozen=True)
class Exits:
    """cuts: nodes or tensors that exits stand behind. heads: of each, "linear" or "convN"; all linear if none is given.

    samples: of the calibration data they learn from at most. l2: penalty of the regression that fits a linear head.
    epochs: over those for one with a convolution, on `threads` threads (sums depend on them); that needs PyTorch.
    """

    cuts: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    l2: float = option(1e-3, min=0.0, max=1e3)
    epochs: int = option(12, min=1, max=10_000)
    samples: int = option(MOST_SAMPLES, min=64, max=MOST_SAMPLES)
    threads: int = option(2, min=1, max=256)


def apply(graph: Graph, options: Exits, context: Context) -> Graph:
    """The graph with an exit behind each cut, the cheapest first, all with a confidence; the last is the network's own.

    Raises BadInput without calibration data, for a network that is no classifier or has several exits already, for a
    cut or a head that cannot be; MissingExtra where a head wants PyTorch.
    """
    if not options.cuts:
        return graph
    check_can_have_exits(graph)
    if options.heads and len(options.heads) != len(options.cuts):
        raise BadInput(f"exits: heads must be one per cut ({len(options.cuts)}), got {len(options.heads)}")
    kinds = dict(zip(options.cuts, options.heads or (LINEAR,) * len(options.cuts), strict=True))
    cuts = named_cuts(graph, options.cuts)
    kinds = {cut.tensor: kinds.get(cut.node) or kinds[cut.tensor] for cut in cuts}
    places = [place_of(graph, cut.tensor) for cut in cuts]
    data = context.samples("exits")
    maps = [bool(hidden_of(kinds[place.tensor])) and place.takes_convolution for place in places]
    with context.watch("answers to learn from", samples_seen(data, places, options.samples, maps)) as tick:
        seen = see(graph, places, data, tick, samples=options.samples, maps=maps)
    for cut, mine in zip(cuts, seen, strict=True):
        if mine.not_finite is not None:
            raise BadInput(
                f"--exits: what {cut.node!r} gives for {mine.not_finite} is not finite: no exit can stand there"
            )
    heads = [
        fit(kinds[place.tensor], place, mine, options, context)
        for place, mine in zip(places, seen, strict=True)
    ]
    return with_heads(graph, places, heads)


def fit(kind: str, place: Place, seen: Seen, options: Exits, context: Context) -> Head:
    """A head of this kind that learns what was seen. Raises BadInput, MissingExtra."""
    hidden = hidden_of(kind)
    if not hidden:
        return fit_linear(seen, options.l2, context.watch)
    if not place.takes_convolution:
        raise BadInput(
            f"exits: {place.tensor!r} has no positions that a convolution could read: take a linear head"
        )
    require_torch(f"a head such as {kind}")
    from edgekit.host.train.heads import fit_convolution

    window = ((1,) * (2 - len(place.window)) + place.window)[:2]
    return fit_convolution(
        seen, hidden, (window[0], window[1]), options.epochs, context.seed, options.threads, context.watch
    )


def with_heads(graph: Graph, places: Sequence[Place], heads: Sequence[Head]) -> Graph:
    """The graph with these heads as exits before its own."""
    model = graph.copy()
    (last,) = graph.exits
    output = values(model)[last.output]
    taken = set(values(model)) | {last.name}
    found = []
    for number, (place, head) in enumerate(zip(places, heads, strict=True), 1):
        name = f"exit{number}"
        while any(other == name or other.startswith(f"{name}/") for other in taken):
            name += "_"
        _Builder(model, name, graph.opset).add(values(model)[place.tensor], place, head, output)
        found.append(GraphExit(name, name))
    named = values(model)
    exits = (*found, last)
    model.graph.outputs[:] = [named[tensor] for entry in exits for tensor in entry.tensors]
    made = replace(graph.with_model(model), exits=exits)
    return confidence.apply(made, NoOptions(), Context())


class _Builder:
    """Adds the nodes of one head to a model."""

    def __init__(self, model: ir.Model, name: str, opset: int) -> None:
        self._graph, self._name, self._opset = model.graph, name, opset

    def add(self, source: ir.Value, place: Place, head: Head, like: ir.Value) -> None:
        """The head behind `source`; its answer is called as the exit, and has the shape and kind of `like`."""
        read = self._vector(source, place) if head.kernel is None else self._maps(source, place, head)
        weight, offset = self._constant("weight", head.weight), self._constant("offset", head.offset)
        ends = static_shape(like) == (1, head.weight.shape[1])
        softmax = next((op for op in ("Softmax", "LogSoftmax") if last_op(like) == op), None)
        names = ["linear", *(["probabilities"] if softmax else []), *([] if ends else ["shaped"])]
        called = dict(zip(names, [*(f"{self._name}/{name}" for name in names[:-1]), self._name], strict=True))
        answer = self._node("Gemm", [read, weight, offset], "linear", {}, called["linear"])
        if softmax:
            answer = self._node(softmax, [answer], "probabilities", {"axis": 1}, called["probabilities"])
        if not ends:
            shape = self._constant("shape", np.array(static_shape(like), np.int64))
            self._node("Reshape", [answer, shape], "shaped", {}, called["shaped"])

    def _vector(self, source: ir.Value, place: Place) -> ir.Value:
        """The average over positions: [1, channels]."""
        if not place.axes:
            return source
        if place.axes[0] == 1:  # channels last
            if self._opset >= _AXES_ARE_INPUTS:
                axes = self._constant("axes", np.array(place.axes, np.int64))
                return self._node("ReduceMean", [source, axes], "pool", {"keepdims": 0})
            return self._node("ReduceMean", [source], "pool", {"axes": place.axes, "keepdims": 0})
        return self._flat(self._node("GlobalAveragePool", [source], "pool"))

    def _maps(self, source: ir.Value, place: Place, head: Head) -> ir.Value:
        """Average and maximum of what the convolution makes: [1, 2 * hidden]."""
        if head.kernel is None or head.bias is None:
            raise BadInput(f"exits: the head behind {place.tensor!r} has no convolution")
        if math.prod(place.pool) > 1:
            by: _Attributes = {"kernel_shape": place.pool, "strides": place.pool}
            source = self._node("AveragePool", [source], "shrink", by)
        kernel = head.kernel.reshape(*head.kernel.shape[:2], *place.window)
        weights = [self._constant("kernel", kernel), self._constant("bias", head.bias)]
        around = [size // 2 for size in place.window]
        shape: _Attributes = {
            "kernel_shape": place.window,
            "strides": place.strides,
            "pads": around * 2,
        }
        maps = self._node("Relu", [self._node("Conv", [source, *weights], "conv", shape)], "relu")
        left = [
            (size + 2 * pad - window) // step + 1
            for size, pad, window, step in zip(place.pooled, around, place.window, place.strides, strict=True)
        ]
        average = self._node("GlobalAveragePool", [maps], "average")
        largest = self._node("MaxPool", [maps], "maximum", {"kernel_shape": left, "strides": left})
        return self._flat(self._node("Concat", [average, largest], "both", {"axis": 1}))

    def _flat(self, value: ir.Value) -> ir.Value:
        return self._node("Flatten", [value], "features", {"axis": 1})

    def _node(
        self,
        op: str,
        inputs: list[ir.Value],
        name: str,
        attributes: _Attributes | None = None,
        output: str = "",
    ) -> ir.Value:
        made = ir.node(op, inputs, attributes or {}, name=f"{self._name}/{name}")
        made.outputs[0].name = output or f"{self._name}/{name}"
        self._graph.append(made)
        return made.outputs[0]

    def _constant(self, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        called = f"{self._name}/{name}"
        value = ir.Value(name=called, const_value=ir.tensor(np.ascontiguousarray(array), name=called))
        value.dtype = ir.DataType.from_numpy(array.dtype)
        value.shape = ir.Shape(array.shape)
        self._graph.register_initializer(value)
        return value


PASS = Pass("exits", apply, min_sqnr_db=120.0, options=Exits, costly=True)
