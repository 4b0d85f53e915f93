"""A bundle on trial with real requests: what is counted meanwhile, and what is made of it. Switches nothing."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit.agent.trial import TrialFailed, finite
from edgekit.core.manifest import BoardLimits
from edgekit.runtime.backends import Array
from edgekit.runtime.session import Answer

_RECENT = 4096  # requests after which older ones weigh half
_TIMES = 1024
_FEWEST = 20  # requests of each side that are compared, or of one whose median counts
_WORSE, _SIGMAS = 0.05, 3.0
_NOT_FINITE_SHARE, _NOT_FINITE = 0.02, 3
_OWN_MB = 16.0  # what the agent may have taken for itself meanwhile


@dataclass
class Watch:
    """What came of requests. Written by the thread that answers alone; others may read at any time.

    on_trial: outputs are looked at and times kept. answered: with an answer. missed: of them after their deadline.
    refused: their inputs did not fit. failed: the bundle's own failures, failure the first of them. not_finite: answers
    to numbers that are none. whole_ms: times of those that ran to the last exit, without waiting.
    """

    on_trial: bool = False
    answered: int = 0
    missed: int = 0
    refused: int = 0
    failed: int = 0
    not_finite: int = 0
    failure: str | None = None
    refusal: str | None = None
    whole_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))

    @property
    def requests(self) -> int:
        """All that were tried."""
        return self.answered + self.refused + self.failed

    @property
    def words(self) -> str:
        """What came of them, in short."""
        times = list(self.whole_ms)
        median = f", median {statistics.median(times):.3g} ms" if times else ""
        return f"{self.requests} real requests{median}"

    def answer(self, inputs: Mapping[str, Array], answer: Answer, took_ms: float, *, whole: bool) -> None:
        """Count an answered request. whole: it ran through all stages."""
        if self.answered >= _RECENT and not self.on_trial:
            self._forget()
        self.answered += 1
        self.missed += answer.deadline_missed
        if not self.on_trial:
            return
        if whole:
            self.whole_ms.append(took_ms)
        odd = answer.nan_confidences or not finite(answer.outputs.values())
        if odd and finite(inputs.values()):
            self.not_finite += 1

    def error(self, why: str, *, ours: bool) -> None:
        """Count a request that failed. ours: the bundle or the agent is to blame, not what the caller gave."""
        if ours:
            self.failed += 1
            self.failure = self.failure or why
        else:
            self.refused += 1
            self.refusal = self.refusal or why

    def _forget(self) -> None:
        self.answered, self.missed, self.refused = self.answered // 2, self.missed // 2, self.refused // 2


@dataclass(frozen=True)
class Before:
    """What served before, to compare with. same_policy: deadlines are the same as under the new bundle."""

    watch: Watch
    same_policy: bool


def judge(
    live: Watch, before: Before | None, limits: BoardLimits, grown_mb: float | None, *, throttled: bool
) -> None:
    """Raise TrialFailed where the new bundle does not hold.

    grown_mb: private memory of the agent since before the bundle was opened, None: not known. throttled: the board is
    slowed down, so that no latency is held against the bundle.
    """
    if live.failed:
        raise TrialFailed("runtime", f"{live.failed} of {live.requests} requests failed: {live.failure}")
    if live.not_finite >= max(_NOT_FINITE, _NOT_FINITE_SHARE * live.answered):
        raise TrialFailed(
            "not-finite", f"{live.not_finite} of {live.answered} answers hold what is no number"
        )
    whole = list(live.whole_ms)
    if limits.latency_ms is not None and len(whole) >= _FEWEST and not throttled:
        median = statistics.median(whole)
        if median > limits.latency_ms:
            raise TrialFailed(
                "latency", f"median {median:.3g} ms of {len(whole)} requests, limit {limits.latency_ms:g} ms"
            )
    if limits.memory_mb is not None and grown_mb is not None and grown_mb > limits.memory_mb + _OWN_MB:
        raise TrialFailed(
            "memory", f"the agent has grown by {grown_mb:.0f} MB, limit {limits.memory_mb:g} MB"
        )
    if before is not None:
        _compare(live, before)


def _compare(live: Watch, before: Before) -> None:
    old = before.watch
    if clearly_more(live.refused, live.requests, old.refused, old.requests):
        raise TrialFailed(
            "inputs",
            f"{live.refused} of {live.requests} requests did not fit ({_share(old.refused, old.requests)} before): "
            f"{live.refusal}",
        )
    if before.same_policy and clearly_more(live.missed, live.answered, old.missed, old.answered):
        raise TrialFailed(
            "deadline",
            f"{live.missed} of {live.answered} answers came late, {_share(old.missed, old.answered)} before",
        )


def clearly_more(count: int, of: int, count_before: int, of_before: int) -> bool:
    """Whether a share has grown by more than 5 points, and by more than chance explains.

    Three standard errors of the difference, the shares pooled (two-proportion z-test); never with fewer than 20 on a
    side.
    """
    if min(of, of_before) < _FEWEST:
        return False
    more = count / of - count_before / of_before
    pooled = (count + count_before) / (of + of_before)
    return more > _WORSE and more > _SIGMAS * math.sqrt(pooled * (1 - pooled) * (1 / of + 1 / of_before))


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.0f} %" if of else "unknown"
