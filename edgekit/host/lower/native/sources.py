"""What a tensor of the plan stands for in the graph, and the grids that levels of a quantizer lie on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekit.host.lower.native import steps
from edgekit.host.lower.native.chain import Chain
from edgekit.host.lower.native.drafts import Held
from edgekit.host.lower.native.steps import Floats, Line, Steps, Whole
from edgekit.native import plan
from edgekit.runtime.backends import Array

_STEP = 1e-2  # of a step: a level further from its place lies on no grid


DIFFERS = "what follows differs by element after a change of shape"
_BLOCK = 1 << 22  # values evaluated at a time


class NotHere(Exception):
    """This node cannot be a plan's; the text says why."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a plan tensor stands for in the graph: value = scale * n + offset, by channel; n within low..high.

    places: for each element of the value's shape, which of the tensor's h * w * c values it is. real: the tensor holds
    floats, which are the value.
    """

    held: Held
    scale: Floats
    offset: Floats
    low: Whole
    high: Whole
    places: Whole
    real: bool = False
    every: int = 1  # n is low + a multiple of it

    @property
    def uniform(self) -> bool:
        """Whether all channels have one scale and one offset."""
        return bool((self.scale == self.scale[0]).all() and (self.offset == self.offset[0]).all())

    @property
    def natural(self) -> bool:
        """Whether the value is the tensor, channels before height and width, which a height or a side of 1 may lack."""
        h, w, c = self.held.h, self.held.w, self.held.c
        shapes = [(1, c, h, w), *([(1, c, w)] if h == 1 else []), *([(1, c)] if h == w == 1 else [])]
        usual = np.arange(self.held.count).reshape(h, w, c).transpose(2, 0, 1)
        return self.places.shape in shapes and np.array_equal(self.places.ravel(), usual.ravel())

    @property
    def is_grid(self) -> bool:
        """Whether a layer can read it: bits or bytes with one scale."""
        return self.held.type in (plan.BITS, plan.U8, plan.I8) and self.uniform


@dataclass(frozen=True)
class Grid:
    """Levels as offset + scale * n, n from low to high, in a tensor of this type and coding; scale > 0."""

    type: int
    coding: int
    low: int
    high: int
    scale: float
    offset: float


def grid_of(levels: Floats, *, as_bytes: bool, with_zero: bool = False) -> Grid | None:
    """The narrowest tensor for these levels; None: they lie on no grid of 256 steps.

    with_zero: 0 must be among its values, or be what padding of bits can stand for.
    """
    if len(levels) <= 2 and not as_bytes:
        two = _two(levels)
        if not with_zero or any(stands_for(0.0, two.scale, two.offset, n) for n in (-1, 0, 1)):
            return two
    elif len(levels) == 1 and not with_zero:
        return Grid(plan.U8, 0, 0, 1, 1.0, float(levels[0]))
    return _spaced(np.union1d(levels, [0.0]) if with_zero else levels, as_bytes=as_bytes)


def stands_for(value: float, scale: float, offset: float, number: int) -> bool:
    """Whether scale * number + offset is the value, up to rounding in float32."""
    largest = max(abs(value), abs(offset), abs(scale * number))
    return abs(scale * number + offset - value) <= steps.ROUNDING * largest


def _two(levels: Floats) -> Grid:
    """One level, or two, as bits of -1 and 1."""
    low, high = float(levels[0]), float(levels[-1])
    if low == high:
        return Grid(plan.BITS, plan.BIPOLAR, -1, 1, abs(low) or 1.0, 0.0 if low else -1.0)
    middle = (low + high) / 2
    offset = 0.0 if abs(middle) <= _rounding(levels) else middle
    return Grid(plan.BITS, plan.BIPOLAR, -1, 1, (high - low) / 2, offset)


def _rounding(levels: Floats) -> float:
    return steps.ROUNDING * float(np.abs(levels).max())


def _spaced(levels: Floats, *, as_bytes: bool) -> Grid | None:
    least = (
        float(np.diff(levels, prepend=levels[0] - 1.0).min())
        if len(levels) == 1
        else float(np.diff(levels).min())
    )
    for parts in range(1, _PARTS + 1):
        step = least / parts
        count = np.round((levels - levels[0]) / step)
        if count[-1]:
            step = float(levels[-1] - levels[0]) / float(count[-1])
        if np.abs(levels - levels[0] - step * count).max() <= min(_STEP * step, 2 * _rounding(levels)):
            return _placed(levels, step, int(count[-1]), as_bytes=as_bytes)
    return None


def _placed(levels: Floats, step: float, count: int, *, as_bytes: bool) -> Grid | None:
    """Where the grid lies to 0 decides what holds it."""
    first, near = float(levels[0]) / step, min(_STEP, 2 * _rounding(levels) / step)
    if abs(first % 1 - 0.5) <= near:  # 0 lies in the middle between two levels: half steps have it
        step, first, count = step / 2, 2 * first, 2 * count
    zero = abs(first - round(first)) <= 2 * near
    low = round(first) if zero else 0
    for type_, coding, least, most in (*(() if as_bytes else _CODINGS), *_BYTES):
        if low >= least and low + count <= most:
            bits = type_ == plan.BITS
            first_code, last_code = (least, most) if bits else (low, low + max(count, 1))
            return Grid(type_, coding, first_code, last_code, step, 0.0 if zero else float(levels[0]))
    return Grid(plan.U8, 0, 0, max(count, 1), step, float(levels[0])) if count <= 255 else None


_PARTS = 8  # of the smallest gap between two levels that a step may be
_BYTES = ((plan.U8, 0, 0, 255), (plan.I8, 0, -128, 127))
_CODINGS = (
    (plan.BITS, plan.TERNARY, -1, 1),
    (plan.BITS, plan.UNSIGNED2, 0, 3),
    (plan.BITS, plan.SIGNED2, -2, 1),
)


def activation_name(held: Held) -> str:
    """How people write what a layer reads: "a1", "a2", "a8", "a16"."""
    if held.type != plan.BITS:
        return "a16" if held.type == plan.I32 else "a8"
    return "a1" if held.coding == plan.BIPOLAR else "a2"


def source_of(
    held: Held, scale: float, offset: float, low: int, high: int, places: Whole, *, real: bool = False
) -> Source:
    """A source with one scale, offset and range for all channels."""
    ones = np.ones(held.c)
    whole = np.ones(held.c, np.int64)
    return Source(held, scale * ones, offset * ones, low * whole, high * whole, places, real)


def domain_of(source: Source) -> steps.Domain:
    """The numbers that the source's tensor may hold, and what they stand for."""
    every = 2 if source.held.coding == plan.BIPOLAR else source.every
    return steps.scaled(source.low, source.high, source.scale, source.offset, every)


def domain_of_any(source: Source) -> steps.Domain:
    """The numbers of all channels together, as one channel. Raises NotHere where they stand for different values."""
    if source.real:
        return steps.floats(1)
    if not source.uniform:
        raise NotHere(DIFFERS)
    every = 2 if source.held.coding == plan.BIPOLAR else source.every
    low, high = source.low.min(keepdims=True), source.high.max(keepdims=True)
    together = every if not ((source.low - low) % every).any() else 1
    return steps.scaled(low, high, source.scale[:1], source.offset[:1], together)


def line_through(found: Steps, domain: steps.Domain, source: Source) -> Line | None:
    """The straight line through a function of few values on the numbers of a grid."""
    places = domain.places()
    codes = np.zeros(places.shape, np.int64)
    for index in range(found.at.shape[1]):
        at = found.at[:, index : index + 1]
        codes += np.where(found.falling[:, None], places <= at, places >= at)
    return steps.line_of(found.levels[codes], places)


def channel_of(source: Source, shape: tuple[int, ...]) -> Whole | None:
    """For each index of axis 1 the tensor's channel; None where the two are not one to one."""
    rows = source.places.reshape(shape[0] * shape[1], -1) % source.held.c
    if len(rows) != source.held.c or (rows != rows[:, :1]).any() or len(np.unique(rows[:, 0])) != len(rows):
        return None
    return np.asarray(rows[:, 0], np.int64)


def alike(chain: Chain) -> Callable[[Array], Array]:
    """The chain on one number for all channels, which must agree."""

    def function(numbers: Array) -> Array:
        size = max(1, _BLOCK // chain.channels)
        return np.concatenate(
            [piece(numbers[:, start : start + size]) for start in range(0, numbers.shape[1], size)], axis=1
        )

    def piece(numbers: Array) -> Array:
        made = chain(np.broadcast_to(numbers, (chain.channels, numbers.shape[1])))
        if not np.array_equal(made, np.broadcast_to(made[:1], made.shape), equal_nan=True):
            raise NotHere(DIFFERS)
        return made[:1]

    return function


Found = TypeVar("Found", bound="Steps | Line | NDArray[np.bool_] | None")


def repeated(found: Found, channels: int) -> Found:
    """What holds for one channel, for all."""
    if isinstance(found, Steps):
        at, falling = np.repeat(found.at, channels, axis=0), np.repeat(found.falling, channels)
        return replace(found, at=at, falling=falling)
    if isinstance(found, Line):
        return replace(found, scale=np.repeat(found.scale, channels), bias=np.repeat(found.bias, channels))
    return found if found is None else np.repeat(found, channels)  # type: ignore[return-value]
