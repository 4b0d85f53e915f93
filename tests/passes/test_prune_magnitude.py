"""Magnitude pruning: exactly so many zeros, in the smallest numbers, and a file that is smaller for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Builder, depthwise, save, three_exits, write_data

from edgekit.core.errors import BadInput
from edgekit.core.profile import Backend
from edgekit.host.convert import whole_stage
from edgekit.host.graph import Graph, initializers, model_bytes
from edgekit.host.load import load
from edgekit.host.lower import onnxruntime
from edgekit.host.lower._sparse import is_worth_it, store_sparse
from edgekit.host.ort import open_model, optimize_offline
from edgekit.host.pack import draft
from edgekit.host.passes import Context, run_steps, step
from edgekit.host.passes.prune_magnitude import PASS, PruneMagnitude, masks, prunable
from edgekit.host.split import split
from edgekit.runtime.data import Data, load_data

BACKEND = Backend("onnxruntime", max_opset=21, max_ir=10)


def opened(tmp_path: Path, model: onnx.ModelProto) -> Graph:
    return load(save(model, tmp_path / "m.onnx")).graph


def arrays(graph: Graph) -> dict[str, np.ndarray]:
    return {
        value.name or "": value.const_value.numpy()
        for value in initializers(graph.model)
        if value.const_value
    }


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_exactly_the_largest_stay_in_every_tensor(weights: list[list[float]], sparsity: float) -> None:
    named = {str(k): np.array(row, np.float32) for k, row in enumerate(weights)}
    for name, kept in masks(named, PruneMagnitude(sparsity)).items():
        sizes = np.abs(named[name])
        assert kept.sum() == max(1, round(sizes.size * (1 - sparsity)))
        assert not (~kept).any() or sizes[~kept].max() <= sizes[kept].min()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_exactly_the_largest_of_all_stay_and_one_of_each(weights: list[list[float]], sparsity: float) -> None:
    named = {str(k): np.array(row, np.float32) for k, row in enumerate(weights)}
    found = masks(named, PruneMagnitude(sparsity, scope="global"))
    total = sum(map(len, weights))
    wanted = max(1, round(total * (1 - sparsity)))
    kept = sum(int(part.sum()) for part in found.values())
    assert wanted <= kept <= wanted + len(named) - 1
    assert all(part.any() for part in found.values())
    if kept == wanted:
        sizes = np.concatenate([np.abs(named[name]) for name in found])
        flags = np.concatenate(list(found.values()))
        alone = {name for name, part in found.items() if part.sum() == 1}
        if flags.any() and not flags.all() and not alone:
            assert sizes[~flags].max() <= sizes[flags].min()


def test_of_equals_the_first_stay() -> None:
    found = masks({"w": np.ones(5, np.float32)}, PruneMagnitude(0.6))
    assert found["w"].tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_that_share_of_the_weights_is_zero_and_the_others_are_untouched(tmp_path: Path, scope: str) -> None:
    graph = opened(tmp_path, three_exits())
    before, names = arrays(graph), set(prunable(graph.model))
    after = arrays(PASS.apply(graph, PruneMagnitude(0.8, scope), Context()))
    zeros = sum(int((after[name] == 0).sum()) for name in names)
    assert zeros == pytest.approx(0.8 * sum(after[name].size for name in names), abs=len(names))
    for name, array in after.items():
        kept = (array != 0) if name in names else np.ones(array.shape, bool)
        np.testing.assert_array_equal(array[kept], before[name][kept])
    shares = {name: float((after[name] == 0).mean()) for name in names}
    assert (max(shares.values()) - min(shares.values()) < 0.05) == (scope == "tensor")


def test_biases_and_depthwise_weights_stay(tmp_path: Path) -> None:
    graph = opened(tmp_path, depthwise())
    names = set(prunable(graph.model))
    shapes = {name: array.shape for name, array in arrays(graph).items()}
    through = {name for name, shape in shapes.items() if len(shape) == 4 and shape[1] == 1}
    assert through
    assert names
    assert not names & through
    assert all(len(shapes[name]) > 1 for name in names)


def test_named_nodes_keep_their_weights_and_unknown_names_are_refused(tmp_path: Path) -> None:
    graph = opened(tmp_path, three_exits())
    after = arrays(PASS.apply(graph, PruneMagnitude(0.9, keep=("n_a1_y",)), Context()))
    assert (after["a1_w"] != 0).all()
    with pytest.raises(BadInput, match="keep names no node of the model: nobody"):
        PASS.apply(graph, PruneMagnitude(0.9, keep=("nobody",)), Context())


def test_a_weight_that_something_else_reads_stays(tmp_path: Path) -> None:
    b = Builder()
    x = b.op("Conv", ["x", b.weight("w", 4, 3, 1, 1)], "c", kernel_shape=[1, 1])
    b.op("Add", [x, b.op("ReduceSum", ["w"], "sum", keepdims=0)], "y")
    graph = opened(tmp_path, b.model([("y", (1, 4, 12, 12))]))
    assert prunable(graph.model) == {}


# --- in the file ------------------------------------------------------------------------------------------------------


def data_for(tmp_path: Path, graph: Graph) -> Data:
    shape = graph.inputs[0].tensor.shape[1:]
    return load_data(write_data(tmp_path / "d.npz", shape, 12), graph.inputs)


def wide(sides: int = 3) -> onnx.ModelProto:
    b = Builder()
    b.head(b.conv(b.conv("x", "a", (3, 40), kernel=sides), "b", (40, 39), kernel=sides), "y", 39)
    return b.model([("y", (1, 5))])


def test_sparse_weights_are_small_in_the_file_with_all_that_decodes_them(tmp_path: Path) -> None:
    graph = opened(tmp_path, wide())
    sparse = PASS.apply(graph, PruneMagnitude(0.9), Context())
    (dense_part,), (part,) = (onnxruntime.lower(whole_stage(each), BACKEND) for each in (graph, sparse))
    weights = 40 * 39 * 9
    assert len(dense_part.content) > 4 * weights
    assert len(part.content) < len(dense_part.content) - 0.9 * 4 * weights + weights / 8 + 1500


@pytest.mark.parametrize("steps", [("float",), ("int8",)])
def test_what_is_opened_computes_the_same_bits(tmp_path: Path, steps: tuple[str, ...]) -> None:
    graph = PASS.apply(opened(tmp_path, wide()), PruneMagnitude(0.9), Context())
    data = data_for(tmp_path, graph)
    if steps == ("int8",):
        graph = run_steps(graph, [step("quantize_static")], Context(data, graph))
    model = graph.copy()
    before = len(model_bytes(model))
    store_sparse(model)
    assert len(model_bytes(model)) < 0.8 * before
    names = [entry.output for entry in graph.exits]
    one, other = open_model(model_bytes(graph.model)), open_model(model_bytes(model))
    for index in range(data.count):
        for want, got in zip(
            one.run(names, data.inputs(index)), other.run(names, data.inputs(index)), strict=True
        ):
            np.testing.assert_array_equal(want, got)


def test_onnxruntime_decodes_when_it_opens_and_never_again(tmp_path: Path) -> None:
    graph = PASS.apply(opened(tmp_path, wide()), PruneMagnitude(0.9), Context())
    model = graph.copy()
    store_sparse(model)
    kinds = {node.op_type for node in model.graph}
    assert "CumSum" in kinds
    optimize_offline(model_bytes(model), tmp_path / "open.onnx")
    left = {node.op_type for node in onnx.load(tmp_path / "open.onnx").graph.node}
    assert left == {node.op_type for node in graph.model.graph}


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_every_network_runs_from_its_sparse_form(tmp_path: Path, network: str) -> None:
    graph = PASS.apply(opened(tmp_path, NETWORKS[network](0)), PruneMagnitude(0.95), Context())
    data = data_for(tmp_path, graph)
    session = draft(graph, split(graph), BACKEND, "m", 1, "host").open()
    names = [entry.output for entry in graph.exits]
    wanted = open_model(model_bytes(graph.model)).run(names, data.inputs(0))
    got = session.run_all(data.inputs(0))
    for name, array in zip(names, wanted, strict=True):
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)


def test_a_dense_weight_stays_as_it_is(tmp_path: Path) -> None:
    model = opened(tmp_path, wide()).copy()
    before = model_bytes(model)
    store_sparse(model)
    assert model_bytes(model) == before


def test_negative_zero_and_odd_sizes_come_back_exactly(tmp_path: Path) -> None:
    b = Builder()
    value = np.zeros((39, 3, 5, 5), np.float32)
    value.reshape(-1)[[0, 7, 100, -1]] = [1.5, -0.0, np.float32(1e-40), -2]
    b.op("Conv", ["x", b.constant("w", value)], "c", kernel_shape=[5, 5])
    b.op("Identity", ["c"], "y")
    model = opened(tmp_path, b.model([("y", (1, 39, 8, 8))])).copy()
    assert is_worth_it(value)
    store_sparse(model)
    decoded = next(node for node in model.graph if node.op_type == "Conv").inputs[1]
    assert decoded is not None
    model.graph.outputs[:] = [decoded]
    (back,) = open_model(model_bytes(model)).run(
        [decoded.name or ""], {"x": np.zeros((1, 3, 12, 12), np.float32)}
    )
    assert back.tobytes() == value.tobytes()
