from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.core.histogram import BUCKETS
from edgekit.fleet.packing import pack_counts, unpack_counts

COUNTS = st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(1, 2**53))


@given(COUNTS)
def test_counts_come_back_as_they_went_in(counts: dict[int, int]) -> None:
    assert unpack_counts(pack_counts(counts)) == counts


def test_a_usual_histogram_takes_a_few_bytes() -> None:
    counts = {60 + bucket: 100 - 9 * bucket for bucket in range(10)}
    assert len(pack_counts(counts)) <= 2 * len(counts)


@pytest.mark.parametrize("data", [b"\x80", b"\x01", b"\xff\x01\x05"], ids=["cut", "odd", "too far"])
def test_bytes_that_are_no_histogram_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="histogram column"):
        unpack_counts(data)
