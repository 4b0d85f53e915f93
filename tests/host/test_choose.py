"""Operating points: nested from the cheapest to the full network, as good as the geometric ones, no more promised."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exit_tables import TROUBLES, cost_shares, good_of, is_nested, random_table, score_of, taken_by
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.core.manifest import OperatingPoint
from edgekit.core.profile import Backend
from edgekit.host.choose import FAMILY, POINTS, levels_of, operating_points
from edgekit.host.load import load
from edgekit.host.pack import draft
from edgekit.host.passes import Context, run_steps, step
from edgekit.host.split import split
from edgekit.host.thresholds.chain import best_chain
from edgekit.host.thresholds.geometric import nested_family
from edgekit.host.thresholds.ranked import Ranked
from edgekit.runtime.curves import replayed
from edgekit.runtime.data import load_data
from edgekit.runtime.measure import ExitTable, exit_table
from edgekit.runtime.policy import BudgetPolicy

SHARES = (0.2, 0.5, 1.0)
troubles = st.sampled_from(TROUBLES)
seeds = st.integers(0, 10_000)


def cost_of(taken: np.ndarray, shares: tuple[float, ...]) -> float:
    return float(np.array(shares)[taken].mean())


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 200), st.integers(2, 7), troubles, st.booleans())
def test_the_table_is_nested_and_rises_from_the_cheapest_to_the_full_network(
    seed: int, count: int, exits: int, trouble: str, labelled: bool
) -> None:
    found = random_table(seed, count, exits, trouble=trouble, labelled=labelled)
    shares = cost_shares(exits, seed)
    points = operating_points(found, shares)
    assert 1 <= len(points) <= POINTS
    assert is_nested(points)
    for values in (
        [p.cost_share for p in points],
        [p.quality for p in points],
        [p.quality_low for p in points],
    ):
        assert values == sorted(values)  # type: ignore[type-var]
    assert points[-1].thresholds == (2.0,) * (exits - 1)
    assert points[-1].cost_share == pytest.approx(1.0)
    assert points[-1].quality == points[-1].quality_low == pytest.approx(good_of(found)[:, -1].mean())
    cheapest = taken_by(
        found, (0.0,) * (exits - 1)
    )  # all leave at the first exit that is sure of anything at all
    assert (taken_by(found, points[0].thresholds) == cheapest).all()


@settings(max_examples=12, deadline=None)
@given(seeds, st.integers(2, 200), st.integers(2, 5), troubles, st.booleans())
def test_every_point_keeps_its_promise_on_the_data_it_was_found_on(
    seed: int, count: int, exits: int, trouble: str, labelled: bool
) -> None:
    found = random_table(seed, count, exits, trouble=trouble, labelled=labelled)
    shares = cost_shares(exits, seed)
    for point in operating_points(found, shares):
        taken = taken_by(found, point.thresholds)
        assert good_of(found)[np.arange(count), taken].mean() >= point.quality - 1e-12
        assert cost_of(taken, shares) == pytest.approx(point.cost_share)
        assert np.bincount(taken, minlength=exits) / count == pytest.approx(point.exit_shares)
        assert point.quality_low is not None
        assert point.quality_low <= point.quality


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 250), st.integers(2, 6), troubles, st.booleans())
def test_at_every_level_of_cost_the_table_is_no_worse_than_the_nested_geometric_points(
    seed: int, count: int, exits: int, trouble: str, labelled: bool
) -> None:
    """Exactly, at each of the even levels: nothing of the family within the level's cost scores more."""
    found = random_table(seed, count, exits, trouble=trouble, labelled=labelled)
    shares = cost_shares(exits, seed)
    ranked = Ranked.of(found, shares)
    family = [
        taken_by(found, ranked.confidences(thresholds))
        for thresholds in nested_family(ranked, np.linspace(shares[0], 1.0, FAMILY).tolist())
    ]
    points = operating_points(found, shares)
    ours = [taken_by(found, point.thresholds) for point in points]
    for level in np.linspace(points[0].cost_share, points[-1].cost_share, levels_of(POINTS)):
        bests = [
            max((score_of(found, t) for t in each if cost_of(t, shares) <= level + 1e-9), default=0.0)
            for each in (ours, family)
        ]
        assert bests[0] >= bests[1] - 1e-9


@pytest.mark.parametrize(
    ("exits", "trouble"), [(3, "none"), (3, "overconfident"), (5, "none"), (5, "uninformative")]
)
def test_between_the_levels_too_the_mix_of_two_points_is_as_good_as_the_geometric_one(
    exits: int, trouble: str
) -> None:
    """What a budget does: it alternates between neighbours. Chords of a curve lie a little below it."""
    found, shares = random_table(1, 3000, exits, trouble=trouble), cost_shares(exits, 1)
    points = operating_points(found, shares)
    ours = [taken_by(found, point.thresholds) for point in points]
    costs, scores = [cost_of(t, shares) for t in ours], [score_of(found, t) for t in ours]
    ranked = Ranked.of(found, shares)
    lead = []
    for thresholds in nested_family(ranked, np.linspace(shares[0], 1.0, 40).tolist()):
        taken = taken_by(found, ranked.confidences(thresholds))
        lead.append(float(np.interp(cost_of(taken, shares), costs, scores)) - score_of(found, taken))
    assert min(lead) > -0.003  # of a score that reaches 1.9
    assert np.mean(lead) > -0.0005


@settings(max_examples=12, deadline=None)
@given(seeds, st.integers(20, 200), st.integers(2, 5), troubles)
def test_between_the_levels_only_nesting_lets_a_geometric_point_be_better_than_the_mix_of_two(
    seed: int, count: int, exits: int, trouble: str
) -> None:
    found, shares = random_table(seed, count, exits, trouble=trouble), cost_shares(exits, seed)
    points = operating_points(found, shares)
    ranked = Ranked.of(found, shares)
    table = [
        ranked.tried([int(np.searchsorted(v, t)) for v, t in zip(ranked.values, p.thresholds, strict=True)])
        for p in points
    ]
    costs, scores = [t.cost_share for t in table], [t.score for t in table]
    for thresholds in nested_family(ranked, np.linspace(shares[0], 1.0, FAMILY).tolist()):
        geometric = ranked.tried(thresholds)
        if geometric.score > np.interp(geometric.cost_share, costs, scores) + 1e-5:
            after = int(np.searchsorted(costs, geometric.cost_share, "right"))
            below, above = table[after - 1].thresholds, table[after].thresholds
            between = all(a <= t <= b for a, t, b in zip(below, thresholds, above, strict=True))
            assert not between or len(points) == POINTS


@settings(max_examples=12, deadline=None)
@given(seeds, st.integers(2, 6), troubles, st.integers(0, 100))
def test_more_budget_never_lowers_the_exit_a_request_reaches(
    seed: int, exits: int, trouble: str, other: int
) -> None:
    """On data the table has never seen, and whatever its stages cost on a board."""
    shares = cost_shares(exits, seed)
    points = operating_points(random_table(seed, 80, exits, trouble=trouble), shares)
    unseen = random_table(seed + 1, 60, exits, trouble=TROUBLES[other % len(TROUBLES)])
    taken = np.array([taken_by(unseen, point.thresholds) for point in points])
    assert (np.diff(taken, axis=0) >= 0).all()
    board_ms = np.cumsum(np.random.default_rng(other).uniform(0.01, 3.0, exits))
    expected = [float(np.dot(point.exit_shares, board_ms)) for point in points]
    assert (np.diff(expected) >= -1e-9).all()


def test_confident_samples_leave_early_at_little_loss() -> None:
    points = operating_points(random_table(5, 2000), SHARES)
    half = max((p for p in points if p.cost_share <= 0.5), key=lambda p: p.cost_share)
    assert half.quality > 0.5 * (points[0].quality + points[-1].quality)


def test_a_small_table_is_nearly_as_good_as_any_nested_table_can_be() -> None:
    """Against all pairs of thresholds there are, by the same dynamic programming."""
    found = random_table(4, 40)
    ranked = Ranked.of(found, SHARES)
    every = [
        ranked.tried((a, b))
        for a in range(len(ranked.values[0]) + 1)
        for b in range(len(ranked.values[1]) + 1)
    ]
    points = operating_points(found, SHARES)
    levels = np.linspace(points[0].cost_share, 1.0, levels_of(POINTS)).tolist()
    best = sum(tried.score for tried in best_chain(every, levels, [0] * len(levels)))
    scores = [
        (cost_of(t, SHARES), score_of(found, t)) for t in (taken_by(found, p.thresholds) for p in points)
    ]
    ours = sum(max(s for c, s in scores if c <= level + 1e-9) for level in levels) * len(found.predicted)
    assert ours >= 0.995 * best


def test_where_validation_cannot_tell_points_apart_the_budget_is_spent() -> None:
    """Every answer is the same at both exits: the table still has a point near every budget."""
    confidence = np.random.default_rng(0).random((500, 2))
    same = np.zeros((500, 2), np.int64)
    points = operating_points(ExitTable(confidence, same, same == 0, confidence), (0.4, 1.0))
    gaps = np.diff([point.cost_share for point in points])
    assert gaps.max() < 0.05


def test_without_labels_quality_is_agreement_with_the_last_exit() -> None:
    found = random_table(2, labelled=False)
    points = operating_points(found, SHARES)
    assert points[-1].quality == 1.0
    assert points[0].quality == pytest.approx(found.agreement[:, 0].mean())


def test_one_exit_has_one_point() -> None:
    (point,) = operating_points(random_table(0, exits=1), (1.0,))
    assert point.thresholds == ()
    assert point.exit_shares == (1.0,)


@pytest.mark.parametrize(("exits", "count", "limit_s"), [(3, 10_000, 1.0), (6, 5_000, 2.0), (10, 1_000, 2.0)])
def test_any_number_of_exits_ends_in_time(exits: int, count: int, limit_s: float) -> None:
    found, shares = random_table(0, count, exits), cost_shares(exits)
    start = time.process_time()  # other processes of a busy machine do not count
    points = operating_points(found, shares)
    assert time.process_time() - start < 2 * limit_s  # half of it: a slow machine, or a hot one
    assert len(points[0].thresholds) == exits - 1


def test_the_same_table_gives_the_same_points() -> None:
    assert operating_points(random_table(7), SHARES) == operating_points(random_table(7), SHARES)


def test_an_early_exit_that_is_better_is_not_promised_as_such() -> None:
    """Chance, or a bonus: the promise is the full network's quality, at less cost."""
    points = operating_points(random_table(0, 300, trouble="better early"), SHARES)
    assert max(point.quality for point in points) == points[-1].quality


def test_confidences_between_which_a_threshold_lies_are_both_off_it() -> None:
    """A processor that rounds otherwise must not flip a whole group of equal confidences."""
    found = random_table(3, 300, trouble="ties")
    seen = np.unique(found.confidence)
    inner = [t for p in operating_points(found, SHARES) for t in p.thresholds if 0 < t < 2]
    assert inner
    assert all(np.abs(seen - threshold).min() > 0.1 for threshold in inner)


# --- a budget, as it comes out ------------------------------------------------------------------------------


def realised(
    points: tuple[OperatingPoint, ...], table: ExitTable, shares: tuple[float, ...], budget: float
) -> float:
    """Mean cost share of the real controller over the table's stream."""
    return cost_of(replayed(BudgetPolicy(budget, points, shares, per_ms=None), table), shares)


@pytest.mark.parametrize(("exits", "trouble"), [(2, "none"), (3, "overconfident"), (5, "none"), (4, "ties")])
def test_the_mean_cost_is_the_budget(exits: int, trouble: str) -> None:
    shares = cost_shares(exits, 3)
    seen = random_table(1, 2500, exits, trouble=trouble)
    unseen = random_table(2, 2500, exits, trouble=trouble)
    points = operating_points(seen, shares)
    for budget in np.linspace(points[0].cost_share, 1.0, 6).tolist():
        assert realised(points, seen, shares, budget) == pytest.approx(budget, rel=0.05)
        assert realised(points, unseen, shares, budget) == pytest.approx(budget, rel=0.10)


def test_on_the_demo_network_the_mean_cost_is_the_budget_and_the_table_nested(
    demo_model: Path, fashion: Callable[[str, slice], Path]
) -> None:
    graph = run_steps(load(demo_model).graph, (step("opset"), step("confidence"), step("fold")), Context())
    lowered = draft(graph, split(graph), Backend("onnxruntime", max_opset=21, max_ir=10), "demo", 1, "host")
    seen, unseen = (
        exit_table(lowered.open(), load_data(fashion("t10k", part), graph.inputs))
        for part in (slice(0, 1500), slice(1500, 4000))
    )
    shares = tuple(leaving.cost_share for leaving in lowered.manifest.exits)
    points = operating_points(seen, shares)
    assert is_nested(points)
    for budget in np.linspace(shares[0], 1.0, 6).tolist():
        assert realised(points, seen, shares, budget) == pytest.approx(budget, rel=0.05)
        assert realised(points, unseen, shares, budget) == pytest.approx(budget, rel=0.10)
