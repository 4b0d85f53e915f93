"""What an MSDNet consists of, and what it costs: a closed form of its configuration. No torch.

Multi-scale dense network (Huang et al. 2018, arXiv 1703.09844): a grid of scales and layers, every layer dense in the
earlier ones of its scale, classifiers on the coarsest scale after chosen layers. The details the paper leaves open are
those of the authors' code (github.com/gaohuang/MSDNet, kalviny/MSDNet-PyTorch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgekit.core.errors import BadInput

EVEN, GROWING = "even", "lin_grow"
_BOTTLENECK_KERNEL, _KERNEL, _HEAD_POOL = 1, 3, 2


@dataclass(frozen=True)
class Stem:
    """What makes scale 1 of the image. pool: a 3x3 max pooling with stride 2 behind; bias: as the authors' code has."""

    kernel: int = 3
    stride: int = 1
    pool: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Config:
    """side: of the square image, in pixels. Channels of scale s are a number times factors[s].

    channels: after the first layer. growth: what a layer adds. bottlenecks: a 1x1 convolution before each 3x3 one gives
    at most this times the branch's channels, by the scale it reads; None: there are none. base, step, blocks, spacing:
    layers before the first classifier and between two; "lin_grow" adds `step` more from each to the next. reduction:
    share of channels a transition keeps where the finest scale ends. head: channels of a classifier's two convolutions,
    None: as many as it reads. follow: weight, in the loss, of earlier classifiers matching the last; the paper has 0.

    The defaults are ours for Fashion-MNIST: the stem halves the image, and the layers are few and wide, without
    bottlenecks: at these sizes a CPU spends more on a layer than on its products.
    """

    side: int = 28
    channels_in: int = 1
    classes: int = 10
    channels: int = 16
    growth: int = 16
    factors: tuple[int, ...] = (1, 2, 4)
    bottlenecks: tuple[int, ...] | None = None
    base: int = 1
    step: int = 1
    blocks: int = 5
    spacing: str = EVEN
    stem: Stem = Stem(5, 2)
    head: int | None = 96
    reduction: float = 0.5
    follow: float = 0.5

    def __post_init__(self) -> None:
        if self.spacing not in (EVEN, GROWING):
            raise BadInput(f"MSDNet: spacing must be {EVEN} or {GROWING}, got {self.spacing!r}")
        if self.bottlenecks is not None and len(self.bottlenecks) != self.scales:
            raise BadInput(
                f"MSDNet: bottlenecks must be {self.scales}, one per scale, got {self.bottlenecks}"
            )
        if min(self.base, self.step, self.blocks, self.growth, self.channels, *self.factors) < 1:
            raise BadInput("MSDNet: base, step, blocks, growth, channels and factors must be at least 1")
        if any(self.growth * factor % 2 for factor in self.factors[1:]):  # only they have two branches
            raise BadInput(f"MSDNet: growth must be even at scales with two branches, got {self.growth}")

    @property
    def scales(self) -> int:
        """How many."""
        return len(self.factors)

    @property
    def spans(self) -> tuple[int, ...]:
        """Layers in each block."""
        more = (self.step if self.spacing == EVEN else self.step * k + 1 for k in range(1, self.blocks))
        return (self.base, *more)

    @property
    def layers(self) -> int:
        """Of all blocks; the first layer, which makes the scales, is not counted."""
        return sum(self.spans)

    @property
    def interval(self) -> int:
        """Layers after which the finest scale is dropped."""
        return math.ceil(self.layers / self.scales)

    def finest(self, layer: int) -> int:
        """The finest scale (0: the image's) that this layer, counted from 1, gives; layer 0 gives all."""
        return max(0, layer - 1) // self.interval

    def ends_scale(self, layer: int) -> bool:
        """Whether this layer reads a scale that it no longer gives: a transition follows it."""
        return self.finest(layer) > self.finest(layer - 1)

    def width(self, layer: int) -> int:
        """Channels after this layer, and after its transition, in units of the scale's factor."""
        width = self.channels
        for each in range(1, layer + 1):
            width += self.growth
            if self.ends_scale(each) and self.reduction > 0:
                width = math.floor(self.reduction * width)
        return width

    def sides(self) -> tuple[int, ...]:
        """Of the maps of each scale, in pixels."""
        side = _halved(self.side, self.stem.stride)
        side = _halved(side, 2) if self.stem.pool else side
        found = [side]
        for _ in self.factors[1:]:
            found.append(_halved(found[-1], 2))
        return tuple(found)


# --- the networks of the paper ------------------------------------------------------------------------------


def cifar(classes: int = 10, blocks: int = 10, spacing: str = EVEN) -> Config:
    """Three scales on 32x32 images. even: a first classifier after 4 layers, then each 2; lin_grow: spans 1, 2, 3."""
    base, step = (4, 2) if spacing == EVEN else (1, 1)
    three = (1, 2, 4)
    return Config(32, 3, classes, 16, 6, three, three, base, step, blocks, spacing, Stem(), 128, 0.5, 0.0)


def imagenet(step: int = 4, base: int | None = None, blocks: int = 5) -> Config:
    """Four scales on 224x224 images. base: layers before the first classifier, `step` where not given."""
    four = (1, 2, 4, 4)
    stem = Stem(7, 2, pool=True, bias=True)
    return Config(224, 3, 1000, 32, 16, four, four, base or step, step, blocks, EVEN, stem, None, 0.5, 0.0)


# --- what it costs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """parameters: of weights, norms and biases. macs: of convolutions and linear layers.

    counted: what the authors' counter says: MACs, and one per bias of a linear layer, per ReLU, per number pooled.
    """

    parameters: int = 0
    macs: int = 0
    counted: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs, self.counted + other.counted)


@dataclass(frozen=True)
class Part:
    """One output of the grid, with its transition, or a classifier. layer 0: the first layer.

    block: where it stands. needed: the first classifier that cannot be computed without it, None: no one needs it.
    """

    layer: int
    scale: int
    block: int
    needed: int | None
    cost: Cost


def parts(config: Config) -> tuple[Part, ...]:
    """The grid, layer by layer, and each classifier (scale -1) behind its block."""
    ends = _ends(config)
    found = [
        Part(0, scale, 0, 0, cost)  # each scale of the first layer is made from the finer one
        for scale, cost in enumerate(_first(config))
    ]
    for block, (end, span) in enumerate(zip(ends, config.spans, strict=True)):
        for layer in range(end - span + 1, end + 1):
            for scale in range(config.finest(layer), config.scales):
                last = layer + config.scales - 1 - scale  # its own scale's path to the coarsest
                needed = next((k for k, there in enumerate(ends) if there >= last), None)
                found.append(Part(layer, scale, block, needed, _output(config, layer, scale)))
        found.append(Part(end, -1, block, block, _head(config, end)))
    return tuple(found)


def costs(config: Config) -> tuple[Cost, ...]:
    """Per classifier, cumulative: whole blocks up to it, with all earlier classifiers, as the authors count."""
    return _added_up(config, lambda part: part.block)


def needed_costs(config: Config) -> tuple[Cost, ...]:
    """Per classifier, cumulative: only what it needs, as stages compute it; what nobody needs is in none of them."""
    return _added_up(config, lambda part: part.needed)


def _added_up(config: Config, place: Callable[[Part], int | None]) -> tuple[Cost, ...]:
    found = []
    for block in range(config.blocks):
        chosen = (part.cost for part in parts(config) if _within(place(part), block))
        found.append(sum(chosen, Cost()))
    return tuple(found)


def _within(place: int | None, block: int) -> bool:
    return place is not None and place <= block


def _ends(config: Config) -> tuple[int, ...]:
    """The last layer of each block."""
    return tuple(sum(config.spans[: block + 1]) for block in range(config.blocks))


def _first(config: Config) -> Iterator[Cost]:
    """The first layer, scale by scale."""
    stem, sides = config.stem, config.sides()
    wide = config.channels * config.factors[0]
    made = _halved(config.side, stem.stride)
    pooled = wide * sides[0] ** 2 * _KERNEL**2 if stem.pool else 0
    yield _convolution(config.channels_in, wide, stem.kernel, made, bias=stem.bias) + Cost(counted=pooled)
    for scale in range(1, config.scales):
        before, wide = wide, config.channels * config.factors[scale]
        yield _convolution(before, wide, _KERNEL, sides[scale])


def _output(config: Config, layer: int, scale: int) -> Cost:
    """What a layer adds to a scale, and the transition of that scale behind it."""
    width, grows = config.width(layer - 1), config.growth * config.factors[scale]
    if scale > config.finest(layer) or config.ends_scale(layer):
        cost = _branch(config, width, scale - 1, scale, grows // 2)
        cost += _branch(config, width, scale, scale, grows // 2)
    else:
        cost = _branch(config, width, scale, scale, grows)
    if config.ends_scale(layer) and config.reduction > 0:
        there = (width + config.growth) * config.factors[scale]
        kept = config.width(layer) * config.factors[scale]
        cost += _convolution(there, kept, _BOTTLENECK_KERNEL, config.sides()[scale])
    return cost


def _branch(config: Config, width: int, source: int, scale: int, made: int) -> Cost:
    """A 1x1 convolution at the source's size, where there are bottlenecks, and a 3x3 one that gives the scale's."""
    sides, inner = config.sides(), width * config.factors[source]
    cost = Cost()
    if config.bottlenecks is not None:
        narrow = min(inner, config.bottlenecks[source] * made)
        cost += _convolution(inner, narrow, _BOTTLENECK_KERNEL, sides[source])
        inner = narrow
    return cost + _convolution(inner, made, _KERNEL, sides[scale])


def _head(config: Config, layer: int) -> Cost:
    """Two 3x3 convolutions with stride 2, average pooling, a linear layer."""
    reads = config.width(layer) * config.factors[-1]
    wide = config.head or reads
    side = _halved(config.sides()[-1], 2)
    cost = _convolution(reads, wide, _KERNEL, side)
    side = _halved(side, 2)
    cost += _convolution(wide, wide, _KERNEL, side)
    linear = wide * config.classes
    return cost + Cost(linear + config.classes, linear, linear + config.classes + wide * side**2)


def _convolution(reads: int, makes: int, kernel: int, side: int, *, bias: bool = False) -> Cost:
    """A convolution that gives maps of side x side, its batch norm and ReLU."""
    weights = reads * makes * kernel**2
    macs = weights * side**2
    return Cost(weights + makes * (3 if bias else 2), macs, macs + makes * side**2)


def _halved(side: int, stride: int) -> int:
    """The side of what a convolution with `same` padding gives."""
    return -(-side // stride)
