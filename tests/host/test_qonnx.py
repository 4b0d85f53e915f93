"""QONNX in: the same numbers as QONNX's own executor gives, operator by operator and network by network.

The oracle's answers are in data/qonnx; make_qonnx_vectors.py made them and says how.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from binary_networks import SCALES, binary_inputs, binary_network
from hypothesis import given, settings
from networks import Builder, save
from numpy.typing import NDArray
from onnx import TensorProto, helper
from qonnx_cases import CHANNELS_LAST, FINN, GENERAL, OLD, Case, cases, image
from random_networks import seeds

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, static_shape
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.qonnx import DOMAINS

DATA = Path(__file__).parent / "data" / "qonnx"
NETWORKS = (
    "cnv_w1a1",
    "cnv_w1a2",
    "cnv_w2a2",
    "lfc_w1a1",
    "lfc_w1a2",
    "residual_w4a4",
    "cnv_clean",
    "cnv_last",
)
CASES = {case.name: case for case in cases()}


@functools.cache
def oracle(name: str) -> Mapping[str, NDArray[Any]]:
    with np.load(DATA / f"{name}.npz") as stored:
        return dict(stored)


def read(model: onnx.ModelProto, folder: Path) -> Graph:
    return load(save(model, folder / "m.onnx")).graph


def run(graph: Graph, x: NDArray[Any], names: list[str] | None = None) -> list[NDArray[Any]]:
    session = open_model(graph.proto().SerializeToString(), optimize=False)
    return [np.asarray(y) for y in session.run(names, {graph.inputs[0].tensor.name: x})]


def complaint(model: onnx.ModelProto, folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read(model, folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def weights(graph: Graph) -> dict[str, NDArray[Any]]:
    found = graph.model.graph.initializers
    return {name: value.const_value.numpy() for name, value in found.items() if value.const_value is not None}


# --- operators --------------------------------------------------------------------------------------------------------


def test_the_oracle_has_answers_for_exactly_these_cases() -> None:
    assert {key.split("/")[0] for key in oracle("operators")} == set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_operator_gives_what_qonnx_gives_to_the_bit(name: str, tmp_path: Path) -> None:
    stored, case = oracle("operators"), CASES[name]
    np.testing.assert_array_equal(case.x, stored[f"{name}/x"])
    graph = read(case.model(), tmp_path)
    (y,) = run(graph, case.x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, stored[f"{name}/y"], strict=True)
    if f"{name}/w" in stored:
        np.testing.assert_array_equal(weights(graph)["q"], stored[f"{name}/w"], strict=True)


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_comes_out_is_standard_named_after_its_node_and_of_known_shape(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    model = case.model()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = read(model, tmp_path)
    assert static_shape(graph.model.graph.outputs[0]) == oracle("operators")[f"{name}/y"].shape
    before = {node.name for node in case.before}
    for node in graph.model.graph:
        assert node.domain == ""
        assert node.name in before or (node.name or "").startswith(f"{case.op}_0")
        assert all(static_shape(value) is not None for value in node.outputs)
    assert not set(DOMAINS) & set(graph.model.opset_imports)
    onnx.checker.check_model(graph.proto(), full_check=True)


def test_brevitas_calls_rounding_down_by_another_name(tmp_path: Path) -> None:
    case = CASES["quant_DOWN"]
    case = Case("", "Quant", case.x, case.more, {**case.attributes, "rounding_mode": "ROUND_TO_ZERO"})
    np.testing.assert_array_equal(
        run(read(case.model(), tmp_path), case.x)[0], oracle("operators")["quant_DOWN/y"]
    )


def test_older_files_may_say_narrow_range_and_write_whole_numbers(tmp_path: Path) -> None:
    case = CASES["quant_4_1_1"]
    case = Case("", "Quant", case.x, case.more, {"signed": 1.0, "narrow_range": 1}, domain=OLD)
    np.testing.assert_array_equal(
        run(read(case.model(), tmp_path), case.x)[0], oracle("operators")["quant_4_1_1/y"]
    )
    case = CASES["threshold_bipolar"]
    whole = {"out_dtype": "BIPOLAR", "out_scale": 2, "out_bias": -1}
    case = Case("", "MultiThreshold", case.x, case.more, whole)
    np.testing.assert_array_equal(
        run(read(case.model(), tmp_path), case.x)[0], oracle("operators")["threshold_bipolar/y"]
    )


def test_a_bit_width_may_be_any_kind_of_number(tmp_path: Path) -> None:
    x = CASES["quant_8_1_0"].x
    model = CASES["quant_8_1_0"].model()
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(np.array([8], np.uint8), "p2"))
    np.testing.assert_array_equal(run(read(model, tmp_path), x)[0], oracle("operators")["quant_8_1_0/y"])


# --- what cannot come in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            Case("", "FloatQuant", image(), [1.0, 3.0, 4.0, 7.0, 240.0]),
            "node 'FloatQuant_0' (FloatQuant) cannot be converted: floating-point formats",
        ),
        (
            Case("", "Im2Col", image()),
            "node 'Im2Col_0' (Im2Col) cannot be converted: of qonnx.custom_op.general these",
        ),
        (
            Case("", "QuantLSTMCell", image(), domain=OLD),
            "(QuantLSTMCell) cannot be converted: of onnx.brevitas these",
        ),
        (Case("", "Relu", image(), domain=CHANNELS_LAST), "(Relu) cannot be converted"),
        (
            Case("", "StreamingThing", image(), domain=FINN),
            "these can: BipolarQuant, DebugMarker, FloatQuant, IntQuant",
        ),
        (Case("", "Quant", image(), [1.0, 0.0, 4.0], {"signed": 1}), "must have the attribute narrow"),
        (
            Case("", "Quant", image(), [1.0, 0.0], {"signed": 1, "narrow": 0}),
            "must have 4 inputs (x, scale, zero",
        ),
        (
            Case("", "Quant", image(), [1, 0, [4, 5]], {"signed": 1, "narrow": 0}),
            "must have one number as bit width",
        ),
        (
            Case("", "Quant", image(), [1, 0, 0], {"signed": 1, "narrow": 0}),
            "must have a bit width above 0, got 0.0",
        ),
        (
            Case("", "Quant", image(), [1, 0, 4], {"signed": 2, "narrow": 0}),
            "must have 0 or 1 as signed, got 2",
        ),
        (
            Case("", "Quant", image(), [1, 0, 4], {"signed": 1, "narrow": 0, "rounding_mode": "DPU"}),
            "HALF_EVEN, CEIL, FLOOR, UP, DOWN, ROUND_TO_ZERO, HALF_UP, HALF_DOWN as rounding_mode, got 'DPU'",
        ),
        (
            Case("", "Quant", image(), [1.0, 0.0, "x"], {"signed": 1, "narrow": 0}),
            "must have a constant bit width",
        ),
        (Case("", "MultiThreshold", image(), ["x"]), "must have a constant table of thresholds"),
        (
            Case("", "MultiThreshold", image(), [[1.0, 2.0]]),
            "must have thresholds of shape [channels, steps], got [2]",
        ),
        (
            Case("", "MultiThreshold", image(), [[[1.0]] * 4]),
            "must have thresholds for each of its 3 channels, got 4",
        ),
        (
            Case("", "MultiThreshold", image(), [[[1.0]]], {"out_scale": "two"}),
            "must have a number as out_scale, got",
        ),
        (
            Case("", "Trunc", image(), [1, 0, 8]),
            "must have 6 inputs (x, scale, zero point, input bit width, output scale",
        ),
    ],
)
def test_what_cannot_be_converted_is_named(case: Case, said: str, tmp_path: Path) -> None:
    text = complaint(case.model(), tmp_path)
    assert text.startswith(f"{tmp_path / 'm.onnx'}: node '{case.op}_0' ({case.op}) ")
    assert said in text


def test_a_quantizer_of_anything_but_floats_is_named(tmp_path: Path) -> None:
    model = CASES["bipolar"].model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert "(BipolarQuant) must make one output from float32, got UINT8" in complaint(model, tmp_path)


def test_thresholds_without_a_layout_need_a_known_shape(tmp_path: Path) -> None:
    b = Builder()
    b.op("NonZero", ["x"], "places")
    b.op("Cast", ["places"], "floats", to=TensorProto.FLOAT)
    b.op("Reshape", ["floats", b.op("Shape", ["x"], "shape")], "r")
    b.op("ConstantOfShape", [b.op("Cast", ["r"], "sizes", to=TensorProto.INT64)], "z")
    table = b.constant("t", np.zeros((3, 1), np.float32))
    b.op("MultiThreshold", ["z", table], "y", domain=GENERAL)
    model = b.model([("y", ("a", "b"))])
    model.opset_import.append(helper.make_opsetid(GENERAL, 1))
    assert "must have a data_layout, or an input of known shape" in complaint(model, tmp_path)


def test_an_opset_that_onnx_cannot_raise_is_named_with_the_way_out(tmp_path: Path) -> None:
    model = CASES["bipolar"].model()
    model.opset_import[0].version = 11
    model.graph.node.insert(0, helper.make_node("NobodysOwn", ["x"], ["u"], "u"))
    text = complaint(model, tmp_path)
    assert "QONNX operators need opset 13, the model has 11" in text
    assert "export it with opset_version=13" in text


# --- weights ----------------------------------------------------------------------------------------------------------


def unpacked_weights() -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """Weights as packed bits, unpacked by standard operators before a BipolarQuant; uint8 pixels; a QDQ pair."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 2, (4, 8), np.uint8)
    b = Builder(opset=21)
    packed = b.constant("packed", np.packbits(bits, axis=1, bitorder="little"))
    shifts = b.constant("shifts", np.arange(8, dtype=np.uint8)[None])
    half = b.constant("half", np.array(0.5, np.float32))
    planes = b.op(
        "Mod",
        [
            b.op("BitShift", [packed, shifts], "shifted", direction="RIGHT"),
            b.constant("two", np.array(2, np.uint8)),
        ],
        "bits",
    )
    floats = b.op("Sub", [b.op("Cast", [planes], "floats", to=TensorProto.FLOAT), half], "signs")
    b.op("BipolarQuant", [floats, b.constant("scale", np.array(0.25, np.float32))], "w", domain=GENERAL)
    pixels = b.op("Cast", [b.op("Flatten", ["x"], "flat")], "pixels", to=TensorProto.FLOAT)
    b.op("Gemm", [pixels, "w"], "sums", transB=1)
    codes = b.constant("codes", random.integers(-100, 100, (4, 5), np.int8))
    decoded = b.op("DequantizeLinear", [codes, half, b.constant("origin", np.array(0, np.int8))], "decoded")
    b.op("MatMul", ["sums", decoded], "y")
    model = b.model([("y", (1, 5))], [("x", (1, 1, 2, 4))])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.opset_import.append(helper.make_opsetid(GENERAL, 1))
    return model, np.where(bits, 0.25, -0.25).astype(np.float32)


def test_packed_weights_are_unpacked_and_quantized_at_load(tmp_path: Path) -> None:
    model, wanted = unpacked_weights()
    graph = read(model, tmp_path)
    np.testing.assert_array_equal(weights(graph)["w"], wanted)
    ops = [node.op_type for node in graph.model.graph]
    assert ops == ["Flatten", "Cast", "Gemm", "DequantizeLinear", "MatMul"]  # what QDQ says stays


def test_what_draws_numbers_is_drawn_anew_each_time(tmp_path: Path) -> None:
    b = Builder()
    noise = b.op("RandomUniformLike", [b.constant("like", np.zeros((1, 3, 12, 12), np.float32))], "noise")
    scale = b.constant("scale", np.array(0.001, np.float32))
    b.op(
        "Quant",
        [
            b.op("Add", ["x", noise], "sum"),
            scale,
            b.constant("o", np.array(0, np.float32)),
            b.constant("bits", np.array(8, np.float32)),
        ],
        "y",
        domain=GENERAL,
        signed=0,
        narrow=0,
    )
    model = b.model([("y", (1, 3, 12, 12))])
    model.opset_import.append(helper.make_opsetid(GENERAL, 1))
    assert "RandomUniformLike" in [node.op_type for node in read(model, tmp_path).model.graph]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_of_layers_become_plain_numbers(name: str) -> None:
    graph = load(DATA / f"{name}.onnx").graph
    layers = [node for node in graph.model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    levels = {"w1": 2, "w2": 3, "w4": 15}.get(name.split("_")[1][:2], 2)
    for node in layers:
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        per_channel = weight.const_value.numpy().reshape(-1) if levels < 15 else weight.const_value.numpy()[0]
        assert 2 <= len(np.unique(per_channel)) <= levels


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_from_brevitas_answers_as_in_qonnx(name: str) -> None:
    stored, graph = oracle(name), load(DATA / f"{name}.onnx").graph
    assert len(stored["x"]) >= 32
    for pixels, wanted in zip(stored["x"], stored["y"], strict=True):
        (y,) = run_cached(name, graph, pixels)
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@functools.cache
def session_of(name: str) -> Any:
    return open_model(load(DATA / f"{name}.onnx").graph.proto().SerializeToString(), optimize=False)


def run_cached(name: str, graph: Graph, pixels: NDArray[np.uint8]) -> list[NDArray[Any]]:
    x = pixels.astype(np.float32) / np.float32(255)
    return list(session_of(name).run(None, {graph.inputs[0].tensor.name: x}))


@pytest.mark.parametrize("name", NETWORKS)
def test_behind_every_quantizer_of_a_network_are_the_same_values(name: str, tmp_path: Path) -> None:
    stored, model = oracle(name), onnx.load(DATA / f"{name}.onnx")
    inner = [key.removeprefix("at ") for key in stored if key.startswith("at ")]
    assert len(inner) >= 4
    kinds = [helper.make_tensor_type_proto(TensorProto.FLOAT, stored[f"at {n}"].shape[1:]) for n in inner]
    model.graph.output.extend(helper.make_value_info(n, kind) for n, kind in zip(inner, kinds, strict=True))
    graph = read(model, tmp_path)
    for index in range(len(stored[f"at {inner[0]}"])):
        x = stored["x"][index].astype(np.float32) / np.float32(255)
        for tensor, values in zip(inner, run(graph, x, inner), strict=True):
            wanted = stored[f"levels {tensor}"][stored[f"at {tensor}"][index]]
            np.testing.assert_array_equal(values, wanted, tensor)


def test_transposes_between_layers_with_channels_last_fall_away() -> None:
    ops = [node.op_type for node in load(DATA / "cnv_last.onnx").graph.model.graph]
    assert (
        ops.count("Transpose") == 3
    )  # one before the first layer; QONNX's own before Flatten, and what it undoes
    assert ops.count("Conv") == 4


def test_annotations_of_qonnx_leave_no_trace() -> None:
    assert onnx.load(DATA / "cnv_clean.onnx").graph.quantization_annotation
    assert not load(DATA / "cnv_clean.onnx").graph.proto().graph.quantization_annotation


def quantized(node: onnx.NodeProto, x: NDArray[Any], rest: list[NDArray[Any]]) -> NDArray[Any]:
    """What a node of binary_network must give, written down a second time."""
    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "BipolarQuant":
        return np.where(x >= 0, rest[0], -rest[0])
    if node.op_type == "MultiThreshold":
        table = rest[0].T.reshape(-1, 1, *rest[0].shape[:1], *[1] * (x.ndim - 2))
        reached = (x[None] >= table).sum(axis=0).astype(np.float32)
        return reached * np.float32(told["out_scale"]) + np.float32(told["out_bias"])
    scale, _, bits = rest
    if bits == 1:
        return np.where(x >= 0, scale, -scale)
    low = told["narrow"] - 2 ** (bits - 1) if told["signed"] else 0
    high = 2 ** (bits - told["signed"]) - 1
    return np.round(np.clip(x / scale, low, high)) * scale


@settings(max_examples=20, deadline=None)
@given(seed=seeds())
def test_random_networks_come_in_whole(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = binary_network(seed, scales=SCALES[seed % 3], opset=13 + seed % 5)
    graph = read(model, tmp_path_factory.mktemp("random"))
    onnx.checker.check_model(graph.proto(), full_check=True)
    assert len(graph.exits) == len(model.graph.output)
    quantizers = [node for node in model.graph.node if node.domain == GENERAL]
    known = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | weights(graph)
    inner = [value.name or "" for node in graph.model.graph for value in node.outputs]
    known["x"] = binary_inputs(model, 1, seed)[0]
    proto, answers = graph.proto(), {entry.output for entry in graph.exits}
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in set(inner) - answers)
    known |= zip(
        inner,
        open_model(proto.SerializeToString(), optimize=False).run(inner, {"x": known["x"]}),
        strict=True,
    )
    folded = 0
    for node in quantizers:
        x, *rest = (known[name] for name in node.input)
        if node.output[0] not in known:  # a Transpose behind the weight has been computed as well
            folded += 1
            continue
        np.testing.assert_array_equal(known[node.output[0]], quantized(node, x, rest).astype(np.float32))
    assert folded <= sum(node.op_type == "Transpose" for node in model.graph.node)


def test_a_network_of_real_size_is_read_at_once(tmp_path: Path) -> None:
    """LFC's 2.9 million weights; slow code here would be felt by everybody who opens a file."""
    b = Builder()
    x = b.op("Flatten", ["x"], "flat")
    for index, (size, wide) in enumerate(((784, 1024), (1024, 1024), (1024, 1024), (1024, 10))):
        scale = b.constant(f"s{index}", np.array(1, np.float32))
        b.op("BipolarQuant", [b.weight(f"w{index}", wide, size), scale], f"q{index}", domain=GENERAL)
        b.op("Transpose", [f"q{index}"], f"t{index}", perm=[1, 0])
        b.op("MatMul", [x, f"t{index}"], f"m{index}")
        x = b.op("BipolarQuant", [f"m{index}", scale], f"a{index}", domain=GENERAL)
    model = b.model([("a3", (1, 10))], [("x", (1, 1, 28, 28))])
    model.opset_import.append(helper.make_opsetid(GENERAL, 1))
    path = save(model, tmp_path / "m.onnx")
    start = time.process_time()
    graph = load(path).graph
    assert time.process_time() - start < 5
    assert [node.op_type for node in graph.model.graph] == [
        "Flatten",
        *["MatMul", "GreaterOrEqual", "Where"] * 4,
    ]


def test_a_name_that_is_taken_already_is_left_alone(tmp_path: Path) -> None:
    b = Builder()
    b.op("Relu", ["x"], "n_y/Where")
    b.op("BipolarQuant", ["n_y/Where", b.constant("n_y/zero", np.array(2, np.float32))], "y", domain=GENERAL)
    model = b.model([("y", (1, 3, 12, 12))])
    model.opset_import.append(helper.make_opsetid(GENERAL, 1))
    graph = read(model, tmp_path)
    x = np.full((1, 3, 12, 12), -1, np.float32)
    np.testing.assert_array_equal(run(graph, x)[0], np.full_like(x, 2))


def test_a_quantized_weight_may_be_an_answer(tmp_path: Path) -> None:
    b = Builder()
    b.op(
        "BipolarQuant",
        [b.constant("w", np.array([[3, -3]], np.float32)), b.constant("s", np.array(2, np.float32))],
        "q",
        domain=GENERAL,
    )
    b.op("Relu", ["x"], "y")
    model = b.model([("y", (1, 3, 12, 12)), ("q", (1, 2))])
    model.opset_import.append(helper.make_opsetid(GENERAL, 1))
    x = np.zeros((1, 3, 12, 12), np.float32)
    np.testing.assert_array_equal(run(read(model, tmp_path), x)[1], [[2, -2]])


def test_other_models_are_left_as_they_are(tmp_path: Path) -> None:
    b = Builder(opset=11)
    weight = b.op("Abs", [b.weight("w", 4, 3, 3, 3)], "positive")
    b.op("Conv", ["x", weight], "y")
    graph = read(b.model([("y", (1, 4, 10, 10))]), tmp_path)
    assert graph.opset == 11
    assert [node.op_type for node in graph.model.graph] == ["Abs", "Conv"]
