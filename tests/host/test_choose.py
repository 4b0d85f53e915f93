"""Operating points: from the cheapest to the full network, and no more promised than seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.core.manifest import OperatingPoint
from edgekit.host.choose import POINTS, operating_points
from edgekit.runtime.measure import ExitTable

SHARES = (0.2, 0.5, 1.0)


def table(seed: int, count: int = 400, exits: int = 3, labelled: bool = True, classes: int = 4) -> ExitTable:
    """Later exits are right more often; a confident answer is right more often."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=count)
    hardness = rng.random(count)
    predicted = np.empty((count, exits), np.int64)
    confidence = np.empty((count, exits))
    for k in range(exits):
        right = hardness < 0.6 + 0.35 * (k + 1) / exits
        predicted[:, k] = np.where(right, truth, (truth + 1) % classes)
        confidence[:, k] = np.clip(1 - hardness + 0.2 * rng.normal(size=count), 0, 1)
    correct = predicted == truth[:, None] if labelled else None
    return ExitTable(confidence, predicted, correct, np.zeros((count, exits)))


def replay(found: ExitTable, point: OperatingPoint) -> tuple[float, float, list[float]]:
    """(quality, cost, shares) of the thresholds, by the rule the board follows."""
    good = found.correct if found.correct is not None else found.agreement
    taken = np.full(len(good), good.shape[1] - 1)
    for row, confidences in enumerate(found.confidence):
        for k, threshold in enumerate(point.thresholds):
            if confidences[k] >= threshold:
                taken[row] = k
                break
    shares = [float((taken == k).mean()) for k in range(good.shape[1])]
    cost = sum(s * c for s, c in zip(shares, SHARES, strict=True))
    return float(good[np.arange(len(good)), taken].mean()), cost, shares


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 300), st.booleans())
def test_the_table_rises_from_the_cheapest_to_the_full_network(seed: int, count: int, labelled: bool) -> None:
    found = table(seed, count, labelled=labelled)
    points = operating_points(found, SHARES)
    assert 1 <= len(points) <= POINTS
    costs, qualities = [p.cost_share for p in points], [p.quality for p in points]
    assert costs == sorted(costs)
    assert qualities == sorted(qualities)
    assert points[-1].thresholds == (2.0, 2.0)
    assert points[-1].cost_share == pytest.approx(1.0)
    good = found.correct if found.correct is not None else found.agreement
    assert qualities[-1] == pytest.approx(good[:, -1].mean())


@pytest.mark.parametrize("labelled", [True, False])
def test_every_point_keeps_its_promise_on_the_data_it_was_found_on(labelled: bool) -> None:
    found = table(3, labelled=labelled)
    for point in operating_points(found, SHARES):
        quality, cost, shares = replay(found, point)
        assert quality >= point.quality - 1e-12
        assert cost == pytest.approx(point.cost_share)
        assert shares == pytest.approx(list(point.exit_shares))


def test_the_cheapest_point_leaves_at_the_first_exit() -> None:
    first = operating_points(table(1), SHARES)[0]
    assert first.exit_shares == (1.0, 0.0, 0.0)
    assert first.cost_share == pytest.approx(SHARES[0])


def test_confident_samples_leave_early_at_little_loss() -> None:
    found = table(5, 2000)
    points = operating_points(found, SHARES)
    half = max((p for p in points if p.cost_share <= 0.5), key=lambda p: p.cost_share)
    mixed = 0.5 * (points[0].quality + points[-1].quality)
    assert half.quality > mixed


def test_without_labels_quality_is_agreement_with_the_last_exit() -> None:
    found = table(2, labelled=False)
    points = operating_points(found, SHARES)
    assert points[-1].quality == 1.0
    assert points[0].quality == pytest.approx(found.agreement[:, 0].mean())


def test_one_exit_has_one_point() -> None:
    found = table(0, exits=1)
    (point,) = operating_points(found, (1.0,))
    assert point.thresholds == ()
    assert point.exit_shares == (1.0,)


@pytest.mark.parametrize("exits", [2, 5, 8])
def test_any_number_of_exits_ends_in_time(exits: int) -> None:
    shares = [(k + 1) / exits for k in range(exits)]
    points = operating_points(table(0, 200, exits), shares)
    assert len(points[0].thresholds) == exits - 1
    assert points[-1].cost_share == pytest.approx(1.0)


def test_the_same_table_gives_the_same_points() -> None:
    assert operating_points(table(7), SHARES) == operating_points(table(7), SHARES)


def test_an_early_exit_that_is_better_is_not_promised_as_such() -> None:
    """Chance, or a bonus: the promise is the full network's quality, at less cost."""
    found = table(0, 300)
    flipped = ExitTable(found.confidence, found.predicted[:, ::-1], found.correct[:, ::-1], found.latency_ms)  # type: ignore[index]
    points = operating_points(flipped, SHARES)
    assert max(point.quality for point in points) == points[-1].quality
