"""Lowering to onnxruntime: below the board's ceiling, and the same bytes for the same stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from networks import CLASSES, Builder, three_exits

from edgekit.core.errors import BadInput
from edgekit.core.profile import Backend, known_profiles, profile
from edgekit.host.lower import LOWERINGS, backend_for
from edgekit.host.lower.onnxruntime import lower
from edgekit.host.ort import open_model
from edgekit.host.split import split
from edgekit.runtime.detect import find_profile
from edgekit.runtime.quiet_ort import onnxruntime


def test_parts_stay_below_the_boards_ceiling(make: Callable) -> None:
    for stage in split(make(three_exits(opset=23)).quantized):
        (part,) = lower(stage, Backend("onnxruntime", max_opset=21, max_ir=9))
        model = onnx.load_model_from_string(part.content)
        assert model.ir_version <= 9
        assert {entry.version for entry in model.opset_import if entry.domain == ""} == {21}
        onnx.checker.check_model(model, full_check=True)
        open_model(part.content)


def test_an_opset_that_cannot_be_lowered_is_one_sentence(make: Callable) -> None:
    (stage, *_) = split(make(three_exits(opset=21)).quantized)
    with pytest.raises(BadInput, match="loads opset 17 at most, the model uses 21, and onnx cannot lower it"):
        lower(stage, Backend("onnxruntime", max_opset=17, max_ir=8))


def test_an_opset_that_fits_is_left_alone(make: Callable) -> None:
    (stage, *_) = split(make(three_exits(opset=17)).plain)
    (part,) = lower(stage, Backend("onnxruntime", max_opset=23, max_ir=11))
    assert onnx.load_model_from_string(part.content).opset_import[0].version == 17


def test_the_same_stage_gives_the_same_bytes(make: Callable) -> None:
    graph = make(three_exits()).quantized
    backend = Backend("onnxruntime", max_opset=23, max_ir=11)
    assert [lower(s, backend) for s in split(graph)] == [lower(s, backend) for s in split(graph)]


def test_parts_say_nothing_of_who_exported_the_model(make: Callable) -> None:
    b = Builder()
    b.head(b.conv("x", "c", (3, 4)), "y", 4)
    model = b.model([("y", (1, CLASSES))])
    model.doc_string = model.graph.doc_string = "/home/somebody/secret"
    model.producer_name = "their exporter"
    (part,) = lower(split(make(model).plain)[0], Backend("onnxruntime"))
    assert b"secret" not in part.content
    assert b"exporter" not in part.content


def test_the_tensors_at_the_border_are_those_of_the_file(make: Callable) -> None:
    for stage in split(make(three_exits()).quantized):
        (part,) = lower(stage, Backend("onnxruntime"))
        model = onnx.load_model_from_string(part.content)
        for tensors, infos in ((part.inputs, model.graph.input), (part.outputs, model.graph.output)):
            found = [(i.name, tuple(d.dim_value for d in i.type.tensor_type.shape.dim)) for i in infos]
            assert found == [(tensor.name, tensor.shape) for tensor in tensors]


def test_every_shipped_profile_has_a_lowering_or_says_what_is_missing() -> None:
    for name in known_profiles():
        board = find_profile(name)
        if {backend.name for backend in board.backends} & set(LOWERINGS):
            assert backend_for(board).name in LOWERINGS
        else:
            with pytest.raises(
                BadInput, match=f"profile {name} runs binary networks only: .* of the backends onnxruntime"
            ):
                backend_for(board)
    assert backend_for(profile("raspberrypi5")).int8_activation == "int8"


def test_codes_are_handed_over_with_channels_last_and_nothing_else_is_turned(make: Callable) -> None:
    backend = Backend("onnxruntime", max_opset=23, max_ir=11)
    stages = split(make(three_exits()).quantized)
    parts = [lower(stage, backend)[0] for stage in stages]
    turned = set()
    for stage, part in zip(stages, parts, strict=True):
        for whole, tensor in ((stage.inputs, part.inputs), (stage.outputs, part.outputs)):
            for before, after in zip(whole, tensor, strict=True):
                order = part.orders.get(before.name, tuple(range(len(before.shape))))
                assert after.shape == tuple(before.shape[axis] for axis in order)
                assert (before.name in part.orders) == (
                    before.name in stage.handed and after.dtype == "uint8"
                )
        turned |= set(part.orders)
    assert len(turned) == 3
    assert all(not lower(stage, backend)[0].orders for stage in split(make(three_exits()).plain))


def test_onnxruntime_turns_nothing_at_such_a_border(make: Callable, tmp_path: Path) -> None:
    """The middle stage begins with its convolution and hands its last one's codes on as they are."""
    stage = split(make(three_exits()).quantized)[1]
    file = tmp_path / "optimized.onnx"
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath, settings.log_severity_level = str(file), 4
    onnxruntime.InferenceSession(lower(stage, Backend("onnxruntime"))[0].content, settings)
    graph = onnx.load(file).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    readers = {node.op_type for node in graph.node if set(node.input) & stage.handed}
    assert "Transpose" not in readers
    assert all(makers[out.name] != "Transpose" for out in graph.output if out.name in stage.handed)
