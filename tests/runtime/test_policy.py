"""Policies: what they cost, what they may see, and that a budget holds when the stream drifts."""

from __future__ import annotations

import inspect
import math
import random
from dataclasses import replace
from typing import get_type_hints

import pytest
from bundles import null_files, null_manifest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Manifest
from edgekit.core.policy import Budget, PolicySpec
from edgekit.runtime import policy as module
from edgekit.runtime.policies import anytime, budget
from edgekit.runtime.policy import (
    NEVER,
    Anytime,
    BudgetPolicy,
    Policy,
    StageCosts,
    Thresholds,
    make_policy,
)

COSTS = StageCosts((1.0, 1.0, 2.0), (1.5, 1.5, 3.0))
SHARES = (0.25, 0.5, 1.0)


@pytest.fixture
def manifest() -> Manifest:
    files, parts = null_files()
    return null_manifest(files, parts)


def stream(policy: Policy, confidences: list[tuple[float, float]], *, ms_per_share: float = 4.0) -> list[int]:
    """Exits taken for these (confidence at exit 1, at exit 2)."""
    taken = []
    for first, second in confidences:
        at = 0 if policy.leave(0, first, 1.0) else 1 if policy.leave(1, second, 2.0) else 2
        policy.observe(at, SHARES[at] * ms_per_share)
        taken.append(at)
    return taken


def uniform(count: int, seed: int, low: float = 0.0, high: float = 1.0) -> list[tuple[float, float]]:
    draw = random.Random(seed)
    return [(draw.uniform(low, high), draw.uniform(low, high)) for _ in range(count)]


def test_full_never_leaves_early(manifest: Manifest) -> None:
    assert set(stream(make_policy(PolicySpec("full"), manifest, None), [(1.0, 1.0)] * 5)) == {2}


def test_confidence_takes_the_cheapest_point_within_the_allowed_loss(manifest: Manifest) -> None:
    policy = make_policy(PolicySpec("confidence", max_drop=1.0), manifest, None)
    assert isinstance(policy, Thresholds)
    assert policy.thresholds == (0.5, 0.5)
    loose = make_policy(PolicySpec("confidence", max_drop=50.0), manifest, None)
    assert isinstance(loose, Thresholds)
    assert loose.thresholds == (0.0, 0.0)


def test_confidence_believes_a_point_no_more_than_its_samples_can_tell(manifest: Manifest) -> None:
    def taken(*lows: float | None) -> tuple[float, ...]:
        points = tuple(
            replace(point, quality_low=low)
            for point, low in zip(manifest.operating_points, lows, strict=True)
        )
        doubtful = replace(manifest, operating_points=points)
        policy = make_policy(PolicySpec("confidence", max_drop=1.0), doubtful, None)
        assert isinstance(policy, Thresholds)
        return policy.thresholds

    assert taken(0.89, 0.94, 0.985, 1.0) == (2.0, 2.0)
    assert taken(0.89, 0.94, 0.99, 1.0) == (0.5, 0.5)
    assert taken(None, None, None, None) == (0.5, 0.5)
    assert taken(0.89, 0.94, 0.98, 0.97) == (2.0, 2.0)


@pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0, math.inf])
def test_a_threshold_of_0_is_always_reached_and_one_above_1_never(confidence: float) -> None:
    assert Thresholds((0.0, 0.0)).leave(0, confidence, 0.0)
    assert not Thresholds((NEVER, 1.001)).leave(0, confidence, 0.0)
    assert not Thresholds((NEVER, 1.001)).leave(1, confidence, 0.0)


@pytest.mark.parametrize("kind", ["full", "confidence", "budget", "anytime"])
def test_no_policy_leaves_at_a_confidence_that_is_no_number(manifest: Manifest, kind: str) -> None:
    spec = {
        "full": PolicySpec(),
        "confidence": PolicySpec("confidence", max_drop=100),
        "budget": PolicySpec("budget", Budget(1, "%")),
        "anytime": PolicySpec("anytime", None, 1e-3),
    }[kind]
    policy = make_policy(spec, manifest, COSTS)
    assert not policy.leave(0, math.nan, 5.0)
    assert policy.leave(0, 1.0, 5.0) == (kind != "full")


def test_another_budget_starts_with_what_was_learnt_and_another_kind_does_not(manifest: Manifest) -> None:
    slow = make_policy(PolicySpec("budget", Budget(6, "ms")), manifest, COSTS)
    assert isinstance(slow, BudgetPolicy)
    stream(slow, uniform(500, 5), ms_per_share=8.0)
    tighter = make_policy(PolicySpec("budget", Budget(3, "ms")), manifest, COSTS, slow)
    assert isinstance(tighter, BudgetPolicy)
    assert tighter.state.slowdown == pytest.approx(2.0)
    assert tighter.plan.budget == 3.0
    fresh = make_policy(PolicySpec("budget", Budget(3, "ms")), manifest, COSTS, Thresholds((0.5, 0.5)))
    assert isinstance(fresh, BudgetPolicy)
    assert fresh.state.slowdown == 1.0


@pytest.mark.parametrize("percent", [30.0, 37.5, 45.0, 60.0, 80.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_budget_holds_on_a_stream_unlike_validation(manifest: Manifest, percent: float, seed: int) -> None:
    policy = make_policy(PolicySpec("budget", Budget(percent, "%")), manifest, None)
    taken = stream(policy, uniform(12_000, seed))
    late = taken[4_000:]
    assert sum(100 * SHARES[at] for at in late) / len(late) == pytest.approx(percent, rel=0.05)


def test_a_budget_holds_when_the_stream_becomes_harder(manifest: Manifest) -> None:
    policy = make_policy(PolicySpec("budget", Budget(45, "%")), manifest, None)
    stream(policy, uniform(4_000, 3, 0.3, 1.0))
    taken = stream(policy, uniform(9_000, 4, 0.0, 0.7))[3_000:]
    assert sum(100 * SHARES[at] for at in taken) / len(taken) == pytest.approx(45, rel=0.05)


def test_a_budget_in_ms_counts_the_time_that_really_passed(manifest: Manifest) -> None:
    """The machine is twice as slow as when its stages were measured, as a throttled one is."""
    policy = make_policy(PolicySpec("budget", Budget(3.0, "ms")), manifest, COSTS)
    taken = stream(policy, uniform(12_000, 5), ms_per_share=8.0)[4_000:]
    assert sum(8.0 * SHARES[at] for at in taken) / len(taken) == pytest.approx(3.0, rel=0.05)


def test_what_a_request_waited_is_not_its_cost(manifest: Manifest) -> None:
    policy = make_policy(PolicySpec("budget", Budget(3.0, "ms")), manifest, COSTS)
    assert isinstance(policy, BudgetPolicy)
    for _ in range(50):
        policy.observe(1, 1002.0, 1000.0)
    assert policy.state.slowdown == pytest.approx(1.0)
    assert policy.state.debt < 0


def test_a_deadline_is_watched_on_a_network_with_one_exit_too(manifest: Manifest) -> None:
    single = replace(manifest, stages=manifest.stages[:1], exits=manifest.exits[:1], operating_points=())
    policy = make_policy(PolicySpec("anytime", None, 4.0), single, StageCosts((1.0,), (1.5,)))
    assert policy.deadline_ms == 4.0
    assert make_policy(PolicySpec("budget", Budget(10, "%")), single, None).deadline_ms is None


def test_a_budget_below_the_first_exit_leaves_there_and_one_above_all_goes_on(manifest: Manifest) -> None:
    low = make_policy(PolicySpec("budget", Budget(1, "%")), manifest, None)
    assert set(stream(low, uniform(500, 6))) == {0}
    high = make_policy(PolicySpec("budget", Budget(500, "%")), manifest, None)
    assert set(stream(high, uniform(500, 7))) == {2}


def test_budgets_in_macs_and_percent_are_the_same_thing(manifest: Manifest) -> None:
    percent = make_policy(PolicySpec("budget", Budget(50, "%")), manifest, None)
    macs = make_policy(PolicySpec("budget", Budget(manifest.macs / 2e6, "MMAC")), manifest, None)
    inputs = uniform(300, 8)
    assert stream(percent, inputs) == stream(macs, inputs)


def test_an_energy_budget_without_a_sensor_is_refused_and_with_one_held(manifest: Manifest) -> None:
    spec = PolicySpec("budget", Budget(6, "mJ"))
    with pytest.raises(BadInput, match="power sensor"):
        make_policy(spec, manifest, COSTS)
    policy = make_policy(spec, manifest, StageCosts(COSTS.mean_ms, COSTS.p95_ms, mj_per_ms=3.0))
    taken = stream(policy, uniform(12_000, 9))[4_000:]
    assert sum(3.0 * 4.0 * SHARES[at] for at in taken) / len(taken) == pytest.approx(6.0, rel=0.05)


def test_a_time_policy_without_measured_stages_is_refused(manifest: Manifest) -> None:
    for spec in (PolicySpec("anytime", None, 1.0), PolicySpec("budget", Budget(1, "ms"))):
        with pytest.raises(BadInput, match="measured on this machine"):
            make_policy(spec, manifest, None)


def test_no_deciding_function_takes_a_label() -> None:
    for kind in (Thresholds, Anytime, BudgetPolicy, Policy):
        for name in ("leave", "observe"):
            assert set(get_type_hints(getattr(kind, name))) <= {
                "exit_index",
                "confidence",
                "elapsed_ms",
                "latency_ms",
                "waited_ms",
                "return",
            }
    for function in (budget.start, budget.step, budget.choose, make_policy):
        assert not {"label", "labels", "y", "target"} & set(inspect.signature(function).parameters)
    for each in (module, budget, anytime):
        assert "label" not in inspect.getsource(each).replace("never a label", "")
