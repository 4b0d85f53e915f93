"""MSDNet as a module: logits at every classifier (Huang et al. 2018, arXiv 1703.09844). Its plan says what is in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.host.train.networks.msdnet_plan import Config
from edgekit.host.train.outputs import Outputs

_TEMPERATURE = 2.0


def convolution(
    reads: int, makes: int, kernel: int = 3, stride: int = 1, *, bias: bool = False
) -> nn.Sequential:
    """A convolution with `same` padding, its batch norm, ReLU."""
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(reads, makes, kernel, stride, padding, bias=bias), nn.BatchNorm2d(makes), nn.ReLU()
    )


class First(nn.Module):
    """The image at every scale: the stem, then a convolution with stride 2 from each scale to the next."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        stem = config.stem
        wide = [config.channels * factor for factor in config.factors]
        finest = convolution(config.channels_in, wide[0], stem.kernel, stem.stride, bias=stem.bias)
        if stem.pool:
            finest.append(nn.MaxPool2d(3, 2, 1))
        rest = [convolution(*pair, stride=2) for pair in itertools.pairwise(wide)]
        self.scales = nn.ModuleList([finest, *rest])

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N, C, side, side] -> one map per scale, the finest first."""
        found = [image]
        for scale in self.scales:
            found.append(scale(found[-1]))
        return found[1:]


def branch(config: Config, width: int, source: int, makes: int, stride: int) -> nn.Sequential:
    """From the maps of scale `source`: the bottleneck where there are some, and a 3x3 convolution."""
    reads = width * config.factors[source]
    if config.bottlenecks is None:
        return convolution(reads, makes, stride=stride)
    narrow = min(reads, config.bottlenecks[source] * makes)
    return nn.Sequential(*convolution(reads, narrow, 1), *convolution(narrow, makes, stride=stride))


class Layer(nn.Module):
    """One layer: each scale keeps its maps and gets `growth` times its factor more, half of it from the finer scale."""

    def __init__(self, config: Config, number: int) -> None:
        super().__init__()
        before, first, width = config.finest(number - 1), config.finest(number), config.width(number - 1)
        self.normal, self.down = nn.ModuleList(), nn.ModuleList()
        for scale in range(first, config.scales):
            makes = config.growth * config.factors[scale]
            if scale > before:
                makes //= 2
                self.down.append(branch(config, width, scale - 1, makes, 2))
            self.normal.append(branch(config, width, scale, makes, 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps of all scales the layer before gave -> those this layer gives."""
        given = len(self.normal)
        kept = maps[len(maps) - given :]
        normal = [made(each) for made, each in zip(self.normal, kept, strict=True)]
        finer = maps[len(maps) - given - 1 : -1] if given < len(maps) else maps[:-1]
        down = [made(each) for made, each in zip(self.down, finer, strict=True)]
        lone = [] if len(down) == given else [torch.cat((kept[0], normal[0]), 1)]
        two = zip(kept[len(lone) :], down, normal[len(lone) :], strict=True)
        return [*lone, *(torch.cat(three, 1) for three in two)]


class Transition(nn.Module):
    """Fewer channels at every scale, by a 1x1 convolution."""

    def __init__(self, config: Config, number: int) -> None:
        super().__init__()
        reads, makes = config.width(number - 1) + config.growth, config.width(number)
        factors = config.factors[config.finest(number) :]
        self.scales = nn.ModuleList(convolution(reads * each, makes * each, 1) for each in factors)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps by scale, and so the answer."""
        return [made(each) for made, each in zip(self.scales, maps, strict=True)]


class Head(nn.Sequential):
    """A classifier on the coarsest scale. Its pooling is the paper's 2x2 wherever 2x2 numbers are left."""

    def __init__(self, config: Config, number: int) -> None:
        reads = config.width(number) * config.factors[-1]
        wide = config.head or reads
        first, second = convolution(reads, wide, stride=2), convolution(wide, wide, stride=2)
        pooling = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(first, second, *pooling, nn.Linear(wide, config.classes))


class MSDNet(nn.Module):
    """config: see there. Weights are drawn from PyTorch's generator."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.first = First(config)
        self.blocks, self.heads = nn.ModuleList(), nn.ModuleList()
        done = 0
        for span in config.spans:
            block = nn.Sequential()
            for number in range(done + 1, done + span + 1):
                block.append(Layer(config, number))
                if config.ends_scale(number) and config.reduction > 0:
                    block.append(Transition(config, number))
            done += span
            self.blocks.append(block)
            self.heads.append(Head(config, done))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, by what a weight reaches
                reach = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / reach))
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """float32 [N, C, side, side] -> the logits of each classifier, float32 [N, classes]."""
        maps, found = self.first(image), []
        for block, head in zip(self.blocks, self.heads, strict=True):
            maps = block(maps)
            found.append(head(maps[-1]))
        return tuple(found)

    def losses(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """How far the earlier classifiers are from the last, which learns nothing by it (Hinton et al., 1503.02531)."""
        if not self.config.follow or len(outputs.logits) == 1:
            return {}
        *early, last = (functional.log_softmax(each.float() / _TEMPERATURE, 1) for each in outputs.logits)
        last = last.detach()
        parts = [functional.kl_div(each, last, log_target=True, reduction="batchmean") for each in early]
        return {"follow the last": self.config.follow * _TEMPERATURE**2 * torch.stack(parts).sum()}
