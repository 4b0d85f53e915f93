"""Two lowerings of one graph are compared exit by exit; on the demo network they agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from networks import image_out, perceptron, three_exits

pytest.importorskip("ai_edge_litert")

from edgekit.core.errors import BadInput
from edgekit.core.profile import profile
from edgekit.host.convert import Request, convert
from edgekit.host.effort import EFFORTS
from edgekit.host.load import load
from edgekit.host.parity import parity
from edgekit.host.passes import Context, Step, run_steps, step
from edgekit.host.passes.quantize_static import Int8
from edgekit.runtime.data import load_data
from edgekit.runtime.measure import check_golden

BEFORE = (step("opset"), step("confidence"), step("fold"))


def test_a_graph_agrees_with_itself_on_both_runtimes_and_less_with_another(make: Callable) -> None:
    made = make(three_exits())
    same = parity(made.quantized, made.plain, made.data)
    assert [row.exit for row in same.each_other] == ["exit1", "exit2", "exit3"]
    assert same.agreement == 1.0
    assert max(row.max_steps for row in same.each_other) < 5
    assert min(row.mean_steps for row in same.float_network[1]) > 0  # int8 is not float
    other = parity(make(three_exits(seed=1)).plain, made.plain, made.data)
    assert other.agreement == 1.0
    assert max(row.max_steps for row in other.float_network[1]) > 20


def test_answers_that_are_no_classes_have_differences_and_no_agreement(make: Callable) -> None:
    made = make(image_out())
    found = parity(made.plain, made.plain, made.data)
    assert found.agreement is None
    assert found.each_other[0].max_steps < 0.01
    assert found.to_json()["count"] == made.data.count


def test_graphs_with_different_exits_are_not_compared(make: Callable) -> None:
    with pytest.raises(BadInput, match="the same exits"):
        parity(make(perceptron()).plain, make(three_exits()).plain, make(perceptron()).data)


def _demo(demo_model: Path, fashion: Callable[[str, slice], Path], count: int) -> None:
    graph = run_steps(load(demo_model).graph, BEFORE, Context())
    test = load_data(fashion("t10k", slice(0, count)), graph.inputs, graph.labels)
    calibration = load_data(fashion("train", slice(0, 256)), graph.inputs, graph.labels)
    fp32 = parity(graph, graph, test)
    assert min(row.agreement or 0 for row in fp32.each_other) >= 0.99
    for activation in ("uint8", "int8"):
        int8 = run_steps(
            graph, (Step("quantize_static", Int8(activation=activation)),), Context(calibration, graph)
        )
        found = parity(int8, graph, test)
        assert min(row.agreement or 0 for row in found.each_other) >= 0.99
        assert min(row.agreement or 0 for row in found.float_network[1]) >= 0.98


def test_the_demo_network_gives_the_same_labels_on_both_runtimes(
    demo_model: Path, fashion: Callable[[str, slice], Path]
) -> None:
    _demo(demo_model, fashion, 200)


@pytest.mark.slow
def test_the_demo_network_gives_the_same_labels_on_all_test_images(
    demo_model: Path, fashion: Callable[[str, slice], Path]
) -> None:
    _demo(demo_model, fashion, 10_000)


def test_the_demo_network_is_converted_for_litert_with_all_its_exits(
    demo_model: Path, fashion: Callable[[str, slice], Path]
) -> None:
    request = Request(
        demo_model,
        profile("raspberrypi5"),
        fashion("train", slice(0, 200)),
        evaluation=fashion("t10k", slice(0, 100)),
        backend="litert",
        effort=EFFORTS["quick"],
    )
    made = convert(request)
    manifest = made.finished.manifest
    assert [part.backend for stage in manifest.stages for part in stage.parts] == ["litert"] * 3
    assert [leaving.confidence is not None for leaving in manifest.exits] == [True, True, True]
    assert check_golden(made.finished.open(), manifest, made.finished.files.__getitem__) == ()
    before, after = made.report.accuracy.before, made.report.accuracy.after
    assert before is not None
    assert after is not None
    assert after >= before - 0.02
