"""Decide at each exit whether to leave. Sees confidence and time, never a label.

A confidence that is NaN goes on, whatever the policy. A threshold above 1 is never reached, not even by an infinite
confidence. The policies that have a state are in policies/: `budget` and `anytime`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Manifest, OperatingPoint, cheapest_point
from edgekit.core.policy import Budget, PolicySpec
from edgekit.runtime.policies.anytime import Anytime, Pace
from edgekit.runtime.policies.budget import BudgetPlan, BudgetState, start, step

NEVER = 2.0  # a threshold no confidence reaches


@dataclass(frozen=True)
class StageCosts:
    """What each stage takes on this machine. mj_per_ms: energy per ms of inference; None where nothing measures it.

    pace: what policies with a deadline learn from the requests they serve, on top of what was measured; it is made
    here, kept by `dataclasses.replace`, and shared by all policies made with these costs.
    """

    mean_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    mj_per_ms: float | None = None
    pace: Pace = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.pace is None:
            object.__setattr__(self, "pace", Pace(self.mean_ms, self.p95_ms))

    @property
    def cumulative_ms(self) -> tuple[float, ...]:
        """Mean time from request to each exit."""
        return tuple(itertools.accumulate(self.mean_ms))


class Policy(Protocol):
    """The controller of one stream of requests."""

    @property
    def deadline_ms(self) -> float | None:
        """After how many ms an answer is late; None where it never is."""

    def leave(self, exit_index: int, confidence: float, elapsed_ms: float, waited_ms: float = 0.0) -> bool:
        """Whether to answer at this exit. Asked at every exit a request comes to but the last.

        confidence: NaN never leaves. elapsed_ms: since the request came. waited_ms: the part of it before its first
        stage.
        """

    def observe(self, exit_index: int, latency_ms: float, waited_ms: float = 0.0) -> None:
        """What the request that just ended came to; the times as in `leave`."""


class Thresholds:
    """Fixed thresholds: `full` (none is ever reached) and `confidence`."""

    deadline_ms: float | None = None

    def __init__(self, thresholds: tuple[float, ...]) -> None:
        self.thresholds = thresholds
        self._least = reachable(thresholds)

    def leave(self, exit_index: int, confidence: float, elapsed_ms: float, waited_ms: float = 0.0) -> bool:
        """See Policy."""
        del elapsed_ms, waited_ms
        return confidence >= self._least[exit_index]

    def observe(self, exit_index: int, latency_ms: float, waited_ms: float = 0.0) -> None:
        """See Policy."""


def reachable(thresholds: tuple[float, ...]) -> tuple[float, ...]:
    """The thresholds for `>=`, those above 1 as NaN: so not even an infinite confidence reaches one."""
    return tuple(math.nan if threshold > 1 else threshold for threshold in thresholds)


class BudgetPolicy:
    """Hold a mean cost over the stream: the controller of policies/budget on one bundle's operating points."""

    deadline_ms: float | None = None

    def __init__(
        self,
        budget: float,
        points: tuple[OperatingPoint, ...],
        exit_costs: tuple[float, ...],
        *,
        per_ms: float | None,
        before: BudgetPolicy | None = None,
    ) -> None:
        """exit_costs: cumulative cost of each exit in the budget's unit. per_ms: cost of one ms, where time is cost.

        before: the policy this one replaces; what it learnt is kept where it ran the same operating points.
        """
        expected = [
            sum(s * c for s, c in zip(point.exit_shares, exit_costs, strict=True)) for point in points
        ]
        order = sorted(range(len(points)), key=expected.__getitem__)
        self.points = points
        self.plan = BudgetPlan(budget, tuple(expected[index] for index in order))
        self._least = tuple(reachable(points[index].thresholds) for index in order)
        self._exit_costs = exit_costs
        self._per_ms = per_ms
        known = before.state if before is not None and before.points == points else BudgetState()
        if per_ms is None:
            known = known._replace(slowdown=1.0)
        self.state: BudgetState = start(self.plan, known)

    def leave(self, exit_index: int, confidence: float, elapsed_ms: float, waited_ms: float = 0.0) -> bool:
        """See Policy."""
        del elapsed_ms, waited_ms
        return confidence >= self._least[self.state.point][exit_index]

    def observe(self, exit_index: int, latency_ms: float, waited_ms: float = 0.0) -> None:
        """See Policy."""
        promised = self._exit_costs[exit_index]
        really = promised if self._per_ms is None else (latency_ms - waited_ms) * self._per_ms
        self.state = step(self.state, self.plan, promised, really)


def make_policy(
    spec: PolicySpec, manifest: Manifest, costs: StageCosts | None, before: Policy | None = None
) -> Policy:
    """The controller for `spec` on this bundle and machine. With a deadline it is made in microseconds.

    before: the one it replaces on the same open session. Another budget (a command, a throttled board) then starts with
    what was learnt of the stream and of the machine's slowdown. What policies with a deadline learn is in `costs`.

    Raises BadInput when the bundle has no operating points, or the budget's unit needs costs nobody measured here.
    """
    if spec.deadline_ms is not None:
        if costs is None:
            raise BadInput("policy anytime needs the stages' times measured on this machine")
        return Anytime(spec.deadline_ms, costs.pace)
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
        known = before if isinstance(before, BudgetPolicy) else None
        return BudgetPolicy(spec.budget.value, points, exit_costs, per_ms=per_ms, before=known)
    return Thresholds(cheapest_point(points, spec.max_drop / 100).thresholds)


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
