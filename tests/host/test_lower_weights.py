"""Lowering stored weights to onnxruntime: packed in the file, decoded once, the float network at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Builder, save, three_exits
from onnx import numpy_helper
from random_networks import random_network, seeds

from edgekit.core.profile import Backend
from edgekit.host.calibrate import expose, float_activations
from edgekit.host.graph import Graph, model_bytes, tensor_of
from edgekit.host.load import load
from edgekit.host.lower.base import LoweredPart
from edgekit.host.lower.onnxruntime import lower
from edgekit.host.ort import open_model
from edgekit.host.pack import draft
from edgekit.host.passes import Context, run_steps, step
from edgekit.host.passes._grid import GRIDS, packed_bytes, products
from edgekit.host.split import Stage, split
from edgekit.host.stored import folded
from edgekit.host.work import layers, work
from edgekit.runtime.quiet_ort import LEFT_OUT, onnxruntime

OLD = Backend("onnxruntime", max_opset=17, max_ir=8)
FORMATS = tuple(GRIDS)
WIDE = 20


def graph_of(model: onnx.ModelProto, tmp_path: Path) -> Graph:
    return load(save(model, tmp_path / "m.onnx")).graph


def stored_in(graph: Graph, fmt: str, **options: Any) -> Graph:
    steps = (
        step("float16", storage_only=True)
        if fmt == "float16"
        else step("quantize_weights", format=fmt, **options)
    )
    return run_steps(graph, (steps,), Context())


def whole(graph: Graph) -> Stage:
    model = graph.copy()
    inputs, outputs = (tuple(map(tensor_of, side)) for side in (model.graph.inputs, model.graph.outputs))
    return Stage(0, graph.exits[-1], model, inputs, outputs)


def part_of(graph: Graph, backend: Backend = OLD) -> LoweredPart:
    (part,) = lower(whole(graph), backend)
    return part


def left_at_run_time(content: bytes, tmp_path: Path) -> list[str]:
    """The operators onnxruntime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=[*LEFT_OUT]
    )
    proto = onnx.load_model(tmp_path / "optimized.onnx")
    return sorted(node.op_type for node in proto.graph.node)


def unoptimized(graph: Graph, feed: Mapping[str, Any]) -> list[Any]:
    names = [entry.output for entry in graph.exits]
    return open_model(model_bytes(graph.model), optimize=False).run(names, feed)


def feed_of(graph: Graph) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        entry.tensor.name: random.normal(size=entry.tensor.shape).astype(np.float32) for entry in graph.inputs
    }


@pytest.mark.parametrize("block", [0, 7])
@pytest.mark.parametrize("fmt", FORMATS)
def test_at_run_time_it_is_the_float_network(tmp_path: Path, fmt: str, block: int) -> None:
    graph = graph_of(three_exits(channels=WIDE), tmp_path)
    made = stored_in(graph, fmt, block=block, min_size=1)
    part = part_of(made)
    plain = part_of(graph)
    assert left_at_run_time(part.content, tmp_path) == left_at_run_time(plain.content, tmp_path)
    feed = feed_of(graph)
    got = open_model(part.content).run([entry.output for entry in graph.exits], feed)
    for want, mine in zip(unoptimized(made, feed), got, strict=True):
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seeds(), st.sampled_from([*FORMATS, "float16"]), st.sampled_from([0, 5]))
def test_parts_of_any_network_with_stored_weights_give_what_its_graph_does(
    tmp_path_factory: pytest.TempPathFactory, seed: int, fmt: str, block: int
) -> None:
    folder = tmp_path_factory.mktemp("net")
    graph = graph_of(random_network(seed), folder)
    made = stored_in(graph, fmt, **({} if fmt == "float16" else {"block": block, "min_size": 1}))
    part = part_of(made)
    assert left_at_run_time(part.content, folder) == left_at_run_time(part_of(graph).content, folder)
    feed = feed_of(made)
    want = unoptimized(made, feed)
    got = open_model(part.content).run([entry.output for entry in made.exits], feed)
    for one, other in zip(want, got, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(one).max())))


@pytest.mark.parametrize("fmt", FORMATS)
def test_codes_take_their_real_size_in_the_file(tmp_path: Path, fmt: str) -> None:
    graph = graph_of(three_exits(channels=WIDE), tmp_path)
    part = part_of(stored_in(graph, fmt, min_size=1000))
    large = [weight.array.size for weight in products(graph) if weight.array.size >= 1000]
    proto = onnx.load_model_from_string(part.content)
    sizes = [numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer]
    packed = [packed_bytes(size, GRIDS[fmt].bits) for size in large]
    assert all(sizes.count(size) == packed.count(size) for size in packed)
    assert not set(sizes) & {4 * size for size in large}
    saved = sum(4 * size - packed_bytes(size, GRIDS[fmt].bits) for size in large)
    around = 450 * len(large)  # scales and nodes
    assert len(part_of(graph).content) - len(part.content) > saved - around


def test_float16_weights_halve_the_file_and_are_cast_once(tmp_path: Path) -> None:
    graph = graph_of(three_exits(channels=WIDE), tmp_path)
    part, plain = part_of(stored_in(graph, "float16")), part_of(graph)
    assert len(part.content) < 0.55 * len(plain.content)
    assert left_at_run_time(part.content, tmp_path) == left_at_run_time(plain.content, tmp_path)


@pytest.mark.parametrize(("opset", "ceiling"), [(13, 13), (17, 17), (21, 17), (23, 19), (23, 23)])
@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_stored_weights_stay_below_the_boards_ceiling(
    tmp_path: Path, opset: int, ceiling: int, fmt: str
) -> None:
    made = stored_in(graph_of(three_exits(opset=opset, channels=WIDE), tmp_path), fmt, block=32)
    part = part_of(made, Backend("onnxruntime", max_opset=ceiling, max_ir=8))
    proto = onnx.load_model_from_string(part.content)
    assert proto.ir_version <= 8
    assert {entry.version for entry in proto.opset_import if entry.domain == ""} == {min(opset, ceiling)}
    onnx.checker.check_model(proto, full_check=True)
    open_model(part.content)


@pytest.mark.parametrize("fmt", ["int4", "float16"])
def test_stages_with_stored_weights_give_what_the_whole_graph_gives(make: Callable, fmt: str) -> None:
    made = stored_in(make(three_exits(channels=16)).plain, fmt)
    known: dict[str, Any] = feed_of(made)
    want = dict(zip([e.output for e in made.exits], unoptimized(made, known), strict=True))
    total = 0
    for stage in split(made):
        (part,) = lower(stage, OLD)
        total += len(part.content)
        names = [tensor.name for tensor in part.outputs]
        feed = {tensor.name: known[tensor.name] for tensor in part.inputs}
        known.update(zip(names, open_model(part.content).run(names, feed), strict=True))
        np.testing.assert_allclose(known[stage.exit.output], want[stage.exit.output], rtol=1e-5, atol=1e-5)
    assert total < len(part_of(make(three_exits(channels=16)).plain).content)


def test_the_same_stage_gives_the_same_bytes(tmp_path: Path) -> None:
    made = stored_in(graph_of(three_exits(), tmp_path), "int4", block=16)
    assert part_of(made) == part_of(made)


def test_codes_for_integer_kernels_are_left_to_them(make: Callable, tmp_path: Path) -> None:
    graph = make(three_exits()).quantized
    part = part_of(graph)
    assert any(op in ("QLinearConv", "QGemm") for op in left_at_run_time(part.content, tmp_path))
    assert "BitShift" not in {node.op_type for node in onnx.load_model_from_string(part.content).graph.node}


@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_codes_that_came_in_with_the_model_are_decoded_once_as_well(
    tmp_path: Path, dtype: Any, zero: int
) -> None:
    b = Builder()
    random = np.random.default_rng(0)
    codes = random.integers(60, 120, (8, 3, 3, 3)).astype(dtype)
    scale = random.uniform(0.01, 0.1, 8).astype(np.float32)
    zeros = np.full(8, zero + 60, dtype)
    stored = [b.constant("q", codes), b.constant("s", scale), b.constant("z", zeros)]
    b.op("Conv", ["x", b.op("DequantizeLinear", stored, "w", axis=0)], "y")
    graph = graph_of(b.model([("y", (1, 8, 10, 10))]), tmp_path)
    part = part_of(graph)
    assert "DequantizeLinear" not in left_at_run_time(part.content, tmp_path)
    feed = feed_of(graph)
    np.testing.assert_allclose(
        open_model(part.content).run(["y"], feed)[0], unoptimized(graph, feed)[0], rtol=1e-5, atol=1e-4
    )


def between_codes(kind: str, *, weight_codes: bool) -> onnx.ModelProto:
    """One product between quantized tensors, its bias in float, its weights in float or in codes."""
    b = Builder()
    scale, zero = b.constant("s", np.array(0.05, np.float32)), b.constant("z", np.array(128, np.uint8))
    x = b.op("DequantizeLinear", [b.op("QuantizeLinear", ["x", scale, zero], "q"), scale, zero], "d")
    weight = np.random.default_rng(0).normal(0, 0.02, (3, 3, 3, 3)).astype(np.float32)
    weight[:, 0, 0, 0] = 3  # eight bits cannot hold the others beside it
    if weight_codes:
        codes = np.clip(np.rint(weight * 40), -127, 127).astype(np.int8)
        steps = [b.constant("ws", np.full(3, 1 / 40, np.float32)), b.constant("wz", np.zeros(3, np.int8))]
        w = b.op("DequantizeLinear", [b.constant("wq", codes), *steps], "w", axis=0 if kind == "Conv" else 1)
    else:
        w = b.constant("w", weight)
    y = b.op(kind, [x, w, b.weight("b", 3)], "c", pads=[1] * 4)
    b.op("DequantizeLinear", [b.op("QuantizeLinear", [y, scale, zero], "q2"), scale, zero], "y")
    return b.model([("y", (1, 3, 12, 12))])


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_a_layer_left_in_float_between_codes_runs_in_float(tmp_path: Path, kind: str) -> None:
    graph = graph_of(between_codes(kind, weight_codes=False), tmp_path)
    left = left_at_run_time(part_of(graph).content, tmp_path)
    assert kind in left
    assert left.count("DequantizeLinear") == 2  # before it, and at the end
    feed = feed_of(graph)
    (got,) = draft(graph, split(graph), OLD, "kept", 1, "host").open().run_all(feed).values()
    off = np.abs(got - unoptimized(graph, feed)[0])
    assert (off > 1e-6).mean() < 0.01  # a sum may round to the next code


def test_a_float_bias_of_a_convolution_on_codes_gets_codes(tmp_path: Path) -> None:
    graph = graph_of(between_codes("Conv", weight_codes=True), tmp_path)
    part = part_of(graph)
    assert "QLinearConv" in left_at_run_time(part.content, tmp_path)
    feed = feed_of(graph)
    off = np.abs(open_model(part.content).run(["y"], feed)[0] - unoptimized(graph, feed)[0])
    assert off.max() < 0.051  # one step


def test_weights_that_no_integer_kernel_takes_are_decoded_once(tmp_path: Path) -> None:
    graph = graph_of(between_codes("ConvTranspose", weight_codes=True), tmp_path)
    part = part_of(graph)
    assert left_at_run_time(part.content, tmp_path).count("DequantizeLinear") == 2
    feed = feed_of(graph)
    off = np.abs(open_model(part.content).run(["y"], feed)[0] - unoptimized(graph, feed)[0])
    assert (off > 1e-6).mean() < 0.01


# --- dense layers in integers -----------------------------------------------------------------------------------------


def dense(kind: str, depth: int, width: int, rows: int = 1) -> onnx.ModelProto:
    b = Builder()
    if kind == "MatMul":
        b.op("Add", [b.op("MatMul", ["x", b.weight("w", depth, width)], "m"), b.weight("b", width)], "y")
    else:
        turned = kind == "Gemm turned"
        weight = b.weight("w", *((width, depth) if turned else (depth, width)))
        b.op("Gemm", ["x", weight, b.weight("b", width)], "y", transB=int(turned))
    return b.model([("y", (rows, width))], [("x", (rows, depth))])


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm turned"])
@pytest.mark.parametrize("depth", [512, 530])
def test_large_int4_blocks_are_multiplied_as_they_are_where_that_is_allowed(
    tmp_path: Path, kind: str, depth: int
) -> None:
    graph = graph_of(dense(kind, depth, 520), tmp_path)
    allowed = stored_in(graph, "int4", block=32, integer=True)
    part = part_of(allowed)
    assert "MatMulNBits" in left_at_run_time(part.content, tmp_path)
    assert "MatMulNBits" not in left_at_run_time(
        part_of(stored_in(graph, "int4", block=32)).content, tmp_path
    )
    feed = feed_of(graph)
    (want,), (got,) = unoptimized(allowed, feed), open_model(part.content).run(["y"], feed)
    assert np.square(got - want).sum() < 1e-3 * np.square(want).sum()  # inputs are rounded to 8 bits a block
    onnx.checker.check_model(onnx.load_model_from_string(part.content))


@pytest.mark.parametrize(
    ("kind", "depth", "width", "rows", "options"),
    [
        ("MatMul", 512, 520, 32, {}),  # many rows: float is as fast
        ("MatMul", 128, 520, 1, {}),  # small
        ("Gemm", 512, 520, 1, {"block": 24}),  # no such kernel
        ("Gemm", 512, 520, 1, {"block": 0}),
        ("Gemm", 512, 520, 1, {"format": "int8"}),
    ],
)
def test_other_dense_layers_stay_in_float(
    tmp_path: Path, kind: str, depth: int, width: int, rows: int, options: dict[str, Any]
) -> None:
    chosen = {"format": "int4", "block": 32, "integer": True, **options}
    graph = graph_of(dense(kind, depth, width, rows), tmp_path)
    made = run_steps(graph, (step("quantize_weights", **chosen),), Context())
    left = left_at_run_time(part_of(made).content, tmp_path)
    assert left == left_at_run_time(part_of(graph).content, tmp_path)


# --- what others read -------------------------------------------------------------------------------------------------


def test_folded_is_the_float_network_again(tmp_path: Path) -> None:
    graph = graph_of(three_exits(), tmp_path)
    for fmt in ("int4", "float16"):
        made = stored_in(graph, fmt, **({} if fmt == "float16" else {"block": 7}))
        before = made.fingerprint()
        plain = folded(made.model)
        assert made.fingerprint() == before
        assert [node.op_type for node in plain.graph] == [node.op_type for node in graph.model.graph]
        assert all(value.dtype == ir.DataType.FLOAT for value in plain.graph.initializers.values())
        feed = feed_of(graph)
        names = [entry.output for entry in graph.exits]
        got = open_model(model_bytes(plain), optimize=False).run(names, feed)
        for want, mine in zip(unoptimized(made, feed), got, strict=True):
            np.testing.assert_array_equal(mine, want)


def test_calibration_does_not_take_weights_for_activations(tmp_path: Path) -> None:
    graph = graph_of(three_exits(), tmp_path)
    made = stored_in(graph, "int4", block=7, min_size=1)
    assert float_activations(made) == float_activations(graph)
    session = expose(made, ["a2"])
    (want,), (got,) = (
        open_model(model_bytes(folded(made.model))).run(["exit1"], feed_of(graph)),
        session.run(["exit1"], feed_of(graph)),
    )
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_stages_that_compute_in_float16_hand_their_tensors_on_in_it(make: Callable) -> None:
    graph = run_steps(make(three_exits(channels=16)).plain, (step("float16"),), Context())
    stages = split(graph)
    handed = {tensor.dtype for stage in stages[1:] for tensor in stage.inputs}
    assert handed == {"float16"}
    session = draft(graph, stages, OLD, "half", 1, "host").open()
    feed = feed_of(graph)
    made = session.run_all(feed)
    for want, entry in zip(unoptimized(graph, feed), graph.exits, strict=True):
        assert made[entry.output].dtype == np.float32
        np.testing.assert_allclose(made[entry.output], want, atol=0.02)


def test_stored_weights_count_as_the_floats_they_become(tmp_path: Path) -> None:
    graph = graph_of(three_exits(channels=WIDE), tmp_path)
    plain = layers(graph.model)
    for fmt in (*FORMATS, "float16"):
        assert work(layers(stored_in(graph, fmt).model)) == work(plain)
    dense_graph = graph_of(dense("MatMul", 512, 520), tmp_path)
    (multiplied, _) = layers(stored_in(dense_graph, "int4", block=32, integer=True).model)
    codes, scales = 512 * 520 // 2, 4 * 512 * 520 // 32
    assert (multiplied.format, multiplied.bytes) == ("int8", codes + scales + 4 * (512 + 520))
