"""Channel pruning: a smaller graph that answers as the old one with those channels masked; how much goes, and which."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masking import Masked
from networks import CLASSES, SIDE, Builder, save, three_exits, write_data
from random_networks import input_shape, random_network, seeds

from edgekit.core.errors import BadInput
from edgekit.core.profile import Backend
from edgekit.host.dependency import Dependency, Flags, dependency
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.pack import draft
from edgekit.host.passes import Context, _importance, run_steps, step
from edgekit.host.passes._importance import by_contribution, by_residue
from edgekit.host.passes._meet import meetings
from edgekit.host.passes._shrink import shrink
from edgekit.host.passes.prune_channels import (
    PASS,
    PruneChannels,
    read_channels,
    removed_by,
    resolve,
    write_channels,
)
from edgekit.host.split import split
from edgekit.host.sqnr import answers_sqnr
from edgekit.host.work import layers
from edgekit.runtime.data import Data, load_data

PLAIN = PruneChannels(granularity=1, compensate=False, reconstruct=False)


def opened(model: onnx.ModelProto) -> Graph:
    with tempfile.TemporaryDirectory() as folder:
        return load(save(model, Path(folder) / "m.onnx")).graph


def data_for(tmp_path: Path, graph: Graph, count: int = 24) -> Data:
    return load_data(write_data(tmp_path / "d.npz", graph.inputs[0].tensor.shape[1:], count), graph.inputs)


def draw_removal(known: Dependency, seed: int) -> Flags:
    """Some units of every group, as many as a tensor can lose."""
    random = np.random.default_rng(seed)
    removed = known.none_removed()
    for group in known.groups:
        before = removed.copy()
        count = int(random.integers(0, len(group.units)))
        removed[random.choice(group.units, count, replace=False)] = True
        if not known.is_possible(removed):
            removed = before
    return removed


def channels_of(known: Dependency, removed: Flags) -> dict[str, list[int]]:
    """What the oracle is told: product -> the output channels it loses."""
    return {
        product.node: np.setdiff1d(
            np.arange(product.output.units.size), product.output.kept(removed)
        ).tolist()
        for product in known.products
        if product.output is not None and not product.depthwise
    }


def answers(graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    names = [entry.output for entry in graph.exits]
    return dict(zip(names, open_model(model_bytes(graph.model)).run(names, {"x": x}), strict=True))


def assert_pruned_is_masked(model: onnx.ModelProto, seed: int) -> None:
    graph = opened(model)
    known = dependency(graph)
    removed = draw_removal(known, seed)
    small = shrink(graph, known, removed)
    proto = onnx.load_model_from_string(model_bytes(small.model))
    onnx.checker.check_model(proto, full_check=True)
    assert sum(layer.macs for layer in layers(small.model)) == known.macs(removed)
    x = np.random.default_rng(seed).normal(size=input_shape(model)).astype(np.float32)
    oracle = Masked(onnx.load_model_from_string(model_bytes(graph.model)), channels_of(known, removed))
    wanted = oracle.run({"x": x})
    for name, array in answers(small, x).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seeds(), st.integers(0, 3))
def test_a_pruned_network_answers_as_the_masked_one(seed: int, removal: int) -> None:
    assert_pruned_is_masked(random_network(seed), removal)


@settings(max_examples=12, deadline=None)
@given(seeds(), st.sampled_from([13, 14, 18, 21]))
def test_it_does_in_every_opset(seed: int, opset: int) -> None:
    assert_pruned_is_masked(random_network(seed, opset=opset), 0)


def odd_channels(seed: int = 0) -> onnx.ModelProto:
    """Operators that random networks do not draw: pixels and channels exchanged, picked and padded channels."""
    b = Builder(seed)
    x = b.conv("x", "a", (3, 8))
    x = b.op("DepthToSpace", [x], "d2s", blocksize=2, mode="CRD")
    x = b.op("SpaceToDepth", [b.conv(x, "b", (2, 4))], "s2d", blocksize=2)
    x = b.op("Gather", [x, b.constant("picked", np.array([5, 0, -1, 7, 3, 3]))], "g", axis=1)
    x = b.op(
        "Pad", [b.conv(x, "c", (6, 6)), b.constant("pads", np.array([0, 1, 0, 0, 0, 1, 0, 0]))], "padded"
    )
    x = b.op(
        "Resize",
        [b.conv(x, "e", (8, 6)), "", "", b.constant("sizes", np.array([1, 6, 7, 9]))],
        "resized",
        mode="nearest",
    )
    x = b.op("InstanceNormalization", [x, b.weight("is", 6), b.weight("ib", 6)], "norm")
    b.head(b.conv(x, "f", (6, 5)), "y", 5)  # the mean of a normalised map alone would tell nothing
    return b.model([("y", (1, CLASSES))])


def old_opset(seed: int = 0) -> onnx.ModelProto:
    """Opset 9: sizes of Split and Slice stand in attributes."""
    b = Builder(seed, 9)
    x = b.conv("x", "a", (3, 8))
    names = ["left", "right"]
    b.nodes.append(onnx.helper.make_node("Split", [x], names, "n_split", axis=1, split=[3, 5]))
    cut = b.op("Slice", ["right"], "cut", axes=[1], starts=[1], ends=[4])
    x = b.op("Add", ["left", cut], "sum")
    b.head(b.conv(x, "c", (3, 6)), "y", 6)
    return b.model([("y", (1, CLASSES))])


@pytest.mark.parametrize("maker", [odd_channels, old_opset])
@pytest.mark.parametrize("removal", range(6))
def test_rare_operators_are_cut_right(maker: object, removal: int) -> None:
    assert_pruned_is_masked(maker(removal), removal)  # type: ignore[operator]


def test_the_oracle_sees_a_channel_that_reaches_an_answer() -> None:
    b = Builder()
    x = b.conv("x", "a", (3, CLASSES))
    b.op("Flatten", [b.op("GlobalAveragePool", [x], "p")], "y")
    model = b.model([("y", (1, CLASSES))])
    with pytest.raises(AssertionError, match="reaches y"):
        Masked(model, {"n_a_y": [1]}).run({"x": np.ones((1, 3, SIDE, SIDE), np.float32)})


# --- how much, and which ----------------------------------------------------------------------------------------------


def macs(graph: Graph) -> int:
    return sum(layer.macs for layer in layers(graph.model))


@pytest.mark.parametrize("criterion", ["answers", "activation", "l1", "l2"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_wanted_share_goes_within_one_granule(tmp_path: Path, criterion: str, share: float) -> None:
    graph = opened(three_exits(channels=16))
    options = replace(PLAIN, share=share, criterion=criterion)
    small = PASS.apply(graph, options, Context(data_for(tmp_path, graph)))
    left = macs(small) / macs(graph)
    assert left <= 1 - share
    known = dependency(graph)
    none = known.none_removed()
    largest = 0
    for group in known.groups:
        one = none.copy()
        one[group.units[0]] = True
        largest = max(largest, known.macs(none) - known.macs(one))
    assert macs(small) >= (1 - share) * macs(graph) - largest


def test_a_share_of_nothing_changes_nothing(tmp_path: Path) -> None:
    graph = opened(three_exits())
    assert PASS.apply(graph, PruneChannels(), Context()).fingerprint() == graph.fingerprint()


def test_what_is_out_of_reach_is_said_with_what_is_not(tmp_path: Path) -> None:
    graph = opened(three_exits())
    options = replace(PLAIN, share=0.9, criterion="l1", max_share_per_group=0.5)
    with pytest.raises(BadInput, match=r"share 0\.9 is out of reach: .* at most 0\.\d+ of"):
        PASS.apply(graph, options, Context())


def test_a_measured_criterion_without_data_is_refused() -> None:
    with pytest.raises(BadInput, match="needs calibration data"):
        PASS.apply(opened(three_exits()), replace(PLAIN, share=0.3), Context())


@pytest.mark.parametrize("granularity", [2, 4])
def test_groups_keep_multiples_and_no_less_than_their_share(tmp_path: Path, granularity: int) -> None:
    graph = opened(three_exits(channels=16))
    options = replace(PLAIN, share=0.4, criterion="l2", granularity=granularity, max_share_per_group=0.6)
    small = PASS.apply(graph, options, Context())
    widths = [w.shape[0] for w in small.model.graph.initializers.values() if w.name and w.name.endswith("_b")]
    inner = [int(width) for width in widths if width != CLASSES]  # type: ignore[arg-type]
    assert min(inner) < 16
    assert all(width % granularity == 0 and width >= 0.4 * 16 for width in inner)


def with_dead_channels() -> tuple[onnx.ModelProto, list[int]]:
    """A network that hardly reads some channels of its first layer, though those have the largest weights."""
    b = Builder(1)
    b.head(b.conv(b.conv("x", "a", (3, 8)), "c", (8, 8)), "y", 8)
    model = b.model([("y", (1, CLASSES))])
    dead = [1, 4, 6]
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight).copy()
        if weight.name == "a_w":
            array[dead] *= 10
        if weight.name == "c_w":
            array[:, dead] *= 1e-4
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    return model, dead


@pytest.mark.parametrize("criterion", ["answers", "activation"])
def test_measured_criteria_find_channels_that_nobody_needs(tmp_path: Path, criterion: str) -> None:
    model, dead = with_dead_channels()
    graph = opened(model)
    options = replace(PLAIN, share=0.2, criterion=criterion)
    small_options = resolve(graph, options, Context(data_for(tmp_path, graph)))
    kept = read_channels(small_options.keep["n_a_y"], "keep")
    gone = [channel for channel in range(8) if channel not in kept]
    assert gone
    assert set(gone[:3]) <= set(dead)
    by_size = resolve(graph, replace(options, criterion="l1"), Context())
    assert set(dead) <= set(read_channels(by_size.keep.get("n_a_y", "0-7"), "keep"))


def test_every_output_of_an_exit_counts_as_its_answer(tmp_path: Path) -> None:
    """Boxes beside scores: what only the second one reads is needed as much as what only the first one reads."""
    b = Builder(4)
    stem = b.conv("x", "stem", (3, 8))
    for name in ("boxes", "scores"):
        b.head(b.conv(stem, f"{name}_c", (8, 16)), name, 16)
    graph = opened(b.model([("boxes", (1, CLASSES)), ("scores", (1, CLASSES))]))
    assert [leaving.outputs for leaving in graph.exits] == [("boxes", "scores")]
    options = replace(PLAIN, share=0.3, criterion="answers")
    keep = resolve(graph, options, Context(data_for(tmp_path, graph))).keep
    left = [len(read_channels(keep.get(f"n_{name}_c_y", "0-15"), "keep")) for name in ("boxes", "scores")]
    assert min(left) >= 8, left


def test_of_channels_that_tell_the_same_one_goes_first_where_readers_are_refitted(tmp_path: Path) -> None:
    b = Builder(5)
    b.head(b.conv(b.conv("x", "a", (3, 8)), "c", (8, 8)), "y", 8)
    model = b.model([("y", (1, CLASSES))])
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight).copy()
        if weight.name in ("a_w", "a_b"):
            array[6] = 2 * array[3]
        if weight.name == "c_w":
            array[:, [3, 6]] *= 3  # both matter more than any other
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    graph = opened(model)
    known, context = dependency(graph), Context(data_for(tmp_path, graph))
    (units,) = [list(group.units) for group in known.groups if group.name == "n_a_y"]
    alone = by_contribution(graph, known, context, 24, centred=True)[units]
    together = by_residue(graph, known, context, 24)[units]
    assert set(np.argsort(alone)[-2:].tolist()) == {3, 6}
    order = np.argsort(together).tolist()
    assert order[0] in {3, 6}
    assert order[-1] in {3, 6}  # nobody tells what the second of them did
    assert together.max() > 100 * together.min()


def test_where_channels_are_too_many_to_compare_each_counts_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = opened(three_exits())
    known, context = dependency(graph), Context(data_for(tmp_path, graph))
    compared = by_residue(graph, known, context, 24)
    monkeypatch.setattr(_importance, "_MOST_POSITIONS", 4)
    alone = by_contribution(graph, known, context, 24, centred=True)
    np.testing.assert_allclose(by_residue(graph, known, context, 24), alone, rtol=1e-9)
    assert np.abs(compared - alone).max() > 1e-3


def test_a_resolved_recipe_makes_the_same_graph_without_ranking(tmp_path: Path) -> None:
    graph = opened(three_exits(channels=16))
    data = data_for(tmp_path, graph)
    options = PruneChannels(share=0.4, granularity=2)
    resolved = resolve(graph, options, Context(data))
    assert resolved.keep
    once, again = (PASS.apply(graph, each, Context(data)) for each in (options, resolved))
    assert once.fingerprint() == again.fingerprint()
    unfitted = replace(resolved, compensate=False, reconstruct=False)
    assert macs(PASS.apply(graph, unfitted, Context())) == macs(once)  # needs no data


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ({"nobody": "0-3"}, "no group is called so; the groups are n_a1_y"),
        ({"n_a1_y": "0-8"}, "must be some of the channels 0 to 7"),
        ({"n_a1_y": "x"}, "must be channels like"),
        ({"n_a1_y": "3 1"}, "must rise"),
    ],
)
def test_a_keep_that_does_not_fit_is_refused(keep: Mapping[str, str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        PASS.apply(opened(three_exits()), replace(PLAIN, keep=keep), Context())


@given(st.sets(st.integers(0, 40)))
def test_channels_are_read_as_they_were_written(channels: set[int]) -> None:
    assert read_channels(write_channels(sorted(channels)), "keep") == sorted(channels)


def test_keep_says_exactly_what_stays() -> None:
    graph = opened(three_exits())
    known = dependency(graph)
    removed = removed_by(known, {"n_h1_y": "0-2 5"})
    (group,) = [group for group in known.groups if group.name == "n_h1_y"]
    assert [k for k, unit in enumerate(group.units) if not removed[unit]] == [0, 1, 2, 5]
    assert removed.sum() == 4


def test_where_no_product_reads_what_goes_there_is_nothing_to_make_up_for(tmp_path: Path) -> None:
    graph = opened(three_exits())
    assert list(meetings(graph, [], Context(data_for(tmp_path, graph)), 4, 4, "a test")) == []


# --- making up for it -------------------------------------------------------------------------------------------------


def test_compensation_is_exact_for_channels_that_never_change(tmp_path: Path) -> None:
    b = Builder(2)
    x = b.op("MatMul", ["x", b.weight("w1", 6, 8)], "m1")
    x = b.op("Relu", [b.op("Add", [x, b.weight("b1", 8)], "s1")], "r1")
    x = b.op("MatMul", [x, b.weight("w2", 8, CLASSES)], "m2")
    b.op("Add", [x, b.weight("b2", CLASSES)], "y")
    model = b.model([("y", (1, CLASSES))], [("x", (1, 6))])
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight).copy()
        if weight.name == "w1":
            array[:, [2, 5]] = 0
        if weight.name == "b1":
            array[[2, 5]] = 3
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    graph = opened(model)
    context = Context(data_for(tmp_path, graph))
    keep = {"n_m1": "0-1 3-4 6-7"}
    plain = PASS.apply(graph, replace(PLAIN, keep=keep), context)
    made_up = PASS.apply(graph, replace(PLAIN, keep=keep, compensate=True), context)
    x_in = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
    np.testing.assert_allclose(answers(made_up, x_in)["y"], answers(graph, x_in)["y"], rtol=1e-4, atol=1e-5)
    assert np.abs(answers(plain, x_in)["y"] - answers(graph, x_in)["y"]).max() > 0.1


def test_reconstruction_is_exact_where_the_others_tell_what_is_gone(tmp_path: Path) -> None:
    b = Builder(3)
    x = b.conv("x", "a", (3, 6), kernel=1)
    b.head(b.conv(x, "c", (6, 8)), "y", 8)
    model = b.model([("y", (1, CLASSES))])
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight).copy()
        if weight.name in ("a_w", "a_b"):
            array[4] = 0.5 * array[1]  # the same map at half the size
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    graph = opened(model)
    data = data_for(tmp_path, graph, 64)
    keep = {"n_a_y": "0-3 5"}
    small = PASS.apply(graph, replace(PLAIN, keep=keep, reconstruct=True), Context(data))
    plain = PASS.apply(graph, replace(PLAIN, keep=keep), Context(data))
    assert answers_sqnr(graph, small, data, 32) > 40
    assert answers_sqnr(graph, plain, data, 32) < 30


@settings(max_examples=8, deadline=None)
@given(seeds())
def test_refitting_random_networks_does_not_make_their_answers_worse(seed: int) -> None:
    graph = opened(random_network(seed, length=1))
    known = dependency(graph)
    keep = {group.name: f"0-{(len(group.units) - 1) // 2}" for group in known.groups}
    try:
        removed_by(known, keep)
    except BadInput:
        return
    with tempfile.TemporaryDirectory() as folder:
        data = data_for(Path(folder), graph, 48)
        small = [
            PASS.apply(
                graph, replace(PLAIN, keep=keep, compensate=c, reconstruct=r, samples=48), Context(data)
            )
            for c, r in ((False, False), (True, False), (False, True))
        ]
        for each in small:
            onnx.checker.check_model(onnx.load_model_from_string(model_bytes(each.model)), full_check=True)
        plain, _, fitted = (answers_sqnr(graph, each, data, 64) for each in small)
    assert fitted >= plain - 1.0


def test_a_pruned_network_goes_through_split_lower_and_session(tmp_path: Path) -> None:
    graph = run_steps(opened(three_exits(channels=16)), [step("confidence"), step("fold")], Context())
    data = data_for(tmp_path, graph)
    small = PASS.apply(graph, PruneChannels(share=0.4, granularity=2), Context(data))
    session = draft(small, split(small), Backend("onnxruntime"), "m", 1, "host").open()
    x = data.inputs(0)
    for name, array in answers(small, x["x"]).items():
        np.testing.assert_allclose(session.run_all(x)[name], array, rtol=1e-4, atol=1e-4)
    assert [entry.name for entry in small.exits] == [entry.name for entry in graph.exits]
    assert small.inputs == graph.inputs


def test_the_graph_that_is_pruned_stays_as_it_was(tmp_path: Path) -> None:
    graph = opened(three_exits(channels=16))
    before = graph.fingerprint()
    PASS.apply(graph, PruneChannels(share=0.4, granularity=2), Context(data_for(tmp_path, graph)))
    assert graph.fingerprint() == before
