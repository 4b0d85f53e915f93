"""ResNet: counts of the paper by closed form, shortcuts, and a short training that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exported import parameters_and_macs

from edgekit.core.errors import BadInput

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.networks.resnet import RESNET20_CIFAR, Config, ResNet  # noqa: E402


def counts(config: Config, side: int) -> tuple[int, int]:
    """(parameters, MACs) by hand: He et al. 2016, section 4.2, with shortcuts as the config says."""
    width, parameters, macs = config.widths[0], 0, 0

    def conv(before: int, after: int, kernel: int) -> None:
        nonlocal parameters, macs
        parameters += kernel**2 * before * after + 2 * after  # and a batch norm
        macs += kernel**2 * before * after * side**2

    side //= config.stem_stride
    conv(config.channels, width, 3)
    for stage, after in enumerate(config.widths):
        side = -(-side // 2) if stage else side
        if config.shortcut == "projection" and stage:
            conv(width, after, 1)
        for place in range(config.blocks):
            conv(width if place == 0 else after, after, 3)
            conv(after, after, 3)
        width = after
    return parameters + width * config.classes + config.classes, macs + width * config.classes


def counted(config: Config, side: int, folder: Path) -> tuple[int, int]:
    """The same of the network itself."""
    return parameters_and_macs(ResNet(config), config.channels, side, folder)


def test_resnet20_has_the_papers_parameters_and_macs(tmp_path: Path) -> None:
    parameters, macs = counted(RESNET20_CIFAR, 32, tmp_path)
    assert (parameters, macs) == counts(RESNET20_CIFAR, 32)
    assert round(parameters / 1e6, 2) == 0.27
    assert round(macs / 1e6) == 41


@pytest.mark.parametrize(("blocks", "millions"), [(5, 0.46), (7, 0.66), (9, 0.85), (18, 1.7)])
def test_deeper_ones_have_the_papers_parameters(blocks: int, millions: float) -> None:
    config = Config(3, 10, blocks, (16, 32, 64), 1, "identity")
    parameters = sum(value.numel() for value in ResNet(config).parameters())
    assert parameters == counts(config, 32)[0]
    assert parameters / 1e6 == pytest.approx(millions, abs=0.04)


def test_the_defaults_cost_what_the_papers_widths_would(tmp_path: Path) -> None:
    ours = counted(Config(), 28, tmp_path)
    assert ours == counts(Config(), 28)
    assert ours[1] == pytest.approx(counts(Config(widths=(16, 32, 64), stem_stride=1), 28)[1], rel=0.1)


def test_an_identity_shortcut_has_no_weights_and_keeps_every_second_pixel() -> None:
    module = ResNet(Config(widths=(4, 6), blocks=1, stem_stride=1, shortcut="identity"))
    shortcut = module.blocks[1].shortcut
    assert list(shortcut.parameters()) == []
    value = torch.randn(2, 4, 6, 6)
    made = shortcut(value)
    assert torch.equal(made[:, :4], value[:, :, ::2, ::2])
    assert not made[:, 4:].any()
    assert made.shape == (2, 6, 3, 3)


@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_a_few_steps_of_training_lower_the_loss(shortcut: str) -> None:
    torch.manual_seed(0)
    module = ResNet(Config(blocks=1, widths=(8, 16), classes=4, shortcut=shortcut))
    labels = torch.arange(32) % 4
    images = torch.randn(32, 1, 12, 12) + labels[:, None, None, None]
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"shortcut": "none"}, "shortcut must be one of identity, projection, got 'none'"),
    ({"blocks": 0}, "must be at least 1"),
    ({"widths": ()}, "needs a width for each stage"),
    ({"widths": (16, 0)}, "must be at least 1"),
    ({"widths": (32, 16), "shortcut": "identity"}, "cannot narrow"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_a_config_that_makes_no_network_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Config(**options)
