"""A student and its teacher: Apprentice's three schemes (Mishra, Marr 2018, arXiv 1711.05852), over any quantizer.

L = joint * H(y, p_T) + hard * H(y, p_A) + soft * H(p_T, p_A), H the cross entropy, T the teacher, A the apprentice. In
scheme A both are trained from scratch, and the third term sends no gradient into the teacher; in B and C the teacher is
trained already, stays in evaluation mode, and the first term is gone. C is B from trained weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.host.train.fit import Batch
from edgekit.host.train.outputs import Outputs, outputs_of
from edgekit.host.train.recipe import Teaching
from edgekit.host.train.supervised import TEACHER, Criterion, OwnLoss, Teach


class Pair(nn.Module):
    """Both networks of scheme A: the student's answer, with the teacher's logits beside it while they are trained."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, value: Tensor) -> Outputs:
        made = outputs_of(self.student(value))
        if not self.training:
            return made
        teacher = outputs_of(self.teacher(value)).logits[-1]
        return Outputs(made.logits, made.confidences, {**made.also, TEACHER: teacher})


def teacher_of(module: nn.Module) -> Teach:
    """A trained network as it answers: a copy in evaluation mode, so that its batch norms stand still."""
    still = copy.deepcopy(module).eval()

    def teach(value: Tensor) -> Tensor:
        with torch.no_grad():
            return outputs_of(still(value)).logits[-1]

    return teach


def teaching_losses(teaching: Teaching, criterion: Criterion) -> Mapping[str, OwnLoss]:
    """The losses of a scheme besides the student's own, whose share is `hard`."""
    if not teaching.scheme:
        return {}

    def soft(outputs: Outputs, batch: Batch) -> Tensor:
        wanted = outputs.also[TEACHER] if TEACHER in outputs.also else batch[TEACHER]
        parts = [soft_cross_entropy(wanted.detach(), made, teaching.temperature) for made in outputs.logits]
        return teaching.soft * torch.stack(parts).sum()

    def joint(outputs: Outputs, batch: Batch) -> Tensor:
        return teaching.joint * criterion(outputs.also[TEACHER], batch["y"])

    return {"teacher": joint, "distillation": soft} if teaching.scheme == "A" else {"distillation": soft}


def soft_cross_entropy(wanted: Tensor, made: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over N of -sum softmax(wanted / T) log softmax(made / T) * T^2; logits [N, classes].

    Its gradient is that of the Kullback-Leibler divergence (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).
    """
    target = functional.softmax(wanted.float() / temperature, -1)
    said = functional.log_softmax(made.float() / temperature, -1)
    return -(target * said).sum(-1).mean() * temperature**2
