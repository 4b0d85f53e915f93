"""Quantizers of two to eight bits: only their levels, gradients by hand and by finite differences, the known traps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.core.errors import BadInput

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.quantizers.dorefa import (  # noqa: E402
    ClippedActivation,
    CoarseGradients,
    SignTimesMean,
    TanhWeights,
    rounded_gradient,
)
from edgekit.host.train.quantizers.points import Points  # noqa: E402
from edgekit.host.train.quantizers.ttq import Ttq  # noqa: E402
from edgekit.host.train.quantizers.twn import Twn  # noqa: E402
from edgekit.host.train.quantizers.wrpn import ClippedWeights  # noqa: E402


def drawn(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(values: Any, wanted: list[float]) -> None:
    assert values.flatten().tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-7)


def odd(bits: int) -> list[float]:
    top = 2**bits - 1
    return [code / top for code in range(-top, top + 1, 2)]


def whole(bits: int) -> list[float]:
    top = 2 ** (bits - 1) - 1
    return [code / top for code in range(-top, top + 1)]


@pytest.mark.parametrize(
    ("make", "levels"),
    [
        *((lambda bits=bits: TanhWeights(bits), odd(bits)) for bits in (2, 3, 4, 8)),
        *((lambda bits=bits: ClippedWeights(bits), whole(bits)) for bits in (2, 4, 8)),
    ],
)
def test_only_the_levels_of_a_method_come_out_and_all_of_them(
    make: Callable[[], Any], levels: list[float]
) -> None:
    quantizer, weight = make(), drawn(64, 32, 3, 3)
    made = quantizer(weight)
    same(torch.unique((made / quantizer.scale(weight)).round() * quantizer.scale(weight)), levels)
    assert torch.allclose(made, quantizer.codes(weight) * quantizer.scale(weight), atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_activations_have_their_levels_between_zero_and_one(bits: int) -> None:
    made = ClippedActivation(bits)(drawn(10_000))
    same(torch.unique(made), [code / (2**bits - 1) for code in range(2**bits)])


def test_ternary_weights_have_three_levels_a_layer() -> None:
    weight = drawn(64, 32, 3, 3)
    alpha = float(Twn().scale(weight))
    same(torch.unique(Twn()(weight)), [-alpha, 0, alpha])
    ttq = Ttq(positive=0.3, negative=0.7)
    same(torch.unique(ttq(weight)), [-0.7, 0, 0.3])


def test_twn_by_hand() -> None:
    weight = torch.tensor([[-1.0, -0.2, 0.3, 0.5]], requires_grad=True)  # mean |W| 0.5: zero up to 0.35
    made = Twn()(weight)
    same(made, [-0.75, 0, 0, 0.75])
    made.backward(torch.tensor([[1.0, 2, 3, 4]]))
    same(weight.grad, [1, 2, 3, 4])


def test_twn_of_a_layer_without_survivors_is_zero_and_not_nan() -> None:
    same(Twn(threshold=2.0)(torch.tensor([[0.5, -0.5]])), [0, 0])
    same(Twn()(torch.zeros(1, 3)), [0, 0, 0])


def test_ttqs_scales_pass_finite_differences_and_the_negative_one_has_its_minus() -> None:
    """The trap: a port, and as it seems the paper, have dw_n without its minus."""
    weight, target = drawn(8, 4).double(), drawn(8, 4, seed=1).double()
    ttq = Ttq(positive=0.8, negative=0.6).double()

    def loss() -> Any:
        return ((ttq(weight) - target) ** 2).sum()

    loss().backward()
    step = 1e-6
    for scale in (ttq.positive, ttq.negative):
        given = float(scale.grad)
        with torch.no_grad():
            scale.add_(step)
            above = float(loss())
            scale.sub_(2 * step)
            below = float(loss())
            scale.add_(step)
        assert given == pytest.approx((above - below) / (2 * step), rel=1e-6)
    assert float(ttq.negative.grad) != 0


def test_ttqs_weights_get_the_gradient_of_their_region() -> None:
    weight = torch.tensor([[-1.0, -0.04, 0.0, 0.05, 0.06]], requires_grad=True)  # zero up to 0.05
    Ttq(positive=0.5, negative=0.25)(weight).backward(torch.ones(1, 5))
    same(weight.grad, [0.25, 1, 1, 1, 0.5])


def test_dorefas_weights_by_hand_and_the_gradient_of_the_largest() -> None:
    weight = drawn(6, 5).double().requires_grad_()
    bits, target = 3, drawn(6, 5, seed=1).double()
    ((TanhWeights(bits)(weight) * target).sum()).backward()
    plain = weight.detach().clone().requires_grad_()
    bounded = torch.tanh(plain)
    (bounded / bounded.abs().max() * target).sum().backward()  # without rounding: straight through it
    assert torch.allclose(weight.grad, plain.grad, rtol=1e-9)
    assert torch.isfinite(TanhWeights(2)(torch.zeros(2, 2))).all()


def test_dorefas_one_bit_is_the_sign_times_one_mean_and_zero_counts_as_plus() -> None:
    weight = torch.tensor([[0.0, -0.0, -3.0, 1.0]], requires_grad=True)
    made = SignTimesMean()(weight)
    same(made, [1, 1, -1, 1])
    made.backward(torch.tensor([[1.0, 2, 3, 4]]))
    same(weight.grad, [1, 2, 3, 4])


def test_wrpns_scale_is_the_papers_and_outside_the_clip_there_is_no_gradient() -> None:
    """The trap: a well-known port divides by (2^k - 1) / 2 where the paper has 2^(k-1) - 1."""
    weight = torch.tensor([[-1.2, -1.0, -0.5, 0.2, 0.9, 1.1]], requires_grad=True)
    made = ClippedWeights(4)(weight)
    same(made, [-1, -1, -4 / 7, 1 / 7, 6 / 7, 1])
    made.backward(torch.ones(1, 6))
    same(weight.grad, [0, 1, 1, 1, 1, 0])


def test_wrpn_with_two_bits_starts_dead() -> None:
    weight = torch.empty(64, 64, 3, 3)
    ClippedWeights(2).start(weight)
    assert not ClippedWeights(2)(weight).any()


def test_an_activation_is_clipped_and_its_gradient_with_it() -> None:
    value = torch.tensor([-0.5, 0.0, 0.4, 1.0, 1.5], requires_grad=True)
    made = ClippedActivation(2)(value)
    same(made, [0, 0, 1 / 3, 1, 1])
    made.backward(torch.ones(5))
    same(value.grad, [0, 1, 1, 1, 0])


def test_coarse_gradients_have_their_levels_and_the_right_mean() -> None:
    gradient = torch.tensor([[1.0, 0.3, -0.7, 0.0]])
    random = torch.Generator().manual_seed(0)
    many = torch.cat([rounded_gradient(gradient, 2, random) for _ in range(20_000)])
    same(torch.unique(many), [-1, -1 / 3, 1 / 3, 1])
    inside = many[:, 1:].mean(0)
    deviation = 2 / 3 / math.sqrt(20_000)  # of one step at most
    assert (inside - gradient[0, 1:]).abs().max() < 4 * deviation


def test_coarse_gradients_take_each_samples_own_largest() -> None:
    value = drawn(3, 4).requires_grad_()
    sent = torch.tensor([[1.0], [10.0], [0.0]]) * torch.tensor([[1.0, -1, 1, -1]])
    CoarseGradients(1, torch.Generator().manual_seed(0))(value).backward(sent)
    assert torch.unique(value.grad[0]).abs().tolist() == [1, 1]
    assert torch.unique(value.grad[1]).abs().tolist() == [10, 10]
    assert not value.grad[2].any()


def placed(weight: Any, bits: int, *, passed: bool = True) -> Any:
    """Points that start from these weights."""
    made = Points(bits, passed)
    made.adopt(weight)
    return made


@pytest.mark.parametrize(
    "make", [lambda: Ttq(positive=0.8, negative=0.3), lambda: Points(2), lambda: Points(4)]
)
def test_learned_levels_stand_in_evaluation_where_a_file_can_hold_them(make: Any) -> None:
    weight = drawn(16, 8)
    quantizer = make()
    quantizer.adopt(weight)
    learning = quantizer(weight).detach()
    settled = quantizer.eval()(weight)
    codes, scale = quantizer.codes(weight), quantizer.scale(weight)
    assert torch.equal(settled, codes * scale)
    assert float(codes.abs().max()) == 127
    assert torch.equal(codes, codes.round())
    assert float((settled - learning).abs().max()) <= float(scale) / 2 + 1e-7
    assert len(torch.unique(codes)) == len(torch.unique(learning))


def test_ttqs_scales_may_start_at_the_mean_magnitude_of_what_they_stand_for() -> None:
    weight = torch.tensor([[-1.0, -0.5, 0.0, 0.2, 0.6]])
    ttq = Ttq(positive=0.0, negative=0.0)
    ttq.adopt(weight)
    assert float(ttq.positive.detach()) == pytest.approx(0.4)
    assert float(ttq.negative.detach()) == pytest.approx(0.75)


def test_learned_points_get_the_sum_of_what_stands_at_them() -> None:
    weight = torch.tensor([-1.0, -0.9, 0.1, 0.2, 0.9, 1.0, 1.1, 3.0], requires_grad=True)
    points = placed(weight, 2, passed=False)
    same(points.points, [-0.9, 0.2, 1.0, 3.0])
    made = points(weight)
    assert set(made.tolist()) <= set(points.points.tolist())
    made.backward(torch.arange(1.0, 9))
    same(points.points.grad, [3, 7, 18, 8])
    assert weight.grad is None
    placed(weight, 2)(weight).backward(torch.arange(1.0, 9))
    same(weight.grad, list(range(1, 9)))


def test_learned_points_pass_finite_differences_and_need_not_stay_in_order() -> None:
    weight, target = drawn(40).double(), drawn(40, seed=1).double()
    points = placed(weight, 2).double()
    with torch.no_grad():
        points.points.copy_(points.points.flip(0))

    def loss() -> Any:
        return ((points(weight) - target) ** 2).sum()

    loss().backward()
    for place in range(4):
        step, at = 1e-7, points.points
        with torch.no_grad():
            at[place] += step
            above = float(loss())
            at[place] -= 2 * step
            below = float(loss())
            at[place] += step
        assert float(at.grad[place]) == pytest.approx((above - below) / (2 * step), rel=1e-5)
    nearest = (weight[:, None] - points.points.detach()[None]).abs().argmin(1)
    assert torch.equal(points.numbers(weight), nearest)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Twn(threshold=0.0), "threshold must be above 0, got 0.0"),
        (lambda: Ttq(threshold=1.0), "threshold must be above 0 and below 1, got 1.0"),
        (lambda: TanhWeights(1), "bits must be 2 to 8, got 1"),
        (lambda: ClippedWeights(9), "bits must be 2 to 8, got 9"),
        (lambda: ClippedActivation(0), "bits must be 1 to 8, got 0"),
        (lambda: placed(torch.zeros(3), 2), "4 points want at least as many weights, got 3"),
    ],
)
def test_what_cannot_be_is_said(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()
