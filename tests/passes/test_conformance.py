"""What every pass must do: leave its input alone, keep the graph valid, stay within the error it states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import NETWORKS, save, write_data

from edgekit.host.graph import Graph, model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.passes import PASSES, Context
from edgekit.host.sqnr import decibel
from edgekit.runtime.data import Data, load_data

CASES = [(step, network, seed) for step in PASSES for network in NETWORKS for seed in (0, 1)]


def loaded(tmp_path: Path, maker: Callable[[int], onnx.ModelProto], seed: int) -> tuple[Graph, Data]:
    graph = load(save(maker(seed), tmp_path / "m.onnx")).graph
    shape = graph.inputs[0].tensor.shape[1:]
    return graph, load_data(write_data(tmp_path / "d.npz", shape, 16, seed), graph.inputs)


@pytest.mark.parametrize(("name", "network", "seed"), CASES)
def test_a_pass_keeps_to_its_word(tmp_path: Path, name: str, network: str, seed: int) -> None:
    step = PASSES[name]
    graph, data = loaded(tmp_path, NETWORKS[network], seed)
    known = Context(data, graph)
    before = graph.fingerprint()
    after = step.apply(graph, step.options(), known)
    assert graph.fingerprint() == before, "the input changed"
    again = Context(data, graph)  # which remembers nothing of the first time
    assert step.apply(graph, step.options(), again).fingerprint() == after.fingerprint(), (
        "the same input gave another graph"
    )
    onnx.checker.check_model(onnx.load_model_from_string(model_bytes(after.model)), full_check=True)
    assert after.inputs == graph.inputs
    assert [(e.name, e.output) for e in after.exits] == [(e.name, e.output) for e in graph.exits]
    names = [entry.output for entry in graph.exits]
    old, new = open_model(model_bytes(graph.model)), open_model(model_bytes(after.model))
    signal = noise = 0.0
    for index in range(data.count):
        pairs = zip(old.run(names, data.inputs(index)), new.run(names, data.inputs(index)), strict=True)
        for want, got in pairs:
            assert want.shape == got.shape
            signal += float(np.square(want, dtype=np.float64).sum())
            noise += float(np.square(want.astype(np.float64) - got).sum())
    assert decibel(signal, noise) >= step.min_sqnr_db


def test_the_table_names_each_pass_by_its_own_name() -> None:
    assert all(name == step.name for name, step in PASSES.items())
