"""float16: inside only, where its range holds; or as a way to store weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from networks import CLASSES, Builder, depthwise, image_out, save, three_exits, write_data
from random_networks import random_network, seeds

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, initializers, model_bytes, values
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.passes import Context, run_steps, step
from edgekit.host.passes.float16 import KEEPS_FLOAT, LARGEST, Float16, apply, misfit, why_float
from edgekit.host.sqnr import decibel
from edgekit.host.stored import stored_weights
from edgekit.runtime.data import load_data

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def graph_of(model: onnx.ModelProto, tmp_path: Path) -> Graph:
    return load(save(model, tmp_path / "m.onnx")).graph


def answers(graph: Graph) -> list[np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng(0)
    inputs = {
        entry.tensor.name: random.normal(size=entry.tensor.shape).astype(np.float32) for entry in graph.inputs
    }
    return open_model(model_bytes(graph.model)).run([entry.output for entry in graph.exits], inputs)


def types(graph: Graph) -> dict[str, set[ir.DataType | None]]:
    """Operator -> the types it makes."""
    found: dict[str, set[ir.DataType | None]] = {}
    for node in graph.model.graph:
        found.setdefault(node.op_type, set()).update(value.dtype for value in node.outputs)
    return found


@settings(max_examples=12, deadline=None)
@given(seeds())
def test_answers_stay_close_and_float32_and_the_graph_valid(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    graph = graph_of(random_network(seed), tmp_path_factory.mktemp("net"))
    for options in (Float16(), Float16(storage_only=True, min_size=1)):
        made = apply(graph, options, Context())
        onnx.checker.check_model(onnx.load_model_from_string(model_bytes(made.model)), full_check=True)
        for want, got in zip(answers(graph), answers(made), strict=True):
            assert got.dtype == np.float32
            off = np.square(want.astype(np.float64) - got).sum()
            assert decibel(float(np.square(want, dtype=np.float64).sum()), float(off)) > 35


def test_products_compute_in_float16_and_what_loses_range_in_float32(tmp_path: Path) -> None:
    made = apply(graph_of(depthwise(), tmp_path), Float16(), Context())
    found = types(made)
    assert found["Conv"] == found["Gemm"] == found["Relu"] == {HALF}
    assert found["Softmax"] == found["GlobalAveragePool"] == {FLOAT}
    assert {value.dtype for value in (*made.model.graph.inputs, *made.model.graph.outputs)} == {FLOAT}
    assert not any(value.dtype == FLOAT for value in initializers(made.model))


def test_confidences_stay_float32(tmp_path: Path) -> None:
    graph = run_steps(graph_of(three_exits(), tmp_path), (step("confidence"), step("float16")), Context())
    for entry in graph.exits:
        assert [values(graph.model)[name].dtype for name in entry.tensors] == [FLOAT, FLOAT]
    assert types(graph)["ReduceMax"] == {FLOAT}


def test_a_tensor_is_cast_once_for_all_who_read_it(tmp_path: Path) -> None:
    made = apply(graph_of(three_exits(), tmp_path), Float16(), Context())
    sources = [
        (node.inputs[0].name, node.outputs[0].dtype)
        for node in made.model.graph
        if node.op_type == "Cast" and node.inputs[0] is not None
    ]
    assert len(sources) == len(set(sources))


def test_the_nodes_that_are_named_stay_float32(tmp_path: Path) -> None:
    graph = graph_of(three_exits(), tmp_path)
    made = apply(graph, Float16(keep_float=("n_b1", "n_exit1")), Context())
    kinds = {node.name: node.outputs[0].dtype for node in made.model.graph}
    assert kinds["n_b1"] == FLOAT
    assert kinds["n_c1"] == HALF
    assert "b1_w" in {value.name for value in initializers(made.model) if value.dtype == FLOAT}


def test_a_name_that_no_node_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="keep_float names no node of the model: nowhere"):
        apply(graph_of(three_exits(), tmp_path), Float16(keep_float=("nowhere",)), Context())


@pytest.mark.parametrize(
    ("factor", "why"), [(1e6, "float16 ends at 65504"), (1e-7, "below float16's normal range")]
)
@pytest.mark.parametrize("storage_only", [False, True])
def test_weights_that_do_not_fit_stay_float32_and_it_is_said_why(
    tmp_path: Path, factor: float, why: str, storage_only: bool
) -> None:
    b = Builder()
    b.conv("x", "c", (3, 8), relu=False)
    scale = np.float32(factor)
    b.weights[0].CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(b.weights[0]) * scale, "c_w")
    )
    b.head("c", "y", 8)
    graph = graph_of(b.model([("y", (1, CLASSES))]), tmp_path)
    options = Float16(storage_only=storage_only, min_size=1)
    made = apply(graph, options, Context())
    assert values(made.model)["c_w"].is_initializer()
    assert values(made.model)["c_w"].dtype == FLOAT
    assert why in why_float(graph, options, Context())["n_c"]
    want, got = answers(graph)[0], answers(made)[0]
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2 * float(np.abs(want).max()))


def test_tensors_that_calibration_saw_grow_too_large_stay_float32(tmp_path: Path) -> None:
    b = Builder()
    x = b.op("Mul", [b.conv("x", "c", (3, 8)), b.constant("k", np.array([40000.0], np.float32))], "huge")
    x = b.op("Mul", [x, b.constant("k2", np.array([1 / 40000], np.float32))], "back")
    b.head(b.conv(x, "d", (8, 8)), "y", 8)
    graph = graph_of(b.model([("y", (1, CLASSES))]), tmp_path)
    data = load_data(write_data(tmp_path / "d.npz", (3, 12, 12), 8), graph.inputs)
    blind, seeing = (types(apply(graph, Float16(), Context(known))) for known in (None, data))
    assert blind["Mul"] == {HALF}
    assert seeing["Mul"] == {FLOAT}
    assert HALF in seeing["Conv"]
    assert "on the calibration data" in why_float(graph, Float16(), Context(data))["n_huge"]


def test_weights_can_be_stored_in_float16_and_computed_in_float32(tmp_path: Path) -> None:
    graph = graph_of(image_out(), tmp_path)
    made = apply(graph, Float16(storage_only=True, min_size=1), Context())
    assert {stored_weights(node) for node in made.model.graph if node.op_type.startswith("Conv")} == {
        "float16"
    }
    assert types(made)["Conv"] == {FLOAT}
    for value in initializers(graph.model):
        assert value.const_value is not None
        rounded = value.const_value.numpy().astype(np.float16)
        found = [each for each in initializers(made.model) if each.name == f"{value.name}/float16"]
        assert len(found) == 1
        assert found[0].const_value is not None
        np.testing.assert_array_equal(found[0].const_value.numpy(), rounded)


def test_small_and_named_weights_are_not_stored_in_float16(tmp_path: Path) -> None:
    graph = graph_of(three_exits(), tmp_path)
    made = apply(graph, Float16(storage_only=True, min_size=100, keep_float=("n_a2_y",)), Context())
    halves = {str(value.name) for value in initializers(made.model) if value.dtype == HALF}
    assert "a1_w/float16" in halves
    assert not halves & {"a2_w/float16", "a1_b/float16", "exit1_w/float16"}


def test_an_int8_graph_keeps_its_scales(tmp_path: Path) -> None:
    graph = graph_of(three_exits(), tmp_path)
    data = load_data(write_data(tmp_path / "d.npz", (3, 12, 12), 8), graph.inputs)
    quantized = run_steps(graph, (step("quantize_static"),), Context(data, graph))
    for options in (Float16(), Float16(storage_only=True, min_size=1)):
        made = apply(quantized, options, Context())
        onnx.checker.check_model(onnx.load_model_from_string(model_bytes(made.model)), full_check=True)
        np.testing.assert_allclose(answers(made)[0], answers(quantized)[0], atol=0.1)


def test_a_misfit_is_named_by_its_size() -> None:
    assert misfit(np.array([1.0, -LARGEST], np.float32)) is None
    assert "numbers up to 7e+04" in str(misfit(np.array([1.0, -7e4], np.float32)))
    assert misfit(np.array([np.nan], np.float32)) is not None
    assert misfit(np.zeros(3, np.float32)) is None
    assert "Softmax" in KEEPS_FLOAT


def test_what_few_bits_left_in_float_can_be_stored_in_float16(tmp_path: Path) -> None:
    graph = graph_of(three_exits(), tmp_path)
    steps = (
        step("quantize_weights", format="int4", min_size=300),
        step("float16", storage_only=True, min_size=8),
    )
    made = run_steps(graph, steps, Context())
    onnx.checker.check_model(onnx.load_model_from_string(model_bytes(made.model)), full_check=True)
    kinds = {node.name: stored_weights(node) for node in made.model.graph if node.op_type in ("Conv", "Gemm")}
    assert kinds["n_a2_y"] == "int4"
    assert kinds["n_a1_y"] == kinds["n_exit1"] == "float16"
    scales = [value for value in initializers(made.model) if str(value.name).endswith("/scale")]
    assert {value.dtype for value in scales} == {FLOAT}
    names = {str(value.name) for value in initializers(made.model) if value.dtype == HALF}
    assert "a2_b/float16" in names
