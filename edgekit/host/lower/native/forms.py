"""From a function that stands between two layers to the tensor that holds what it gives: bits, bytes, or floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, static_shape
from edgekit.host.lower.native import steps
from edgekit.host.lower.native.chain import Chain
from edgekit.host.lower.native.drafts import Held, PlanDraft, Todo
from edgekit.host.lower.native.geometry import (
    pooled_size,
    pools_of,
    window_of,
)
from edgekit.host.lower.native.sources import (
    NotHere,
    Source,
    alike,
    channel_of,
    domain_of,
    domain_of_any,
    grid_of,
    line_through,
    repeated,
    source_of,
)
from edgekit.host.lower.native.steps import Line, NotMonotone, Steps, Whole
from edgekit.native import plan
from edgekit.runtime.backends import Array

_ENDS = {plan.U8: (0, 255), plan.I8: (-128, 127)}
_FEWEST_AXES = 2


@dataclass(frozen=True, eq=False)
class Pending:
    """A value that nobody has asked for yet: the source, and the nodes on the way from it."""

    source: Source
    root: ir.Value
    nodes: tuple[ir.Node, ...] = ()


Found = TypeVar("Found", bound="Steps | Line | NDArray[np.bool_] | None")


Form = Pending | str  # str: why this value cannot be in a plan


class Forms:
    """What is known of a graph's values, and the steps written so far."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.draft = PlanDraft()
        self._forms: dict[ir.Value, Form] = {}
        self._made: dict[tuple[ir.Value, str], Source] = {}

    def _pending(self, value: ir.Value) -> Pending:
        form = self._forms[value]
        if isinstance(form, str):
            raise NotHere(form)
        return form

    def _joined(self, node: ir.Node, forms: Sequence[Pending]) -> Pending:
        nodes = tuple(dict.fromkeys(entry for form in forms for entry in form.nodes))
        return Pending(forms[0].source, forms[0].root, (*nodes, node))

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
        held, places = self._after_pools(form, value, source.held, np.zeros(source.held.c, np.bool_))
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
        held, places = self._after_pools(form, value, held, found.falling)
        return source_of(
            held, grid.scale, grid.offset, grid.low, grid.high, source.places if places is None else places
        )

    def _after_pools(
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
            smallest = self._falls(form, first_of(node), held.c) ^ falling
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


def first_of(node: ir.Node) -> ir.Value:
    """What the node works on."""
    value = node.inputs[0]
    if value is None:
        raise NotHere(f"{node.op_type} without an input")
    return value
