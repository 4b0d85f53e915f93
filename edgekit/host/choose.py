"""Find operating points: thresholds from the cheapest to the full network, from validation data alone.

A direct search over quantiles of each exit's confidences. The decision itself is runtime/policy.py's; it sees no label,
and nothing here ever sees the data a bundle is judged on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.core.manifest import OperatingPoint
from edgekit.runtime.measure import ExitTable
from edgekit.runtime.policy import NEVER

POINTS = 24
_COMBINATIONS = 20_000  # bounds the search whatever the number of exits
_MOST, _FEWEST = 48, 2  # thresholds tried per exit, "never" not counted
_DIGITS = 6


@dataclass(frozen=True)
class _Tried:
    thresholds: tuple[float, ...]
    cost_share: float
    exit_shares: tuple[float, ...]
    quality: float
    agreement: float  # with the last exit

    def score(self, full: float) -> float:
        """What the search prefers at equal cost: see operating_points."""
        return min(self.quality, full) + self.agreement


def operating_points(
    table: ExitTable, cost_shares: Sequence[float], points: int = POINTS
) -> tuple[OperatingPoint, ...]:
    """At most `points` choices of thresholds: cost and quality rise from one to the next, the last is the full network.

    table: every exit's confidence and answer on validation data. cost_shares: cumulative share of each exit. Quality
    is accuracy where the data has labels, else agreement with the last exit. At each cost the best sum of the two is
    taken, accuracy above the full network's not counted: a lead over it is mostly chance, and agreement scatters less.
    The promised quality is the lowest of a point and of all dearer ones, so that more cost never promises less.
    """
    good = table.correct if table.correct is not None else table.agreement
    tried = sorted(
        _search(table.confidence, good, table.agreement, cost_shares),
        key=lambda t: (t.cost_share, -t.quality),
    )
    full = max(tried, key=lambda t: (t.cost_share, t.thresholds))
    chosen: list[_Tried] = []
    best, place = tried[0], 0
    for level in np.linspace(tried[0].cost_share, full.cost_share, points)[:-1].tolist():
        while place < len(tried) and tried[place].cost_share <= level + 1e-12:
            best = max(best, tried[place], key=lambda t: t.score(full.quality))
            place += 1
        if best is not full and best not in chosen:
            chosen.append(best)
    chosen.append(full)
    promised = np.minimum.accumulate([min(t.quality, full.quality) for t in reversed(chosen)])[::-1].tolist()
    return tuple(
        OperatingPoint(t.thresholds, t.cost_share, t.exit_shares, quality)
        for t, quality in zip(chosen, promised, strict=True)
    )


def _search(
    confidence: NDArray[np.float64],
    good: NDArray[np.bool_],
    agrees: NDArray[np.bool_],
    cost_shares: Sequence[float],
) -> Iterator[_Tried]:
    """Every combination of the grid, with what it costs and brings."""
    count, exits = good.shape
    grids = [_grid(confidence[:, index], exits - 1) for index in range(exits - 1)]
    leaves = [[confidence[:, k] >= threshold for threshold in grids[k]] for k in range(exits - 1)]

    def walk(
        staying: NDArray[np.bool_], thresholds: tuple[float, ...], taken: tuple[_Taken, ...]
    ) -> Iterator[_Tried]:
        index = len(thresholds)
        if index == exits - 1:
            yield _tried(
                thresholds, (*taken, _take(staying, good[:, index], agrees[:, index])), cost_shares, count
            )
            return
        for threshold, leave in zip(grids[index], leaves[index], strict=True):
            leaving = _take(staying & leave, good[:, index], agrees[:, index])
            yield from walk(staying & ~leave, (*thresholds, threshold), (*taken, leaving))

    yield from walk(np.ones(count, np.bool_), (), ())


_Taken = tuple[
    int, int, int
]  # samples leaving at an exit; how many of them are good; how many agree with the last exit


def _take(leaving: NDArray[np.bool_], good: NDArray[np.bool_], agrees: NDArray[np.bool_]) -> _Taken:
    return (
        int(np.count_nonzero(leaving)),
        int(np.count_nonzero(leaving & good)),
        int(np.count_nonzero(leaving & agrees)),
    )


def _tried(
    thresholds: tuple[float, ...], taken: Sequence[_Taken], cost_shares: Sequence[float], count: int
) -> _Tried:
    left, hits, agreeing = zip(*taken, strict=True)
    cost = sum(n * share for n, share in zip(left, cost_shares, strict=True)) / count
    return _Tried(
        thresholds, min(1.0, cost), tuple(n / count for n in left), sum(hits) / count, sum(agreeing) / count
    )


def _grid(confidence: NDArray[np.float64], early_exits: int) -> tuple[float, ...]:
    """Thresholds to try at one exit: quantiles of its confidences, always and never leaving included."""
    size = int(min(_MOST, max(_FEWEST, _COMBINATIONS ** (1 / early_exits) - 1)))
    quantiles = np.quantile(confidence, np.linspace(0, 1, size))
    rounded = {0.0, *(round(float(value), _DIGITS) for value in quantiles[1:])}
    return (*sorted(rounded), NEVER)
