"""Recovery: a damaged network learns its original's answers from inputs without labels, or stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import NETWORKS, SIDE, Builder, probabilities_and_maps, save

from edgekit.core.errors import BadInput
from edgekit.host.cache import Cache
from edgekit.host.graph import Graph, initializers
from edgekit.host.load import load
from edgekit.host.passes import PASSES, Context
from edgekit.host.passes._grid import GRIDS, products, snap
from edgekit.host.passes.recover import Recover, apply
from edgekit.host.sqnr import answers_sqnr
from edgekit.host.work import layers
from edgekit.runtime.data import Data, load_data

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.distil import lessons  # noqa: E402
from edgekit.host.train.recover import recover  # noqa: E402

QUICK = Recover(epochs=12, lr=5e-3, batch=16, threads=1, validation=0.2)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[Graph, Data]]:
    """A network and unlabelled inputs for it."""

    def make(model: onnx.ModelProto, count: int = 160) -> tuple[Graph, Data]:
        graph = load(save(model, tmp_path / "m.onnx")).graph
        shape, random = graph.inputs[0].tensor.shape[1:], np.random.default_rng(0)
        np.savez(tmp_path / "d.npz", x=random.normal(size=(count, *shape)).astype(np.float32))
        return graph, load_data(tmp_path / "d.npz", graph.inputs)

    return make


def damaged(graph: Graph, share: float = 0.5, only: str = "") -> Graph:
    """The graph with noise in the weights of its products (or of one of them)."""
    model, random = graph.copy(), np.random.default_rng(1)
    names = {product.value.name for product in products(graph)} if not only else {only}
    for value in initializers(model):
        if value.name in names and value.const_value is not None:
            array = value.const_value.numpy()
            noise = random.normal(0, share * array.std(), array.shape)
            value.const_value = ir.tensor((array + noise).astype(np.float32), name=value.name)
    return graph.with_model(model)


def arrays(graph: Graph) -> dict[str, Any]:
    return {v.name: v.const_value.numpy() for v in initializers(graph.model) if v.const_value is not None}


@pytest.mark.parametrize(
    "name", ["three_exits", "depthwise", "perceptron", "image_out", "probabilities_and_maps"]
)
def test_a_damaged_network_comes_closer_to_its_original(
    made: Callable[..., tuple[Graph, Data]], name: str
) -> None:
    graph, data = made({**NETWORKS, "probabilities_and_maps": probabilities_and_maps}[name](0))
    bad = damaged(graph)
    before = bad.fingerprint()
    result = recover(bad, QUICK, Context(data, graph))
    assert result.helped
    assert result.after < 0.5 * result.before
    assert answers_sqnr(graph, result.graph, data, 40) > answers_sqnr(graph, bad, data, 40) + 2
    assert bad.fingerprint() == before


def test_the_same_seed_gives_the_same_graph_and_another_seed_another(
    made: Callable[..., tuple[Graph, Data]],
) -> None:
    graph, data = made(NETWORKS["perceptron"](0))
    bad, options = damaged(graph), replace(QUICK, epochs=2, mixup=0.3)
    first, second = (apply(bad, options, Context(data, graph)).fingerprint() for _ in range(2))
    assert first == second
    assert apply(bad, options, Context(data, graph, seed=2)).fingerprint() != first


def test_where_training_does_not_help_the_graph_comes_back_as_it_was(
    made: Callable[..., tuple[Graph, Data]],
) -> None:
    graph, data = made(NETWORKS["three_exits"](0))
    result = recover(
        graph, replace(QUICK, epochs=1), Context(data, graph)
    )  # nothing can be better than the original
    assert not result.helped
    assert result.graph is graph


def test_without_epochs_nothing_is_needed_and_nothing_happens(
    made: Callable[..., tuple[Graph, Data]],
) -> None:
    graph, _ = made(NETWORKS["perceptron"](0))
    assert PASSES["recover"].apply(graph, PASSES["recover"].options(), Context()) is graph


def test_what_is_missing_is_said(made: Callable[..., tuple[Graph, Data]]) -> None:
    graph, data = made(NETWORKS["perceptron"](0))
    with pytest.raises(BadInput, match="recover needs calibration data"):
        apply(graph, QUICK, Context(None, graph))
    with pytest.raises(BadInput, match="needs the network as it was"):
        apply(graph, QUICK, Context(data))


def test_an_interrupted_recovery_goes_on_and_ends_in_the_same_graph(
    made: Callable[..., tuple[Graph, Data]], tmp_path: Path
) -> None:
    graph, data = made(NETWORKS["perceptron"](0), count=2000)
    bad, options = damaged(graph), replace(QUICK, epochs=2, batch=16, sparsity=0.5)
    done: list[int] = []

    @contextmanager
    def watch(what: str, total: int) -> Iterator[Callable[[int], None]]:
        def tick(count: int) -> None:
            done.append(count)
            if len(done) == 190:
                raise KeyboardInterrupt

        yield tick

    cached = Context(data, graph, cache=Cache(tmp_path / "cache"), data_key="d", watch=watch)
    with pytest.raises(KeyboardInterrupt):
        apply(bad, options, cached)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    resumed = apply(bad, options, cached)
    assert done[190] == 100  # what the checkpoint holds
    assert resumed.fingerprint() == apply(bad, options, Context(data, graph)).fingerprint()
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_operator_that_cannot_be_trained_is_named(made: Callable[..., tuple[Graph, Data]]) -> None:
    b = Builder()
    b.op("MatMul", [b.op("Asinh", ["x"], "curved"), b.weight("w", 4, 3)], "y")
    graph, data = made(b.model([("y", (1, 3))], [("x", (1, 4))]))
    with pytest.raises(BadInput, match=r"node 'n_curved': the operator Asinh is not supported"):
        apply(graph, QUICK, Context(data, graph))


def test_weights_that_were_pruned_stay_zero(made: Callable[..., tuple[Graph, Data]]) -> None:
    graph, data = made(NETWORKS["perceptron"](0))
    model = graph.copy()
    for value in initializers(model):
        if value.name == "w1" and value.const_value is not None:
            array = value.const_value.numpy().copy()
            array[np.abs(array) < np.quantile(np.abs(array), 0.6)] = 0
            value.const_value = ir.tensor(array, name="w1")
    sparse = graph.with_model(model)
    result = recover(sparse, QUICK, Context(data, graph))
    assert result.helped
    np.testing.assert_array_equal(arrays(result.graph)["w1"] == 0, arrays(sparse)["w1"] == 0)


def test_gradual_pruning_ends_at_its_share_and_beats_pruning_at_once(
    made: Callable[..., tuple[Graph, Data]],
) -> None:
    graph, data = made(NETWORKS["three_exits"](0))
    result = recover(graph, replace(QUICK, sparsity=0.6), Context(data, graph))
    assert result.helped  # `before` is pruned at once, without training
    for product in products(result.graph):
        zeros = int((product.array == 0).sum())
        assert zeros == round(0.6 * product.array.size), product.name


def test_gradual_pruning_leaves_depthwise_weights_alone(made: Callable[..., tuple[Graph, Data]]) -> None:
    graph, data = made(NETWORKS["depthwise"](0))
    result = recover(graph, replace(QUICK, sparsity=0.5, epochs=4), Context(data, graph))
    zeros = {product.name: float((product.array == 0).mean()) for product in products(result.graph)}
    assert zeros["n_deep_y"] == 0
    assert zeros["n_wide_y"] == 0.5


def test_channels_go_in_rounds_with_training_between(made: Callable[..., tuple[Graph, Data]]) -> None:
    graph, data = made(NETWORKS["perceptron"](0))
    options = replace(QUICK, prune_share=0.6, rounds=2, granularity=1, lr=2e-3)
    result = recover(graph, options, Context(data, graph))
    before, after = (sum(layer.macs for layer in layers(each.model)) for each in (graph, result.graph))
    assert after <= 0.4 * before
    assert result.helped


@pytest.mark.parametrize("grid", ["int4", "ternary"])
def test_weights_trained_for_a_grid_lie_on_it_and_lose_less(
    made: Callable[..., tuple[Graph, Data]], grid: str
) -> None:
    graph, data = made(NETWORKS["three_exits"](0))
    result = recover(graph, replace(QUICK, quantize_aware=grid, lr=2e-3), Context(data, graph))
    assert result.helped  # `before` is rounded without training
    for product in products(result.graph):
        np.testing.assert_array_equal(snap(product.array, product.axes, GRIDS[grid]), product.array)


def test_samples_are_shifted_mirrored_and_mixed_without_labels(
    made: Callable[..., tuple[Graph, Data]],
) -> None:
    graph, data = made(NETWORKS["three_exits"](0))
    options = replace(QUICK, shift=2, flip=True, mixup=0.4, epochs=8)
    assert recover(damaged(graph), options, Context(data, graph)).helped


def test_inner_tensors_count_where_both_networks_have_them(made: Callable[..., tuple[Graph, Data]]) -> None:
    graph, _ = made(NETWORKS["three_exits"](0))
    outputs, both = lessons(graph, graph), lessons(graph, graph, features=0.5)
    assert [(lesson.wanted, lesson.kind) for lesson in outputs] == [
        (f"exit{k}", "classes") for k in (1, 2, 3)
    ]
    assert {lesson.wanted for lesson in both} - {"exit1", "exit2", "exit3"} == {
        "a1_y",
        "a2_y",
        "h1_y",
        "b1",
        "c1",
    }
    assert sum(lesson.share for lesson in both) == pytest.approx(1.5)


def test_what_ends_in_a_softmax_is_learned_before_it(made: Callable[..., tuple[Graph, Data]]) -> None:
    graph, _ = made(probabilities_and_maps(0))
    found = [(lesson.wanted, lesson.kind, lesson.axes) for lesson in lessons(graph, graph)]
    assert found == [("cube", "classes", ()), ("logits", "softmax", (1,)), ("y", "classes", ())]


def test_an_image_is_shifted_by_whole_pixels_with_its_edge_repeated() -> None:
    from edgekit.host.train.samples import _moved

    image = torch.arange(float(SIDE)).reshape(1, 1, 1, 1, SIDE).expand(2, 1, 3, SIDE, SIDE)
    shifts, mirrored = torch.tensor([[0, 0], [2, 0]]), torch.tensor([False, True])
    moved = _moved(image, False, shifts, mirrored)
    assert moved.shape == image.shape
    assert moved[0, 0, 1, 5].tolist() == [*range(2, SIDE), SIDE - 1, SIDE - 1]
    assert moved[1, 0, 1, 5].tolist() == list(reversed(range(SIDE)))
    last = _moved(image.movedim(2, -1), True, shifts, mirrored)
    assert torch.equal(last.movedim(-1, 2), moved)
