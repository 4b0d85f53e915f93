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
    """Takes the iterations' scores one after the other. The first `iterations - 1` can halt a sample, the last does."""

    def __init__(self, iterations: int, epsilon: float) -> None:
        self._left, self._enough = iterations, 1.0 - epsilon
        self._sum: Tensor | None = None  # of the scores so far
        self._running: Tensor | None = None  # 1 where the sample has not halted yet
        self._taken: Tensor | None = None  # iterations of each sample
        self._remainder: Tensor | None = None

    def step(self, score: Tensor) -> Step:
        """One more iteration. score: float [N, 1], in [0, 1]."""
        self._left -= 1
        before = torch.zeros_like(score) if self._sum is None else self._sum
        running = torch.ones_like(score) if self._running is None else self._running
        total = before + score
        halts = torch.ones_like(score) if not self._left else (total >= self._enough).to(score.dtype)
        remainder = running * (1.0 - before)
        share = running * score + halts * (remainder - running * score)
        taken, left_over = running, running * halts * (1.0 - before)
        self._taken = taken if self._taken is None else self._taken + taken
        self._remainder = left_over if self._remainder is None else self._remainder + left_over
        self._sum, self._running = total, running * (1.0 - halts)
        return Step(share, remainder, total.clamp(max=1.0))

    @property
    def iterations(self) -> Tensor:
        """How many each sample has taken so far: N, float [N, 1], without gradient."""
        if self._taken is None:
            raise RuntimeError("no iteration has been taken")
        return self._taken.detach()

    @property
    def remainder(self) -> Tensor:
        """R: the share of each sample's halting iteration, float [N, 1]; 0 where it still runs."""
        if self._remainder is None:
            raise RuntimeError("no iteration has been taken")
        return self._remainder
