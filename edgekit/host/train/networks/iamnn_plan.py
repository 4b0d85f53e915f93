"""What an IamNN consists of, and what it costs: a closed form of its configuration. No torch.

Iterative and adaptive mobile network (Leroux et al. 2018, arXiv 1804.10123): a residual network whose every stage keeps
one down-sampling unit and one residual unit, which is applied again and again with the same convolutions and with batch
norms of each iteration's own; how often is decided for each sample by adaptive computation time (Graves 2016, arXiv
1603.08983).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.core.errors import BadInput

_KERNEL = 3
_EXPANSION = 4  # of a bottleneck unit: its last convolution gives that many times its width


@dataclass(frozen=True)
class Stage:
    """width: channels of its 3x3 convolutions. iterations: of the residual unit, at most. stride: of the first unit."""

    width: int
    iterations: int
    stride: int = 2


@dataclass(frozen=True)
class Config:
    """side: of the square image. stem: channels, kernel, stride; pool: a 3x3 max pooling with stride 2 behind it.

    bottleneck: units of 1x1, 3x3, 1x1 convolutions that give four times their width, else of two 3x3. shared: else each
    iteration has weights of its own and no halting: the residual network that is replaced. epsilon: a sample halts
    when its scores add up to 1 - epsilon. halting_bias: to begin with. held_steps: training steps in which the scores
    stay what they are; tau: weight of the ponder cost in the loss, reached in a straight rise over tau_steps more.

    The defaults are ours for Fashion-MNIST: nearly all work is in the last stage, whose iterations are the exits.
    """

    side: int = 28
    channels_in: int = 1
    classes: int = 10
    stem: tuple[int, int, int] = (16, 5, 2)
    pool: bool = False
    stages: tuple[Stage, ...] = (Stage(16, 2, 1), Stage(48, 6))
    bottleneck: bool = False
    shared: bool = True
    epsilon: float = 0.01
    halting_bias: float = -3.0
    held_steps: int = 1500
    tau: float = 0.005
    tau_steps: int = 1000

    def __post_init__(self) -> None:
        sizes = (
            *self.stem,
            *(n for stage in self.stages for n in (stage.width, stage.iterations, stage.stride)),
        )
        if not self.stages or min(sizes) < 1:
            raise BadInput(f"IamNN: widths, iterations and strides must be at least 1, got {self.stages}")
        if not 0 < self.epsilon < 1:
            raise BadInput(f"IamNN: epsilon must lie between 0 and 1, got {self.epsilon}")
        if self.tau < 0 or self.held_steps < 0 or self.tau_steps < 1:
            raise BadInput("IamNN: tau and held_steps must be at least 0 and tau_steps at least 1")

    def channels(self, stage: int) -> int:
        """What this stage gives; stage -1: the stem."""
        if stage < 0:
            return self.stem[0]
        return self.stages[stage].width * (_EXPANSION if self.bottleneck else 1)

    def sides(self) -> tuple[int, ...]:
        """Of the maps: after the stem, then of each stage."""
        side = _halved(self.side, self.stem[2])
        found = [_halved(side, 2) if self.pool else side]
        for stage in self.stages:
            found.append(_halved(found[-1], stage.stride))
        return tuple(found)


def resnet101_cifar(classes: int = 10, *, shared: bool = True) -> Config:
    """ResNet-101's stages on 32x32 images, with at most as many iterations as it has units (He et al., 1512.03385)."""
    return Config(32, 3, classes, (64, 3, 1), False, _stages(2, 3, 22, 2, first=1), True, shared)


def resnet152(classes: int = 1000, *, shared: bool = True) -> Config:
    """ResNet-152's stages on 224x224 images."""
    return Config(224, 3, classes, (64, 7, 2), True, _stages(2, 7, 35, 2, first=1), True, shared)


def _stages(*iterations: int, first: int) -> tuple[Stage, ...]:
    return tuple(Stage(64 * 2**k, n, 2 if k else first) for k, n in enumerate(iterations))


# --- what it costs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """parameters: of weights, norms, biases and halting scores. macs: of convolutions, linear layers and scores."""

    parameters: int
    macs: int


def cost(config: Config, iterations: tuple[int, ...] | None = None) -> Cost:
    """Of the network when each stage runs that many iterations, all of them where not given.

    Parameters are the whole network's whatever runs. Raises BadInput for iterations the configuration does not have.
    """
    most = tuple(stage.iterations for stage in config.stages)
    runs = most if iterations is None else iterations
    if len(runs) != len(most) or not all(1 <= n <= top for n, top in zip(runs, most, strict=True)):
        raise BadInput(f"IamNN: iterations must be 1 to {most} by stage, got {runs}")
    sides = config.sides()
    channels, kernel, stride = config.stem
    parameters, macs = _convolution(config.channels_in, channels, kernel, _halved(config.side, stride))
    for place, (stage, n) in enumerate(zip(config.stages, runs, strict=True)):
        reads, gives = config.channels(place - 1), config.channels(place)
        down = _unit(config, reads, stage, sides[place], sides[place + 1])
        if reads != gives or stage.stride > 1:
            down.append(_convolution(reads, gives, 1, sides[place + 1]))
        again = _unit(config, gives, stage, sides[place + 1], sides[place + 1])
        weights, work = (sum(each[k] for each in again) for k in (0, 1))
        norms = 2 * (stage.width * (2 if config.bottleneck else 1) + gives)
        units = weights + norms * (stage.iterations - 1) if config.shared else weights * stage.iterations
        parameters += sum(each[0] for each in down) + units
        macs += sum(each[1] for each in down) + work * n
        if config.shared:
            parameters += gives + 1
            macs += gives * n
    linear = config.channels(len(most) - 1) * config.classes
    return Cost(parameters + linear + config.classes, macs + linear)


def exit_macs(config: Config) -> tuple[int, ...]:
    """Per exit, cumulative, as stages compute it: all of earlier stages, n iterations of the last, n classifiers.

    The last iteration of an earlier stage takes what remains: nobody asks for its score.
    """
    *earlier, last = (stage.iterations for stage in config.stages)
    unasked = sum(config.channels(place) for place in range(len(earlier)))
    linear = config.channels(len(earlier)) * config.classes
    return tuple(cost(config, (*earlier, n)).macs - unasked + linear * (n - 1) for n in range(1, last + 1))


def _unit(config: Config, reads: int, stage: Stage, before: int, after: int) -> list[tuple[int, int]]:
    """The convolutions of one residual unit on maps of side `before`, its stride in the first 3x3 one."""
    wide = stage.width
    if not config.bottleneck:
        return [_convolution(reads, wide, _KERNEL, after), _convolution(wide, wide, _KERNEL, after)]
    return [
        _convolution(reads, wide, 1, before),
        _convolution(wide, wide, _KERNEL, after),
        _convolution(wide, wide * _EXPANSION, 1, after),
    ]


def _convolution(reads: int, makes: int, kernel: int, side: int) -> tuple[int, int]:
    """Parameters, with the batch norm's, and MACs of a convolution that gives maps of side x side."""
    weights = reads * makes * kernel**2
    return weights + 2 * makes, weights * side**2


def _halved(side: int, stride: int) -> int:
    return -(-side // stride)
