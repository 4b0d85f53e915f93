"""The one training loop: a seed, a checkpoint that survives a kill, progress. Knows no data, no network and no method.

What is trained, by which losses, how weights are updated and what happens between steps come in as values. Randomness
is a function of (seed, step) and of PyTorch's own generator, whose state is kept: a resumed training ends in the same
bits as one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from edgekit.core.errors import BadInput, WorldFailed, one_line
from edgekit.core.files import write_atomic
from edgekit.host.watch import Watch, unwatched

Batch: TypeAlias = "Mapping[str, Tensor]"
Models: TypeAlias = "Mapping[str, nn.Module]"
Loss: TypeAlias = "Callable[[Models, Batch], Tensor]"  # a scalar to be made small
Schedule: TypeAlias = "Callable[[float], float]"  # share of all steps that are done -> value

_SEED_STRIDE = 1_000_003  # keeps the streams of neighbouring seeds apart
_FORMAT = 2


class Samples(Protocol):
    """Where batches come from. count: how many samples."""

    @property
    def count(self) -> int: ...

    def take(self, indices: Tensor, random: torch.Generator) -> Batch:
        """These samples (int64 [N]), augmented by `random` alone: tensors of N samples by name."""


class Update(Protocol):
    """How a loss becomes new weights; an optimizer, or a rule of its own (WAGE's integers)."""

    def set(self, values: Mapping[str, float]) -> None:
        """What the schedules say for the coming step."""

    def step(self, loss: Tensor) -> bool:
        """Gradients, then new weights. False: there are none, and the schedules stay where they are."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Gradient:
    """Backpropagation and an optimizer. The schedule "lr" is a factor on each group's rate; clip: a largest norm."""

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        self.optimizer, self.clip = optimizer, clip
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def set(self, values: Mapping[str, float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * values.get("lr", 1.0)

    def step(self, loss: Tensor) -> bool:
        self.backward(loss)
        self.apply()
        return True

    @property
    def weights(self) -> list[nn.Parameter]:
        """All that the optimizer has."""
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def backward(self, loss: Tensor) -> None:
        """Gradients of this loss alone."""
        self.optimizer.zero_grad()
        loss.backward()

    def apply(self) -> None:
        """The optimizer's step by the gradients that are there, clipped where that is wanted."""
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.optimizer.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


@dataclass(frozen=True)
class Moment:
    """Where a training stands. step: done of `steps`; values: of the schedules; losses: means of the epoch so far."""

    epoch: int
    step: int
    steps: int
    values: Mapping[str, float]
    losses: Mapping[str, float]


class Hook:
    """What happens between steps. A hook overrides what it needs; its state goes into the checkpoint."""

    def after_step(self, moment: Moment) -> None:
        """After each update."""

    def after_epoch(self, moment: Moment) -> bool:
        """After each epoch; True ends the training."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts in dicts and lists."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What state_dict gave."""


@dataclass(frozen=True)
class Fitted:
    """What a training did. losses: the mean of each, per epoch; stopped: a hook ended it early."""

    steps: int
    losses: tuple[Mapping[str, float], ...]
    stopped: bool


@dataclass(frozen=True)
class Checkpoint:
    """A file that a training is resumed from. key: what it was made with; every: steps between two writes."""

    path: Path
    key: str = ""
    every: int = 200


@dataclass
class _State:
    """What a checkpoint holds besides the weights. left_out: of the steps, those whose update did not count."""

    step: int
    left_out: int
    sums: dict[str, float]
    losses: list[dict[str, float]]


def fit(
    data: Samples,
    models: Models,
    losses: Mapping[str, Loss],
    update: Update,
    schedules: Mapping[str, Schedule] | None = None,
    hooks: Sequence[Hook] = (),
    *,
    epochs: int,
    batch: int,
    seed: int,
    threads: int = 1,
    checkpoint: Checkpoint | None = None,
    watch: Watch = unwatched,
    what: str = "train",
) -> Fitted:
    """Make the sum of the losses small. Changes the models' weights, and leaves them at the last step's.

    An epoch is a seeded order of all samples in batches of `batch`; what does not fill one comes another time. With the
    same arguments, threads included, the result is the same to the bit. A checkpoint that is there is resumed, and
    removed at the end. Raises BadInput where a loss is not finite, or the checkpoint is another training's; WorldFailed
    where it cannot be written.
    """
    size = max(1, min(batch, data.count))
    per_epoch = data.count // size
    steps = epochs * per_epoch
    state = _State(0, 0, dict.fromkeys(losses, 0.0), [])
    stopped = False
    with reproducible(seed, threads), watch(what, steps) as tick:
        if checkpoint is not None and checkpoint.path.exists():
            state = _resume(checkpoint, models, update, hooks)
            tick(state.step)
        while state.step < steps and not stopped:
            epoch, place = divmod(state.step, per_epoch)
            order = torch.randperm(data.count, generator=_random(seed, -1 - epoch))
            chosen = order[place * size : (place + 1) * size]
            values = {
                name: value((state.step - state.left_out) / steps)
                for name, value in (schedules or {}).items()
            }
            update.set(values)
            _one_step(data.take(chosen, _random(seed, state.step)), models, losses, update, state)
            state.step += 1
            means = {name: total / (place + 1) for name, total in state.sums.items()}
            moment = Moment(epoch, state.step, steps, values, means)
            for hook in hooks:
                hook.after_step(moment)
            if place + 1 == per_epoch:
                state.losses.append(means)
                state.sums = dict.fromkeys(losses, 0.0)
                votes = [hook.after_epoch(moment) for hook in hooks]  # each is asked
                stopped = any(votes)
            tick(1)
            if checkpoint is not None and not stopped and state.step % checkpoint.every == 0:
                _save(checkpoint, models, update, hooks, state)
        if checkpoint is not None:
            checkpoint.path.unlink(missing_ok=True)
    return Fitted(state.step, tuple(state.losses), stopped)


def _one_step(
    batch: Batch, models: Models, losses: Mapping[str, Loss], update: Update, state: _State
) -> None:
    parts = {name: loss(models, batch) for name, loss in losses.items()}
    total = torch.stack(list(parts.values())).sum()
    if not torch.isfinite(total):
        said = ", ".join(f"{name} {part.item():g}" for name, part in parts.items())
        raise BadInput(
            f"training: the loss is not finite at step {state.step} ({said}): take a smaller learning rate"
        )
    if not update.step(total):
        state.left_out += 1
    for name, part in parts.items():
        state.sums[name] += part.item()


def _random(seed: int, step: int) -> torch.Generator:
    """A generator of this step's own."""
    return torch.Generator().manual_seed((seed * _SEED_STRIDE + step) % 2**63)


@contextlib.contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Fixed threads, PyTorch's generator from the seed, no kernel whose result hangs on timing; then all as before."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.set_num_threads(before)


# --- checkpoints ----------------------------------------------------------------------------------------------


def _save(
    checkpoint: Checkpoint, models: Models, update: Update, hooks: Sequence[Hook], state: _State
) -> None:
    content = io.BytesIO()
    held = {
        "format": _FORMAT,
        "key": checkpoint.key,
        "models": {name: model.state_dict() for name, model in models.items()},
        "update": update.state_dict(),
        "hooks": [hook.state_dict() for hook in hooks],
        "random": torch.get_rng_state(),
        "step": state.step,
        "left_out": state.left_out,
        "sums": state.sums,
        "losses": state.losses,
    }
    torch.save(held, content)
    write_atomic(checkpoint.path, content.getvalue())


def _resume(checkpoint: Checkpoint, models: Models, update: Update, hooks: Sequence[Hook]) -> _State:
    path = checkpoint.path
    try:
        content = path.read_bytes()
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    try:
        held = torch.load(io.BytesIO(content), weights_only=True)  # data only: a checkpoint runs no code
        key = held["key"] if held["format"] == _FORMAT else None
    except Exception as err:  # unpickling what is no pickle raises anything
        raise BadInput(
            f"{path}: must be a training's checkpoint: {one_line(err)[:120]}; remove it to start anew"
        ) from err
    if key != checkpoint.key:
        raise BadInput(f"{path}: is the checkpoint of another training; remove it to start anew")
    try:
        for name, model in models.items():
            model.load_state_dict(held["models"][name])
        update.load_state_dict(held["update"])
        for hook, state in zip(hooks, held["hooks"], strict=True):
            hook.load_state_dict(state)
        torch.set_rng_state(held["random"])
        return _State(int(held["step"]), int(held["left_out"]), dict(held["sums"]), list(held["losses"]))
    except (RuntimeError, KeyError, TypeError, ValueError) as err:
        raise BadInput(
            f"{path}: is the checkpoint of another training: {one_line(err)[:120]}; remove it to start anew"
        ) from err
