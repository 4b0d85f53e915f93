"""VGG-small: pairs of 3x3 convolutions, each with a max pool, and two dense layers.

The network of BinaryConnect, TWN and WAGE on CIFAR-10: 128-128-P-256-256-P-512-512-P-1024-10.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edgekit.core.errors import BadInput


@dataclass(frozen=True)
class Config:
    """side: of the square image, divisible by 2 as often as there are widths, or rounded down. hidden: dense."""

    side: int = 28
    channels: int = 1
    classes: int = 10
    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 256
    batch_norm: bool = True

    def __post_init__(self) -> None:
        if not self.widths or min(self.channels, self.classes, self.hidden, *self.widths) < 1:
            raise BadInput(f"vgg: needs widths, and sizes of at least 1, got {self}")
        if self.side >> len(self.widths) < 1:
            raise BadInput(
                f"vgg: {len(self.widths)} pools want a side of at least {2 ** len(self.widths)}, got {self.side}"
            )

    @property
    def flat(self) -> int:
        """Numbers that the first dense layer reads."""
        return self.widths[-1] * (self.side >> len(self.widths)) ** 2

    def weights(self) -> int:
        """The closed form, without biases and batch norms."""
        total, channels = 0, self.channels
        for width in self.widths:
            total, channels = total + 9 * (channels + width) * width, width
        return total + (self.flat + self.classes) * self.hidden

    def macs(self) -> int:
        """The closed form."""
        total, channels, side = 0, self.channels, self.side
        for width in self.widths:
            total, channels = total + 9 * (channels + width) * width * side**2, width
            side //= 2
        return total + (self.flat + self.classes) * self.hidden


def paper(classes: int = 10) -> Config:
    """For CIFAR-10, 32x32x3."""
    return Config(32, 3, classes, (128, 256, 512), 1024)


class VGG(nn.Module):
    """[N, channels, side, side] -> logits [N, classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        norm, channels = config.batch_norm, config.channels
        layers: list[nn.Module] = []
        for width in config.widths:
            for place in range(2):
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                layers += [
                    conv,
                    *([nn.MaxPool2d(2)] if place else []),
                    *([nn.BatchNorm2d(width)] if norm else []),
                ]
                layers.append(nn.ReLU())
                channels = width
        hidden = nn.Linear(config.flat, config.hidden, bias=False)
        nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
        layers += [nn.Flatten(), hidden, *([nn.BatchNorm1d(config.hidden)] if norm else []), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(config.hidden, config.classes, bias=norm))

    def forward(self, image: Tensor) -> Tensor:
        made: Tensor = self.layers(image)
        return made
