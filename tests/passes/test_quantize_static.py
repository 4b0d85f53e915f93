"""Static int8: the right formats, weights per channel, and float where a decision hangs on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from networks import (
    CLASSES,
    Builder,
    batch_norm,
    probabilities_and_maps,
    save,
    three_exits,
    write_data,
)

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, initializers, model_bytes, values
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.passes import PASSES, Context, run_steps, step
from edgekit.host.passes.quantize_static import Int8
from edgekit.runtime.data import load_data


def plain_and_context(tmp_path: Path, model: object) -> tuple[Graph, Context]:
    graph = load(save(model, tmp_path / "m.onnx")).graph  # type: ignore[arg-type]
    plain = run_steps(graph, (step("confidence"), step("fold")), Context())
    data = load_data(write_data(tmp_path / "d.npz", graph.inputs[0].tensor.shape[1:], 8), graph.inputs)
    return plain, Context(data)


def quantized(tmp_path: Path, model: object, int8: Int8) -> Graph:
    plain, context = plain_and_context(tmp_path, model)
    return PASSES["quantize_static"].apply(plain, int8, context)


def codes(graph: Graph) -> set[ir.DataType | None]:
    return {node.outputs[0].dtype for node in graph.model.graph if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize(("activation", "wanted"), [("uint8", ir.DataType.UINT8), ("int8", ir.DataType.INT8)])
def test_activations_have_the_format_of_the_boards_kernels(
    tmp_path: Path, activation: str, wanted: ir.DataType
) -> None:
    assert codes(quantized(tmp_path, three_exits(), Int8(activation))) == {wanted}


def test_weights_are_int8_per_channel_and_biases_int32(tmp_path: Path) -> None:
    graph = quantized(tmp_path, three_exits(channels=8), Int8("uint8"))
    stored = {value.name: value for value in initializers(graph.model)}
    assert stored["a2_w_quantized"].dtype == ir.DataType.INT8
    assert stored["a2_w_scale"].const_value is not None
    assert stored["a2_w_scale"].const_value.size == 8
    assert stored["a2_b_quantized"].dtype == ir.DataType.INT32


def test_reduced_range_keeps_weights_in_seven_bits(tmp_path: Path) -> None:
    graph = quantized(tmp_path, three_exits(), Int8("uint8", reduce_range=True))
    weights = [
        v.const_value.numpy() for v in initializers(graph.model) if v.name and v.name.endswith("w_quantized")
    ]
    assert weights
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= 64


def test_answers_and_decisions_stay_float(tmp_path: Path) -> None:
    graph = quantized(tmp_path, probabilities_and_maps(), Int8("uint8"))
    named = values(graph.model)
    softmax = named["probs"].producer()
    assert softmax is not None
    assert softmax.op_type == "Softmax"
    logits = softmax.inputs[0]
    assert logits is not None
    assert logits.producer().op_type == "Gemm"  # type: ignore[union-attr]
    confidence = named["probs/confidence"].producer()
    assert confidence is not None
    assert confidence.inputs[0] is named["probs"]


def test_a_bias_added_after_a_product_does_not_round_the_answer(tmp_path: Path) -> None:
    b = Builder()
    b.op("Add", [b.op("MatMul", ["x", b.weight("w", 16, CLASSES)], "m"), b.weight("b", CLASSES)], "y")
    graph = load(save(b.model([("y", (1, CLASSES))], [("x", (1, 16))]), tmp_path / "m.onnx")).graph
    data = load_data(write_data(tmp_path / "d.npz", (16,), 8), graph.inputs)
    graph = PASSES["quantize_static"].apply(
        graph, Int8(), Context(data)
    )  # not folded: that would make one Gemm of both
    add = values(graph.model)["y"].producer()
    assert add is not None
    assert add.op_type == "Add"
    assert {value.producer().op_type for value in add.inputs if value and value.producer()} == {"MatMul"}  # type: ignore[union-attr]


def test_a_folded_batch_norm_is_part_of_its_convolution(tmp_path: Path) -> None:
    graph = quantized(tmp_path, batch_norm(), Int8("uint8"))
    assert "BatchNormalization" not in {node.op_type for node in graph.model.graph}


def test_named_nodes_stay_float(tmp_path: Path) -> None:
    graph = quantized(tmp_path, three_exits(), Int8("uint8", keep_float=("n_a2_y",)))
    conv = next(node for node in graph.model.graph if node.name == "n_a2_y")
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.is_initializer()


def test_a_name_that_is_no_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="keep_float names no node of the model: nobody"):
        quantized(tmp_path, three_exits(), Int8("uint8", keep_float=("nobody",)))


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    plain, context = plain_and_context(tmp_path, three_exits())
    graph = PASSES["quantize_static"].apply(plain, Int8(), context)
    with pytest.raises(BadInput, match="quantized already"):
        PASSES["quantize_static"].apply(graph, Int8(), context)


def test_without_data_it_is_refused(tmp_path: Path) -> None:
    plain, _ = plain_and_context(tmp_path, three_exits())
    with pytest.raises(BadInput, match="quantize_static needs calibration data: give --calib"):
        PASSES["quantize_static"].apply(plain, Int8(), Context())


def test_a_network_whose_answer_is_pooled_keeps_its_precision(tmp_path: Path) -> None:
    b = Builder()
    b.op("GlobalAveragePool", [b.conv("x", "c", (3, CLASSES))], "y")
    graph = quantized(tmp_path, b.model([("y", (1, CLASSES, 1, 1))]), Int8("uint8"))
    pool = values(graph.model)["y"].producer()
    assert pool is not None
    assert pool.op_type == "GlobalAveragePool"


def test_an_old_opset_is_raised_so_that_weights_can_be_per_channel(tmp_path: Path) -> None:
    graph = load(save(three_exits(opset=11), tmp_path / "m.onnx")).graph
    assert run_steps(graph, (step("opset"),), Context()).opset == 13
    data = load_data(write_data(tmp_path / "d.npz", (3, 12, 12), 8), graph.inputs)
    steps = [step(name) for name in ("opset", "confidence", "fold", "quantize_static")]
    made = run_steps(graph, steps, Context(data))
    open_model(model_bytes(made.model))


def test_an_opset_nobody_can_raise_leaves_the_graph_alone_and_int8_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(proto: object, version: int) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    graph = load(save(three_exits(opset=11), tmp_path / "m.onnx")).graph
    assert run_steps(graph, (step("opset"),), Context()) is graph
    with pytest.raises(BadInput, match="needs opset 13"):
        PASSES["quantize_static"].apply(graph, Int8(), Context())


def test_a_bias_that_two_products_share_is_copied_under_a_name_of_its_own(tmp_path: Path) -> None:
    b = Builder()
    shared = b.weight("bias", 3)
    left = b.op("Conv", ["x", b.weight("w1", 3, 3, 1, 1), shared], "left")
    b.op("Conv", [left, b.weight("w2", 3, 3, 1, 1), shared], "bias2")  # the name the engine would take
    b.op("Neg", ["bias2"], "y")
    graph = quantized(tmp_path, b.model([("y", (1, 3, 12, 12))]), Int8("uint8"))
    open_model(model_bytes(graph.model))


@pytest.mark.parametrize("shape", [(1, CLASSES), (CLASSES,), (1,)])
def test_a_gemm_may_have_a_bias_of_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    b = Builder()
    b.op("Gemm", ["x", b.weight("w", 16, CLASSES), b.weight("b", *shape)], "y")
    graph = quantized(tmp_path, b.model([("y", (1, CLASSES))], [("x", (1, 16))]), Int8("uint8"))
    open_model(model_bytes(graph.model))


def test_what_the_engine_cannot_do_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(self: object) -> None:
        raise KeyError("something inside")

    monkeypatch.setattr("onnxruntime.quantization.qdq_quantizer.QDQQuantizer.quantize_model", stumble)
    with pytest.raises(BadInput, match="int8 writer cannot handle this network: 'something inside'"):
        quantized(tmp_path, three_exits(), Int8("uint8"))
