"""Read thresholds off a function of whole numbers: by trying every number where that can be done, else by bisection.

Exhaustive where a channel's sums are few enough, as in binary networks: then the thresholds are right for every sum
there can be, for either sign of gamma, and for gamma 0 (a channel that never changes). Where sums are many (8-bit
inputs to a wide layer, float inputs), each boundary is found by bisection, and the numbers beside it are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.native.plan import MAX_LEVELS
from edgekit.runtime.backends import Array

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
NEVER, ALWAYS = np.iinfo(np.int32).max, np.iinfo(np.int32).min  # as thresholds of what rises
_EXHAUSTIVE = 1 << 24  # evaluations
_GRID, _FEWEST = 2049, 65  # numbers of each channel that are looked at before the bisection
ROUNDING = 2.0**-21  # of the largest number: what a few operations in float32 may move a result by
_LARGE = 1e300
_APART = 100  # roundings between two levels, where levels are blurred by rounding at all
_AFFINE = 4e-6  # of a channel's largest value


@dataclass(frozen=True)
class Domain:
    """The whole numbers low..high of each channel, and the float32 that each stands for."""

    low: Whole
    high: Whole
    number: Callable[[Whole], Array]  # (channels, count) -> float32 of the same shape
    every: int = 1  # only low + a multiple of it occurs

    @property
    def widest(self) -> int:
        """How many numbers the widest channel has."""
        return int((self.high - self.low).max()) // self.every + 1

    def places(self) -> Whole:
        """All numbers: (channels, widest); a narrower channel's last one is repeated."""
        counted = self.low[:, None] + self.every * np.arange(self.widest)
        return np.asarray(np.minimum(counted, self.high[:, None]), np.int64)


@dataclass(frozen=True)
class Steps:
    """A function with few values. levels: ascending. at: (channels, levels - 1): where level i + 1 begins.

    A channel that rises has level i or more from at[i] on; one that falls, up to at[i]. NEVER and ALWAYS (the other way
    round where it falls) where that is so for all numbers.
    """

    levels: Floats
    at: Whole
    falling: NDArray[np.bool_]

    def reaching(self, wanted: NDArray[np.floating[Any]]) -> Whole:
        """(channels, len(wanted)): from where on (up to where) the function is at least so large."""
        ends = np.where(self.falling, NEVER, ALWAYS)[:, None]
        at = np.concatenate([ends, self.at, np.where(self.falling, ALWAYS, NEVER)[:, None]], axis=1)
        return np.asarray(at[:, np.searchsorted(self.levels, wanted)], np.int64)


@dataclass(frozen=True)
class Line:
    """scale * n + bias for each channel."""

    scale: Floats
    bias: Floats


class NotMonotone(Exception):
    """A channel's function goes up and down."""


def steps_of(function: Callable[[Array], Array], domain: Domain) -> Steps | Line | None:
    """What the function is: few levels that rise or fall in each channel, a line, or neither. Raises NotMonotone."""
    count = domain.widest
    if count * len(domain.low) <= _EXHAUSTIVE:
        places = domain.places()
        made = _exact(function(domain.number(places)))
        found = _levels(made)
        return line_of(made, places) if found is None else _exhaustive(made, found, places)
    places = _spread(domain)
    made = _exact(function(domain.number(places)))
    found = _levels(made)
    if found is None:
        return line_of(made, places)
    return _sought(function, domain, found, places, made)


def line_through(function: Callable[[Array], Array], domain: Domain) -> Line | None:
    """The function as a line through all numbers of the domain (evenly spread ones where they are many); None: bent."""
    many = domain.widest * len(domain.low) > _EXHAUSTIVE
    places = _spread(domain) if many else domain.places()
    return line_of(_exact(function(domain.number(places))), places)


def falling(function: Callable[[Array], Array], domain: Domain) -> NDArray[np.bool_]:
    """Channels in which the function falls. Raises NotMonotone; evenly spread numbers are tried where they are many."""
    many = domain.widest * len(domain.low) > _EXHAUSTIVE
    places = _spread(domain) if many else domain.places()
    made = _exact(function(domain.number(places)))
    if np.isnan(made).any():
        raise NotMonotone
    change = np.sign(np.diff(np.clip(made, -_LARGE, _LARGE), axis=1))
    if ((change > 0).any(axis=1) & (change < 0).any(axis=1)).any():
        raise NotMonotone
    return np.asarray((change < 0).any(axis=1), np.bool_)


def _exact(made: Array) -> Floats:
    return np.asarray(made, np.float64)


def _levels(made: Floats) -> Floats | None:
    """The distinct values; None: more than a threshold operator can tell apart, or not all numbers.

    Values that rounding may have parted count as one, but only where no other level is near: else nobody can say.
    """
    if not np.isfinite(made).all():
        return None
    found = np.unique(made)
    near = ROUNDING * float(np.abs(found).max())
    begins = np.diff(found, prepend=-np.inf) > near
    levels = found[begins]
    if len(levels) > MAX_LEVELS:
        return None
    if len(levels) < len(found):  # blurred: what is one level must stand far from all others
        blur = float((found[np.append(begins[1:], True)] - levels).max())
        if blur > near or len(levels) == 1 or np.diff(levels).min() < _APART * near:
            return None
    return levels


def _codes(made: Floats, levels: Floats) -> Whole:
    """The level of each value."""
    middle = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(middle, made).astype(np.int64)


def _directions(codes: Whole) -> NDArray[np.bool_]:
    """Which channels fall. Raises NotMonotone."""
    change = np.diff(codes, axis=1)
    up, down = (change > 0).any(axis=1), (change < 0).any(axis=1)
    if (up & down).any():
        raise NotMonotone
    return np.asarray(down, np.bool_)


def _exhaustive(made: Floats, levels: Floats, places: Whole) -> Steps:
    codes = _codes(made, levels)
    falling = _directions(codes)
    last = codes.shape[1] - 1
    at = np.empty((len(codes), len(levels) - 1), np.int64)
    for index in range(len(levels) - 1):
        reached = codes > index
        first = np.where(falling, last - reached[:, ::-1].argmax(axis=1), reached.argmax(axis=1))
        at[:, index] = np.take_along_axis(places, first[:, None], axis=1)[:, 0]
        _mark_ends(at[:, index], falling, np.any(reached, axis=1), np.all(reached, axis=1))
    return Steps(levels, at, falling)


def _mark_ends(at: Whole, falling: NDArray[np.bool_], some: Array, every: Array) -> None:
    at[~some] = np.where(falling, ALWAYS, NEVER)[~some]
    at[every] = np.where(falling, NEVER, ALWAYS)[every]


def _spread(domain: Domain) -> Whole:
    """Numbers of each channel, evenly from the first to the last."""
    parts = np.linspace(0.0, 1.0, max(_FEWEST, min(_GRID, _EXHAUSTIVE // len(domain.low))))
    count = ((domain.high - domain.low) // domain.every)[:, None]
    return domain.low[:, None] + domain.every * np.floor(count * parts).astype(np.int64)


def _sought(
    function: Callable[[Array], Array], domain: Domain, levels: Floats, places: Whole, made: Floats
) -> Steps | None:
    """Boundaries by bisection; values that turn up between two known levels become levels themselves."""
    if len(levels) == 1:
        return Steps(levels, np.zeros((len(made), 0), np.int64), np.zeros(len(made), np.bool_))
    while True:
        codes = _codes(made, levels)
        falling = _directions(codes)
        at, beside = _bisect(function, domain, levels, places, codes, falling)
        more = _levels(np.concatenate([levels, beside.ravel()])[None])
        if more is None:
            return None
        if len(more) == len(levels):
            return Steps(levels, at, falling)
        levels = more


def _bisect(
    function: Callable[[Array], Array],
    domain: Domain,
    levels: Floats,
    places: Whole,
    codes: Whole,
    falling: NDArray[np.bool_],
) -> tuple[Whole, Floats]:
    """at of Steps, and what the function gives on both sides of each boundary."""
    wanted = np.arange(1, len(levels))
    last = codes.shape[1] - 1
    first = np.zeros((len(codes), len(wanted)), np.int64)
    for index, level in enumerate(wanted):
        reached = codes >= level
        first[:, index] = np.where(falling, last - reached[:, ::-1].argmax(axis=1), reached.argmax(axis=1))
    some: Array = codes.max(axis=1)[:, None] >= wanted
    every: Array = codes.min(axis=1)[:, None] >= wanted
    other = np.clip(np.where(falling[:, None], first + 1, first - 1), 0, last)
    inside, outside = (np.take_along_axis(places, index, axis=1) for index in (first, other))
    edge = some & ~every
    while True:
        middle = inside + (outside - inside) // domain.every // 2 * domain.every
        open_ = edge & (np.abs(outside - inside) > domain.every)
        if not open_.any():
            break
        good = _codes(_exact(function(domain.number(middle))), levels) >= wanted
        inside, outside = np.where(open_ & good, middle, inside), np.where(open_ & ~good, middle, outside)
    beside = np.concatenate([_exact(function(domain.number(side)))[edge] for side in (inside, outside)])
    at = inside.copy()
    for index in range(at.shape[1]):
        _mark_ends(at[:, index], falling, some[:, index], every[:, index])
    return at, beside


def line_of(made: Floats, places: Whole) -> Line | None:
    """The straight line through each channel's values, where they lie on one."""
    if not np.isfinite(made).all():
        return None
    width = np.maximum((places[:, -1] - places[:, 0]).astype(np.float64), 1.0)
    largest = np.abs(made).max(axis=1)
    scale = _agreed((made[:, -1] - made[:, 0]) / width, 2 * ROUNDING * largest / width)
    bias = _agreed(made[:, 0] - scale * places[:, 0], 2 * ROUNDING * largest)
    off = np.abs(scale[:, None] * places + bias[:, None] - made).max(axis=1)
    return Line(scale, bias) if (off <= _AFFINE * largest).all() else None


def _agreed(values: Floats, near: Floats) -> Floats:
    """Values that rounding alone may have parted, as one: equal sums of alike channels must stay equal.

    near: how far it may have moved each of them.
    """
    made = values.copy()
    order = np.argsort(values, kind="stable")
    first = order[0]
    for index in order:
        if values[index] - values[first] > min(near[index], near[first]):
            first = index
        made[index] = values[first]
    return np.asarray(made, np.float64)


# --- domains --------------------------------------------------------------------------------------------------------


def scaled(low: Whole, high: Whole, scale: Floats, offset: Floats, every: int = 1) -> Domain:
    """Sums low..high that stand for scale * n + offset."""

    def number(places: Whole) -> Array:
        return (places * scale[:, None] + offset[:, None]).astype(np.float32)

    return Domain(low, high, number, every)


def floats(channels: int) -> Domain:
    """All finite float32 in their order: n counts them from 0.0 on, downwards below."""
    end = int(np.array(np.finfo(np.float32).max, np.float32).view(np.int32))
    return Domain(np.full(channels, -end), np.full(channels, end), float_at)


def float_at(places: Whole) -> Array:
    """The n-th float32; 0 is 0.0, negative ones go down."""
    bits = np.where(places < 0, -places | 1 << 31, places).astype(np.uint32)
    return np.ascontiguousarray(bits).view(np.float32)
