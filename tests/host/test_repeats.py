"""Stages that apply the same layers again are of one file: found whatever their tensors are called, and exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from networks import CLASSES, Builder, three_exits

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Part, Tensor
from edgekit.core.profile import Backend
from edgekit.host.graph import model_bytes
from edgekit.host.ort import open_model
from edgekit.host.pack import Draft, draft, golden_cases
from edgekit.host.passes.quantize_static import Int8
from edgekit.host.split import split
from edgekit.runtime.data import Data
from edgekit.runtime.session import open_session

BACKENDS = ("onnxruntime", "litert")


def rounds(count: int, own: int | None = None, seed: int = 0) -> onnx.ModelProto:
    """A stem, then the same residual unit and the same head `count` times. own: a round with weights of its own."""
    b = Builder(seed)
    x = b.conv("x", "stem", (3, 8))
    for name, shape in (("w", (8, 8, 3, 3)), ("v", (8, CLASSES)), ("other", (8, 8, 3, 3))):
        b.weight(name, *shape)
    names = []
    for index in range(count):
        weight = "other" if index == own else "w"
        made = b.op("Conv", [x, weight], f"c{index}", kernel_shape=[3, 3], pads=[1] * 4)
        x = b.op("Relu", [b.op("Add", [made, x], f"s{index}")], f"r{index}")
        flat = b.op("Flatten", [b.op("GlobalAveragePool", [x], f"p{index}")], f"f{index}")
        names.append(b.op("MatMul", [flat, "v"], f"exit{index}"))
    return b.model([(name, (1, CLASSES)) for name in names], exits=names)


def drafted(made: object, backend: str = "onnxruntime", which: str = "plain") -> Draft:
    if backend == "litert":
        pytest.importorskip("ai_edge_litert")
    graph = getattr(made, which)
    return draft(graph, split(graph), Backend(backend, max_opset=21, max_ir=10), "m", 1, "host")


def files_of(made: Draft) -> list[str]:
    return [part.file for stage in made.manifest.stages for part in stage.parts]


def answers(made: Draft, data: Data) -> list[dict[str, np.ndarray]]:  # type: ignore[type-arg]
    session = made.open()
    return [session.run_all(data.inputs(row)) for row in range(4)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounds_after_the_first_are_of_one_file_and_answer_as_the_whole_network(
    make: Callable, backend: str
) -> None:
    made = make(rounds(5))
    lowered = drafted(made, backend)
    files = files_of(lowered)
    assert len(set(files)) == 2
    assert len(set(files[1:])) == 1
    whole = open_model(model_bytes(made.plain.model))
    names = [leaving.output for leaving in made.plain.exits]
    for row, found in enumerate(answers(lowered, made.data)):
        for name, wanted in zip(names, whole.run(names, made.data.inputs(row)), strict=True):
            np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


def test_a_round_with_weights_of_its_own_has_its_own_file(make: Callable) -> None:
    files = files_of(drafted(make(rounds(5, own=2))))
    assert files[1] == files[3] == files[4] != files[2] != files[0]


def test_stages_that_differ_have_each_their_file(make: Callable) -> None:
    made = make(three_exits())
    for which in ("plain", "quantized"):
        assert len(set(files_of(drafted(made, which=which)))) == 3


def test_an_opened_file_serves_its_stages_with_one_runtime(make: Callable) -> None:
    made = make(rounds(5))
    lowered = drafted(made)
    separate = {f"{index}.onnx": lowered.files[file] for index, file in enumerate(files_of(lowered))}
    stages = tuple(
        replace(stage, parts=(replace(stage.parts[0], file=f"{index}.onnx", sha256=f"{index}" * 64),))
        for index, stage in enumerate(lowered.manifest.stages)
    )
    apart = open_session(replace(lowered.manifest, stages=stages), separate.__getitem__)
    together = lowered.open()
    for row in range(4):
        one, other = together.run_all(made.data.inputs(row)), apart.run_all(made.data.inputs(row))
        assert all((one[name] == other[name]).all() for name in other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_cases_and_the_manifest_hold_what_repeats(make: Callable, backend: str) -> None:
    made = make(rounds(4), Int8(activation="int8" if backend == "litert" else "uint8"))
    for which in ("plain", "quantized"):
        lowered = drafted(made, backend, which)
        golden = golden_cases(lowered, made.data, 16)
        wanted = {tensor.name for stage in lowered.stages for tensor in stage.outputs}
        assert {output.tensor for output in golden.golden.outputs} == wanted


def test_a_manifest_keeps_the_names_and_those_without_any_keep_their_identity(make: Callable) -> None:
    lowered = drafted(make(rounds(3)))
    manifest = lowered.manifest
    parts = [part for stage in manifest.stages for part in stage.parts]
    assert [bool(part.names) for part in parts] == [False, False, True]
    assert "names" not in parts[0].to_json()
    read = type(parts[2]).parse(parts[2].to_json(), "part")
    assert read == parts[2]
    assert read.in_file(parts[2].inputs[0].name) == parts[1].inputs[0].name


@pytest.mark.parametrize("wrong", [{"unknown": "a"}, {"y": "x"}, {"y": ""}, {"y": 1}, ["y"]])
def test_names_that_would_bind_two_tensors_to_one_are_refused(wrong: object) -> None:
    x, y = Tensor("x", "float32", (1,)), Tensor("y", "float32", (1,))
    part = Part("onnxruntime", "a.onnx", "0" * 64, (x,), (y,)).to_json()
    assert Part.parse(part | {"names": {"y": "x", "x": "y"}}, "part").in_file("y") == "x"
    with pytest.raises(BadInput, match=r"^part\.names"):
        Part.parse(part | {"names": wrong}, "part")
