"""Remove channels: a physically smaller graph. Grouped by dependency, ranked by measured cost, refitted, not trained.

With its default options nothing is removed. A group's channels are numbered as its first product makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import BadInput
from edgekit.host.dependency import Dependency, Flags, Group, dependency
from edgekit.host.graph import Graph
from edgekit.host.options import option
from edgekit.host.passes._importance import by_answers, by_contribution, by_residue, by_weights
from edgekit.host.passes._refit import compensate, reconstruct
from edgekit.host.passes._removal import Costs, cheapest, granules
from edgekit.host.passes._shrink import shrink
from edgekit.host.passes.base import Context, Pass
from edgekit.host.watch import unwatched

CRITERIA = ("answers", "activation", "l1", "l2")
_TRIED = 4  # degrees of pruning at which a group's effect on the answers is measured
_TRIAL_SAMPLES = 48


@dataclass(frozen=True)
class PruneChannels:
    """share: of all multiply-accumulates, to remove. criterion: what a channel's loss costs.

    "answers": the measured change of the exits' outputs when a group's least contributing channels go; "activation":
    the mean squared part in what its readers make; both on calibration data without labels. "l1", "l2": of its weights.
    granularity: a group keeps a multiple of so many channels. max_share_per_group: of a group's channels, at most.
    compensate: the removed channels' mean goes into the biases of their readers. reconstruct: their readers are
    refitted by least squares. samples: of the calibration data. keep: group -> the channels kept ("0-3 5"), all else
    goes; then nothing is ranked, and what it does not name stays whole. `resolve` writes it.
    """

    share: float = option(0.0, min=0.0, max=0.95)
    criterion: str = option("answers", choices=CRITERIA)
    granularity: int = option(8, min=1, max=256)
    max_share_per_group: float = option(0.75, min=0.0, max=1.0)
    compensate: bool = True
    reconstruct: bool = True
    samples: int = option(256, min=1)
    keep: Mapping[str, str] = option({})


def apply(graph: Graph, options: PruneChannels, context: Context) -> Graph:
    """The smaller graph. Raises BadInput where `share` is out of reach, `keep` does not fit, or data is missing."""
    if not options.share and not options.keep:
        return graph
    options = resolve(graph, options, context)
    known = dependency(graph)
    removed = removed_by(known, options.keep)
    if not removed.any():
        return graph
    small = shrink(graph, known, removed)
    if options.reconstruct:
        return reconstruct(graph, known, removed, small, context, options.samples)
    if options.compensate:
        return compensate(graph, known, removed, small, context, options.samples)
    return small


def resolve(graph: Graph, options: PruneChannels, context: Context) -> PruneChannels:
    """The same options with `keep` filled in: what a recipe holds, so that a rerun ranks nothing."""
    if options.keep or not options.share:
        return options
    known = dependency(graph)
    costs = _costs(graph, known, options, context)
    removed = choose(known, costs, options, context)
    kept = {
        group.name: write_channels(np.flatnonzero(~removed[list(group.units)]))
        for group in known.groups
        if removed[list(group.units)].any()
    }
    return replace(options, keep=kept)


def choose(known: Dependency, costs: Costs, options: PruneChannels, context: Context) -> Flags:
    """Flags of the units that go for `share`. Raises BadInput where so much cannot go."""
    whole = known.macs(known.none_removed())
    offers = {
        group.name: granules(group, costs, options.granularity, options.max_share_per_group)
        for group in known.groups
    }
    target = int(whole * (1 - options.share))
    with context.watch("choose channels", max(1, whole - target)) as tick:
        removed = cheapest(known, offers, target, tick)
    left = known.macs(removed)
    if left > target:
        raise BadInput(
            f"prune_channels: share {options.share:g} is out of reach: with max_share_per_group "
            f"{options.max_share_per_group:g} and granularity {options.granularity} at most "
            f"{int(1000 * (1 - left / max(1, whole))) / 1000:g} of the multiply-accumulates can go: ask for less"
        )
    return removed


def _costs(graph: Graph, known: Dependency, options: PruneChannels, context: Context) -> Costs:
    if options.criterion in ("l1", "l2"):
        return by_weights(graph, known, 1 if options.criterion == "l1" else 2)
    centred = options.compensate or options.reconstruct
    if options.reconstruct:
        costs = by_residue(graph, known, context, options.samples)
    else:
        costs = by_contribution(graph, known, context, options.samples, centred=centred)
    if options.criterion == "activation":
        return costs
    stops = {group.name: stop for group in known.groups if (stop := _stops(group, costs, options))}

    quiet = replace(context, watch=unwatched)

    def without(units: NDArray[np.int64]) -> Graph:
        removed = known.none_removed()
        removed[units] = True
        small = shrink(graph, known, removed)
        if options.reconstruct:
            return reconstruct(graph, known, removed, small, quiet, _TRIAL_SAMPLES, nearest=True)
        return (
            compensate(graph, known, removed, small, quiet, _TRIAL_SAMPLES) if options.compensate else small
        )

    return by_answers(graph, known, costs, stops, without, context, _TRIAL_SAMPLES)


def _stops(group: Group, costs: Costs, options: PruneChannels) -> list[NDArray[np.int64]]:
    """Up to `_TRIED` sets of a group's units, each with the one before, the last as much as may go."""
    parts = [each.units for each in granules(group, costs, options.granularity, options.max_share_per_group)]
    ends = sorted({max(1, round(len(parts) * k / _TRIED)) for k in range(1, _TRIED + 1)}) if parts else []
    return [np.concatenate(parts[:end]) for end in ends]


def removed_by(known: Dependency, keep: Mapping[str, str]) -> Flags:
    """Flags of the units that `keep` leaves out. Raises BadInput for what does not fit the graph."""
    groups = {group.name: group for group in known.groups}
    removed = known.none_removed()
    for name, text in keep.items():
        where = f"prune_channels: keep.{name}"
        if name not in groups:
            raise BadInput(f"{where}: no group is called so; the groups are {', '.join(groups) or 'none'}")
        units = np.array(groups[name].units)
        kept = read_channels(text, where)
        if not kept or kept[-1] >= len(units):
            raise BadInput(f"{where}: must be some of the channels 0 to {len(units) - 1}, got {text!r}")
        removed[np.delete(units, kept)] = True
    if not known.is_possible(removed):
        raise BadInput("prune_channels: keep leaves a tensor without channels: keep more of its group")
    return removed


def write_channels(channels: Sequence[int] | NDArray[np.int64]) -> str:
    """Rising numbers as "0-3 5 8-9"."""
    runs: list[list[int]] = []
    for channel in map(int, channels):
        if runs and channel == runs[-1][1] + 1:
            runs[-1][1] = channel
        else:
            runs.append([channel, channel])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def read_channels(text: str, where: str) -> list[int]:
    """The inverse of write_channels. Raises BadInput."""
    found: list[int] = []
    for part in str(text).split():
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise BadInput(f'{where}: must be channels like "0-3 5", got {text!r}')
        found.extend(range(int(first), int(last or first) + 1))
    if found != sorted(set(found)):
        raise BadInput(f"{where}: channels must rise, each once, got {text!r}")
    return found


PASS = Pass("prune_channels", apply, min_sqnr_db=120.0, options=PruneChannels, costly=True, resolve=resolve)
