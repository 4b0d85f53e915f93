"""Which time a board may believe, and when a job's time is over although it believes none."""

from __future__ import annotations

import pytest

from edgekit.agent.clock import EARLIEST, late, trusted

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("now", "good", "believed"),
    [
        (NOW, 0.0, True),
        (42.0, 0.0, False),
        (EARLIEST - 1, 0.0, False),
        (NOW, NOW + 1800, True),  # corrected backwards by half an hour
        (NOW, NOW + 7200, False),
        (4e9, NOW, True),  # nothing on a board can tell that this is wrong
    ],
)
def test_a_time_before_one_already_seen_is_not_believed(now: float, good: float, believed: bool) -> None:
    assert trusted(now, good) == (now if believed else None)


def test_with_a_clock_the_expiry_decides() -> None:
    assert not late(NOW + 1, NOW, NOW, 0, 1e9)
    assert late(NOW - 1, NOW, NOW, 0, 0.0)


def test_without_one_a_job_still_ends_counted_from_the_last_good_time() -> None:
    assert not late(NOW + 100, 42.0, NOW, 0, 99.0)
    assert late(NOW + 100, 42.0, NOW, 0, 101.0)


def test_a_board_that_never_knew_the_time_counts_from_the_servers_own_number() -> None:
    n = int((NOW + 50) * 1000)
    assert not late(NOW + 100, 42.0, 0.0, n, 49.0)
    assert late(NOW + 100, 42.0, 0.0, n, 51.0)
