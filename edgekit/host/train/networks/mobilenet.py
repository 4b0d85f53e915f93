"""MobileNet for any image size, one exit: depthwise-separable blocks (v1) or inverted residuals (v2), by a table.

Howard et al. 2017, arXiv 1704.04861; Sandler et al. 2018, arXiv 1801.04381.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput

_MOST = 6.0  # where ReLU6 ends


@dataclass(frozen=True)
class Block:
    """`repeats` times 3x3 depthwise and 1x1, the first with `stride`.

    expand 0: v1's block, both with ReLU, no shortcut. Else v2's: a 1x1 convolution to expand * channels before (none
    for 1), no activation at the end, and a shortcut where the shape stays.
    """

    expand: int
    width: int
    repeats: int = 1
    stride: int = 1


@dataclass(frozen=True)
class Config:
    """stem: width and stride of the first 3x3 convolution. last: width of a 1x1 convolution before pooling, 0: none.

    most: the activation's upper end, 6 in the papers; None: plain ReLU, which costs a board nothing.
    """

    channels: int = 1
    classes: int = 10
    stem: tuple[int, int] = (16, 2)
    blocks: tuple[Block, ...] = (Block(1, 16), Block(3, 24, 2), Block(3, 48, 4, 2), Block(3, 96, 2))
    last: int = 192
    most: float | None = None

    def __post_init__(self) -> None:
        sizes = [(each.width, each.repeats, each.stride, each.expand + 1) for each in self.blocks]
        if not sizes or min(self.channels, self.classes, *self.stem, self.last + 1, *map(min, sizes)) < 1:
            raise BadInput(f"mobilenet: needs blocks, and sizes of at least 1, got {self}")


def v1(classes: int = 1000) -> Config:
    """MobileNet 1.0, for 224x224x3: 4.2 M parameters, 569 MMACs."""
    rows = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    return Config(3, classes, (32, 2), tuple(Block(0, width, 1, stride) for width, stride in rows), 0, _MOST)


def v2(classes: int = 1000) -> Config:
    """MobileNetV2 1.0, for 224x224x3: 3.4 M parameters, 300 MMACs."""
    rows = (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )
    return Config(3, classes, (32, 2), tuple(Block(*row) for row in rows), 1280, _MOST)


class _Active(nn.Module):
    def __init__(self, most: float | None) -> None:
        super().__init__()
        self.most = most

    def forward(self, value: Tensor) -> Tensor:
        return functional.relu(value) if self.most is None else value.clamp(0.0, self.most)


def _conv(
    channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1, most: float | None = None
) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(width), _Active(most)]


class _Separable(nn.Module):
    """One block of either version."""

    def __init__(self, channels: int, block: Block, stride: int, most: float | None) -> None:
        super().__init__()
        inner = channels * max(1, block.expand)
        layers = _conv(channels, inner, 1, most=most) if block.expand > 1 else []
        layers += _conv(inner, inner, 3, stride, inner, most)
        layers += _conv(inner, block.width, 1, most=most)[: 3 if block.expand == 0 else 2]
        self.layers = nn.Sequential(*layers)
        self.residual = block.expand > 0 and stride == 1 and channels == block.width

    def forward(self, value: Tensor) -> Tensor:
        made: Tensor = self.layers(value)
        return value + made if self.residual else made


class MobileNet(nn.Module):
    """[N, channels, H, W] -> logits [N, classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, stride = config.stem
        layers = _conv(config.channels, channels, 3, stride, most=config.most)
        for block in config.blocks:
            for place in range(block.repeats):
                layers.append(_Separable(channels, block, 1 if place else block.stride, config.most))
                channels = block.width
        if config.last:
            layers += _conv(channels, config.last, 1, most=config.most)
        self.layers = nn.Sequential(*layers)
        self.classify = nn.Linear(config.last or channels, config.classes)

    def forward(self, image: Tensor) -> Tensor:
        value = self.layers(image)
        made: Tensor = self.classify(functional.adaptive_avg_pool2d(value, 1).flatten(1))
        return made
