"""Weights in few bits: on their grid, found again, valid ONNX of old opsets, and what the options leave out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CLASSES, NETWORKS, Builder, perceptron, save, three_exits
from random_networks import random_network, seeds

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, initializers, model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.passes import PASSES, Context
from edgekit.host.passes._grid import GRIDS, products, snap
from edgekit.host.passes.quantize_weights import QuantizeWeights, apply, chosen_weights
from edgekit.host.stored import float_weight, stored_weights, weight_bytes

FORMATS = tuple(GRIDS)


def graph_of(model: onnx.ModelProto, tmp_path: Path) -> Graph:
    return load(save(model, tmp_path / "m.onnx")).graph


def quantized(graph: Graph, **options: object) -> Graph:
    return apply(graph, QuantizeWeights(**{"min_size": 1, **options}), Context())  # type: ignore[arg-type]


def snapped(graph: Graph, options: QuantizeWeights) -> Graph:
    """The float network whose weights were rounded by hand."""
    copy = replace(graph, model=graph.copy())
    for weight in list(chosen_weights(copy, options)):
        on_grid = snap(
            weight.array,
            weight.axes,
            GRIDS[options.format],
            block=options.block,
            clip=options.clip,
        )
        weight.value.const_value = ir.tensor(on_grid, name=weight.value.name)
    return copy


def answers(graph: Graph) -> list[np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng(0)
    inputs = {
        entry.tensor.name: random.normal(size=entry.tensor.shape).astype(np.float32) for entry in graph.inputs
    }
    return open_model(model_bytes(graph.model)).run([entry.output for entry in graph.exits], inputs)


def formats(graph: Graph) -> dict[str, str]:
    found = {node.name or "": stored_weights(node) for node in graph.model.graph}
    return {name: fmt for name, fmt in found.items() if fmt is not None}


@settings(max_examples=12, deadline=None)
@given(seeds(), st.sampled_from(FORMATS), st.sampled_from([0, 3, 16]), st.sampled_from(["max", "mse"]))
def test_the_answers_are_those_of_the_float_network_with_weights_on_the_grid(
    tmp_path_factory: pytest.TempPathFactory, seed: int, fmt: str, block: int, clip: str
) -> None:
    graph = graph_of(random_network(seed), tmp_path_factory.mktemp("net"))
    options = QuantizeWeights(fmt, block, clip, min_size=1)
    made = apply(graph, options, Context())
    onnx.checker.check_model(onnx.load_model_from_string(model_bytes(made.model)), full_check=True)
    for want, got in zip(answers(snapped(graph, options)), answers(made), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(want).max())))


@pytest.mark.parametrize("name", ["three_exits", "depthwise", "perceptron", "image_out"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_quantizing_a_weight_that_is_on_the_grid_gives_the_same_codes(
    tmp_path: Path, name: str, fmt: str
) -> None:
    graph = graph_of(NETWORKS[name](0), tmp_path)
    options = QuantizeWeights(fmt, min_size=1)
    once = apply(graph, options, Context())
    again = apply(snapped(graph, options), options, Context())
    assert again.fingerprint() == once.fingerprint()
    assert apply(once, options, Context()).fingerprint() == once.fingerprint()  # nothing float is left


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_product_says_how_its_weights_are_stored_and_can_give_them(tmp_path: Path, fmt: str) -> None:
    graph = graph_of(three_exits(), tmp_path)
    made = quantized(graph, format=fmt, clip="max")
    assert formats(made) == dict.fromkeys((weight.name for weight in products(graph)), fmt)
    node = next(node for node in made.model.graph if node.op_type == "Gemm")
    weight = next(each for each in products(graph) if each.name == node.name)
    assert node.inputs[1] is not None
    np.testing.assert_array_equal(
        float_weight(node.inputs[1]), snap(weight.array, weight.axes, GRIDS[fmt], clip="max")
    )
    channels, depth = CLASSES, 8
    scales, bias = 4 * channels, 4 * channels
    assert weight_bytes(node) == -(-channels * depth * GRIDS[fmt].bits // 8) + scales + bias


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_blocks_and_all_formats_are_valid_from_opset_13(tmp_path: Path, opset: int) -> None:
    graph = graph_of(three_exits(opset=opset), tmp_path)
    for fmt in FORMATS:
        made = quantized(graph, format=fmt, block=16)
        assert made.opset == opset
        onnx.checker.check_model(onnx.load_model_from_string(model_bytes(made.model)), full_check=True)


def test_blocks_are_closer_than_channels(tmp_path: Path) -> None:
    graph = graph_of(perceptron(), tmp_path)
    want = answers(graph)[0]
    off = {
        block: float(np.abs(answers(quantized(graph, format="int4", block=block))[0] - want).max())
        for block in (0, 4)
    }
    assert off[4] < off[0]


def test_only_the_layers_that_are_named_change(tmp_path: Path) -> None:
    graph = graph_of(three_exits(), tmp_path)
    made = quantized(graph, format="int4", layers=("n_a2_y", "n_b1"))
    assert formats(made) == {"n_a2_y": "int4", "n_b1": "int4"}
    rest = quantized(made, format="int8", keep_float=("n_a1_y",))
    assert formats(rest)["n_a2_y"] == "int4"
    assert formats(rest)["n_c1"] == "int8"
    assert "n_a1_y" not in formats(rest)


def test_small_weights_stay_float(tmp_path: Path) -> None:
    graph = graph_of(three_exits(), tmp_path)
    sizes = {weight.name: weight.array.size for weight in products(graph)}
    made = quantized(graph, min_size=200)
    assert set(formats(made)) == {name for name, size in sizes.items() if size >= 200}


@pytest.mark.parametrize("key", ["layers", "keep_float"])
def test_a_name_that_no_node_has_is_refused(tmp_path: Path, key: str) -> None:
    graph = graph_of(three_exits(), tmp_path)
    with pytest.raises(BadInput, match=f"{key} names no node of the model: nowhere"):
        quantized(graph, **{key: ("n_b1", "nowhere")})


def test_an_opset_without_scales_per_channel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match="quantize_weights needs opset 13, and onnx cannot raise this model's 12"
    ):
        quantized(graph_of(three_exits(opset=12), tmp_path))


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    b = Builder()
    b.op("MatMul", ["x", b.constant("w", np.full((4, 4), np.nan, np.float32))], "y")
    graph = graph_of(b.model([("y", (1, 4))], [("x", (1, 4))]), tmp_path)
    with pytest.raises(BadInput, match="weight 'w' of 'n_y': weights must be finite"):
        quantized(graph)


def test_a_weight_that_products_share_is_stored_once(tmp_path: Path) -> None:
    b = Builder()
    shared = b.weight("w", 16, 16)
    b.op("MatMul", [b.op("Relu", [b.op("MatMul", ["x", shared], "a")], "r"), shared], "y")
    made = quantized(graph_of(b.model([("y", (1, 16))], [("x", (1, 16))]), tmp_path))
    assert formats(made) == {"n_a": "int8", "n_y": "int8"}
    assert (
        sum(
            value.dtype == ir.DataType.INT8 and "codes" in str(value.name)
            for value in initializers(made.model)
        )
        == 1
    )


def test_a_weight_that_is_needed_as_it_is_stays_float(tmp_path: Path) -> None:
    b = Builder()
    shared = b.weight("w", 1, 16)
    tall = b.op("Transpose", [shared], "tall", perm=[1, 0])
    b.op("Add", [b.op("MatMul", [b.op("MatMul", ["x", tall], "a"), shared], "m"), shared], "y")
    assert not formats(quantized(graph_of(b.model([("y", (1, 16))], [("x", (1, 16))]), tmp_path)))


def test_recurrent_layers_and_tables_are_stored_too(tmp_path: Path) -> None:
    b = Builder()
    inputs = ["x", b.weight("w", 1, 4 * 6, 5), b.weight("r", 1, 4 * 6, 6)]
    b.op("LSTM", inputs, "y", hidden_size=6)
    graph = graph_of(b.model([("y", (7, 1, 1, 6))], [("x", (7, 1, 5))]), tmp_path)
    made = quantized(graph)
    assert formats(made) == {"n_y": "int8"}
    np.testing.assert_allclose(answers(made)[0], answers(graph)[0], atol=0.02)
    b = Builder()
    x = b.op("Cast", [b.op("Relu", ["x"], "index")], "number", to=onnx.TensorProto.INT64)
    b.op("Gather", [b.weight("table", 40, 8), x], "y")
    assert formats(quantized(graph_of(b.model([("y", (3, 8))], [("x", (3,))]), tmp_path))) == {"n_y": "int8"}


def test_it_is_in_the_table_with_its_options() -> None:
    assert PASSES["quantize_weights"].options is QuantizeWeights
    assert PASSES["quantize_weights"].rounds
