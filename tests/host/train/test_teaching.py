"""Distillation: Apprentice's losses by their formulas, gradients by finite differences, who learns from whom."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from torch.nn import functional  # noqa: E402

from edgekit.host.train.outputs import Outputs  # noqa: E402
from edgekit.host.train.recipe import Teaching  # noqa: E402
from edgekit.host.train.teaching import Pair, soft_cross_entropy, teacher_of, teaching_losses  # noqa: E402


def drawn(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_difference(loss: Any, value: Any) -> Any:
    found = torch.zeros_like(value)
    for place in range(value.numel()):
        step = torch.zeros_like(value).view(-1)
        step[place] = 1e-6
        above, below = (float(loss(value + sign * step.view_as(value))) for sign in (1, -1))
        found.view(-1)[place] = (above - below) / 2e-6
    return found


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_loss_passes_finite_differences(temperature: float) -> None:
    wanted, made = drawn(3, 5), drawn(3, 5, seed=1).requires_grad_()
    soft_cross_entropy(wanted.float(), made, temperature).backward()
    given = made.grad.clone()
    again = by_difference(
        lambda value: double_loss(wanted.float().double(), value, temperature), made.detach()
    )
    assert torch.allclose(given, again, atol=1e-6)


def double_loss(wanted: Any, made: Any, temperature: float) -> Any:
    target = torch.softmax(wanted / temperature, -1)
    return -(target * torch.log_softmax(made / temperature, -1)).sum(-1).mean() * temperature**2


def test_its_gradient_is_that_of_the_divergence_but_its_value_is_not() -> None:
    wanted, made = drawn(4, 6).float(), drawn(4, 6, seed=1).float().requires_grad_()
    soft_cross_entropy(wanted, made).backward()
    given = made.grad.clone()
    made.grad = None
    divergence = functional.kl_div(
        torch.log_softmax(made, -1), torch.softmax(wanted, -1), reduction="batchmean"
    )
    divergence.backward()
    assert torch.allclose(given, made.grad, atol=1e-6)
    assert float(soft_cross_entropy(wanted, made).detach()) > float(divergence.detach())


def test_scheme_a_sends_no_gradient_of_the_soft_loss_into_the_teacher() -> None:
    losses = teaching_losses(Teaching("A"), functional.cross_entropy)
    assert set(losses) == {"teacher", "distillation"}
    student, teacher = (drawn(4, 3, seed=seed).float().requires_grad_() for seed in (1, 2))
    outputs, batch = Outputs((student,), (), {"teacher": teacher}), {"y": torch.tensor([0, 1, 2, 0])}
    losses["distillation"](outputs, batch).backward()
    assert teacher.grad is None
    assert student.grad is not None
    losses["teacher"](outputs, batch).backward()
    assert teacher.grad is not None


def test_the_shares_are_the_papers_by_default() -> None:
    teaching = Teaching("A")
    assert (teaching.joint, teaching.hard, teaching.soft, teaching.temperature) == (1.0, 0.5, 0.5, 1.0)
    student = drawn(4, 3, seed=1).float()
    outputs, batch = Outputs((student,), (), {"teacher": student}), {"y": torch.tensor([0, 1, 2, 0])}
    losses = teaching_losses(teaching, functional.cross_entropy)
    assert torch.allclose(losses["teacher"](outputs, batch), functional.cross_entropy(student, batch["y"]))
    assert torch.allclose(losses["distillation"](outputs, batch), 0.5 * soft_cross_entropy(student, student))


@pytest.mark.parametrize("scheme", ["B", "C"])
def test_a_trained_teacher_answers_from_the_batch(scheme: str) -> None:
    losses = teaching_losses(Teaching(scheme), functional.cross_entropy)
    assert set(losses) == {"distillation"}
    student, told = drawn(2, 3).float(), drawn(2, 3, seed=5).float()
    made = losses["distillation"](Outputs((student,)), {"teacher": told})
    assert torch.allclose(made, 0.5 * soft_cross_entropy(told, student))


def test_no_scheme_is_no_loss() -> None:
    assert teaching_losses(Teaching(), functional.cross_entropy) == {}


def test_a_teacher_stands_still_though_its_network_is_trained_on() -> None:
    """The trap: a teacher in training mode moves its batch norms' statistics with the student's batches."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).train()
    teach = teacher_of(network)
    value = torch.randn(8, 4)
    first = teach(value)
    teach(value + 100)
    network(value + 100)
    assert torch.equal(teach(value), first)
    assert not first.requires_grad
    assert network.training


def test_a_pair_answers_as_the_student_when_it_is_not_trained() -> None:
    student, teacher = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    pair, value = Pair(student, teacher), torch.randn(2, 4)
    assert set(pair.train()(value).also) == {"teacher"}
    answer = pair.eval()(value)
    assert not answer.also
    assert torch.equal(answer.logits[0], student(value))
