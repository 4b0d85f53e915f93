"""SQNR per layer: exact is exact, coarse is low."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import Builder, save, three_exits, write_data

from edgekit.core.errors import BadInput
from edgekit.host.calibrate import Calibration
from edgekit.host.load import load
from edgekit.host.passes import PASSES, Context
from edgekit.host.passes.quantize_static import Int8
from edgekit.host.sqnr import answers_of, check_finite, decibel, layer_sqnr, spread, sqnr_of
from edgekit.runtime.data import load_data


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


@pytest.mark.parametrize("noise", [np.inf, np.nan])
def test_answers_that_overflow_are_far_off_and_not_exact(noise: float) -> None:
    assert decibel(100.0, noise) == -200.0
    assert sqnr_of([[np.ones(3)]], [[np.array([1.0, noise, 1.0])]]) == -200.0


def test_networks_without_a_float_tensor_in_common_have_no_figures(tmp_path: Path) -> None:
    b = Builder()
    b.op("ArgMax", ["x"], "y", axis=1, keepdims=0)
    model = b.model([("y", (1,))], [("x", (1, 4))])
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    graph = load(save(model, tmp_path / "m.onnx")).graph
    data = load_data(write_data(tmp_path / "d.npz", (4,), 6), graph.inputs)
    assert layer_sqnr(graph, graph, data) == {}


def test_an_answer_that_is_not_finite_is_told_with_its_sample(tmp_path: Path) -> None:
    b = Builder()
    b.op("Log", ["x"], "y")
    graph = load(save(b.model([("y", (1, 4))], [("x", (1, 4))]), tmp_path / "m.onnx")).graph
    rows = np.ones((6, 4), np.float32)
    rows[2, 1] = 0
    np.savez(tmp_path / "d.npz", x=rows)
    data = load_data(tmp_path / "d.npz", graph.inputs)
    with pytest.raises(BadInput, match=r"output 'y' is not finite for d\.npz\[2\]"):
        check_finite(graph, answers_of(graph, data, 6), data)
