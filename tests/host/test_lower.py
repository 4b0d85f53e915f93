"""Lowering to onnxruntime: below the board's ceiling, and the same bytes for the same stage."""

from __future__ import annotations

from collections.abc import Callable

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
                BadInput, match=f"profile {name}: convert needs one of the backends onnxruntime"
            ):
                backend_for(board)
    assert backend_for(profile("raspberrypi5")).int8_activation == "int8"
