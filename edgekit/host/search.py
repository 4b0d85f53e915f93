"""Find the best way to make a bundle: each step is tried, measured on the target, and taken back where it does harm.

The order of work: int8 as a whole; the fastest mix of int8 and float that the nodes' own times suggest; what brings its
answers closer; layers back to float where the answers still suffer, most harm per gain first; weights of float layers
stored in few bits; smaller or fewer weights where a limit is still missed. Validation data alone decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from edgekit.core.errors import BadInput
from edgekit.core.profile import Profile
from edgekit.core.report import Attempt, Dropped
from edgekit.host.formats import dense_weight_share, float_weight_bytes
from edgekit.host.passes import Step, resolve_steps, run_steps, step
from edgekit.host.passes.quantize_static import is_quantized
from edgekit.host.search_int8 import FASTER, INT8, STORE, best_int8
from edgekit.host.trail import Branch, Trail, slower
from edgekit.host.tried import Setting, Tried, harm_of, try_steps

NO_SLOWER = 1.02  # what counts as the same time
_WORTH_STORING = 0.95  # of the size: below it, codes instead of floats pay
_FEW = 200  # validation samples: below it two answers are a point
_MOSTLY_DENSE = 0.5  # of the float weights: from there on integer dense layers are tried
_BLOCK = 32  # weights that share a scale where dense layers compute on their codes
_WIDE, _NARROW = 16, 8  # channels a vector register or two hold: pruned layers keep multiples


@dataclass(frozen=True)
class Found:
    """What was chosen, all that was tried with the reasons, what was taken back, and what the user should know."""

    chosen: Tried
    attempts: tuple[Attempt, ...]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...] = ()


def search(setting: Setting, base: Sequence[Step] = ()) -> Found:
    """The best candidate there is. base: steps the user asked for (pruning, recovery), taken before anything else.

    Raises BadInput where a step of `base` cannot be taken; all other steps are offers.
    """
    trail = Trail()
    stayed = trail.add(try_steps(setting, "float32", (), None))
    start = stayed
    if base:
        taken = resolve_steps(setting.plain, base, setting.context)
        start = trail.add(try_steps(setting, _name(taken), taken, stayed))
    branch = Branch(setting, stayed, start, trail, asked=bool(base))
    chosen = _elsewhere(branch, _formats(branch))
    if not _meets(setting, chosen):
        chosen = _smaller(branch, chosen)
    if not base and not _meets(setting, chosen):
        chosen, branch = _pruned(branch, chosen)
    notes = (*_of_samples(setting), *_of_base(setting, start, base))
    return Found(chosen, trail.attempts(chosen), tuple(branch.dropped), notes)


def _of_samples(setting: Setting) -> Iterator[str]:
    count = setting.samples.count
    if count < _FEW:
        yield f"candidates were compared on {count} validation samples, which decides little: give more with --val"


def _of_base(setting: Setting, start: Tried, base: Sequence[Step]) -> Iterator[str]:
    """What came of the steps the user asked for, where that is not what was hoped for."""
    if base and base[-1].name == "recover":
        untrained = run_steps(setting.plain, start.steps[:-1], setting.context)
        if untrained.fingerprint() == start.graph.fingerprint():
            yield "recover: training brought the answers no nearer to the original's, so nothing of it was kept"
    against = harm_of(setting, start) if base else None
    if against is not None:
        yield f"{start.label}: {against}; train with --recover, give more --calib inputs, or --prune less"


def follow(setting: Setting, steps: Sequence[Step]) -> Tried:
    """Make what a recipe says, measuring nothing. Raises BadInput where a step cannot be taken."""
    return try_steps(setting, "recipe", steps, None)


# --- formats ---------------------------------------------------------------------------------------------------------


def _formats(branch: Branch) -> Tried:
    """int8 where it is faster, float elsewhere, float's weights in few bits: the best of these."""
    best = best_int8(branch)
    if best is None:
        best = replace(branch.timed()[0], why=branch.stays)
        best = _float16(branch) or best
    stored = _with_storage(branch, best, "int8") or best
    return _integer(branch, stored) or stored


def _float16(branch: Branch) -> Tried | None:
    """float16 where the profile runs it fast and nothing speaks against it."""
    if "float16" not in branch.setting.backend.fast_formats or is_quantized(branch.start.graph):
        return None
    found = branch.offer(branch.called("float16"), (step("float16"),), {}, "float16")
    if found is None:
        return None
    first, found = branch.timed(found)
    against = branch.harm(found)
    if against is None and found.ratio is not None and found.ratio > 1.0:
        against = f"it is {slower(found, first)}"
    if against is not None:
        branch.trail.against[found.label] = against
        branch.drop("float16", against)
        return None
    return found


def _with_storage(branch: Branch, best: Tried, format_: str, *extra: Step) -> Tried | None:
    """The candidate with its float weights stored so, where that is smaller, no slower and does no harm."""
    if float_weight_bytes(best.graph) < (1 - _WORTH_STORING) * best.made.size_bytes:
        return None
    label = f"{best.label}, weights in {format_}{' (adaround)' if extra else ''}"
    steps = _stored_steps(_own(branch, best), extra, step(STORE, format=format_))
    found = branch.offer(label, steps, best.why, STORE)
    if found is None:
        return None
    against = branch.harm(found)
    if found.made.size_bytes > _WORTH_STORING * best.made.size_bytes:
        branch.trail.against[label] = "hardly smaller"
        return None
    if against is None and branch.setting.bench is None:
        found = replace(found, latency_ms=best.latency_ms, ratio=best.ratio, provenance=best.provenance)
    elif against is None:
        _, before, found = branch.timed(best, found)
        if found.problem is not None or (found.ratio or 0.0) > NO_SLOWER * (before.ratio or 1.0):
            times = (
                f"{found.latency_ms or 0:.4g} ms against {before.latency_ms or 0:.4g} ms with float weights"
            )
            against = slower(found, before) if found.problem else times
    branch.trail.add(found, against)
    if against is not None:
        branch.drop(f"{STORE} {format_}", against)
        return None
    branch.trail.against[best.label] = "the same with smaller weights is as fast"
    return found


def _stored_steps(steps: Sequence[Step], extra: Sequence[Step], store: Step) -> tuple[Step, ...]:
    """The steps with `extra` before the first that rounds, and the storage step before a bias correction."""
    last = [entry for entry in steps if entry.name == "bias_correction"]
    others = [entry for entry in steps if entry.name not in ("bias_correction", STORE)]
    formats = [entry for entry in others if entry.name in (INT8, "float16")]
    floats = [entry for entry in others if entry not in formats]
    return (*floats, *extra, *formats, store, *last)


def _integer(branch: Branch, best: Tried) -> Tried | None:
    """Dense layers that multiply 4-bit codes, where most weights are theirs and the target measures it faster."""
    setting = branch.setting
    if (
        setting.bench is None
        or not setting.effort.improve
        or dense_weight_share(branch.start.graph) < _MOSTLY_DENSE
    ):
        return None
    rounding = step("adaround", format="int4", block=_BLOCK)
    store = step(STORE, format="int4", block=_BLOCK, integer=True)
    label = branch.called("dense layers on 4-bit codes (adaround)")
    found = branch.offer(label, (rounding, store), {}, f"{STORE} int4")
    if found is None:
        return None
    against = branch.harm(found)
    if against is None:
        _, before, found = branch.timed(best, found)
        if found.problem is not None or (found.ratio or 0.0) > FASTER * (before.ratio or 1.0):
            against = slower(found, before) if found.problem else f"no faster than {before.label}"
    branch.trail.add(found, against)
    return found if against is None else None


def _elsewhere(branch: Branch, best: Tried) -> Tried:
    """The same on another runtime of the board, and int8 there, where that is measured faster and does no harm."""
    setting = branch.setting
    whole = branch.trail.tried.get(branch.called("int8"))
    offered = [best] if whole is None or whole.steps == best.steps else [best, whole]
    found = []
    for backend in setting.others if setting.bench is not None else ():
        there = replace(branch, setting=replace(setting, backend=backend))
        for entry in offered:
            label = branch.trail.free(f"{entry.label}, {backend.name}")
            tried = there.offer(label, _own(branch, entry), {}, backend.name)
            if tried is not None:
                found.append(tried)
    if not found:
        return best
    first, before, *rest = branch.timed(best, *found)
    for entry in rest:
        against = branch.harm(entry)
        if against is None and (entry.problem or (entry.ratio or 1.0) > FASTER * (before.ratio or 1.0)):
            against = slower(entry, first) if entry.problem else f"no faster than {before.label}"
        if against is not None:
            branch.trail.against[entry.label] = against
    able = [entry for entry in rest if entry.label not in branch.trail.against]
    fastest = min(able, key=lambda entry: entry.ratio or math.inf, default=None)
    if fastest is None:
        return before
    branch.trail.against[before.label] = f"{fastest.backend} is faster"
    if before.steps != fastest.steps:
        branch.dropped.clear()  # it told of steps taken back on the other runtime
    return fastest


def _own(branch: Branch, tried: Tried) -> tuple[Step, ...]:
    """Its steps upon the branch's start."""
    return tried.steps[len(branch.start.steps) :]


# --- limits ----------------------------------------------------------------------------------------------------------


def _meets(setting: Setting, tried: Tried) -> bool:
    """Whether it keeps the limits on size and latency, as far as they are known here."""
    return not _too_large(setting, tried) and not _too_slow(setting, tried)


def _miss(setting: Setting, tried: Tried) -> float:
    """How far it is from the limits: 0 where it keeps them, 1 where one figure is twice what it may be."""
    limits, size_kb = setting.limits, tried.made.size_bytes / 1e3
    large = size_kb / limits.max_size_kb - 1 if limits.max_size_kb else 0.0
    slow = tried.latency_ms / limits.max_latency_ms - 1 if limits.max_latency_ms and tried.latency_ms else 0.0
    return max(0.0, large) + max(0.0, slow)


def _too_large(setting: Setting, tried: Tried) -> bool:
    limit = setting.limits.max_size_kb
    return limit is not None and tried.made.size_bytes > 1e3 * limit


def _too_slow(setting: Setting, tried: Tried) -> bool:
    limit = setting.limits.max_latency_ms
    return limit is not None and tried.latency_ms is not None and tried.latency_ms > limit


def _smaller(branch: Branch, best: Tried) -> Tried:
    """Weights in fewer bits until the limit on size is met; the smallest that does no harm where none meets it."""
    for format_ in ("int4", "ternary", "binary"):
        if not _too_large(branch.setting, best):
            break
        extra = (step("adaround", format="int4"),) if format_ == "int4" else ()
        found = _with_storage(branch, branch.start, format_, *extra)
        if found is not None and found.made.size_bytes < best.made.size_bytes:
            best = found
    return best


def _pruned(branch: Branch, best: Tried) -> tuple[Tried, Branch]:
    """Channels pruned, more and more, until the limits are met; recovered by training where PyTorch is there."""
    setting = branch.setting
    epochs = setting.effort.epochs if find_spec("torch") else 0
    for share in setting.effort.shares:
        try:
            steps = resolve_steps(
                setting.plain, pruning_steps(share, epochs, setting.profile), setting.context
            )
            start = branch.trail.add(try_steps(setting, _name(steps), steps, branch.stayed))
        except BadInput as err:
            branch.drop(f"prune_channels {share:g}", str(err))
            break
        against = harm_of(setting, start)
        if against is not None:
            branch.trail.against[start.label] = against
            branch.drop(f"prune_channels {share:g}", against)
            break
        further = Branch(setting, branch.stayed, start, branch.trail, asked=False)
        found = _elsewhere(further, _formats(further))
        if _too_large(setting, found):
            found = _smaller(further, found)
        if _miss(setting, found) < _miss(setting, best):
            best, branch = found, further
        if _meets(setting, best):
            break
    return best, branch


def pruning_steps(share: float, epochs: int | None, profile: Profile) -> tuple[Step, ...]:
    """Steps that remove `share` of the MACs, and train for `epochs` where that is wanted."""
    wide = "avx512f" in profile.cpu.features
    pruned = step("prune_channels", share=share, granularity=_WIDE if wide else _NARROW)
    return (pruned, step("recover", epochs=epochs)) if epochs else (pruned,)


def _name(base: Sequence[Step]) -> str:
    """What to call the network after the steps the user asked for."""
    return ", ".join(
        f"{entry.name} {entry.options.share:g}" if entry.name == "prune_channels" else entry.name
        for entry in base
    )
