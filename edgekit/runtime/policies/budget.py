"""Hold a mean cost over a stream of requests. A pure function with its whole state in one record; draws nothing.

What one request brought goes to `step`, which gives the next state, and in it the operating point for the next request.
Three things are learnt, each at its own pace, because they change for different reasons:

- **slowdown**, horizon 16 requests: time a request took over what the stages it ran took when they were measured. A
  throttled processor moves it, a hard input does not. One request counts for at most four times what was known.
- **hardness**, horizon 128: what requests cost over what the table promised for the mixture that was aimed at. A
  stream harder or easier than validation moves it, a slower processor does not.
- **debt**, paid back over a horizon of 256: what was spent above the budget, in budgets of one request, so that the
  mean of the stream is held and not only that of the moment. It is bounded by half a horizon: a stretch in which the
  budget was out of reach is made up for in a few hundred requests, never for longer, at half the budget at worst.

The next request aims at `budget * (1 - debt / 256)`, translated into the table's costs by dividing by slowdown and
hardness. In small deviations, with g the stream's gain (relative change of its mean cost per relative change of the
aim), hardness and debt are a linear loop with trace -g (1/128 + 1/256) and determinant g / (128 * 256): stable for
every g > 0, with damping 1.06 sqrt(g).
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

SLOWDOWN_HORIZON = 16
HARDNESS_HORIZON = 128
DEBT_HORIZON = 256
MOST_DEBT = DEBT_HORIZON / 2
_JUMP = 4.0  # a single request's time counts for at most this many times the known slowdown, or one over it
_LEAST_SLOWDOWN, _MOST_SLOWDOWN = 1 / 256, 256.0
_LEAST_HARDNESS, _MOST_HARDNESS = 1 / 16, 16.0
_MOST_STEP = 16.0  # budgets one request can add to the debt: one hiccup of seconds is not the stream's cost


class BudgetState(NamedTuple):
    """All that is known of the stream. The defaults are what a new stream starts with.

    slowdown, hardness, debt: see the module. aim: the cost the point was chosen for, in the table's costs. carry: how
    much of the dearer of two points is owed, 0-1. point: index of the operating point for the next request.
    """

    slowdown: float = 1.0
    hardness: float = 1.0
    debt: float = 0.0
    aim: float = 0.0
    carry: float = 0.0
    point: int = 0


class BudgetPlan(NamedTuple):
    """What does not change while a budget holds. budget > 0; costs: what each point promises, rising; same unit."""

    budget: float
    costs: tuple[float, ...]


NEW = BudgetState()


def start(plan: BudgetPlan, known: BudgetState = NEW) -> BudgetState:
    """The first state. known: of the same bundle and machine under another budget; what was learnt is kept.

    Debts are not: a new budget is held from its first request on.
    """
    return choose(known.slowdown, known.hardness, 0.0, 0.0, plan)


def step(state: BudgetState, plan: BudgetPlan, promised: float, really: float) -> BudgetState:
    """The state after a request that ran under `state.point`, with the point for the next one.

    promised: what its exit costs by the table's figures. really: what the request took. Written without calls and with
    one record made at the end: it runs once a request, with little of it left in the processor's caches.
    """
    slowdown, hardness, debt, aim, carry, _ = state
    if promised > 0:
        ratio = really / promised
        if ratio > slowdown * _JUMP:
            ratio = slowdown * _JUMP
        elif ratio < slowdown / _JUMP:
            ratio = slowdown / _JUMP
        slowdown += (ratio - slowdown) / SLOWDOWN_HORIZON
        if not _LEAST_SLOWDOWN <= slowdown <= _MOST_SLOWDOWN:
            slowdown = _MOST_SLOWDOWN if slowdown > 1 else _LEAST_SLOWDOWN
    if aim > 0:
        hardness += (promised / aim - hardness) / HARDNESS_HORIZON
        if not _LEAST_HARDNESS <= hardness <= _MOST_HARDNESS:
            hardness = _MOST_HARDNESS if hardness > 1 else _LEAST_HARDNESS
    over = really / plan.budget - 1
    debt += min(over, _MOST_STEP)
    if not -MOST_DEBT <= debt <= MOST_DEBT:
        debt = MOST_DEBT if debt > 0 else -MOST_DEBT
    return choose(slowdown, hardness, debt, carry, plan)


def choose(slowdown: float, hardness: float, debt: float, carry: float, plan: BudgetPlan) -> BudgetState:
    """The state with the aim and the operating point for the next request.

    Between two points the dearer one is taken just as often as makes their mean cost equal the aim. A budget below the
    cheapest point or above the dearest gives that point.
    """
    budget, costs = plan
    aim = budget * (1 - debt / DEBT_HORIZON) / (slowdown * hardness)
    if aim <= costs[0]:
        return BudgetState(slowdown, hardness, debt, costs[0], 0.0, 0)
    if aim >= costs[-1]:
        return BudgetState(slowdown, hardness, debt, costs[-1], 0.0, len(costs) - 1)
    low = bisect.bisect_right(costs, aim) - 1
    owed = carry + (aim - costs[low]) / (costs[low + 1] - costs[low])
    dearer = owed >= 1
    return BudgetState(slowdown, hardness, debt, aim, owed - dearer, low + dearer)
