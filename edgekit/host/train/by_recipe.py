"""Train a network as a recipe says: fresh, or compressed from trained weights. Over the one loop, with checkpoints."""

from __future__ import annotations

import glob
import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.core.files import write_atomic
from edgekit.host.train.adaptive import Adapted, adapt
from edgekit.host.train.bnn import squared_hinge
from edgekit.host.train.compress import compress
from edgekit.host.train.fit import Gradient, Hook, Moment, Schedule, Update, reproducible
from edgekit.host.train.group_pruning import compact, keep_positions
from edgekit.host.train.hooks import Masks
from edgekit.host.train.imported import Imported
from edgekit.host.train.lottery import Round, draw_tickets
from edgekit.host.train.mixed import FIRST, LossScaled
from edgekit.host.train.networks.condensenet import Condense, converted, learned
from edgekit.host.train.quantized import Settle, parameter_groups
from edgekit.host.train.recipe import Schooling, TrainRecipe, find_recipe
from edgekit.host.train.schedules import drops, exponential, gradual_sparsity, warm_cosine
from edgekit.host.train.supervised import Criterion, Judged, Labelled, Method, Teach, evaluate, train_by
from edgekit.host.train.teaching import Pair, teaching_losses
from edgekit.host.train.terngrad import TernGrad
from edgekit.host.train.wage import WageUpdate, sum_of_squares
from edgekit.host.watch import Watch, unwatched

BASELINE = "float32"  # the recipe that trained weights come from where none are given
_CONV_RANK = 4
_OBSERVED = 200  # samples that ranges of activations start from


@dataclass(frozen=True)
class Plan:
    """What train_by reads of a recipe: how long, how many at once."""

    epochs: int
    batch: int
    exit_weights: tuple[float, ...] = ()
    bfloat16: bool = False


@dataclass(frozen=True)
class Epoch:
    """One point of the learning curve: the mean of each loss, and the accuracy per exit on held-out samples."""

    epoch: int
    losses: dict[str, float]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """module: in evaluation mode. curve: per epoch. before: held-out accuracy of the weights it started from, or None.

    seconds: of training; None: resumed, nobody knows all of it. adapted: bit widths of single weights.
    rounds: of lottery tickets, with their controls.
    """

    module: nn.Module
    curve: tuple[Epoch, ...]
    before: tuple[float, ...] | None
    judged: Judged
    seconds: float | None
    adapted: Adapted | None = None
    rounds: tuple[Round, ...] = ()


class _Curve(Hook):
    """Held-out accuracy after each epoch. It is looked at, and decides nothing."""

    def __init__(self, module: nn.Module, held_out: Labelled) -> None:
        self._module, self._held_out = module, held_out
        self.points: list[Epoch] = []

    def after_epoch(self, moment: Moment) -> bool:
        judged = evaluate(self._module, self._held_out)
        self.points.append(Epoch(moment.epoch + 1, dict(moment.losses), judged.accuracy))
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"points": [[each.epoch, each.losses, list(each.accuracy)] for each in self.points]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = [Epoch(epoch, dict(losses), tuple(right)) for epoch, losses, right in state["points"]]


def train_by_recipe(
    recipe: TrainRecipe,
    make: Callable[[], nn.Module],
    samples: Labelled,
    held_out: Labelled,
    *,
    seed: int,
    trained: bool = False,
    teacher: Teach | None = None,
    make_teacher: Callable[[], nn.Module] | None = None,
    threads: int = 1,
    checkpoint: Path | None = None,
    start: Path | None = None,
    watch: Watch = unwatched,
) -> Trained:
    """A network of `make`, compressed and trained as the recipe says.

    trained: whether `make` gives trained weights; a recipe that starts from trained ones trains them first, by the
    recipe float32 with as many epochs, where it does not. teacher: answers with logits, for distillation in the schemes
    B and C; make_teacher: a fresh one, for scheme A. checkpoint: a file to resume from, removed at the end. start: for
    the trained weights that several recipes start from; without it they lie beside the checkpoint, and are removed. The
    same arguments give the same weights to the bit. Raises BadInput, WorldFailed.
    """
    if recipe.wants_teacher and teacher is None:
        raise BadInput(f"recipe {recipe.name}: distillation wants a trained teacher: give one")
    if recipe.teaching.scheme == "A" and make_teacher is None:
        raise BadInput(f"recipe {recipe.name}: scheme A trains a teacher as well: name its network")
    with reproducible(seed, threads):
        module = make()
    if recipe.lottery.rounds:
        return _drawn(recipe, make, _Run(samples, held_out, seed, threads, watch), checkpoint)
    from_trained, resumed = recipe.start == "trained", checkpoint is not None and checkpoint.exists()
    run = _Run(samples, held_out, seed, threads, watch)
    kept = start or (None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.start"))
    before: tuple[float, ...] | None = None
    if from_trained and not trained:
        resumed = resumed or (kept is not None and kept.exists())
        first = find_recipe(BASELINE)
        training = replace(first.training, epochs=recipe.training.epochs)
        told = repr((training, samples.key(), seed, threads))
        _finished(
            kept, module, told, lambda: run.train(replace(first, training=training), module, checkpoint)
        )
    if from_trained or trained:
        before = evaluate(module, held_out).accuracy
    with reproducible(seed, threads):
        student = compress(module, recipe, fresh=not (from_trained or trained))
        whole = Pair(student, make_teacher()) if recipe.teaching.scheme == "A" and make_teacher else student
    if isinstance(student, Imported):
        student.observe(samples.plain(0, _OBSERVED)["x"])
    run = replace(run, samples=samples.taught(teacher)) if recipe.wants_teacher and teacher else run
    started = time.monotonic()
    adapted, curve = None, list[Epoch]()
    if recipe.adaptive.factor:
        if isinstance(student, Imported):
            raise BadInput(
                f"recipe {recipe.name}: bit widths of single weights are for networks of ours by name"
            )
        how = recipe.adaptive
        adapted = adapt(
            student, samples, how.factor, delta=how.delta, directed=how.directed, rounds=how.rounds
        )
    else:
        curve = run.train(recipe, whole, checkpoint)
    seconds = None if resumed else time.monotonic() - started
    if kept is not None and start is None:
        kept.unlink(missing_ok=True)
    if recipe.pruning.group == "position":
        student = compact(student)
    student = converted(student) if learned(student) else student
    student.eval()
    return Trained(student, tuple(curve), before, evaluate(student, held_out), seconds, adapted)


@dataclass(frozen=True)
class _Run:
    """What every stage of one training shares."""

    samples: Labelled
    held_out: Labelled
    seed: int
    threads: int
    watch: Watch

    def train(
        self,
        recipe: TrainRecipe,
        module: nn.Module,
        checkpoint: Path | None,
        more: Sequence[Hook] = (),
        what: str = "",
    ) -> list[Epoch]:
        """One fit, in place; the learning curve."""
        hooks, schedules = _pruning(recipe, module)
        curve = _Curve(module, self.held_out)
        hooks = (*hooks, Condense(module)) if learned(module) else hooks
        training = recipe.training
        criterion = _criterion(training)
        scheme = bool(recipe.teaching.scheme)
        share = recipe.teaching.hard
        method = Method(
            training.loss,
            (lambda logits, classes: share * criterion(logits, classes)) if scheme else criterion,
            _update(module, recipe),
            _rate(training),
            teaching_losses(recipe.teaching, criterion),
            schedules,
        )
        train_by(
            method,
            module,
            self.samples,
            Plan(training.epochs, training.batch),
            seed=self.seed,
            threads=self.threads,
            hooks=(Settle(module), *hooks, *more, curve),
            checkpoint=checkpoint,
            watch=self.watch,
            what=what or recipe.name,
        )
        return curve.points


_CRITERIA: Mapping[str, Criterion] = {
    "cross entropy": functional.cross_entropy,
    "squared hinge": squared_hinge,
    "sum of squares": sum_of_squares,
}


def _criterion(training: Schooling) -> Criterion:
    return _CRITERIA[training.loss]


def _rate(training: Schooling) -> Schedule:
    if training.schedule == "drops":
        try:
            return drops({float(share): factor for share, factor in training.drops.items()})
        except ValueError as err:
            raise BadInput(
                f"training.drops: shares of all steps must be numbers, got {list(training.drops)}"
            ) from err
    return warm_cosine(training.warm_up) if training.schedule == "cosine" else exponential(training.last)


def _update(module: nn.Module, recipe: TrainRecipe) -> Update:
    if recipe.training.optimizer == "wage":
        return WageUpdate(module, recipe.training.lr, recipe.bits.gradients)
    training = recipe.training
    plain = Gradient(_optimizer(module, training))
    if training.loss_scale and training.workers:
        raise BadInput(
            f"recipe {recipe.name}: a loss scale and workers do not go together yet: leave one out"
        )
    if training.loss_scale:
        dynamic = training.loss_scale < 0
        return LossScaled(plain, FIRST if dynamic else training.loss_scale, dynamic=dynamic)
    return TernGrad(plain, training.workers, training.ternary_clip) if training.workers else plain


def _optimizer(module: nn.Module, training: Schooling) -> torch.optim.Optimizer:
    groups = parameter_groups(module, training.lr, training.weight_decay)
    if training.optimizer == "adam":
        return torch.optim.Adam(groups, training.lr)
    nesterov = training.momentum > 0
    return torch.optim.SGD(groups, training.lr, momentum=training.momentum, nesterov=nesterov)


def _pruning(recipe: TrainRecipe, module: nn.Module) -> tuple[Sequence[Hook], dict[str, Schedule]]:
    """Zhu and Gupta's masks on the weights of layers, where the recipe prunes."""
    pruning = recipe.pruning
    if not pruning.sparsity:
        return (), {}
    found = module.prunable() if isinstance(module, Imported) else _layer_weights(module)
    names = list(found) if pruning.edges == "quantized" else list(found)[1:-1]
    if not names:
        raise BadInput(
            f"recipe {recipe.name}: the network has no weight to prune beside the first and the last"
        )
    if pruning.group == "position":
        if isinstance(module, Imported):
            raise BadInput(f"recipe {recipe.name}: positions are pruned in networks of ours by name")
        names = [name for name in names if found[name].ndim == _CONV_RANK]
    keep = keep_positions if pruning.group == "position" else None
    masks = Masks({name: found[name] for name in names}, pruning.sparsity, pruning.every, keep)
    return (masks,), {"sparsity": gradual_sparsity(pruning.sparsity, end=pruning.end)}


def _layer_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    return {
        f"{name}.weight": layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not _depthwise(layer)
    }


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.groups == layer.in_channels


def _drawn(recipe: TrainRecipe, make: Callable[[], nn.Module], run: _Run, checkpoint: Path | None) -> Trained:
    """Lottery tickets: each finished fit is kept beside the checkpoint until all are done."""
    held_files: list[Path] = []
    curves: list[list[Epoch]] = []
    resumed = checkpoint is not None and bool(
        list(checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}*"))
    )

    def fit(module: nn.Module, hook: Hook, what: str) -> list[float]:
        path = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{len(curves)}")
        if path is not None:
            held_files.append(path)
        told = repr((recipe.training, run.samples.key(), run.seed, run.threads, what))
        curve = _finished(path, module, told, lambda: run.train(recipe, module, checkpoint, (hook,), what))
        curves.append(curve)
        return [point.accuracy[-1] for point in curve]

    how, started = recipe.lottery, time.monotonic()
    with reproducible(run.seed, run.threads):
        module, rounds = draw_tickets(make, fit, rounds=how.rounds, rate=how.rate, last_rate=how.last_rate)
    seconds = None if resumed else time.monotonic() - started
    for path in held_files:
        path.unlink(missing_ok=True)
    module.eval()
    judged = evaluate(module, run.held_out)
    return Trained(module, tuple(curves[-2]), None, judged, seconds, rounds=rounds)


def _finished(
    path: Path | None, module: nn.Module, told: str, train: Callable[[], list[Epoch]]
) -> list[Epoch]:
    """Train, or load what the same training left in the file. told: all that makes it this one, besides the weights."""
    start = hashlib.sha256(told.encode())
    for name, value in module.state_dict().items():
        start.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    key = start.hexdigest()
    if path is not None and path.exists():
        held = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)  # data only: it runs no code
        if held["key"] == key:
            module.load_state_dict(held["weights"])
            return [Epoch(epoch, dict(losses), tuple(right)) for epoch, losses, right in held["curve"]]
    curve = train()
    if path is not None:
        content = io.BytesIO()
        rows = [[point.epoch, point.losses, list(point.accuracy)] for point in curve]
        torch.save({"key": key, "weights": module.state_dict(), "curve": rows}, content)
        write_atomic(path, content.getvalue())
    return curve
