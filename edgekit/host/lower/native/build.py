"""Walk a graph of standard operators and write the plan that computes the same on bits and small integers.

What a tensor may hold is found out, not believed: a quantizer is whatever turns every number that can come into few
values on a grid. So networks from any exporter go the same way, once their quantizers are standard operators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgekit.host.graph import Graph, static_shape
from edgekit.host.lower.native.chain import ELEMENTWISE, POOL, WIDENING
from edgekit.host.lower.native.drafts import Held, PlanDraft
from edgekit.host.lower.native.forms import Form, Pending, first_of
from edgekit.host.lower.native.geometry import (
    VIEWS,
    array_of,
    ints_of,
    pooled_size,
    pools_of,
)
from edgekit.host.lower.native.layers import Layers
from edgekit.host.lower.native.reductions import Reductions
from edgekit.host.lower.native.sources import (
    NotHere,
    source_of,
)
from edgekit.native import plan

_BYTES = {"uint8": (plan.U8, 0, 255), "int8": (plan.I8, -128, 127)}
_SUMS = frozenset(("Conv", "Gemm", "MatMul"))


@dataclass(frozen=True)
class Reading:
    """What became of a graph. refused: node -> why it is in no plan. formats: layer -> "w1a1"."""

    draft: PlanDraft
    inputs: tuple[Held, ...]
    refused: Mapping[str, str]
    formats: Mapping[str, str]


def read(graph: Graph) -> Reading:
    """The graph's plan as far as there is one. The graph's weights must be constants (pass `constants`)."""
    reader = _Reader(graph)
    reader.walk()
    return Reading(reader.draft, tuple(reader.inputs), reader.refused, reader.formats)


class _Reader(Layers, Reductions):
    """One walk over one graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.inputs: list[Held] = []
        self.refused: dict[str, str] = {}

    def walk(self) -> None:
        """Every node in order, then the outputs."""
        for entry, value in zip(self.graph.inputs, self.graph.model.graph.inputs, strict=True):
            self._forms[value] = self._input(value, entry.layout)
        for node in self.graph.model.graph:
            self._visit(node)
        for exit_ in self.graph.exits:
            for name in exit_.tensors:
                self._output(name)
        self.draft.prune()
        self.draft.share()
        self.draft.fuse()

    # --- borders ----------------------------------------------------------------------------------------------------

    def _input(self, value: ir.Value, layout: str) -> Form:
        shape, dtype = static_shape(value) or (), str(value.dtype.numpy()) if value.dtype else ""
        if not 2 <= len(shape) <= 4 or shape[0] != 1 or dtype not in (*_BYTES, "float32"):
            return f"it is {dtype} {list(shape)}; a plan takes one image or vector of float32, uint8 or int8"
        if max(shape) == math.prod(shape):  # one vector, however many axes it has
            shape, places = (1, math.prod(shape)), np.arange(math.prod(shape)).reshape(shape)
        else:
            places = None
        first = len(shape) == 2 or layout != "NHWC"
        channels = shape[1] if first else shape[-1]
        sides = shape[2:] if first else shape[1:-1]
        h, w = (*[1] * (2 - len(sides)), *sides)
        type_, low, high = _BYTES.get(dtype, (plan.F32, 0, 0))
        held = Held(
            type_, h, w, channels, 0, value.name or "", is_input=True, channels_first=first and h * w > 1
        )
        self.inputs.append(held)
        last = np.arange(held.count).reshape(h, w, channels)
        if places is None:
            places = (last.transpose(2, 0, 1) if first else last).reshape(shape)
        return Pending(source_of(held, 1.0, 0.0, low, high, places, real=dtype == "float32"), value)

    def _output(self, name: str) -> None:
        value = next(v for v in self.graph.model.graph.outputs if v.name == name)
        form = self._forms.get(value, "it is a constant")
        try:
            if isinstance(form, str):
                if self.refused:  # what is in the way is named already
                    return
                raise NotHere(form)
            if value.dtype != ir.DataType.FLOAT:
                raise NotHere(f"it is {value.dtype}, the outputs of a plan are float32")
            source = self._floats(value, form)
            held = source.held
            if held.h * held.w > 1 or math.prod(static_shape(value) or ()) != held.count:
                raise NotHere("an output of a plan is one vector")
            if not np.array_equal(source.places.ravel(), np.arange(held.count)):
                raise NotHere("its elements stand in another order than the layer makes them")
            self.draft.outputs[name] = held
        except NotHere as err:
            self.refused.setdefault(f"output {name}", str(err))

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _visit(self, node: ir.Node) -> None:
        data = [value for value in node.inputs if value is not None and value.const_value is None]
        broken = next((form for value in data if isinstance(form := self._forms.get(value, "?"), str)), None)
        made: Form
        if broken is not None:
            made = broken
        else:
            try:
                made = self._form(node, data)
            except NotHere as err:
                name = node.name or node.op_type
                self.refused[name] = str(err)
                made = f"it needs {name}"
        first, *more = node.outputs
        self._forms[first] = made
        for value in more:
            self._forms[value] = f"{node.op_type} gives one result in a plan, this is another one"

    def _form(self, node: ir.Node, data: Sequence[ir.Value]) -> Form:
        kind = node.op_type
        if not data or node.domain:
            why = (
                "has no operator in a plan" if node.domain or not node.inputs else "works on constants alone"
            )
            raise NotHere(f"{kind} {why}")
        if _is_training(node):
            raise NotHere(f"{kind} as in training has no operator in a plan")
        if kind in _SUMS:
            return self._layer(node)
        if kind == "Softmax":
            return self._softmaxed(node)
        if kind == "ReduceMax" and node.inputs[0] in self._softmax:
            return self._confidence(node)
        if kind in ("AveragePool", "GlobalAveragePool", "ReduceMean"):
            return self._average(node)
        if kind == "Pad":
            return self._padded(node)
        if kind in ("Add", "Sum") and len(data) == len(node.inputs) == 2:
            return self._both(node, data) or self._added(node, data)
        if kind in VIEWS and not (kind in WIDENING and self._continues(node)):
            return self._viewed(node)
        if kind in ELEMENTWISE or kind in WIDENING or kind == POOL:
            return self._continued(node, data)
        raise NotHere(f"{kind} has no operator in a plan")

    def _both(self, node: ir.Node, data: Sequence[ir.Value]) -> Form | None:
        """Two functions of the same number are one function of it."""
        forms = [self._pending(value) for value in data]
        alike = forms[0].root is forms[1].root and pools_of(forms[0].nodes) == pools_of(forms[1].nodes)
        return self._joined(node, forms) if alike and any(form.nodes for form in forms) else None

    def _continues(self, node: ir.Node) -> bool:
        """Whether an Unsqueeze or Squeeze belongs to a comparison with many thresholds rather than to a view."""
        value = node.outputs[0]
        if node.op_type == "Squeeze":
            return False
        return node.op_type == "Unsqueeze" and all(
            reader.op_type in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sub")
            for reader in value.consumers()
        )

    def _continued(self, node: ir.Node, data: Sequence[ir.Value]) -> Form:
        forms = [self._pending(value) for value in dict.fromkeys(data)]
        first = forms[0]
        if any(
            form.root is not first.root or pools_of(form.nodes) != pools_of(first.nodes) for form in forms
        ):
            raise NotHere(f"{node.op_type} of two different tensors has no operator in a plan")
        form = self._joined(node, forms)
        return self._pooled(form, node) if node.op_type == POOL else form

    def _pooled(self, form: Pending, node: ir.Node) -> Form:
        if not form.source.natural:
            raise NotHere("MaxPool of a tensor whose axes were moved")
        shape = static_shape(node.outputs[0]) or ()
        source = form.source
        h, w = pooled_size(source.held, pools_of(form.nodes))
        if len(node.outputs) > 1 or (1, source.held.c, *((h, w) if len(shape) == 4 else (w,))) != shape:
            raise NotHere("MaxPool with padding, dilation or ceil_mode")
        return form

    def _viewed(self, node: ir.Node) -> Form:
        value = first_of(node)
        form = self._pending(value)
        if value in self._softmax:
            self._softmax[node.outputs[0]] = self._softmax[value]
        source = form.source
        if node.op_type in ("Identity", "Dropout"):
            return self._joined(node, [form]) if form.nodes else Pending(source, node.outputs[0])
        if form.nodes:
            source = self._grid_or_floats(value, form)
        shape = static_shape(node.outputs[0])
        if shape is None:
            raise NotHere("its shape is not known")
        if node.op_type == "Transpose":
            places = source.places.transpose(ints_of(node, "perm", tuple(range(source.places.ndim))[::-1]))
        elif math.prod(shape) != source.places.size:
            raise NotHere(f"{node.op_type} repeats values")
        else:
            places = source.places.reshape(shape)
        return Pending(replace(source, places=places), node.outputs[0])


def _is_training(node: ir.Node) -> bool:
    """Whether it computes with the batch's own statistics, or drops numbers."""
    mode = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    if mode is not None:
        return mode.const_value is None or bool(array_of(mode).any())
    return node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) != 0
