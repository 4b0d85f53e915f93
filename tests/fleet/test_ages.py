"""How a store that outgrows its budget keeps less, and more again where there is room."""

from __future__ import annotations

from dataclasses import astuple

from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.ages import DAY_S, HOUR_S, Ages, at_most, budget_bytes, is_exhausted, next_ages, shortened

WANTED = Ages(24 * HOUR_S, 7 * DAY_S, 730 * DAY_S, 90 * DAY_S, 400 * DAY_S)


def settle(size: float, budget: float, start: Ages = WANTED) -> Ages:
    ages = start
    for _ in range(200):
        ages = next_ages(ages, WANTED, size, budget)
    return ages


def test_records_give_way_first_then_minutes_then_hours_and_events_never() -> None:
    first = next_ages(WANTED, WANTED, 2.0, 1.0)
    assert first.raw_s < WANTED.raw_s
    assert astuple(first)[1:] == astuple(WANTED)[1:]
    ages, order = WANTED, []
    for _ in range(200):
        after = next_ages(ages, WANTED, 2.0, 1.0)
        order += [
            name for name in ("raw_s", "minutes_s", "hours_s") if getattr(after, name) != getattr(ages, name)
        ]
        ages = after
    assert order == sorted(order, key=["raw_s", "minutes_s", "hours_s"].index)
    assert (ages.raw_s, ages.minutes_s, ages.hours_s) == (HOUR_S, 6 * HOUR_S, 7 * DAY_S)
    assert (ages.events_s, ages.jobs_s) == (WANTED.events_s, WANTED.jobs_s)
    assert is_exhausted(ages)


def test_ages_grow_back_to_what_is_configured_where_there_is_room() -> None:
    least = settle(2.0, 1.0)
    assert settle(0.5, 1.0, least) == WANTED
    assert next_ages(least, WANTED, 0.9, 1.0) == least  # neither too large nor small enough: no swinging


def test_a_configuration_that_wants_less_counts_at_once() -> None:
    shorter = Ages(HOUR_S, DAY_S, 30 * DAY_S, DAY_S, DAY_S)
    assert at_most(WANTED, shorter) == shorter


@given(st.floats(0.0, 1e12), st.floats(1.0, 1e12), st.integers(0, 60))
def test_no_age_leaves_its_range(size: float, budget: float, steps: int) -> None:
    ages = WANTED
    for _ in range(steps):
        ages = next_ages(ages, WANTED, size, budget)
    least = settle(2.0, 1.0)
    assert all(
        low <= age <= high
        for low, age, high in zip(astuple(least), astuple(ages), astuple(WANTED), strict=True)
    )


def test_what_is_kept_for_a_shorter_time_is_said_in_words() -> None:
    assert shortened(WANTED, WANTED) is None
    assert shortened(next_ages(WANTED, WANTED, 2.0, 1.0), WANTED) == "records for 19.2 h instead of 24 h"


def test_a_small_fleet_may_take_a_gigabyte() -> None:
    assert budget_bytes(4.0, 3) == 1e9
    assert budget_bytes(4.0, 10_000) == 4e10
