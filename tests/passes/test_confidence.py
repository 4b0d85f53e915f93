"""Confidence: the largest softmax probability, in the graph, of shape [1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks import CLASSES, Builder, depthwise, image_out, probabilities_and_maps, save, three_exits

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.passes import Context, run_steps, step


def confident(model: object, tmp_path: Path) -> Graph:
    graph = load(save(model, tmp_path / "m.onnx")).graph  # type: ignore[arg-type]
    return run_steps(graph, (step("confidence"),), Context())


@pytest.mark.parametrize("opset", [12, 17, 18, 21])
def test_it_is_the_softmax_maximum_of_the_output(tmp_path: Path, opset: int) -> None:
    graph = confident(three_exits(opset=opset), tmp_path)
    session = open_model(model_bytes(graph.model))
    x = np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)
    for entry in graph.exits:
        assert entry.confidence == f"{entry.name}/confidence"
        output, confidence = session.run([entry.output, entry.confidence], {"x": x})
        powers = np.exp(output - output.max())
        assert confidence.shape == (1,)
        assert confidence.dtype == np.float32
        np.testing.assert_allclose(confidence[0], (powers / powers.sum()).max(), rtol=1e-6)


def test_probabilities_are_not_squashed_twice(tmp_path: Path) -> None:
    graph = confident(probabilities_and_maps(), tmp_path)
    session = open_model(model_bytes(graph.model))
    x = np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)
    output, confidence = session.run(["probs", "probs/confidence"], {"x": x})
    assert confidence[0] == output.max()


def test_a_class_vector_of_any_rank_will_do(tmp_path: Path) -> None:
    graph = confident(probabilities_and_maps(), tmp_path)
    x = np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)
    (value,) = open_model(model_bytes(graph.model)).run(["cube/confidence"], {"x": x})
    assert value.shape == (1,)
    assert 1 / CLASSES <= value[0] <= 1


def test_a_network_with_one_exit_pays_for_no_confidence(tmp_path: Path) -> None:
    graph = confident(depthwise(), tmp_path)
    assert graph.exits[0].confidence is None
    assert [value.name for value in graph.model.graph.outputs] == ["probs"]


def test_a_last_exit_without_classes_goes_without(tmp_path: Path) -> None:
    assert confident(image_out(), tmp_path).exits[0].confidence is None


def test_an_early_exit_without_classes_is_refused(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv("x", "map", (3, 4))
    b.head(x, "y", 4)
    model = b.model([("map", (1, 4, 12, 12)), ("y", (1, CLASSES))], exits=("map", "y"))
    with pytest.raises(BadInput, match="exit 'map' must give one number per class to decide by"):
        confident(model, tmp_path)
