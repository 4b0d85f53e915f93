"""Answer before a deadline: go on only while the next stage fits into what is left, however sure the answer is.

A stage's time is foreseen as its mean when the session was opened, times the machine's slowdown now, times the stage's
own margin. Both are learnt from every request that had a deadline, and outlive the request (`Pace`):

- **slowdown** follows the median of a request's time over what its stages took when measured, a fixed share up or down
  a request: twenty requests for a processor at half its clock, unmoved by single outliers. The request itself counts
  at once: when its own stages so far were slower than that, what is left of it is expected to be as slow.
- **margin**, one per stage, is a quantile held by stochastic approximation (Robbins and Monro 1951) the way adaptive
  conformal inference does it (Gibbs and Candes, arXiv 2106.00072): up by a large step when the stage took longer than
  foreseen, down by a small one otherwise, also when it was not tried. Up and down must balance, whatever the times are
  distributed like, so in the long run no more than 1 in 200 requests is surprised by any of its stages, and a margin
  that was driven up comes down again without anybody having to try.
"""

from __future__ import annotations

import itertools
import math

SURPRISED = 1 / 200  # share of requests in which any stage may take longer than foreseen
_UP = 1.1
_LEAST_MARGIN, _MOST_MARGIN = 0.25, 32.0
_STEP = 1.04  # of the slowdown
_MOST_SLOWDOWN = 256.0
_LEAST_MS = 1e-6  # what a stage costs at least: a clock may be too coarse to see one


class Pace:
    """What is known of a machine's pace with one bundle: one per open session, used by one request at a time.

    means_ms: of each stage when measured; reached_ms: their running sum. slowdown: time now over time measured.
    margins: of each stage, see the module; the first one's is not used, since it always runs.
    """

    __slots__ = ("_down", "first_margins", "margins", "means_ms", "reached_ms", "slowdown")

    def __init__(self, mean_ms: tuple[float, ...], p95_ms: tuple[float, ...]) -> None:
        """mean_ms, p95_ms: of each stage when measured. A margin starts as far above the p95 as that is above 1."""
        self.means_ms = tuple(max(mean, _LEAST_MS) for mean in mean_ms)
        self.reached_ms = tuple(itertools.accumulate(self.means_ms))
        self.first_margins = tuple(
            min(max(2 * p95 / mean - 1, 1.0), _MOST_MARGIN)
            for mean, p95 in zip(self.means_ms, p95_ms, strict=True)
        )
        self.margins = list(self.first_margins)
        share = SURPRISED / max(1, len(mean_ms) - 1)
        self._down = _UP ** -(share / (1 - share))
        self.slowdown = 1.0

    def tried(self, stage: int, *, surprised: bool) -> None:
        """The stage ran; surprised: it took longer than foreseen."""
        margin = self.margins[stage] * (_UP if surprised else self._down)
        self.margins[stage] = min(max(margin, _LEAST_MARGIN), _MOST_MARGIN)

    def answered(self, exit_index: int, ms: float) -> None:
        """A request was answered at this exit after `ms` of work: the stages behind it were not tried."""
        faster = ms < self.reached_ms[exit_index] * self.slowdown
        slowdown = self.slowdown / _STEP if faster else self.slowdown * _STEP
        self.slowdown = min(max(slowdown, 1 / _MOST_SLOWDOWN), _MOST_SLOWDOWN)
        margins = self.margins
        for stage in range(exit_index + 1, len(margins)):
            if margins[stage] > self.first_margins[stage]:
                margins[stage] *= self._down


class Anytime:
    """A deadline for a single request or each of a stream. What it learns is left in `pace`: making one is cheap."""

    __slots__ = ("_foreseen_ms", "_pace", "_reached_ms", "deadline_ms")

    def __init__(self, deadline_ms: float, pace: Pace) -> None:
        self.deadline_ms = deadline_ms
        self._pace = pace
        self._reached_ms = self._foreseen_ms = (
            0.0  # when the last exit was reached; what the next stage will take
        )

    def leave(self, exit_index: int, confidence: float, elapsed_ms: float, waited_ms: float = 0.0) -> bool:
        """See Policy."""
        pace = self._pace
        if exit_index:
            pace.tried(exit_index, surprised=elapsed_ms - self._reached_ms > self._foreseen_ms)
        self._reached_ms = elapsed_ms
        slowdown, so_far = pace.slowdown, (elapsed_ms - waited_ms) / pace.reached_ms[exit_index]
        slowdown = max(slowdown, so_far)
        following = exit_index + 1
        self._foreseen_ms = pace.means_ms[following] * slowdown * pace.margins[following]
        return elapsed_ms + self._foreseen_ms > self.deadline_ms and not math.isnan(confidence)

    def observe(self, exit_index: int, latency_ms: float, waited_ms: float = 0.0) -> None:
        """See Policy."""
        pace = self._pace
        if exit_index and exit_index == len(pace.means_ms) - 1:  # nobody asked there whether to leave
            pace.tried(exit_index, surprised=latency_ms - self._reached_ms > self._foreseen_ms)
        pace.answered(exit_index, latency_ms - waited_ms)
