"""Schedules: what Zhu and Gupta's curve says at its ends, between, and where it has no length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.host.train.schedules import gradual_sparsity, warm_cosine

SHARES = st.floats(0, 1)


@given(final=SHARES, initial=SHARES, done=SHARES)
def test_the_curve_is_the_papers(final: float, initial: float, done: float) -> None:
    begin, end = 0.2, 0.7
    s = gradual_sparsity(final, initial, begin, end)
    t = min(max(done, begin), end)
    wanted = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** 3
    assert s(done) == pytest.approx(wanted, abs=1e-12)


def test_it_stays_at_the_start_until_it_begins_and_at_the_goal_when_it_ends() -> None:
    s = gradual_sparsity(0.9, 0.1, 0.25, 0.75)
    assert [s(0.0), s(0.25), s(0.75), s(1.0)] == pytest.approx([0.1, 0.1, 0.9, 0.9])
    assert s(0.5) == pytest.approx(0.9 - 0.8 / 8)  # half way, seven eighths are done


@given(final=SHARES, one=SHARES, other=SHARES)
def test_it_never_falls_where_it_is_to_rise(final: float, one: float, other: float) -> None:
    s = gradual_sparsity(final)
    assert s(min(one, other)) <= s(max(one, other)) + 1e-12


def test_with_no_time_to_rise_it_is_there_at_once() -> None:
    s = gradual_sparsity(0.8, begin=0.5, end=0.5)
    assert s(0.49) == 0.0
    assert s(0.51) == pytest.approx(0.8)


def test_the_learning_rate_warms_up_and_falls_to_its_last_value() -> None:
    rate = warm_cosine(0.1, 0.05)
    assert 0 < rate(0.0) < rate(0.05) < rate(0.1) == pytest.approx(1.0)
    assert rate(1.0) == pytest.approx(0.05)
