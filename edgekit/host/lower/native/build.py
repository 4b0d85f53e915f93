"""Walk a graph of standard operators and write the plan that computes the same on bits and small integers.

What a tensor may hold is found out, not believed: a quantizer is whatever turns every number that can come into few
values on a grid. So networks from any exporter go the same way, once their quantizers are standard operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, static_shape
from edgekit.host.lower.native import steps
from edgekit.host.lower.native.chain import ELEMENTWISE, POOL, WIDENING, Chain
from edgekit.host.lower.native.drafts import Draft, Held, Todo
from edgekit.host.lower.native.geometry import (
    VIEWS,
    array_of,
    conv_geometry,
    dense_geometry,
    ints_of,
    mean_channels,
    pooled_size,
    pools_of,
    sum_range,
    window_of,
)
from edgekit.host.lower.native.sources import (
    NotHere,
    Source,
    activation_name,
    alike,
    channel_of,
    domain_of,
    domain_of_any,
    grid_of,
    line_through,
    repeated,
    source_of,
    stands_for,
)
from edgekit.host.lower.native.steps import Line, NotMonotone, Steps, Whole
from edgekit.host.lower.native.weights import Coded, coded
from edgekit.native import plan
from edgekit.runtime.backends import Array

_BYTES = {"uint8": (plan.U8, 0, 255), "int8": (plan.I8, -128, 127)}
_SUMS = frozenset(("Conv", "Gemm", "MatMul"))
_ENDS = {plan.U8: (0, 255), plan.I8: (-128, 127), plan.I32: (-(2**31), 2**31 - 1)}
_TWO_BYTES = 1 << 15
_WORD = 64  # bits that lie together: a pixel's channels fill whole words
_MAX_SUM = 2**31 - 1
_SOFTMAX_OF_ONE_AXIS = 13  # the opset; before it Softmax took all axes from its own on
_FEWEST_AXES = 2


@dataclass(frozen=True, eq=False)
class Pending:
    """A value that nobody has asked for yet: the source, and the nodes on the way from it."""

    source: Source
    root: ir.Value
    nodes: tuple[ir.Node, ...] = ()


Found = TypeVar("Found", bound="Steps | Line | NDArray[np.bool_] | None")
Form = Pending | str  # str: why this value cannot be in a plan


@dataclass(frozen=True)
class Reading:
    """What became of a graph. refused: node -> why it is in no plan. formats: layer -> "w1a1"."""

    draft: Draft
    inputs: tuple[Held, ...]
    refused: Mapping[str, str]
    formats: Mapping[str, str]


def read(graph: Graph) -> Reading:
    """The graph's plan as far as there is one. The graph's weights must be constants (pass `constants`)."""
    reader = _Reader(graph)
    reader.walk()
    return Reading(reader.draft, tuple(reader.inputs), reader.refused, reader.formats)


class _Reader:
    """One walk over one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.draft = Draft()
        self.inputs: list[Held] = []
        self.refused: dict[str, str] = {}
        self.formats: dict[str, str] = {}
        self._forms: dict[ir.Value, Form] = {}
        self._made: dict[tuple[ir.Value, str], Source] = {}
        self._softmax: dict[ir.Value, Held] = {}
        self._borders: dict[ir.Value, tuple[tuple[int, ...], float]] = {}  # of explicit Pads: sizes, value

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

    def _pending(self, value: ir.Value) -> Pending:
        form = self._forms[value]
        if isinstance(form, str):
            raise NotHere(form)
        return form

    def _both(self, node: ir.Node, data: Sequence[ir.Value]) -> Form | None:
        """Two functions of the same number are one function of it."""
        forms = [self._pending(value) for value in data]
        alike = forms[0].root is forms[1].root and pools_of(forms[0].nodes) == pools_of(forms[1].nodes)
        return self._joined(node, forms) if alike and any(form.nodes for form in forms) else None

    def _joined(self, node: ir.Node, forms: Sequence[Pending]) -> Pending:
        nodes = tuple(dict.fromkeys(entry for form in forms for entry in form.nodes))
        return Pending(forms[0].source, forms[0].root, (*nodes, node))

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
        value = _first(node)
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

    # --- layers -----------------------------------------------------------------------------------------------------

    def _layer(self, node: ir.Node) -> Form:
        value, weight = node.inputs[0], node.inputs[1]
        if value is None or weight is None or weight.const_value is None or value.const_value is not None:
            raise NotHere("its weights are not constants")
        array = array_of(weight)
        geometry = conv_geometry(node, array) if node.op_type == "Conv" else dense_geometry(node, array)
        found = coded(geometry.weight)
        if isinstance(found, str):
            raise NotHere(found)
        border = self._borders.get(value)
        if border is None:
            source = self._readable(value, padded=any(geometry.pads))
        else:
            source = self._pending(value).source
            geometry = geometry.within(border[0])
        if geometry.dense and source.held.type == plan.BITS and source.held.h * source.held.w > 1:
            source = self._flat(source)
        held = source.held
        geometry = geometry.on(source)
        found = replace(found, values=found.values.reshape(len(found.values), -1)[:, geometry.order])
        shaped = found.values.reshape(len(found.values), geometry.kernel[0], geometry.kernel[1], held.c)
        found = replace(found, values=shaped)
        pad = self._pad(source, geometry.pads, 0.0 if border is None else border[1])
        out_c = len(shaped)
        low, high = sum_range(shaped, source, padded=any(geometry.pads))
        if max(-int(low.min()), int(high.max())) > _MAX_SUM:
            raise NotHere("its sums exceed 32 bits")
        of = plan.Linear(
            found.codes(np.zeros(out_c, np.bool_)),
            found.coding,
            geometry.kernel,
            geometry.stride,
            geometry.pads,
            pad,
        )
        shape = static_shape(node.outputs[0]) or ()
        sums = self._sums(held, of, found, geometry.output(held), node.name or "")
        scale = found.scale * source.scale[0]
        whole = found.scale * shaped.reshape(out_c, -1).sum(axis=1) * source.offset[0]
        offset = whole + geometry.bias(node, out_c)
        places = np.arange(sums.count).reshape(sums.h, sums.w, out_c).transpose(2, 0, 1).reshape(shape)
        true_zeros = any(geometry.pads) and pad == plan.PAD_ZERO
        bits = found.coding == held.coding == plan.BIPOLAR and not true_zeros
        self.formats[node.name or ""] = f"{found.name}{activation_name(held)}"
        made = Source(sums, scale, offset, low, high, places, every=2 if bits else 1)
        return Pending(made, node.outputs[0])

    def _readable(self, value: ir.Value, *, padded: bool) -> Source:
        """What a layer can read: bits or bytes, or whole numbers of 16 bits, which it reads as two bytes each."""
        try:
            return self._grid(value, padded=padded)
        except NotHere:
            form = self._pending(value)
            source = form.source
            wide = source.held.type == plan.I32 and not form.nodes and source.uniform
            if not wide or padded or int(source.high.max()) - int(source.low.min()) >= _TWO_BYTES:
                raise
            return source

    def _sums(self, held: Held, of: plan.Linear, found: Coded, size: tuple[int, int], layer: str) -> Held:
        """Emit the layer; of 16-bit numbers n = 256 high + low it is 256 times the layer of high, and that of low."""

        def linear(source: Held, name: str) -> Held:
            out = Held(plan.I32, *size, len(of.weights))
            return self.draft.add(Todo(plan.LINEAR, (source,), out, of, name, found))

        if held.type != plan.I32:
            return linear(held, layer)
        high = self._scaled_whole(held, 1, 8, plan.I32)
        low = self._plus(held, self._scaled_whole(high, -256, 0, plan.I32))
        halves = [self._scaled_whole(part, 1, 0, type_) for part, type_ in ((high, plan.I8), (low, plan.U8))]
        return self._plus(
            self._scaled_whole(linear(halves[0], layer), 256, 0, plan.I32), linear(halves[1], "")
        )

    def _scaled_whole(self, held: Held, multiplier: int, shift: int, type_: int) -> Held:
        """(n * multiplier) >> shift."""
        ones = np.ones(held.c, np.int64)
        of = plan.Requantize(*_ENDS[type_], multiplier * ones, 0 * ones, shift * ones)
        return self.draft.add(Todo(plan.REQUANTIZE, (held,), Held(type_, held.h, held.w, held.c), of))

    def _plus(self, first: Held, second: Held) -> Held:
        return self.draft.add(Todo(plan.ADD, (first, second), Held(plan.I32, first.h, first.w, first.c)))

    def _flat(self, source: Source) -> Source:
        """Bits of an image as one vector, where its few channels would each fill a word of their own."""
        held = source.held
        if held.c % _WORD == 0:
            return source
        vector = Held(held.type, 1, 1, held.count, held.coding)
        self.draft.add(Todo(plan.COPY, (held,), vector))
        return source_of(
            *(vector, float(source.scale[0]), float(source.offset[0]), int(source.low.min())),
            *(int(source.high.max()), source.places),
        )

    def _padded(self, node: ir.Node) -> Form:
        """An explicit border: the convolutions that read it take it over."""
        source = self._grid(_first(node))
        sizes, with_, axes = (node.inputs[index] if index < len(node.inputs) else None for index in (1, 2, 3))
        usual = node.attributes.get_string("mode", "constant") == "constant" and axes is None
        if sizes is None or sizes.const_value is None or not usual or not source.natural:
            raise NotHere("Pad in a way that a convolution's own padding has not")
        if any(reader.op_type != "Conv" for reader in node.outputs[0].consumers()):
            raise NotHere("Pad before anything but a convolution")
        pads = tuple(int(size) for size in array_of(sizes))
        value = 0.0 if with_ is None else float(array_of(with_).ravel()[0])
        if any(pads[: len(pads) // 2][:2]) or any(pads[len(pads) // 2 :][:2]) or min(pads) < 0:
            raise NotHere("Pad of other axes than height and width")
        self._borders[node.outputs[0]] = (pads, value)
        return Pending(source, node.outputs[0])

    def _pad(self, source: Source, pads: Sequence[int], value: float) -> int:
        """What a plan's padding must hold so that it stands for `value`."""
        if not any(pads):
            return plan.PAD_ZERO
        scale, offset = float(source.scale[0]), float(source.offset[0])
        if stands_for(value, scale, offset, 0):
            return plan.PAD_ZERO
        if source.held.coding == plan.BIPOLAR:
            for number, pad in ((-1, plan.PAD_MINUS), (1, plan.PAD_PLUS)):
                if stands_for(value, scale, offset, number):
                    return pad
        raise NotHere(f"it pads with {value:g}, which is none of the values that its input can hold there")

    def _average(self, node: ir.Node) -> Form:
        value = _first(node)
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
        value = _first(node)
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
        probabilities = _first(node)
        if math.prod(static_shape(node.outputs[0]) or (0,)) != 1:
            raise NotHere("ReduceMax of a softmax over other axes than its own")
        softmax = next(todo for todo in self.draft.todos if todo.output is self._softmax[probabilities])
        made = Held(plan.F32, 1, 1, 1)
        self.draft.add(Todo(plan.CONFIDENCE, softmax.inputs, made, None, node.name or ""))
        return Pending(source_of(made, 1.0, 0.0, 0, 0, np.zeros(1, np.int64), real=True), node.outputs[0])

    # --- from functions to tensors ------------------------------------------------------------------------------------

    def _grid(self, value: ir.Value, *, padded: bool = False) -> Source:
        """The value as bits or bytes, as a layer reads it. Raises NotHere: it has other values.

        padded: 0 must be one of them.
        """
        source = self._quantized(value, self._pending(value), padded=padded)
        if source is None:
            raise NotHere("its input is not quantized: it takes more than 256 values, or values on no grid")
        return source

    def _whole(self, value: ir.Value) -> Source:
        """The value as integers of any size with one scale for all channels."""
        form = self._pending(value)
        if not form.nodes and not form.source.real and (form.source.scale == form.source.scale[0]).all():
            return form.source
        return self._grid(value)

    def _grid_or_floats(self, value: ir.Value, form: Pending) -> Source:
        found = self._quantized(value, form)
        return self._floats(value, form) if found is None else found

    def _quantized(self, value: ir.Value, form: Pending, *, padded: bool = False) -> Source | None:
        key = (value, "with 0" if padded else "")
        if key not in self._made:
            source = form.source
            if not form.nodes and source.is_grid:
                return source
            if not form.nodes and (source.real or not source.uniform):
                return None
            if not form.nodes:
                narrow = self._narrowed(source)
                if narrow is not None:
                    self._made[key] = narrow
                return narrow
            found = self._function(form, value)
            made = None
            if source.is_grid and found is not None:
                made = self._relabelled(value, form, found)
            shifted = made is not None and padded and made.offset[0] != 0 and made.held.type != plan.BITS
            if isinstance(found, Steps) and source.held.type != plan.BITS and (made is None or shifted):
                made = self._thresholded(value, form, found, as_bytes=shifted, padded=padded)
            if made is None:
                return None
            self._made[key] = made
        return self._made[key]

    def _narrowed(self, source: Source) -> Source | None:
        """Sums that fit into bytes, as bytes; None where they do not."""
        low, high = int(source.low.min()), int(source.high.max())
        type_, shift = (plan.I8, 0) if low >= -128 and high <= 127 else (plan.U8, min(0, low))
        if high - shift > 255:
            return None
        held = Held(type_, source.held.h, source.held.w, source.held.c)
        ones = np.ones(held.c, np.int64)
        ends = _ENDS[type_]
        self.draft.add(
            Todo(plan.REQUANTIZE, (source.held,), held, plan.Requantize(*ends, ones, -shift * ones, 0 * ones))
        )
        offset = source.offset + source.scale * shift
        return replace(source, held=held, offset=offset, low=source.low - shift, high=source.high - shift)

    def _relabelled(self, value: ir.Value, form: Pending, found: Steps | Line) -> Source | None:
        """The tensor that is there, standing for something else; None where that is no straight line."""
        source = form.source
        if isinstance(found, Steps):
            line = line_through(found, domain_of(source), source)
            if line is None:
                return None
            found = line
        if not (found.scale == found.scale[0]).all() or not (found.bias == found.bias[0]).all():
            return None
        held, places = self._afterpools_of(form, value, source.held, np.zeros(source.held.c, np.bool_))
        scale, offset = float(found.scale[0]), float(found.bias[0])
        return Source(
            *(held, np.full(held.c, scale), np.full(held.c, offset), source.low, source.high),
            source.places if places is None else places,
        )

    def _floats(self, value: ir.Value, form: Pending) -> Source:
        """The value as float32. Raises NotHere where it is no scaled sum."""
        key = (value, "floats")
        if key in self._made:
            return self._made[key]
        source = form.source
        if source.real and not form.nodes:
            return source
        line = Line(source.scale, source.offset)
        if form.nodes:
            straight = None if source.real or pools_of(form.nodes) else self._straight(form, value)
            quantized = self._quantized(value, form) if straight is None else None
            if straight is None and quantized is None:
                raise NotHere("its values are neither few levels nor a scaled sum")
            source = quantized or source
            line = straight or Line(source.scale, source.offset)
        self._made[key] = self._scaled(source, line)
        return self._made[key]

    def _scaled(self, source: Source, line: Line) -> Source:
        held = source.held
        made = Held(plan.F32, held.h, held.w, held.c)
        of = plan.Affine(
            *(np.broadcast_to(part, held.c).astype(np.float32) for part in (line.scale, line.bias))
        )
        self.draft.add(Todo(plan.AFFINE, (held,), made, of))
        return source_of(made, 1.0, 0.0, 0, 0, source.places, real=True)

    def _function(self, form: Pending, value: ir.Value) -> Steps | Line | None:
        """What the nodes make of the source's numbers, by channel of the source's tensor."""
        try:
            return self._asked(steps.steps_of, form, value)
        except NotMonotone:
            raise NotHere("what it is turned into goes up and down: no thresholds do that") from None

    def _straight(self, form: Pending, value: ir.Value) -> Line | None:
        """The same where it is a straight line in each channel."""
        return self._asked(steps.line_through, form, value)

    def _asked(
        self, ask: Callable[[Callable[[Array], Array], steps.Domain], Found], form: Pending, value: ir.Value
    ) -> Found:
        """Let `ask` find out what the chain does on all numbers that the source may hold."""
        chain, source = self._chain(form, value), form.source
        channels = len(source.low)
        by_channel = channel_of(source, static_shape(form.root) or ())
        try:
            if chain.is_alike:
                if source.real:
                    return repeated(ask(chain.over(1), steps.floats(1)), channels)
                return ask(chain.over(channels), domain_of(source))
            if by_channel is not None:
                order = np.argsort(by_channel)
                domain = steps.floats(channels) if source.real else domain_of(source)
                return ask(lambda numbers: chain(numbers[by_channel])[order], domain)
            return repeated(ask(alike(chain), domain_of_any(source)), channels)
        except ValueError:
            raise NotHere("what follows looks at more than one number at a time") from None
        except BadInput as err:
            raise NotHere(str(err)) from None

    def _chain(self, form: Pending, value: ir.Value) -> Chain:
        shape = static_shape(form.root) or ()
        if len(shape) < _FEWEST_AXES or shape[0] != 1:
            raise NotHere("a tensor whose first axis is not the batch")
        model = self.graph.model
        return Chain(
            form.root, value, form.nodes, len(shape), shape[1], model.opset_imports, model.ir_version
        ).upto(value)

    def _thresholded(
        self, value: ir.Value, form: Pending, found: Steps, *, as_bytes: bool, padded: bool
    ) -> Source | None:
        """Emit the thresholds, and the pools on what they give. None: its levels lie on no grid."""
        grid = grid_of(found.levels, as_bytes=as_bytes, with_zero=padded)
        if grid is None:
            return None
        source = form.source
        held = Held(grid.type, source.held.h, source.held.w, source.held.c, grid.coding)
        numbers = np.array([1]) if grid.coding == plan.BIPOLAR else np.arange(grid.low + 1, grid.high + 1)
        at = found.reaching(grid.offset + grid.scale * (numbers - 0.5))
        if source.real:
            thresholds: Array = steps.float_at(at)
            thresholds = np.where(
                at == steps.NEVER, np.inf, np.where(at == steps.ALWAYS, -np.inf, thresholds)
            ).astype(np.float32)
        else:
            thresholds = at.astype(np.int32)
        falling = found.falling if found.falling.any() else None
        of = plan.Threshold(thresholds, grid.low if grid.type != plan.BITS else 0, falling)
        self.draft.add(Todo(plan.THRESHOLD, (source.held,), held, of))
        held, places = self._afterpools_of(form, value, held, found.falling)
        return source_of(
            held, grid.scale, grid.offset, grid.low, grid.high, source.places if places is None else places
        )

    def _afterpools_of(
        self, form: Pending, value: ir.Value, held: Held, falling: NDArray[np.bool_]
    ) -> tuple[Held, Whole | None]:
        """Emit the pools of a chain on the codes that came of it; None: there were none, nothing moved.

        falling: channels whose codes fall as the source's numbers rise.
        """
        pools = self._chain(form, value).pools
        for node in pools:
            kernel, stride = window_of(node)
            h, w = pooled_size(held, [(kernel, stride)])
            smaller = Held(held.type, h, w, held.c, held.coding)
            smallest = self._falls(form, _first(node), held.c) ^ falling
            of = plan.Window(kernel, stride, smallest if smallest.any() else None)
            self.draft.add(Todo(plan.POOL, (held,), smaller, of, node.name or ""))
            held = smaller
        if not pools:
            return held, None
        places = np.arange(held.count).reshape(held.h, held.w, held.c).transpose(2, 0, 1)
        return held, places.reshape(static_shape(value) or ())

    def _falls(self, form: Pending, before: ir.Value, channels: int) -> NDArray[np.bool_]:
        """Channels in which the value that is pooled falls as the sums rise."""
        if not self._chain(form, before).nodes:
            return form.source.scale < 0 if not form.source.real else np.zeros(channels, np.bool_)
        try:
            return self._asked(steps.falling, form, before)
        except NotMonotone:
            raise NotHere("MaxPool of what goes up and down as the sums rise") from None


def _is_training(node: ir.Node) -> bool:
    """Whether it computes with the batch's own statistics, or drops numbers."""
    mode = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    if mode is not None:
        return mode.const_value is None or bool(array_of(mode).any())
    return node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) != 0


def _first(node: ir.Node) -> ir.Value:
    """What the node works on."""
    value = node.inputs[0]
    if value is None:
        raise NotHere(f"{node.op_type} without an input")
    return value
