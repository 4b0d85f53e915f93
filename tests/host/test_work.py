"""Counting: multiply-accumulates by the book, bytes as they are stored, calls that really happen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from networks import CLASSES, SIDE, Builder, depthwise, perceptron, save, three_exits

from edgekit.core.cost import Work
from edgekit.host.graph import Graph
from edgekit.host.load import load
from edgekit.host.work import Layer, layers, work


def layers_of(model: object, tmp_path: Path) -> dict[str, Layer]:
    graph: Graph = load(save(model, tmp_path / "m.onnx")).graph  # type: ignore[arg-type]
    return {layer.name: layer for layer in layers(graph.model)}


def test_products_are_counted_by_the_book(tmp_path: Path) -> None:
    found = layers_of(depthwise(), tmp_path)
    half = SIDE // 2
    assert found["n_stem_y"].macs == half * half * 8 * 3 * 9
    assert found["n_deep_y"].macs == half * half * 8 * 9
    assert found["n_wide_y"].macs == half * half * 16 * 8
    assert found["n_logits"].macs == 16 * CLASSES
    assert found["n_probs"].macs == 0


def test_matrices_are_counted_by_the_book(tmp_path: Path) -> None:
    found = layers_of(perceptron(), tmp_path)
    assert found["n_m1"].macs == 16 * 32
    assert found["n_m2"].macs == 32 * CLASSES


def test_a_transposed_convolution_is_counted_from_its_input(tmp_path: Path) -> None:
    b = Builder()
    b.op("ConvTranspose", ["x", b.weight("w", 3, 2, 2, 2)], "y", kernel_shape=[2, 2], strides=[2, 2])
    found = layers_of(b.model([("y", (1, 2, 2 * SIDE, 2 * SIDE))]), tmp_path)
    assert found["n_y"].macs == SIDE * SIDE * 3 * 2 * 4


def test_a_recurrent_layer_is_counted_per_step(tmp_path: Path) -> None:
    b = Builder()
    inputs = ["x", b.weight("w", 1, 4 * 6, 5), b.weight("r", 1, 4 * 6, 6)]
    b.op("LSTM", inputs, "y", hidden_size=6)
    found = layers_of(b.model([("y", (7, 1, 1, 6))], [("x", (7, 1, 5))]), tmp_path)
    assert found["n_y"].macs == 7 * 4 * 6 * (5 + 6)


def test_views_and_fused_activations_call_no_kernel(tmp_path: Path) -> None:
    found = layers_of(three_exits(), tmp_path)
    assert found["n_a1"].calls == 0  # ReLU behind its convolution
    assert found["n_exit1_flat"].calls == 0
    assert found["n_b2"].calls == 1  # ReLU behind an addition
    assert found["n_a1_y"].calls == 1


def test_bytes_are_weights_and_activations_as_stored(tmp_path: Path, make: Callable) -> None:
    found = layers_of(three_exits(channels=8), tmp_path)
    weights, activations = 8 * 8 * 9 + 8, 2 * 8 * SIDE * SIDE
    assert found["n_a2_y"].bytes == 4 * (weights + activations)
    quantized = {layer.name: layer for layer in layers(make(three_exits(channels=8)).quantized.model)}
    assert quantized["n_a2_y"].format == "int8"
    assert quantized["n_a2_y"].bytes == 8 * 8 * 9 + 4 * 8 + activations  # the bias is int32
    assert quantized["n_a2_y"].macs == found["n_a2_y"].macs


def test_work_adds_up_by_operator_and_format(make: Callable) -> None:
    made = make(three_exits())
    found = layers(made.quantized.model)
    summed = work(found)
    assert sum(entry.macs for entry in summed) == sum(layer.macs for layer in found)
    assert len({(entry.op, entry.format) for entry in summed}) == len(summed)
    assert {entry.format for entry in summed if entry.op == "Conv"} == {"int8"}
    assert isinstance(summed[0], Work)


@pytest.mark.parametrize("which", ["plain", "quantized"])
def test_confidence_is_float_work(make: Callable, which: str) -> None:
    found = layers(getattr(make(three_exits()), which).model)
    assert {layer.format for layer in found if layer.op == "Softmax"} == {"float32"}
