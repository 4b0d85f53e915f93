"""SqueezeNet: Fire modules, few 1x1 channels in front of many 1x1 and 3x3 ones (Iandola et al. 2016, 1602.07360)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput


@dataclass(frozen=True)
class Fire:
    """squeeze: 1x1 channels; expand: as many of 1x1 and of 3x3. pool: a max pool of 3 with stride 2 behind it."""

    squeeze: int
    expand: int
    pool: bool = False

    def parameters(self, channels: int) -> int:
        """The closed form, biases included: channels s + s, s e + e, 9 s e + e."""
        return (channels + 1) * self.squeeze + (10 * self.squeeze + 2) * self.expand


@dataclass(frozen=True)
class Config:
    """stem: width, kernel and stride of the first convolution, without padding; stem_pool: a pool behind it.

    batch_norm: behind each convolution, in the place of its bias; the paper has none, and is hard to train without.
    """

    channels: int = 1
    classes: int = 10
    stem: tuple[int, int, int] = (32, 3, 1)
    stem_pool: bool = False
    fires: tuple[Fire, ...] = (
        Fire(8, 32),
        Fire(8, 32, pool=True),
        Fire(16, 64),
        Fire(16, 64, pool=True),
        Fire(24, 96),
    )
    dropout: float = 0.0
    batch_norm: bool = True

    def __post_init__(self) -> None:
        sizes = [size for fire in self.fires for size in (fire.squeeze, fire.expand)]
        if not sizes or min(self.channels, self.classes, *self.stem, *sizes) < 1 or not 0 <= self.dropout < 1:
            raise BadInput(f"squeezenet: needs Fire modules, and sizes of at least 1, got {self}")

    def parameters(self) -> int:
        """The closed form without batch norms."""
        width, kernel, _ = self.stem
        total, channels = (kernel**2 * self.channels + 1) * width, width
        for fire in self.fires:
            total, channels = total + fire.parameters(channels), 2 * fire.expand
        return total + (channels + 1) * self.classes


_SHAPES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


def _fires(pools: tuple[int, ...]) -> tuple[Fire, ...]:
    return tuple(Fire(*shape, pool=place in pools) for place, shape in enumerate(_SHAPES))


def v1_0(classes: int = 1000) -> Config:
    """SqueezeNet 1.0, for 224x224x3: 1.25 M parameters."""
    return Config(3, classes, (96, 7, 2), True, _fires((2, 6)), 0.5, batch_norm=False)


def v1_1(classes: int = 1000) -> Config:
    """SqueezeNet 1.1: as accurate, 2.4 times less work."""
    return Config(3, classes, (64, 3, 2), True, _fires((1, 3)), 0.5, batch_norm=False)


def _conv(
    channels: int, width: int, kernel: int, stride: int = 1, around: int = 0, *, norm: bool
) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, around, bias=not norm)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU())


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)  # Caffe's sizes


class FireModule(nn.Module):
    """[N, channels, H, W] -> [N, 2 * expand, H, W]."""

    def __init__(self, channels: int, fire: Fire, *, norm: bool) -> None:
        super().__init__()
        self.squeeze = _conv(channels, fire.squeeze, 1, norm=norm)
        self.small = _conv(fire.squeeze, fire.expand, 1, norm=norm)
        self.large = _conv(fire.squeeze, fire.expand, 3, around=1, norm=norm)

    def forward(self, value: Tensor) -> Tensor:
        value = self.squeeze(value)
        return torch.cat([self.small(value), self.large(value)], 1)


class SqueezeNet(nn.Module):
    """[N, channels, H, W] -> logits [N, classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, kernel, stride = config.stem
        layers: list[nn.Module] = [_conv(config.channels, width, kernel, stride, norm=config.batch_norm)]
        layers += [_pool()] if config.stem_pool else []
        for fire in config.fires:
            layers.append(FireModule(width, fire, norm=config.batch_norm))
            layers += [_pool()] if fire.pool else []
            width = 2 * fire.expand
        layers += [nn.Dropout(config.dropout)] if config.dropout else []
        self.layers = nn.Sequential(*layers)
        self.classify = nn.Conv2d(width, config.classes, 1)
        nn.init.normal_(self.classify.weight, 0, 0.01)

    def forward(self, image: Tensor) -> Tensor:
        value = functional.adaptive_avg_pool2d(self.classify(self.layers(image)), 1)
        return value.flatten(1)
