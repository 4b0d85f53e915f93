"""A plan while it is being written: tensors and steps by reference, thresholds not yet merged into the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from edgekit.host.lower.native.steps import ALWAYS, NEVER
from edgekit.host.lower.native.weights import Coded
from edgekit.native import plan
from edgekit.native.plan import Linear, Parameters, Threshold


@dataclass(eq=False)
class Held:
    """A tensor of the plan to be. name: of inputs and outputs; several outputs may be one tensor."""

    type: int
    h: int
    w: int
    c: int
    coding: int = 0
    name: str = ""
    is_input: bool = False
    channels_first: bool = False

    @property
    def count(self) -> int:
        """Values in it."""
        return self.h * self.w * self.c


@dataclass(eq=False)
class Todo:
    """An operator of the plan to be. layer: the node of the graph it comes from. coded: the weights of a layer."""

    kind: int
    inputs: tuple[Held, ...]
    output: Held
    of: Parameters = None
    layer: str = ""
    coded: Coded | None = None


@dataclass
class PlanDraft:
    """All steps, in an order in which they can run; outputs by the name that the graph gives them."""

    todos: list[Todo] = field(default_factory=list)
    outputs: dict[str, Held] = field(default_factory=dict)

    def add(self, todo: Todo) -> Held:
        """Append a step; what it makes."""
        self.todos.append(todo)
        return todo.output

    def readers(self, tensor: Held) -> list[Todo]:
        """Steps that read a tensor."""
        return [todo for todo in self.todos if tensor in todo.inputs]

    def prune(self) -> None:
        """Leave out what no output needs."""
        needed = set(map(id, self.outputs.values()))
        kept = []
        for todo in reversed(self.todos):
            if id(todo.output) in needed:
                kept.append(todo)
                needed.update(map(id, todo.inputs))
        self.todos = kept[::-1]

    def share(self) -> None:
        """Do once what two steps do: then bits go from stage to stage, not the sums that both made them of."""
        known: dict[tuple[object, ...], Held] = {}
        same: dict[int, Held] = {}
        kept = []
        for todo in self.todos:
            todo.inputs = tuple(same.get(id(held), held) for held in todo.inputs)
            first = known.setdefault(_what(todo), todo.output)
            if first is todo.output:
                kept.append(todo)
            else:
                same[id(todo.output)] = first
        self.todos = kept
        self.outputs = {name: same.get(id(held), held) for name, held in self.outputs.items()}

    def fuse(self) -> None:
        """Merge thresholds and scales into the layer whose sums nobody else reads."""
        for todo in tuple(self.todos):
            if todo.kind != plan.LINEAR or todo.output in self.outputs.values():
                continue
            readers = self.readers(todo.output)
            if len(readers) == 1 and _merged(todo, readers[0]):
                self.todos.remove(readers[0])


def _what(todo: Todo) -> tuple[object, ...]:
    """What a step does, as something that equal steps have in common."""
    of = () if todo.of is None else tuple(_value(getattr(todo.of, entry.name)) for entry in fields(todo.of))
    out = todo.output
    made = (out.type, out.h, out.w, out.c, out.coding)
    return (todo.kind, tuple(map(id, todo.inputs)), made, type(todo.of), of)


def _value(value: object) -> object:
    return (value.shape, str(value.dtype), value.tobytes()) if isinstance(value, np.ndarray) else value


def _merged(layer: Todo, reader: Todo) -> bool:
    """Let the layer do what its one reader does, if it can."""
    of, coded = layer.of, layer.coded
    if not isinstance(of, Linear) or coded is None:
        return False
    if reader.kind == plan.AFFINE and isinstance(reader.of, plan.Affine):
        layer.of = replace(of, epilogue=plan.SCALED, scale=reader.of.scale, bias=reader.of.bias)
        layer.output = reader.output
        return True
    if (
        reader.kind != plan.THRESHOLD
        or reader.output.type != plan.BITS
        or not isinstance(reader.of, Threshold)
    ):
        return False
    falling, thresholds = reader.of.falling, reader.of.thresholds
    if falling is not None and falling.any():
        if not coded.negatable or (coded.coding == plan.INTEGER8 and (coded.values == -128).any()):
            return False
        thresholds = np.where(falling[:, None], _negated(thresholds), thresholds)
        of = replace(of, weights=coded.codes(falling))
    layer.of = replace(of, epilogue=plan.THRESHOLDS, thresholds=thresholds)
    layer.output = reader.output
    return True


def _negated(thresholds: plan.Array) -> plan.Array:
    """x <= t as -x >= -t; always and never stay what they are."""
    flipped = -thresholds.astype(np.int64)
    flipped = np.where(thresholds == ALWAYS, NEVER, np.where(thresholds == NEVER, ALWAYS, flipped))
    return flipped.astype(np.int32)


def finished(todos: Sequence[Todo], inputs: Sequence[Held], outputs: dict[str, Held]) -> plan.Plan:
    """Steps as a plan with these borders. An output that is an input, or has two names, is copied."""
    todos = list(todos)
    named: dict[int, str] = {}
    for name, held in outputs.items():
        source = held
        if id(held) in named or held in inputs:
            source = replace(held, is_input=False, channels_first=False)
            todos.append(Todo(plan.COPY, (held,), source))
        named[id(source)] = name
    order = [*inputs, *(todo.output for todo in todos)]
    index = {id(held): place for place, held in enumerate(order)}
    taken = set(map(id, inputs))
    tensors = tuple(
        plan.PlanTensor(
            held.type,
            held.h,
            held.w,
            held.c,
            coding=held.coding,
            is_input=id(held) in taken,
            is_output=id(held) in named,
            channels_first=held.channels_first and id(held) in taken,
            name=held.name if id(held) in taken else named.get(id(held), ""),
        )
        for held in order
    )
    operators = tuple(
        plan.Operator(
            todo.kind, tuple(index[id(held)] for held in todo.inputs), index[id(todo.output)], todo.of
        )
        for todo in todos
    )
    return plan.Plan(tensors, operators)
