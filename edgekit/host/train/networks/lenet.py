"""LeNet-300-100, dense layers alone, and LeNet-5 as Caffe has it (LeCun, Bottou, Bengio, Haffner 1998).

The networks that pruning is compared on: 266,610 and 431,080 parameters on images of 28x28x1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor, nn

from edgekit.core.errors import BadInput

_KERNEL = 5


@dataclass(frozen=True)
class Dense:
    """LeNet-300-100. widths: of the hidden layers."""

    side: int = 28
    channels: int = 1
    classes: int = 10
    widths: tuple[int, ...] = (300, 100)

    def __post_init__(self) -> None:
        if min(self.side, self.channels, self.classes, *self.widths, 1) < 1:
            raise BadInput(f"lenet: all sizes must be at least 1, got {self}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the input and of what each layer gives."""
        return self.channels * self.side**2, *self.widths, self.classes

    def parameters(self) -> int:
        """The closed form: a weight for each pair, a bias for each output."""
        sizes = self.sizes
        return sum((first + 1) * second for first, second in itertools.pairwise(sizes))

    def macs(self) -> int:
        """The closed form."""
        sizes = self.sizes
        return sum(first * second for first, second in itertools.pairwise(sizes))


@dataclass(frozen=True)
class Convolutions:
    """LeNet-5: 5x5 convolutions without padding, each with a pool of 2, and two dense layers."""

    side: int = 28
    channels: int = 1
    classes: int = 10
    widths: tuple[int, int] = (20, 50)
    hidden: int = 500

    def __post_init__(self) -> None:
        if min(self.channels, self.classes, *self.widths, self.hidden) < 1:
            raise BadInput(f"lenet: all sizes must be at least 1, got {self}")
        if self.sides[1] % 2 or self.sides[0] % 2 or self.sides[1] < 2:
            raise BadInput(f"lenet: the image's side must leave even maps (28, 32, ...), got {self.side}")

    @property
    def sides(self) -> tuple[int, int]:
        """Of the maps behind each convolution."""
        first = self.side - _KERNEL + 1
        return first, first // 2 - _KERNEL + 1

    def _dense(self) -> tuple[int, int, int]:
        return self.widths[1] * (self.sides[1] // 2) ** 2, self.hidden, self.classes

    def parameters(self) -> int:
        """The closed form."""
        first, second = self.widths
        flat, hidden, classes = self._dense()
        windows = first * (_KERNEL**2 * self.channels + 1) + second * (_KERNEL**2 * first + 1)
        return windows + (flat + 1) * hidden + (hidden + 1) * classes

    def macs(self) -> int:
        """The closed form."""
        first, second = self.widths
        flat, hidden, classes = self._dense()
        windows = self.sides[0] ** 2 * first * self.channels + self.sides[1] ** 2 * second * first
        return _KERNEL**2 * windows + flat * hidden + hidden * classes


class LeNet300(nn.Module):
    """[N, channels, side, side] -> logits [N, classes]."""

    def __init__(self, config: Dense) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        sizes = config.sizes
        for first, second in itertools.pairwise(sizes):
            layers += [_glorot(nn.Linear(first, second)), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, image: Tensor) -> Tensor:
        made: Tensor = self.layers(image)
        return made


class LeNet5(nn.Module):
    """[N, channels, side, side] -> logits [N, classes]."""

    def __init__(self, config: Convolutions) -> None:
        super().__init__()
        first, second = config.widths
        flat = second * (config.sides[1] // 2) ** 2
        self.layers = nn.Sequential(
            *(_glorot(nn.Conv2d(config.channels, first, _KERNEL)), nn.ReLU(), nn.MaxPool2d(2)),
            *(_glorot(nn.Conv2d(first, second, _KERNEL)), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), _glorot(nn.Linear(flat, config.hidden)), nn.ReLU()),
            _glorot(nn.Linear(config.hidden, config.classes)),
        )

    def forward(self, image: Tensor) -> Tensor:
        made: Tensor = self.layers(image)
        return made


def _glorot(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """As lottery tickets are drawn: normal with Glorot's deviation, biases 0."""
    nn.init.xavier_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
