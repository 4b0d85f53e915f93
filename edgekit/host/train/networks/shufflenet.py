"""ShuffleNet v1: 1x1 convolutions in groups, and a shuffle that mixes them (Zhang et al. 2018, arXiv 1707.01083)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput

_WIDTHS: Mapping[int, int] = {
    1: 144,
    2: 200,
    3: 240,
    4: 272,
    8: 384,
}  # of the first stage, by groups: the paper's
_STEMS: Mapping[float, int] = {0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}  # by scale: the authors' code


@dataclass(frozen=True)
class Config:
    """groups: of 1x1 convolutions. width: of the first stage, doubled in each further one. repeats: units of a stage.

    stem: width and stride of the first 3x3 convolution; stem_pool: a max pool of 3 with stride 2 behind it.
    """

    channels: int = 1
    classes: int = 10
    groups: int = 2
    width: int = 48
    repeats: tuple[int, ...] = (2, 3)
    stem: tuple[int, int] = (16, 1)
    stem_pool: bool = False

    def __post_init__(self) -> None:
        if (
            not self.repeats
            or min(self.channels, self.classes, self.groups, self.width, *self.repeats, *self.stem) < 1
        ):
            raise BadInput(f"shufflenet: needs stages, and sizes of at least 1, got {self}")
        if self.width % (4 * self.groups) or self.stem[0] >= self.width or self.stem[0] % self.groups:
            raise BadInput(
                f"shufflenet: width must be a multiple of 4 * {self.groups} groups and above the stem's, which must be "
                f"one of {self.groups}, got {self.width} and {self.stem[0]}"
            )
        if (self.width - self.stem[0]) % self.groups:
            raise BadInput(f"shufflenet: width less the stem's must be a multiple of {self.groups} groups")

    def parameters(self) -> int:
        """The closed form, with two numbers for each channel of a batch norm."""
        total, channels = (9 * self.channels + 2) * self.stem[0], self.stem[0]
        for stage, repeats in enumerate(self.repeats):
            width = self.width * 2**stage
            for unit in range(repeats):
                inner, made = width // 4, width - channels if unit == 0 else width
                first = 1 if stage == unit == 0 else self.groups
                total += channels * inner // first + 2 * inner + (9 + 2) * inner
                total += inner * made // self.groups + 2 * made
                channels = width
        return total + (channels + 1) * self.classes


def paper(groups: int = 3, scale: float = 1.0, classes: int = 1000) -> Config:
    """ShuffleNet scale x, groups g, for 224x224x3; 1x with 3 groups: 138 MMACs. Raises BadInput for other ones."""
    if scale not in _STEMS:
        raise BadInput(f"shufflenet: the paper has scales of {', '.join(map(str, _STEMS))}, got {scale}")
    if groups not in _WIDTHS:
        raise BadInput(f"shufflenet: the paper has {', '.join(map(str, _WIDTHS))} groups, got {groups}")
    return Config(
        3, classes, groups, round(_WIDTHS[groups] * scale), (4, 8, 4), (_STEMS[scale], 2), stem_pool=True
    )


def shuffle(value: Tensor, groups: int) -> Tensor:
    """Channels [groups, n] transposed: the next group reads some of every group."""
    count, channels, height, width = value.shape
    parted = value.reshape(count, groups, channels // groups, height, width)
    return parted.transpose(1, 2).reshape(count, channels, height, width)


class Unit(nn.Module):
    """Groups 1x1, shuffle, depthwise 3x3, groups 1x1; added to the input, or with stride 2 beside its averages."""

    def __init__(self, channels: int, width: int, groups: int, first: int, stride: int) -> None:
        super().__init__()
        inner, made = width // 4, width - channels if stride > 1 else width
        self.groups, self.stride = first, stride
        self.squeeze = nn.Sequential(*_conv(channels, inner, 1, groups=first), nn.ReLU())
        self.depthwise = nn.Sequential(*_conv(inner, inner, 3, stride, inner))
        self.expand = nn.Sequential(*_conv(inner, made, 1, groups=groups))
        self.active = nn.ReLU()

    def forward(self, value: Tensor) -> Tensor:
        made = self.expand(self.depthwise(shuffle(self.squeeze(value), self.groups)))
        if self.stride == 1:
            return self.active(value + made)
        return torch.cat([functional.avg_pool2d(value, 3, 2, 1), self.active(made)], 1)


class ShuffleNet(nn.Module):
    """[N, channels, H, W] -> logits [N, classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, stride = config.stem
        layers: list[nn.Module] = [*_conv(config.channels, channels, 3, stride), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2, 1)] if config.stem_pool else []
        for stage, repeats in enumerate(config.repeats):
            width = config.width * 2**stage
            for unit in range(repeats):
                first = 1 if stage == unit == 0 else config.groups
                layers.append(Unit(channels, width, config.groups, first, 2 if unit == 0 else 1))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.classify = nn.Linear(channels, config.classes)

    def forward(self, image: Tensor) -> Tensor:
        made: Tensor = self.classify(functional.adaptive_avg_pool2d(self.layers(image), 1).flatten(1))
        return made


def _conv(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(width)]
