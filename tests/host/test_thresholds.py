"""The parts of the search: MSDNet's procedure as published, moves that are counted right, bounds that cover."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from exit_tables import TROUBLES, cost_shares, random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.host.choose import operating_points
from edgekit.host.thresholds.bound import paired_low
from edgekit.host.thresholds.chain import fill
from edgekit.host.thresholds.geometric import exit_shares, geometric, solve, thresholds_for
from edgekit.host.thresholds.paths import exits_after, higher, lower
from edgekit.host.thresholds.ranked import Ranked, Tried
from edgekit.runtime.measure import ExitTable


@given(st.floats(0.01, 50), st.integers(1, 12))
def test_exit_shares_are_geometric_and_add_up(p: float, exits: int) -> None:
    shares = exit_shares(p, exits)
    assert sum(shares) == pytest.approx(1.0)
    for one, next_ in itertools.pairwise(shares):
        assert next_ == pytest.approx(one * p)


@given(st.integers(2, 10), st.floats(0, 1), st.integers(0, 50))
def test_p_is_solved_for_the_expected_cost(exits: int, place: float, seed: int) -> None:
    costs = cost_shares(exits, seed)
    wanted = costs[0] + place * (1 - costs[0])
    shares = exit_shares(solve(wanted, costs), exits)
    assert sum(q * c for q, c in zip(shares, costs, strict=True)) == pytest.approx(wanted, abs=1e-6)


def published(confidence: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """The walk as the authors describe it, a sample at a time."""
    count, exits = confidence.shape
    gone, found = np.zeros(count, bool), []
    for k in range(exits - 1):
        threshold, walked = math.inf, 0
        for row in sorted(range(count), key=lambda row: -confidence[row, k]):
            if not gone[row]:
                walked += 1
                if walked == math.floor(count * shares[k] + 1e-9):
                    threshold = confidence[row, k]
                    break
        gone |= confidence[:, k] >= threshold
        found.append(threshold)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 60),
    st.integers(2, 6),
    st.sampled_from(["none", "ties", "overconfident"]),
)
def test_thresholds_are_those_of_the_published_walk(seed: int, count: int, exits: int, trouble: str) -> None:
    table = random_table(seed, count, exits, trouble=trouble)
    ranked = Ranked.of(table, cost_shares(exits))
    shares = exit_shares(0.3 + seed % 20 / 10, exits)
    found = thresholds_for(ranked, shares)
    values = [v[t] if t < len(v) else math.inf for v, t in zip(ranked.values, found, strict=True)]
    assert values == published(table.confidence, shares)


def test_ties_let_more_go_and_what_they_really_cost_is_counted() -> None:
    confidence = np.array([[1.0, 0.9, 0.0]] * 6 + [[0.5, 0.9, 0.0], [0.4, 0.2, 0.0]])
    same = np.zeros(confidence.shape, np.int64)
    ranked = Ranked.of(ExitTable(confidence, same, same == 0, confidence), (0.25, 0.5, 1.0))
    tried = ranked.tried(thresholds_for(ranked, (0.25, 0.5, 0.25)))
    assert tried.leaving == (
        6,
        0,
        2,
    )  # 2 were to leave, 6 are as sure; then fewer than 4 are left: nobody leaves
    assert tried.cost_share == pytest.approx((6 * 0.25 + 2) / 8)


def test_samples_without_a_confidence_never_leave_there() -> None:
    table = random_table(3, 100, trouble="nan")
    ranked = Ranked.of(table, cost_shares(3))
    for thresholds in (ranked.always, geometric(ranked, 0.6)):
        taken = ranked.taken(thresholds)
        for k in range(2):
            assert not np.isnan(table.confidence[taken == k, k]).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5), st.sampled_from(TROUBLES))
def test_a_move_costs_and_brings_what_its_sums_say(seed: int, exits: int, trouble: str) -> None:
    rng = np.random.default_rng(seed)
    ranked = Ranked.of(random_table(seed, 50, exits, trouble=trouble), cost_shares(exits, seed))
    thresholds = tuple(int(rng.integers(0, len(values) + 1)) for values in ranked.values)
    taken, after = ranked.taken(thresholds), exits_after(ranked, thresholds)
    now = ranked.tried(thresholds)
    for k in range(exits - 1):
        for moves, down in (
            (lower(ranked, k, now, taken), True),
            (higher(ranked, k, now, taken, after[k]), False),
        ):
            for place, threshold in enumerate(moves.thresholds.tolist()):
                if (threshold <= thresholds[k]) == down:
                    tried = ranked.tried((*thresholds[:k], threshold, *thresholds[k + 1 :]))
                    assert moves.cost[place] == pytest.approx(tried.cost_share)
                    assert moves.score[place] == tried.score


def test_the_gap_between_two_points_is_filled_with_what_is_best_above_the_chord_and_nested() -> None:
    def tried(thresholds: tuple[int, int], cost: float, score: int) -> Tried:
        return Tried(thresholds, (), cost, 0, 0, score)

    ends = [tried((0, 0), 0.2, 100), tried((9, 9), 1.0, 200)]
    good, better = tried((3, 3), 0.4, 150), tried((5, 4), 0.6, 190)
    below, crossing = tried((4, 4), 0.5, 120), tried((2, 9), 0.45, 165)
    pool = [good, better, below, crossing]
    assert fill(ends, pool, 1) == [ends[0], better, ends[1]]
    assert fill(ends, pool, 9) == [ends[0], good, better, ends[1]]
    assert fill(ends, pool, 0) == ends


# --- the bound ----------------------------------------------------------------------------------------------


def test_the_bound_of_nothing_gained_and_nothing_lost_is_wilsons() -> None:
    z2 = 1.6448536269514722**2
    assert paired_low(0, 0, 1000) == pytest.approx(-z2 / (1000 + z2), abs=1e-9)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(60, 5000))
def test_the_bound_is_below_what_was_seen_and_nearer_with_more_samples(
    gained: int, lost: int, count: int
) -> None:
    seen = (gained - lost) / count
    low = paired_low(gained, lost, count)
    assert -1 <= low < seen
    assert 10 * gained - 10 * lost == pytest.approx(10 * count * seen)
    assert seen - paired_low(10 * gained, 10 * lost, 10 * count) < seen - low


@pytest.mark.parametrize(
    ("gains", "losses"), [(0.0, 0.004), (0.004, 0.01), (0.02, 0.03), (0.05, 0.05), (0.002, 0.2)]
)
@pytest.mark.parametrize("count", [300, 2000])
def test_the_bound_covers_the_truth_in_about_95_of_100_draws(gains: float, losses: float, count: int) -> None:
    rng = np.random.default_rng(1)
    draws = rng.multinomial(count, [gains, losses, 1 - gains - losses], size=1000)
    covered = [paired_low(int(g), int(b), count) <= gains - losses for g, b, _ in draws.tolist()]
    assert np.mean(covered) >= 0.925  # a score bound: nominal on average over the truths, not for each


def test_points_chosen_from_few_samples_rarely_promise_more_than_their_bound() -> None:
    """The same samples picked the thresholds, so it covers less than nominally; without a bound it is a toss."""
    shares, promised, kept, lower_kept = cost_shares(3), 0, 0, 0
    population = random_table(99, 30_000)
    good = population.correct
    assert good is not None
    for seed in range(8):
        rows = np.random.default_rng(seed).choice(len(good), 300, replace=False)
        sample = ExitTable(
            population.confidence[rows], population.predicted[rows], good[rows], population.latency_ms[rows]
        )
        points = operating_points(sample, shares)
        ranked = Ranked.of(population, shares)
        for point in points[:-1]:
            thresholds = tuple(
                int(np.searchsorted(v, t)) for v, t in zip(ranked.values, point.thresholds, strict=True)
            )
            truth = (ranked.tried(thresholds).good - ranked.full_good) / ranked.count
            assert point.quality_low is not None
            promised += 1
            kept += truth >= point.quality - points[-1].quality
            lower_kept += truth >= point.quality_low - points[-1].quality
    assert lower_kept / promised >= 0.9
    assert kept / promised < 0.6
