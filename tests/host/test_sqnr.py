"""SQNR per layer: exact is exact, coarse is low."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from networks import three_exits

from edgekit.host.calibrate import Calibration
from edgekit.host.passes import PASSES, Context
from edgekit.host.passes.quantize_static import Int8
from edgekit.host.sqnr import decibel, layer_sqnr, spread


def test_a_graph_against_itself_is_exact(make: Callable) -> None:
    made = make(three_exits())
    assert set(layer_sqnr(made.plain, made.plain, made.data).values()) == {200.0}


def test_every_layer_of_the_int8_graph_has_a_figure(make: Callable) -> None:
    made = make(three_exits(channels=16))
    found = layer_sqnr(made.plain, made.quantized, made.data)
    assert {"a1", "a2", "b2", "exit3", "exit3/confidence"} <= set(found)
    assert all(10 < value < 60 for name, value in found.items() if "confidence" not in name)


def test_a_layer_with_a_wrong_range_stands_out(make: Callable) -> None:
    made = make(three_exits(channels=16))
    seen = made.seen.histograms
    clipped = Calibration({**seen, "b2": replace(seen["b2"], high=0.2 * seen["b2"].high)}, made.seen.count)
    context = Context(made.data, _seen={made.plain.fingerprint(): clipped})
    worse = PASSES["quantize_static"].apply(made.plain, Int8(), context)
    good, bad = layer_sqnr(made.plain, made.quantized, made.data), layer_sqnr(made.plain, worse, made.data)
    assert bad["a2"] == good["a2"]
    assert bad["b2"] < good["b2"] - 10


def test_samples_are_spread_and_the_same_every_time() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(2, 5) == [0, 1]
    assert len(spread(1000, 32)) == 32


def test_decibels_of_nothing() -> None:
    assert decibel(0.0, 0.0) == 200.0
    assert decibel(0.0, 1.0) == 0.0
    assert decibel(100.0, 1.0) == 20.0
