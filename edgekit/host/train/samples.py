"""Data as batches of tensors, with augmentation that needs no labels: shifts, mirror images, mixtures of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgekit.core.manifest import Input
from edgekit.host.train.fit import Batch
from edgekit.runtime.data import Data

_HELD_BYTES = 2**30  # samples, or answers to them, that are kept in memory; more are read again each time


@dataclass(frozen=True)
class Augment:
    """How samples change from one time to the next. Shifts and flips touch images, mixtures floats.

    shift: pixels at most, each way, edges repeated. flip: mirror half of the images. mixup: largest share of another.
    """

    shift: int = 0
    flip: bool = False
    mixup: float = 0.0

    @property
    def any(self) -> bool:
        """Whether a sample ever changes."""
        return bool(self.shift or self.flip or self.mixup)


class Inputs:
    """The samples of `data` as the model's inputs: take() gives [N, *shape] per input, by name."""

    def __init__(self, data: Data, inputs: Sequence[Input], augment: Augment | None = None) -> None:
        self._data, self._inputs = data, tuple(inputs)
        self._augment = augment or Augment()
        each = sum(
            int(np.prod(entry.tensor.shape)) * np.dtype(entry.tensor.dtype).itemsize for entry in inputs
        )
        self._held = self._read(range(data.count)) if each * data.count <= _HELD_BYTES else None

    @property
    def count(self) -> int:
        """How many samples."""
        return self._data.count

    def take(self, indices: Tensor, random: torch.Generator) -> Batch:
        """Samples as they are, or augmented where that is wanted."""
        if self._held is not None:
            batch = {name: held[indices] for name, held in self._held.items()}
        else:
            batch = self._read(indices.tolist())
        return augmented(batch, self._inputs, self._augment, random) if self._augment.any else batch

    def _read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        first = self._data.inputs(indices[0])
        made = {name: np.empty((len(indices), *array.shape), array.dtype) for name, array in first.items()}
        for place, index in enumerate(indices):
            for name, array in self._data.inputs(index).items():
                made[name][place] = array
        return {name: torch.from_numpy(array) for name, array in made.items()}


def augmented(batch: Batch, inputs: Sequence[Input], augment: Augment, random: torch.Generator) -> Batch:
    """The batch, each sample changed by chances of its own."""
    count = len(next(iter(batch.values())))
    shifts = torch.randint(-augment.shift, augment.shift + 1, (2, count), generator=random)
    mirrored = (torch.rand(count, generator=random) < 0.5) & augment.flip
    others = torch.randperm(count, generator=random)
    shares = augment.mixup * torch.rand(count, generator=random)
    layouts = {entry.tensor.name: entry.layout for entry in inputs}
    made = {}
    for name, value in batch.items():
        image = layouts.get(name) in ("NCHW", "NHWC") and value.ndim == 5
        moved = _moved(value, layouts[name] == "NHWC", shifts, mirrored) if image else value
        share = shares.to(value.dtype).reshape(-1, *[1] * (value.ndim - 1))
        made[name] = moved + share * (moved[others] - moved) if value.is_floating_point() else moved
    return made


def _moved(images: Tensor, channels_last: bool, shifts: Tensor, mirrored: Tensor) -> Tensor:
    """Images [N, 1, C, H, W] or [N, 1, H, W, C], each shifted and mirrored."""
    last = images if channels_last else images.movedim(2, -1)
    height, width = last.shape[2:4]
    rows = (torch.arange(height) + shifts[0][:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) + shifts[1][:, None]).clamp(0, width - 1)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    every = torch.arange(len(images))[:, None, None]
    moved = last[every, :, rows[:, :, None], columns[:, None, :]]  # [N, H, W, batch, C]
    moved = moved.movedim(3, 1)
    return moved if channels_last else moved.movedim(-1, 2)


class Taught:
    """Inputs with what a teacher answers to them. Answers to samples that never change are computed once."""

    def __init__(self, inputs: Inputs, teach: Callable[[Batch], Sequence[Tensor]], *, changing: bool) -> None:
        self._inputs, self._teach = inputs, teach
        self._held: list[Tensor] | None = None
        if not changing:
            self._held = self._answers()

    @property
    def count(self) -> int:
        """How many samples."""
        return self._inputs.count

    def take(self, indices: Tensor, random: torch.Generator) -> Batch:
        """The inputs under their names with "in:" before, the teacher's answers as "want:0" ... ."""
        batch = self._inputs.take(indices, random)
        if self._held is not None:
            answers: Sequence[Tensor] = [held[indices] for held in self._held]
        else:
            answers = self._teach(batch)
        named = {f"in:{name}": value for name, value in batch.items()}
        return {**named, **{f"want:{place}": value for place, value in enumerate(answers)}}

    def _answers(self) -> list[Tensor] | None:
        """All of them, or None where they are too many to be held."""
        unused = torch.Generator()
        parts: list[list[Tensor]] = []
        for indices in torch.arange(self.count).split(64):
            parts.append([answer.clone() for answer in self._teach(self._inputs.take(indices, unused))])
            each = sum(answer.nbytes for answer in parts[0]) / len(parts[0][0])
            if each * self.count > _HELD_BYTES:
                return None
        return [torch.cat([part[place] for part in parts]) for place in range(len(parts[0]))]


def inputs_of(batch: Batch) -> Mapping[str, Tensor]:
    """The model's inputs in a batch of Taught."""
    return {name.removeprefix("in:"): value for name, value in batch.items() if name.startswith("in:")}
