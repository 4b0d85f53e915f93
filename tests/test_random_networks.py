"""The networks other tests are tried on: valid, runnable, the same for the same seed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from random_networks import BLOCKS, KINDS, input_shape, random_network

from edgekit.host.ort import open_model


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    x = np.random.default_rng(0).normal(size=input_shape(model)).astype(np.float32)
    return open_model(model.SerializeToString()).run(None, {"x": x})


@pytest.mark.parametrize("seed", range(40))
def test_every_network_is_valid_and_runs(seed: int) -> None:
    model = random_network(seed)
    onnx.checker.check_model(model, full_check=True)
    assert all(np.isfinite(array).all() for array in run(model))


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_every_kind_exists_in_every_opset(kind: str, opset: int) -> None:
    for seed in range(4):
        model = random_network(seed, kind=kind, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        run(model)


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block_can_be_asked_for_alone(block: str) -> None:
    for seed in range(4):
        run(random_network(seed, kind="image", blocks=(block,), length=2))


def test_the_same_seed_gives_the_same_network_and_another_another() -> None:
    assert random_network(7) == random_network(7)
    assert random_network(7) != random_network(8)
