"""Equalization: the same network in float, channels' ranges shared fairly, nothing moved past what forbids it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import CLASSES, NETWORKS, SIDE, Builder, save, three_exits, write_data

from edgekit.host.graph import Graph, initializers
from edgekit.host.load import load
from edgekit.host.passes import equalize
from edgekit.host.passes._grid import GRIDS, products, snap
from edgekit.host.passes.base import Context
from edgekit.host.passes.equalize import Options
from edgekit.host.sqnr import answers_sqnr
from edgekit.runtime.data import Data, load_data


def opened(tmp_path: Path, model: onnx.ModelProto) -> tuple[Graph, Data]:
    graph = load(save(model, tmp_path / "m.onnx")).graph
    return graph, load_data(write_data(tmp_path / "d.npz", graph.inputs[0].tensor.shape[1:], 6), graph.inputs)


def weights(graph: Graph) -> dict[str, np.ndarray]:
    return {
        v.name or "": v.const_value.numpy() for v in initializers(graph.model) if v.const_value is not None
    }


def changed(before: Graph, after: Graph) -> set[str]:
    old = weights(before)
    return {
        name
        for name, array in weights(after).items()
        if not np.array_equal(array, old.get(name, np.zeros(0)))
    }


def equal_in_float(before: Graph, after: Graph, data: Data) -> bool:
    return answers_sqnr(before, after, data, 8) > 100


def chain(between: Callable[[Builder, str], str], seed: int = 0, *, flat: bool = False) -> onnx.ModelProto:
    """Two convolutions with something between; the first one's channels differ by far in size."""
    b = Builder(seed)
    scales = (10.0 ** b.random.uniform(-2, 2, 8)).astype(np.float32)
    w = b.random.normal(size=(8, 3, 3, 3)).astype(np.float32) * scales[:, None, None, None]
    names = [b.constant("w1", w), b.constant("b1", b.random.normal(size=8).astype(np.float32) * scales)]
    x = b.op("Conv", ["x", *names], "c1", kernel_shape=[3, 3], pads=[1] * 4)
    x = between(b, x)
    if flat:
        b.op("Gemm", [x, b.weight("w2", CLASSES, 8 * (SIDE // 2) ** 2)], "y", transB=1)
    else:
        x = b.op("Conv", [x, b.weight("w2", 8, 8, 3, 3), b.weight("b2", 8)], "c2", kernel_shape=[3, 3])
        b.head(b.op("Sigmoid", [x], "end"), "y", 8)  # which no factor passes
    return b.model([("y", (1, CLASSES))])


def pooled_flat(b: Builder, x: str) -> str:
    x = b.op("MaxPool", [b.op("Relu", [x], "r")], "p", kernel_shape=[2, 2], strides=[2, 2])
    return b.op("Flatten", [x], "f")


def reshaped(b: Builder, x: str) -> str:
    x = b.op("AveragePool", [x], "p", kernel_shape=[2, 2], strides=[2, 2])
    return b.op("Reshape", [x, b.constant("shape", np.array([1, -1], np.int64))], "f")


def cut_at(low: float, high: float | None) -> Callable[[Builder, str], str]:
    def make(b: Builder, x: str) -> str:
        inputs = [x, b.constant("low", np.array(low, np.float32))]
        if high is not None:
            inputs.append(b.constant("high", np.array(high, np.float32)))
        return b.op("Clip", inputs, "r")

    return make


def with_constant(b: Builder, x: str) -> str:
    return b.op(
        "Relu",
        [b.op("Add", [x, b.constant("k", b.random.normal(size=(8, 1, 1)).astype(np.float32))], "s")],
        "r",
    )


PASSING: dict[str, tuple[Callable[[Builder, str], str], bool]] = {
    "nothing": (lambda b, x: x, False),
    "relu": (lambda b, x: b.op("Relu", [x], "r"), False),
    "leaky": (lambda b, x: b.op("LeakyRelu", [x], "r", alpha=0.2), False),
    "prelu": (
        lambda b, x: b.op("PRelu", [x, b.constant("a", np.full((8, 1, 1), 0.3, np.float32))], "r"),
        False,
    ),
    "clip at 0": (cut_at(0, None), False),
    "average": (lambda b, x: b.op("AveragePool", [x], "p", kernel_shape=[3, 3], pads=[1] * 4), False),
    "constant": (with_constant, False),
    "pool and flatten": (pooled_flat, True),
    "pool and reshape": (reshaped, True),
}


@pytest.mark.parametrize("between", PASSING)
def test_ranges_meet_in_the_middle_through_what_commutes_with_factors(tmp_path: Path, between: str) -> None:
    make, flat = PASSING[between]
    graph, data = opened(tmp_path, chain(make, flat=flat))
    after = equalize.apply(graph, Options(), Context())
    assert equal_in_float(graph, after, data)
    w1, w2 = weights(after)["w1"], weights(after)["w2"]
    mine = np.abs(w1).max(axis=(1, 2, 3))
    its = np.abs(w2.reshape(CLASSES, 8, -1)).max(axis=(0, 2)) if flat else np.abs(w2).max(axis=(0, 2, 3))
    np.testing.assert_allclose(mine, its, rtol=1e-2)
    before = np.abs(weights(graph)["w1"]).max(axis=(1, 2, 3))
    assert mine.max() / mine.min() < 0.2 * before.max() / before.min()


def relu6(b: Builder, x: str) -> str:
    return cut_at(0, 6)(b, x)


def summed(b: Builder, x: str) -> str:
    other = b.op("Conv", ["x", b.weight("w3", 8, 3, 1, 1)], "c3", kernel_shape=[1, 1])
    return b.op("Add", [x, other], "s")


def read_twice(b: Builder, x: str) -> str:
    pooled = b.op("GlobalAveragePool", [x], "gate")
    return b.op("Mul", [x, b.op("Sigmoid", [pooled], "open")], "gated")


def padded_with_ones(b: Builder, x: str) -> str:
    pads = b.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    return b.op("Pad", [x, pads, b.constant("one", np.array(1, np.float32))], "p")


@pytest.mark.parametrize(
    "between", [relu6, summed, read_twice, padded_with_ones, lambda b, x: b.op("Sigmoid", [x], "r")]
)
def test_nothing_moves_past_what_does_not_commute(
    tmp_path: Path, between: Callable[[Builder, str], str]
) -> None:
    graph, _ = opened(tmp_path, chain(between))
    assert not changed(graph, equalize.apply(graph, Options(), Context())) & {"w1", "b1", "w2"}


def test_an_answer_between_two_products_stays_what_it_is(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv("x", "c1", (3, 8))
    x = b.op("Flatten", [b.op("GlobalAveragePool", [x], "p")], "early")
    b.op("Gemm", [x, b.weight("w", 8, CLASSES)], "y")
    model = b.model([("early", (1, 8)), ("y", (1, CLASSES))], exits=("early", "y"))
    graph, _ = opened(tmp_path, model)
    assert not changed(graph, equalize.apply(graph, Options(), Context()))


def test_a_depthwise_layer_shares_with_both_its_neighbours(tmp_path: Path) -> None:
    b = Builder()
    x = b.conv("x", "c1", (3, 8), kernel=1)
    scales = (10.0 ** b.random.uniform(-2, 2, (8, 1, 1, 1))).astype(np.float32)
    dw = [
        b.constant("dw_w", b.random.normal(size=(8, 1, 3, 3)).astype(np.float32) * scales),
        b.weight("dw_b", 8),
    ]
    x = b.op("Relu", [b.op("Conv", [x, *dw], "dw_y", kernel_shape=[3, 3], group=8)], "dw")
    b.head(b.op("Sigmoid", [b.conv(x, "c2", (8, 6), kernel=1)], "end"), "y", 6)
    graph, data = opened(tmp_path, b.model([("y", (1, CLASSES))]))
    after = equalize.apply(graph, Options(), Context())
    assert equal_in_float(graph, after, data)
    w = weights(after)
    ranges = [
        np.abs(w[n]).max(axis=a) for n, a in (("c1_w", (1, 2, 3)), ("dw_w", (1, 2, 3)), ("c2_w", (0, 2, 3)))
    ]
    np.testing.assert_allclose(ranges[0], ranges[1], rtol=1e-2)
    np.testing.assert_allclose(ranges[1], ranges[2], rtol=1e-2)
    # the closed form of the paper's appendix: all three become the cube root of the product of what they were
    old = weights(graph)
    was = [
        np.abs(old[n]).max(axis=a) for n, a in (("c1_w", (1, 2, 3)), ("dw_w", (1, 2, 3)), ("c2_w", (0, 2, 3)))
    ]
    np.testing.assert_allclose(ranges[1], (was[0] * was[1] * was[2]) ** (1 / 3), rtol=2e-2)


def test_a_dead_channel_is_left_alone(tmp_path: Path) -> None:
    model = chain(lambda b, x: b.op("Relu", [x], "r"))
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w1"))
    graph, data = opened(tmp_path, model)
    after = equalize.apply(graph, Options(), Context())
    assert equal_in_float(graph, after, data)
    np.testing.assert_array_equal(weights(after)["w2"][:, 2], weights(graph)["w2"][:, 2])


def test_the_limit_holds_for_every_channel(tmp_path: Path) -> None:
    graph, data = opened(tmp_path, chain(lambda b, x: b.op("Relu", [x], "r")))
    after = equalize.apply(graph, Options(limit=2.0), Context())
    assert equal_in_float(graph, after, data)
    factor = np.abs(weights(after)["w1"]).max(axis=(1, 2, 3)) / np.abs(weights(graph)["w1"]).max(
        axis=(1, 2, 3)
    )
    assert factor.max() == pytest.approx(2, rel=1e-5)
    assert factor.min() == pytest.approx(0.5, rel=1e-5)


def test_one_scale_for_all_channels_loses_less_after_it(tmp_path: Path) -> None:
    graph, data = opened(tmp_path, chain(lambda b, x: b.op("Relu", [x], "r")))

    def per_tensor(source: Graph) -> Graph:
        model = source.copy()
        for product in products(replace(source, model=model)):
            product.value.const_value = ir.tensor(
                snap(product.array, (), GRIDS["int8"]), name=product.value.name
            )
        return source.with_model(model)

    after = equalize.apply(graph, Options(), Context())
    assert (
        answers_sqnr(graph, per_tensor(after), data, 8) > answers_sqnr(graph, per_tensor(graph), data, 8) + 5
    )


def test_a_shared_bias_is_not_changed_for_the_other_layer(tmp_path: Path) -> None:
    b = Builder()
    bias = b.weight("bias", 8)
    x = "x"
    for index, wide in enumerate((3, 8, 8)):
        x = b.op("Conv", [x, b.weight(f"w{index}", 8, wide, 3, 3), bias], f"c{index}", kernel_shape=[3, 3])
        x = b.op("Relu", [x], f"r{index}")
    b.head(x, "y", 8)
    graph, data = opened(tmp_path, b.model([("y", (1, CLASSES))]))
    after = equalize.apply(graph, Options(), Context())
    assert {"w0", "w1", "w2"} <= changed(graph, after)
    assert equal_in_float(graph, after, data)


def test_layers_that_share_their_weights_are_left(tmp_path: Path) -> None:
    b = Builder()
    w = b.weight("w", 8, 8, 3, 3)
    x = b.conv("x", "c", (3, 8))
    for name in ("one", "two"):
        x = b.op("Relu", [b.op("Conv", [x, w], f"{name}_y", kernel_shape=[3, 3])], name)
    b.head(x, "y", 8)
    graph, _ = opened(tmp_path, b.model([("y", (1, CLASSES))]))
    assert "w" not in changed(graph, equalize.apply(graph, Options(), Context()))


def test_every_pair_of_a_network_with_exits_and_skips_is_found_and_no_other(tmp_path: Path) -> None:
    graph, data = opened(tmp_path, three_exits())
    after = equalize.apply(graph, Options(), Context())
    assert equal_in_float(graph, after, data)
    # a1, a2, b2 and c2 have several readers; only the branches to the exits are chains
    assert changed(graph, after) == {"h1_w", "h1_b", "exit1_w"}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_chains_of_grouped_transposed_and_dense_products_stay_the_same_network(
    tmp_path: Path, data: st.DataObject
) -> None:
    rank, seed = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 99))
    b, x, wide = Builder(seed), "x", 4
    for index in range(data.draw(st.integers(2, 4))):
        op = data.draw(st.sampled_from(["Conv", "ConvTranspose"]))
        groups, out = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from([4, 8]))
        shape = (out, wide // groups) if op == "Conv" else (wide, out // groups)
        inputs = [x, b.weight(f"w{index}", *shape, *[2] * rank)]
        if data.draw(st.booleans()):
            inputs.append(b.weight(f"b{index}", out))
        x = b.op(op, inputs, f"c{index}", kernel_shape=[2] * rank, group=groups)
        kind: dict[str, Any] = data.draw(st.sampled_from([{}, {"Relu": {}}, {"LeakyRelu": {"alpha": 0.1}}]))
        for name, attributes in kind.items():
            x = b.op(name, [x], f"a{index}", **attributes)
        wide = out
    pooled = b.op("GlobalAveragePool", [x], "pool")
    flat = b.op("Flatten", [pooled], "flat")
    turned = data.draw(st.booleans())
    b.op(
        "Gemm",
        [flat, b.weight("w", *((5, wide) if turned else (wide, 5))), b.weight("b", 5)],
        "m",
        transB=int(turned),
    )
    b.op("MatMul", ["m", b.weight("v", 5, CLASSES)], "y")
    graph, samples = opened(tmp_path, b.model([("y", (1, CLASSES))], [("x", (1, 4, *[9] * rank))]))
    after = equalize.apply(graph, Options(), Context())
    assert equal_in_float(graph, after, samples)
    assert {"w", "v"} <= changed(graph, after)


@pytest.mark.parametrize("network", NETWORKS)
def test_equalizing_twice_changes_next_to_nothing(tmp_path: Path, network: str) -> None:
    graph, _ = opened(tmp_path, NETWORKS[network](0))
    once = equalize.apply(graph, Options(), Context())
    twice = weights(equalize.apply(once, Options(), Context()))
    for name, array in weights(once).items():
        np.testing.assert_allclose(twice[name], array, rtol=1e-2, atol=1e-5)
