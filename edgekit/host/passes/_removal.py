"""Choose which units go: rank them by what their removal costs, and take the cheapest per MAC. Runs no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.host.dependency import Dependency, Flags, Group, Layout

Costs = NDArray[np.float64]


@dataclass(frozen=True)
class Granule:
    """The next units to go from a group, and what that costs."""

    units: NDArray[np.int64]
    cost: float


def granules(group: Group, costs: Costs, granularity: int, max_share: float) -> tuple[Granule, ...]:
    """The group's units from the least costly on, so that it always keeps a multiple of `granularity` channels.

    costs: one per unit of the graph. The first granule may be smaller; the last leaves at least 1 - max_share.
    """
    units = np.array(group.units, np.int64)
    count = len(units)
    step = granularity // math.gcd(granularity, group.channels)
    least = max(1, math.ceil(count * (1 - max_share) - 1e-9))
    stops = [kept for kept in range(0, count, step) if kept >= least][::-1]
    order = units[np.argsort(costs[units], kind="stable")]
    found, gone = [], 0
    for kept in stops:
        part = order[gone : count - kept]
        found.append(Granule(part, float(costs[part].sum())))
        gone = count - kept
    return tuple(found)


class Tally:
    """What is removed so far and the MACs that are left, kept up to date granule by granule."""

    def __init__(self, known: Dependency) -> None:
        self.known = known
        self.removed = known.none_removed()
        self.left = known.macs(self.removed)
        self._readers: dict[int, list[int]] = {}
        for index, product in enumerate(known.products):
            for layout in (product.output, product.source):
                for unit in _units(layout):
                    self._readers.setdefault(unit, []).append(index)
        self._holders: dict[int, list[Layout]] = {}
        seen: dict[bytes, Layout] = {}
        for layout in known.layouts.values():
            one = seen.setdefault(layout.units.tobytes(), layout)
            if one is layout:
                for unit in _units(layout):
                    self._holders.setdefault(unit, []).append(layout)

    def touched(self, units: NDArray[np.int64]) -> set[int]:
        """Places of the products whose MACs depend on these units."""
        return {index for unit in units.tolist() for index in self._readers.get(unit, ())}

    def left_after(self, units: NDArray[np.int64], *, back: bool = False) -> int:
        """MACs left when these units went too, or came back."""
        products = [self.known.products[index] for index in sorted(self.touched(units))]
        some = Dependency(self.known.units, (), tuple(products), {}, {})
        flags = self.removed.copy()
        flags[units] = not back
        return self.left - some.macs(self.removed) + some.macs(flags)

    def possible(self, units: NDArray[np.int64]) -> bool:
        """Whether no tensor would be left without channels."""
        flags = self.removed.copy()
        flags[units] = True
        holders = {id(h): h for unit in units.tolist() for h in self._holders.get(unit, ())}
        return all(layout.kept(flags).size for layout in holders.values())

    def take(self, units: NDArray[np.int64], *, back: bool = False) -> None:
        """Remove these units, or give them back."""
        self.left = self.left_after(units, back=back)
        self.removed[units] = not back


def _units(layout: Layout | None) -> list[int]:
    return [] if layout is None else [unit for unit in np.unique(layout.units).tolist() if unit >= 0]


def cheapest(
    known: Dependency, offers: Mapping[str, Sequence[Granule]], target: int, tick: Callable[[int], None]
) -> Flags:
    """Flags of what goes: granule after granule with the least cost per MAC saved, until at most `target` are left.

    offers: group -> its granules, in order. Stops early where nothing more can go: compare known.macs() with the
    target. tick: called with the MACs just saved.
    """
    tally = Tally(known)
    queues = {name: list(found) for name, found in offers.items() if found}
    taken: list[Granule] = []
    rates: dict[str, float] = {}
    reach = {
        name: tally.touched(np.concatenate([each.units for each in found])) for name, found in queues.items()
    }
    while tally.left > target and queues:
        for name in queues:
            if name not in rates:
                first = queues[name][0]
                saved = tally.left - tally.left_after(first.units)
                rates[name] = first.cost / saved if saved > 0 else math.inf
        name = min(queues, key=lambda each: rates[each])
        if (
            tally.left_after(queues[name][0].units) <= target
        ):  # the last step: of those that get there, the cheapest
            able = [each for each in queues if tally.left_after(queues[each][0].units) <= target]
            name = min(able, key=lambda each: queues[each][0].cost)
        first = queues[name].pop(0)
        before = tally.left
        if tally.possible(first.units):
            tally.take(first.units)
            taken.append(first)
        else:
            queues[name].clear()
        if not queues[name]:
            del queues[name]
        tick(before - tally.left)
        for other in [other for other in rates if reach[other] & reach[name]]:
            del rates[other]  # they share a product: what they save has changed
    _give_back(tally, taken, target)
    return tally.removed


def _give_back(tally: Tally, taken: Sequence[Granule], target: int) -> None:
    """The last granule may have saved too much: return what is not needed, the dearest first.

    Only the last granule of each group can come back, or what is kept would not be the best.
    """
    rest = list(taken)
    while True:
        last = {id(granule) for granule in _lasts(tally.known, rest)}
        able = [
            granule
            for granule in rest
            if id(granule) in last and tally.left_after(granule.units, back=True) <= target
        ]
        if not able:
            return
        dearest = max(able, key=lambda granule: granule.cost)
        tally.take(dearest.units, back=True)
        rest = [granule for granule in rest if granule is not dearest]


def _lasts(known: Dependency, taken: Sequence[Granule]) -> list[Granule]:
    group_of = {unit: group.name for group in known.groups for unit in group.units}
    return list({group_of[int(granule.units[0])]: granule for granule in taken}.values())
