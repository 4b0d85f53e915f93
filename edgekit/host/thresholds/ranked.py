"""What validation data says about thresholds, as whole numbers: ranks of confidences, counts of right answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgekit.runtime.measure import ExitTable
from edgekit.runtime.policy import NEVER

Ints = NDArray[np.int64]
Thresholds = tuple[int, ...]  # one per exit but the last: leave where the confidence's rank is at least this


@dataclass(frozen=True)
class Tried:
    """Thresholds and what they come to. leaving: samples per exit; good, agreeing: how many answers are."""

    thresholds: Thresholds
    leaving: tuple[int, ...]
    cost_share: float
    good: int
    agreeing: int
    score: int  # what the search prefers at equal cost: see Ranked.score


@dataclass(frozen=True)
class Ranked:
    """An exit table whose confidences became ranks, so that equal confidences leave together.

    ranks: (samples, exits - 1), 0 for the exit's lowest confidence; -1 for NaN, which never leaves. values: each exit's
    distinct confidences, rising. good, agrees: (samples, exits), 0 or 1. shares: cumulative cost of each exit.
    """

    ranks: Ints
    values: tuple[NDArray[np.float64], ...]
    good: Ints
    agrees: Ints
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, table: ExitTable, cost_shares: Sequence[float]) -> Ranked:
        """good: right answers where the table has labels, else agreement with the last exit."""
        good = table.correct if table.correct is not None else table.agreement
        early = good.shape[1] - 1
        ranks, values = np.full((len(good), early), -1, np.int64, order="F"), []
        for k in range(early):
            known = ~np.isnan(table.confidence[:, k])
            sure = np.minimum(table.confidence[known, k], 1.0)  # a threshold above 1 is never reached
            distinct, place = np.unique(sure, return_inverse=True)
            ranks[known, k] = place
            values.append(distinct)
        agrees = table.agreement
        return cls(
            ranks,
            tuple(values),
            good.astype(np.int64),
            agrees.astype(np.int64),
            np.asarray(cost_shares, np.float64),
        )

    @property
    def count(self) -> int:
        """Samples."""
        return len(self.good)

    @property
    def early(self) -> int:
        """Exits but the last: as many as there are thresholds."""
        return len(self.values)

    @property
    def always(self) -> Thresholds:
        """Whoever has a confidence leaves at the first exit."""
        return (0,) * self.early

    @property
    def never(self) -> Thresholds:
        """The full network."""
        return tuple(len(values) for values in self.values)

    @cached_property
    def full_good(self) -> int:
        """Right answers of the full network."""
        return int(self.good[:, -1].sum())

    def score(self, good: Ints, agreeing: Ints) -> Ints:
        """Right answers, those above the full network's not counted, plus agreement with the last exit.

        A lead over the full network is mostly chance, and agreement scatters less than accuracy does.
        """
        scores: Ints = np.minimum(good, self.full_good) + agreeing
        return scores

    def leaves(self, thresholds: Sequence[int]) -> NDArray[np.bool_]:
        """(samples, exits - 1): whether a sample would leave at an exit it came to."""
        found: NDArray[np.bool_] = self.ranks >= np.asarray(thresholds, np.int64)
        if any(threshold <= 0 for threshold in thresholds):
            found &= self.ranks >= 0
        return found

    def taken(self, thresholds: Sequence[int]) -> Ints:
        """The exit each sample leaves at."""
        taken, leaves = np.full(self.count, self.early), self.leaves(thresholds)
        for k in range(self.early - 1, -1, -1):
            taken[leaves[:, k]] = k
        return taken

    def tried(self, thresholds: Sequence[int]) -> Tried:
        """What these thresholds come to."""
        return self.counted(thresholds, self.taken(thresholds))

    def counted(self, thresholds: Sequence[int], taken: Ints) -> Tried:
        """The same where the exits `taken` are known."""
        rows = np.arange(self.count)
        leaving = np.bincount(taken, minlength=self.early + 1)
        good, agreeing = int(self.good[rows, taken].sum()), int(self.agrees[rows, taken].sum())
        return Tried(
            tuple(map(int, thresholds)),
            tuple(leaving.tolist()),
            min(1.0, float(leaving @ self.shares) / self.count),
            good,
            agreeing,
            min(good, self.full_good) + agreeing,
        )

    def confidences(self, thresholds: Thresholds) -> tuple[float, ...]:
        """The thresholds as confidences, in the middle between the lowest that leaves and the next that stays."""
        return tuple(_between(values, t) for values, t in zip(self.values, thresholds, strict=True))


def _between(values: NDArray[np.float64], threshold: int) -> float:
    if threshold >= len(values):
        return NEVER
    if threshold == 0:
        return min(0.0, float(values[0]))
    below, above = float(values[threshold - 1]), float(values[threshold])
    middle = below + (above - below) / 2
    return middle if below < middle else above
