"""Find the best way to make a bundle: each step is tried, measured on the target, and taken back where it does harm.

The order of work: int8 as a whole; the fastest mix of int8 and float that the nodes' own times suggest; what brings its
answers closer; layers back to float where the answers still suffer, most harm per gain first; weights of float layers
stored in few bits; smaller or fewer weights where a limit is still missed. Validation data alone decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.core.errors import BadInput, MissingExtra
from edgekit.core.report import Attempt, Dropped
from edgekit.host.formats import (
    NodeCosts,
    estimated_costs,
    fastest,
    float_weight_bytes,
    gain,
    int8_nodes,
    keep_float,
    measured_costs,
    reasons,
)
from edgekit.host.graph import Graph
from edgekit.host.harm import layer_harm
from edgekit.host.passes import Step, run_steps, step
from edgekit.host.passes.quantize_static import Int8, is_quantized
from edgekit.host.sqnr import answers_of, sqnr_of
from edgekit.host.tried import Setting, Tried, allowed, harm_of, timed, try_steps

INT8, STORE = "quantize_static", "quantize_weights"
FASTER = 0.97  # of the float network's time: what int8 must at least gain to be worth its error, where it is measured
NO_SLOWER = 1.02  # what counts as the same time
_VNNI = ("avx512vnni", "avxvnni", "amx_int8")
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_METHOD_SAMPLES = 128  # on which calibration methods are compared
_WORTH_MIXING = 0.05  # of the time: below it, a mix's own overhead eats what it should gain
_WORTH_STORING = 0.95  # of the size: below it, codes instead of floats pay
_SPREAD = 3.0  # decades of the weight on harm that are searched, on either side
_HARMS = "in int8 it harms most for what it gains"
_CLOSER_DB = 0.3  # what an improvement must bring


@dataclass(frozen=True)
class Found:
    """What was chosen, all that was tried with the reasons, and what was taken back."""

    chosen: Tried
    attempts: tuple[Attempt, ...]
    dropped: tuple[Dropped, ...]


@dataclass
class _Log:
    """What a search has tried so far, by label, why each was not taken, and what was taken back."""

    tried: dict[str, Tried] = field(default_factory=dict)
    against: dict[str, str] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    stays: dict[str, str] = field(default_factory=dict)  # node -> why it is float where int8 came to nothing

    def add(self, tried: Tried, against: str | None = None) -> Tried:
        """Note a candidate, or what is newly known of it."""
        self.tried[tried.label] = tried
        if against is not None:
            self.against[tried.label] = against
        return tried

    def attempts(self, chosen: Tried) -> tuple[Attempt, ...]:
        """All of it for the report; whatever nobody spoke against was simply not the best."""
        return tuple(
            entry.attempt(
                chosen=entry.label == chosen.label,
                why="chosen"
                if entry.label == chosen.label
                else self.against.get(entry.label, "another was better"),
            )
            for entry in self.tried.values()
        )


def search(setting: Setting, base: Sequence[Step] = ()) -> Found:
    """The best candidate there is. base: steps the user asked for (pruning, recovery), taken before anything else.

    Raises BadInput where a step of `base` cannot be taken; all other steps are offers.
    """
    log = _Log()
    stayed = log.add(try_steps(setting, "float32", (), None))
    chosen = _formats(setting, stayed, tuple(base), log)
    if not _meets(setting, chosen):
        chosen = _smaller(setting, stayed, tuple(base), chosen, log)
        if not base and not _meets(setting, chosen):
            chosen = _pruned(setting, stayed, chosen, log)
    return Found(chosen, log.attempts(chosen), tuple(log.dropped))


def follow(setting: Setting, steps: Sequence[Step]) -> Tried:
    """Make what a recipe says, measuring nothing. Raises BadInput where a step cannot be taken."""
    return try_steps(setting, "recipe", steps, None)


# --- formats ---------------------------------------------------------------------------------------------------------


def _formats(setting: Setting, stayed: Tried, base: tuple[Step, ...], log: _Log) -> Tried:
    """int8 where it is faster, float elsewhere, float's weights in few bits: the best of these upon `base`."""
    start = stayed if not base else log.add(try_steps(setting, _name(base), base, stayed))
    best = _int8(setting, stayed, start, log)
    if best is None:
        best = log.add(timed(setting, [stayed, start])[1]) if base else log.add(timed(setting, [stayed])[0])
        best = replace(best, why=log.stays)
        best = _float16(setting, stayed, start, log) or best
    return _stored(setting, stayed, best, log)


def _int8(setting: Setting, stayed: Tried, start: Tried, log: _Log) -> Tried | None:
    """The best way into int8 from `start`, None where there is none."""
    why_not = why_not_int8(setting, start.graph)
    if why_not is not None:
        log.dropped.append(Dropped("*", INT8, why_not))
        return None
    try:
        taken, quantized = _best_method(setting, start)
        label = _joined(start, "int8")
        whole = log.add(try_steps(setting, label, (*start.steps, taken), stayed, quantized, {}))
    except BadInput as err:  # int8 is an offer: what it cannot do, float can
        log.dropped.append(Dropped("*", INT8, str(err)))
        return None
    costs = _costs(setting, start.graph, quantized)
    log.stays = reasons(start.graph, quantized, frozenset(), costs)
    whole = replace(whole, why=reasons(start.graph, quantized, int8_nodes(quantized), costs))
    best = _fastest(setting, stayed, start, whole, taken, costs, log)
    if best is None:
        return None
    best = _closer(setting, stayed, start, best, log)
    if harm_of(setting, best) is not None:
        return _less_harm(setting, stayed, start, whole, best, costs, log)
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
    methods = setting.effort.methods
    made = []
    for method in methods:
        taken = Step(INT8, Int8(activation, reduce_range, method))
        made.append((taken, run_steps(setting.plain, (*start.steps, taken), setting.context)))
    if len(made) == 1:
        return made[0]
    data = setting.data.calibration
    wanted = answers_of(start.graph, data, _METHOD_SAMPLES)
    return max(made, key=lambda each: sqnr_of(wanted, answers_of(each[1], data, _METHOD_SAMPLES)))


def _costs(setting: Setting, plain: Graph, quantized: Graph) -> NodeCosts | None:
    """Every node's times: measured where this machine is the target, else estimated; None: unknown."""
    if setting.here:
        return measured_costs(plain, quantized, setting.samples)
    return estimated_costs(plain, quantized, setting.profile)


def _fastest(
    setting: Setting,
    stayed: Tried,
    start: Tried,
    whole: Tried,
    taken: Step,
    costs: NodeCosts | None,
    log: _Log,
) -> Tried | None:
    """The fastest of int8 as a whole and mixes with float; None where none is faster than float."""
    candidates = [whole]
    seen = {int8_nodes(whole.graph)}
    for attempt in range(setting.effort.refine + 1):
        if costs is None:
            break
        chosen = fastest(start.graph, whole.graph, costs)
        if chosen in seen or not chosen or gain(start.graph, whole.graph, costs, chosen) < _WORTH_MIXING:
            break
        seen.add(chosen)
        mixed = _mix(setting, stayed, start, whole, taken, chosen, costs, log)
        if mixed is None:
            break
        candidates.append(mixed)
        if attempt < setting.effort.refine and setting.here:
            costs = _refined(costs, measured_costs(start.graph, mixed.graph, setting.samples), chosen)
    first, *rest = timed(setting, [stayed, *candidates])
    log.add(first)
    measured = [log.add(entry) for entry in rest]
    best = min(measured, key=lambda entry: math.inf if entry.ratio is None else entry.ratio)
    needed = FASTER if best.provenance != "estimated" else 1.0
    for entry in measured:
        if entry.problem is not None:
            log.against[entry.label] = _slower(entry, first)
        elif entry.ratio is not None and entry.ratio > needed:
            log.against[entry.label] = (
                f"{_slower(entry, first)}: int8 must gain at least {100 * (1 - needed):.0f} %"
            )
    if best.ratio is not None and best.ratio > needed:
        log.dropped.append(Dropped("*", INT8, f"it is {_slower(best, first)}"))
        return None
    _say_what_stays(best, log)
    return best


def _slower(entry: Tried, first: Tried) -> str:
    """Its time against the float network's, or that the target cannot use it."""
    if entry.problem is not None:
        return f"of no use on the target: {entry.problem}"
    word = "slower" if (entry.ratio or 0.0) > 1 else "hardly faster"
    times = f"{entry.latency_ms:.4g} ms against {first.latency_ms:.4g} ms in float32"
    return f"{word} on the target: {times} ({entry.provenance})"


def _refined(old: NodeCosts, new: NodeCosts, in_int8: frozenset[str]) -> NodeCosts:
    """What the nodes took in the mix, where they were in int8 there."""
    updated = {name: ms for name, ms in new.in_int8.items() if name in in_int8}
    return replace(old, in_int8={**old.in_int8, **updated})


def _mix(
    setting: Setting,
    stayed: Tried,
    start: Tried,
    whole: Tried,
    taken: Step,
    chosen: frozenset[str],
    costs: NodeCosts | None,
    log: _Log,
    why: Mapping[str, str] | None = None,
) -> Tried | None:
    """The network with these nodes in int8 and the others in float; None where it cannot be written."""
    kept = keep_float(start.graph, chosen)
    able = int8_nodes(whole.graph)
    label = _joined(start, f"int8 in {len(chosen & able)} of {len(able)} layers")
    label = next(name for name in (label, *(f"{label} ({k})" for k in range(2, 99))) if name not in log.tried)
    mixed = Step(taken.name, replace(taken.options, keep_float=kept))
    told = {**reasons(start.graph, whole.graph, chosen, costs), **(why or {})}
    try:
        return log.add(try_steps(setting, label, (*start.steps, mixed), stayed, why=told))
    except BadInput as err:
        log.dropped.append(Dropped("*", label, str(err)))
        return None


def _say_what_stays(best: Tried, log: _Log) -> None:
    """One line for each layer that could be int8 and is not."""
    for name, why in best.why.items():
        if why.startswith("float32: ") and " us in float32" in why:
            log.dropped.append(Dropped(name, INT8, why.removeprefix("float32: ")))


# --- accuracy --------------------------------------------------------------------------------------------------------


def _closer(setting: Setting, stayed: Tried, start: Tried, best: Tried, log: _Log) -> Tried:
    """The candidate with whatever brings its answers closer to the float network's, at the same speed."""
    formats = best.steps[len(start.steps) :]
    plain = best
    for names in setting.effort.improve:
        label = f"{plain.label}, {', '.join(names)}"
        try:
            found = try_steps(setting, label, (*start.steps, *_around(names, formats)), stayed, why=plain.why)
        except BadInput as err:
            log.dropped.append(Dropped("*", ", ".join(names), str(err)))
            continue
        found = replace(found, latency_ms=plain.latency_ms, ratio=plain.ratio, provenance=plain.provenance)
        log.add(found)
        if _is_closer(found, best):
            log.against[best.label] = "the same with a correction is closer"
            best = found
        else:
            worse = (
                "" if found.lost is None or best.lost is None else f", {best.lost - found.lost:+.2f} points"
            )
            log.against[label] = f"brings nothing: {found.sqnr_db:.1f} dB against {best.sqnr_db:.1f}{worse}"
    return best


def _around(names: Sequence[str], formats: Sequence[Step]) -> Iterator[Step]:
    """The steps that improve, each where it belongs: before the formats, or after them."""
    yield from (step(name) for name in names if name != "bias_correction")
    yield from formats
    yield from (step(name) for name in names if name == "bias_correction")


def _is_closer(one: Tried, other: Tried) -> bool:
    if one.lost is not None and other.lost is not None and one.lost > other.lost + 2 * one.lost_error:
        return False
    return one.sqnr_db > other.sqnr_db + _CLOSER_DB


def _less_harm(
    setting: Setting,
    stayed: Tried,
    start: Tried,
    whole: Tried,
    best: Tried,
    costs: NodeCosts | None,
    log: _Log,
) -> Tried | None:
    """Layers back to float, those first that harm most for what they gain, until the answers are good enough.

    The weight on harm is bisected: each weight has one best assignment of formats (see assign).
    """
    log.against[best.label] = harm_of(setting, best) or ""
    taken = next(entry for entry in best.steps if entry.name == INT8)
    harm = {
        name: 10 ** (-(found.local_sqnr_db if found.output_sqnr_db is None else found.output_sqnr_db) / 10)
        for name, found in layer_harm(start.graph, whole.graph, setting.samples).items()
    }
    known = costs or _by_work(start.graph, whole.graph)
    total_ms, total_harm = sum(known.in_float.values()), sum(harm.values())
    if not total_harm or not total_ms:
        log.dropped.append(Dropped("*", INT8, log.against[best.label]))
        return None
    low, high = -_SPREAD, _SPREAD  # too little weight on harm, and enough for all to be float
    accepted: list[Tried] = []
    seen: set[frozenset[str]] = set()
    for _ in range(setting.effort.bisections):
        middle = (low + high) / 2
        chosen = fastest(start.graph, whole.graph, known, harm, 10**middle * total_ms / total_harm)
        if not chosen:
            high = middle
            continue
        if chosen in seen:
            low, high = (low, middle) if accepted and accepted[-1].label else (middle, high)
            continue
        seen.add(chosen)
        why = {
            name: f"float32: {_HARMS} ({-10 * math.log10(max(harm[name], 1e-20)):.0f} dB)"
            for name in int8_nodes(whole.graph) - chosen
            if name in harm
        }
        mixed = _mix(setting, stayed, start, whole, taken, chosen, known, log, why)
        if mixed is None:
            break
        mixed = _closer(setting, stayed, start, mixed, log)
        against = harm_of(setting, mixed)
        if against is None:
            accepted.append(mixed)
            high = middle
        else:
            log.against[mixed.label] = against
            low = middle
    found = _fastest_of(setting, stayed, accepted, log)
    if found is None:
        log.dropped.append(Dropped("*", INT8, log.against[best.label]))
        return None
    for name, why_float in found.why.items():
        if why_float.startswith(f"float32: {_HARMS}"):
            log.dropped.append(Dropped(name, INT8, why_float.removeprefix("float32: ")))
    return found


def _by_work(plain: Graph, quantized: Graph) -> NodeCosts:
    """Where no time is known: multiply-accumulates for time, half of it in int8."""
    from edgekit.host.work import layers

    work = {layer.name: float(layer.macs + 1) for layer in layers(plain.model)}
    half = {layer.name: 0.5 * work.get(layer.name, 0.0) for layer in layers(quantized.model)}
    return NodeCosts(work, half, 0.0, 0.0, "estimated")


def _fastest_of(setting: Setting, stayed: Tried, candidates: Sequence[Tried], log: _Log) -> Tried | None:
    """The fastest that is faster than float at all."""
    if not candidates:
        return None
    first, *rest = timed(setting, [stayed, *candidates])
    log.add(first)
    for entry in rest:
        log.add(entry)
    best = min(rest, key=lambda entry: math.inf if entry.ratio is None else entry.ratio)
    if best.ratio is not None and best.ratio > (FASTER if best.provenance != "estimated" else 1.0):
        log.against[best.label] = _slower(best, first)
        return None
    return best


# --- float16, and weights in few bits --------------------------------------------------------------------------------


def _float16(setting: Setting, stayed: Tried, start: Tried, log: _Log) -> Tried | None:
    """float16 where the profile runs it fast and nothing speaks against it."""
    if "float16" not in setting.backend.fast_formats or is_quantized(start.graph):
        return None
    try:
        label = _joined(start, "float16")
        found = try_steps(setting, label, (*start.steps, step("float16")), stayed)
    except BadInput as err:
        log.dropped.append(Dropped("*", "float16", str(err)))
        return None
    first, found = timed(setting, [stayed, found])
    log.add(found)
    against = harm_of(setting, found)
    if against is None and found.ratio is not None and found.ratio > 1.0:
        against = f"it is {_slower(found, first)}"
    if against is not None:
        log.against[found.label] = against
        log.dropped.append(Dropped("*", "float16", against))
        return None
    return found


def _stored(setting: Setting, stayed: Tried, best: Tried, log: _Log) -> Tried:
    """The candidate with its float layers' weights in 8 bits, where that is smaller, no slower and does no harm."""
    found = _with_storage(setting, stayed, best, ("int8",), log)
    return best if found is None else found


def _with_storage(
    setting: Setting, stayed: Tried, best: Tried, formats: tuple[str, ...], log: _Log, *extra: Step
) -> Tried | None:
    """The candidate with its float weights stored in the first of these formats; None where it does not pay."""
    if float_weight_bytes(best.graph) < (1 - _WORTH_STORING) * best.made.size_bytes:
        return None
    options = {"format": formats[0]}
    label = f"{best.label}, weights in {formats[0]}{' (adaround)' if extra else ''}"
    try:
        found = try_steps(setting, label, _stored_steps(best.steps, extra, options), stayed, why=best.why)
    except BadInput as err:
        log.dropped.append(Dropped("*", STORE, str(err)))
        return None
    if found.made.size_bytes > _WORTH_STORING * best.made.size_bytes:
        return None
    against = harm_of(setting, found)
    if against is None and setting.bench is not None:
        _, before, found = timed(setting, [stayed, best, found])
        if (
            found.ratio is not None
            and before.ratio is not None
            and found.ratio > NO_SLOWER * max(before.ratio, 1e-9)
        ):
            times = (
                f"{found.latency_ms or 0:.4g} ms against {before.latency_ms or 0:.4g} ms with float weights"
            )
            against = _slower(found, before) if found.problem else times
    elif against is None:
        found = replace(found, latency_ms=best.latency_ms, ratio=best.ratio, provenance=best.provenance)
    log.add(found, against)
    if against is not None:
        log.dropped.append(Dropped("*", f"{STORE} {formats[0]}", against))
        return None
    log.against[best.label] = "the same with smaller weights is as fast"
    return found


def _stored_steps(
    steps: Sequence[Step], extra: Sequence[Step], options: Mapping[str, str]
) -> tuple[Step, ...]:
    """The steps with `extra` before the first that rounds, and the storage step before a bias correction."""
    last = [entry for entry in steps if entry.name == "bias_correction"]
    others = [entry for entry in steps if entry.name not in ("bias_correction", STORE)]
    formats = [entry for entry in others if entry.name in (INT8, "float16")]
    floats = [entry for entry in others if entry not in formats]
    return (*floats, *extra, *formats, step(STORE, **options), *last)


# --- limits ----------------------------------------------------------------------------------------------------------


def _meets(setting: Setting, tried: Tried) -> bool:
    """Whether it keeps the limits on size and latency, as far as they are known here."""
    limits = setting.limits
    too_big = limits.max_size_kb is not None and tried.made.size_bytes > 1e3 * limits.max_size_kb
    slow = limits.max_latency_ms is not None and (
        tried.latency_ms is not None and tried.latency_ms > limits.max_latency_ms
    )
    return not too_big and not slow


def _smaller(setting: Setting, stayed: Tried, base: tuple[Step, ...], best: Tried, log: _Log) -> Tried:
    """Weights in fewer bits until the limit on size is met; the smallest that does no harm where none meets it."""
    limits = setting.limits
    if limits.max_size_kb is None or best.made.size_bytes <= 1e3 * limits.max_size_kb:
        return best
    start = log.tried[_name(base)] if base else stayed
    for formats in (("int4",), ("ternary",), ("binary",)):
        extra = (step("adaround", format="int4"),) if formats == ("int4",) else ()
        found = _with_storage(setting, stayed, start, formats, log, *extra)
        if found is None:
            break
        if found.made.size_bytes < best.made.size_bytes:
            best = found
        if _meets(setting, best):
            break
    return best


def _pruned(setting: Setting, stayed: Tried, best: Tried, log: _Log) -> Tried:
    """Channels pruned, more and more, until the limits are met; recovered by training where PyTorch is there."""
    for share in setting.effort.shares:
        try:
            steps = pruning_steps(share)
            found = _formats(setting, stayed, steps, log)
        except (BadInput, MissingExtra) as err:
            log.dropped.append(Dropped("*", "prune_channels", str(err)))
            break
        against = harm_of(setting, found)
        if against is not None:
            log.against[found.label] = against
            log.dropped.append(Dropped("*", f"prune_channels {share:g}", against))
            break
        best = found
        if _meets(setting, found):
            break
    return best


def pruning_steps(share: float, epochs: int | None = None) -> tuple[Step, ...]:
    """Steps that remove `share` of the MACs, and train for `epochs` where that is wanted."""
    pruned = step("prune_channels", share=share)
    return (pruned,) if not epochs else (pruned, step("recover", epochs=epochs))


def _name(base: Sequence[Step]) -> str:
    """What to call the network after the steps the user asked for."""
    return ", ".join(
        f"{entry.name} {entry.options.share:g}" if entry.name == "prune_channels" else entry.name
        for entry in base
    )


def _joined(start: Tried, what: str) -> str:
    return what if start.label == "float32" else f"{start.label}, {what}"


__all__ = ["Found", "allowed", "follow", "pruning_steps", "search", "why_not_int8"]
