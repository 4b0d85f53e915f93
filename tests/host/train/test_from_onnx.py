"""A graph as a PyTorch module: the same numbers as onnxruntime's, and the same graph back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import NETWORKS, Builder, probabilities_and_maps, save
from random_networks import random_network

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.from_onnx import Network, from_onnx, trainable, unsupported, write_back  # noqa: E402

Loaded = Callable[[onnx.ModelProto], Graph]


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return lambda model: load(save(model, tmp_path / "m.onnx")).graph


def outputs_of(graph: Graph) -> list[str]:
    return [value.name or "" for value in graph.model.graph.outputs]


def samples(graph: Graph, count: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {
        entry.tensor.name: random.normal(size=(count, *entry.tensor.shape)).astype(entry.tensor.dtype)
        for entry in graph.inputs
    }


def worst_error(graph: Graph, network: Network) -> float:
    """Largest difference from onnxruntime, relative to the output's largest number."""
    x, names = samples(graph), outputs_of(graph)
    session = open_model(model_bytes(graph.model))
    ours = network({name: torch.from_numpy(array) for name, array in x.items()}, names)
    worst = 0.0
    for index in range(4):
        wanted = session.run(names, {name: array[index] for name, array in x.items()})
        for want, got in zip(wanted, ours, strict=True):
            mine = got[index].detach().numpy()
            assert mine.shape == want.shape
            worst = max(worst, float(np.abs(want - mine).max() / (np.abs(want).max() + 1e-6)))
    return worst


@pytest.mark.parametrize("name", [*NETWORKS, "probabilities_and_maps"])
def test_the_module_computes_what_onnxruntime_does(loaded: Loaded, name: str) -> None:
    graph = loaded({**NETWORKS, "probabilities_and_maps": probabilities_and_maps}[name](0))
    network = from_onnx(graph)
    assert worst_error(graph, network) < 1e-4
    assert write_back(graph, network) is graph


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_compute_what_onnxruntime_does(loaded: Loaded, seed: int) -> None:
    graph = loaded(random_network(seed))
    network = from_onnx(graph)
    assert worst_error(graph, network) < 1e-4
    assert write_back(graph, network) is graph


def recurrent(kind: str, direction: str, **attributes: Any) -> onnx.ModelProto:
    """A sequence of 7 steps through one layer, its steps' mean into 3 numbers."""
    b, wide, ways = Builder(), 4, 2 if direction == "bidirectional" else 1
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    weights = [b.weight("W", ways, gates * wide, 5), b.weight("R", ways, gates * wide, wide)]
    bias = b.constant("B", b.random.normal(size=(ways, 2 * gates * wide)).astype(np.float32))
    attributes |= {"hidden_size": wide, "direction": direction}
    made = b.op(kind, ["x", *weights, bias], "steps", **attributes)
    made = b.op("ReduceMean", [made], "mean", axes=[0], keepdims=0)
    made = b.op("Reshape", [made, b.constant("flat", np.array([1, -1], np.int64))], "row")
    b.op("Gemm", [made, b.weight("w", ways * wide, 3)], "y")
    return b.model([("y", (1, 3))], [("x", (7, 1, 5))])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("kind", "attributes"), [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})]
)
def test_recurrent_layers_compute_and_learn(
    loaded: Loaded, kind: str, attributes: dict[str, Any], direction: str
) -> None:
    graph = loaded(recurrent(kind, direction, **attributes))
    network = from_onnx(graph)
    assert worst_error(graph, network) < 1e-4
    x = {name: torch.from_numpy(array) for name, array in samples(graph).items()}
    network(x, ["y"])[0].square().sum().backward()
    assert {name for name, weight in network.weights.items() if weight.grad.abs().max() > 0} == {
        "W",
        "R",
        "B",
        "w",
    }


@pytest.mark.parametrize(("kind", "opset"), [("Upsample", 9), ("Resize", 10), ("Resize", 13)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_sizes_grow_as_each_opset_says(loaded: Loaded, kind: str, opset: int, mode: str) -> None:
    b = Builder(opset=opset)
    x = b.conv("x", "c", (3, 4))
    scales = b.constant("scales", np.array([1, 1, 1.5, 2], np.float32))
    b.op(kind, [x, scales] if opset < 11 else [x, "", scales], "y", mode=mode)
    graph = loaded(b.model([("y", (1, 4, 18, 24))]))
    assert worst_error(graph, from_onnx(graph)) < 1e-4


def test_the_demo_model_computes_what_onnxruntime_does(demo_model: Path) -> None:
    graph = load(demo_model).graph
    network = from_onnx(graph)
    assert worst_error(graph, network) < 1e-4
    assert len(network.weights) == 26  # 10 convolutions and 3 dense layers, each with a bias


def test_trained_weights_come_back_and_nothing_else_changes(loaded: Loaded) -> None:
    graph = loaded(NETWORKS["three_exits"](0))
    before, network = graph.fingerprint(), from_onnx(graph)
    with torch.no_grad():
        network.weights["a1_w"].mul_(2)
    after = write_back(graph, network)
    assert graph.fingerprint() == before
    assert worst_error(after, network) < 1e-4
    old, new = (
        {v.name: v.const_value.numpy() for v in g.model.graph.initializers.values()} for g in (graph, after)
    )
    assert [name for name in old if not np.array_equal(old[name], new[name])] == ["a1_w"]
    np.testing.assert_array_equal(new["a1_w"], 2 * old["a1_w"])
    assert [node.name for node in after.model.graph] == [node.name for node in graph.model.graph]


def test_a_weight_that_is_read_twice_is_one_weight(loaded: Loaded) -> None:
    b = Builder()
    weight = b.weight("w", 4, 4)
    first = b.op("Relu", [b.op("MatMul", ["x", weight], "m1")], "r1")
    b.op("MatMul", [first, b.op("Transpose", [weight], "wt")], "y")
    graph = loaded(b.model([("y", (1, 4))], [("x", (1, 4))]))
    network = from_onnx(graph)
    assert list(network.weights) == ["w"]
    with torch.no_grad():
        network.weights["w"].add_(0.25)
    assert worst_error(write_back(graph, network), network) < 1e-4


def test_what_prepares_the_input_and_statistics_are_not_trained(loaded: Loaded) -> None:
    b = Builder()
    x = b.op("Sub", ["x", b.constant("mean", np.full((1, 3, 1, 1), 0.5, np.float32))], "centred")
    x = b.conv(x, "c", (3, 4), relu=False)
    x = b.op("Mul", [x, b.constant("gain", np.ones((1, 4, 1, 1), np.float32))], "scaled")
    x = b.op("Mul", [x, b.constant("half", np.array([0.5], np.float32))], "halved")
    x = b.op("Add", [x, b.constant("grid", np.zeros((1, 4, 12, 12), np.float32))], "placed")
    stats = [b.constant(f"bn_{name}", np.ones(4, np.float32)) for name in "sbmv"]
    b.head(b.op("BatchNormalization", [x, *stats], "bn"), "y", 4)
    assert trainable(loaded(b.model([("y", (1, 5))]))) == {"c_w", "c_b", "gain", "bn_s", "bn_b", "y_w", "y_b"}


def test_inner_tensors_can_be_asked_for_and_only_their_part_runs(loaded: Loaded) -> None:
    graph = loaded(NETWORKS["three_exits"](0))
    network = from_onnx(graph)
    x = {"x": torch.from_numpy(samples(graph)["x"])}
    inner, first = network(x, ["a2", "exit1"])
    assert inner.shape == (4, 1, 8, 12, 12)
    first.sum().backward()
    assert network.weights["c1_w"].grad is None


def test_an_operator_out_of_scope_is_named_with_its_node_before_any_work(loaded: Loaded) -> None:
    b = Builder()
    y = b.op("Add", [b.op("Det", [b.op("Asinh", ["x"], "curved")], "det"), b.weight("b", 1)], "y")
    graph = loaded(b.model([(y, (1,))], [("x", (1, 3, 3))]))
    assert unsupported(graph) == ("node 'n_curved': the operator Asinh", "node 'n_det': the operator Det")
    with pytest.raises(BadInput, match=r"node 'n_curved': the operator Asinh and 1 more is not supported"):
        from_onnx(graph)


def test_a_size_that_hangs_on_the_data_is_named_with_its_node(loaded: Loaded) -> None:
    b = Builder()
    b.op("Reshape", ["x", b.op("Cast", ["sizes"], "whole", to=onnx.TensorProto.INT64)], "y")
    network = from_onnx(loaded(b.model([("y", (2, 2))], [("x", (1, 4)), ("sizes", (2,))])))
    with pytest.raises(BadInput, match=r"node 'n_y' \(Reshape\) cannot be computed"):
        network({"x": torch.ones(2, 1, 4), "sizes": torch.full((2, 2), 2.0)}, ["y"])


def test_weights_that_are_no_numbers_and_weights_of_another_graph_are_refused(loaded: Loaded) -> None:
    graph, other = loaded(NETWORKS["perceptron"](0)), loaded(NETWORKS["image_out"](0))
    network = from_onnx(graph)
    with pytest.raises(BadInput, match="another graph's"):
        write_back(other, network)
    with torch.no_grad():
        network.weights["w1"].fill_(float("nan"))
    with pytest.raises(BadInput, match=r"weight 'w1' is not finite"):
        write_back(graph, network)


def test_how_weights_are_seen_can_be_replaced(loaded: Loaded) -> None:
    graph = loaded(NETWORKS["perceptron"](0))
    network = from_onnx(graph)
    network.seen_as = lambda name, weight: torch.zeros_like(weight) if name == "w2" else weight
    (y,) = network({"x": torch.from_numpy(samples(graph)["x"])}, ["y"])
    torch.testing.assert_close(y, network.weights["b2"].expand(4, 1, 5))


def test_the_converter_imports_no_torch() -> None:
    code = "import sys, edgekit.host.convert, edgekit.host.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
