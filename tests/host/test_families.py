"""What goes in: image, audio and sequence networks as exporters write them, old and new opsets, any ins and outs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import CLASSES, SIDE, save, three_exits, write_data
from onnx import TensorProto, helper, numpy_helper

from edgekit.host.convert import Request, convert
from edgekit.host.effort import QUICK
from edgekit.host.limits import Limits
from edgekit.host.ort import open_model
from edgekit.host.sqnr import sqnr_of
from edgekit.runtime.data import load_data
from edgekit.runtime.detect import find_profile
from edgekit.runtime.measure import check_golden

Array = np.ndarray[Any, Any]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
BOARD = find_profile("raspberrypi5")
RANDOM = np.random.default_rng(0)
node = helper.make_node


def weight(*shape: int) -> Array:
    return (RANDOM.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


def network(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[Any]]],
    outputs: list[tuple[str, list[Any] | None]],
    *,
    constants: bool = False,
    **weights: Array,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    if constants:
        nodes = [*(node("Constant", [], [tensor.name], value=tensor) for tensor in tensors), *nodes]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs],
        [] if constants else tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def audio() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """One dimension, weights in Constant nodes, a symbolic batch."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[5], pads=[2, 2], strides=[2]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "v", "d"], ["y"]),
    ]
    made = network(
        nodes,
        [("x", FLOAT, ["N", 16, 100])],
        [("y", ["N", 7])],
        constants=True,
        w=weight(32, 16, 5),
        b=weight(32),
        v=weight(32, 7),
        d=weight(7),
    )
    return made, {"x": RANDOM.normal(size=(30, 16, 100)).astype(np.float32)}


def recurrent() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """An LSTM of which only the last state is used: two of its outputs nobody reads."""
    nodes = [
        node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        node("LSTM", ["xt", "w", "r", "b"], ["Y", "H", "C"], hidden_size=16),
        node("Squeeze", ["H", "axis"], ["h"]),
        node("Gemm", ["h", "v", "d"], ["y"]),
    ]
    made = network(
        nodes,
        [("x", FLOAT, [1, 20, 12])],
        [("y", [1, 5])],
        w=weight(1, 64, 12),
        r=weight(1, 64, 16),
        b=weight(1, 128),
        axis=np.array([0], np.int64),
        v=weight(16, 5),
        d=weight(5),
    )
    return made, {"x": RANDOM.normal(size=(30, 20, 12)).astype(np.float32)}


def tokens() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Whole numbers in, an embedding, a GRU, MatMul and Add."""
    nodes = [
        node("Gather", ["e", "x"], ["em"]),
        node("Transpose", ["em"], ["xt"], perm=[1, 0, 2]),
        node("GRU", ["xt", "w", "r"], ["Y", "H"], hidden_size=16),
        node("Squeeze", ["H", "axis"], ["h"]),
        node("MatMul", ["h", "v"], ["m"]),
        node("Add", ["m", "d"], ["y"]),
    ]
    made = network(
        nodes,
        [("x", INT64, [1, 20])],
        [("y", [1, 5])],
        e=weight(100, 12),
        w=weight(1, 48, 12),
        r=weight(1, 48, 16),
        axis=np.array([0], np.int64),
        v=weight(16, 5),
        d=weight(5),
    )
    return made, {"x": RANDOM.integers(0, 100, (30, 20)).astype(np.int64)}


def two_inputs() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """An image and a few numbers beside it."""
    nodes = [
        node("Conv", ["a", "w", "b"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Concat", ["f", "z"], ["k"], axis=1),
        node("Gemm", ["k", "v", "d"], ["y"]),
    ]
    made = network(
        nodes,
        [("a", FLOAT, [1, 3, 16, 16]), ("z", FLOAT, [1, 4])],
        [("y", [1, 5])],
        w=weight(8, 3, 3, 3),
        b=weight(8),
        v=weight(12, 5),
        d=weight(5),
    )
    inputs = {"a": RANDOM.normal(size=(30, 3, 16, 16)), "z": RANDOM.normal(size=(30, 4))}
    return made, {name: array.astype(np.float32) for name, array in inputs.items()}


def detector() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Channels last outside, first inside; two outputs, no exits, shapes nobody wrote down."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w", "b"], ["c"], pads=[1] * 4, strides=[2, 2]),
        node("Clip", ["c", "low", "high"], ["r"]),
        node("Conv", ["r", "w2", "b2"], ["s"], pads=[1] * 4),
        node("Conv", ["r", "w3", "b3"], ["bx"], pads=[1] * 4),
        node("Sigmoid", ["s"], ["scores"]),
        node("Transpose", ["bx"], ["boxes"], perm=[0, 2, 3, 1]),
    ]
    made = network(
        nodes,
        [("x", FLOAT, ["b", 32, 32, 3])],
        [("scores", None), ("boxes", None)],
        w=weight(16, 3, 3, 3),
        b=weight(16),
        low=np.array(0, np.float32),
        high=np.array(6, np.float32),
        w2=weight(4, 16, 3, 3),
        b2=weight(4),
        w3=weight(16, 16, 3, 3),
        b3=weight(16),
    )
    return made, {"x": RANDOM.normal(size=(30, 32, 32, 3)).astype(np.float32)}


def attention() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Products of two activations, batch and length symbolic."""
    nodes = [
        node("MatMul", ["x", "wq"], ["q"]),
        node("MatMul", ["x", "wk"], ["k"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["a"]),
        node("Softmax", ["a"], ["p"], axis=-1),
        node("MatMul", ["p", "x"], ["o"]),
        node("ReduceMean", ["o"], ["m"], axes=[1], keepdims=0),
        node("Gemm", ["m", "v", "d"], ["y"]),
    ]
    made = network(
        nodes,
        [("x", FLOAT, ["batch", "length", 16])],
        [("y", ["batch", 5])],
        wq=weight(16, 16),
        wk=weight(16, 16),
        v=weight(16, 5),
        d=weight(5),
    )
    return made, {"x": RANDOM.normal(size=(30, 12, 16)).astype(np.float32)}


FAMILIES = (audio, recurrent, tokens, two_inputs, detector, attention)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_family_of_networks_comes_through_with_its_answers(
    tmp_path: Path, family: Callable[[], tuple[onnx.ModelProto, dict[str, Array]]]
) -> None:
    model, inputs = family()
    path = save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **inputs)  # type: ignore[arg-type]
    shapes = {"": (1, 12, 16)} if family is attention else {}
    made = convert(Request(path, BOARD, tmp_path / "d.npz", shapes=shapes, effort=QUICK, limits=Limits(50.0)))
    session = made.finished.open()
    assert check_golden(session, made.finished.manifest, made.finished.files.__getitem__) == ()
    names = [output.name for output in model.graph.output]
    assert [name for leaving in made.finished.manifest.exits for name in leaving.outputs] == names
    data = load_data(tmp_path / "d.npz", made.finished.manifest.inputs)
    before = open_model(path.read_bytes())
    wanted = [before.run(names, data.inputs(index)) for index in range(8)]
    came = [session.run_all(data.inputs(index)) for index in range(8)]
    assert sqnr_of(wanted, [[answer[name] for name in names] for answer in came]) > 20


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 18, 21, onnx.defs.onnx_opset_version()])
def test_every_opset_from_nine_on_comes_through_below_the_boards_ceiling(tmp_path: Path, opset: int) -> None:
    jetson = find_profile("jetson-orin-nano")  # onnxruntime 1.23: opset 23 at most
    model = save(three_exits(opset=opset), tmp_path / "m.onnx")
    data = write_data(tmp_path / "d.npz", (3, SIDE, SIDE), 30, 1, CLASSES)
    made = convert(Request(model, jetson, data, effort=QUICK, limits=Limits(100.0)))
    parts = [
        onnx.load_model_from_string(made.finished.files[name])
        for name in sorted(made.finished.files)
        if name.endswith(".onnx")
    ]
    assert len(parts) == 3
    for part in parts:
        assert part.opset_import[0].version <= 23
        assert part.ir_version <= 11
