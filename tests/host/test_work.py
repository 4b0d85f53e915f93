"""Counting: multiply-accumulates by the book, bytes as they are stored, calls that really happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from networks import CLASSES, NETWORKS, SIDE, Builder, depthwise, perceptron, save, three_exits

from edgekit.core.cost import SIDE_WORK, Work
from edgekit.host.graph import Graph
from edgekit.host.load import load
from edgekit.host.lower import backend_for
from edgekit.host.measure_costs import as_one_stage
from edgekit.host.work import Layer, layers, work
from edgekit.runtime.detect import find_profile
from edgekit.runtime.quiet_ort import onnxruntime


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


def test_views_and_what_a_convolution_does_as_well_call_no_kernel(tmp_path: Path) -> None:
    found = layers_of(three_exits(), tmp_path)
    assert found["n_a1"].calls == 0  # ReLU behind its convolution
    assert found["n_exit1_flat"].calls == 0
    assert found["n_b_sum"].calls == 0  # a residual sum, which the convolution starts from
    assert found["n_b2"].calls == 0  # and the ReLU behind it
    assert found["n_a1_y"].calls == 1
    assert found["n_a1"].work == ()


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
    assert {entry.format for entry in summed if entry.op.startswith("Conv.")} == {"int8"}
    assert isinstance(summed[0], Work)


@pytest.mark.parametrize("which", ["plain", "quantized"])
def test_confidence_is_float_work(make: Callable, which: str) -> None:
    found = layers(getattr(make(three_exits()), which).model)
    assert {layer.format for layer in found if layer.op == "Softmax"} == {"float32"}


def classes_of(model: object, tmp_path: Path) -> dict[str, str]:
    found = layers_of(model, tmp_path)
    return {
        name: entry.op
        for name, layer in found.items()
        for entry in layer.work
        if entry.op.partition(".")[0] not in SIDE_WORK
    }


def test_convolutions_are_told_apart_by_what_makes_them_fast_or_slow(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv("x", "first", (3, 32))
    x = b.conv(x, "dense", (32, 32))
    x = b.conv(x, "point", (32, 48), kernel=1)
    x = b.conv(x, "deep", (48, 48), group=48)
    x = b.conv(x, "halves", (48, 40), group=2)
    x = b.conv(x, "deep_odd", (40, 40), group=40)
    b.head(b.conv(x, "thin", (40, 2)), "y", 2)
    found = classes_of(b.model([("y", (1, CLASSES))]), tmp_path)
    assert found == {
        "n_first_y": "Conv.narrow",
        "n_dense_y": "Conv.kxk",
        "n_point_y": "Conv.1x1",
        "n_deep_y": "Conv.depthwise",
        "n_halves_y": "Conv.grouped.odd",
        "n_deep_odd_y": "Conv.depthwise.odd",
        "n_thin_y": "Conv.thin",
        "n_y_pool": "GlobalAveragePool",
        "n_y": "Gemm.vector",
    }


def test_side_work_holds_no_macs_and_names_what_a_runtime_does_besides(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv(b.conv("x", "a", (3, 24)), "b", (24, 24))
    x = b.op("Add", [x, b.weight("one", 1)], "shifted")  # a number added: not in the layout of convolutions
    b.head(b.conv(x, "c", (24, 24)), "y", 24)
    found = layers_of(b.model([("y", (1, CLASSES))]), tmp_path)
    side = {
        name: sorted(w.op for w in layer.work if w.op.partition(".")[0] in SIDE_WORK)
        for name, layer in found.items()
    }
    assert side["n_a_y"] == ["Padding", "Stage", "Unfold.narrow.small"]  # 8 of 32 channels stay empty
    assert "Layout" in side["n_b"]  # handed to the sum in the network's own layout
    assert "Layout" in side["n_c_y"]  # and taken back
    assert side["n_y_flat"] == ["View"]
    assert all(
        entry.macs == 0
        for layer in found.values()
        for entry in layer.work
        if entry.op.partition(".")[0] in SIDE_WORK
    )


def test_a_float_operator_between_codes_converts_them_and_an_int8_one_does_not(make: Callable) -> None:
    b = Builder()
    x = b.op("Elu", [b.conv("x", "a", (3, 8))], "e")  # there is no kernel on codes for it
    x = b.op("Sigmoid", [b.conv(x, "b", (8, 8), relu=False)], "s")  # there is one for this
    b.head(b.conv(x, "c", (8, 8)), "y", 8)
    found = {layer.name: layer for layer in layers(make(b.model([("y", (1, CLASSES))])).quantized.model)}
    codes = {"QuantizeLinear", "DequantizeLinear"}
    size = 8 * SIDE * SIDE
    assert found["n_e"].format == "float32"
    assert {w.op for w in found["n_e"].work} >= {"DequantizeLinear", "Elu"}
    elu = next(w for w in found["n_e"].work if w.op == "Elu")
    assert elu.bytes == 2 * 4 * size  # what it really reads and writes
    assert found["n_s"].format == "int8"
    assert not codes & {w.op for w in found["n_s"].work}


_NOT_COUNTED = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    *("ReorderInput", "ReorderOutput", "Transpose"),
)


def kernels_of(graph: Graph, tmp_path: Path) -> Counter[str]:
    """What onnxruntime makes of it: operators by name, views and changes of layout left out."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    made = as_one_stage(graph, backend_for(find_profile("host")))
    onnxruntime.InferenceSession(made.files["stages/0.onnx"], options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    return Counter({op: n for op, n in found.items() if op not in _NOT_COUNTED})


_WHICH = [(name, which) for name in sorted(NETWORKS) for which in ("plain", "quantized")]
_WHICH.remove(
    ("image_out", "quantized")
)  # codes of a float product's weights: counted as decoded once, are each time


@pytest.mark.parametrize(("name", "which"), _WHICH)
def test_the_calls_counted_are_the_kernels_onnxruntime_runs(
    name: str, which: str, make: Callable, tmp_path: Path
) -> None:
    graph = getattr(make(NETWORKS[name](0)), which)
    counted = [
        w for layer in layers(graph.model) for w in layer.work if w.op.partition(".")[0] not in SIDE_WORK
    ]
    calls = sum(w.calls for w in counted if w.op.partition(".")[0] != "Transpose")
    assert calls == sum(kernels_of(graph, tmp_path).values())


def test_a_sum_is_an_addition_and_one_channel_to_one_is_a_kind_of_its_own(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv("x", "a", (3, 1))
    x = b.op("Sum", [b.conv(x, "b", (1, 1), relu=False), b.conv(x, "c", (1, 1), relu=False)], "s")
    found = classes_of(b.model([("s", (1, 1, SIDE, SIDE))]), tmp_path)
    assert found["n_s"] == "Add"
    assert found["n_b"] == "Conv.single"
