"""Curves: the real policies replayed and run, static exits mixed sample by sample, verdicts that can fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bundles import SHAPE, null_files, null_manifest
from exit_tables import random_table

from edgekit.core.curves import Curves
from edgekit.core.manifest import Manifest
from edgekit.core.policy import Budget, PolicySpec
from edgekit.host.choose import operating_points
from edgekit.runtime.curves import (
    BUCKETS,
    LEVELS,
    Times,
    curves,
    deadline_edges,
    interval,
    measured_anytime,
    mix,
    replayed,
    with_measured,
)
from edgekit.runtime.data import Data
from edgekit.runtime.measure import ExitTable, exit_table, measure_policy, stage_costs
from edgekit.runtime.policy import Thresholds, make_policy
from edgekit.runtime.session import Session, open_session

SHARES = (0.25, 0.5, 1.0)
TIMES = Times((1.0, 2.0, 4.0), (1.0, 1.0, 2.0), "measured", "a board")


@pytest.fixture
def manifest() -> Manifest:
    return null_manifest(*null_files())


def fitted(manifest: Manifest, table: ExitTable) -> Manifest:
    return replace(manifest, operating_points=operating_points(table, SHARES))


def found(manifest: Manifest, table: ExitTable, times: Times | None = TIMES) -> Curves:
    made = curves(manifest, table, times)
    assert made is not None
    return made


def half(table: ExitTable, which: int) -> ExitTable:
    rows = slice(which, None, 2)
    correct = None if table.correct is None else table.correct[rows]
    return ExitTable(table.confidence[rows], table.predicted[rows], correct, table.latency_ms[rows])


def test_a_policy_that_knows_more_than_chance_leads_and_the_verdict_says_so(manifest: Manifest) -> None:
    table = random_table(1, 6000)
    made = found(fitted(manifest, half(table, 0)), half(table, 1))
    assert made.lead is not None
    assert made.lead.nowhere_below
    assert made.lead.low > 0.005
    assert len(made.budget) == LEVELS
    assert [point.cost_share for point in made.budget] == pytest.approx(
        [p.budget for p in made.budget], rel=0.05
    )
    for point in made.budget:
        assert point.low <= point.lead <= point.high
        assert point.ms == pytest.approx(np.dot(point.exit_shares, TIMES.exits))
        assert point.cost_share == pytest.approx(np.dot(point.exit_shares, SHARES))


def test_a_policy_that_leaves_the_wrong_samples_is_seen_to_be_below(manifest: Manifest) -> None:
    """Thresholds found where confidence meant something; judged where the first exit is sure of what it gets wrong."""
    fit = fitted(manifest, random_table(1, 3000))
    turned = random_table(2, 3000)
    turned.confidence[:, 0] = 1 - turned.confidence[:, 0]
    lead = found(fit, turned).lead
    assert lead is not None
    assert not lead.nowhere_below
    assert lead.high < 0


def test_leaving_at_random_is_the_mix_of_the_static_exits(manifest: Manifest) -> None:
    """Two exits and confidences that say nothing: the mean lead is about zero, at both ends exactly."""
    two = replace(manifest, stages=manifest.stages[1:], exits=manifest.exits[1:])
    table = random_table(3, 6000, 2)
    table.confidence[:] = np.random.default_rng(0).random(table.confidence.shape)
    made = found(
        replace(two, operating_points=operating_points(random_table(1, 500, 2), (0.5, 1.0))), table, None
    )
    assert made.lead is not None
    assert abs(made.lead.mean) < 0.005
    assert made.budget[0].lead == pytest.approx(0.0, abs=1e-9)
    assert made.budget[-1].lead == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("cost", "weights"),
    [
        (0.25, (1, 0, 0)),
        (0.375, (0.5, 0.5, 0)),
        (0.5, (0, 1, 0)),
        (0.9, (0, 0.2, 0.8)),
        (1.0, (0, 0, 1)),
        (0.1, (1, 0, 0)),
    ],
)
def test_static_exits_are_mixed_to_the_cost(cost: float, weights: tuple[float, ...]) -> None:
    assert mix(np.array(SHARES), cost) == pytest.approx(weights)


def test_the_interval_of_paired_differences_covers_their_mean() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        low, high = interval(rng.choice([-1.0, 0.0, 1.0], 500, p=[0.03, 0.92, 0.05]))
        covered += low <= 0.02 <= high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)
    assert interval(np.zeros(10)) == (0.0, 0.0)


def test_the_anytime_curve_rises_with_the_deadline_and_is_in_time_where_times_are_even(
    manifest: Manifest,
) -> None:
    made = found(fitted(manifest, random_table(1, 400)), random_table(2, 400))
    qualities = [point.quality for point in made.anytime]
    assert qualities == sorted(qualities)
    assert qualities[0] == made.static[0].quality
    assert qualities[-1] == made.static[-1].quality
    assert all(point.in_time == 1.0 for point in made.anytime)
    assert made.anytime_how == "replayed"


def test_without_times_there_is_no_anytime_curve_and_no_ms(manifest: Manifest) -> None:
    made = found(fitted(manifest, random_table(1, 200)), random_table(2, 200), None)
    assert made.anytime == ()
    assert made.anytime_how is made.provenance is None
    assert {point.ms for point in made.budget} == {entry.ms for entry in made.static} == {None}


def test_without_labels_the_curves_are_of_agreement(manifest: Manifest) -> None:
    made = found(fitted(manifest, random_table(1, 200)), random_table(2, 200, labelled=False))
    assert made.metric == "agreement"
    assert made.static[-1].quality == 1.0


def test_there_are_no_curves_of_one_exit_or_of_no_classes(manifest: Manifest) -> None:
    table = random_table(1, 50)
    nothing = replace(table, predicted=np.full_like(table.predicted, -1))
    assert curves(manifest, nothing, TIMES) is None
    single = replace(manifest, stages=manifest.stages[:1], exits=manifest.exits[:1])
    assert curves(single, random_table(1, 50, 1), TIMES) is None
    assert curves(replace(manifest, operating_points=()), table, TIMES) is None


def test_curves_survive_the_way_through_json(manifest: Manifest) -> None:
    made = found(fitted(manifest, random_table(1, 200)), random_table(2, 200))
    assert Curves.parse(made.to_json(), "curves") == made


def test_a_replay_takes_the_exits_that_a_session_takes(manifest: Manifest) -> None:
    session, data = opened(manifest)
    table = exit_table(session, data)
    spec = PolicySpec("budget", Budget(60, "%"))
    report = measure_policy(session, data, spec)
    taken = replayed(make_policy(spec, manifest, None), table)
    assert [int((taken == k).sum()) for k in range(3)] == list(report.exit_counts.values())


def test_a_confidence_that_is_no_number_goes_on_in_a_replay() -> None:
    table = random_table(1, 20)
    table.confidence[:, 0] = np.nan
    assert set(replayed(Thresholds((0.0, 0.0)), table).tolist()) == {1}


# --- really run ---------------------------------------------------------------------------------------------


def opened(manifest: Manifest, delay_ms: float = 0.0) -> tuple[Session, Data]:
    files, _ = null_files(delay_ms=delay_ms)
    images = np.random.default_rng(1).uniform(0, 3, (60, *SHAPE)).astype(np.float32)
    labels = images.reshape(60, -1)[:, :3].argmax(axis=1).astype(np.int64)
    labels[::7] = (labels[::7] + 1) % 3
    return open_session(manifest, files.__getitem__), Data(
        "x", range(60), labels, lambda i: {"x": images[i]}, str
    )


def test_deadlines_reach_from_the_first_stages_p99_to_more_than_the_full_network() -> None:
    latency = np.column_stack([np.linspace(1.0, 2.0, 500), np.full(500, 5.0), np.full(500, 10.0)])
    edges = deadline_edges(latency)
    assert edges[0] == pytest.approx(1.99, abs=0.01)
    assert edges[-1] == pytest.approx(12.0)
    latency[::20, 0] = 50.0  # a machine that somebody else keeps busy
    assert deadline_edges(latency)[0] < 10.0


@pytest.mark.parametrize(("limit_s", "passes"), [(60.0, BUCKETS), (0.0, 1)])
def test_requests_with_random_deadlines_are_really_run_and_counted(limit_s: float, passes: int) -> None:
    """Whether a busy machine is in time is not for a test; that all is counted, is."""
    files, parts = null_files(delay_ms=0.1)
    slow = null_manifest(files, parts)
    session, data = opened(slow, 0.1)
    table = exit_table(session, data)
    ticks: list[int] = []
    costs = stage_costs(session, data, rounds=5)
    points = measured_anytime(session, data, table, costs, ticks.append, limit_s=limit_s)
    assert sum(point.requests for point in points) == sum(ticks) == passes * data.count
    edges = deadline_edges(table.latency_ms)
    for point, low, high in zip(points, edges, edges[1:], strict=False):
        assert low <= point.deadline_ms <= high
        assert 0 <= point.in_time <= 1
        assert sum(point.exit_shares) == pytest.approx(1.0)
        if passes == BUCKETS:
            assert point.requests == data.count
    made = with_measured(found(slow, table, Times.of(table.latency_ms, "measured", "here")), points)
    assert made.anytime_how == "measured"
    assert made.anytime == points


def test_two_exits_at_the_same_cost_are_mixed_without_dividing_by_zero() -> None:
    weights = mix(np.array([0.5, 0.5, 1.0]), 0.5)
    assert weights.sum() == pytest.approx(1.0)
    assert float(weights @ np.array([0.5, 0.5, 1.0])) == pytest.approx(0.5)
