"""Harm per layer: each layer's own error, whatever happens to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import NETWORKS, save, three_exits, write_data

from edgekit.host.calibrate import in_parts
from edgekit.host.graph import Graph
from edgekit.host.harm import layer_harm
from edgekit.host.load import load
from edgekit.host.passes import Context, run_steps, step
from edgekit.host.passes._grid import GRIDS, products, snap
from edgekit.host.sqnr import answers_sqnr, decibel, layer_sqnr
from edgekit.runtime.data import Data, load_data


def opened(tmp_path: Path, network: str, seed: int = 0) -> tuple[Graph, Data]:
    graph = load(save(NETWORKS[network](seed), tmp_path / "m.onnx")).graph
    data = load_data(write_data(tmp_path / "d.npz", graph.inputs[0].tensor.shape[1:], 8), graph.inputs)
    return run_steps(graph, [step("confidence"), step("fold")], Context(data)), data


def with_one_layer_coarse(graph: Graph, name: str, form: str = "int4") -> Graph:
    model = graph.copy()
    for product in products(replace(graph, model=model)):
        if product.name == name:
            array = snap(product.array, product.axes, GRIDS[form])
            product.value.const_value = ir.tensor(array, name=product.value.name)
    return graph.with_model(model)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(NETWORKS)), st.integers(0, 9))
def test_every_weight_only_layer_costs_what_it_costs_when_it_alone_is_rounded(
    tmp_path: Path, network: str, seed: int
) -> None:
    plain, data = opened(tmp_path, network, seed)
    quantized = run_steps(
        plain, [step("quantize_weights", format="int4", clip="max", min_size=1)], Context(data)
    )
    found = layer_harm(plain, quantized, data, samples=8, output_samples=8)
    assert set(found) == {product.name for product in products(plain)}
    for product in products(plain):
        alone = with_one_layer_coarse(plain, product.name)
        harm = found[product.name]
        local = layer_sqnr(plain, alone, data, 8)[product.node.outputs[0].name or ""]
        assert harm.local_sqnr_db == pytest.approx(local, abs=0.01)
        assert harm.output_sqnr_db == pytest.approx(relative(plain, alone, data), abs=0.01)


def relative(plain: Graph, other: Graph, data: Data) -> float:
    """The mean over outputs of noise over signal, in dB."""
    shares = []
    for entry in plain.exits:
        db = answers_sqnr(*(replace(graph, exits=(entry,)) for graph in (plain, other)), data, 8)
        shares.append(10 ** (-db / 10))
    return decibel(1.0, float(np.mean(shares)))


def test_static_int8_counts_the_inputs_rounding_too(make: Callable) -> None:
    made = make(three_exits(channels=16))
    found = layer_harm(made.plain, made.quantized, made.data)
    assert {"n_a1_y", "n_a2_y", "n_b_sum", "n_exit3"} <= set(found)
    assert all(25 < harm.local_sqnr_db < 80 for harm in found.values())
    assert all(harm.output_sqnr_db is not None and 20 < harm.output_sqnr_db < 80 for harm in found.values())
    assert found["n_a2_y"].op == "Conv"
    # errors that add up are larger than each of them
    whole = answers_sqnr(made.plain, made.quantized, made.data, 4)
    assert whole < min(harm.output_sqnr_db or 0 for harm in found.values()) + 3


def test_only_the_layer_that_is_hurt_stands_out(make: Callable) -> None:
    made = make(three_exits(channels=16))
    broken = made.quantized.copy()
    (codes,) = [
        value.producer().inputs[0]
        for node in broken.graph
        if node.name == "n_b1"
        for value in [node.inputs[1]]
    ]
    coarse = (codes.const_value.numpy() // 32 * 32).astype(np.int8)
    codes.const_value = ir.tensor(coarse, name=codes.name)
    good = layer_harm(made.plain, made.quantized, made.data)
    bad = layer_harm(made.plain, replace(made.quantized, model=broken), made.data)
    assert bad["n_b1"].local_sqnr_db < good["n_b1"].local_sqnr_db - 10
    assert bad["n_b1"].output_sqnr_db < good["n_b1"].output_sqnr_db - 8
    for name in set(good) - {"n_b1"}:
        assert bad[name].local_sqnr_db == pytest.approx(good[name].local_sqnr_db, abs=1e-6)


def test_a_float_network_has_nothing_to_tell(make: Callable) -> None:
    made = make(three_exits())
    assert layer_harm(made.plain, made.plain, made.data) == {}


def test_only_what_is_asked_for_is_measured(make: Callable) -> None:
    made = make(three_exits())
    before = made.plain.fingerprint(), made.quantized.fingerprint()
    found = layer_harm(made.plain, made.quantized, made.data, output_samples=0, names=("n_a1_y",))
    assert set(found) == {"n_a1_y"}
    assert found["n_a1_y"].output_sqnr_db is None
    assert (made.plain.fingerprint(), made.quantized.fingerprint()) == before


def test_a_network_too_large_to_be_held_at_once_is_compared_in_parts(
    make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(three_exits(), count=6)
    wanted = (
        layer_harm(made.plain, made.quantized, made.data),
        layer_sqnr(made.plain, made.quantized, made.data),
    )
    seen: list[int] = []

    def small(graph: Graph, names: Iterable[str]) -> list[list[str]]:
        parts = in_parts(graph, names, most_bytes=10_000)
        seen.append(len(parts))
        return parts

    monkeypatch.setattr("edgekit.host.harm.in_parts", small)
    monkeypatch.setattr("edgekit.host.sqnr.in_parts", small)
    again = (
        layer_harm(made.plain, made.quantized, made.data),
        layer_sqnr(made.plain, made.quantized, made.data),
    )
    assert list(again[0]) == list(wanted[0])
    for name, harm in wanted[0].items():
        assert again[0][name].local_sqnr_db == pytest.approx(harm.local_sqnr_db, abs=0.1)
    assert again[1] == pytest.approx(wanted[1], abs=0.1)
    assert min(seen) > 2


def test_the_harm_to_the_answers_of_a_large_network_is_taken_on_fewer_samples(
    make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(three_exits(), count=6)
    few = layer_harm(made.plain, made.quantized, made.data, output_samples=1)
    monkeypatch.setattr("edgekit.host.harm._MOST_MACS", 1)
    assert layer_harm(made.plain, made.quantized, made.data) == few
