"""Adaptive computation time: which share each iteration's state has in the answer (Graves 2016, arXiv 1603.08983).

A sample halts after the first iteration at which its scores add up to 1 - epsilon, at the latest after the last. Before
that an iteration's share is its score, at the halting one it is what remains to 1, after it nothing. All iterations are
computed: the shares say what counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What is known after one iteration, each float [N, 1].

    share: of this iteration's state in the answer. closing: what its share would be if every sample that still runs
    halted here. score: the sum of all scores so far, at most 1.
    """

    share: Tensor
    closing: Tensor
    score: Tensor


class Halting:
    """Takes the iterations' scores one after the other. Any can halt a sample, the last one does."""

    def __init__(self, iterations: int, epsilon: float) -> None:
        self._ahead, self._enough = iterations, 1.0 - epsilon
        self._sum: Tensor | None = None  # of the scores so far
        self._left: Tensor | None = None  # what remains to 1: 0 once a sample has halted
        self._went_on: list[tuple[Tensor, Tensor]] = []  # (1 where a sample did not halt, its score there)

    def step(self, score: Tensor) -> Step:
        """One more iteration. score: float [N, 1], in [0, 1]."""
        self._ahead -= 1
        closing = torch.ones_like(score) if self._left is None else self._left
        total = score if self._sum is None else self._sum + score
        share = closing
        if self._ahead:  # scores only add up: who has halted meets this again, with nothing left to share
            halts = total >= self._enough
            share = torch.where(halts, closing, score)
            self._went_on.append(((~halts).to(score.dtype), score))
        self._sum, self._left = total, closing - share
        return Step(share, closing, total.clamp(max=1.0))

    @property
    def iterations(self) -> Tensor:
        """N: how many each sample takes, float [N, 1]. To be asked after the last iteration."""
        return torch.ones_like(self._last()) + sum(on for on, _ in self._went_on)

    @property
    def remainder(self) -> Tensor:
        """R: the share of each sample's halting iteration, float [N, 1]. To be asked after the last iteration."""
        return torch.ones_like(self._last()) - sum(on * score for on, score in self._went_on)

    def _last(self) -> Tensor:
        if self._sum is None or self._ahead:
            raise RuntimeError(f"{self._ahead} iterations are still to come")
        return self._sum
