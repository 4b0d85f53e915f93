"""Find operating points: thresholds from the cheapest to the full network, from validation data alone.

The table is nested: from one point to the next every threshold only rises, so that more budget never lowers the exit
any request reaches, and cost rises from point to point whatever a board's stages take. The decision itself is
runtime/policy.py's; it sees no label, and nothing here ever sees the data a bundle is judged on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from edgekit.core.manifest import OperatingPoint
from edgekit.host.thresholds.bound import paired_low
from edgekit.host.thresholds.chain import best_chain, best_within, fill, improve
from edgekit.host.thresholds.geometric import nested_family
from edgekit.host.thresholds.paths import Window, downwards, exchange, nested_of, upwards
from edgekit.host.thresholds.ranked import Ranked, Thresholds, Tried
from edgekit.runtime.measure import ExitTable

POINTS = 48
FAMILY = 64  # geometric points that the table is held against
PRICES = tuple(np.geomspace(20.0, 1e-3, 40).tolist())  # samples' score per cost share of one
_WINDOWS = (Window(1 / 96, 1 / 24), Window(1 / 24, 1 / 4))  # of the cost between cheapest and full, a step


def operating_points(
    table: ExitTable, cost_shares: Sequence[float], points: int = POINTS
) -> tuple[OperatingPoint, ...]:
    """At most `points` choices of thresholds: cost and quality rise from one to the next, the last is the full network.

    table: every exit's confidence and answer on validation data. cost_shares: cumulative share of each exit. Quality
    is accuracy where the data has labels, else agreement with the last exit.

    Searched is the best sum of the two, accuracy above the full network's not counted, at even levels of cost (see
    levels_of). At each level the table scores at least what any of the FAMILY geometric points of MSDNet (made nested,
    see nested_family) scores within that cost, exactly. Between two levels a budget alternates between points: there a
    geometric point can lie above the chord only where its thresholds are not between its neighbours', or the table has
    `points` already.

    The promised quality is the lowest of a point and of all dearer ones, so that more cost never promises less;
    quality_low its lower bound, see core.manifest.OperatingPoint.
    """
    ranked = Ranked.of(table, cost_shares)
    chosen = [ranked.tried(ranked.never)] if ranked.early == 0 else _search(ranked, points)
    full = chosen[-1]
    promised = np.minimum.accumulate([min(t.good, full.good) for t in reversed(chosen)])[::-1] / ranked.count
    low = np.minimum.accumulate([_low(ranked, t) for t in reversed(chosen)])[::-1]
    costs = np.maximum.accumulate([t.cost_share for t in chosen]).tolist()  # rounding apart, they rise
    return tuple(
        OperatingPoint(
            ranked.confidences(t.thresholds),
            cost,
            tuple(n / ranked.count for n in t.leaving),
            quality,
            max(0.0, min(quality, bound)),
        )
        for t, cost, quality, bound in zip(chosen, costs, promised.tolist(), low.tolist(), strict=True)
    )


def _low(ranked: Ranked, tried: Tried) -> float:
    """Lower one-sided 95 % bound of the quality, given the full network's: only changed answers count."""
    rows, taken = np.arange(ranked.count), ranked.taken(tried.thresholds)
    change = ranked.good[rows, taken] - ranked.good[:, -1]
    full = float(ranked.good[:, -1].mean())
    if not change.any() and tried.leaving[-1] == ranked.count:
        return full  # the full network itself
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    return full + paired_low(gained, lost, ranked.count)


def _search(ranked: Ranked, points: int) -> list[Tried]:
    """The table's points, each different from the others in what it does."""
    cheapest, full = ranked.tried(ranked.always), ranked.tried(ranked.never)
    costs = np.linspace(float(ranked.shares[0]), float(ranked.shares[-1]), FAMILY).tolist()
    family = [cheapest, *map(ranked.tried, nested_family(ranked, costs))]
    ways = list(map(ranked.tried, _ways(ranked, full.cost_share - cheapest.cost_share)))
    pool = [*family, *ways, full]
    levels = np.linspace(cheapest.cost_share, full.cost_share, levels_of(points)).tolist()
    floors = [best_within(family, level).score for level in levels]
    neighbours = [best_within(each, level) for level in levels for each in (family, ways)]
    pool += map(ranked.tried, _bridges(neighbours))
    # What is better may not be near the family: look for that first.
    for least in ([0] * len(levels), floors):
        chain = best_chain(pool, levels, [cheapest.score, *least[1:-1], full.score])
        chain = improve(ranked, [cheapest, *chain[1:-1], full], levels)
        pool += chain
    distinct = [cheapest]
    for tried in chain[1:]:
        if (tried.leaving, tried.score) != (distinct[-1].leaving, distinct[-1].score):
            distinct.append(tried)
    distinct[-1] = full
    return fill(distinct, pool, points - len(distinct))


def levels_of(points: int) -> int:
    """Even levels of cost that a table of so many points is searched at; the rest goes where it gains most."""
    return points - points // 8


def _ways(ranked: Ranked, span: float) -> list[Thresholds]:
    """Nested ways through the thresholds: exits alone, greedily down and up, by exchange with the gaps filled."""
    always, never = ranked.always, ranked.never
    small, large = (Window(each.least * span, each.most * span) for each in _WINDOWS)
    found = [(*never[:k], *always[k:]) for k in range(ranked.early + 1)]
    for window in (small, large):
        found += [*downwards(ranked, window, never, always), *upwards(ranked, window)]
    traded = [always, *dict.fromkeys(nested_of(exchange(ranked, PRICES))), never]
    for cheap, dear in itertools.pairwise(traded):
        found += downwards(ranked, small, dear, cheap)
    return found


def _bridges(found: Sequence[Tried]) -> list[Thresholds]:
    """Thresholds below and above both of two neighbours: where a chain can change from one way to another."""
    return [
        tuple(map(which, left.thresholds, right.thresholds))
        for left, right in itertools.pairwise(found)
        for which in (min, max)
    ]
