"""Splitting: one stage per exit, cut where it costs nothing, and the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from networks import CLASSES, Builder, perceptron, save, three_exits

from edgekit.core.errors import BadInput
from edgekit.core.profile import Backend
from edgekit.host.convert import whole_stage
from edgekit.host.graph import Graph
from edgekit.host.load import load
from edgekit.host.pack import draft
from edgekit.host.passes.quantize_static import Int8
from edgekit.host.split import Stage, split
from edgekit.runtime.session import Session

BACKEND = Backend("onnxruntime", max_opset=21, max_ir=10)


def both(graph: Graph) -> tuple[Session, Session]:
    """(all in one, stage by stage)."""
    one = draft(graph, [whole_stage(graph)], BACKEND, "one", 1, "host").open()
    many = draft(graph, split(graph), BACKEND, "many", 1, "host").open()
    return one, many


@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_int8_stages_give_exactly_what_one_session_gives(make: Callable, activation: str) -> None:
    made = make(three_exits(channels=16), Int8(activation))
    one, many = both(made.quantized)
    for index in range(made.data.count):
        whole, staged = one.run_all(made.data.inputs(index)), many.run_all(made.data.inputs(index))
        for entry in made.quantized.exits:
            for name in entry.tensors:
                np.testing.assert_array_equal(staged[name], whole[name])


def test_float_stages_agree_with_one_session(make: Callable) -> None:
    made = make(three_exits())
    one, many = both(made.plain)
    for index in range(made.data.count):
        whole, staged = one.run_all(made.data.inputs(index)), many.run_all(made.data.inputs(index))
        for entry in made.plain.exits:
            np.testing.assert_allclose(staged[entry.output], whole[entry.output], rtol=1e-5, atol=1e-5)


def handed(stage: Stage) -> list[str]:
    return [tensor.dtype for tensor in stage.outputs if tensor.name not in stage.exit.tensors]


def test_a_quantized_graph_hands_codes_on_and_the_next_stage_begins_by_reading_them(make: Callable) -> None:
    stages = split(make(three_exits()).quantized)
    assert handed(stages[0]) == ["uint8", "uint8"]  # a2 for the next stage, a1 for the one after it
    assert handed(stages[1]) == ["uint8"]
    assert handed(stages[2]) == []
    for stage in stages[1:]:
        names = {tensor.name for tensor in stage.inputs}
        readers = {
            node.op_type
            for node in stage.model.graph
            for value in node.inputs
            if value is not None and value.name in names
        }
        assert readers == {"DequantizeLinear"}


def test_a_float_graph_hands_the_tensor_on(make: Callable) -> None:
    stages = split(make(three_exits()).plain)
    assert handed(stages[0]) == ["float32", "float32"]


def test_a_tensor_that_skips_a_stage_comes_from_the_one_that_made_it(make: Callable) -> None:
    stages = split(make(three_exits()).plain)
    assert {tensor.name for tensor in stages[2].inputs} == {"a1", "b2"}
    assert "a1" in {tensor.name for tensor in stages[0].outputs}
    assert "a1" not in {tensor.name for tensor in stages[1].outputs}


def test_no_work_is_done_twice(make: Callable) -> None:
    graph = make(three_exits()).quantized
    convs = [
        node.name
        for stage in split(graph)
        for node in stage.model.graph
        if node.op_type in ("Conv", "Gemm", "Add")
    ]
    assert sorted(convs) == sorted(
        node.name for node in graph.model.graph if node.op_type in ("Conv", "Gemm", "Add")
    )


def test_one_exit_is_one_stage(make: Callable) -> None:
    (stage,) = split(make(perceptron()).plain)
    assert [tensor.name for tensor in stage.inputs] == ["x"]
    assert [tensor.name for tensor in stage.outputs] == ["y"]  # no confidence: nothing is decided there


def test_the_input_itself_can_be_handed_to_a_later_stage(make: Callable) -> None:
    b = Builder()
    b.head(b.conv("x", "a", (3, 4)), "exit1", 4)
    joined = b.op("Concat", ["a", "x"], "both", axis=1)
    b.head(b.conv(joined, "c", (7, 4)), "exit2", 4)
    made = make(b.model([("exit1", (1, CLASSES)), ("exit2", (1, CLASSES))], exits=("exit1", "exit2")))
    one, many = both(made.quantized)
    sample = made.data.inputs(0)
    np.testing.assert_array_equal(many.run_all(sample)["exit2"], one.run_all(sample)["exit2"])


def test_an_exit_that_needs_nothing_new_is_refused(tmp_path: Path) -> None:
    b = Builder()
    pooled = b.op("Flatten", [b.op("GlobalAveragePool", [b.conv("x", "a", (3, 4))], "p")], "early")
    b.op("Gemm", [pooled, b.weight("w", 4, CLASSES)], "late")
    model = b.model([("late", (1, CLASSES)), ("early", (1, 4))], exits=("late", "early"))
    with pytest.raises(BadInput, match="exit 'early' needs nothing"):
        split(load(save(model, tmp_path / "m.onnx")).graph)


def test_the_graph_that_is_split_stays_as_it_was(make: Callable) -> None:
    graph = make(three_exits()).quantized
    before = graph.fingerprint()
    split(graph)
    assert graph.fingerprint() == before


def test_an_output_that_is_always_the_same_is_named(tmp_path: Path) -> None:
    b = Builder()
    b.op("Relu", [b.weight("w", 1, 4)], "y")
    b.op("Neg", ["x"], "unread")
    graph = load(save(b.model([("y", (1, 4))], [("x", (1, 4))]), tmp_path / "m.onnx")).graph
    with pytest.raises(BadInput, match="output 'y' does not depend on an input"):
        split(graph)
