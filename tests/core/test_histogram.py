"""Histograms add up, and their percentiles are right to a bucket's width."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.core.errors import BadInput
from edgekit.core.histogram import BUCKETS, Histogram, bucket_of, edge_ms, histogram

latencies = st.lists(st.floats(0.002, 90_000), min_size=1, max_size=60)
WIDTH = 10 ** (1 / 20)


@given(latencies, st.sampled_from([50.0, 95.0, 99.0]))
def test_a_percentile_is_within_one_bucket_of_the_exact_one(values: list[float], percent: float) -> None:
    exact = sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
    found = histogram(values).percentile_ms(percent)
    assert found is not None
    assert exact / WIDTH * 0.999 <= found <= exact * WIDTH * 1.001


@given(latencies, latencies)
def test_adding_histograms_is_counting_together(first: list[float], second: list[float]) -> None:
    added, together = histogram(first) + histogram(second), histogram(first + second)
    assert dict(added.counts) == dict(together.counts)
    assert added.sum_ms == pytest.approx(together.sum_ms)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_latency_has_a_bucket_and_lies_below_its_edge(value: float) -> None:
    bucket = bucket_of(value)
    assert 0 <= bucket < BUCKETS
    assert value <= edge_ms(bucket) * 1.000001 or bucket == BUCKETS - 1


@given(latencies)
def test_json_keeps_counts_and_sum(values: list[float]) -> None:
    before = histogram(values)
    after = Histogram.parse(before.to_json(), "h")
    assert dict(after.counts) == dict(before.counts)
    assert after.sum_ms == pytest.approx(before.sum_ms, abs=1e-5)


def test_the_mean_is_exact() -> None:
    assert histogram([1.0, 2.0, 6.0]).mean_ms == 3.0


def test_nothing_counted_is_unknown_and_not_zero() -> None:
    assert Histogram().summary() == {"mean": None, "p50": None, "p95": None, "p99": None}


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"buckets": [[0, 1]], "sum_ms": -1}, {"buckets": [[BUCKETS, 1]], "sum_ms": 0}]
    + [
        {"buckets": rows, "sum_ms": 0}
        for rows in ("x", [[0]], [[0, 0]], [[0, 1], [0, 1]], [["0", 1]], [[0, 1.5]], [3])
    ],
)
def test_a_histogram_no_board_makes_is_refused(value: object) -> None:
    with pytest.raises(BadInput):
        Histogram.parse(value, "h")
