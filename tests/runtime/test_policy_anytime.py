"""Deadlines: kept through real Sessions whose stages take simulated time, steady, heavy-tailed, and throttled."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from bundles import SHAPE, null_files, null_manifest

from edgekit.core.manifest import Manifest
from edgekit.core.policy import PolicySpec
from edgekit.runtime.backends import Array, allocate
from edgekit.runtime.policies.anytime import SURPRISED, Anytime, Pace
from edgekit.runtime.policy import StageCosts, make_policy
from edgekit.runtime.session import Session

MEANS = (1.0, 1.5, 3.0)
FULL_MS = sum(MEANS)
X = {"x": np.zeros(SHAPE, np.float32)}
Factor = Callable[[random.Random], float]  # a stage's time over its mean


def steady(draw: random.Random) -> float:
    return draw.uniform(0.97, 1.03)


def noisy(draw: random.Random) -> float:
    return draw.lognormvariate(-0.02, 0.2)


def heavy_tailed(draw: random.Random) -> float:
    """A Pareto tail: one stage in a hundred takes more than three times as long as it mostly does."""
    return min(0.77 * draw.paretovariate(4.2), 50.0)


KINDS: dict[str, Factor] = {"steady": steady, "noisy": noisy, "heavy-tailed": heavy_tailed}


@dataclass
class Machine:
    """Stages that do nothing but let simulated time pass: `slowdown` times a random factor times their mean."""

    factor: Factor
    slowdown: float = 1.0
    now_s: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def clock(self) -> float:
        return self.now_s

    def session(self, manifest: Manifest) -> Session:
        tensors = [entry.tensor for entry in manifest.inputs]
        tensors += [tensor for stage in manifest.stages for part in stage.parts for tensor in part.outputs]
        buffers: dict[str, Array] = {each.name: allocate(each.dtype, each.shape) for each in tensors}
        stages = tuple((Stage(self, mean),) for mean in MEANS[: len(manifest.stages)])
        return Session(manifest, stages, buffers, self.clock)

    def costs(self) -> StageCosts:
        """As runtime/measure finds them at opening: from 64 runs."""
        times = np.array([[mean * self.factor(self.random) for mean in MEANS] for _ in range(64)])
        p95 = np.percentile(times, 95, axis=0)
        return StageCosts(tuple(times.mean(axis=0).tolist()), tuple(p95.tolist()))


@dataclass
class Stage:
    machine: Machine
    mean_ms: float
    provider: str = "simulated"

    def run(self) -> None:
        machine = self.machine
        machine.now_s += 1e-3 * self.mean_ms * machine.slowdown * machine.factor(machine.random)


@pytest.fixture
def manifest() -> Manifest:
    files, parts = null_files()
    return null_manifest(files, parts)


def first_stage_p99(kind: str) -> float:
    draw = random.Random(1)
    return float(np.percentile([MEANS[0] * KINDS[kind](draw) for _ in range(20_000)], 99))


@dataclass(frozen=True)
class Served:
    deadlines: np.ndarray
    exits: np.ndarray
    missed: np.ndarray


def serve(
    machine: Machine,
    manifest: Manifest,
    costs: StageCosts,
    count: int,
    deadline_of: Callable[[random.Random], float],
    waited_ms: float = 0.0,
) -> Served:
    """Requests with a deadline each, and a policy made for each, as the local API does it."""
    session, draw = machine.session(manifest), random.Random(11)
    deadlines, exits, missed = [], [], []
    for _ in range(count):
        deadline = deadline_of(draw)
        answer = session.run(
            X, make_policy(PolicySpec("anytime", None, deadline), manifest, costs), waited_ms
        )
        deadlines.append(deadline)
        exits.append(answer.exit_index)
        missed.append(answer.deadline_missed)
    return Served(np.array(deadlines), np.array(exits), np.array(missed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slowdown", [1.0, 2.0])
def test_99_of_100_answers_are_in_time_and_the_exit_rises_with_the_deadline(
    manifest: Manifest, kind: str, slowdown: float
) -> None:
    """Deadlines from the first stage's p99 on, drawn at random; the machine may be slower than when it was measured."""
    machine = Machine(KINDS[kind])
    costs = machine.costs()
    machine.slowdown = slowdown
    least = slowdown * first_stage_p99(kind)
    most = least + 3 * slowdown * FULL_MS
    served = serve(machine, manifest, costs, 4000, lambda draw: draw.uniform(least, most))
    assert served.missed.mean() <= 0.01
    edges = np.linspace(least, most, 6)
    means = [
        served.exits[(served.deadlines >= low) & (served.deadlines < high)].mean()
        for low, high in itertools.pairwise(edges)
    ]
    assert means == sorted(means)
    assert means[0] < 1.0
    assert means[-1] > 1.9


@pytest.mark.parametrize("kind", KINDS)
def test_in_time_while_the_processor_is_throttled_and_when_it_no_longer_is(
    manifest: Manifest, kind: str
) -> None:
    machine = Machine(KINDS[kind])
    costs = machine.costs()
    least = 2 * first_stage_p99(kind)  # can be met at either speed

    def stretch(slowdown: float, count: int) -> Served:
        machine.slowdown = slowdown
        return serve(machine, manifest, costs, count, lambda draw: draw.uniform(least, least + 3 * FULL_MS))

    stretches = [stretch(slowdown, 700) for slowdown in (1.0, 2.0, 1.0, 2.0, 1.0)]
    assert np.concatenate([each.missed for each in stretches]).mean() <= 0.01
    assert (
        stretches[-1].exits.mean() >= 0.9 * stretches[0].exits.mean()
    )  # it recovers what it can do in the time
    assert stretches[1].exits.mean() < stretches[0].exits.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_at_which_the_last_stage_just_fits_is_kept_too(manifest: Manifest, kind: str) -> None:
    """The worst case: no request has any slack to spare."""
    for deadline in (1.3 * FULL_MS, 1.6 * FULL_MS, 2.0 * FULL_MS):
        machine = Machine(KINDS[kind])
        costs = machine.costs()
        served = serve(machine, manifest, costs, 3000, lambda draw, fixed=deadline: fixed)  # type: ignore[misc]
        assert served.missed[500:].mean() <= 0.01, deadline


def test_a_stage_that_never_keeps_its_word_surprises_seldom_in_the_long_run(manifest: Manifest) -> None:
    """Stage 3 takes five times what was measured, the others as measured: only its own margin can say so."""
    pace = Pace(MEANS, MEANS)
    surprises, rounds = 0, 5000
    for _ in range(rounds):
        policy = Anytime(10.0, pace)
        if policy.leave(0, 0.0, 1.0):
            policy.observe(0, 1.0)
        elif policy.leave(1, 0.0, 2.5):
            policy.observe(1, 2.5)
        else:
            surprises += 1
            policy.observe(2, 2.5 + 5 * MEANS[2])
    assert 0 < surprises <= rounds * SURPRISED + 10


def test_a_margin_that_was_driven_up_comes_down_without_anybody_trying() -> None:
    pace = Pace(MEANS, MEANS)
    for _ in range(20):
        pace.tried(2, surprised=True)
    high = pace.margins[2]
    assert high > 5.0
    for _ in range(20_000):
        pace.answered(0, MEANS[0])
    assert pace.margins[2] == pytest.approx(pace.first_margins[2], rel=0.01)  # and no further


def test_what_a_request_waited_is_taken_off_its_time(manifest: Manifest) -> None:
    machine = Machine(steady)
    costs = machine.costs()
    fresh = serve(machine, manifest, costs, 200, lambda draw: 1.5 * FULL_MS)
    waited = serve(machine, manifest, costs, 200, lambda draw: 1.5 * FULL_MS, waited_ms=0.9 * FULL_MS)
    assert set(fresh.exits.tolist()) == {2}
    assert set(waited.exits.tolist()) == {1}
    assert not waited.missed.any()
    assert costs.pace.slowdown == pytest.approx(1.0, abs=0.1)  # waiting is not the machine's pace


@pytest.mark.parametrize("deadline", [1e-6, 0.5, 1.0])
def test_a_deadline_nobody_can_keep_still_gets_the_first_answer(manifest: Manifest, deadline: float) -> None:
    machine = Machine(steady)
    served = serve(machine, manifest, machine.costs(), 50, lambda draw: 0.97 * deadline)
    assert set(served.exits.tolist()) == {0}
    assert served.missed.all()


def test_a_sure_answer_does_not_end_it_before_its_time(manifest: Manifest) -> None:
    policy = make_policy(PolicySpec("anytime", None, 100.0), manifest, StageCosts(MEANS, MEANS))
    for sure in (1.0, float("inf")):
        assert not policy.leave(0, sure, 1.0)
        assert not policy.leave(1, sure, 2.5)


def test_a_slow_request_is_expected_to_stay_slow(manifest: Manifest) -> None:
    """Its first stage took three times as long as measured: throttling shows in the first request."""
    spec, costs = PolicySpec("anytime", None, 5.5), StageCosts(MEANS, MEANS)
    assert not make_policy(spec, manifest, costs).leave(0, 0.0, 1.0)
    assert not make_policy(spec, manifest, costs).leave(0, 0.0, 3.0, 2.0)  # it waited, and is not slow
    assert make_policy(spec, manifest, costs).leave(0, 0.0, 3.0)


def test_policies_of_one_session_learn_together_and_energy_does_not_forget_it(manifest: Manifest) -> None:
    costs = StageCosts(MEANS, MEANS)
    for _ in range(40):
        policy = make_policy(PolicySpec("anytime", None, 1.0), manifest, costs)
        policy.leave(0, 0.0, 2.0)
        policy.observe(0, 2.0)
    assert costs.pace.slowdown == pytest.approx(2.0, rel=0.05)
    assert replace(costs, mj_per_ms=1.0).pace is costs.pace
    assert StageCosts(MEANS, MEANS).pace is not costs.pace
    assert StageCosts(MEANS, MEANS) == costs  # what was measured is the same


def test_a_stage_too_fast_for_the_clock_is_no_division_by_zero(manifest: Manifest) -> None:
    policy = make_policy(PolicySpec("anytime", None, 1.0), manifest, StageCosts((0.0,) * 3, (0.0,) * 3))
    assert not policy.leave(0, 0.0, 0.0)
    policy.observe(1, 0.0)
