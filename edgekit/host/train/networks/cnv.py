"""CNV: a small VGG with binary weights and activations on 32x32 images, with early exits where wanted.

FINN's network (Umuroglu et al. 2017, 1612.07119) as BNN-PYNQ trains it: 3x3 convolutions without padding,
64-64-P-128-128-P-256-256, and dense layers 512-512-10; the first layer reads 8-bit pixels, all others bits. The pixels
are not shifted to [-1, 1): the batch norm behind the first convolution makes that the same. The exits are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.train.binary import Activation, bnn_conv, bnn_dense
from edgekit.host.train.quantizers import Sign, Ternary

SIDE = 32
_MOST_EXITS = 2
_ACTIVATIONS: Mapping[int, Activation] = {1: Sign, 2: Ternary}


@dataclass(frozen=True)
class Config:
    """side: of the square image; one below 32 is padded with black, evenly. channels: of the image.

    activation_bits: 1 (-1 and 1) or 2 (-1, 0 and 1). width: factor on all layers' channels. exits: early ones, 0 to 2.
    One stands after the first pool, at about half of the work; of two the other, first in order, after the first layer.
    """

    side: int = 28
    channels: int = 1
    classes: int = 10
    activation_bits: int = 1
    width: float = 1.0
    exits: int = 0

    def __post_init__(self) -> None:
        if min(self.channels, self.classes) < 1 or round(64 * self.width) < 1:
            raise BadInput(f"cnv: all sizes must be at least 1, got {self}")
        if not 0 < self.side <= SIDE or self.side % 2:
            raise BadInput(f"cnv: the image's side must be even and at most {SIDE}, got {self.side}")
        if self.activation_bits not in _ACTIVATIONS:
            raise BadInput(f"cnv: activations must have 1 or 2 bits, got {self.activation_bits}")
        if not 0 <= self.exits <= _MOST_EXITS:
            raise BadInput(f"cnv: exits must be 0 to {_MOST_EXITS}, got {self.exits}")

    def of(self, channels: int) -> int:
        """Channels of a layer at this width."""
        return max(1, round(channels * self.width))


class _Head(nn.Module):
    """Bits [N, channels, side, side] -> scores: a convolution with stride 2 and a dense layer, both binary."""

    def __init__(self, channels: int, side: int, classes: int, activation: Activation, pool: int = 1) -> None:
        super().__init__()
        side //= pool
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.conv = bnn_conv(channels, channels, stride=2, activation=activation)
        left = (side - 3) // 2 + 1
        self.classify = bnn_dense(channels * left**2, classes, last=True)

    def forward(self, bits: Tensor) -> Tensor:
        made: Tensor = self.classify(self.conv(self.pool(bits)).flatten(1))
        return made


class CNV(nn.Module):
    """Pixels 0-255 [N, channels, side, side] as floats -> scores [N, classes] per exit."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second, third, dense = (config.of(each) for each in (64, 128, 256, 512))
        activation = _ACTIVATIONS[config.activation_bits]
        conv, full = (partial(each, activation=activation) for each in (bnn_conv, bnn_dense))
        self.first = conv(config.channels, first, padding=(SIDE - config.side) // 2)
        self.second = conv(first, first, pool=2)
        self.rest = nn.Sequential(
            conv(first, second),
            conv(second, second, pool=2),
            conv(second, third),
            conv(third, third),
        )
        self.dense = nn.Sequential(full(third, dense), full(dense, dense))
        self.classify = bnn_dense(dense, config.classes, last=True)
        self.heads = nn.ModuleList()
        if config.exits > 1:
            self.heads.append(_Head(first, SIDE - 2, config.classes, activation, pool=2))
        if config.exits > 0:
            self.heads.append(_Head(first, (SIDE - 4) // 2, config.classes, activation))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        first = self.first(pixels)
        second = self.second(first)
        last = self.classify(self.dense(self.rest(second).flatten(1)))
        read = (first, second)[-len(self.heads) :] if len(self.heads) else ()
        return (*(head(bits) for head, bits in zip(self.heads, read, strict=True)), last)
