"""The best way into int8: all of it or the fastest mix with float; closer answers; layers back to float for harm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit.core.errors import BadInput
from edgekit.host.formats import (
    NodeCosts,
    estimated_costs,
    fastest,
    gain,
    int8_nodes,
    keep_float,
    measured_costs,
    reasons,
)
from edgekit.host.graph import Graph
from edgekit.host.harm import layer_harm
from edgekit.host.lower.onnxruntime import NAME as PROFILED
from edgekit.host.passes import Step, run_steps, step
from edgekit.host.passes.quantize_static import Int8, is_quantized
from edgekit.host.sqnr import answers_of, sqnr_of
from edgekit.host.trail import Branch, slower
from edgekit.host.tried import Setting, Tried
from edgekit.host.work import layers

INT8, STORE = "quantize_static", "quantize_weights"
FASTER = 0.97  # of the float network's time: what int8 must at least gain to be worth its error, where it is measured
_VNNI = ("avx512vnni", "avxvnni", "amx_int8")
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_METHOD_SAMPLES = 128  # on which calibration methods are compared
_WORTH_MIXING = 0.05  # of the time: below it, a mix's own overhead eats what it should gain
_SPREAD = 3.0  # decades of the weight on harm that are searched, on either side
_CLOSER_DB = 0.3  # what an improvement must bring
_FLOAT = "float32: "
_HARMS = "in int8 it harms most for what it gains"


@dataclass(frozen=True)
class _Whole:
    """The network with all in int8 that can be: the candidate, the step that made it, what its nodes take."""

    tried: Tried
    step: Step
    costs: NodeCosts | None

    @property
    def graph(self) -> Graph:
        """In int8."""
        return self.tried.graph


def best_int8(branch: Branch) -> Tried | None:
    """The fastest candidate that does no harm; None where there is none, and `branch` says why."""
    setting, start = branch.setting, branch.start
    why_not = why_not_int8(setting, start.graph)
    if why_not is not None:
        branch.drop(INT8, why_not)
        return None
    try:
        taken, quantized = _best_method(setting, start)
        tried = branch.attempt(branch.called("int8"), (taken,), quantized)
    except BadInput as err:  # int8 is an offer: what it cannot do, float can
        branch.drop(INT8, str(err))
        return None
    costs = _costs(setting, start.graph, quantized)
    branch.stays.update(reasons(start.graph, quantized, frozenset(), costs))
    told = reasons(start.graph, quantized, int8_nodes(quantized), costs)
    whole = _Whole(replace(tried, why=told), taken, costs)
    best = _fastest(branch, [whole.tried, *_mixes(branch, whole)])
    if best is None:
        return None
    best = _closer(branch, best, setting.effort.improve)
    if branch.harm(best) is not None:
        return _less_harm(branch, whole, best)
    _say_what_stays(branch, best)
    return best


def why_not_int8(setting: Setting, graph: Graph) -> str | None:
    """A reason to leave int8 alone that needs no trial; None where there is none."""
    backend = setting.backend
    if is_quantized(graph):
        return "the model that came in is quantized already"
    if "int8" not in backend.fast_formats or backend.int8_activation is None:
        return f"int8 is not faster than float32 on {setting.profile.name} with {backend.name}"
    if not any(node.op_type in _PRODUCTS for node in graph.model.graph):
        return "the network multiplies nothing"
    return None


def _best_method(setting: Setting, start: Tried) -> tuple[Step, Graph]:
    """The calibration method whose answers stay closest to the float network's, and its graph."""
    activation = setting.backend.int8_activation or "uint8"
    reduce_range = activation == "uint8" and not set(_VNNI) & set(setting.profile.cpu.features)
    made = []
    for method in setting.effort.methods:
        taken = Step(INT8, Int8(activation, reduce_range, method))
        made.append((taken, run_steps(setting.plain, (*start.steps, taken), setting.context)))
    if len(made) == 1:
        return made[0]
    data = setting.data.calibration
    wanted = answers_of(start.graph, data, _METHOD_SAMPLES)
    return max(made, key=lambda each: sqnr_of(wanted, answers_of(each[1], data, _METHOD_SAMPLES)))


# --- speed -----------------------------------------------------------------------------------------------------------


def _costs(setting: Setting, plain: Graph, quantized: Graph) -> NodeCosts | None:
    """Every node's times: measured where this machine is the target, else estimated; None: unknown.

    onnxruntime has the profiler: for another runtime its times are a hint which mixes to try, and say so.
    """
    if setting.here:
        costs = measured_costs(plain, quantized, setting.samples)
        own = setting.backend.name == PROFILED
        return costs if own else replace(costs, provenance=f"{costs.provenance} with {PROFILED}")
    return estimated_costs(plain, quantized, setting.profile)


def _mixes(branch: Branch, whole: _Whole) -> Iterator[Tried]:
    """Mixes of int8 and float that should be faster than int8 as a whole, each worked out from the one before."""
    setting, plain, costs = branch.setting, branch.start.graph, whole.costs
    seen = {int8_nodes(whole.graph)}
    for attempt in range(setting.effort.refine + 1):
        if costs is None:
            return
        chosen = fastest(plain, whole.graph, costs)
        if chosen in seen or not chosen or gain(plain, whole.graph, costs, chosen) < _WORTH_MIXING:
            return
        seen.add(chosen)
        mixed = _mix(branch, whole, chosen, reasons(plain, whole.graph, chosen, costs))
        if mixed is None:
            return
        yield mixed
        if attempt < setting.effort.refine and setting.here:
            costs = _refined(costs, measured_costs(plain, mixed.graph, setting.samples), chosen)


def _refined(old: NodeCosts, new: NodeCosts, in_int8: frozenset[str]) -> NodeCosts:
    """What the nodes took in the mix, where they were in int8 there."""
    updated = {name: ms for name, ms in new.in_int8.items() if name in in_int8}
    return replace(old, in_int8={**old.in_int8, **updated})


def _mix(
    branch: Branch, whole: _Whole, chosen: frozenset[str], why: Mapping[str, str], *more: Step
) -> Tried | None:
    """The network with these nodes in int8 and the others in float; None where it cannot be written."""
    able = int8_nodes(whole.graph)
    label = branch.trail.free(branch.called(f"int8 in {len(chosen & able)} of {len(able)} layers"))
    kept = keep_float(branch.start.graph, chosen)
    mixed = Step(whole.step.name, replace(whole.step.options, keep_float=kept))
    return branch.offer(label, (mixed, *more), why, label)


def _fastest(branch: Branch, candidates: Sequence[Tried]) -> Tried | None:
    """The fastest; None, and noted, where none is faster than float."""
    if not candidates:
        return None
    first, *rest = branch.timed(*candidates)
    best = min(rest, key=lambda entry: math.inf if entry.ratio is None else entry.ratio)
    needed = FASTER if best.provenance != "estimated" else 1.0
    for entry in rest:
        if entry.problem is not None or (entry.ratio is not None and entry.ratio > needed):
            more = (
                ""
                if needed == 1 or entry.problem
                else f": int8 must gain at least {100 * (1 - needed):.0f} %"
            )
            branch.trail.against[entry.label] = f"{slower(entry, first)}{more}"
    if best.ratio is not None and best.ratio > needed:
        branch.drop(INT8, f"it is {slower(best, first)}")
        return None
    return best


def _say_what_stays(branch: Branch, best: Tried) -> None:
    """One line for each layer that could be int8 and is not."""
    for name, why in best.why.items():
        if why.startswith(_FLOAT) and (" us in float32" in why or why.startswith(_FLOAT + _HARMS)):
            branch.drop(INT8, why.removeprefix(_FLOAT), name)


# --- accuracy --------------------------------------------------------------------------------------------------------


def _closer(branch: Branch, plain: Tried, improve: Sequence[Sequence[str]]) -> Tried:
    """The candidate with whatever brings its answers closer to the float network's, at the same speed."""
    formats, best = plain.steps[len(branch.start.steps) :], plain
    for names in improve:
        label = f"{plain.label}, {', '.join(names)}"
        found = branch.offer(label, tuple(_around(names, formats)), plain.why, ", ".join(names))
        if found is None:
            continue
        found = branch.trail.add(
            replace(found, latency_ms=plain.latency_ms, ratio=plain.ratio, provenance=plain.provenance)
        )
        if _is_closer(found, best):
            branch.trail.against[best.label] = "the same with a correction is closer"
            best = found
        else:
            points = None if found.lost is None or best.lost is None else best.lost - found.lost
            worse = "" if points is None else f", {points:+.2f} points"
            against = f"brings nothing: {found.sqnr_db:.1f} dB against {best.sqnr_db:.1f}{worse}"
            branch.trail.against[label] = against
    return best


def _around(names: Sequence[str], formats: Sequence[Step]) -> Iterator[Step]:
    """The steps that improve, each where it belongs: before the formats, or after them."""
    int8 = next(entry.options for entry in formats if entry.name == INT8)
    same = {
        "reduce_range": int8.reduce_range,
        "keep_float": int8.keep_float,
    }  # the grid that int8 finds again
    yield from (
        step(name, **(same if name == "adaround" else {})) for name in names if name != "bias_correction"
    )
    yield from formats
    yield from (step(name) for name in names if name == "bias_correction")


def _is_closer(one: Tried, other: Tried) -> bool:
    if one.lost is not None and other.lost is not None and one.lost > other.lost + 2 * one.lost_error:
        return False
    return one.sqnr_db > other.sqnr_db + _CLOSER_DB


def _less_harm(branch: Branch, whole: _Whole, best: Tried) -> Tried | None:
    """Layers back to float, those first that harm most for what they gain, until the answers are good enough.

    The weight on harm is bisected: each weight has one best assignment of formats (see assign).
    """
    setting, plain = branch.setting, branch.start.graph
    against = branch.trail.against[best.label] = branch.harm(best) or ""
    if not setting.effort.bisections:
        branch.drop(INT8, against)
        return None
    harm = {
        name: 10 ** (-(found.local_sqnr_db if found.output_sqnr_db is None else found.output_sqnr_db) / 10)
        for name, found in layer_harm(plain, whole.graph, setting.samples).items()
    }
    costs = whole.costs or _by_work(plain, whole.graph)
    total_ms, total_harm = sum(costs.in_float.values()), sum(harm.values())
    helped = [
        names for names in setting.effort.improve if _has(best, names)
    ]  # what did not help whole is not tried
    accepted: list[Tried] = []
    good: dict[frozenset[str], bool] = {frozenset(): True}  # all in float harms nothing
    low, high = -_SPREAD, _SPREAD  # too little weight on harm, and enough for all to be float
    for _ in range(setting.effort.bisections if total_harm and total_ms else 0):
        middle = (low + high) / 2
        chosen = fastest(plain, whole.graph, costs, harm, 10**middle * total_ms / total_harm)
        if chosen not in good:
            told = _told(plain, whole, chosen, harm, costs)
            mixed = _mix(
                branch, whole, chosen, told, step(STORE)
            )  # its float weights small, that harm counted in
            mixed = None if mixed is None else _closer(branch, mixed, helped)
            good[chosen] = mixed is not None and branch.harm(mixed) is None
            if mixed is not None and good[chosen]:
                accepted.append(mixed)
            elif mixed is not None:
                branch.trail.against[mixed.label] = branch.harm(mixed) or ""
        low, high = (low, middle) if good[chosen] else (middle, high)
    if not accepted:
        branch.drop(INT8, against)
        return None
    found = _fastest(branch, accepted)
    if found is not None:
        _say_what_stays(branch, found)
    return found


def _has(tried: Tried, names: Sequence[str]) -> bool:
    """Whether it was improved by just these steps."""
    improving = {entry.name for entry in tried.steps} & {"bias_correction", "equalize", "adaround"}
    return improving == set(names)


def _told(
    plain: Graph, whole: _Whole, chosen: frozenset[str], harm: Mapping[str, float], costs: NodeCosts
) -> dict[str, str]:
    """The reasons for a mix whose float layers are float because they harm."""
    harmful = {
        name: f"{_FLOAT}{_HARMS} ({-10 * math.log10(max(harm[name], 1e-20)):.0f} dB)"
        for name in int8_nodes(whole.graph) - chosen
        if name in harm
    }
    return {**reasons(plain, whole.graph, chosen, costs), **harmful}


def _by_work(plain: Graph, quantized: Graph) -> NodeCosts:
    """Where no time is known: multiply-accumulates for time, half of it in int8."""
    work = {layer.name: float(layer.macs + 1) for layer in layers(plain.model)}
    half = {layer.name: 0.5 * work.get(layer.name, 0.0) for layer in layers(quantized.model)}
    return NodeCosts(work, half, 0.0, 0.0, "estimated")
