"""Bias correction: expected outputs come back to where they were, in the bias's own numbers, and it is never worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import CLASSES, NETWORKS, Builder, perceptron, save, three_exits, write_data

from edgekit.core.errors import BadInput
from edgekit.host.calibrate import expose
from edgekit.host.graph import Graph, initializers, model_bytes, values
from edgekit.host.load import load
from edgekit.host.passes import Context, bias_correction, run_steps, step
from edgekit.host.passes._grid import GRIDS, products, snap
from edgekit.host.passes.bias_correction import Options
from edgekit.host.sqnr import answers_sqnr
from edgekit.runtime.data import Data, load_data


def opened(tmp_path: Path, model: onnx.ModelProto, count: int = 32) -> tuple[Graph, Data]:
    graph = load(save(model, tmp_path / "m.onnx")).graph
    data = load_data(write_data(tmp_path / "d.npz", graph.inputs[0].tensor.shape[1:], count), graph.inputs)
    return run_steps(graph, [step("fold")], Context(data)), data


def coarse(graph: Graph, form: str = "int4") -> Graph:
    """The same network with its weights on a coarse grid."""
    model = graph.copy()
    for product in products(replace(graph, model=model)):
        array = snap(product.array, product.axes, GRIDS[form])
        product.value.const_value = ir.tensor(array, name=product.value.name)
    return graph.with_model(model)


def int8(graph: Graph, data: Data) -> Graph:
    return run_steps(graph, [step("quantize_static", reduce_range=True)], Context(data))


def mean_shift(plain: Graph, other: Graph, data: Data, node: str) -> float:
    """How far a product's means per channel are off, in the float output's standard deviations."""
    means = []
    for graph in (plain, other):
        (tensor,) = [n.outputs[0].name for n in graph.model.graph if n.name == node]
        session = expose(graph, [tensor])
        made = np.stack([session.run([tensor], data.inputs(i))[0][0] for i in range(data.count)])
        means.append(made.reshape(*made.shape[:2], -1))
    a, b = (each.mean(axis=(0, 2)) for each in means)
    return float(np.abs(a - b).max() / means[0].std())


@pytest.mark.parametrize("make", [lambda graph, data: coarse(graph), int8])
def test_each_products_mean_comes_back_to_the_float_one(
    tmp_path: Path, make: Callable[[Graph, Data], Graph]
) -> None:
    plain, data = opened(tmp_path, three_exits(channels=16))
    quantized = make(plain, data)
    corrected = bias_correction.apply(quantized, Options(), Context(data, plain))
    before = [mean_shift(plain, quantized, data, n) for n in ("n_a1_y", "n_a2_y", "n_b1", "n_c1")]
    after = [mean_shift(plain, corrected, data, n) for n in ("n_a1_y", "n_a2_y", "n_b1", "n_c1")]
    assert np.mean(after) < 0.3 * np.mean(before)
    assert answers_sqnr(plain, corrected, data, 64) > answers_sqnr(plain, quantized, data, 64) + 1


def test_unseen_inputs_gain_too(tmp_path: Path) -> None:
    plain, data = opened(tmp_path, three_exits(channels=16), 96)
    quantized = coarse(plain)
    corrected = bias_correction.apply(quantized, Options(), Context(data.subset(range(64)), plain))
    unseen = data.subset(range(64, 96))
    assert answers_sqnr(plain, corrected, unseen, 64) > answers_sqnr(plain, quantized, unseen, 64) + 1


def test_integer_biases_stay_integers_in_their_scale(tmp_path: Path) -> None:
    plain, data = opened(tmp_path, three_exits(channels=16))
    quantized = int8(plain, data)
    corrected = bias_correction.apply(quantized, Options(), Context(data, plain))
    old = {v.name: v.const_value for v in initializers(quantized.model)}
    moved = 0
    for value in initializers(corrected.model):
        before = old[value.name]
        assert value.const_value is not None
        assert before is not None
        same = np.array_equal(value.const_value.numpy(), before.numpy())
        assert same or value.const_value.dtype == ir.DataType.INT32
        moved += not same
    assert moved >= 3
    ops = [[node.op_type for node in graph.model.graph] for graph in (quantized, corrected)]
    assert ops[0] == ops[1]


def without_biases(seed: int = 0) -> onnx.ModelProto:
    b = Builder(seed)
    x = "x"
    for index, wide in enumerate((3, 16, 16)):
        x = b.op("Conv", [x, b.weight(f"w{index}", 16, wide, 3, 3)], f"c{index}", kernel_shape=[3, 3])
        x = b.op("Relu", [x], f"r{index}")
    b.op(
        "Gemm", [b.op("Flatten", [b.op("GlobalAveragePool", [x], "p")], "f"), b.weight("w", 16, CLASSES)], "y"
    )
    return b.model([("y", (1, CLASSES))])


def test_a_product_without_a_bias_gets_one_that_its_kernel_takes(tmp_path: Path) -> None:
    plain, data = opened(tmp_path, without_biases())
    for make, dtype in ((coarse, ir.DataType.FLOAT), (lambda graph: int8(graph, data), ir.DataType.INT32)):
        quantized = make(plain)
        corrected = bias_correction.apply(quantized, Options(), Context(data, plain))
        assert answers_sqnr(plain, corrected, data, 64) > answers_sqnr(plain, quantized, data, 64)
        onnx.checker.check_model(onnx.load_model_from_string(model_bytes(corrected.model)), full_check=True)
        convs = [node for node in corrected.model.graph if node.op_type == "Conv" and len(node.inputs) == 3]
        assert convs
        for node in convs:
            bias = node.inputs[2]
            assert bias is not None
            maker = bias.producer()
            stored = bias if maker is None else maker.inputs[0]
            assert stored is not None
            assert stored.dtype == dtype
            if maker is not None:  # the integer kernel wants the product of the other two scales
                scales = [value.producer().inputs[1].const_value.numpy() for value in node.inputs]  # type: ignore[union-attr]
                np.testing.assert_allclose(scales[2], scales[0] * scales[1], rtol=1e-6)


def test_integer_kernels_are_still_used(tmp_path: Path) -> None:
    plain, data = opened(tmp_path, without_biases())
    corrected = bias_correction.apply(int8(plain, data), Options(), Context(data, plain))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(model_bytes(corrected.model), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert "Conv" not in ops
    assert sum(op in ("QLinearConv", "QConv") for op in ops) == 3


def test_dense_layers_written_as_matmul_and_add_are_corrected(tmp_path: Path) -> None:
    graph = load(save(perceptron(), tmp_path / "m.onnx")).graph  # not folded: MatMul and Add stay
    data = load_data(write_data(tmp_path / "d.npz", (16,), 32), graph.inputs)
    quantized = coarse(graph)
    corrected = bias_correction.apply(quantized, Options(), Context(data, graph))
    assert answers_sqnr(graph, corrected, data, 64) > answers_sqnr(graph, quantized, data, 64)
    named = {
        v.name: v.const_value.numpy() for v in initializers(corrected.model) if v.const_value is not None
    }
    old = {v.name: v.const_value.numpy() for v in initializers(quantized.model) if v.const_value is not None}
    assert {name for name in old if not np.array_equal(named[name], old[name])} <= {"b1", "b2"}


def test_a_bias_that_layers_share_is_corrected_for_each_alone(tmp_path: Path) -> None:
    b = Builder()
    bias, x = b.weight("bias", 8), "x"
    for index, wide in enumerate((3, 8, 8)):
        x = b.op("Conv", [x, b.weight(f"w{index}", 8, wide, 3, 3), bias], f"c{index}", kernel_shape=[3, 3])
        x = b.op("Relu", [x], f"r{index}")
    b.head(x, "y", 8)
    plain, data = opened(tmp_path, b.model([("y", (1, CLASSES))]))
    corrected = bias_correction.apply(coarse(plain), Options(), Context(data, plain))
    assert max(mean_shift(plain, corrected, data, f"n_c{index}") for index in range(3)) < 0.02


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(NETWORKS)), st.integers(0, 99), st.sampled_from(["int2", "int4", "int8"]))
def test_it_is_never_worse_on_what_it_saw(tmp_path: Path, network: str, seed: int, form: str) -> None:
    plain, data = opened(tmp_path, NETWORKS[network](seed), 8)
    quantized = coarse(plain, form)
    corrected = bias_correction.apply(quantized, Options(), Context(data, plain))
    assert answers_sqnr(plain, corrected, data, 8) >= answers_sqnr(plain, quantized, data, 8)


def test_the_float_network_itself_stays_as_it_is(tmp_path: Path) -> None:
    plain, data = opened(tmp_path, three_exits())
    assert bias_correction.apply(plain, Options(), Context(data, plain)) is plain


def test_a_correction_that_would_not_help_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, data = opened(tmp_path, without_biases())
    quantized = coarse(plain)
    measure = bias_correction._Watched.measure
    monkeypatch.setattr(
        bias_correction._Watched, "measure", lambda self, graph: replace(measure(self, graph), error=1.0)
    )
    assert bias_correction.apply(quantized, Options(), Context(data, plain)) is quantized


def test_it_needs_the_float_network_and_data(tmp_path: Path) -> None:
    plain, data = opened(tmp_path, perceptron())
    with pytest.raises(BadInput, match="needs the float network"):
        bias_correction.apply(plain, Options(), Context(data))
    with pytest.raises(BadInput, match="bias_correction needs calibration data"):
        bias_correction.apply(plain, Options(), Context(None, plain))


def test_a_network_of_another_shape_is_left_where_the_two_differ(tmp_path: Path) -> None:
    plain, data = opened(tmp_path, three_exits(channels=8))
    (tmp_path / "other").mkdir()
    other, _ = opened(tmp_path / "other", three_exits(channels=16))
    made = bias_correction.apply(coarse(other), Options(), Context(data, plain))
    assert set(values(made.model)) == set(values(other.model))
