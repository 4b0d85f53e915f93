"""Calibration: one pass, bounded memory, ranges that hold what they should."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import three_exits

from edgekit.core.errors import BadInput
from edgekit.host.calibrate import BINS, METHODS, Calibration, Histogram, calibrate, mse, percentile
from edgekit.runtime.data import Data


def histogram_of(*chunks: np.ndarray) -> Histogram:
    made = Histogram()
    for chunk in chunks:
        made.add(chunk.astype(np.float32))
    return made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50), min_size=1, max_size=8))
def test_every_value_is_counted_within_the_reach_whatever_the_chunks(chunks: list[list[float]]) -> None:
    arrays = [np.array(chunk, np.float32) for chunk in chunks]
    made, every = histogram_of(*arrays), np.concatenate(arrays)
    assert made.counts.sum() == every.size
    assert made.low == every.min()
    assert made.high == every.max()
    assert made.reach >= np.abs(every).max() or np.abs(every).max() < 1e-30
    width = 2 * made.reach / BINS
    # the mean from bin centres is within a bin's width of the true one
    if made.reach:
        assert abs(made.counts @ made.centres / every.size - every.mean(dtype=np.float64)) <= width


def test_small_chunks_and_one_large_chunk_count_the_same() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    whole = histogram_of(values)
    pieces = histogram_of(*np.array_split(values, 37))
    assert whole.reach == pieces.reach
    assert np.abs(whole.counts - pieces.counts).sum() <= 4  # a value on a bin's edge may fall to either side


def test_percentile_leaves_an_outlier_out_and_mse_weighs_it() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    values[0] = 1000.0
    made = histogram_of(values)
    assert percentile(made)[1] < 10
    assert mse(made)[1] < 1000
    assert METHODS["minmax"](made)[1] == 1000.0


def test_every_range_holds_zero() -> None:
    seen = Calibration(
        {"up": histogram_of(np.array([3.0, 4.0])), "down": histogram_of(np.array([-4.0, -3.0]))}, 1
    )
    for method in METHODS:
        ranges = seen.ranges(method)
        assert ranges["up"][0] == 0.0
        assert ranges["down"][1] == 0.0


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match="known: minmax, mse, percentile"):
        Calibration({}, 0).ranges("magic")


def test_every_float_tensor_and_the_input_is_seen(make: Callable) -> None:
    made = make(three_exits())
    assert {"x", "a1", "b_sum", "exit1", "exit3"} <= set(made.seen.histograms)
    assert made.seen.histograms["a1"].low >= 0  # after ReLU


def test_an_input_that_is_not_a_number_is_refused(make: Callable) -> None:
    made = make(three_exits())

    def broken(index: int) -> dict[str, np.ndarray]:
        return {"x": np.full((1, 3, 12, 12), np.nan, np.float32)}

    with pytest.raises(BadInput, match="must be finite numbers"):
        calibrate(made.plain, replace(made.data, sample=broken))


def test_memory_does_not_grow_with_the_samples(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.host.calibrate._CHUNK_SAMPLES", 8)
    made = make(three_exits(channels=16))
    sample = made.data.inputs(0)

    def many(count: int) -> Data:
        return Data("many", range(count), None, lambda index: sample, str)

    peaks = []
    for count in (16, 320):
        tracemalloc.start()
        calibrate(made.plain, many(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_progress_counts_every_sample(make: Callable, tmp_path: Path) -> None:
    made = make(three_exits())
    ticks: list[int] = []
    calibrate(made.plain, made.data, ticks.append)
    assert sum(ticks) == made.data.count
