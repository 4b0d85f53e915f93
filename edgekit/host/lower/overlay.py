"""Stage -> what an FPGA overlay runs, from bytes or bits to the last layer's sums, and what the CPU does around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Tensor
from edgekit.core.profile import Profile
from edgekit.host.lower.native.cut import StagePlan
from edgekit.host.overlay.plan_design import plan_for_overlay
from edgekit.native import plan
from edgekit.native.plan import Operator, Plan, PlanTensor
from edgekit.native.plan_door import outside_shape
from edgekit.runtime.overlay.design import Design

_ELEMENTWISE = (plan.THRESHOLD, plan.COPY)
_SHIFT = 128  # from int8 codes to uint8


@dataclass(frozen=True)
class OverlayStage:
    """A stage for the overlay. front: makes bytes or bits of floats, None where no floats come in."""

    front: StagePlan | None
    overlay: StagePlan
    cpu: StagePlan
    design: Design


def for_overlay(stages: Sequence[StagePlan], profile: Profile, images_s: float | None) -> OverlayStage:
    """The network's one stage as plans for the CPU and one for the overlay, with a design that fits the board.

    images_s: throughput wanted at the profile's clock; None: the fastest that fits. Raises BadInput for what no overlay
    holds (early exits, more than one bit, residual sums), naming it, and for what does not fit, with the numbers.
    """
    if len(stages) != 1:
        raise BadInput(
            f"an overlay runs a network with one exit, this one has {len(stages)}: use --backend native, which runs "
            "every exit as a stage"
        )
    (stage,) = stages
    front, whole = _front(stage.plan)
    first, rest = _halves(whole)
    designed = plan_for_overlay(first, profile, images_s)
    border, inputs = _border(designed), stage.inputs
    made: StagePlan | None = None
    if front is not None:
        held = front.tensors[front.marked(outputs=True)[0]]
        inputs = (Tensor(held.name, "uint8", outside_shape(held)),)
        made = StagePlan(front, stage.inputs, inputs, ())
    return OverlayStage(
        made,
        StagePlan(designed, inputs, (border,), stage.steps),
        StagePlan(rest, (border,), stage.outputs, ()),
        Design.parse(designed.design),
    )


def _border(first: Plan) -> Tensor:
    """The sums, as they pass from one part to the other."""
    held = first.tensors[first.marked(outputs=True)[0]]
    return Tensor(held.name, "int32", (1, held.h, held.w, held.c))


def _front(whole: Plan) -> tuple[Plan | None, Plan]:
    """What makes bytes or bits of a float input, and the rest; None where no floats come in."""
    (source,) = whole.marked(outputs=False)
    first = next((i for i, operator in enumerate(whole.operators) if operator.kind == plan.LINEAR), 0)
    before, layer = whole.operators[:first], whole.operators[first]
    if whole.tensors[source].type != plan.F32 or any(step.kind not in _ELEMENTWISE for step in before):
        return None, whole
    border = layer.inputs[0]
    tensors, after = list(whole.tensors), whole.operators[first:]
    if tensors[border].type == plan.I8:
        before, after = _unsigned(before, after)
        for step in before:
            if tensors[step.output].type == plan.I8:
                tensors[step.output] = replace(tensors[step.output], type=plan.U8)
    outputs = {place: tensor.name for place, tensor in enumerate(tensors) if tensor.is_output}
    name = {border: f"{tensors[source].name}/codes"}
    return _part(tensors, before, {source: tensors[source].name}, name), _part(tensors, after, name, outputs)


def _unsigned(
    before: Sequence[Operator], after: Sequence[Operator]
) -> tuple[tuple[Operator, ...], tuple[Operator, ...]]:
    """Codes 128 larger, and the first layer's thresholds by as much as its sums grow."""
    layer, of = after[0], after[0].of
    if not isinstance(of, plan.Linear) or of.thresholds is None or any(of.pads):
        raise BadInput(
            "the overlay's first layer reads uint8 codes, this network's reads int8 and pads them or gives sums: use "
            "--backend native, or export the network with a uint8 input"
        )
    values = of.weights.astype(np.int64)
    if of.coding != plan.INTEGER8:
        values = np.array(plan.VALUES[of.coding])[of.weights]
    grown = of.thresholds + _SHIFT * values.reshape(len(values), -1).sum(axis=1)[:, None]
    ends = np.iinfo(np.int32)
    fixed = (of.thresholds == ends.min) | (of.thresholds == ends.max)
    moved = np.where(fixed, of.thresholds, grown).astype(np.int32)
    shifted = tuple(
        replace(step, of=replace(step.of, first=step.of.first + _SHIFT))
        if isinstance(step.of, plan.Threshold)
        else step
        for step in before
    )
    return shifted, (replace(layer, of=replace(of, thresholds=moved)), *after[1:])


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
