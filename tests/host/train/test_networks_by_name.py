"""Every network of the table: what it takes and gives, its export, its seed; and names that are not in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.core.manifest import Tensor as Described
from edgekit.host.load import load

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.fit import reproducible  # noqa: E402
from edgekit.host.train.networks import NETWORKS, build, mobilenet, resnet  # noqa: E402
from edgekit.host.train.outputs import outputs_of  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402

IMAGE = Input(Described("image", "float32", (1, 1, 28, 28)), "NCHW", None)


@pytest.mark.parametrize("name", NETWORKS)
def test_defaults_take_small_grey_images_and_tell_ten_classes_apart(name: str, tmp_path: Path) -> None:
    module = build(name)
    logits = outputs_of(module(torch.randn(3, 1, 28, 28))).logits
    assert {tuple(each.shape) for each in logits} == {(3, 10)}
    file = tmp_path / "m.onnx"
    file.write_bytes(to_onnx(module, IMAGE))
    assert len(load(file).graph.exits) == len(logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_decides_the_weights(name: str) -> None:
    made = []
    for seed in (1, 1, 2):
        with reproducible(seed, 1):
            made.append(torch.cat([value.detach().flatten() for value in build(name).parameters()]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_config_is_a_frozen_record(name: str) -> None:
    config = NETWORKS[name].config()
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, 1)


def test_a_name_that_is_not_known_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"must be one of small, .*resnet20, .*mobilenet.*, got 'nothing'"):
        build("nothing")


def test_a_config_of_another_network_is_refused() -> None:
    with pytest.raises(BadInput, match=r"resnet20 wants its own Config, got .*mobilenet\.Config"):
        build("resnet20", mobilenet.Config())


def test_a_config_of_the_papers_is_built_under_the_same_name() -> None:
    made = build("resnet20", resnet.RESNET20_CIFAR)
    assert made(torch.randn(2, 3, 32, 32)).shape == (2, 10)
