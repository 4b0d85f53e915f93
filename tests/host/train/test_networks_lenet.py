"""LeNet-300-100 and LeNet-5: the published counts, the closed forms, the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.core.manifest import Tensor as Described
from edgekit.host.load import load
from edgekit.host.work import layers

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.networks import build  # noqa: E402
from edgekit.host.train.networks.lenet import Convolutions, Dense  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [("lenet-300-100", Dense(), 266_610), ("lenet-5", Convolutions(), 431_080)],
)
def test_parameters_are_the_published_ones_and_macs_those_of_the_file(
    name: str, config: Any, parameters: int, tmp_path: Path
) -> None:
    module = build(name, config)
    assert sum(each.numel() for each in module.parameters()) == config.parameters() == parameters
    image = Input(Described("image", "float32", (1, 1, 28, 28)), "NCHW", None)
    path = tmp_path / "m.onnx"
    path.write_bytes(to_onnx(module, image))
    assert sum(layer.macs for layer in layers(load(path).graph.model)) == config.macs()


def test_other_sizes_follow_the_closed_forms() -> None:
    dense, convolutions = Dense(8, 3, 4, (5, 6, 7)), Convolutions(32, 3, 4, (6, 7), 8)
    for name, config in (("lenet-300-100", dense), ("lenet-5", convolutions)):
        module = build(name, config)
        assert sum(each.numel() for each in module.parameters()) == config.parameters()
        assert module(torch.zeros(2, 3, config.side, config.side)).shape == (2, 4)


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 1"):
        Dense(widths=(0,))
    with pytest.raises(BadInput, match="side must leave even maps"):
        Convolutions(side=27)
    with pytest.raises(BadInput, match="at least 1"):
        Convolutions(hidden=0)
