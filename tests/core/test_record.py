"""Records as boards send them: the quick way of reading takes nothing that the slow one would not, and the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.core import record as record_module
from edgekit.core.errors import BadInput
from edgekit.core.histogram import BUCKETS, MAX_COUNT, Histogram
from edgekit.core.record import Record

GOOD: dict[str, Any] = {
    "seq": 1,
    "uptime": 60,
    "time": 1_800_000_000.5,
    "clock_synced": True,
    "interval_s": 60.0,
    "bundle": "toy/1",
    "policy": "budget 3ms",
    "requests": 5,
    "errors": 0,
    "deadline_missed": 1,
    "labelled": 5,
    "correct": 4,
    "exit_counts": {"exit1": 3, "final": 2},
    "latency": {"buckets": [[60, 3], [61, 200]], "sum_ms": 5},
    "energy_mj": 12.5,
    "energy_provenance": "measured",
    "energy_on": "raspberrypi5",
    "energy_why": None,
    "energy_updates": 60,
    "idle_power_mw": 2300,
    "busy_s": 0.1,
    "temperature_c": -3.5,
    "throttled": False,
    "under_voltage": None,
    "memory_mb": 100,
    "inputs_dropped": 0,
    "answers_lost": 0,
    "cancelled": 0,
    "nan_confidences": 0,
}
WHOLE = [0, 1, -1, 2, 60, MAX_COUNT, MAX_COUNT + 1, 2**53, 2**53 + 1, 2**70, 10**400]
BROKEN = [0.0, -0.5, 1.5, 1e9, 1e11, 2e11, 1e15, 1e16, 1e300, float("inf"), float("nan")]
TEXTS = ["", "a", "measured", "x" * 4096, "x" * 4097, "\0", "\ud800", "é", "a b"]
LEAVES = st.sampled_from([None, True, False, *WHOLE, *BROKEN, *TEXTS])
PAIRS = st.lists(
    st.lists(st.sampled_from([0, 1, BUCKETS - 1, BUCKETS, -1, True, 1.0, "a"]), max_size=3), max_size=3
)
VALUES = (
    LEAVES
    | st.dictionaries(st.sampled_from(["exit1", "a b", "", "é"]), LEAVES, max_size=2)
    | st.fixed_dictionaries({"buckets": PAIRS | LEAVES, "sum_ms": LEAVES})
    | PAIRS
)


def outcome(read: Any, value: object) -> Any:
    try:
        return read(value, "record")
    except BadInput as err:
        return str(err)


@given(
    st.dictionaries(st.sampled_from(sorted(GOOD)), VALUES, max_size=3),
    st.sets(st.sampled_from(sorted(GOOD)), max_size=2),
)
def test_both_ways_of_reading_give_the_same_record_or_the_same_error(
    changed: dict[str, Any], missing: set[str]
) -> None:
    value = {key: item for key, item in (GOOD | changed).items() if key not in missing}
    found, wanted = outcome(Record.parse, value), outcome(Record._explain, value)
    assert found == wanted
    assert repr(found) == repr(wanted)  # an int is no float


def test_a_usual_record_is_read_the_quick_way() -> None:
    assert record_module._quick(GOOD) == Record._explain(GOOD, "record")
    assert record_module._quick(Record.parse(GOOD).to_json()) == Record.parse(GOOD)
    assert record_module._quick({"seq": 1, **json.loads(json.dumps(GOOD))}) is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"requests": 2**32 + 1},
            "record.requests must be a whole number from 0 to 4294967296, got 4294967297",
        ),
        ({"energy_mj": 1e308}, "record.energy_mj must be a number from 0 to 1e+15"),
        ({"interval_s": 1e300}, "record.interval_s must be a number from 0 to 1e+10"),
        ({"exit_counts": {"exit1": 2**60}}, "record.exit_counts.exit1 must be"),
        ({"latency": {"buckets": [[1, 2**40]], "sum_ms": 0}}, "record.latency.buckets[0] must be [bucket"),
        (
            {"latency": {"buckets": [], "sum_ms": 1e308}},
            "record.latency.sum_ms must be a number from 0 to 1e+15",
        ),
    ],
)
def test_no_record_holds_what_sums_of_records_could_not(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as raised:
        Record.parse(GOOD | change)
    assert str(raised.value).startswith(says)


@given(st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(1, MAX_COUNT)), st.floats(0, 1e15))
def test_a_histogram_comes_back_as_it_went(counts: dict[int, int], total: float) -> None:
    made = Histogram(counts, round(total, 6))
    assert Histogram.parse(made.to_json(), "latency") == made
