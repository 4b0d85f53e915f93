"""The budget controller: its mean over the stream is held when stream, machine or budget change. Simulated, seeded."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.core.manifest import OperatingPoint
from edgekit.runtime.policies import budget as controller
from edgekit.runtime.policies.budget import BudgetPlan, BudgetState, choose, start, step
from edgekit.runtime.policy import NEVER, BudgetPolicy

SHARES = (0.25, 0.5, 1.0)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stream:
    """Confidences of shape (requests, early exits), the easiest input first."""

    confidences: Floats

    @property
    def shuffled(self) -> Floats:
        return np.random.default_rng(5).permutation(self.confidences)


def smooth(count: int, seed: int, harder: float = 0.0) -> Stream:
    """Confidences spread between 0.1 and 1, more of them high at the second exit; `harder` shifts all of them down."""
    draw = np.random.default_rng(seed)
    difficulty = np.sort(draw.normal(harder, 1.0, count))
    margins = 1.5 * (1.0 + np.array([0.0, 0.8]) - difficulty[:, None]) + draw.normal(0, 0.4, (count, 2))
    return Stream(0.1 + 0.9 / (1 + np.exp(-margins)))


def saturated(count: int, seed: int, harder: float = 0.0) -> Stream:
    """Most confidences at exactly 1, as a well trained network has them, the others anywhere."""
    lifted = smooth(count, seed, harder - 0.7).confidences
    return Stream(np.where(lifted > 0.8, 1.0, lifted))


KINDS = {"smooth": smooth, "saturated": saturated}


def nested_points(
    confidences: Floats, count: int, shares: Sequence[float] = SHARES
) -> tuple[OperatingPoint, ...]:
    """A table from the first exit for all to the full network, every threshold rising from one point to the next."""
    early = confidences.shape[1]
    rows: list[tuple[float, ...]] = [(0.0,) * early]
    rows += [tuple(np.quantile(confidences, q, axis=0).tolist()) for q in np.linspace(0.02, 0.98, count - 2)]
    rows.append((NEVER,) * early)
    points = []
    for thresholds in rows:
        leaves = np.column_stack([confidences >= np.array(thresholds), np.ones(len(confidences), bool)])
        exits = leaves.argmax(axis=1)
        fractions = tuple(float((exits == k).mean()) for k in range(early + 1))
        cost = sum(f * s for f, s in zip(fractions, shares, strict=True))
        points.append(OperatingPoint(thresholds, cost, fractions, 0.9))
    return tuple(points)


class Run(NamedTuple):
    """What every request of a stream came to."""

    costs: Floats
    exits: NDArray[np.int64]

    def mean(self, since: int = 0, until: int | None = None) -> float:
        return float(self.costs[since:until].mean())


Times = Callable[[int, int], float]  # (request, exit) -> ms


def serve(policy: BudgetPolicy, confidences: Floats, time_of: Times | None = None, since: int = 0) -> Run:
    """Answer the stream as a Session does. Cost: the exit's percentage, or its time where `time_of` gives one."""
    costs, exits = [], []
    early = confidences.shape[1]
    for number, row in enumerate(confidences.tolist(), since):
        taken = next((k for k, c in enumerate(row) if policy.leave(k, c, 1.0)), early)
        spent = 100 * SHARES[taken] if time_of is None else time_of(number, taken)
        policy.observe(taken, spent)
        costs.append(spent)
        exits.append(taken)
    return Run(np.array(costs), np.array(exits))


def percent_policy(budget: float, points: tuple[OperatingPoint, ...]) -> BudgetPolicy:
    return BudgetPolicy(budget, points, tuple(100 * share for share in SHARES), per_ms=None)


EXIT_MS = (1.0, 2.0, 4.0)


def ms_policy(budget: float, points: tuple[OperatingPoint, ...]) -> BudgetPolicy:
    return BudgetPolicy(budget, points, EXIT_MS, per_ms=1.0)


def on_a_machine(slowdown: Callable[[int], float], seed: int = 3, spread: float = 0.2) -> Times:
    """Stage times with log-normal noise, and three in a thousand ten times as long."""
    draw = random.Random(seed)

    def time_of(number: int, taken: int) -> float:
        noise = draw.lognormvariate(-spread * spread / 2, spread)
        return EXIT_MS[taken] * slowdown(number) * noise * (10 if draw.random() < 0.003 else 1)

    return time_of


def orders(kind: Callable[..., Stream], count: int, seed: int) -> dict[str, Floats]:
    """One stream per way in which it can be unlike the validation data."""
    stream = kind(count, seed)
    half = count // 2
    return {
        "shuffled": stream.shuffled,
        "easy to hard": stream.confidences,
        "hard to easy": stream.confidences[::-1],
        "second half harder": np.concatenate([kind(half, seed).shuffled, kind(half, seed + 1, 0.8).shuffled]),
        "second half easier": np.concatenate(
            [kind(half, seed).shuffled, kind(half, seed + 1, -0.8).shuffled]
        ),
        "all harder": kind(count, seed, 1.0).shuffled,
        "all easier": kind(count, seed, -1.0).shuffled,
        "every other one hard": stream.shuffled.repeat(2, axis=0)[:count]
        * np.tile([[1.0], [0.2]], (half, 1)),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("points", [4, 24])
@pytest.mark.parametrize("order", list(orders(smooth, 4, 0)))
def test_the_mean_over_2000_requests_is_the_budget_whatever_the_stream(
    kind: str, points: int, order: str
) -> None:
    table = nested_points(KINDS[kind](4000, 1).confidences, points)
    confidences = orders(KINDS[kind], 2000, 11)[order]
    for budget in (28.0, 35.0, 50.0, 75.0, 95.0):
        run = serve(percent_policy(budget, table), confidences)
        assert run.mean() == pytest.approx(budget, rel=0.05), budget


@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize("budget", [1.9, 2.6, 3.4])
def test_a_budget_in_ms_is_held_while_the_processor_changes_its_speed(factor: float, budget: float) -> None:
    """A stretch at another speed; the budget can be met all the time."""
    table = nested_points(smooth(4000, 1).confidences, 24)
    wanted = budget * (1.2 if factor > 1 else 0.55)
    run = serve(
        ms_policy(wanted, table),
        smooth(3000, 12).shuffled,
        on_a_machine(lambda number: factor if 1000 <= number < 2000 else 1.0),
    )
    assert run.mean() == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_after_a_change_of_speed_the_budget_is_held_again_within_a_hundred_requests(factor: float) -> None:
    table, budget = nested_points(smooth(4000, 1).confidences, 24), 2.4 if factor > 1 else 1.6
    runs = []
    for seed in range(8):  # the mean of several streams: what is looked at is the controller, not one draw
        times = on_a_machine(lambda number: factor if number >= 1000 else 1.0, seed)
        runs.append(serve(ms_policy(budget, table), smooth(2400, 20 + seed).shuffled, times))
    soon = np.mean([run.mean(1100, 1300) for run in runs])
    later = np.mean([run.mean(1500, 2400) for run in runs])
    assert soon == pytest.approx(budget, rel=0.12)  # what was overspent is being paid back
    assert later == pytest.approx(budget, rel=0.02)


def test_the_slowdown_is_learnt_apart_from_the_mix_of_exits() -> None:
    table = nested_points(smooth(4000, 1).confidences, 24)
    harder, slower = ms_policy(2.0, table), ms_policy(3.0, table)
    serve(harder, smooth(1000, 13, harder=1.0).shuffled, on_a_machine(lambda number: 1.0, spread=0.05))
    serve(slower, smooth(1000, 13).shuffled, on_a_machine(lambda number: 2.0, spread=0.05))
    assert harder.state.slowdown == pytest.approx(1.0, rel=0.15)
    assert harder.state.hardness > 1.3
    assert slower.state.slowdown == pytest.approx(2.0, rel=0.15)
    assert slower.state.hardness == pytest.approx(1.0, abs=0.2)


def test_a_new_budget_is_met_from_its_first_requests_and_what_was_learnt_stays() -> None:
    table = nested_points(smooth(4000, 1).confidences, 24)
    times = on_a_machine(lambda number: 2.0, spread=0.1)
    first = ms_policy(6.0, table)
    before = serve(first, smooth(2000, 14).shuffled, times)
    second = BudgetPolicy(3.0, table, EXIT_MS, per_ms=1.0, before=first)
    assert second.state.slowdown == first.state.slowdown
    assert second.state.debt == 0.0
    after = serve(second, smooth(2000, 15).shuffled, times, since=2000)
    assert before.mean() == pytest.approx(6.0, rel=0.05)
    assert after.mean(0, 100) == pytest.approx(3.0, rel=0.15)
    assert after.mean() == pytest.approx(3.0, rel=0.05)
    unaware = serve(ms_policy(3.0, table), smooth(2000, 15).shuffled, times, since=2000)
    assert abs(after.mean(0, 40) - 3.0) < abs(unaware.mean(0, 40) - 3.0)


def test_what_another_bundle_taught_is_not_used() -> None:
    learnt = ms_policy(3.0, nested_points(smooth(4000, 1).confidences, 24))
    serve(learnt, smooth(500, 16).shuffled, on_a_machine(lambda number: 2.0))
    other = nested_points(smooth(4000, 2).confidences, 24)
    assert BudgetPolicy(3.0, other, EXIT_MS, per_ms=1.0, before=learnt).state.slowdown == 1.0
    in_percent = BudgetPolicy(50.0, learnt.points, (25.0, 50.0, 100.0), per_ms=None, before=learnt)
    assert in_percent.state.slowdown == 1.0


@pytest.mark.parametrize(("budget", "taken"), [(1.0, {0}), (24.9, {0}), (101.0, {2}), (1e9, {2})])
def test_a_budget_out_of_reach_gives_the_cheapest_or_the_full_network(budget: float, taken: set[int]) -> None:
    table = nested_points(smooth(4000, 1).confidences, 24)
    assert set(serve(percent_policy(budget, table), smooth(3000, 17).shuffled).exits.tolist()) == taken


@pytest.mark.parametrize("stretch", [400, 10_000])
def test_an_impossible_stretch_is_not_paid_back_for_long(stretch: int) -> None:
    """Four times too slow for the budget, then as measured: however long it lasted, the mean is soon the budget."""
    table, budget = nested_points(smooth(4000, 1).confidences, 24), 2.0
    policy = ms_policy(budget, table)
    times = on_a_machine(lambda number: 4.0 if number < stretch else 1.0, spread=0.05)
    slow = serve(policy, smooth(stretch, 18).shuffled, times)
    assert slow.mean(100) == pytest.approx(4.0, rel=0.1)
    assert policy.state.debt == controller.MOST_DEBT
    after = serve(policy, smooth(3000, 19).shuffled, times, since=stretch)
    assert after.mean(0, 200) >= 0.5 * budget
    assert after.mean(800) == pytest.approx(budget, rel=0.03)


def test_an_unspendable_budget_does_not_pile_up_credit_for_later() -> None:
    table = nested_points(smooth(4000, 1).confidences, 24)
    policy = ms_policy(5.0, table)
    serve(policy, smooth(10_000, 18).shuffled, on_a_machine(lambda number: 0.5, spread=0.05))
    after = serve(policy, smooth(3000, 19).shuffled, on_a_machine(lambda number: 2.0, spread=0.05))
    assert after.mean(800) == pytest.approx(5.0, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [30.0, 45.0, 60.0, 80.0])
def test_a_steady_stream_is_served_steadily(kind: str, budget: float) -> None:
    """The mean cost of windows scatters no more than if every request's exit were drawn by itself: no oscillation."""
    table = nested_points(KINDS[kind](4000, 1).confidences, 24)
    run = serve(percent_policy(budget, table), KINDS[kind](12_000, 21).shuffled)
    steady = run.costs[2000:]
    for window in (50, 100, 250, 500):
        scatter = steady[: len(steady) // window * window].reshape(-1, window).mean(axis=1).std()
        assert scatter <= 1.05 * steady.std() / math.sqrt(window), window


def test_the_same_stream_is_served_the_same_way_twice() -> None:
    table = nested_points(smooth(4000, 1).confidences, 24)
    one, two = (serve(percent_policy(40.0, table), smooth(500, 22).shuffled) for _ in range(2))
    np.testing.assert_array_equal(one.exits, two.exits)


def test_one_hiccup_of_seconds_is_not_the_streams_cost() -> None:
    table, budget = nested_points(smooth(4000, 1).confidences, 24), 2.0
    policy = ms_policy(budget, table)
    steady = on_a_machine(lambda number: 1.0, spread=0.05)
    serve(policy, smooth(1000, 23).shuffled, steady)
    policy.observe(0, 30_000.0)
    assert policy.state.slowdown < 1.5
    assert serve(policy, smooth(500, 24).shuffled, steady).mean() > 0.9 * budget


# The function itself

_TABLES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6, unique=True).map(
    lambda costs: tuple(sorted(costs))
)
_POSITIVE = st.floats(1e-3, 1e3)


@given(st.floats(0.005, 2.0), _TABLES)
def test_alternating_between_points_costs_what_is_aimed_for(aim: float, costs: tuple[float, ...]) -> None:
    state, spent, rounds = start(BudgetPlan(aim, costs)), 0.0, 2000
    for _ in range(rounds):
        spent += costs[state.point]
        state = choose(1.0, 1.0, 0.0, state.carry, BudgetPlan(aim, costs))
    assert spent / rounds == pytest.approx(min(max(aim, costs[0]), costs[-1]), abs=1e-3)


@given(_POSITIVE, _TABLES, st.lists(st.tuples(st.floats(0.0, 1e3), st.floats(0.0, 1e9)), max_size=60))
def test_no_history_leaves_the_bounds(
    budget: float, costs: tuple[float, ...], history: list[tuple[float, float]]
) -> None:
    plan = BudgetPlan(budget, costs)
    state = start(plan)
    for promised, really in history:
        state = step(state, plan, promised, really)
        assert 0 <= state.point < len(costs)
        assert costs[0] <= state.aim <= costs[-1]
        assert abs(state.debt) <= controller.MOST_DEBT
        assert 0 <= state.carry < 1
        assert all(math.isfinite(value) and value > 0 for value in (state.slowdown, state.hardness))


@given(_POSITIVE, _TABLES, st.floats(0.5, 2.0))
def test_whoever_overspent_aims_lower_next_and_whoever_saved_higher(
    budget: float, costs: tuple[float, ...], ratio: float
) -> None:
    plan = BudgetPlan(budget, costs)
    before = start(plan)
    after = step(before, plan, before.aim, budget * ratio)
    assert after.debt == pytest.approx(ratio - 1)
    one_more = choose(
        1.0, after.hardness, after.debt, after.carry, plan
    )  # as if the machine were as fast as before
    assert one_more.aim <= before.aim if ratio >= 1 else one_more.aim >= before.aim


_CONFIDENCE = st.floats(0.0, 1.0) | st.sampled_from([math.nan, math.inf, -math.inf])


@settings(max_examples=200)
@given(
    st.integers(1, 4).flatmap(
        lambda early: st.tuples(
            st.lists(st.lists(st.floats(0.0, 1.0), min_size=early, max_size=early), min_size=0, max_size=5),
            st.lists(_CONFIDENCE, min_size=early, max_size=early),
        )
    ),
    st.floats(1.0, 150.0),
    st.floats(1.0, 150.0),
)
def test_more_budget_never_lowers_the_exit_of_the_same_request(
    drawn: tuple[list[list[float]], list[float]], one: float, other: float
) -> None:
    """Fresh state, and a table in which every threshold rises from the cheapest to the full network."""
    rows, confidences = drawn
    early = len(confidences)
    columns = [sorted([0.0, *(row[k] for row in rows), NEVER]) for k in range(early)]
    levels = list(zip(*columns, strict=True))
    shares = tuple((k + 1) / (early + 1) for k in range(early + 1))
    points = []
    for level, thresholds in enumerate(levels):
        later = level / (len(levels) - 1)  # a share goes from the first exit to the last
        fractions = (1 - later, *(0.0,) * (early - 1), later)
        cost = sum(f * s for f, s in zip(fractions, shares, strict=True))
        points.append(OperatingPoint(tuple(thresholds), cost, fractions, 0.9))

    def exit_of(budget: float) -> int:
        policy = BudgetPolicy(budget, tuple(points), tuple(100 * s for s in shares), per_ms=None)
        return next((k for k, c in enumerate(confidences) if policy.leave(k, c, 0.0)), early)

    low, high = sorted((one, other))
    assert exit_of(low) <= exit_of(high)
    assert exit_of(1000.0) == early
    sure = next((k for k, c in enumerate(confidences) if c >= 0), early)  # NaN and -inf go on
    assert exit_of(1e-3) == sure


def test_the_state_is_one_immutable_record() -> None:
    state = BudgetState()
    with pytest.raises(AttributeError):
        state.debt = 1.0  # type: ignore[misc]
    assert list(itertools.chain(state)) == [1.0, 1.0, 0.0, 0.0, 0.0, 0]
