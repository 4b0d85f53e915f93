"""`edgekit train` from its arguments to a file and its figures."""

from __future__ import annotations

import glob
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from edgekit.core.errors import BadInput
from edgekit.core.files import write_atomic
from edgekit.host.graph import Graph
from edgekit.host.load import load
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.train.by_recipe import Trained, train_by_recipe
from edgekit.host.train.imported import Imported
from edgekit.host.train.quantized import packed_weight_bytes
from edgekit.host.train.quantizers import Sign
from edgekit.host.train.quantizers.dfp import DfpValues
from edgekit.host.train.quantizers.dorefa import ClippedActivation
from edgekit.host.train.quantizers.half import HalfValues
from edgekit.host.train.quantizers.uniform import UniformActivations
from edgekit.host.train.recipe import TrainRecipe
from edgekit.host.train.samples import Augment
from edgekit.host.train.supervised import Teach
from edgekit.host.train.task import Task, read_task
from edgekit.host.train.teaching import teacher_of
from edgekit.host.train.to_onnx import TOLERANCE, to_onnx
from edgekit.host.train.to_qonnx import to_qonnx
from edgekit.host.watch import Watch, unwatched
from edgekit.host.work import layers

ROUNDED_TOLERANCE = 0.05  # of the largest score: a last bit may decide about a step of an activation
FIXED_TOLERANCE = 1e-3  # values of 16 bits with a tensor's exponent: the file has floats there
_ROUNDING = (ClippedActivation, UniformActivations, HalfValues, Sign)
_COMPARED = 20  # held-out samples on which the file must give the network's answers


@dataclass(frozen=True)
class Wanted:
    """The command's arguments. model, epochs, lr, limit: None: the recipe's, all."""

    recipe: TrainRecipe
    data: Path
    evaluation: Path | None = None
    model: str | None = None
    teacher: Path | None = None
    epochs: int | None = None
    lr: float | None = None
    limit: int | None = None
    seed: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Result:
    """What was trained, and the file. bytes: of its products' weights, packed, with scales and tables."""

    wanted: Wanted
    model: str
    trained: Trained
    samples: int
    held_out: int
    output: Path
    size_bytes: int
    sha256: str
    parameters: int
    macs: int
    weight_bytes: int

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        recipe, trained = self.wanted.recipe, self.trained
        return {
            "recipe": recipe.name,
            "title": recipe.title,
            "source": recipe.source,
            "model": self.model,
            "output": str(self.output),
            "sha256": self.sha256,
            "seed": self.wanted.seed,
            "epochs": recipe.training.epochs,
            "samples": {"train": self.samples, "held_out": self.held_out},
            "accuracy": list(trained.judged.accuracy),
            "accuracy_before": None if trained.before is None else list(trained.before),
            "loss": list(trained.judged.loss),
            "curve": [
                {"epoch": each.epoch, "losses": dict(each.losses), "accuracy": list(each.accuracy)}
                for each in trained.curve
            ],
            "parameters": self.parameters,
            "macs": self.macs,
            "weight_bytes": self.weight_bytes,
            "size_bytes": self.size_bytes,
            "seconds": trained.seconds,
            "rounds": [
                {"density": each.density, "ticket": list(each.ticket), "control": list(each.control)}
                for each in trained.rounds
            ],
            "adapted": None
            if trained.adapted is None
            else {
                "payload_bits": trained.adapted.payload_bits,
                "table_bits": trained.adapted.table_bits,
                "bits_per_weight": trained.adapted.bits_per_weight,
                "loss_before": trained.adapted.before,
                "loss_after": trained.adapted.after,
                "widths": {str(width): count for width, count in trained.adapted.widths.items()},
                "accepted": [step.bits for step in trained.adapted.steps],
            },
        }


def train(
    wanted: Wanted,
    output: Path,
    *,
    resume: bool = True,
    start: Path | None = None,
    watch: Watch = unwatched,
) -> Result:
    """Train as wanted and write the ONNX model. A killed run goes on from OUTPUT.checkpoint. Raises BadInput.

    start: a file for trained float weights that several recipes start from.
    """
    recipe = _adjusted(wanted.recipe, wanted.epochs, wanted.lr)
    wanted = replace(wanted, recipe=recipe)
    model = wanted.model or recipe.network
    teacher = None if wanted.teacher is None else load(wanted.teacher).graph
    if teacher is not None and not recipe.wants_teacher:
        raise BadInput(f"--teacher: recipe {recipe.name} has no teacher that is trained already")
    task = read_task(
        model,
        wanted.data,
        wanted.evaluation,
        Augment(recipe.training.shift, recipe.training.flip),
        like=teacher,
        limit=wanted.limit,
        seed=wanted.seed,
        reads=recipe.input,
        batch_norm=recipe.batch_norm,
    )
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    if not resume:
        for each in output.parent.glob(f"{glob.escape(checkpoint.name)}*"):
            each.unlink(missing_ok=True)
    trained = train_by_recipe(
        recipe,
        task.make,
        task.samples,
        task.held_out,
        seed=wanted.seed,
        trained=task.graph is not None,
        teacher=None if teacher is None else _teach(teacher),
        make_teacher=task.make,
        threads=wanted.threads,
        checkpoint=checkpoint,
        start=start,
        watch=watch,
    )
    content = export(trained.module, task)
    write_atomic(output, content)
    graph = load(output).graph
    folded = fold(graph, NoOptions(), Context()).model
    return Result(
        wanted,
        model,
        trained,
        task.samples.count,
        task.held_out.count,
        output,
        len(content),
        hashlib.sha256(content).hexdigest(),
        sum(math.prod(each.shape) for each in trained.module.parameters()),
        sum(each.macs for each in layers(folded)),
        _weight_bytes(trained),
    )


def _weight_bytes(trained: Trained) -> int:
    """Packed, with scales and tables; of adapted weights their bits and the table of widths, which no board reads."""
    adapted = trained.adapted
    if adapted is None:
        return packed_weight_bytes(trained.module)
    return -(-adapted.payload_bits // 8) - (-adapted.table_bits // 8)


def export(module: nn.Module, task: Task) -> bytes:
    """The file of a trained network: codes where weights are codes, a QONNX file where activations are bits."""
    fixed, rounding = (
        any(isinstance(each, kind) for each in module.modules()) for kind in (DfpValues, _ROUNDING)
    )
    tolerance = ROUNDED_TOLERANCE if rounding else FIXED_TOLERANCE if fixed else TOLERANCE
    compared = task.held_out.plain(0, _COMPARED)["x"].contiguous().numpy()
    if isinstance(module, Imported):
        return module.content(compared, tolerance, task.labels)
    if task.image.tensor.dtype == "uint8":  # as binary networks read pixels
        return to_qonnx(module, task.image, task.labels, samples=compared.astype(np.uint8))
    return to_onnx(module, task.image, task.labels, samples=compared, tolerance=tolerance)


def _teach(graph: Graph) -> Teach:
    return teacher_of(Imported(graph))


def _adjusted(recipe: TrainRecipe, epochs: int | None, lr: float | None) -> TrainRecipe:
    training = recipe.training
    training = training if epochs is None else replace(training, epochs=epochs)
    return replace(recipe, training=training if lr is None else replace(training, lr=lr))
