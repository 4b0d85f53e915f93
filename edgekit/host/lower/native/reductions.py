"""Operators that put numbers together: means, sums of two tensors, softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.host.graph import Graph, static_shape
from edgekit.host.lower.native import steps
from edgekit.host.lower.native.drafts import Held, Todo
from edgekit.host.lower.native.forms import Form, Forms, Pending, first_of
from edgekit.host.lower.native.geometry import (
    mean_channels,
    pooled_size,
    pools_of,
    window_of,
)
from edgekit.host.lower.native.sources import (
    NotHere,
    Source,
    source_of,
)
from edgekit.native import plan

_MAX_SUM = 2**31 - 1
_SOFTMAX_OF_ONE_AXIS = 13  # the opset; before it Softmax took all axes from its own on


class Reductions(Forms):
    """Means, residual sums, softmax and its largest probability."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._softmax: dict[ir.Value, Held] = {}

    def _average(self, node: ir.Node) -> Form:
        value = first_of(node)
        source = self._summable(value)
        held, shape = source.held, static_shape(node.outputs[0]) or ()
        if node.op_type != "ReduceMean" and not source.natural:
            raise NotHere(f"{node.op_type} of a tensor whose axes were moved")
        kernel, stride = window_of(node) if node.op_type == "AveragePool" else ((held.h, held.w), (1, 1))
        h, w = pooled_size(held, [(kernel, stride)])
        if h * w * held.c != math.prod(shape):
            raise NotHere("AveragePool with padding or ceil_mode")
        area = kernel[0] * kernel[1]
        sums = Held(plan.I32, h, w, held.c)
        self.draft.add(Todo(plan.SUM, (held,), sums, plan.Window(kernel, stride), node.name or ""))
        if node.op_type == "ReduceMean":
            places = mean_channels(node, source).reshape(shape)
        else:
            places = np.arange(sums.count).reshape(h, w, held.c).transpose(2, 0, 1).reshape(shape)
        made = Source(
            *(sums, source.scale / area, source.offset, source.low * area, source.high * area, places),
            every=2 if held.coding == plan.BIPOLAR else source.every,
        )
        return Pending(made, node.outputs[0])

    def _summable(self, value: ir.Value) -> Source:
        """The value as integers that can be added up over places: each channel has a scale and an offset."""
        form = self._pending(value)
        if form.source.real:
            return self._grid(value)
        if not form.nodes:
            return form.source
        line = None if pools_of(form.nodes) else self._straight(form, value)
        if line is None:
            return self._grid(value)
        return replace(form.source, scale=line.scale, offset=line.bias)

    def _added(self, node: ir.Node, data: Sequence[ir.Value]) -> Form:
        """Two tensors: as integers where they lie on one grid, else as floats."""
        shape = static_shape(node.outputs[0]) or ()
        if any(static_shape(value) != shape for value in data):
            raise NotHere("Add of tensors of different shapes")
        try:
            first, second = (self._whole(value) for value in data)
            same = bool(np.allclose(first.scale, second.scale, rtol=steps.ROUNDING, atol=0.0))
        except NotHere:
            same = False
        if not same:
            first, second = (self._floats(value, self._pending(value)) for value in data)
        shapes = {(side.held.h, side.held.w, side.held.c) for side in (first, second)}
        if len(shapes) > 1 or not np.array_equal(first.places, second.places):
            raise NotHere("Add of tensors whose elements stand in different orders")
        held = first.held
        made = Held(plan.F32 if first.real else plan.I32, held.h, held.w, held.c)
        self.draft.add(Todo(plan.ADD, (held, second.held), made, None, node.name or ""))
        low, high = first.low + second.low, first.high + second.high
        if max(-int(low.min()), int(high.max())) > _MAX_SUM:
            raise NotHere("its sums exceed 32 bits")
        every = math.gcd(first.every, second.every)
        source = Source(made, first.scale, first.offset + second.offset, low, high, first.places, every=every)
        if first.real:
            source = source_of(made, 1.0, 0.0, 0, 0, first.places, real=True)
        return Pending(source, node.outputs[0])

    def _softmaxed(self, node: ir.Node) -> Form:
        value = first_of(node)
        source = self._floats(value, self._pending(value))
        shape, axis = static_shape(value) or (1,), node.attributes.get_int("axis", -1)
        if "axis" not in node.attributes and self.graph.opset < _SOFTMAX_OF_ONE_AXIS:
            axis = 1
        over = shape[axis] if self.graph.opset >= _SOFTMAX_OF_ONE_AXIS else math.prod(shape[axis:])
        if source.held.count != over or source.held.h * source.held.w > 1:
            raise NotHere("Softmax over more than one vector")
        held = source.held
        made = self.draft.add(
            Todo(plan.SOFTMAX, (held,), Held(plan.F32, 1, 1, held.c), None, node.name or "")
        )
        self._softmax[node.outputs[0]] = made
        return Pending(source_of(made, 1.0, 0.0, 0, 0, source.places, real=True), node.outputs[0])

    def _confidence(self, node: ir.Node) -> Form:
        probabilities = first_of(node)
        if math.prod(static_shape(node.outputs[0]) or (0,)) != 1:
            raise NotHere("ReduceMax of a softmax over other axes than its own")
        softmax = next(todo for todo in self.draft.todos if todo.output is self._softmax[probabilities])
        made = Held(plan.F32, 1, 1, 1)
        self.draft.add(Todo(plan.CONFIDENCE, softmax.inputs, made, None, node.name or ""))
        return Pending(source_of(made, 1.0, 0.0, 0, 0, np.zeros(1, np.int64), real=True), node.outputs[0])
