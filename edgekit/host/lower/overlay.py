"""Stage -> two plans: what an FPGA overlay runs, down to the last layer's sums, and what the CPU makes of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Tensor
from edgekit.core.profile import Profile
from edgekit.host.lower.native.cut import StagePlan
from edgekit.host.overlay.plan_design import plan_for_overlay
from edgekit.native import plan
from edgekit.native.plan import Operator, Plan, PlanTensor
from edgekit.runtime.overlay.design import Design


@dataclass(frozen=True)
class OverlayStage:
    """A stage for the overlay. design: what stands in its first plan. steps: of the whole stage, for reports."""

    overlay: StagePlan
    cpu: StagePlan
    design: Design


def for_overlay(stages: Sequence[StagePlan], profile: Profile, images_s: float | None) -> OverlayStage:
    """The network's one stage in two plans, the first with a design that fits the board.

    images_s: throughput wanted at the profile's clock; None: the fastest that fits. Raises BadInput for what no overlay
    holds (early exits, more than one bit, residual sums), naming it, and for what does not fit, with the numbers.
    """
    if len(stages) != 1:
        raise BadInput(
            f"an overlay runs a network with one exit, this one has {len(stages)}: use --backend native, which runs "
            "every exit as a stage"
        )
    (stage,) = stages
    first, rest = _halves(stage.plan)
    designed = plan_for_overlay(first, profile, images_s)
    border = _border(designed)
    return OverlayStage(
        StagePlan(designed, stage.inputs, (border,), stage.steps),
        StagePlan(rest, (border,), stage.outputs, ()),
        Design.parse(designed.design),
    )


def _border(first: Plan) -> Tensor:
    """The sums, as they pass from one part to the other."""
    held = first.tensors[first.marked(outputs=True)[0]]
    return Tensor(held.name, "int32", (1, held.h, held.w, held.c))


def _halves(whole: Plan) -> tuple[Plan, Plan]:
    """Up to the last layer's sums, and everything behind it."""
    last = max(
        (i for i, operator in enumerate(whole.operators) if operator.kind == plan.LINEAR), default=None
    )
    if last is None:
        raise BadInput("the overlay runs layers with weights, this network has none")
    layer = whole.operators[last]
    of, sums = layer.of, layer.output
    if not isinstance(of, plan.Linear) or of.epilogue == plan.THRESHOLDS or whole.tensors[sums].is_input:
        raise BadInput("the overlay's last layer gives sums, this network's gives bits: use --backend native")
    made = whole.tensors[sums]
    name = f"{made.name or 'sums'}/sums"
    border = PlanTensor(plan.I32, made.h, made.w, made.c, name=name)
    tensors = (*whole.tensors, border)
    bare = replace(of, epilogue=plan.SUMS, scale=None, bias=None)
    index = len(whole.tensors)
    before = (*whole.operators[:last], Operator(plan.LINEAR, layer.inputs, index, bare))
    after = whole.operators[last + 1 :]
    if of.epilogue == plan.SCALED and of.scale is not None and of.bias is not None:
        after = (Operator(plan.AFFINE, (index,), sums, plan.Affine(of.scale, of.bias)), *after)
    else:
        after = (Operator(plan.COPY, (index,), sums), *after)
    outputs = {place: tensor.name for place, tensor in enumerate(whole.tensors) if tensor.is_output}
    inputs = {place: tensor.name for place, tensor in enumerate(whole.tensors) if tensor.is_input}
    return _part(tensors, before, inputs, {index: name}), _part(tensors, after, {index: name}, outputs)


def _part(
    tensors: Sequence[PlanTensor],
    operators: Sequence[Operator],
    inputs: Mapping[int, str],
    outputs: Mapping[int, str],
) -> Plan:
    """These operators as a plan of their own."""
    order = [*inputs, *(operator.output for operator in operators)]
    place = {old: new for new, old in enumerate(order)}
    kept = tuple(
        replace(
            tensors[old],
            is_input=old in inputs,
            is_output=old in outputs,
            channels_first=tensors[old].channels_first and old in inputs,
            name=inputs.get(old, outputs.get(old, "")),
        )
        for old in order
    )
    moved = tuple(
        Operator(
            operator.kind, tuple(place[old] for old in operator.inputs), place[operator.output], operator.of
        )
        for operator in operators
    )
    return Plan(kept, moved)
