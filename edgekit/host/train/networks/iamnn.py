"""IamNN as a module: the iterations of its last stage are the exits, their halting scores the confidences.

Leroux et al. 2018, arXiv 1804.10123; its plan says what it is made of, act.py how a sample halts. The classifier
reads a mean over the map, so a mixture of states is classified from the mixture of their means.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.host.train.networks.act import Halting
from edgekit.host.train.networks.iamnn_plan import Config, Stage
from edgekit.host.train.outputs import Outputs


def _conv(reads: int, makes: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    made = nn.Conv2d(reads, makes, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


class _Unit(nn.Module):
    """A residual unit's convolutions, with one set of batch norms for each time it is applied."""

    def __init__(self, config: Config, reads: int, stage: Stage, stride: int, times: int = 1) -> None:
        super().__init__()
        wide = stage.width
        if config.bottleneck:
            made = [_conv(reads, wide, 1), _conv(wide, wide, 3, stride), _conv(wide, wide * 4, 1)]
        else:
            made = [_conv(reads, wide, 3, stride), _conv(wide, wide, 3)]
        self.convolutions = nn.ModuleList(made)
        norms = ([nn.BatchNorm2d(each.out_channels) for each in made] for _ in range(times))
        self.norms = nn.ModuleList(nn.ModuleList(each) for each in norms)
        gives = made[-1].out_channels
        self.shortcut: nn.Module = nn.Identity()
        if reads != gives or stride > 1:
            self.shortcut = nn.Sequential(_conv(reads, gives, 1, stride), nn.BatchNorm2d(gives))

    def forward(self, state: Tensor, time: int = 0) -> Tensor:
        """The state after one more application; time: which one, from 0."""
        made, norms = state, self.norms[time]
        for place, (convolution, norm) in enumerate(zip(self.convolutions, norms, strict=True)):
            made = norm(convolution(functional.relu(made) if place else made))
        return functional.relu(made + self.shortcut(state))


class _Stage(nn.Module):
    """The down-sampling unit, then the residual unit as often as wanted; the halting score of a state."""

    def __init__(self, config: Config, place: int) -> None:
        super().__init__()
        stage = config.stages[place]
        reads, self.gives = config.channels(place - 1), config.channels(place)
        self.iterations = stage.iterations
        self.down = _Unit(config, reads, stage, stage.stride)
        sets = 1 if config.shared else stage.iterations
        times = stage.iterations if config.shared else 1
        self.units = nn.ModuleList(_Unit(config, self.gives, stage, 1, times) for _ in range(sets))
        if config.shared:
            self.halt = nn.Linear(self.gives, 1)
            nn.init.normal_(self.halt.weight, 0, 0.01)
            nn.init.constant_(self.halt.bias, config.halting_bias)

    def again(self, state: Tensor, time: int) -> Tensor:
        """The state after iteration `time`, from 0."""
        if len(self.units) == 1:
            return self.units[0](state, time)
        return self.units[time](state)


class IamNN(nn.Module):
    """[N, C, side, side] -> Outputs: logits and cumulative halting scores per iteration of the last stage.

    An exit's answer is what the sample would give if it halted there; a sample that has halted keeps its answer at all
    later exits. So the last exit is what adaptive computation time answers, and leaving at the first exit whose
    confidence reaches 1 - epsilon gives the same answer sooner. also: "ponder", float [N], N + R summed over stages,
    and "iterations", float [N, stages]. Without sharing (the residual network it replaces) there is one exit.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels, kernel, stride = config.stem
        self.stem = nn.Sequential(
            _conv(config.channels_in, channels, kernel, stride), nn.BatchNorm2d(channels), nn.ReLU()
        )
        if config.pool:
            self.stem.append(nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList(_Stage(config, place) for place in range(len(config.stages)))
        self.classify = nn.Linear(config.channels(len(config.stages) - 1), config.classes)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of training

    def forward(self, image: Tensor) -> Outputs:
        """See the class."""
        state = self.stem(image)
        *earlier, last = self.stages
        if not self.config.shared:
            for stage in self.stages:
                state = stage.down(state)
                for time in range(stage.iterations):
                    state = stage.again(state, time)
            return Outputs((self.classify(_mean(state)),))
        halted = []
        for stage in earlier:
            halting = Halting(stage.iterations, self.config.epsilon)
            state = self._mixed(stage, stage.down(state), halting)
            halted.append(halting)
        halting = Halting(last.iterations, self.config.epsilon)
        logits, confidences = self._exits(last, last.down(state), halting)
        halted.append(halting)
        ponder = torch.cat([each.iterations + each.remainder for each in halted], 1).sum(1)
        iterations = torch.cat([each.iterations for each in halted], 1)
        return Outputs(logits, confidences, {"ponder": ponder, "iterations": iterations})

    def _mixed(self, stage: _Stage, state: Tensor, halting: Halting) -> Tensor:
        """The mixture of all states of a stage by their shares."""
        parts = []
        for time in range(stage.iterations):
            state = stage.again(state, time)
            share = halting.step(self._score(stage, _mean(state))).share
            parts.append(share.reshape(-1, 1, 1, 1) * state if stage.iterations > 1 else state)
        return functools.reduce(torch.add, parts)

    def _exits(
        self, stage: _Stage, state: Tensor, halting: Halting
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Logits [N, classes] and confidences [N] after each iteration of the last stage."""
        before: Tensor | None = None  # mean of the mixture so far
        logits, confidences = [], []
        for time in range(stage.iterations):
            state = stage.again(state, time)
            mean = _mean(state)
            step = halting.step(self._score(stage, mean))
            closed = mean if before is None else before + step.closing * mean
            logits.append(self.classify(closed))
            confidences.append(step.score.squeeze(1))
            shared = step.share * mean
            before = shared if before is None else before + shared
        return tuple(logits), tuple(confidences)

    def _score(self, stage: _Stage, mean: Tensor) -> Tensor:
        """float32 [N, 1], also in mixed precision: sums near 1 - epsilon need the digits."""
        with torch.autocast("cpu", enabled=False):
            made: Tensor = torch.sigmoid(stage.halt(mean if mean.dtype == torch.float32 else mean.float()))
        # Late states are worse before they have learnt: scores that learnt at once would halt there, and for ever.
        return made.detach() if self.training and self.steps < self.config.held_steps else made

    def losses(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """The ponder cost; its gradient flows through the remainder alone. Counts the step."""
        if not self.config.shared:
            return {}
        since = (self.steps - self.config.held_steps).float()
        rise = torch.clamp(since / self.config.tau_steps, 0.0, 1.0)
        if self.training:
            self.steps += 1
        return {"ponder cost": self.config.tau * rise * outputs.also["ponder"].mean()}


def _mean(state: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(state, 1).flatten(1)
