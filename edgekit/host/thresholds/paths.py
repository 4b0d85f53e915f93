"""Nested ways between the full network and leaving at once: each step moves one threshold, the best for its cost.

Lowering one exit's threshold changes only samples that went past it, and raising it only those that left there: one
cumulative sum over the exit's ranks tells what every new threshold would cost and bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.host.thresholds.ranked import Ints, Ranked, Thresholds, Tried

Floats = NDArray[np.float64]
_LEAST = 1e-12  # a cost share below this is none
_ROUNDS = 3  # of all exits, at one price


@dataclass(frozen=True)
class Window:
    """How much mean cost share a step should move; a step of another size only where ties allow no other."""

    least: float
    most: float


@dataclass(frozen=True)
class Moves:
    """New thresholds of one exit, and the cost share, good and agreeing answers of all samples under each."""

    thresholds: Ints
    cost: Floats
    score: Ints


@dataclass(frozen=True)
class _Step:
    exit: int
    threshold: int
    worth: tuple[float, ...]  # the larger, the better


def downwards(ranked: Ranked, window: Window, start: Thresholds, end: Thresholds) -> list[Thresholds]:
    """From dearer thresholds to cheaper ones, both included: each step loses the least score per cost saved."""
    thresholds, path = list(start), [start]
    while True:
        taken = ranked.taken(thresholds)
        now, steps = ranked.counted(thresholds, taken), []
        for k in range(ranked.early):
            moves = lower(ranked, k, now, taken)
            saved, lost = now.cost_share - moves.cost, now.score - moves.score
            steps.append(_best(k, moves, np.where(moves.thresholds >= end[k], saved, 0.0), -lost, window))
        step = _first(steps)
        if step is None:
            return [*path, end]
        thresholds[step.exit] = step.threshold
        path.append(tuple(thresholds))


def upwards(ranked: Ranked, window: Window) -> list[Thresholds]:
    """From leaving at once to the full network: each step gains the most score per cost added."""
    thresholds, path = list(ranked.always), [ranked.always]
    while True:
        taken, after = ranked.taken(thresholds), exits_after(ranked, thresholds)
        now, steps = ranked.counted(thresholds, taken), []
        for k in range(ranked.early):
            moves = higher(ranked, k, now, taken, after[k])
            steps.append(_best(k, moves, moves.cost - now.cost_share, moves.score - now.score, window))
        step = _first(steps)
        if step is None:
            return [*path, ranked.never]
        thresholds[step.exit] = step.threshold
        path.append(tuple(thresholds))


def exits_after(ranked: Ranked, thresholds: Sequence[int]) -> list[Ints]:
    """For each exit: where every sample would leave if it went past that one."""
    leaves = ranked.leaves(thresholds)
    found = [np.full(ranked.count, ranked.early)]
    for k in range(ranked.early - 1, 0, -1):
        found.append(np.where(leaves[:, k], k, found[-1]))
    return found[::-1]


def lower(ranked: Ranked, k: int, now: Tried, taken: Ints) -> Moves:
    """All that lowering exit k's threshold can do: whoever went past it and is sure enough leaves there."""
    rows = np.flatnonzero((taken > k) & (ranked.ranks[:, k] >= 0))
    return _moves(ranked, k, now, _Moved(rows, taken[rows], np.full(len(rows), k)), from_the_top=True)


def higher(ranked: Ranked, k: int, now: Tried, taken: Ints, after: Ints) -> Moves:
    """All that raising exit k's threshold can do: whoever left there and is not sure enough goes on to `after`."""
    rows = np.flatnonzero((taken == k) & (ranked.ranks[:, k] >= 0))
    return _moves(ranked, k, now, _Moved(rows, taken[rows], after[rows]), from_the_top=False)


@dataclass(frozen=True)
class _Moved:
    """Samples that a move can take, the exits they leave at now and then."""

    rows: Ints
    old: Ints
    new: Ints


def _moves(ranked: Ranked, k: int, now: Tried, moved: _Moved, *, from_the_top: bool) -> Moves:
    """What comes of moving those with the highest (or lowest) ranks at exit k."""
    ranks = ranked.ranks[moved.rows, k]

    def sums(change: Ints | Floats) -> Floats:
        per_rank = np.bincount(ranks, change.astype(np.float64), minlength=len(ranked.values[k]))
        return per_rank[::-1].cumsum()[::-1] if from_the_top else per_rank.cumsum()

    def counts(each: Ints, total: int) -> Ints:
        change = sums(each[moved.rows, moved.new] - each[moved.rows, moved.old])
        return total + np.rint(change).astype(np.int64)

    cost = now.cost_share + sums(ranked.shares[moved.new] - ranked.shares[moved.old]) / ranked.count
    first = 0 if from_the_top else 1
    score = ranked.score(counts(ranked.good, now.good), counts(ranked.agrees, now.agreeing))
    return Moves(np.arange(first, first + len(cost)), cost, score)


def _best(k: int, found: Moves, spent: Floats, gained: Ints, window: Window) -> _Step | None:
    """The move of exit k with the best score per cost, both counted as the path goes."""
    possible = np.flatnonzero(spent > _LEAST)
    if not possible.size:
        return None
    fitting = possible[(spent[possible] >= window.least) & (spent[possible] <= window.most)]
    if not fitting.size:
        smaller = possible[spent[possible] < window.least]
        fitting = smaller[[spent[smaller].argmax()]] if smaller.size else possible[[spent[possible].argmin()]]
    each = gained[fitting] / spent[fitting]
    place = fitting[np.flatnonzero(each == each.max())]
    chosen = int(place[spent[place].argmax()])
    return _Step(
        k,
        int(found.thresholds[chosen]),
        (float(spent[chosen] >= window.least), float(gained[chosen] / spent[chosen]), float(spent[chosen])),
    )


def _first(steps: Sequence[_Step | None]) -> _Step | None:
    """The best of all exits' moves: of a fitting size before smaller ones."""
    return max((step for step in steps if step is not None), key=lambda step: step.worth, default=None)


def exchange(ranked: Ranked, prices: Sequence[float]) -> list[Thresholds]:
    """For each price (score of one sample per cost share of one), falling: thresholds that no exit alone can better.

    One threshold after the other takes its best value given the others, until none moves; once from each neighbour's
    thresholds, dearer and cheaper. What comes is near the best trade of score for cost, and nearly nested.
    """
    falling, rising = (
        _descend(ranked, prices, ranked.always),
        _descend(ranked, prices[::-1], ranked.never)[::-1],
    )
    return [
        max(pair, key=lambda t: _worth(ranked, t, price))
        for pair, price in zip(zip(falling, rising, strict=True), prices, strict=True)
    ]


def _worth(ranked: Ranked, thresholds: Thresholds, price: float) -> float:
    tried = ranked.tried(thresholds)
    return tried.score - price * ranked.count * tried.cost_share


def _descend(ranked: Ranked, prices: Sequence[float], start: Thresholds) -> list[Thresholds]:
    thresholds, found = list(start), []
    for price in prices:
        for _ in range(_ROUNDS):
            before = list(thresholds)
            for k in range(ranked.early):
                thresholds[k] = _best_threshold(ranked, thresholds, k, price)
            if thresholds == before:
                break
        found.append(tuple(thresholds))
    return found


def _best_threshold(ranked: Ranked, thresholds: list[int], k: int, price: float) -> int:
    """Exit k's best threshold at this price, the others as they are; the present one where none is better."""
    lowest = [*thresholds[:k], 0, *thresholds[k + 1 :]]
    taken = ranked.taken(lowest)
    now = ranked.counted(lowest, taken)
    moved = higher(ranked, k, now, taken, exits_after(ranked, lowest)[k])
    score = np.concatenate([[now.score], moved.score])
    cost = np.concatenate([[now.cost_share], moved.cost])
    worth = score - price * ranked.count * cost
    best = int(worth.argmax())
    return best if worth[best] > worth[thresholds[k]] + _LEAST else thresholds[k]


def nested_of(found: Sequence[Thresholds]) -> list[Thresholds]:
    """What nearly rises, made to rise: the middle of the running maximum and of the minimum of what follows."""
    raw = np.array(found, np.int64)
    high, low = np.maximum.accumulate(raw, axis=0), np.minimum.accumulate(raw[::-1], axis=0)[::-1]
    return [tuple(row) for row in ((high + low) // 2).tolist()]
