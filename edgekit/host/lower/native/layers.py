"""Layers with weights: what they read, their borders, and the sums that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.host.graph import Graph, static_shape
from edgekit.host.lower.native.drafts import Held, Todo
from edgekit.host.lower.native.forms import Form, Forms, Pending, first_of
from edgekit.host.lower.native.geometry import (
    Geometry,
    array_of,
    conv_geometry,
    dense_geometry,
    sum_range,
)
from edgekit.host.lower.native.sources import (
    NotHere,
    Source,
    activation_name,
    source_of,
    stands_for,
)
from edgekit.host.lower.native.weights import Coded, coded
from edgekit.native import plan

_ENDS = {plan.U8: (0, 255), plan.I8: (-128, 127), plan.I32: (-(2**31), 2**31 - 1)}
_TWO_BYTES = 1 << 15
_WORD = 64  # bits that lie together: a pixel's channels fill whole words
_MAX_SUM = 2**31 - 1


class Layers(Forms):
    """Convolutions and dense layers."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.formats: dict[str, str] = {}
        self._borders: dict[ir.Value, tuple[tuple[int, ...], float]] = {}  # of explicit Pads: sizes, value

    def _layer(self, node: ir.Node) -> Form:
        value, geometry, found = _weights(node)
        border = self._borders.get(value)
        if border is None:
            source = self._readable(value, padded=any(geometry.pads))
        else:
            source = self._pending(value).source
            geometry = geometry.within(border[0])
        if geometry.dense and source.held.type == plan.BITS and source.held.h * source.held.w > 1:
            source = self._flat(source)  # its few channels would each fill a word of their own
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
        codes = found.codes(np.zeros(out_c, np.bool_))
        of = plan.Linear(codes, found.coding, geometry.kernel, geometry.stride, geometry.pads, pad)
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
        source = self._grid(first_of(node))
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


def _weights(node: ir.Node) -> tuple[ir.Value, Geometry, Coded]:
    """What a layer works on, its window, and its weights as few bits. Raises NotHere where they are none."""
    value, weight = node.inputs[0], node.inputs[1]
    if value is None or weight is None or weight.const_value is None or value.const_value is not None:
        raise NotHere("its weights are not constants")
    array = array_of(weight)
    geometry = conv_geometry(node, array) if node.op_type == "Conv" else dense_geometry(node, array)
    found = coded(geometry.weight)
    if isinstance(found, str):
        raise NotHere(found)
    return value, geometry, found
