"""What is made of a trial with real requests: sentences about counts."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.agent.live import Before, Watch, clearly_more, judge
from edgekit.agent.trial import TrialFailed
from edgekit.core.manifest import BoardLimits
from edgekit.runtime.session import Answer

NONE = BoardLimits()


def answer(value: float = 1.0, *, missed: bool = False, nans: int = 0) -> Answer:
    return Answer({"y": np.full((1, 3), value, np.float32)}, "exit3", 2, 0.5, 1.0, missed, nans)


def watch(
    good: int = 0, *, missed: int = 0, refused: int = 0, failed: int = 0, bad: int = 0, took_ms: float = 1.0
) -> Watch:
    made = Watch(on_trial=True)
    inputs = {"x": np.ones(4, np.float32)}
    for index in range(good):
        made.answer(inputs, answer(missed=index < missed), took_ms, whole=True)
    for _ in range(bad):
        made.answer(inputs, answer(np.inf), took_ms, whole=True)
    for index in range(refused + failed):
        made.error("it broke", ours=index >= refused)
    return made


def reason(
    live: Watch,
    before: Before | None = None,
    limits: BoardLimits = NONE,
    grown_mb: float | None = None,
    *,
    throttled: bool = False,
) -> str | None:
    try:
        judge(live, before, limits, grown_mb, throttled=throttled)
    except TrialFailed as err:
        return err.reason
    return None


def before(of: Watch, *, same_policy: bool = True) -> Before:
    return Before(of, same_policy)


FAST = BoardLimits(latency_ms=2.0)
SMALL = BoardLimits(memory_mb=50.0)


@pytest.mark.parametrize(
    ("live", "old", "limits", "grown_mb", "wanted"),
    [
        (watch(100), None, FAST, None, None),
        (watch(), None, FAST, None, None),
        (watch(99, failed=1), None, NONE, None, "runtime"),
        (watch(97, bad=3), None, NONE, None, "not-finite"),
        (watch(98, bad=2), None, NONE, None, None),
        (watch(997, bad=3), None, NONE, None, None),  # 0.3 %: inputs may be odd
        (watch(100, took_ms=3.0), None, FAST, None, "latency"),
        (watch(19, took_ms=3.0), None, FAST, None, None),  # too few to say
        (watch(100, took_ms=3.0), None, NONE, None, None),
        (watch(100), None, SMALL, 60.0, None),  # the agent's own needs are in it
        (watch(100), None, SMALL, 67.0, "memory"),
        (watch(100), None, SMALL, None, None),
        (watch(50, refused=50), before(watch(200)), NONE, None, "inputs"),
        (watch(50, refused=50), before(watch(100, refused=100)), NONE, None, None),
        (watch(50, refused=50), None, NONE, None, None),
        (watch(100, missed=40), before(watch(100, missed=5)), NONE, None, "deadline"),
        (watch(100, missed=40), before(watch(100, missed=38)), NONE, None, None),
        (watch(100, missed=40), before(watch(100), same_policy=False), NONE, None, None),
        (watch(10, missed=10), before(watch(100)), NONE, None, None),
    ],
)
def test_a_bundle_on_trial_fails_for_what_is_clearly_its_own(
    live: Watch, old: Before | None, limits: BoardLimits, grown_mb: float | None, wanted: str | None
) -> None:
    assert reason(live, old, limits, grown_mb) == wanted


def test_a_throttled_board_is_no_bundles_fault() -> None:
    assert reason(watch(100, took_ms=3.0), None, FAST, throttled=True) is None


def test_requests_that_left_early_say_nothing_about_the_whole_network() -> None:
    live = Watch(on_trial=True)
    for _ in range(100):
        live.answer({}, answer(), 30.0, whole=False)
    assert reason(live, None, FAST) is None


def test_a_confidence_that_is_no_number_counts_unless_the_inputs_are_none() -> None:
    live = Watch(on_trial=True)
    for _ in range(5):
        live.answer({"x": np.array([np.nan], np.float32)}, answer(nans=1), 1.0, whole=True)
    assert live.not_finite == 0
    for _ in range(5):
        live.answer({"x": np.array([7], np.uint8)}, answer(nans=1), 1.0, whole=True)
    assert live.not_finite == 5


@pytest.mark.parametrize(
    ("count", "of", "count_before", "of_before", "wanted"),
    [
        (6, 100, 0, 1000, True),
        (5, 100, 0, 1000, False),  # five points and no more
        (30, 100, 20, 100, False),  # that much chance does
        (300, 1000, 200, 1000, True),
        (20, 20, 0, 20, True),
        (20, 20, 0, 19, False),
        (0, 100, 50, 100, False),
        (0, 0, 0, 0, False),
    ],
)
def test_a_share_is_clearly_more_beyond_five_points_and_three_standard_errors(
    count: int, of: int, count_before: int, of_before: int, wanted: bool
) -> None:
    assert clearly_more(count, of, count_before, of_before) is wanted


def test_what_served_for_long_is_judged_by_its_recent_requests_and_costs_no_memory() -> None:
    old = Watch()
    for _ in range(20_000):
        old.answer({}, answer(missed=True), 1.0, whole=True)
    for _ in range(20_000):
        old.answer({}, answer(), 1.0, whole=True)
    assert old.answered < 5000
    assert old.missed / old.answered < 0.01
    assert not old.whole_ms
