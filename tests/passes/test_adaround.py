"""AdaRound: weights on the grid that a later pass finds again, outputs closer to float than nearest rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import CLASSES, NETWORKS, Builder, perceptron, save, three_exits, write_data

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, initializers
from edgekit.host.load import load
from edgekit.host.passes import adaround
from edgekit.host.passes._grid import GRIDS, products, quantize, rows, snap
from edgekit.host.passes.adaround import Options
from edgekit.host.passes.base import Context
from edgekit.host.sqnr import answers_sqnr
from edgekit.runtime.data import Data, load_data

QUICK = Options(format="int4", iterations=20)


def opened(tmp_path: Path, model: onnx.ModelProto, count: int = 24) -> tuple[Graph, Data]:
    graph = load(save(model, tmp_path / "m.onnx")).graph
    return graph, load_data(
        write_data(tmp_path / "d.npz", graph.inputs[0].tensor.shape[1:], count), graph.inputs
    )


def nearest(graph: Graph, form: str, clip: str, block: int = 0) -> Graph:
    model = graph.copy()
    for product in products(replace(graph, model=model)):
        array = snap(product.array, product.axes, GRIDS[form], block=block, clip=clip)
        product.value.const_value = ir.tensor(array, name=product.value.name)
    return graph.with_model(model)


def best_of_nearest(graph: Graph, data: Data, form: str, block: int = 0) -> float:
    return max(answers_sqnr(graph, nearest(graph, form, clip, block), data, 64) for clip in ("max", "mse"))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("block", [0, 5])
def test_the_next_pass_finds_the_same_grid_again(tmp_path: Path, network: str, block: int) -> None:
    graph, data = opened(tmp_path, NETWORKS[network](0))
    rounded = adaround.apply(graph, replace(QUICK, block=block, clip="mse"), Context(data))
    for product in products(rounded):
        for clip in ("max", "mse"):
            again = snap(product.array, product.axes, GRIDS["int4"], block=block, clip=clip)
            np.testing.assert_array_equal(again, product.array)
        layout = rows(product.array.shape, product.axes, block)
        assert np.unique(quantize(layout.take(product.array), GRIDS["int4"])[0]).size <= 15


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_int4_answers_are_nearer_to_float_than_with_nearest_rounding(
    tmp_path: Path, network: str, seed: int
) -> None:
    graph, data = opened(tmp_path, NETWORKS[network](seed), 48)
    seen, unseen = data.subset(range(32)), data.subset(range(32, 48))
    rounded = adaround.apply(graph, Options(format="int4", iterations=100), Context(seen))
    assert answers_sqnr(graph, rounded, unseen, 64) > best_of_nearest(graph, unseen, "int4")


@pytest.mark.parametrize("how", [{"asymmetric": False}, {"clip": "max"}, {"iterations": 0}, {"block": 8}])
def test_every_variant_gains(tmp_path: Path, how: dict[str, object]) -> None:
    graph, data = opened(tmp_path, three_exits(channels=16), 48)
    rounded = adaround.apply(graph, replace(QUICK, **how), Context(data))  # type: ignore[arg-type]
    block = int(how.get("block", 0))  # type: ignore[call-overload]
    assert answers_sqnr(graph, rounded, data, 64) > best_of_nearest(graph, data, "int4", block) + 1


def test_what_a_weight_is_not_rounded_for_stays(tmp_path: Path) -> None:
    graph, data = opened(tmp_path, three_exits())
    before = {value.name: value.const_value.numpy() for value in initializers(graph.model)}  # type: ignore[union-attr]

    def changed(options: Options) -> set[str]:
        after = initializers(adaround.apply(graph, options, Context(data)).model)
        return {v.name for v in after if not np.array_equal(v.const_value.numpy(), before[v.name])}  # type: ignore[union-attr,misc]

    assert changed(replace(QUICK, layers=("n_a1_y",))) == {"a1_w"}
    every = changed(QUICK)
    assert {"a1_w", "exit1_w"} <= every
    assert not any(str(name).endswith("_b") for name in every)
    assert every - changed(replace(QUICK, keep_float=("n_a1_y", "n_exit1"))) == {"a1_w", "exit1_w"}
    assert every - changed(replace(QUICK, min_size=8 * CLASSES + 1)) == {"exit1_w", "exit2_w", "exit3_w"}


@pytest.mark.parametrize(("key", "what"), [("layers", "product"), ("keep_float", "node")])
def test_an_unknown_layer_is_refused(tmp_path: Path, key: str, what: str) -> None:
    graph, data = opened(tmp_path, perceptron())
    with pytest.raises(BadInput, match=f"adaround: {key} names no {what}.* of the model: nowhere"):
        adaround.apply(graph, replace(QUICK, **{key: ("nowhere",)}), Context(data))


def test_it_needs_data(tmp_path: Path) -> None:
    graph, _ = opened(tmp_path, perceptron())
    with pytest.raises(BadInput, match="adaround needs calibration data"):
        adaround.apply(graph, QUICK, Context())


def test_weights_of_seven_bits_have_codes_up_to_64(tmp_path: Path) -> None:
    graph, data = opened(tmp_path, perceptron())
    rounded = adaround.apply(graph, Options(reduce_range=True, iterations=0), Context(data))
    for product in products(rounded):
        largest = np.abs(product.array).max(axis=0)
        codes = product.array / (largest / 64)
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)


def test_a_weight_that_two_layers_share_serves_both(tmp_path: Path) -> None:
    b = Builder()
    w = b.weight("w", 8, 8, 3, 3)
    x = b.conv("x", "stem", (3, 8))
    for name in ("one", "two"):
        made = b.op("Conv", [x, w], f"{name}_y", kernel_shape=[3, 3], pads=[1] * 4)
        x = b.op("Relu", [made], name)
    b.head(x, "y", 8)
    graph, data = opened(tmp_path, b.model([("y", (1, CLASSES))]))
    rounded = adaround.apply(graph, QUICK, Context(data))
    assert sum(value.name == "w" for value in initializers(rounded.model)) == 1
    assert answers_sqnr(graph, rounded, data, 64) > best_of_nearest(graph, data, "int4")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_grouped_dilated_and_transposed_products_of_any_rank(tmp_path: Path, data: st.DataObject) -> None:
    rank, groups, seed = (data.draw(st.integers(*span)) for span in ((1, 3), (1, 3), (0, 99)))
    dilation = data.draw(st.integers(1, 2))
    b = Builder(seed)
    wide = 2 * groups
    attributes = {"kernel_shape": [3] * rank, "dilations": [dilation] * rank, "group": groups}
    x = b.op("Conv", ["x", b.weight("w1", wide, wide // groups, *[3] * rank)], "c1", **attributes)
    x = b.op("Relu", [x], "r")
    b.op("ConvTranspose", [x, b.weight("w2", wide, 3, *[3] * rank)], "y", strides=[2] * rank, **attributes)
    side = 7 - 2 * dilation
    out = 2 * (side - 1) + 2 * dilation + 1
    model = b.model([("y", (1, 3 * groups, *[out] * rank))], [("x", (1, wide, *[7] * rank))])
    graph, samples = opened(tmp_path, model, 8)
    rounded = adaround.apply(graph, replace(QUICK, asymmetric=False), Context(samples))
    assert answers_sqnr(graph, rounded, samples, 8) > best_of_nearest(graph, samples, "int4") - 0.5
    for product in products(rounded):
        np.testing.assert_array_equal(snap(product.array, product.axes, GRIDS["int4"]), product.array)


def test_a_dense_layer_of_more_inputs_than_samples_is_not_fitted_to_them(tmp_path: Path) -> None:
    b = Builder()
    x = b.op("Relu", [b.op("Gemm", ["x", b.weight("w1", 20, 300)], "g1")], "r1")
    b.op("Gemm", [x, b.weight("w2", 300, CLASSES)], "y")
    graph, data = opened(tmp_path, b.model([("y", (1, CLASSES))], [("x", (1, 20))]), 200)
    rounded = adaround.apply(graph, QUICK, Context(data.subset(range(16))))
    unseen = data.subset(range(16, 200))
    assert answers_sqnr(graph, rounded, unseen, 200) > best_of_nearest(graph, unseen, "int4")


@pytest.mark.parametrize("stages", [1, 3])
def test_fewer_stages_run_the_network_less_and_gain_too(tmp_path: Path, stages: int) -> None:
    graph, data = opened(tmp_path, three_exits(channels=16), 48)
    rounded = adaround.apply(graph, replace(QUICK, stages=stages), Context(data))
    assert answers_sqnr(graph, rounded, data, 64) > best_of_nearest(graph, data, "int4") + 1


def test_channels_that_are_always_zero_do_no_harm(tmp_path: Path) -> None:
    b = Builder()
    w = b.random.normal(size=(8, 3, 3, 3)).astype(np.float32)
    bias = np.zeros(8, np.float32)
    w[2], bias[2:4] = 0, (-1, -1000)  # two channels that the ReLU cuts off
    x = b.op("Conv", ["x", b.constant("w", w), b.constant("b", bias)], "c1", kernel_shape=[3, 3])
    x = b.conv(b.op("Relu", [x], "r1"), "deep", (8, 8), group=8)
    b.head(b.conv(x, "last", (8, 8)), "y", 8)
    graph, data = opened(tmp_path, b.model([("y", (1, CLASSES))]))
    rounded = adaround.apply(graph, QUICK, Context(data))
    assert answers_sqnr(graph, rounded, data, 64) > best_of_nearest(graph, data, "int4")


def test_progress_counts_every_layer(tmp_path: Path) -> None:

    graph, data = opened(tmp_path, three_exits())
    ticks: list[int] = []

    @contextlib.contextmanager
    def watch(what: str, total: int) -> Iterator[Callable[[int], None]]:
        assert (what, total) == ("adaround", len(products(graph)))
        yield ticks.append

    adaround.apply(graph, replace(QUICK, iterations=0), Context(data, watch=watch))
    assert sum(ticks) == len(products(graph))
