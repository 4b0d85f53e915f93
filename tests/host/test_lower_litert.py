"""Lowering to LiteRT: the same numbers as onnxruntime, the same codes within a step, and names for what cannot be."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import (
    FLOAT,
    NETWORKS,
    SIDE,
    Builder,
    image_out,
    perceptron,
    save,
    three_exits,
    write_data,
)
from onnx import helper, numpy_helper
from random_networks import random_network, seeds

pytest.importorskip("ai_edge_litert")

from edgekit.core.errors import BadInput, MissingExtra
from edgekit.core.manifest import Part
from edgekit.core.profile import Backend
from edgekit.host.convert import whole_stage
from edgekit.host.graph import Graph, infer_shapes, model_bytes, values
from edgekit.host.load import load
from edgekit.host.lower import check_holds, problems
from edgekit.host.lower.base import LoweredPart
from edgekit.host.lower.litert import lower, unsupported
from edgekit.host.lower.tflite.rules import RULES, translate
from edgekit.host.ort import open_model
from edgekit.host.pack import draft, golden_cases
from edgekit.host.passes import Context, Step, run_steps, step
from edgekit.host.passes.float16 import PASS as FLOAT16
from edgekit.host.passes.quantize_static import Int8
from edgekit.host.passes.quantize_weights import PASS as WEIGHTS
from edgekit.host.split import split
from edgekit.host.tflite_model import read_tflite
from edgekit.runtime.backends import Options, allocate, opener
from edgekit.runtime.backends.litert import Interpreter
from edgekit.runtime.data import Data, load_data
from edgekit.runtime.measure import check_golden

LITERT, ORT = Backend("litert"), Backend("onnxruntime")
BEFORE = (step("opset"), step("confidence"), step("fold"))
FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SHIFT = 128

# What tflite-runtime 2.14, the last of its kind, has of the operators that int8 networks are made of.
OLD_RUNTIME = {
    "ADD": 4,
    "AVERAGE_POOL_2D": 3,
    "CONCATENATION": 3,
    "CONV_2D": 6,
    "DEPTHWISE_CONV_2D": 6,
    "DEQUANTIZE": 5,
    "FULLY_CONNECTED": 11,
    "MAX_POOL_2D": 3,
    "MEAN": 3,
    "MUL": 5,
    "PAD": 4,
    "PADV2": 4,
    "QUANTIZE": 2,
    "REDUCE_MAX": 3,
    "RESHAPE": 1,
    "SOFTMAX": 3,
    "TRANSPOSE": 5,
    "TRANSPOSE_CONV": 4,
}


def opened(folder: Path, model: onnx.ModelProto, count: int = 8) -> tuple[Graph, Data]:
    """A network through the passes that every network goes through, and data for it."""
    graph = run_steps(load(save(model, folder / "m.onnx")).graph, BEFORE, Context())
    shape = graph.inputs[0].tensor.shape[1:]
    return graph, load_data(write_data(folder / "d.npz", shape, count), graph.inputs)


def in_int8(graph: Graph, data: Data, activation: str = "int8") -> Graph:
    return run_steps(graph, (Step("quantize_static", Int8(activation=activation)),), Context(data, graph))


def answers(graph: Graph, data: Data, backend: Backend) -> list[dict[str, np.ndarray]]:
    session = draft(graph, split(graph), backend, "m", 1, "host").open()
    return [session.run_all(data.inputs(index)) for index in range(data.count)]


def furthest(graph: Graph, data: Data) -> float:
    """The largest difference of any exit between the two backends, over what the answers span (1 at least)."""
    worst = 0.0
    for want, got in zip(answers(graph, data, ORT), answers(graph, data, LITERT), strict=True):
        for name in (name for entry in graph.exits for name in entry.tensors):
            assert want[name].shape == got[name].shape
            span = max(1.0, float(np.abs(want[name]).max()))
            worst = max(worst, float(np.abs(want[name] - got[name]).max()) / span)
    return worst


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_a_float_network_gives_what_onnxruntime_gives(tmp_path: Path, network: str) -> None:
    assert furthest(*opened(tmp_path, NETWORKS[network](0))) < 1e-5


@FEW
@given(seeds())
def test_any_float_network_gives_what_onnxruntime_gives(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    assert furthest(*opened(tmp_path_factory.mktemp("m"), random_network(seed), 4)) < 1e-4


def codes_apart(graph: Graph) -> tuple[Graph, list[str]]:
    """The graph with every activation's codes given out, and taken in anew by those who read them."""
    model = graph.copy()
    made = [
        n.outputs[0]
        for n in model.graph
        if n.op_type == "QuantizeLinear" and not n.inputs[0].is_initializer()
    ]
    for codes in made:
        fed = ir.Value(name=f"{codes.name}/fed", type=codes.type, shape=codes.shape)
        codes.replace_all_uses_with(fed)
        model.graph.inputs.append(fed)
    named = [codes.name for codes in made]
    model.graph.outputs[:] = [*made, *(value for value in model.graph.outputs if value.name not in named)]
    return graph.with_model(model), named


def kernel_errors(graph: Graph, data: Data) -> dict[str, float]:
    """Per quantized tensor, how many steps LiteRT's kernel is off what ONNX says of the codes LiteRT gave it."""
    apart, codes = codes_apart(graph)
    reference = open_model(model_bytes(apart.model), optimize=False)
    written = translate(graph.model, (), codes)
    assert written.problems == ()
    (source,) = (entry.tensor.name for entry in graph.inputs)
    interpreter = Interpreter(model_content=written.to_bytes([source], codes, "all"))
    interpreter.allocate_tensors()
    worst = dict.fromkeys(codes, 0.0)
    unsigned = any(values(graph.model)[name].dtype == ir.DataType.UINT8 for name in codes)
    for index in range(data.count):
        sample = data.inputs(index)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[source])
        interpreter.invoke()
        rows = interpreter.get_output_details()
        got = {name: interpreter.get_tensor(row["index"]) for name, row in zip(codes, rows, strict=True)}
        if unsigned:
            got = {name: (array.astype(np.int16) + SHIFT).astype(np.uint8) for name, array in got.items()}
        fed = {f"{name}/fed": array for name, array in got.items()}
        for name, want in zip(codes, reference.run(codes, {**sample, **fed}), strict=True):
            worst[name] = max(worst[name], float(np.abs(want.astype(int) - got[name]).max(initial=0)))
    return worst


@FEW
@given(seeds(), st.sampled_from(("int8", "uint8")))
def test_each_int8_kernel_is_within_a_step_of_what_onnx_says(
    tmp_path_factory: pytest.TempPathFactory, seed: int, activation: str
) -> None:
    graph, data = opened(tmp_path_factory.mktemp("m"), random_network(seed), 6)
    errors = kernel_errors(in_int8(graph, data, activation), data)
    assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("activation", ["int8", "uint8"])
def test_an_int8_network_with_three_stages_gives_what_onnxruntime_gives(
    tmp_path: Path, activation: str
) -> None:
    graph, data = opened(tmp_path, three_exits())
    assert furthest(in_int8(graph, data, activation), data) < 0.02


def test_weights_in_codes_and_in_halves_give_what_onnxruntime_gives_and_take_less(tmp_path: Path) -> None:
    graph, data = opened(tmp_path, three_exits(channels=16))
    whole = len(lower(whole_stage(graph), LITERT)[0].content)
    for taken, most in (
        (Step("quantize_weights", WEIGHTS.options(format="int8", min_size=16)), 0.55),
        (Step("quantize_weights", WEIGHTS.options(format="int4", block=16, min_size=16)), 0.75),
        (Step("float16", FLOAT16.options()), 0.75),
    ):
        smaller = run_steps(graph, (taken,), Context(data, graph))
        assert furthest(smaller, data) < 5e-3
        assert len(lower(whole_stage(smaller), LITERT)[0].content) < most * whole, taken


# --- every operator ---------------------------------------------------------------------------------------------------

_COMPUTED = {np.dtype("float32"), np.dtype("int32"), np.dtype("int64"), np.dtype("bool")}
_ALL_INPUTS = {
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Concat", "Where", "Equal", "Greater", "Less"),
    *("And", "Or", "GreaterOrEqual", "LessOrEqual", "MatMul"),
}
REFUSED = (
    "select_last_index",
    "_dilations",
    "_3d",
    "cubic",
    "antialias",
    "crop_and_resize",
    "symmetric",
    "_mask",
)
REFUSED += (
    "1d_3d",
    "4d_1d",
    "1d_1d",
    "argmax_2d",
    "training",
    "empty_set",
    "downsample_scales_linear",
    "pytorch",
)
REFUSED += (
    "bool_inputs",
    "float32_int",
    "int32_float",
    "int64_float",
    "int64_int64",
    "negative_indices",
    "allowzero",
)
ROUNDED = {"test_averagepool_2d_ceil_last_window_starts_on_pad"}  # its expected values have four digits
Case = tuple[str, onnx.ModelProto, Sequence[Any], Sequence[Any]]


@pytest.fixture(scope="module")
def cases() -> Mapping[str, list[Case]]:
    """operator -> ONNX's own cases of it."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    found = defaultdict(list)
    for case in collected:
        arrays, wanted = case.data_sets[0]
        nodes = case.model.graph.node
        plain = all(
            isinstance(array, np.ndarray) and array.dtype in _COMPUTED and array.size
            for array in (*arrays, *wanted)
        )
        if (
            len(nodes) == 1
            and not nodes[0].domain
            and plain
            and not any(word in case.name for word in (*REFUSED, *ROUNDED))
        ):
            found[nodes[0].op_type].append((case.name, case.model, arrays, wanted))
    return found


@pytest.mark.parametrize("operator", sorted(set(RULES) - {"Upsample", "Cast"}))
def test_an_operator_computes_what_onnx_says(cases: Mapping[str, list[Case]], operator: str) -> None:
    tried = 0
    for name, source, arrays, wanted in cases[operator]:
        model, taken = as_network(source, arrays, wanted, operator)
        outputs = [value.name or "" for value in model.graph.outputs]
        written = translate(model, (), outputs)
        assert written.problems == (), name
        content = written.to_bytes([value.name or "" for value in model.graph.inputs], outputs, "one")
        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
        for row, array in zip(interpreter.get_input_details(), taken, strict=True):
            interpreter.set_tensor(row["index"], array)
        interpreter.invoke()
        for row, want in zip(interpreter.get_output_details(), wanted, strict=False):
            got = interpreter.get_tensor(row["index"])
            np.testing.assert_allclose(
                got, want, rtol=1e-4, atol=2e-5 * max(1, np.abs(want).max()), err_msg=name
            )
        tried += 1
    assert tried, f"ONNX has no case of {operator} that fits here"


def as_network(
    source: onnx.ModelProto, arrays: Sequence[Any], wanted: Sequence[Any], operator: str
) -> tuple[ir.Model, Sequence[Any]]:
    """A case as a network: all inputs but the data are weights, all shapes are fixed, one output is asked for."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    kept = len(arrays) if operator in _ALL_INPUTS else 2 if operator == "Gather" else 1
    names = [info.name for info in proto.graph.input]
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for array, name in zip(arrays[kept:], names[kept:], strict=True)
    )
    del proto.graph.input[kept:]
    if operator != "Split":
        del proto.graph.output[1:], proto.graph.node[0].output[1:]
    for infos, known in ((proto.graph.input, arrays), (proto.graph.output, wanted)):
        for info, array in zip(infos, known, strict=False):
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            info.type.CopyFrom(helper.make_tensor_type_proto(kind, array.shape))
    return infer_shapes(ir.from_proto(proto)), arrays[:kept]


SHAPES: Mapping[str, Callable[[Builder], str]] = {
    "a convolution over one axis": lambda b: b.op(
        "Conv", ["s", b.weight("w", 4, 3, 3)], "y", kernel_shape=[3], pads=[2, 0], dilations=[2]
    ),
    "groups": lambda b: b.op("Conv", ["x", b.weight("w", 6, 1, 3, 3)], "y", group=3, kernel_shape=[3, 3]),
    "uneven pads, strides and holes": lambda b: b.op(
        "Conv",
        ["x", b.weight("w", 4, 3, 3, 2), b.weight("v", 4)],
        "y",
        kernel_shape=[3, 2],
        pads=[2, 0, 1, 1],
        strides=[2, 1],
        dilations=[1, 3],
    ),
    "transposed in groups, with a longer output": lambda b: b.op(
        "ConvTranspose",
        ["x", b.weight("w", 3, 2, 2, 2)],
        "y",
        group=3,
        kernel_shape=[2, 2],
        strides=[3, 3],
        output_padding=[2, 1],
    ),
    "a reshape that merges rows": lambda b: b.op(
        "Reshape", [b.conv("x", "c", (3, 4)), b.constant("to", np.array([1, 4, -1], np.int64))], "y"
    ),
    "a shuffle of channels": lambda b: b.op(
        "Reshape",
        [
            b.op(
                "Transpose",
                [
                    b.op(
                        "Reshape",
                        [b.conv("x", "c", (3, 4)), b.constant("g", np.array([1, 2, 2, 12, 12]))],
                        "r",
                    )
                ],
                "t",
                perm=[0, 2, 1, 3, 4],
            ),
            b.constant("to", np.array([1, 4, 12, 12])),
        ],
        "y",
    ),
    "a map flattened into a dense layer": lambda b: b.op(
        "Gemm", [b.op("Flatten", [b.conv("x", "c", (3, 2))], "f"), b.weight("w", 2 * SIDE * SIDE, 3)], "y"
    ),
    "scores per channel": lambda b: b.op("Softmax", [b.conv("x", "c", (3, 4))], "y", axis=1),
    "one number per channel, of lower rank": lambda b: b.op(
        "Mul", [b.conv("x", "c", (3, 4)), b.weight("k", 4, 1, 1)], "y"
    ),
    "a product of two maps": lambda b: b.op(
        "MatMul", ["x", b.op("Transpose", ["x"], "t", perm=[0, 1, 3, 2])], "y"
    ),
    "whole numbers and back": lambda b: b.op("Cast", [b.op("Cast", ["x"], "i", to=6)], "y", to=1),
    "numbers the other way round": lambda b: b.op(
        "Slice",
        [
            b.conv("x", "c", (3, 4)),
            *(
                b.constant(n, np.array(v))
                for n, v in (("a", [-1, 1]), ("e", [-99, 9]), ("i", [1, 2]), ("k", [-1, 3]))
            ),
        ],
        "y",
    ),
}


@pytest.mark.parametrize("what", SHAPES)
def test_layouts_and_shapes_that_are_easily_mistaken(what: str) -> None:
    b = Builder(1)
    SHAPES[what](b)
    inputs = [("s", (1, 3, 10)) if "one axis" in what else ("x", (1, 3, SIDE, SIDE))]
    proto = onnx.shape_inference.infer_shapes(b.model([("y", ())], inputs))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto = onnx.shape_inference.infer_shapes(proto)
    x = np.random.default_rng(0).normal(size=inputs[0][1]).astype(np.float32)
    (want,) = open_model(proto.SerializeToString()).run(None, {inputs[0][0]: x})
    written = translate(infer_shapes(ir.from_proto(proto)), (), ["y"])
    assert written.problems == ()
    interpreter = Interpreter(model_content=written.to_bytes([inputs[0][0]], ["y"], "one"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# --- what is written --------------------------------------------------------------------------------------------------


def parsed(tmp_path: Path, part: LoweredPart) -> list[tuple[str, int]]:
    path = tmp_path / "part.tflite"
    path.write_bytes(part.content)
    return [(row.code, row.version) for row in read_tflite(path).operators]


def test_what_stages_hand_over_stays_int8_with_channels_last(make: Callable) -> None:
    made = make(three_exits())
    stages = split(made.quantized)
    first, second = (lower(stage, LITERT)[0] for stage in stages[:2])
    handed = {tensor.name: tensor for tensor in first.outputs if tensor.name in stages[0].handed}
    assert handed
    for tensor in handed.values():
        assert (tensor.dtype, tensor.shape) == ("int8", (1, SIDE, SIDE, 8))
        assert first.orders[tensor.name] == (0, 2, 3, 1)
    assert set(handed.values()) & set(second.inputs)


def test_at_the_networks_border_the_tensors_are_those_of_the_graph(make: Callable) -> None:
    made = make(image_out())
    (part,) = lower(split(made.plain)[0], LITERT)
    assert [tensor.shape for tensor in (*part.inputs, *part.outputs)] == [(1, 3, 12, 12), (1, 2, 24, 24)]
    assert part.orders == {}


def test_the_same_stage_gives_the_same_bytes(make: Callable) -> None:
    for stage in split(make(three_exits()).quantized):
        assert lower(stage, LITERT) == lower(stage, LITERT)


def test_golden_cases_of_int8_stages_hold(make: Callable) -> None:
    made = make(three_exits())
    lowered = draft(made.quantized, split(made.quantized), LITERT, "m", 1, "host")
    golden = golden_cases(lowered, made.data, 16)
    manifest = lowered.manifest.__class__(**{**vars(lowered.manifest), "golden": golden.golden})
    assert check_golden(lowered.open(), manifest, golden.files.__getitem__) == ()
    handed = {name for stage in lowered.stages for name in stage.handed}
    loose = [output.tolerance for output in golden.golden.outputs if output.tensor in handed]
    assert loose
    assert max(loose) < 10  # steps: codes are compared with codes of the same layout and shift


def test_activations_and_biases_are_fused_and_no_transpose_stands_between_convolutions(
    make: Callable, tmp_path: Path
) -> None:
    made = make(NETWORKS["depthwise"](0))
    for graph in (made.plain, made.quantized):
        codes = [code for code, _ in parsed(tmp_path, lower(split(graph)[0], LITERT)[0])]
        assert codes.count("TRANSPOSE") == 1  # of the image that comes in
        assert not {"RELU", "ADD"} & set(codes)


def test_a_dense_layer_with_a_scale_per_output_is_written_so_that_old_runtimes_know_it(
    make: Callable, tmp_path: Path
) -> None:
    for network in (perceptron, three_exits):
        made = make(network(), Int8(activation="int8"))
        for stage in split(made.quantized):
            for code, version in parsed(tmp_path, lower(stage, LITERT)[0]):
                assert version <= OLD_RUNTIME[code], (code, version)


def test_static_int8_runs_unchanged_on_tflite_runtime(make: Callable) -> None:
    try:
        open_part = opener("tflite-runtime")
    except MissingExtra as err:
        pytest.skip(str(err))
    for network in (perceptron, three_exits, image_out):
        made = make(network(), Int8(activation="int8"))
        (part,) = lower(whole_stage(made.quantized), LITERT)
        described = Part("litert", "p", hashlib.sha256(part.content).hexdigest(), part.inputs, part.outputs)
        got = []
        for opens in (open_part, opener("litert")):
            tensors = {
                tensor.name: allocate(tensor.dtype, tensor.shape) for tensor in (*part.inputs, *part.outputs)
            }
            for name, array in made.data.inputs(0).items():
                tensors[name][...] = array
            inputs, outputs = (
                {t.name: tensors[t.name] for t in side} for side in (part.inputs, part.outputs)
            )
            opens(part.content, described, inputs, outputs, Options()).run()
            got.append(outputs)
        for name, array in got[0].items():
            np.testing.assert_allclose(array, got[1][name], atol=0.05 * max(1, np.abs(array).max()))


# --- what cannot be ---------------------------------------------------------------------------------------------------


def recurrent() -> onnx.ModelProto:
    b = Builder()
    weights = [b.weight("w", 1, 16, 6), b.weight("r", 1, 16, 4)]
    b.nodes.append(helper.make_node("LSTM", ["x", *weights], ["", "h"], "the_memory", hidden_size=4))
    b.op("Reshape", ["h", b.constant("to", np.array([1, 4]))], "y")
    return b.model([("y", (1, 4))], [("x", (5, 1, 6))])


def test_an_operator_that_tflite_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    graph = load(save(recurrent(), tmp_path / "m.onnx")).graph
    (line,) = unsupported(graph)
    assert line == "node 'the_memory' (LSTM): there is no such operator in TFLite"
    with pytest.raises(BadInput, match="the_memory"):
        check_holds(graph, LITERT)
    with pytest.raises(BadInput, match="the_memory"):
        lower(whole_stage(graph), LITERT)
    assert problems(graph, ORT) == ()


def test_numbers_of_8_bits_that_are_no_codes_are_refused_since_kernels_abort_on_them() -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], "twice")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.INT8, [1, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT8, [1, 4])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert translate(model, (), ["y"]).problems == ("node 'twice' (Add): of int8",)


def test_a_convolution_whose_weights_are_computed_is_refused() -> None:
    info = [helper.make_tensor_value_info(n, FLOAT, [1, 3, 5, 5]) for n in ("x", "w")]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "free", kernel_shape=[5, 5])],
        "g",
        info,
        [helper.make_tensor_value_info("y", FLOAT, [1, 1, 1, 1])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert "'free' (Conv): 'w' must be a constant" in translate(infer_shapes(model), (), ()).problems[0]


def test_an_input_of_rank_0_is_read(tmp_path: Path) -> None:
    b = Builder()
    b.op("Mul", [b.op("Relu", ["x"], "positive"), "gain"], "y")
    model = b.model([("y", (1, 4))], [("x", (1, 4)), ("gain", ())])
    graph = load(save(model, tmp_path / "m.onnx")).graph
    gains = np.array([1.5, -2.0], np.float32)
    np.savez(tmp_path / "d.npz", x=np.ones((2, 4), np.float32), gain=gains)
    made = answers(graph, load_data(tmp_path / "d.npz", graph.inputs), LITERT)
    assert [float(answer["y"][0, 0]) for answer in made] == gains.tolist()
