"""Decide at each exit whether to leave. Sees confidence and time, never a label.

The budget policy follows a table of operating points found on validation data: a budget between two of them alternates
between both, and a small integral correction holds the mean when the stream drifts from what validation promised.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass, replace
from typing import Protocol

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Manifest, OperatingPoint
from edgekit.core.policy import Budget, PolicySpec

NEVER = 2.0  # a threshold no confidence reaches
CORRECTION = 1 / 512  # share of one request's deviation that moves the next requests' aim


@dataclass(frozen=True)
class StageCosts:
    """What each stage takes on this machine. mj_per_ms: energy per ms of inference; None where nothing measures it."""

    mean_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    mj_per_ms: float | None = None

    @property
    def cumulative_ms(self) -> tuple[float, ...]:
        """Mean time from request to each exit."""
        return tuple(itertools.accumulate(self.mean_ms))


class Policy(Protocol):
    """The controller of one stream of requests."""

    deadline_ms: float | None

    def leave(self, exit_index: int, confidence: float, elapsed_ms: float) -> bool:
        """Whether to answer at this exit. Not asked at the last one.

        confidence: NaN never leaves; -inf where the exit has none. elapsed_ms: since the request came.
        """

    def observe(self, exit_index: int, latency_ms: float, waited_ms: float = 0.0) -> None:
        """What the request that just ended came to; waited_ms: the part of it that passed before its first stage."""


class Thresholds:
    """Fixed thresholds: `full` (none is ever reached) and `confidence`."""

    deadline_ms: float | None = None

    def __init__(self, thresholds: tuple[float, ...]) -> None:
        self.thresholds = thresholds

    def leave(self, exit_index: int, confidence: float, elapsed_ms: float) -> bool:
        """See Policy."""
        del elapsed_ms
        return confidence >= self.thresholds[exit_index]

    def observe(self, exit_index: int, latency_ms: float, waited_ms: float = 0.0) -> None:
        """See Policy."""


class Anytime:
    """Go on only while the next stage's p95 fits into what is left of the deadline."""

    def __init__(self, deadline_ms: float, costs: StageCosts) -> None:
        self.deadline_ms: float | None = deadline_ms
        self._latest_ms = tuple(deadline_ms - next_ms for next_ms in costs.p95_ms[1:])

    def leave(self, exit_index: int, confidence: float, elapsed_ms: float) -> bool:
        """See Policy."""
        return elapsed_ms > self._latest_ms[exit_index] and not math.isnan(confidence)

    def observe(self, exit_index: int, latency_ms: float, waited_ms: float = 0.0) -> None:
        """See Policy."""


@dataclass(frozen=True)
class BudgetState:
    """aim: the mean cost the next requests are chosen for. carry: how much of the dearer point is owed, 0-1."""

    aim: float
    carry: float = 0.0


def choose(state: BudgetState, costs: tuple[float, ...]) -> tuple[int, BudgetState]:
    """The operating point (index into rising expected `costs`) for the next request.

    Between two points the dearer one is taken just as often as makes the mean cost equal the aim.
    """
    if state.aim <= costs[0]:
        return 0, replace(state, carry=0.0)
    if state.aim >= costs[-1]:
        return len(costs) - 1, replace(state, carry=0.0)
    low = bisect.bisect_right(costs, state.aim) - 1
    owed = state.carry + (state.aim - costs[low]) / (costs[low + 1] - costs[low])
    return (low + 1, replace(state, carry=owed - 1)) if owed >= 1 else (low, replace(state, carry=owed))


def correct(state: BudgetState, budget: float, cost: float, costs: tuple[float, ...]) -> BudgetState:
    """Move the aim against what the last request cost more or less than the budget, within the table."""
    aim = state.aim + CORRECTION * (budget - cost)
    return replace(state, aim=min(max(aim, costs[0]), costs[-1]))


class BudgetPolicy:
    """Hold a mean cost over the stream; its whole state is one BudgetState."""

    deadline_ms: float | None = None

    def __init__(
        self,
        budget: float,
        points: tuple[OperatingPoint, ...],
        exit_costs: tuple[float, ...],
        *,
        per_ms: float | None,
    ) -> None:
        """exit_costs: cumulative cost of each exit in the budget's unit. per_ms: cost of one ms, where time is cost."""
        expected = [
            sum(s * c for s, c in zip(point.exit_shares, exit_costs, strict=True)) for point in points
        ]
        order = sorted(range(len(points)), key=expected.__getitem__)
        self._points = tuple(points[index].thresholds for index in order)
        self.costs = tuple(expected[index] for index in order)
        self._exit_costs = exit_costs
        self._per_ms = per_ms
        self.budget = budget
        self._index, self.state = choose(
            BudgetState(min(max(budget, self.costs[0]), self.costs[-1])), self.costs
        )

    def leave(self, exit_index: int, confidence: float, elapsed_ms: float) -> bool:
        """See Policy."""
        del elapsed_ms
        return confidence >= self._points[self._index][exit_index]

    def observe(self, exit_index: int, latency_ms: float, waited_ms: float = 0.0) -> None:
        """See Policy."""
        cost = (
            self._exit_costs[exit_index] if self._per_ms is None else (latency_ms - waited_ms) * self._per_ms
        )
        self._index, self.state = choose(correct(self.state, self.budget, cost, self.costs), self.costs)


def make_policy(spec: PolicySpec, manifest: Manifest, costs: StageCosts | None) -> Policy:
    """The controller for `spec` on this bundle and machine.

    Raises BadInput when the bundle has no operating points, or the budget's unit needs costs nobody measured here.
    """
    if spec.deadline_ms is not None:
        if costs is None:
            raise BadInput("policy anytime needs the stages' times measured on this machine")
        return Anytime(spec.deadline_ms, costs)
    exits = len(manifest.exits)
    if spec.kind == "full" or exits == 1:  # with one exit there is nothing to decide
        return Thresholds((NEVER,) * (exits - 1))
    points = manifest.operating_points
    if not points:
        raise BadInput(
            f"policy {spec.kind} needs operating points, and bundle {manifest.name} has none: use full or anytime"
        )
    if spec.budget is not None:
        exit_costs, per_ms = _exit_costs(spec.budget, manifest, costs)
        return BudgetPolicy(spec.budget.value, points, exit_costs, per_ms=per_ms)
    enough = points[-1].quality - spec.max_drop / 100
    return Thresholds(next(point.thresholds for point in points if point.quality >= enough))


def _exit_costs(
    budget: Budget, manifest: Manifest, costs: StageCosts | None
) -> tuple[tuple[float, ...], float | None]:
    """Cumulative cost of each exit in the budget's unit, and the cost of 1 ms where time is the cost."""
    shares = tuple(e.cost_share for e in manifest.exits)
    if budget.unit == "%":
        return tuple(100 * share for share in shares), None
    if budget.unit == "MMAC":
        return tuple(manifest.macs / 1e6 * share for share in shares), None
    if costs is None:
        raise BadInput(f"a budget in {budget.unit} needs the stages' times measured on this machine")
    if budget.unit == "ms":
        return costs.cumulative_ms, 1.0
    if costs.mj_per_ms is None:
        raise BadInput(
            "a budget in mJ needs a power sensor, and this machine has none that can be read: use ms or %"
        )
    per_ms = costs.mj_per_ms
    return tuple(ms * per_ms for ms in costs.cumulative_ms), per_ms
