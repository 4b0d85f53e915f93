"""Inspecting: what convert would stop at is said without converting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import Builder, save, three_exits

from edgekit.core.errors import BadInput
from edgekit.host.convert import Request, convert
from edgekit.host.inspect import inspect
from edgekit.host.load import load
from edgekit.runtime.detect import find_profile

BOARD = find_profile("raspberrypi4b")


def test_what_the_runtime_refuses_is_a_problem_as_it_is_for_convert(tmp_path: Path) -> None:
    b = Builder(opset=20)
    b.op("ImageDecoder", ["x"], "y")
    model = b.model([("y", (8, 8, 3))], [("x", (64,))])
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    path = save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.zeros((6, 64), np.uint8))
    with pytest.raises(BadInput) as caught:
        convert(Request(path, BOARD, tmp_path / "d.npz"))
    assert "ImageDecoder" in str(caught.value)
    assert inspect(load(path).graph, BOARD).problems == (str(caught.value),)


def test_another_backend_of_the_board_may_be_asked_for(tmp_path: Path) -> None:
    b = Builder()
    b.op("Det", ["x"], "y")
    graph = load(save(b.model([("y", (1,))], [("x", (1, 3, 3))]), tmp_path / "m.onnx")).graph
    assert inspect(graph, BOARD).problems == ()
    found = inspect(graph, BOARD, "litert")
    assert found.backend == "litert"
    assert any("Det" in line for line in found.problems)


def test_a_network_that_converts_has_no_problems(tmp_path: Path) -> None:
    graph = load(save(three_exits(), tmp_path / "m.onnx")).graph
    assert inspect(graph, BOARD).problems == ()
