"""Exit tables for tests: made up, with every trouble an exit can have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.core.manifest import OperatingPoint
from edgekit.runtime.measure import ExitTable

TROUBLES = ("none", "overconfident", "ties", "nan", "uninformative", "better early", "sure and wrong")


def random_table(
    seed: int, count: int = 400, exits: int = 3, *, trouble: str = "none", labelled: bool = True
) -> ExitTable:
    """Later exits are right more often; a confident answer is right more often; then comes the trouble."""
    rng = np.random.default_rng(seed)
    truth, hardness = rng.integers(10, size=count), rng.random(count)
    predicted, confidence = np.empty((count, exits), np.int64), np.empty((count, exits))
    for k in range(exits):
        right = hardness + 0.1 * rng.normal(size=count) < 0.6 + 0.37 * (k + 1) / exits
        predicted[:, k] = np.where(right, truth, rng.integers(10, size=count))
        confidence[:, k] = np.clip(1.05 - 0.9 * hardness + 0.15 * rng.normal(size=count), 0, 1)
    if trouble == "overconfident":
        confidence = np.minimum(1.0, 0.9 + confidence / 5)
    elif trouble == "ties":
        confidence = np.round(confidence * 4) / 4
    elif trouble == "nan":
        confidence[rng.random(confidence.shape) < 0.2] = np.nan
        confidence[:, rng.integers(max(1, exits - 1))] = np.nan
    elif trouble == "uninformative":
        confidence[:, rng.integers(max(1, exits - 1))] = rng.random(count)
    elif trouble == "better early":
        predicted = predicted[:, ::-1]
    elif trouble == "sure and wrong":
        confidence[:, 0] = 1 - confidence[:, 0]
    correct = predicted == truth[:, None] if labelled else None
    return ExitTable(confidence, np.ascontiguousarray(predicted), correct, np.zeros((count, exits)))


def cost_shares(exits: int, seed: int = 0) -> tuple[float, ...]:
    """Cumulative shares of stages whose costs differ."""
    own = np.random.default_rng(seed).uniform(0.5, 2.0, exits)
    found = np.cumsum(own) / own.sum()
    return (*found[:-1].tolist(), 1.0)


def taken_by(table: ExitTable, thresholds: tuple[float, ...]) -> NDArray[np.int64]:
    """The exit each sample leaves at, by the rule the board follows."""
    last = table.predicted.shape[1] - 1
    found = np.full(len(table.predicted), last)
    for row, confidences in enumerate(table.confidence[:, :last].tolist()):
        found[row] = next((k for k, t in enumerate(thresholds) if confidences[k] >= t), last)
    return found


def good_of(table: ExitTable) -> NDArray[np.bool_]:
    """What quality counts: right answers, else agreement with the last exit."""
    return table.correct if table.correct is not None else table.agreement


def score_of(table: ExitTable, taken: NDArray[np.int64]) -> float:
    """What the search prefers: quality, not above the full network's, plus agreement."""
    good, rows = good_of(table), np.arange(len(taken))
    quality = min(int(good[rows, taken].sum()), int(good[:, -1].sum()))
    return (quality + int(table.agreement[rows, taken].sum())) / len(taken)


def is_nested(points: tuple[OperatingPoint, ...]) -> bool:
    """Whether every threshold only rises from point to point."""
    thresholds = np.array([point.thresholds for point in points])
    return bool((np.diff(thresholds, axis=0) >= 0).all())
