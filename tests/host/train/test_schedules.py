"""Schedules: pure functions of the share that is done."""

from __future__ import annotations

import pytest

from edgekit.host.train.schedules import gradual_sparsity, warm_cosine


def test_sparsity_rises_as_zhu_and_gupta_say_and_stays_at_its_end() -> None:
    at = gradual_sparsity(0.8, initial=0.2, begin=0.1, end=0.5)
    assert [at(0.0), at(0.1), at(0.5), at(1.0)] == pytest.approx([0.2, 0.2, 0.8, 0.8])
    assert at(0.3) == pytest.approx(0.8 + (0.2 - 0.8) * (1 - 0.5) ** 3)
    steps = [at(done / 100) for done in range(101)]
    assert steps == sorted(steps)


def test_the_rate_rises_then_falls_to_its_last_share() -> None:
    at = warm_cosine(warm_up=0.1, last=0.05)
    assert 0 < at(0.0) < 0.02
    assert at(0.1) == pytest.approx(1.0)
    assert at(0.55) == pytest.approx(0.05 + 0.95 * 0.5)
    assert at(1.0) == pytest.approx(0.05)
