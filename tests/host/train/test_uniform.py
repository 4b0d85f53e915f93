"""Equal steps in training: levels, LSQ's gradients by its formula, ranges that follow or learn."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgekit.core.errors import BadInput

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.quantizers.stochastic import Stochastic  # noqa: E402
from edgekit.host.train.quantizers.uniform import UniformActivations, UniformWeights  # noqa: E402


def drawn(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("steps", ["observed", "learned"])
@pytest.mark.parametrize("per_filter", [True, False])
def test_weights_are_whole_steps_and_no_more_levels_than_the_bits_have(
    bits: int, steps: str, *, per_filter: bool
) -> None:
    weight = drawn(8, 4, 3, 3)
    quantizer = UniformWeights(bits, per_filter, steps)
    quantizer.adopt(weight)
    made, scale, high = quantizer(weight), quantizer.scale(weight), 2 ** (bits - 1) - 1
    assert scale.shape == ((8, 1, 1, 1) if per_filter else ())
    assert torch.allclose(made, quantizer.codes(weight) * scale)
    assert float(quantizer.codes(weight).abs().max()) <= high
    if steps == "observed":
        assert float(made.abs().max()) == pytest.approx(float(weight.abs().max()))


def test_a_learned_step_has_lsqs_gradient() -> None:
    """Esser et al. 2020, equations 3 and 5 and section 2.2's factor."""
    weight = torch.tensor([[-5.0, -0.7, 0.2, 0.6, 9.0]], dtype=torch.float64, requires_grad=True)
    quantizer = UniformWeights(3, per_filter=False, steps="learned")
    quantizer.step = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    sent = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]], dtype=torch.float64)
    quantizer(weight).backward(sent)
    slopes = [-3.0, -1 - -1.4, 0 - 0.4, 1 - 1.2, 3.0]  # round(v / s) - v / s inside; -Qn, Qp outside
    wanted = sum(slope * each for slope, each in zip(slopes, sent[0].tolist(), strict=True))
    assert float(quantizer.step.grad) == pytest.approx(wanted / math.sqrt(5 * 3))
    assert weight.grad.tolist() == [[0, 2, 3, 4, 0]]


def test_a_learned_step_of_each_filter_gets_its_own_gradient() -> None:
    weight = drawn(3, 6).double()
    quantizer = UniformWeights(4, steps="learned")
    quantizer.adopt(weight)
    quantizer(weight)[1].sum().backward()
    assert quantizer.step.grad.shape == (3, 1)
    assert quantizer.step.grad[0].item() == quantizer.step.grad[2].item() == 0
    assert quantizer.step.grad[1].item() != 0


def test_activations_learn_their_step_from_the_first_batch_on() -> None:
    module = UniformActivations(4, "learned").train()
    first = drawn(64, 10).abs()
    made = module(first)
    assert float(module.step.detach()) == pytest.approx(2 * float(first.mean()) / math.sqrt(15), rel=1e-4)
    assert len(torch.unique(made)) <= 16
    assert float(made.detach().min()) == 0.0
    made.sum().backward()
    assert float(module.step.grad) != 0
    step = float(module.step.detach())
    module(10 * first)
    assert float(module.step.detach()) == step, "only an optimizer moves it now"


def test_an_observed_range_follows_batches_and_stands_still_in_evaluation() -> None:
    module = UniformActivations(8, "observed").train()
    module(torch.tensor([[0.0, 2.0]]))
    assert float(module.largest) == 2.0
    module(torch.tensor([[0.0, 4.0]]))
    assert 2.0 < float(module.largest) < 4.0
    module.eval()
    before = float(module.largest)
    assert float(module(torch.tensor([[100.0]])).max()) == pytest.approx(before)
    assert float(module.largest) == before


def test_negative_activations_are_zero_and_get_no_gradient() -> None:
    module = UniformActivations(2, "learned").eval()
    value = torch.tensor([[-1.0, 0.3, 5.0]], requires_grad=True)
    made = module(value)
    made.sum().backward()
    assert made[0, 0] == 0.0
    assert value.grad.tolist() == [[0, 1, 0]]


def test_a_range_of_zeros_makes_no_nan() -> None:
    quantizer = UniformWeights(8, steps="learned")
    zeros = torch.zeros(2, 3)
    quantizer.adopt(zeros)
    assert torch.equal(quantizer(zeros), zeros)
    module = UniformActivations(8, "observed").train()
    assert torch.equal(module(zeros), zeros)


def test_stochastic_weights_are_drawn_anew_with_hard_sigmoids_chance() -> None:
    weight = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 2.0]])
    quantizer = Stochastic().train()
    torch.manual_seed(0)
    drawn_often = torch.stack([quantizer(weight) for _ in range(4000)])
    assert set(drawn_often.unique().tolist()) == {-1.0, 1.0}
    share = (drawn_often == 1).float().mean(0)[0]
    assert torch.allclose(share, torch.tensor([0, 0.25, 0.5, 0.75, 1]), atol=4 * 0.5 / math.sqrt(4000))


def test_stochastic_weights_pass_the_gradient_and_are_real_or_signs_afterwards() -> None:
    weight = torch.tensor([[-0.3, 0.4]], requires_grad=True)
    quantizer = Stochastic().train()
    quantizer(weight).backward(torch.tensor([[2.0, 3.0]]))
    assert weight.grad.tolist() == [[2, 3]]
    assert torch.equal(quantizer.eval()(weight), weight)
    assert quantizer.codes(weight) is None
    signs = Stochastic(real=False).eval()
    assert signs(weight).tolist() == [[-1, 1]]
    assert signs.codes(weight).tolist() == [[-1, 1]]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: UniformWeights(1), "bits must be 2 to 8, got 1"),
        (lambda: UniformWeights(steps="guessed"), "steps must be one of observed, learned, got 'guessed'"),
        (lambda: UniformActivations(9), "bits must be 1 to 8, got 9"),
        (lambda: UniformActivations(ranges="no"), "ranges must be one of observed, learned, got 'no'"),
    ],
)
def test_what_cannot_be_is_said(make: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()
