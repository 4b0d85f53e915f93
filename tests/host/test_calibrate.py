"""Calibration: one pass, bounded memory, ranges that hold what they should."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Builder, save, three_exits

from edgekit.core.errors import BadInput
from edgekit.host.calibrate import (
    BINS,
    METHODS,
    Calibration,
    Histogram,
    calibrate,
    entropy,
    float_activations,
    in_parts,
    minmax,
    mse,
    percentile,
)
from edgekit.host.load import load
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
    with pytest.raises(BadInput, match="known: entropy, minmax, mse, percentile"):
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


# --- entropy ----------------------------------------------------------------------------------------------------------


def slow_entropy(values: np.ndarray, low: float, high: float, steps: int, bins: int) -> float:
    """Kullback-Leibler divergence of values in [low, high], one bin after the other."""
    edges = np.linspace(low, high, bins + 1)
    inside = np.histogram(values, edges)[0].astype(float)
    wanted = inside.copy()
    wanted[0] += np.count_nonzero(values < low)
    wanted[-1] += np.count_nonzero(values > high)
    got = np.zeros(bins)
    for step in range(steps):
        members = [place for place in range(bins) if place * steps // bins == step and inside[place] > 0]
        for place in members:
            got[place] = sum(inside[m] for m in members) / len(members)
    p, q = wanted / wanted.sum(), got / got.sum()
    return float(sum(a * np.log(a / max(b, 1e-9)) for a, b in zip(p, q, strict=True) if a > 0))


def test_entropy_finds_about_the_least_divergence() -> None:
    random = np.random.default_rng(0)
    values = np.abs(random.laplace(size=300_000)).astype(np.float32)  # as after a ReLU, with a long tail
    made = histogram_of(values)
    low, high = entropy(made)
    assert low >= 0
    assert high < 0.9 * values.max()
    width = made.reach / (BINS // 2)

    def divergence(top: float) -> float:
        return slow_entropy(values, 0.0, top, 255, round(top / width))

    found = divergence(high)
    assert found <= 1.05 * min(divergence(share * values.max()) for share in np.linspace(0.2, 1, 15))


def test_entropy_keeps_a_flat_distribution_whole() -> None:
    values = np.random.default_rng(0).uniform(-2, 2, 400_000).astype(np.float32)
    low, high = entropy(histogram_of(values))
    assert low == pytest.approx(-2, abs=0.1)
    assert high == pytest.approx(2, abs=0.1)


def test_zeros_do_not_drown_the_rest_in_entropy() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=100_000)).astype(np.float32)
    with_zeros = np.concatenate([values, np.zeros(900_000, np.float32)])
    assert entropy(histogram_of(with_zeros))[1] == pytest.approx(entropy(histogram_of(values))[1], rel=0.05)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=300), st.sampled_from(sorted(METHODS)))
def test_every_method_stays_inside_what_was_seen(values: list[float], method: str) -> None:
    made = histogram_of(np.array(values, np.float32))
    low, high = Calibration({"t": made}, 1).ranges(method)["t"]
    bin_width = 2 * made.reach / BINS
    assert min(made.low, 0) - bin_width <= low <= 0 <= high <= max(made.high, 0) + bin_width


# --- what the pass over the data looks at -----------------------------------------------------------------------------


def test_minmax_alone_gives_the_ranges_of_the_whole_calibration_without_histograms(make: Callable) -> None:
    made = make(three_exits())
    quick = calibrate(made.plain, made.data, methods=("minmax",))
    assert quick.ranges("minmax") == made.seen.ranges("minmax")
    assert all(not histogram.counts.any() for histogram in quick.histograms.values())
    with pytest.raises(BadInput, match="'mse' needs histograms"):
        quick.ranges("mse")


def test_histograms_of_a_part_of_the_samples_still_have_the_extremes_of_all(
    make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(three_exits())
    whole = made.seen.ranges("minmax")
    monkeypatch.setattr("edgekit.host.calibrate.HISTOGRAM_SAMPLES", 5)
    monkeypatch.setattr("edgekit.host.calibrate._MOST_VALUES", 100)
    ticks: list[int] = []
    part = calibrate(made.plain, made.data, ticks.append)
    assert part.ranges("minmax") == whole
    assert sum(ticks) == made.data.count
    assert 0 < part.histograms["a1"].counts.sum() < made.seen.histograms["a1"].counts.sum() / 10
    # the ranges are near those of all values
    for method in ("percentile", "mse"):
        assert part.ranges(method)["a2"][1] == pytest.approx(made.seen.ranges(method)["a2"][1], rel=0.3)


def test_only_the_named_tensors_are_looked_at(make: Callable) -> None:
    made = make(three_exits())
    seen = calibrate(made.plain, made.data, names={"x", "a2"})
    assert set(seen.histograms) == {"x", "a2"}
    assert seen.ranges("minmax")["a2"] == made.seen.ranges("minmax")["a2"]


@pytest.mark.parametrize("methods", [("minmax",), ()])
def test_an_activation_that_overflows_is_refused_by_name(tmp_path: Path, methods: tuple[str, ...]) -> None:
    b = Builder()
    x = b.op("Exp", ["x"], "grown")
    b.op("Relu", [x], "cut")
    graph = load(save(b.model([("cut", (1, 4))], [("x", (1, 4))]), tmp_path / "m.onnx")).graph
    data = Data("d", range(2), None, lambda index: {"x": np.full((1, 4), 200.0, np.float32)}, str)
    with pytest.raises(BadInput, match="'grown' must be finite numbers"):
        calibrate(graph, data, methods=methods)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_minmax_is_that_of_all_values_whatever_is_derived(seed: int, count: int) -> None:
    histogram, random = Histogram(), np.random.default_rng(seed)
    arrays = [random.normal(random.normal(), 2, (3, 4)).astype(np.float32) for _ in range(count)]
    for array in arrays:
        histogram.see(array)
    assert minmax(histogram) == (min(a.min() for a in arrays), max(a.max() for a in arrays))


# --- memory -----------------------------------------------------------------------------------------------------------

_CHILD = """
import re, sys
import numpy as np
from pathlib import Path
from edgekit.host.calibrate import calibrate
from edgekit.host.load import load
from edgekit.runtime.data import Data
graph = load(Path(sys.argv[1])).graph
name, shape = graph.inputs[0].tensor.name, graph.inputs[0].tensor.shape
sample = lambda index: {name: np.random.default_rng(index).normal(size=shape).astype(np.float32)}
calibrate(graph, Data("made up", range(int(sys.argv[2])), None, sample, str))
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""  # getrusage's peak would be the one of the process that starts it, where that is larger


def inverted_residuals(side: int, seed: int = 0) -> onnx.ModelProto:
    """A network of 25 MB in the manner of MobileNetV2."""
    b = Builder(seed)
    x, wide = b.conv("x", "stem", (3, 32), stride=2), 32
    blocks = [(24, 1), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1), (128, 2), *[(128, 1)] * 3]
    blocks += [*[(192, 1)] * 3, (320, 2), *[(320, 1)] * 2, (512, 1)]
    for index, (out, stride) in enumerate(blocks):
        inner = 4 * wide
        y = b.conv(x, f"e{index}", (wide, inner), kernel=1)
        y = b.conv(y, f"d{index}", (inner, inner), group=inner, stride=stride)
        y = b.conv(y, f"p{index}", (inner, out), kernel=1, relu=False)
        x = b.op("Add", [x, y], f"s{index}") if out == wide and stride == 1 else y
        wide = out
    b.head(b.conv(x, "last", (wide, 1280), kernel=1), "y", 1280, 1000)
    return b.model([("y", (1, 1000))], [("x", (1, 3, side, side))])


def peak_mib(model: Path, count: int) -> int:
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(model), str(count)], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


def test_a_25_mb_model_is_calibrated_in_bounded_memory(tmp_path: Path) -> None:
    model = save(inverted_residuals(96), tmp_path / "m.onnx")
    assert model.stat().st_size > 25e6
    few, more = peak_mib(model, 3), peak_mib(model, 24)
    assert more < 600
    assert more < few + 60


@pytest.mark.slow
def test_ten_thousand_samples_of_a_25_mb_model_stay_under_600_mb(tmp_path: Path) -> None:
    model = save(inverted_residuals(224), tmp_path / "m.onnx")
    assert peak_mib(model, 10_000) * 2**20 < 600e6


def test_tensors_too_large_to_be_held_at_once_are_looked_at_in_parts(
    make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(three_exits())
    names = float_activations(made.plain)
    parts = in_parts(made.plain, names, most_bytes=10_000)
    assert len(parts) > 2
    assert [name for part in parts for name in part] == list(names)
    assert in_parts(made.plain, names) == [list(names)]
    wanted = {
        methods: calibrate(made.plain, made.data, methods=methods) for methods in (("minmax",), ("mse",))
    }
    monkeypatch.setattr("edgekit.host.calibrate.in_parts", lambda graph, names: parts)
    for methods, found in wanted.items():
        done: list[int] = []
        again = calibrate(made.plain, made.data, done.append, methods=methods)
        for name, edges in found.ranges(
            methods[0]
        ).items():  # other outputs, other fusions: the last bits differ
            assert again.ranges(methods[0])[name] == pytest.approx(
                edges, rel=1e-2 if methods == ("mse",) else 1e-5
            )
        assert sum(done) == made.data.count
