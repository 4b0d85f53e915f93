"""ResNet for small images: three stages of basic blocks, one exit (He et al. 2016, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput

SHORTCUTS = ("identity", "projection")  # the paper's options A and B


@dataclass(frozen=True)
class Config:
    """6 blocks + 2 weight layers where there are three widths: blocks 3 is ResNet-20.

    The defaults take about as many multiply-accumulates on 28x28 as the paper's widths would: half the resolution and
    twice the channels, which trains in less time.

    widths: channels of each stage; every stage but the first halves the resolution. shortcut where the shape changes:
    identity (every second pixel, zeros for the new channels) or projection (a 1x1 convolution).
    """

    channels: int = 1
    classes: int = 10
    blocks: int = 3
    widths: tuple[int, ...] = (32, 64, 128)
    stem_stride: int = 2
    shortcut: str = "projection"

    def __post_init__(self) -> None:
        if self.shortcut not in SHORTCUTS:
            raise BadInput(f"resnet: shortcut must be one of {', '.join(SHORTCUTS)}, got {self.shortcut!r}")
        if min(self.channels, self.classes, self.blocks, self.stem_stride, *self.widths, 1) < 1:
            raise BadInput(f"resnet: all sizes must be at least 1, got {self}")
        if not self.widths:
            raise BadInput("resnet: needs a width for each stage, got none")
        if self.shortcut == "identity" and list(self.widths) != sorted(self.widths):
            raise BadInput(f"resnet: identity shortcuts cannot narrow, got widths {self.widths}")


RESNET20_CIFAR = Config(3, 10, 3, (16, 32, 64), 1, "identity")  # 0.27 M parameters, 41 MMACs at 32x32


def _conv(channels: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class _Fewer(nn.Module):
    """The parameter-free shortcut: every second pixel, and zeros for the channels that are new."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, value: Tensor) -> Tensor:
        value = value[:, :, :: self.stride, :: self.stride]
        return functional.pad(value, (0, 0, 0, 0, 0, self.more))


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.first = _conv(channels, width, 3, stride)
        self.second = _conv(width, width, 3, 1)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            identity = shortcut == "identity"
            self.shortcut = (
                _Fewer(stride, width - channels) if identity else _conv(channels, width, 1, stride)
            )

    def forward(self, value: Tensor) -> Tensor:
        made = self.second(functional.relu(self.first(value)))
        return functional.relu(made + self.shortcut(value))


class ResNet(nn.Module):
    """[N, channels, H, W] -> logits [N, classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stem = _conv(config.channels, config.widths[0], 3, config.stem_stride)
        channels, blocks = config.widths[0], []
        for stage, width in enumerate(config.widths):
            for place in range(config.blocks):
                stride = 2 if stage and not place else 1
                blocks.append(_Block(channels, width, stride, config.shortcut))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(channels, config.classes)

    def forward(self, image: Tensor) -> Tensor:
        value = self.blocks(functional.relu(self.stem(image)))
        made: Tensor = self.classify(functional.adaptive_avg_pool2d(value, 1).flatten(1))
        return made
