"""Latency histograms with fixed log-spaced buckets: they add up across boards and time. Never averages percentiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.core import checks

LOW_MS = 0.001  # upper edge of bucket 0
PER_DECADE = 20  # a bucket is 12.2 % wide, so a percentile read from it is at most 6 % off
HIGH_MS = 100_000.0  # upper edge of the last bucket, which also holds everything above
BUCKETS = 8 * PER_DECADE + 1
MAX_COUNT = 2**32  # of one interval: 2**31 of them still add up within 64 bits
MAX_SUM_MS = 1e15
_INT = {int}


def bucket_of(value_ms: float) -> int:
    """The bucket a latency falls into: bucket i holds (edge(i-1), edge(i)]."""
    if not value_ms > LOW_MS:
        return 0
    if value_ms >= HIGH_MS:
        return BUCKETS - 1
    return math.ceil(math.log10(value_ms / LOW_MS) * PER_DECADE - 1e-9)


def edge_ms(bucket: int) -> float:
    """Upper edge of a bucket in ms."""
    return float(LOW_MS * 10 ** (bucket / PER_DECADE))


@dataclass(frozen=True)
class Histogram:
    """Counts per bucket, and the exact sum in ms so that the mean is exact."""

    counts: Mapping[int, int] = field(default_factory=dict)
    sum_ms: float = 0.0

    @property
    def count(self) -> int:
        """How many latencies."""
        return sum(self.counts.values())

    @property
    def mean_ms(self) -> float | None:
        """Exact mean; None of nothing."""
        return self.sum_ms / self.count if self.counts else None

    def percentile_ms(self, percent: float) -> float | None:
        """The value below which `percent` of the latencies lie, to a bucket's width; None of nothing."""
        total = self.count
        if not total:
            return None
        wanted = percent / 100 * total
        seen = 0
        for bucket in sorted(self.counts):
            inside = self.counts[bucket]
            if seen + inside >= wanted:
                low, high = edge_ms(bucket - 1), edge_ms(bucket)
                return float(low * (high / low) ** ((wanted - seen) / inside))
            seen += inside
        raise AssertionError("the last bucket reaches the total")

    def summary(self) -> dict[str, float | None]:
        """mean, p50, p95, p99 in ms; None where nothing was counted."""
        return {
            "mean": self.mean_ms,
            "p50": self.percentile_ms(50),
            "p95": self.percentile_ms(95),
            "p99": self.percentile_ms(99),
        }

    def __add__(self, other: Histogram) -> Histogram:
        counts = dict(self.counts)
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        return Histogram(counts, self.sum_ms + other.sum_ms)

    def to_json(self) -> dict[str, Any]:
        """Sparse: only buckets that hold something."""
        return {
            "buckets": [[b, self.counts[b]] for b in sorted(self.counts)],
            "sum_ms": round(self.sum_ms, 6),
        }

    @classmethod
    def parse(cls, value: object, where: str) -> Histogram:
        """Read from JSON. Raises BadInput."""
        return quick(value) or cls._explain(value, where)

    @classmethod
    def _explain(cls, value: object, where: str) -> Histogram:
        """Read it step by step, so that what is wrong can be said."""
        data = checks.table(value, where)
        counts: dict[int, int] = {}

        def pair(entry: object, at: str) -> None:
            bucket, count = checks.rows(entry, at, checks.integer) if _is_pair(entry) else (None, None)
            if (
                bucket is None
                or count is None
                or bucket >= BUCKETS
                or bucket in counts
                or not 1 <= count <= MAX_COUNT
            ):
                raise checks.wrong(at, f"[bucket 0-{BUCKETS - 1}, count], each bucket once", entry)
            counts[bucket] = count

        checks.rows(data.get("buckets"), f"{where}.buckets", pair)
        return cls(counts, checks.number(data.get("sum_ms"), f"{where}.sum_ms", 0.0, MAX_SUM_MS))


def quick(value: object) -> Histogram | None:
    """A good histogram, read at once; None where anything is unusual, which `Histogram.parse` then explains."""
    if type(value) is not dict:
        return None
    pairs, total = value.get("buckets"), value.get("sum_ms")
    if type(pairs) is not list or (type(total) is not float and type(total) is not int):
        return None
    if not 0.0 <= total <= MAX_SUM_MS:
        return None
    try:
        counts: dict[int, int] = dict(pairs)
    except (TypeError, ValueError):
        return None
    if counts:
        times = counts.values()
        if len(counts) != len(pairs) or {*map(type, counts), *map(type, times)} != _INT:
            return None
        if min(counts) < 0 or max(counts) >= BUCKETS or min(times) < 1 or max(times) > MAX_COUNT:
            return None
    return Histogram(counts, float(total))


def _is_pair(entry: object) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 2


def histogram(values_ms: Iterable[float]) -> Histogram:
    """Count latencies into buckets."""
    counts: dict[int, int] = {}
    total = 0.0
    for value in values_ms:
        bucket = bucket_of(value)
        counts[bucket] = counts.get(bucket, 0) + 1
        total += value
    return Histogram(counts, total)
