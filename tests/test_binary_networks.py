"""The binary networks other tests are tried on: valid QONNX, the same for the same seed, and what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from binary_networks import (
    ACTS,
    BLOCKS,
    CLASSES,
    FIRST,
    HEADS,
    MARGIN,
    SCALES,
    WEIGHTS,
    binary_inputs,
    binary_network,
)
from networks import save
from onnx import helper

from edgekit.host.load import load
from edgekit.host.ort import open_model


def run(model: onnx.ModelProto, folder: Path, inner: list[str]) -> list[np.ndarray]:
    """Outputs and inner tensors of the network as standard operators, for one input."""
    graph = load(save(model, folder / "m.onnx")).graph
    proto = graph.proto()
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    return list(open_model(proto.SerializeToString()).run(None, {"x": binary_inputs(model, 1)[0]}))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("seed", range(8))
def test_every_network_comes_in_and_runs(seed: int, scales: str, tmp_path: Path) -> None:
    model = binary_network(seed, scales=scales)
    for y in run(model, tmp_path, []):
        assert y.shape == (1, CLASSES)
        assert np.isfinite(y).all()


@pytest.mark.parametrize(
    "asked",
    [
        *({"weights": (kind,)} for kind in WEIGHTS),
        *({"acts": (kind,)} for kind in ACTS),
        *({"first": first} for first in FIRST),
        *({"blocks": (block,), "kind": "image", "length": 2} for block in BLOCKS),
        *({"heads": (head,), "kind": "image"} for head in HEADS),
        {"kind": "vector", "length": 3},
    ],
    ids=str,
)
def test_every_kind_can_be_asked_for_alone(asked: dict[str, object], tmp_path: Path) -> None:
    for seed in range(2):
        run(binary_network(seed, **asked), tmp_path, [])  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_network_and_another_another() -> None:
    assert binary_network(7) == binary_network(7)
    assert binary_network(7) != binary_network(8)


def test_gammas_have_either_sign_and_some_are_zero() -> None:
    found: list[float] = []
    for seed in range(20):
        model = binary_network(seed, blocks=("conv",))
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
        found += [float(value) for node in norms for value in weights[node.input[1]]]
    assert min(found) < 0 < max(found)
    assert 0.0 in found


@pytest.mark.parametrize("seed", range(12))
def test_no_value_stands_beside_a_sign_so_near_that_rounding_decides(seed: int, tmp_path: Path) -> None:
    model = binary_network(seed, acts=("a1",), scales="any")
    norms = {node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"}
    asked = [
        node.input[0]
        for node in model.graph.node
        if node.op_type == "BipolarQuant" and node.input[0] in norms
    ]
    for before in run(model, tmp_path, asked)[len(model.graph.output) :]:
        off = np.abs(before[before != 0])
        assert (
            off.min(initial=1.0) > MARGIN * 1e-3
        )  # a step of the sums is at least 1/1000 of the deviation here


def test_inputs_fit() -> None:
    for first, kind in (("uint8", np.uint8), ("quant8", np.float32)):
        model = binary_network(1, first=first)
        shape = tuple(size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim)
        found = binary_inputs(model, 3, seed=4)
        assert [(x.shape, x.dtype) for x in found] == [(shape, kind)] * 3
