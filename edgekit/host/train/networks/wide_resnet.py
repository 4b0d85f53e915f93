"""Wide ResNet as McDonnell trains it with 1-bit weights (2018, arXiv 1802.08530).

Batch norm, ReLU, convolution; shortcuts without weights: where a stage halves the side they are averaged and padded
with channels of zeros. The last layer is a 1x1 convolution and a batch norm, averaged over the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput

_STAGES = 3
_BASE = 16


@dataclass(frozen=True)
class Config:
    """depth: 6 n + 2, n blocks in each of three stages. width: factor on 16, 32, 64 channels; the first layer's too.

    affine: whether batch norms behind the first learn a factor and an offset: not for 1-bit weights on small images.
    """

    channels: int = 1
    classes: int = 10
    depth: int = 8
    width: int = 1
    affine: bool = False

    def __post_init__(self) -> None:
        if min(self.channels, self.classes, self.width) < 1 or self.depth < 8 or self.depth % 6 != 2:
            raise BadInput(f"wide_resnet: depth must be 6 n + 2 and sizes at least 1, got {self}")

    @property
    def blocks(self) -> int:
        """Of a stage."""
        return (self.depth - 2) // 6

    def weights(self) -> int:
        """The closed form: of all convolutions, as many bits with 1-bit weights."""
        first = _BASE * self.width
        total, channels = 9 * self.channels * first, first
        for stage in range(_STAGES):
            width = first * 2**stage
            total += 9 * (channels + width) * width + (self.blocks - 1) * 18 * width**2
            channels = width
        return total + channels * self.classes


def paper(depth: int = 20, width: int = 4, classes: int = 10) -> Config:
    """For CIFAR: 20-4 has 4.3 and 20-10 26.7 million weights, one bit each."""
    return Config(3, classes, depth, width)


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, *, affine: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.BatchNorm2d(channels, affine=affine), nn.ReLU(), _conv(channels, width, 3, stride)),
            *(nn.BatchNorm2d(width, affine=affine), nn.ReLU(), _conv(width, width, 3)),
        )
        self.stride, self.more = stride, width - channels

    def forward(self, value: Tensor) -> Tensor:
        made = self.layers(value)
        if self.stride > 1:
            value = functional.avg_pool2d(value, 3, self.stride, 1)
        if self.more:
            zeros = value.new_zeros(value.shape[0], self.more, *value.shape[2:])
            value = torch.cat([value, zeros], 1)
        return value + made


class WideResNet(nn.Module):
    """[N, channels, H, W] -> logits [N, classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = _BASE * config.width
        layers: list[nn.Module] = [nn.BatchNorm2d(config.channels), _conv(config.channels, channels, 3)]
        for stage in range(_STAGES):
            width = _BASE * config.width * 2**stage
            for block in range(config.blocks):
                stride = 2 if stage and not block else 1
                layers.append(_Block(channels, width, stride, affine=config.affine))
                channels = width
        layers += [nn.BatchNorm2d(channels, affine=config.affine), nn.ReLU()]
        layers += [_conv(channels, config.classes, 1), nn.BatchNorm2d(config.classes, affine=config.affine)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(self.layers(image), 1).flatten(1)


def _conv(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv
