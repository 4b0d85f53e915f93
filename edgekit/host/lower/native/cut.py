"""Cut a plan's draft into one plan per exit, as split.py cuts a graph: bits are handed from stage to stage as bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.core.manifest import Tensor
from edgekit.host.lower.native.drafts import Held, PlanDraft, Todo, finished
from edgekit.native import plan
from edgekit.native.plan import Plan

_DTYPES = {plan.BITS: "uint8", plan.U8: "uint8", plan.I8: "int8", plan.I32: "int32", plan.F32: "float32"}


@dataclass(frozen=True)
class StagePlan:
    """What runs from one exit to the next. layers: the steps that came of the graph's nodes, for reports."""

    plan: Plan
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]  # the exit's tensors first, then what later stages need
    steps: tuple[Todo, ...]


def cut(
    draft: PlanDraft, inputs: Sequence[Held], shapes: Mapping[str, Tensor], exits: Sequence[Sequence[str]]
) -> tuple[StagePlan, ...]:
    """One plan per exit. shapes: inputs and outputs of the network by name. exits: each one's tensors, in order."""
    home = _homes(draft, exits)
    names = {id(held): held.name for held in inputs}
    stages = []
    for index, tensors in enumerate(exits):
        mine = [todo for todo in draft.todos if home[id(todo.output)] == index]
        made = {id(todo.output) for todo in mine}
        taken: dict[int, Held] = {}
        for todo in mine:
            taken.update((id(held), held) for held in todo.inputs if id(held) not in made)
        later = [todo for todo in draft.todos if home[id(todo.output)] > index]
        wanted = {id(held) for todo in later for held in todo.inputs}
        wanted.update(id(draft.outputs[name]) for following in exits[index + 1 :] for name in following)
        outputs = {name: draft.outputs[name] for name in tensors}
        taken.update((id(held), held) for held in outputs.values() if id(held) not in made)
        given = set(map(id, outputs.values()))
        for name, held in outputs.items():
            names.setdefault(id(held), name)
        for todo in mine:
            if id(todo.output) in wanted:
                names.setdefault(id(todo.output), f"stage{index}/{len(names)}")
                if id(todo.output) not in given:
                    outputs[names[id(todo.output)]] = todo.output
        order = [held for held in (*inputs, *(todo.output for todo in draft.todos)) if id(held) in taken]
        renamed = {id(held): _as_input(held, names[id(held)], held in inputs) for held in order}
        stages.append(_stage(mine, renamed, outputs, shapes))
    return tuple(stages)


def _stage(
    mine: Sequence[Todo], taken: Mapping[int, Held], outputs: Mapping[str, Held], shapes: Mapping[str, Tensor]
) -> StagePlan:
    """One stage's plan. taken: what it is given, as its inputs, by what they are elsewhere."""
    steps = [
        Todo(t.kind, tuple(taken.get(id(h), h) for h in t.inputs), t.output, t.of, t.layer, t.coded)
        for t in mine
    ]
    given = {name: taken.get(id(held), held) for name, held in outputs.items()}
    made = finished(steps, tuple(taken.values()), given)
    inputs = tuple(_border(held, shapes) for held in taken.values())
    return StagePlan(made, inputs, _in_order(made, given, shapes), tuple(mine))


def _homes(draft: PlanDraft, exits: Sequence[Sequence[str]]) -> dict[int, int]:
    """Tensor -> the first exit that needs the step which makes it."""
    maker = {id(todo.output): todo for todo in draft.todos}
    home: dict[int, int] = {}
    for index, tensors in enumerate(exits):
        stack = [id(draft.outputs[name]) for name in tensors]
        while stack:
            here = stack.pop()
            if here in maker and here not in home:
                home[here] = index
                stack.extend(map(id, maker[here].inputs))
    return home


def _as_input(held: Held, name: str, is_network: bool) -> Held:
    first = held.channels_first and is_network
    return Held(held.type, held.h, held.w, held.c, held.coding, name, is_input=True, channels_first=first)


def _border(held: Held, shapes: Mapping[str, Tensor]) -> Tensor:
    """How the tensor lies outside (see plan.h): in the network's own shape where it is one of its borders."""
    if held.name in shapes:
        return shapes[held.name]
    if held.type == plan.BITS:
        return Tensor(held.name, "uint8", (held.h, held.w, plan.PLANES[held.coding], (held.c + 7) // 8))
    return Tensor(held.name, _DTYPES[held.type], (1, held.h, held.w, held.c))


def _in_order(made: Plan, outputs: Mapping[str, Held], shapes: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The plan's outputs, in its order."""
    found = []
    for index in made.marked(outputs=True):
        tensor = made.tensors[index]
        held = outputs[tensor.name]
        found.append(_border(Held(held.type, held.h, held.w, held.c, held.coding, tensor.name), shapes))
    return tuple(found)
