"""CondenseNet: 1x1 convolutions that learn which inputs each of their groups reads (Huang et al. 2018, 1711.09224).

Half of the training prunes: in each of C - 1 stages every group lets go of 1 / C of its inputs, those with the smallest
sum of magnitudes; the other half trains with 1 / C left. What is left is a gather of channels, a plain convolution in
groups, and a shuffle: `converted` makes that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.host.train.fit import Hook, Moment
from edgekit.host.train.networks.shufflenet import shuffle
from edgekit.host.train.outputs import Outputs

_BOTTLENECK = 4  # widths of the 1x1 convolution for one of the 3x3


@dataclass(frozen=True)
class Config:
    """stages: layers of each; growth: channels that each of their layers adds. groups: of both convolutions.

    condense: C, of how many inputs one is left for a group. lasso: weight of the group lasso in the loss.
    """

    channels: int = 1
    classes: int = 10
    stages: tuple[int, ...] = (3, 3, 3)
    growth: tuple[int, ...] = (8, 8, 16)
    groups: int = 4
    condense: int = 4
    lasso: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.channels, self.classes, self.groups, self.condense, *self.stages, *self.growth)
        if not self.stages or len(self.stages) != len(self.growth) or min(sizes) < 1 or self.lasso < 0:
            raise BadInput(f"condensenet: wants a growth for each stage and sizes of at least 1, got {self}")
        for inputs, growth in self.layers():
            if inputs % self.condense or growth % self.groups:
                raise BadInput(
                    f"condensenet: inputs must be multiples of {self.condense} and growths of {self.groups} groups, "
                    f"got {inputs} inputs and a growth of {growth}"
                )

    def layers(self) -> Iterator[tuple[int, int]]:
        """(inputs, growth) of each dense layer."""
        channels = 2 * self.growth[0]
        for stage, growth in zip(self.stages, self.growth, strict=True):
            for _ in range(stage):
                yield channels, growth
                channels += growth

    @property
    def last(self) -> int:
        """Channels that the classifier reads."""
        return 2 * self.growth[0] + sum(
            n * growth for n, growth in zip(self.stages, self.growth, strict=True)
        )

    def weights(self) -> int:
        """The closed form of what is left after the conversion, without biases and batch norms."""
        total = 9 * self.channels * 2 * self.growth[0] + self.last * self.classes
        for inputs, growth in self.layers():
            inner = _BOTTLENECK * growth
            total += inputs // self.condense * inner + 9 * inner * growth // self.groups
        return total

    def parameters(self) -> int:
        """The closed form with biases and batch norms, of which one reads what each group has gathered."""
        norms = sum(
            2 * self.groups * inputs // self.condense + 2 * _BOTTLENECK * growth
            for inputs, growth in self.layers()
        )
        return self.weights() + norms + 2 * self.last + self.classes

    def macs(self, side: int) -> int:
        """The closed form for a square image; each stage after the first halves its side."""
        total = 9 * self.channels * 2 * self.growth[0] * side**2 + self.last * self.classes
        found = self.layers()
        for stage in self.stages:
            for _ in range(stage):
                inputs, growth = next(found)
                inner = _BOTTLENECK * growth
                total += (inputs // self.condense * inner + 9 * inner * growth // self.groups) * side**2
            side //= 2
        return total


def cifar(layers: int = 14, classes: int = 10) -> Config:
    """For 32x32x3: 8 layers a stage make CondenseNet-50, 14 CondenseNet-86."""
    return Config(3, classes, (layers,) * 3, (8, 16, 32))


class LearnedGroups(nn.Module):
    """Batch norm, ReLU, 1x1 convolution [out, in] of which the mask says what is left. Row r is of group r mod G."""

    mask: Tensor

    def __init__(self, channels: int, width: int, groups: int, condense: int) -> None:
        super().__init__()
        if channels % condense or width % groups:
            raise BadInput(
                f"condensenet: {channels} inputs must be a multiple of {condense} and {width} outputs one of {groups}"
            )
        self.groups, self.condense = groups, condense
        self.norm, self.active = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv = nn.Conv2d(channels, width, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.register_buffer("mask", torch.ones_like(self.conv.weight))

    def forward(self, value: Tensor) -> Tensor:
        return functional.conv2d(self.active(self.norm(value)), self.conv.weight * self.mask)

    def of_groups(self, weight: Tensor) -> Tensor:
        """[out, in, 1, 1] as [out / G, G, in]."""
        return weight.reshape(-1, self.groups, weight.shape[1])

    @property
    def stage(self) -> int:
        """How many times each group has let inputs go."""
        left = int(self.of_groups(self.mask)[0, 0].sum())
        inputs = self.mask.shape[1]
        return (inputs - left) * self.condense // inputs

    def condense_once(self) -> None:
        """Each group lets go of in / C of the inputs that are left, those of the smallest sum of magnitudes."""
        inputs = self.mask.shape[1]
        masks = self.of_groups(self.mask).clone()
        sums = self.of_groups((self.conv.weight * self.mask).detach().abs()).sum(0)
        for group in range(self.groups):
            order = torch.where(masks[0, group] > 0, sums[group], torch.inf)
            masks[:, group, torch.sort(order, stable=True)[1][: inputs // self.condense]] = 0
        self.mask = masks.reshape(self.mask.shape)

    def lasso(self) -> Tensor:
        """The sum over groups and inputs of the norm of the weights that read one."""
        weight = self.of_groups(self.conv.weight * self.mask)
        return weight.square().sum(0).clamp(min=1e-16).sqrt().sum()


class Gathered(nn.Module):
    """What LearnedGroups becomes: channels gathered (some more than once), a convolution in groups, a shuffle."""

    index: Tensor

    def __init__(self, learned: LearnedGroups) -> None:
        super().__init__()
        masks, weight = learned.of_groups(learned.mask)[0], learned.of_groups(learned.conv.weight.detach())
        kept = [mask.nonzero().flatten() for mask in masks]
        if len({len(each) for each in kept}) != 1:
            raise BadInput("condensenet: every group must have as many inputs left as the others")
        self.groups = learned.groups
        self.register_buffer("index", torch.cat(kept))
        self.norm, self.active = _picked(learned.norm, self.index), nn.ReLU()
        width = learned.mask.shape[0]
        self.conv = nn.Conv2d(len(self.index), width, 1, groups=self.groups, bias=False)
        rows = [weight[:, group, each] for group, each in enumerate(kept)]
        with torch.no_grad():
            self.conv.weight.copy_(torch.cat(rows)[:, :, None, None])

    def forward(self, value: Tensor) -> Tensor:
        made = self.conv(self.active(self.norm(value.index_select(1, self.index))))
        return shuffle(made, self.groups)


def _picked(norm: nn.BatchNorm2d, index: Tensor) -> nn.BatchNorm2d:
    """A batch norm of some of the channels, in this order."""
    made = nn.BatchNorm2d(len(index), norm.eps, norm.momentum)
    made.load_state_dict(
        {name: value[index] if value.ndim else value for name, value in norm.state_dict().items()}
    )
    return made


class _Layer(nn.Module):
    def __init__(self, channels: int, growth: int, config: Config) -> None:
        super().__init__()
        inner = _BOTTLENECK * growth
        self.first: nn.Module = LearnedGroups(channels, inner, config.groups, config.condense)
        conv = nn.Conv2d(inner, growth, 3, padding=1, groups=config.groups, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.second = nn.Sequential(nn.BatchNorm2d(inner), nn.ReLU(), conv)

    def forward(self, value: Tensor) -> Tensor:
        return torch.cat([value, self.second(self.first(value))], 1)


class CondenseNet(nn.Module):
    """[N, channels, H, W] -> logits [N, classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight = config.lasso
        stem = nn.Conv2d(config.channels, 2 * config.growth[0], 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, nonlinearity="relu")
        layers: list[nn.Module] = [stem]
        found = config.layers()
        for place, stage in enumerate(config.stages):
            layers += [nn.AvgPool2d(2)] if place else []
            layers += [_Layer(*next(found), config) for _ in range(stage)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(config.last), nn.ReLU())
        self.classify = nn.Linear(config.last, config.classes)

    def forward(self, image: Tensor) -> Outputs:
        value = functional.adaptive_avg_pool2d(self.layers(image), 1).flatten(1)
        return Outputs((self.classify(value),))

    def losses(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """The group lasso, where it has a weight."""
        del outputs
        found = [each.lasso() for each in learned(self)] if self.weight else []
        return {"group lasso": self.weight * torch.stack(found).sum()} if found else {}


def learned(module: nn.Module) -> list[LearnedGroups]:
    """Every learned convolution, in order."""
    return [each for each in module.modules() if isinstance(each, LearnedGroups)]


class Condense(Hook):
    """Stage i of C - 1 begins when twice the share of steps that are done reaches i / (C - 1)."""

    def __init__(self, module: nn.Module) -> None:
        self._convs = learned(module)

    def after_step(self, moment: Moment) -> None:
        for conv in self._convs:
            due = min(conv.condense - 1, 2 * moment.step * (conv.condense - 1) // moment.steps)
            while conv.stage < due:
                conv.condense_once()


def converted(module: nn.Module) -> nn.Module:
    """A copy with plain convolutions in groups. Raises BadInput where groups are not condensed to the end."""
    made = copy.deepcopy(module)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LearnedGroups):
                if child.stage != child.condense - 1:
                    raise BadInput(
                        f"condensenet: {child.condense - 1} stages of pruning must be over, got {child.stage}"
                    )
                setattr(parent, name, Gathered(child).train(child.training))
    return made
