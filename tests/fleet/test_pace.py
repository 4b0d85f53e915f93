"""An ingester's rate and lag are of the last minute; its counts of its whole life."""

from __future__ import annotations

from edgekit.core.histogram import Histogram
from edgekit.fleet.pace import Pace


def lag(told: dict[str, dict[str, int]]) -> Histogram:
    return Histogram({int(bucket): number for bucket, number in told["lag"].items()})


def test_what_is_older_than_a_minute_counts_in_no_rate_and_no_lag() -> None:
    pace = Pace(100.0)
    pace.committed([100.0, 100.5], (50, 1, 2), 100.9, 101.0)
    first = pace.told(105.0)
    assert (first["rate"], first["messages"], first["records"], first["dropped"]) == (10.0, 2, 50, 2)
    assert 450 < (lag(first).percentile_ms(10) or 0) < (lag(first).percentile_ms(99) or 0) < 1100
    later = [pace.told(at) for at in range(110, 185, 5)][-1]
    assert (later["rate"], later["lag"], later["records"], later["commits"]) == (0.0, {}, 50, 1)
