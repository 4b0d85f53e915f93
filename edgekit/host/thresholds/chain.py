"""Choose a chain: thresholds that only rise from point to point, the best score at every level of cost."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence

import numpy as np

from edgekit.host.thresholds.paths import exits_after, higher, lower
from edgekit.host.thresholds.ranked import Ranked, Thresholds, Tried

_EPSILON = 1e-12
_LEAST_GAIN = 1e-6  # of a sample: what rounding makes of nothing
_LEAN = 1e-6  # what a whole network's cost weighs against one sample's score: between equals, the surer one
_SWEEPS = 2
# shares of those who come to an exit, the first ones first
_TRIED = (0.03, -0.03, 0.1, -0.1, 0.01, -0.01, 0.3, -0.3)
_EVALUATIONS = 1_500  # bounds the search between neighbours, whatever the number of exits


def best_within(tried: Iterable[Tried], level: float) -> Tried:
    """The best of what costs no more than `level`; one of `tried` must."""
    return max(
        (entry for entry in tried if entry.cost_share <= level + _EPSILON),
        key=lambda entry: (entry.score, -entry.cost_share),
    )


def best_chain(pool: Iterable[Tried], levels: Sequence[float], floors: Sequence[int]) -> list[Tried]:
    """One choice per level: within its cost, with at least its floor's score, nested, and the largest mean score.

    levels: cost shares, rising. pool: must hold a nested choice that meets all floors. Exact, by dynamic programming
    over the elementwise order of the thresholds.
    """
    tried = sorted(
        {entry.thresholds: entry for entry in pool}.values(), key=lambda t: (t.cost_share, t.thresholds)
    )
    thresholds = np.array([entry.thresholds for entry in tried], np.int64).reshape(len(tried), -1)
    cost = np.array([entry.cost_share for entry in tried])
    score = np.array([entry.score for entry in tried], np.float64)
    above = np.ones((len(tried), len(tried)), np.bool_)  # [a, b]: b may follow a
    for k in range(thresholds.shape[1]):
        above &= thresholds[None, :, k] >= thresholds[:, None, k]
    total, came_from = np.zeros(len(tried)), []
    for index, (level, floor) in enumerate(zip(levels, floors, strict=True)):
        if index:
            reach = np.where(above, total[:, None], -np.inf)
            before = reach.argmax(axis=0)
            total = reach[before, np.arange(len(tried))]
            came_from.append(before)
        allowed = (cost <= level + _EPSILON) & (score >= floor)
        total = np.where(allowed, total + score + _LEAN * cost, -np.inf)
    place = int(total.argmax())
    chain = [place]
    for before in reversed(came_from):
        place = int(before[place])
        chain.append(place)
    return [tried[place] for place in reversed(chain)]


def improve(ranked: Ranked, chain: Sequence[Tried], levels: Sequence[float]) -> list[Tried]:
    """Move each point between its neighbours while its score rises at no more than its level's cost.

    One threshold moves a little, then another takes the best value that is left; the first and last point stay.
    """
    found = list(chain)
    inner = range(1, len(found) - 1)
    pairs = ranked.early * max(1, ranked.early - 1)
    width = min(len(_TRIED), max(1, _EVALUATIONS // (2 * _SWEEPS * max(1, len(inner)) * pairs)))
    for _ in range(_SWEEPS):
        before = list(found)
        for index in inner:
            found[index] = _better(ranked, found, index, levels[index], width)
        if found == before:
            break
    return found


def fill(chain: Sequence[Tried], pool: Sequence[Tried], room: int) -> list[Tried]:
    """Put up to `room` of the pool's choices between the chain's, where they fit and lie furthest above the chord.

    A budget between two points alternates between them and so gets the chord: what lies above it is worth a point.
    """
    found = list(chain)
    for _ in range(room):
        costs = [entry.cost_share for entry in found]
        scores = [float(entry.score) for entry in found]
        above = np.array([entry.score for entry in pool]) - np.interp(
            [t.cost_share for t in pool], costs, scores
        )
        for index in np.argsort(-above, kind="stable").tolist():
            place = bisect.bisect_right(costs, pool[index].cost_share)
            if above[index] <= _LEAST_GAIN:
                return found
            if (
                0 < place < len(found)
                and _follows(found[place - 1], pool[index])
                and _follows(pool[index], found[place])
            ):
                found.insert(place, pool[index])
                break
        else:
            return found
    return found


def _follows(cheap: Tried, dear: Tried) -> bool:
    """Whether two choices can stand in one table, one after the other."""
    return all(a <= b for a, b in zip(cheap.thresholds, dear.thresholds, strict=True))


def _better(ranked: Ranked, chain: Sequence[Tried], index: int, level: float, width: int) -> Tried:
    low, high = chain[index - 1].thresholds, chain[index + 1].thresholds
    if low == high:
        return chain[index]
    best = _one_moved(ranked, chain[index], low, high, level)
    for k in range(ranked.early):
        for value in _nearby(ranked, best.thresholds, k, width):
            if low[k] <= value <= high[k]:
                start = ranked.tried((*best.thresholds[:k], value, *best.thresholds[k + 1 :]))
                best = max(
                    best, _one_moved(ranked, start, low, high, level), key=lambda t: _standing(t, level)
                )
    return best


def _standing(tried: Tried, level: float) -> tuple[bool, int, float]:
    """What makes one choice better than another at a level of cost."""
    return tried.cost_share <= level + _EPSILON, tried.score, tried.cost_share


def _one_moved(ranked: Ranked, start: Tried, low: Thresholds, high: Thresholds, level: float) -> Tried:
    """The best that the move of one threshold between `low` and `high` makes of `start`, or `start`."""
    best = start
    taken, after = ranked.taken(start.thresholds), exits_after(ranked, start.thresholds)
    for k in range(ranked.early):
        for moves in (lower(ranked, k, start, taken), higher(ranked, k, start, taken, after[k])):
            inside = (moves.thresholds >= low[k]) & (moves.thresholds <= high[k])
            places = np.flatnonzero(inside & (moves.cost <= level + _EPSILON))
            if not places.size:
                continue
            top = places[moves.score[places] == moves.score[places].max()]
            place = int(top[moves.cost[top].argmax()])
            if (True, int(moves.score[place]), float(moves.cost[place]) - _EPSILON) > _standing(best, level):
                value = int(moves.thresholds[place])
                moved = ranked.tried((*start.thresholds[:k], value, *start.thresholds[k + 1 :]))
                best = max(best, moved, key=lambda t: _standing(t, level))
    return best


def _nearby(ranked: Ranked, thresholds: Thresholds, k: int, width: int) -> list[int]:
    """Other thresholds for exit k: so that some more, or some fewer, of those who come there leave."""
    come = (~ranked.leaves(thresholds)[:, :k].any(axis=1)) & (ranked.ranks[:, k] >= 0)
    ranks = np.sort(ranked.ranks[come, k])
    place = int(np.searchsorted(ranks, thresholds[k]))
    found = []
    for share in _TRIED[:width]:
        at = place + math.copysign(max(1, round(abs(share) * len(ranks))), share)
        if 0 <= at < len(ranks):
            found.append(int(ranks[int(at)]))
        elif share > 0:
            found.append(len(ranked.values[k]))
    return [value for value in dict.fromkeys(found) if value != thresholds[k]]
