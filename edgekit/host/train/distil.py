"""What a network learns from the one it came from, without labels: its answers at every exit, before the softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from edgekit.host.graph import Graph, is_class_vector, made_by, static_shape, values
from edgekit.host.train.fit import Batch, Loss, Models
from edgekit.host.train.from_onnx import PRODUCTS
from edgekit.host.train.samples import inputs_of

_TINY, _STEADY = 1e-12, 1e-3


@dataclass(frozen=True)
class Lesson:
    """One tensor the student shall match. wanted, made: its name in the teacher's and in the student's graph.

    kind: "softmax" (logits of classes along `axes`), "sigmoid" (logits, each by itself), "classes" (a class vector that
    no softmax follows: logits or anything else), "numbers". axes: of one sample. share: in the loss.
    """

    wanted: str
    made: str
    kind: str
    axes: tuple[int, ...] = ()
    share: float = 1.0


def lessons(teacher: Graph, student: Graph, features: float = 0.0) -> tuple[Lesson, ...]:
    """Every output of every exit; with `features` also what products make that both networks have in one shape."""
    theirs, ours = values(teacher.model), values(student.model)
    found = []
    names = [name for entry in teacher.exits for name in entry.outputs if name in ours]
    for name in names:
        wanted, kind, axes = before_activation(theirs[name], teacher.opset)
        made, same, _ = before_activation(ours[name], student.opset)
        if kind != same or static_shape(wanted) != static_shape(made):
            wanted, made, kind, axes = theirs[name], ours[name], "numbers", ()
        found.append(Lesson(wanted.name or name, made.name or name, kind, axes, 1.0 / len(names)))
    inner = [name for name in _products(student) if name in theirs and name not in names] if features else []
    inner = [name for name in inner if static_shape(theirs[name]) == static_shape(ours[name])]
    return (*found, *(Lesson(name, name, "numbers", (), features / len(inner)) for name in inner))


def _products(graph: Graph) -> list[str]:
    return [node.outputs[0].name or "" for node in graph.model.graph if node.op_type in PRODUCTS]


def before_activation(output: ir.Value, opset: int) -> tuple[ir.Value, str, tuple[int, ...]]:
    """The tensor before the activation an output ends in, what kind it is, and the axes that share a softmax."""
    node = made_by(output)
    before = node.inputs[0] if node is not None and node.inputs else None
    if node is not None and before is not None and node.op_type in ("Softmax", "LogSoftmax"):
        shape = before.shape
        if shape is not None:
            told = node.attributes.get("axis")
            axis = (told.as_int() if told is not None else -1 if opset >= 13 else 1) % len(shape)
            return before, "softmax", (axis,) if opset >= 13 else tuple(range(axis, len(shape)))
    if node is not None and before is not None and node.op_type == "Sigmoid":
        return before, "sigmoid", ()
    return output, "classes" if is_class_vector(output) else "numbers", ()


def distillation(
    found: Sequence[Lesson], student: str, scales: Sequence[float], temperature: float = 1.0
) -> Loss:
    """The sum over lessons of what the student's tensors are off, each in a unit of its own.

    softmax: cross entropy against the teacher's probabilities less their entropy (Hinton, Vinyals, Dean 2015,
    1503.02531), at a temperature; sigmoid: the same, each number by itself; numbers: squared error over the teacher's
    variance (`scales`); classes: both, since nobody says they are logits. student: its name among the models.
    """
    names = tuple(lesson.made for lesson in found)

    def loss(models: Models, batch: Batch) -> Tensor:
        made = models[student](inputs_of(batch), names)
        parts = [
            lesson.share
            * _KINDS[lesson.kind](
                lesson, batch[f"want:{place}"].float(), value.float(), scales[place], temperature
            )
            for place, (lesson, value) in enumerate(zip(found, made, strict=True))
        ]
        return torch.stack(parts).sum()

    return loss


def _divergence(wanted: Tensor, made: Tensor, temperature: float) -> Tensor:
    """Rows of logits [..., classes]; the mean over rows of KL(teacher || student)."""
    teacher = functional.log_softmax(wanted / temperature, -1)
    pupil = functional.log_softmax(made / temperature, -1)
    return (teacher.exp() * (teacher - pupil)).sum(-1).mean() * temperature**2


def _softmax(lesson: Lesson, wanted: Tensor, made: Tensor, scale: float, temperature: float) -> Tensor:
    first, *more = (axis + 1 for axis in lesson.axes)
    if more:
        return _divergence(wanted.flatten(first), made.flatten(first), temperature)
    return _divergence(wanted.movedim(first, -1), made.movedim(first, -1), temperature)


def _sigmoid(lesson: Lesson, wanted: Tensor, made: Tensor, scale: float, temperature: float) -> Tensor:
    target = torch.sigmoid(wanted)
    least = functional.binary_cross_entropy_with_logits(wanted, target)
    return functional.binary_cross_entropy_with_logits(made, target) - least


def _numbers(lesson: Lesson, wanted: Tensor, made: Tensor, scale: float, temperature: float) -> Tensor:
    return (made - wanted).square().mean() / scale


def _classes(lesson: Lesson, wanted: Tensor, made: Tensor, scale: float, temperature: float) -> Tensor:
    flat = _divergence(wanted.flatten(1), made.flatten(1), temperature)
    return flat + _numbers(lesson, wanted, made, scale, temperature)


_KINDS = {"softmax": _softmax, "sigmoid": _sigmoid, "numbers": _numbers, "classes": _classes}


def units(answers: Batch, count: int) -> list[float]:
    """The unit of squared errors for each of the teacher's answers: its variance over a batch of Taught.

    A share of the mean square is added: what hardly varies must not count for more than all others.
    """
    found = (answers[f"want:{place}"].double() for place in range(count))
    return [float(each.var(correction=0) + _STEADY * each.square().mean()) + _TINY for each in found]
