"""Dependency: which channels go together, and what is never removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import CLASSES, SIDE, Builder, depthwise, perceptron, save, three_exits
from random_networks import random_network

from edgekit.host.dependency import FROZEN, Dependency, dependency
from edgekit.host.graph import Graph
from edgekit.host.load import load
from edgekit.host.work import layers

IMAGE = (1, 3, SIDE, SIDE)


def known(tmp_path: Path, model: onnx.ModelProto) -> Dependency:
    return dependency(graph_of(tmp_path, model))


def graph_of(tmp_path: Path, model: onnx.ModelProto) -> Graph:
    return load(save(model, tmp_path / "m.onnx")).graph


def ended(b: Builder, x: str, channels: int) -> onnx.ModelProto:
    """The network that ends in a head behind x."""
    b.head(x, "y", channels)
    return b.model([("y", (1, CLASSES))])


def units(found: Dependency, name: str) -> list[int]:
    return found.layouts[name].units.tolist()


def makers(found: Dependency) -> list[tuple[str, ...]]:
    return [group.products for group in found.groups]


def test_a_skip_connection_ties_both_ends(tmp_path: Path) -> None:
    found = known(tmp_path, three_exits())
    assert makers(found) == [("n_a1_y", "n_c1"), ("n_a2_y", "n_b1"), ("n_h1_y",)]
    assert units(found, "c1") == units(found, "a1")
    assert units(found, "b_sum") == units(found, "a2")


def test_answers_keep_all_their_classes(tmp_path: Path) -> None:
    found = known(tmp_path, three_exits())
    last = [product for product in found.products if product.node in ("n_exit1", "n_exit2", "n_exit3")]
    assert len(last) == 3
    assert all(product.output is None for product in last)


def test_a_concatenation_puts_units_side_by_side(tmp_path: Path) -> None:
    b = Builder()
    parts = [b.conv("x", "a", (3, 4)), b.conv("x", "b", (3, 6)), "x"]
    found = known(tmp_path, ended(b, b.conv(b.op("Concat", parts, "both", axis=1), "c", (13, 5)), 5))
    assert units(found, "both") == [*units(found, "a"), *units(found, "b"), *[FROZEN] * 3]
    assert len(found.groups) == 3
    (into,) = [product.source for product in found.products if product.node == "n_c_y"]
    assert into is not None
    assert into.units.tolist() == units(found, "both")


def test_a_depthwise_convolution_passes_channels_on_with_its_weights_and_bias(tmp_path: Path) -> None:
    found = known(tmp_path, depthwise())
    (through,) = [product for product in found.products if product.depthwise]
    node = through.node.removeprefix("n_").removesuffix("_y")
    assert through.output is not None
    assert found.weights[f"{node}_w"][0].units.tolist() == through.output.units.tolist()
    assert found.weights[f"{node}_b"][0].units.tolist() == through.output.units.tolist()
    assert through.node not in [maker for group in found.groups for maker in group.products]


def test_a_grouped_convolution_loses_the_same_channels_of_every_group(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv(b.conv("x", "a", (3, 6)), "g", (6, 8), group=2)
    found = known(tmp_path, ended(b, x, 8))
    first, second = units(found, "a")[:3], units(found, "a")[3:]
    assert first == second
    assert units(found, "g")[:4] == units(found, "g")[4:]
    assert [(len(group.units), group.channels) for group in found.groups] == [(3, 2), (4, 2)]


def test_a_gate_goes_with_what_it_weighs(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv("x", "a", (3, 6))
    gate = b.conv(b.op("GlobalAveragePool", [x], "p"), "less", (6, 2), kernel=1)
    gate = b.op("Sigmoid", [b.conv(gate, "more", (2, 6), kernel=1, relu=False)], "gate")
    found = known(tmp_path, ended(b, b.op("Mul", [x, gate], "weighed"), 6))
    assert makers(found) == [("n_a_y", "n_more"), ("n_less_y",)]


def test_a_channel_takes_its_whole_map_from_a_dense_layer(tmp_path: Path) -> None:
    b = Builder()
    x = b.op("Flatten", [b.conv("x", "a", (3, 4), stride=4)], "flat")
    b.op("Gemm", [x, b.weight("w", 4 * 9, CLASSES)], "y")
    found = known(tmp_path, b.model([("y", (1, CLASSES))]))
    assert units(found, "flat") == np.repeat(units(found, "a"), 9).tolist()
    assert found.weights["w"][0].axis == 0


def test_channels_last_are_found_on_the_last_axis(tmp_path: Path) -> None:
    b = Builder()
    x = b.op("Transpose", [b.conv("x", "a", (3, 4), stride=4)], "last", perm=[0, 2, 3, 1])
    x = b.op("Reshape", [x, b.constant("shape", np.array([1, -1]))], "flat")
    b.op("Gemm", [x, b.weight("w", 9 * 4, CLASSES)], "y")
    found = known(tmp_path, b.model([("y", (1, CLASSES))]))
    assert found.layouts["last"].axis == 3
    assert units(found, "flat") == units(found, "a") * 9


def test_a_shuffle_moves_channels_and_keeps_its_groups_alike(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv("x", "a", (3, 8))
    x = b.op("Reshape", [x, b.constant("s1", np.array([1, 2, 4, SIDE, SIDE]))], "r1")
    x = b.op("Transpose", [x], "t", perm=[0, 2, 1, 3, 4])
    x = b.op("Reshape", [x, b.constant("s2", np.array([1, 8, SIDE, SIDE]))], "r2")
    found = known(tmp_path, ended(b, b.conv(x, "c", (8, 3)), 3))
    u = units(found, "a")
    assert u[:4] == u[4:]
    assert units(found, "r2") == [u[0], u[0], u[1], u[1], u[2], u[2], u[3], u[3]]


def test_numbers_per_channel_shrink_too(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv("x", "a", (3, 4), relu=False)
    x = b.op("BatchNormalization", [x, *(b.weight(f"bn{k}", 4) for k in range(4))], "bn")
    x = b.op("PRelu", [x, b.weight("slope", 4, 1, 1)], "p")
    found = known(tmp_path, ended(b, b.op("Add", [b.weight("k", 1, 4, 1, 1), x], "s"), 4))
    for name, axis in (("bn0", 0), ("bn3", 0), ("slope", 0), ("k", 1), ("a_w", 0), ("a_b", 0), ("y_w", 0)):
        assert [(layout.axis, layout.units.tolist()) for layout in found.weights[name]] == [
            (axis, units(found, "a"))
        ]


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Softmax", {"axis": 1}),
        ("LRN", {"size": 3}),
        ("ArgMax", {"axis": 1}),
        ("CumSum", None),
        ("Expand", None),
    ],
)
def test_what_mixes_channels_or_is_unknown_keeps_them_all(
    tmp_path: Path, op: str, attributes: dict[str, int] | None
) -> None:
    b = Builder()
    x = b.conv("x", "a", (3, 4))
    more = []
    if op == "CumSum":
        more = [b.constant("axis", np.array(1))]
    if op == "Expand":
        more = [b.constant("shape", np.array([1, 4, SIDE, SIDE]))]
    made = b.op(op, [x, *more], "mixed", **(attributes or {}))
    if op == "ArgMax":
        made = b.op("Cast", [made], "number", to=1)
        x = b.conv(made, "c", (1, 5))
    else:
        x = b.conv(made, "c", (4, 5))
    assert makers(known(tmp_path, ended(b, x, 5))) == [("n_c_y",)]


def test_a_reduction_over_the_channels_keeps_them(tmp_path: Path) -> None:
    b = Builder()
    mean = b.op("ReduceMean", [b.conv("x", "a", (3, 4))], "mean", axes=[1], keepdims=1)
    assert makers(known(tmp_path, ended(b, b.conv(mean, "c", (1, 5)), 5))) == [("n_c_y",)]


def test_layers_that_share_weights_lose_the_same_channels(tmp_path: Path) -> None:
    b = Builder()
    first, last = b.conv("x", "a", (3, 4)), b.conv("x", "b", (3, 4))
    for name, x in (("c", first), ("d", last)):
        weight = ["shared"] if name == "d" else [b.weight("shared", 5, 4, 1, 1)]
        b.op("Conv", [x, *weight], name, kernel_shape=[1, 1])
    joined = b.op("Concat", ["c", "d"], "both", axis=1)
    found = known(tmp_path, ended(b, joined, 10))
    assert units(found, "a") == units(found, "b")
    assert units(found, "c") == units(found, "d")


def test_a_weight_that_somebody_else_reads_whole_is_kept(tmp_path: Path) -> None:
    b = Builder()
    x = b.op("Conv", [b.conv("x", "a", (3, 4)), b.weight("w", 5, 4, 1, 1)], "c", kernel_shape=[1, 1])
    y = b.op("ReduceSum", ["w"], "sum", keepdims=0)
    found = known(tmp_path, ended(b, b.op("Add", [x, y], "s"), 5))
    assert makers(found) == []


def test_dense_layers_are_groups_too(tmp_path: Path) -> None:
    found = known(tmp_path, perceptron())
    assert makers(found) == [("n_m1",)]
    assert found.weights["w1"][0].axis == 1
    assert found.weights["w2"][0].axis == 0
    assert found.weights["b1"][0].axis == 0


@pytest.mark.parametrize("seed", range(20))
def test_multiply_accumulates_are_counted_as_the_graph_has_them(tmp_path: Path, seed: int) -> None:
    graph = graph_of(tmp_path, random_network(seed))
    found = dependency(graph)
    assert found.macs(found.none_removed()) == sum(layer.macs for layer in layers(graph.model))


def test_the_graph_stays_as_it_was(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, random_network(3))
    before = graph.fingerprint()
    dependency(graph)
    assert graph.fingerprint() == before
