"""Train a classifier with one exit or several on labelled samples, by the loop of fit. Knows no data and no network."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.host.train.fit import (
    Batch,
    Checkpoint,
    Fitted,
    Gradient,
    Hook,
    Loss,
    Models,
    Schedule,
    Update,
    fit,
    reproducible,
)
from edgekit.host.train.outputs import Outputs, outputs_of
from edgekit.host.train.samples import Augment, augmented
from edgekit.host.train.schedules import warm_cosine
from edgekit.host.watch import Watch, unwatched
from edgekit.runtime.data import Data

_STUDENT = "student"
_EVALUATED_AT_ONCE = 500
_STEPS_KEPT = 200  # between two checkpoints
_IMAGE_RANK = 4

Criterion: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"  # logits [N, classes], classes [N] -> a scalar
OwnLoss: TypeAlias = "Callable[[Outputs, Batch], Tensor]"  # what the pass gave, the batch -> a scalar
Teach: TypeAlias = "Callable[[Tensor], Tensor]"  # x of a batch -> a teacher's logits [N, classes]
TEACHER = "teacher"  # its answers in a batch


@dataclass(frozen=True)
class Training:
    """How to train. The rate rises over the share `warm_up` of all steps to `lr`, then falls as a cosine to 0.

    lr is for `batch` samples at once. weight_decay: not on biases and batch norms. exit_weights: of each exit's cross
    entropy in the sum, none given: 1 each. bfloat16: products in mixed precision, faster on CPUs that have it.
    """

    epochs: int = 10
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.15
    label_smoothing: float = 0.0
    exit_weights: tuple[float, ...] = ()
    clip: float | None = None  # the largest norm of all gradients together
    shift: int = 0  # pixels, each way, edges repeated
    flip: bool = False
    bfloat16: bool = False


class Labelled:
    """Samples with their classes in memory: take() gives x, float32 as the network wants it, and y, int64 [N].

    x: uint8 images [N, H, W] or [N, H, W, C] (RGB) of the input's own size where it has preprocessing, else
    tensors [N, *shape without the batch]. y: [N]. Raises BadInput where they do not fit the input or one another.
    """

    def __init__(
        self, x: NDArray[Any], y: NDArray[Any], image: Input, augment: Augment | None = None
    ) -> None:
        self._input, self._augment = image, augment or Augment()
        if self._augment.mixup:
            raise BadInput("supervised: mixup mixes inputs and not their classes: it is for distillation")
        if y.shape != (len(x),) or y.dtype.kind not in "iu" or not len(y) or int(y.min()) < 0:
            raise BadInput(
                f"supervised: wants a class >= 0 per sample, got {y.dtype} {list(y.shape)} for {len(x)} samples"
            )
        self.y = torch.from_numpy(y.astype(np.int64))
        self._pixels = x.dtype == np.uint8 and image.preprocess is not None
        held = _laid_out(x, image) if self._pixels else x.astype(image.tensor.dtype, copy=False)
        if held.shape[1:] != image.tensor.shape[1:] or image.tensor.shape[0] != 1:
            raise BadInput(
                f"supervised: the input wants samples of shape {list(image.tensor.shape[1:])}, got {list(x.shape[1:])}"
            )
        self._x = torch.from_numpy(np.array(held, order="C"))
        self.teach: Teach | None = None
        self.answers: Tensor | None = None

    def taught(self, teach: Teach) -> Labelled:
        """The same with a teacher's logits in each batch; asked once for samples that are not augmented."""
        made = copy.copy(self)
        made.teach, made.answers = teach, None
        if not self._augment.any:
            starts = range(0, self.count, _EVALUATED_AT_ONCE)
            parts = (self.plain(at, at + _EVALUATED_AT_ONCE)["x"] for at in starts)
            made.answers = torch.cat([teach(part) for part in parts])
        return made

    @property
    def count(self) -> int:
        """How many samples."""
        return len(self._x)

    @property
    def classes(self) -> int:
        """One more than the largest class that occurs."""
        return int(self.y.max()) + 1

    def take(self, indices: Tensor, random: torch.Generator) -> Batch:
        """These samples, augmented where that is wanted."""
        x = self._x[indices]
        if self._augment.any:
            name = self._input.tensor.name
            x = augmented({name: x[:, None]}, [self._input], self._augment, random)[name][:, 0]
        batch = {"x": self._prepared(x), "y": self.y[indices]}
        if self.answers is not None:
            batch[TEACHER] = self.answers[indices]
        elif self.teach is not None:
            batch[TEACHER] = self.teach(batch["x"])
        return batch

    def plain(self, start: int, end: int) -> Batch:
        """A stretch of the samples as they are."""
        return {"x": self._prepared(self._x[start:end]), "y": self.y[start:end]}

    def key(self) -> str:
        """sha256 of all that is in it."""
        parts = (
            self._x.numpy().tobytes(),
            self.y.numpy().tobytes(),
            repr((self._input, self._augment)).encode(),
            b"" if self.answers is None else self.answers.contiguous().numpy().tobytes(),
        )
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def _prepared(self, x: Tensor) -> Tensor:
        how = self._input.preprocess
        if self._pixels and how is not None:
            shape = (-1, 1, 1) if self._input.layout == "NCHW" else (-1,)
            mean, std = (torch.tensor(each).reshape(shape) for each in (how.mean, how.std))
            x = (x.float() * how.scale - mean) / std
        x = x.float() if x.dtype == torch.uint8 else x  # networks take pixels as floats
        images = x.ndim == _IMAGE_RANK and self._input.layout == "NCHW"
        return x.contiguous(memory_format=torch.channels_last) if images else x


def _laid_out(x: NDArray[Any], image: Input) -> NDArray[Any]:
    """Images [N, H, W] or [N, H, W, C] in the layout and the order of channels of the input."""
    x = x[..., None] if x.ndim == _IMAGE_RANK - 1 else x
    if image.preprocess is not None and image.preprocess.channels == "BGR":
        x = x[..., ::-1]
    return np.moveaxis(x, -1, 1) if image.layout == "NCHW" and x.ndim == _IMAGE_RANK else x


def labelled(data: Data, image: Input, augment: Augment | None = None) -> Labelled:
    """What load_data read, prepared once as boards prepare it. Raises BadInput where there are no labels."""
    if data.labels is None:
        raise BadInput(f"{data.source}: training needs labels, and there are none")
    first = data.inputs(0)[image.tensor.name]
    x = np.empty((data.count, *first.shape[1:]), first.dtype)
    for index in range(data.count):
        x[index] = data.inputs(index)[image.tensor.name][0]
    return Labelled(x, data.labels, replace(image, preprocess=None), augment)


@runtime_checkable
class HasLosses(Protocol):
    """A module with losses of its own (IamNN's ponder cost): scalars by name, added to the cross entropy."""

    def losses(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """From what the pass just gave."""


class _Pass:
    """One forward pass per batch, which all losses read."""

    def __init__(self, criterion: Criterion, options: Joint) -> None:
        self._criterion, self._options = criterion, options
        self._own: Mapping[str, Tensor] = {}
        self._outputs: Outputs | None = None

    def of_exits(self, models: Models, batch: Batch) -> Tensor:
        """The weighted sum of the criterion over exits. The first loss of a step: it does the pass."""
        module = models[_STUDENT]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._options.bfloat16):
            outputs = self._outputs = outputs_of(module(batch["x"]))
        self._own = module.losses(outputs) if isinstance(module, HasLosses) else {}
        weights = self._options.exit_weights or (1.0,) * len(outputs.logits)
        parts = [
            weight * self._criterion(logits.float(), batch["y"])
            for weight, logits in zip(weights, outputs.logits, strict=True)
        ]
        return torch.stack(parts).sum()

    def own(self, name: str) -> Loss:
        """One of the module's own losses."""
        return lambda models, batch: self._own[name].float()

    def more(self, loss: OwnLoss) -> Loss:
        """One of the method's other losses."""

        def of_pass(models: Models, batch: Batch) -> Tensor:
            assert self._outputs is not None  # noqa: S101  (the criterion is the first loss)
            return loss(self._outputs, batch)

        return of_pass


def train_classifier(
    module: nn.Module,
    samples: Labelled,
    options: Training,
    *,
    seed: int,
    threads: int = 1,
    hooks: Sequence[Hook] = (),
    checkpoint: Path | None = None,
    watch: Watch = unwatched,
    what: str = "train",
) -> Fitted:
    """Train the module's weights in place by SGD with Nesterov momentum; leaves it in evaluation mode.

    All exits are trained jointly: the weighted sum of their cross entropies (Huang et al. 2018, arXiv 1703.09844,
    weighs them equally), and the module's own losses where it has any. checkpoint: a file to resume from. With the same
    arguments and weights the result is the same to the bit. Raises BadInput where exits, classes and weights do not fit
    one another or the loss runs away, WorldFailed where the checkpoint cannot be written.
    """
    method = Method(
        "cross entropy",
        partial(functional.cross_entropy, label_smoothing=options.label_smoothing),
        Gradient(_optimizer(module, options), options.clip),
        warm_cosine(options.warm_up),
    )
    return train_by(
        method,
        module,
        samples,
        options,
        seed=seed,
        threads=threads,
        hooks=hooks,
        checkpoint=checkpoint,
        watch=watch,
        what=what,
    )


class Joint(Protocol):
    """What options of any method say. exit_weights: of each exit's criterion in the sum, none: 1 each."""

    @property
    def epochs(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def exit_weights(self) -> tuple[float, ...]: ...

    @property
    def bfloat16(self) -> bool: ...


@dataclass(frozen=True)
class Method:
    """How scores become a loss, and a loss new weights. loss: the criterion's name; rate: the schedule "lr".

    more: further losses by name, from what the pass gave; schedules: further ones, that hooks read.
    """

    loss: str
    criterion: Criterion
    update: Update
    rate: Schedule
    more: Mapping[str, OwnLoss] = field(default_factory=dict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)


def train_by(
    method: Method,
    module: nn.Module,
    samples: Labelled,
    options: Joint,
    *,
    seed: int,
    threads: int = 1,
    hooks: Sequence[Hook] = (),
    checkpoint: Path | None = None,
    watch: Watch = unwatched,
    what: str = "train",
) -> Fitted:
    """Train all exits jointly by a method, as train_classifier does by its own."""
    with reproducible(seed, threads):
        names = _check(module, samples, options)
    module.to(memory_format=torch.channels_last)
    one = _Pass(method.criterion, options)
    losses = {method.loss: one.of_exits, **{name: one.own(name) for name in names}}
    losses.update((name, one.more(loss)) for name, loss in method.more.items())
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(checkpoint, _key(module, samples, options, seed, threads), _STEPS_KEPT)
    module.train()
    try:
        return fit(
            samples,
            {_STUDENT: module},
            losses,
            method.update,
            {"lr": method.rate, **method.schedules},
            hooks,
            epochs=options.epochs,
            batch=options.batch,
            seed=seed,
            threads=threads,
            checkpoint=kept,
            watch=watch,
            what=what,
        )
    finally:
        module.eval()


def _check(module: nn.Module, samples: Labelled, options: Joint) -> tuple[str, ...]:
    """Try one pass on a copy; the names of the module's own losses."""
    trial = copy.deepcopy(module).train()
    batch = samples.plain(0, min(2, samples.count))
    outputs = outputs_of(trial(batch["x"]))
    exits = len(outputs.logits)
    if options.exit_weights and len(options.exit_weights) != exits:
        raise BadInput(
            f"supervised: the network has {exits} exits, got {len(options.exit_weights)} exit weights"
        )
    fewest = min(logits.shape[-1] for logits in outputs.logits)
    if fewest < samples.classes:
        raise BadInput(
            f"supervised: the network tells {fewest} classes apart, the samples have {samples.classes}"
        )
    return tuple(trial.losses(outputs)) if isinstance(trial, HasLosses) else ()


def _optimizer(module: nn.Module, options: Training) -> torch.optim.Optimizer:
    """Weight decay on what multiplies (two dimensions or more), none on biases, batch norms and other vectors."""
    weights = [each for each in module.parameters() if each.requires_grad and each.ndim > 1]
    vectors = [each for each in module.parameters() if each.requires_grad and each.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        options.lr,
        momentum=options.momentum,
        nesterov=options.momentum > 0,
    )


def _key(module: nn.Module, samples: Labelled, options: Joint, seed: int, threads: int) -> str:
    """What makes a training this one: its data, its options, and the weights it starts from."""
    start = hashlib.sha256()
    for name, value in module.state_dict().items():
        start.update(f"{name} {list(value.shape)}".encode())
        start.update(value.detach().contiguous().numpy().tobytes())
    parts = (samples.key(), repr(options), seed, threads, start.hexdigest(), torch.__version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Judged:
    """How a network answers: accuracy per exit as a fraction, and the mean cross entropy."""

    accuracy: tuple[float, ...]
    loss: tuple[float, ...]


def evaluate(module: nn.Module, samples: Labelled, at_once: int = _EVALUATED_AT_ONCE) -> Judged:
    """The module on all samples as they are, in evaluation mode; its mode stays what it was."""
    training = module.training
    module.eval()
    right: list[float] = []
    loss: list[float] = []
    try:
        with torch.no_grad():
            for start in range(0, samples.count, at_once):
                batch = samples.plain(start, start + at_once)
                logits = outputs_of(module(batch["x"])).logits
                right = right or [0.0] * len(logits)
                loss = loss or [0.0] * len(logits)
                for place, each in enumerate(logits):
                    right[place] += int((each.argmax(-1) == batch["y"]).sum())
                    loss[place] += float(functional.cross_entropy(each.float(), batch["y"], reduction="sum"))
    finally:
        module.train(training)
    return Judged(tuple(n / samples.count for n in right), tuple(n / samples.count for n in loss))
