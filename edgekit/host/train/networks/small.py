"""Small: four 3x3 convolutions with batch norm and a dense layer, the network that training methods are compared on.

Plain layers in one sequence, so that each of them can be replaced. Padding keeps a side, strides halve it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edgekit.core.errors import BadInput


@dataclass(frozen=True)
class Config:
    """side: of the square image. widths, strides: of the convolutions. batch_norm: without it no biases either."""

    side: int = 28
    channels: int = 1
    classes: int = 10
    widths: tuple[int, ...] = (32, 64, 64, 128)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    batch_norm: bool = True

    def __post_init__(self) -> None:
        if min(self.side, self.channels, self.classes, *self.widths, *self.strides) < 1 or not self.widths:
            raise BadInput(f"small: all sizes must be at least 1, got {self}")
        if len(self.widths) != len(self.strides):
            raise BadInput(
                f"small: wants a stride per convolution, got {len(self.widths)} and {len(self.strides)}"
            )

    @property
    def last_side(self) -> int:
        """Of the maps that the dense layer reads."""
        side = self.side
        for stride in self.strides:
            side = -(-side // stride)
        return side


@dataclass(frozen=True)
class Wide(Config):
    """Twice as many channels: a teacher, and what few bits need to make up for it (WRPN)."""

    widths: tuple[int, ...] = (64, 128, 128, 256)


class Small(nn.Module):
    """[N, channels, side, side] -> logits [N, classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = config.channels
        for width, stride in zip(config.widths, config.strides, strict=True):
            conv = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, *([nn.BatchNorm2d(width)] if config.batch_norm else []), nn.ReLU()]
            channels = width
        last = nn.Linear(channels * config.last_side**2, config.classes, bias=config.batch_norm)
        self.layers = nn.Sequential(*layers, nn.Flatten(), last)

    def forward(self, image: Tensor) -> Tensor:
        made: Tensor = self.layers(image)
        return made
