"""Limits: met, missed, and never met by what nobody knows."""

from __future__ import annotations

import pytest

from edgekit.core.figure import Figure, unknown
from edgekit.core.report import Change
from edgekit.host.limits import Limits

KNOWN = (Change(0.93, 0.925), 2.0, Figure(5.0, "mJ", "measured", None, "here"), 300_000.0, 40.0)


def test_no_limit_is_always_met() -> None:
    assert Limits().missed(Change(None, None), None, unknown("mJ"), None) == ()


def test_limits_that_hold_are_met() -> None:
    assert Limits(0.5, 2.0, 5.0, 300.0, 40.0).missed(*KNOWN) == ()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(max_drop=0.4), "max-drop: wanted at most 0.4 points, got 0.5 points"),
        (Limits(max_latency_ms=1.9), "max-latency-ms: wanted at most 1.9 ms, got 2 ms"),
        (Limits(max_energy_mj=4.0), "max-energy-mj: wanted at most 4 mJ, got 5 mJ"),
        (Limits(max_size_kb=299.0), "max-size-kb: wanted at most 299 kB, got 300 kB"),
        (Limits(max_memory_mb=39.0), "max-memory-mb: wanted at most 39 MB, got 40 MB"),
    ],
)
def test_a_missed_limit_says_which_by_how_much_and_what_helps(limits: Limits, said: str) -> None:
    (line,) = limits.missed(*KNOWN)
    assert line.startswith(said)
    assert ": allow more" in line


def test_what_nobody_knows_meets_no_limit() -> None:
    missed = Limits(1.0, 1.0, 1.0, 1.0, 1.0).missed(Change(0.9, None), None, unknown("mJ"), None)
    assert len(missed) == 5
    assert all("got unknown" in line for line in missed)
    assert missed[1].endswith("it was not timed there, and the profile has no costs to estimate it from")
