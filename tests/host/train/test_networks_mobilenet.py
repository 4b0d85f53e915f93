"""MobileNet: counts of both papers by closed form, shortcuts, and a short training that learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from exported import parameters_and_macs

from edgekit.core.errors import BadInput

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.networks.mobilenet import Block, Config, MobileNet, v1, v2  # noqa: E402

Row = tuple[int, int, int, int, int]  # kernel, before, after, groups, stride

# Howard et al. 2017, table 1: (channels before, after, stride of the depthwise convolution)
V1 = (
    *((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)),
    *[(512, 512, 1)] * 5,
    *((512, 1024, 2), (1024, 1024, 1)),
)
# Sandler et al. 2018, table 2: (t, c, n, s)
V2 = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def v1_rows() -> list[Row]:
    rows: list[Row] = [(3, 3, 32, 1, 2)]
    for before, after, stride in V1:
        rows += [(3, before, before, before, stride), (1, before, after, 1, 1)]
    return rows


def v2_rows() -> list[Row]:
    rows: list[Row] = [(3, 3, 32, 1, 2)]
    before = 32
    for t, after, n, s in V2:
        for place in range(n):
            wide = t * before
            rows += [(1, before, wide, 1, 1)] if t > 1 else []
            rows += [(3, wide, wide, wide, 1 if place else s), (1, wide, after, 1, 1)]
            before = after
    return [*rows, (1, before, 1280, 1, 1)]


def counts(rows: Sequence[Row], side: int, classes: int) -> tuple[int, int]:
    """(parameters, MACs): convolutions with a batch norm each, then a dense layer with biases."""
    parameters = macs = 0
    for kernel, before, after, groups, stride in rows:
        side = -(-side // stride)
        weights = kernel**2 * before * after // groups
        parameters += weights + 2 * after
        macs += weights * side**2
    wide = rows[-1][2]
    return parameters + (wide + 1) * classes, macs + wide * classes


def counted(config: Config, side: int, folder: Path) -> tuple[int, int]:
    """The same of the network itself."""
    return parameters_and_macs(MobileNet(config), config.channels, side, folder)


def test_v1_has_the_papers_parameters_and_macs(tmp_path: Path) -> None:
    parameters, macs = counted(v1(), 224, tmp_path)
    assert (parameters, macs) == counts(v1_rows(), 224, 1000)
    assert round(parameters / 1e6, 1) == 4.2
    assert round(macs / 1e6) == 569


def test_v2_has_the_papers_parameters_and_macs(tmp_path: Path) -> None:
    parameters, macs = counted(v2(), 224, tmp_path)
    assert (parameters, macs) == counts(v2_rows(), 224, 1000)
    assert parameters / 1e6 == pytest.approx(3.4, abs=0.11)  # the paper leaves out batch norms
    assert round(macs / 1e6) == pytest.approx(300, abs=1)


def test_a_shortcut_is_there_where_the_shape_stays_and_only_in_v2() -> None:
    module = MobileNet(Config(blocks=(Block(2, 16, 2, 2), Block(0, 16), Block(1, 16), Block(2, 24)), last=0))
    assert [each.residual for each in module.layers if hasattr(each, "residual")] == [
        False,  # stride 2
        True,
        False,  # as in v1
        True,
        False,  # other channels
    ]


def test_a_residual_block_adds_its_input() -> None:
    module = MobileNet(Config(blocks=(Block(2, 16),), last=0)).eval()
    block = module.layers[-1]
    for value in block.layers[-1].parameters():
        value.data.zero_()  # the last batch norm
    image = torch.randn(2, 16, 5, 5)
    assert torch.equal(block(image), image)


def test_activations_end_at_six_where_the_paper_says_so() -> None:
    with torch.no_grad():
        active = MobileNet(Config(most=6.0)).layers[2]
        assert active(torch.tensor([-1.0, 3.0, 9.0])).tolist() == [0.0, 3.0, 6.0]
        assert MobileNet(Config()).layers[2](torch.tensor([-1.0, 9.0])).tolist() == [0.0, 9.0]


@pytest.mark.parametrize("expand", [0, 2])
def test_a_few_steps_of_training_lower_the_loss(expand: int) -> None:
    torch.manual_seed(0)
    blocks = (Block(expand, 16), Block(expand, 16), Block(expand, 24, 1, 2))
    module = MobileNet(Config(classes=4, stem=(16, 2), blocks=blocks, last=32))
    labels = torch.arange(32) % 4
    images = torch.randn(32, 1, 12, 12) + labels[:, None, None, None]
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


BAD: list[dict[str, Any]] = [
    {"blocks": ()},
    {"classes": 0},
    {"stem": (0, 1)},
    {"last": -1},
    {"blocks": (Block(1, 16, 0),)},
    {"blocks": (Block(-1, 16),)},
]


@pytest.mark.parametrize("options", BAD)
def test_a_config_that_makes_no_network_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="mobilenet: needs blocks, and sizes of at least 1"):
        Config(**options)
