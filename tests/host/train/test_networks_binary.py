"""LFC and CNV: the published counts, exits, what sides they take, sizes of the exported files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.core.manifest import Tensor as Described
from edgekit.host.load import load
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.split import split
from edgekit.host.work import layers

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.fit import reproducible  # noqa: E402
from edgekit.host.train.networks import BINARY_NETWORKS, build, cnv, lfc  # noqa: E402
from edgekit.host.train.outputs import outputs_of  # noqa: E402
from edgekit.host.train.quantized import quantized_layers  # noqa: E402
from edgekit.host.train.to_qonnx import to_qonnx  # noqa: E402

PUBLISHED = cnv.Config(side=32, channels=3)


def pixels(config: Any, count: int = 2) -> Any:
    torch.manual_seed(0)
    return torch.randint(0, 256, (count, config.channels, config.side, config.side)).float()


def weights(module: Any) -> list[int]:
    return [layer.weight.numel() for layer in quantized_layers(module)]


def written(module: Any, config: cnv.Config, folder: Path) -> Path:
    image = Input(Described("image", "uint8", (1, config.channels, config.side, config.side)), "NCHW", None)
    file = folder / "m.onnx"
    file.write_bytes(to_qonnx(module, image))
    return file


def macs(file: Path) -> list[float]:
    return [
        sum(layer.macs for layer in layers(stage.model))
        for stage in split(fold(load(file).graph, NoOptions(), Context()))
    ]


def test_lfc_has_the_published_2_91_million_weights() -> None:
    module = build("lfc")
    assert weights(module) == [784 * 1024, 1024**2, 1024**2, 10240]
    assert round(sum(weights(module)) / 1e6, 2) == 2.91


def test_cnv_has_the_published_1_54_million_weights_and_its_layers_products(tmp_path: Path) -> None:
    module = build("cnv", PUBLISHED)
    sides = [(30, 3, 64), (28, 64, 64), (12, 64, 128), (10, 128, 128), (3, 128, 256), (1, 256, 256)]
    convolutions = [9 * before * after for _, before, after in sides]
    dense = [256 * 512, 512 * 512, 5120]
    assert weights(module) == [*convolutions, *dense]
    assert round(sum(weights(module)) / 1e6, 2) == 1.54
    products = sum(side**2 * each for (side, *_), each in zip(sides, convolutions, strict=True))
    assert macs(written(module, PUBLISHED, tmp_path)) == [products + sum(dense)]


def test_lfc_sees_no_more_of_a_pixel_than_its_half() -> None:
    module = build("lfc").eval()
    torch.manual_seed(0)
    bright = torch.rand(3, 1, 28, 28) < 0.4
    with torch.no_grad():
        strong, weak = (module(torch.where(bright, top, low)) for top, low in ((255.0, 0.0), (128.0, 127.0)))
    assert torch.equal(strong, weak)
    assert len(strong.unique()) > 1


def test_a_small_image_is_as_one_with_black_around_it() -> None:
    with reproducible(1, 1):
        small = build("cnv", cnv.Config(side=28, width=0.1)).eval()
    large = build("cnv", cnv.Config(side=32, width=0.1)).eval()
    large.load_state_dict(small.state_dict())
    image = pixels(cnv.Config())
    with torch.no_grad():
        assert torch.equal(small(image)[0], large(torch.nn.functional.pad(image, (2, 2, 2, 2)))[0])


@pytest.mark.parametrize("exits", [0, 1, 2])
def test_exits_stand_in_order_and_cost_what_stands_before_them(exits: int, tmp_path: Path) -> None:
    config = cnv.Config(width=0.25, exits=exits)
    module = build("cnv", config)
    assert {tuple(each.shape) for each in outputs_of(module(pixels(config))).logits} == {(2, 10)}
    file = written(module, config, tmp_path)
    assert [entry.name for entry in load(file).graph.exits] == (
        [f"exit{place + 1}" for place in range(exits + 1)] if exits else ["final"]
    )
    spent = macs(file)
    shares = np.cumsum(spent) / sum(spent)
    assert shares[-1] == 1
    if exits == 2:
        assert shares[0] < 0.1
    if exits:
        assert 0.4 < shares[-2] < 0.6


def test_activations_of_two_bits_tell_three_levels_and_are_exported(tmp_path: Path) -> None:
    config = cnv.Config(width=0.125, exits=1, activation_bits=2)
    module = build("cnv", config)
    for _ in range(3):
        module(pixels(config, 20))  # statistics
    with torch.no_grad():
        assert module.eval().first(pixels(config, 20)).unique().tolist() == [-1, 0, 1]
    proto = onnx.load(written(module, config, tmp_path))  # compared with the module on the way
    assert {node.op_type for node in proto.graph.node if node.domain} == {"BipolarQuant", "Quant"}


def test_an_early_exit_leaves_the_last_answer_as_it_was() -> None:
    plain, early = (build("cnv", cnv.Config(width=0.25, exits=exits)).eval() for exits in (0, 2))
    plain.load_state_dict(early.state_dict(), strict=False)
    image = pixels(cnv.Config())
    with torch.no_grad():
        assert torch.equal(plain(image)[-1], early(image)[-1])


@pytest.mark.parametrize(("name", "most"), [("lfc", 424_000), ("cnv", 250_000)])
def test_a_file_holds_one_bit_per_weight(name: str, most: int, tmp_path: Path) -> None:
    module = build(name)
    for value in module.buffers():  # no two statistics alike: equal tensors are stored once
        if value.is_floating_point():
            value.add_(torch.rand_like(value))
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.01 * torch.randn_like(value))
    size = written(module, cnv.Config(), tmp_path).stat().st_size
    assert sum(weights(module)) / 8 < size < most
    norms = sum(value.numel() for value in module.state_dict().values() if value.ndim == 1)
    assert size - sum(math.ceil(each / 8) for each in weights(module)) - 4 * norms < 22_000


@pytest.mark.parametrize("name", BINARY_NETWORKS)
def test_the_seed_decides_the_weights(name: str) -> None:
    made = []
    for seed in (1, 1, 2):
        with reproducible(seed, 1):
            made.append(torch.cat([value.detach().flatten() for value in build(name).parameters()]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("name", BINARY_NETWORKS)
def test_a_config_is_a_frozen_record(name: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BINARY_NETWORKS[name].config().classes = 3


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (lfc.Config, {"widths": ()}, "needs hidden layers"),
    (lfc.Config, {"pixels": 0}, "at least 1"),
    (lfc.Config, {"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    (cnv.Config, {"activation_bits": 3}, "1 or 2 bits, got 3"),
    (cnv.Config, {"exits": 3}, "exits must be 0 to 2, got 3"),
    (cnv.Config, {"side": 33}, "even and at most 32, got 33"),
    (cnv.Config, {"side": 27}, "even and at most 32, got 27"),
    (cnv.Config, {"width": 0.001}, "at least 1"),
]


@pytest.mark.parametrize(("config", "options", "said"), BAD)
def test_a_config_that_makes_no_network_is_refused(config: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        config(**options)
