"""MSDNet's operating points: exits taken in geometric shares. Needs no label.

Source: Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification, arXiv 1703.09844, section
"budgeted batch classification", and the authors' code for the thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.host.thresholds.ranked import Ranked, Thresholds

_WIDEST = 60.0  # |log p|: beyond it everything leaves at the first exit, or nothing before the last


def exit_shares(p: float, exits: int) -> tuple[float, ...]:
    """q_k proportional to p^k over `exits` exits; p < 1 leaves early, p > 1 late."""
    logs = [k * math.log(p) for k in range(exits)]
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    return tuple(weight / sum(weights) for weight in weights)


def solve(cost: float, cost_shares: Sequence[float]) -> float:
    """The p whose expected cost, the sum of q_k times the cost up to exit k, is `cost`; the nearest where none is."""
    low, high = -_WIDEST, _WIDEST
    for _ in range(100):
        middle = (low + high) / 2
        expected = sum(
            q * c for q, c in zip(exit_shares(math.exp(middle), len(cost_shares)), cost_shares, strict=True)
        )
        low, high = (middle, high) if expected < cost else (low, middle)
    return math.exp((low + high) / 2)


def thresholds_for(ranked: Ranked, shares: Sequence[float]) -> Thresholds:
    """Thresholds that let `shares` of all samples leave at each exit, found exit by exit.

    At exit k the floor(n * share) most confident of those still there leave, and with them all that are as confident
    as the last of these: what ties let go more is gone for the exits after it. Where fewer are still there, or the
    share is less than a sample, nobody leaves.
    """
    still: NDArray[np.bool_] = np.ones(ranked.count, np.bool_)
    found = []
    for k in range(ranked.early):
        wanted = math.floor(ranked.count * shares[k] + 1e-9)
        here = np.sort(ranked.ranks[still & (ranked.ranks[:, k] >= 0), k])
        threshold = int(here[-wanted]) if 0 < wanted <= len(here) else len(ranked.values[k])
        still &= ranked.ranks[:, k] < threshold
        found.append(threshold)
    return tuple(found)


def geometric(ranked: Ranked, cost: float) -> Thresholds:
    """Thresholds for this expected cost. What they really cost is counted: `ranked.tried(...)`."""
    shares = ranked.shares.tolist()
    return thresholds_for(ranked, exit_shares(solve(cost, shares), len(shares)))


def nested_family(ranked: Ranked, costs: Sequence[float]) -> tuple[Thresholds, ...]:
    """Geometric points for rising `costs`, every threshold at least the cheaper ones'.

    Mostly they rise by themselves. They do not where an exit is the less sure, the easier a sample was before it: there
    the running maximum stands for the geometric point, which no table could hold beside the cheaper ones.
    """
    raw = np.array([geometric(ranked, cost) for cost in costs], np.int64).reshape(len(costs), ranked.early)
    return tuple(tuple(row) for row in np.maximum.accumulate(raw, axis=0).tolist())
