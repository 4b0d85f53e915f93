"""Choose how each layer of an overlay is folded: the fewest resources that meet a throughput, within a board's limits.

Every layer is tried with every SIMD and the smallest PE that meets the budget of cycles, its weights in block RAM or in
LUT RAM; dynamic programming over the chain adds what stands between two layers. Refused before synthesis, with the
numbers, where it cannot fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from edgekit.core.errors import BadInput
from edgekit.core.profile import Profile
from edgekit.host.overlay.resources import Resources, design_resources, unit_resources
from edgekit.runtime.overlay.cycles import images_per_second, interval_cycles, unit_cycles
from edgekit.runtime.overlay.design import Design, FoldedLayer, Folding, Unit
from edgekit.runtime.overlay.topology import DENSE, POOL, Chain, Layer
from edgekit.runtime.overlay.units import (
    BUS,
    LANES,
    Stream,
    adapted,
    columns_may_be_padded,
    design_for,
    layer_units,
    output_beats,
    rows_may_be_padded,
)

LUT_SHARE = (
    0.7  # of the profile's: beyond it placing and routing get hard, and DMA and interconnect need theirs
)
# A block RAM's worth against a LUT's, as shares of the board's: even first, then sparing the one or the other
_WEIGHTS = (1.0, 4.0, 0.25, 16.0, 0.0625)
_SLOWEST = 2**62


@dataclass(frozen=True)
class Limits:
    """What an overlay may take of a board. board: its name, in refusals."""

    board: str
    luts: int
    all_luts: int
    bram18: int
    clock_mhz: float

    def hold(self, taken: Resources) -> bool:
        """Whether all of it fits."""
        return taken.luts <= self.luts and taken.bram18 <= self.bram18

    def needs_and_has(self, taken: Resources) -> str:
        """Both sides of the comparison, as refusals print them."""
        return (
            f"needs {math.ceil(taken.luts):,} LUTs and {taken.bram36:g} block RAMs (estimated, post-synthesis), "
            f"{self.board} gives {self.luts:,} ({LUT_SHARE:.0%} of {self.all_luts:,}) and {self.bram18 / 2:g}"
        )


def limits_of(profile: Profile) -> Limits:
    """The limits of a profile with programmable logic. Raises BadInput for one without, or without its figures."""
    if profile.fpga is None:
        raise BadInput(
            f"profile {profile.name} has no programmable logic: the overlay needs its fpga figures"
        )
    figures = {"luts": profile.fpga.luts, "bram36": profile.fpga.bram36, "clock_mhz": profile.fpga.clock_mhz}
    for name, figure in figures.items():
        if figure.value is None:
            raise BadInput(f"profile {profile.name}: the overlay needs fpga.{name}, which is unknown")
    luts, bram36, clock = (figure.value or 0.0 for figure in figures.values())
    return Limits(profile.name, int(luts * LUT_SHARE), int(luts), int(2 * bram36), clock)


def choose(
    chain: Chain,
    limits: Limits,
    images_s: float | None = None,
    fixed: Mapping[str, tuple[int, int]] | None = None,
) -> Design:
    """The design of `chain` with the fewest resources that makes at least `images_s` images a second at limits' clock.

    images_s None: the fastest that fits. fixed: layer name -> (PE, SIMD) that are given; where weights lie is still
    chosen. Raises BadInput with needs and has where it does not fit, or where no folding is that fast.
    """
    search = _Search(chain, limits, fixed or {})
    if images_s is None and not fixed:
        return search.fastest()
    budget = _SLOWEST if images_s is None else math.floor(limits.clock_mhz * 1e6 / images_s)
    design = search.cheapest(budget)
    if design is None:
        raise BadInput(f"{search.asked(images_s)}: no folding is that fast: {search.slowest_layer()}")
    taken = design_resources(design)
    if not limits.hold(taken):
        raise BadInput(f"{search.asked(images_s)} {limits.needs_and_has(taken)}: {search.advice()}")
    return design


@dataclass(frozen=True)
class _Option:
    """A folded layer and the units that do not depend on its neighbours, with what those take."""

    item: FoldedLayer
    taken: Resources


@dataclass
class _Search:
    chain: Chain
    limits: Limits
    fixed: Mapping[str, tuple[int, int]]
    made: dict[tuple[int, float], Design | None] = field(default_factory=dict)

    def fastest(self) -> Design:
        """The design of the smallest interval that fits, by bisection over the intervals that foldings can give."""
        intervals = sorted(set(self._intervals()))
        slowest = self.cheapest(intervals[-1])
        if slowest is None or not self.limits.hold(design_resources(slowest)):
            taken = Resources(0, 0, 0) if slowest is None else design_resources(slowest)
            raise BadInput(
                f"the overlay, folded as far as it goes, {self.limits.needs_and_has(taken)}: use backend native"
            )
        low, high, best = 0, len(intervals) - 1, slowest
        while low < high:
            middle = (low + high) // 2
            design = self.cheapest(intervals[middle])
            if design is not None and self.limits.hold(design_resources(design)):
                high, best = middle, design
            else:
                low = middle + 1
        return best

    def cheapest(self, budget: int) -> Design | None:
        """The cheapest design within `budget` cycles that fits, else the one nearest to it. None: too fast for all."""
        nearest: tuple[float, Design] | None = None
        for weight in _WEIGHTS:
            design = self._weighted(budget, weight)
            if design is None:
                return None
            taken = design_resources(design)
            if self.limits.hold(taken):
                return design
            excess = max(taken.luts / self.limits.luts, taken.bram18 / self.limits.bram18)
            if nearest is None or excess < nearest[0]:
                nearest = (excess, design)
        return None if nearest is None else nearest[1]

    def asked(self, images_s: float | None) -> str:
        """What was wanted, for a refusal."""
        if images_s is None:
            return "the given folding"
        return f"{images_s:,.0f} images/s at {self.limits.clock_mhz:g} MHz"

    def advice(self) -> str:
        """What to do where the wanted does not fit."""
        if self.fixed:
            return "fold further"
        try:
            design = self.fastest()
        except BadInput:
            return "use backend native"
        rate = images_per_second(interval_cycles(design), self.limits.clock_mhz)
        return f"{rate:,.0f} images/s is the most that fits"

    def slowest_layer(self) -> str:
        """The bound that no folding passes."""
        cycles, name = max(
            (min(_own(item)[1] for item in self._all(index)), layer.name) for index, layer in self._folded()
        )
        words = max(-(-self.chain.input_bytes * 8 // BUS), output_beats(self.chain.layers[-1]))
        if words >= cycles:
            return f"the bus takes {words:,} cycles an image"
        return f"{name} takes {cycles:,} cycles an image at least"

    def _folded(self) -> Iterable[tuple[int, Layer]]:
        return ((index, layer) for index, layer in enumerate(self.chain.layers) if layer.kind != POOL)

    def _intervals(self) -> Iterable[int]:
        for index, _ in self._folded():
            yield from (_own(item)[1] for item in self._all(index))

    def _all(self, index: int) -> list[FoldedLayer]:
        """The layer with every PE and SIMD it may have."""
        layer = self.chain.layers[index]
        given = self.fixed.get(layer.name)
        rows = rows_may_be_padded(self.chain.layers, index)
        rows_of = [given[0]] if given else _sizes(layer.out_c, padded=rows)
        columns = columns_may_be_padded(layer)
        width = layer.terms if columns else layer.in_c
        columns_of = [given[1]] if given else _sizes(width, padded=columns)
        return [FoldedLayer(layer, Folding(pe, simd)) for simd in columns_of for pe in rows_of]

    def _options(self, index: int, budget: int) -> list[_Option]:
        """For every SIMD the smallest PEs that meet the budget, up to twice the smallest; weights in either memory.

        A larger PE than needed can pay where its beats fit the next layer's.
        """
        by_simd: dict[int, list[FoldedLayer]] = {}
        for item in self._all(index):  # PE rises
            if item.cycles <= budget:
                by_simd.setdefault(item.columns_at_once, []).append(item)
        found = []
        for items in by_simd.values():
            for item in items:
                if item.rows_at_once <= 2 * items[0].rows_at_once:
                    for block_ram in (True, False):
                        folding = Folding(item.rows_at_once, item.columns_at_once, block_ram)
                        placed = FoldedLayer(item.layer, folding)
                        taken, cycles = _own(placed)
                        if cycles <= budget:
                            found.append(_Option(placed, taken))
        return found

    def _weighted(self, budget: int, weight: float) -> Design | None:
        key = (budget, weight)
        if key not in self.made:
            foldings = self._foldings(budget, weight)
            self.made[key] = (
                None if foldings is None else design_for(self.chain, foldings, self.limits.clock_mhz)
            )
        return self.made[key]

    def _foldings(self, budget: int, weight: float) -> dict[str, Folding] | None:
        words = -(-self.chain.input_bytes * 8 // BUS)
        if max(words, output_beats(self.chain.layers[-1])) > budget:
            return None
        start = Stream(BUS if self.chain.binarize is None else LANES, words)
        best: dict[Stream, tuple[float, dict[str, Folding]]] = {start: (0.0, {})}
        for index, layer in enumerate(self.chain.layers):
            nodes = [_Option(FoldedLayer(layer, None), Resources(0, 0, 0))]
            if layer.kind != POOL:
                nodes = self._thinned(self._options(index, budget), weight)
            following: dict[Stream, tuple[float, dict[str, Folding]]] = {}
            for stream, (cost, foldings) in best.items():
                for node in nodes:
                    between, cycles, after = _between(node.item, stream, budget)
                    if cycles > budget:
                        continue
                    total = cost + self._cost(node.taken + between, weight)
                    if after not in following or total < following[after][0]:
                        folding = node.item.folding
                        following[after] = (total, foldings | ({layer.name: folding} if folding else {}))
            best = following
        end = Stream(BUS, output_beats(self.chain.layers[-1]))
        finals = [
            (
                cost + self._cost(_taken(adapted("out", stream, end, budget)[0]), weight),
                index,
                foldings,
            )
            for index, (stream, (cost, foldings)) in enumerate(best.items())
        ]
        return min(finals)[2] if finals else None

    def _thinned(self, options: Sequence[_Option], weight: float) -> list[_Option]:
        """Without those that cost more by themselves than what stands around a layer can ever save."""
        if not options:
            return []
        least = min(self._cost(option.taken, weight) for option in options)
        return [option for option in options if self._cost(option.taken, weight) <= 1.5 * least + _SLACK]

    def _cost(self, taken: Resources, weight: float) -> float:
        return taken.luts / self.limits.luts + weight * taken.bram18 / self.limits.bram18


_SLACK = 0.01  # of the board: more than width units take


@lru_cache(maxsize=65536)
def _own(item: FoldedLayer) -> tuple[Resources, int]:
    """What a layer takes behind a stream that fits it, and its slowest unit's cycles."""
    layer, simd = item.layer, item.columns_at_once
    beats = item.columns // simd if layer.kind == DENSE else layer.in_h * layer.in_w * layer.in_c // simd
    fitting = Stream(simd * layer.input_bits, beats)
    units, _ = layer_units(item, fitting, _SLOWEST)
    return _taken(units), max(unit_cycles(unit) for unit in units)


@lru_cache(maxsize=65536)
def _between(item: FoldedLayer, stream: Stream, budget: int) -> tuple[Resources, int, Stream]:
    """What stands before a layer (all of a pool), its slowest unit's cycles, and the stream behind the layer."""
    units, after = layer_units(item, stream, budget)
    between = [unit for unit in units if unit.kind in {"width", "pool"}]
    return _taken(between), max((unit_cycles(unit) for unit in between), default=0), after


def _taken(units: Iterable[Unit]) -> Resources:
    return sum((unit_resources(unit.kind, unit.parameters) for unit in units), start=Resources(0, 0, 0))


def _sizes(of: int, *, padded: bool) -> list[int]:
    """Divisors; where the end may be padded the powers of two as well."""
    found = {size for size in range(1, of + 1) if of % size == 0}
    if padded:
        found |= {2**power for power in range(of.bit_length())}
    return sorted(found)
