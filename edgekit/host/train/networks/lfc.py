"""LFC: binary dense layers 784-1024-1024-1024-10 on an image of two levels (FINN: Umuroglu et al. 2017, 1612.07119)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.train.binary import bnn_dense
from edgekit.host.train.quantizers import sign

HALF = 128.0  # pixels from here on are +1


@dataclass(frozen=True)
class Config:
    """pixels: of an image, all channels. widths: of the hidden layers. dropout: of the inputs of all but the first."""

    pixels: int = 784
    classes: int = 10
    widths: tuple[int, ...] = (1024, 1024, 1024)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.pixels, self.classes, *self.widths, 1) < 1 or not self.widths:
            raise BadInput(f"lfc: needs hidden layers, and sizes of at least 1, got {self}")
        if not 0 <= self.dropout < 1:
            raise BadInput(f"lfc: dropout must be at least 0 and below 1, got {self.dropout}")


class LFC(nn.Module):
    """Pixels 0-255 [N, ...] as floats -> scores [N, classes], the last batch norm's output."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        layers, channels = [], config.pixels
        for place, width in enumerate(config.widths):
            layers.append(bnn_dense(channels, width, dropout=config.dropout if place else 0.0))
            channels = width
        self.layers = nn.Sequential(*layers)
        self.classify = bnn_dense(channels, config.classes, last=True, dropout=config.dropout)

    def forward(self, pixels: Tensor) -> Tensor:
        made: Tensor = self.classify(self.layers(sign(pixels.flatten(1) - HALF)))
        return made
