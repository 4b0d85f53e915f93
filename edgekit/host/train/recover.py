"""Give a compressed network its accuracy back: it learns the original's answers, on inputs without labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgekit.core.errors import BadInput
from edgekit.host.cache import key_of
from edgekit.host.graph import Graph
from edgekit.host.options import write_options
from edgekit.host.passes._grid import GRIDS, products, snap
from edgekit.host.passes.base import Context
from edgekit.host.passes.prune_channels import PruneChannels
from edgekit.host.passes.prune_channels import apply as prune_channels
from edgekit.host.passes.prune_magnitude import prunable
from edgekit.host.passes.recover import Recover
from edgekit.host.train.distil import distillation, lessons, units
from edgekit.host.train.fit import Batch, Checkpoint, Gradient, Loss, fit, reproducible
from edgekit.host.train.from_onnx import Network, from_onnx, write_back
from edgekit.host.train.hooks import KeepBest, Masks
from edgekit.host.train.samples import Augment, Inputs, Taught
from edgekit.host.train.schedules import gradual_sparsity, warm_cosine

_LOG = logging.getLogger(__name__)
_NAME = "recover"
_STUDENT = "student"
_CLIP = 5.0  # a first batch after harsh pruning must not throw the weights far away
_EVALUATED_AT_ONCE = 256
_STEPS_KEPT = 100  # between two checkpoints
_MASK_UPDATES = 100  # in the part of the training in which sparsity rises, at most


@dataclass(frozen=True)
class Recovered:
    """What came of it. before, after: the loss on held-out inputs. graph: the better one's."""

    graph: Graph
    before: float
    after: float

    @property
    def helped(self) -> bool:
        """Whether training made it better; else `graph` has the weights it came with."""
        return self.after < self.before


def recover(graph: Graph, options: Recover, context: Context) -> Recovered:
    """Train the graph's weights towards the answers of `context.reference`; prune in rounds where that is asked for.

    A seeded part of context.data is held out and decides which epoch is kept, or that none is. Raises BadInput where
    there is no data or no reference, where something cannot be trained, or the loss runs away.
    """
    data = context.samples(_NAME)
    if context.reference is None:
        raise BadInput(f"{_NAME} needs the network as it was before it was compressed, to learn from")
    train, held_out = data.split(options.validation, context.seed)
    with reproducible(context.seed, options.threads):
        teacher = from_onnx(context.reference)
        rounds = options.rounds if options.prune_share else 1
        made = Recovered(graph, float("inf"), float("inf"))
        for place in range(rounds):
            if options.prune_share:
                share = 1 - (1 - options.prune_share) ** (1 / rounds)
                graph = prune_channels(
                    made.graph, PruneChannels(share, granularity=options.granularity), context
                )
                made = replace(made, graph=graph)
            epochs = options.epochs // rounds + (options.epochs % rounds if place + 1 == rounds else 0)
            school = _School(teacher, context.reference, made.graph, options)
            inputs = (Inputs(train, graph.inputs, school.augment), Inputs(held_out, graph.inputs))
            made = _taught(made.graph, school, *inputs, max(1, epochs), options, context)
    _LOG.info(
        "recover: loss on held-out inputs %.4g, %.4g before: %s",
        made.after,
        made.before,
        "better" if made.helped else "the weights stay as they were",
    )
    return made


class _School:
    """A teacher, what it teaches one student, and in which way."""

    def __init__(self, teacher: Network, reference: Graph, student: Graph, options: Recover) -> None:
        self.lessons = lessons(reference, student, options.features)
        if not self.lessons:
            raise BadInput(f"{_NAME}: the compressed network has none of the original's outputs")
        self.augment = Augment(options.shift, options.flip, options.mixup)
        self._teacher, self._wanted = teacher, tuple(lesson.wanted for lesson in self.lessons)

    def teach(self, batch: Batch) -> tuple[Tensor, ...]:
        """The teacher's answers."""
        with torch.no_grad():
            return self._teacher(batch, self._wanted)


def _taught(
    graph: Graph,
    school: _School,
    train: Inputs,
    held_out: Inputs,
    epochs: int,
    options: Recover,
    context: Context,
) -> Recovered:
    """One training of one structure."""
    network = from_onnx(graph)
    lesson = Taught(train, school.teach, changing=school.augment.any)
    exam = Taught(held_out, school.teach, changing=False)
    scales = units(_part(exam, 0), len(school.lessons))
    loss = distillation(school.lessons, _STUDENT, scales, options.temperature)
    if options.quantize_aware:
        network.seen_as = on_grid(graph, options.quantize_aware, options.block)
    evaluate = _evaluation(network, loss, exam)
    may_go = prunable(graph.model)
    masks = Masks(
        {name: weight for name, weight in network.weights.items() if name in may_go},
        options.sparsity,
        max(1, _steps(lesson, options, epochs) // _MASK_UPDATES),
    )
    untrained, before = _one_shot(network, masks, options.sparsity, evaluate)
    best = KeepBest({_STUDENT: network}, evaluate, patience=options.patience, ready=lambda: masks.finished)
    update = Gradient(torch.optim.Adam(network.parameters(), options.lr), clip=_CLIP)
    schedules = {"lr": warm_cosine(), "sparsity": gradual_sparsity(options.sparsity)}
    fit(
        lesson,
        {_STUDENT: network},
        {"distillation": loss},
        update,
        schedules,
        (masks, best),
        epochs=epochs,
        batch=options.batch,
        seed=context.seed,
        threads=options.threads,
        checkpoint=_checkpoint(graph, options, context),
        watch=context.watch,
        what=_NAME,
    )
    if best.best < before:
        best.restore()
    else:
        network.load_state_dict(untrained)
    if options.quantize_aware and best.best < before:
        _snap(network)
    return Recovered(write_back(graph, network), before, best.best)


def _checkpoint(graph: Graph, options: Recover, context: Context) -> Checkpoint | None:
    """Where an interrupted training is resumed from: beside the cache's entries, under all that goes into it."""
    folder, reference = context.cache.folder, context.reference
    if folder is None or reference is None:
        return None
    known = (graph.fingerprint(), reference.fingerprint(), write_options(options), context.data_key)
    key = key_of("training", *known, str(context.seed), str(torch.__version__))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return Checkpoint(folder / key, key, every=_STEPS_KEPT)


def _part(exam: Taught, start: int) -> Batch:
    """Some of the held-out samples, as they are."""
    return exam.take(torch.arange(start, min(exam.count, start + _EVALUATED_AT_ONCE)), torch.Generator())


def _evaluation(network: Network, loss: Loss, exam: Taught) -> Callable[[], float]:
    """The mean loss on held-out inputs."""

    def evaluate() -> float:
        total = 0.0
        with torch.no_grad():
            for start in range(0, exam.count, _EVALUATED_AT_ONCE):
                size = min(_EVALUATED_AT_ONCE, exam.count - start)
                total += size * float(loss({_STUDENT: network}, _part(exam, start)))
        return total / exam.count

    return evaluate


def _one_shot(
    network: Network, masks: Masks, sparsity: float, evaluate: Callable[[], float]
) -> tuple[Mapping[str, Tensor], float]:
    """The weights without training, pruned at once where sparsity is wanted, and their loss. Leaves no trace."""
    first = {key: value.detach().clone() for key, value in network.state_dict().items()}
    start = dict(masks.masks)
    if sparsity:
        masks.prune(sparsity)
        masks.apply()
    pruned = {key: value.detach().clone() for key, value in network.state_dict().items()}
    figure = evaluate()
    network.load_state_dict(first)
    masks.masks = start
    return pruned, figure


def _steps(lesson: Taught, options: Recover, epochs: int) -> int:
    return epochs * (lesson.count // max(1, min(options.batch, lesson.count)))


def on_grid(graph: Graph, grid: str, block: int) -> Callable[[str, Tensor], Tensor]:
    """How products see their weights while training: rounded to the grid, the gradient passed straight through.

    The straight-through estimator: Bengio, Leonard, Courville 2013 (arXiv 1308.3432).
    """
    axes = {product.value.name: product.axes for product in products(graph)}

    def seen_as(name: str, weight: Tensor) -> Tensor:
        if name not in axes:
            return weight
        rounded = snap(weight.detach().numpy(), axes[name], GRIDS[grid], block=block)
        return weight + (torch.from_numpy(rounded) - weight).detach()

    return seen_as


def _snap(network: Network) -> None:
    """The weights as they were seen: whoever quantizes afterwards finds this grid again."""
    with torch.no_grad():
        for name, weight in network.weights.items():
            weight.copy_(network.seen_as(name, weight))
