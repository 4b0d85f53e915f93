"""WAGE: integers in training and after it. One test for each of its traps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.core.manifest import Tensor as Described
from edgekit.host.ort import open_model
from edgekit.host.train.recipe import find_recipe

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.compress import compress  # noqa: E402
from edgekit.host.train.fit import Hook, fit  # noqa: E402
from edgekit.host.train.networks import build  # noqa: E402
from edgekit.host.train.networks.small import Config  # noqa: E402
from edgekit.host.train.quantized import Settle, quantized_layers, quantized_weights  # noqa: E402
from edgekit.host.train.quantizers.wage import (  # noqa: E402
    WageActivations,
    WageInput,
    WageOutput,
    WageWeights,
    clip,
    quantize,
    shift,
    sigma,
)
from edgekit.host.train.schedules import drops  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402
from edgekit.host.train.wage import WageUpdate, stochastic, sum_of_squares  # noqa: E402
from edgekit.host.train.wage_integer import integer_scores  # noqa: E402

SIDE, CLASSES = 8, 3
IMAGE = Input(Described("image", "float32", (1, 1, SIDE, SIDE)), "NCHW", None)


def drawn(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = Config(SIDE, 1, CLASSES, (8, 16), (1, 2), batch_norm=False)
    return compress(build("small", config), find_recipe("wage"), fresh=True)


class Stripes:
    """Images from -1 to 1 with a bright row, whose place is the class."""

    count = 240

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.y = torch.from_numpy(random.integers(0, CLASSES, self.count))
        x = random.uniform(-1, 0.2, (self.count, 1, SIDE, SIDE)).astype(np.float32)
        x[np.arange(self.count), 0, 1 + 2 * self.y.numpy()] += 0.8
        self.x = torch.from_numpy(x)

    def take(self, indices: Any, random: Any) -> Any:
        return {"x": self.x[indices], "y": self.y[indices]}


class OnTheGrid(Hook):
    """Looks at every weight after each step."""

    def __init__(self, module: Any) -> None:
        self.module, self.steps, self.moved = module, 0, False

    def after_step(self, moment: Any) -> None:
        self.steps += 1
        for held, _, _ in quantized_weights(self.module):
            grid = held.detach() * 128
            assert torch.equal(grid, grid.round()), "on the grid of 1/128"
            assert float(held.detach().abs().max()) <= 0.5, "inside C's range"
            self.moved |= bool((grid % 64 != 0).any())


def trained(module: Any, *hooks: Any, epochs: int = 12) -> float:
    data = Stripes()

    def loss(models: Any, batch: Any) -> Any:
        return sum_of_squares(models["student"](batch["x"]), batch["y"])

    fit(
        data,
        {"student": module.train()},
        {"squares": loss},
        WageUpdate(module, 8.0),
        {"lr": drops({0.6: 0.125, 0.85: 1 / 64})},
        [Settle(module), *hooks],
        epochs=epochs,
        batch=24,
        seed=1,
    )
    module.eval()
    with torch.no_grad():
        return float((module(data.x).argmax(1) == data.y).float().mean())


# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "step"), [(1, 1.0), (2, 0.5), (8, 1 / 128)])
def test_the_step_is_two_to_one_minus_bits(bits: int, step: float) -> None:
    assert sigma(bits) == step


def test_clip_leaves_one_step_to_either_end() -> None:
    assert clip(torch.tensor([-3.0, 0.1, 3.0]), 2).tolist() == [-0.5, pytest.approx(0.1), 0.5]
    assert clip(torch.tensor([-3.0, 3.0]), 8).tolist() == [-127 / 128, 127 / 128]


def test_a_half_is_rounded_to_the_even_step() -> None:
    assert quantize(torch.tensor([0.25, 0.75, -0.25, -0.75]), 2).tolist() == [0, 1, 0, -1]


def test_shift_is_the_nearest_power_of_two_by_its_exponent_and_knows_no_logarithm_of_zero() -> None:
    assert shift(torch.tensor([3.0, 2.8, 1.0, 0.3])).tolist() == [4, 2, 1, 0.25]
    assert shift(torch.tensor(0.0)).item() == 1.0


def test_two_bits_of_weights_are_three_levels_over_a_power_of_two() -> None:
    weight = drawn(64, 32, 3, 3) * 0.5
    quantizer = WageWeights()
    alpha = quantizer.alpha(weight)
    assert alpha == 2 ** round(math.log2(0.75 / math.sqrt(3 / (32 * 9))))
    assert torch.unique(quantizer(weight)).tolist() == [-0.5 / alpha, 0, 0.5 / alpha]


def test_the_authors_code_and_the_paper_draw_from_different_ranges() -> None:
    weight = torch.empty(4, 2)  # a fan in of 2: wider than the least range
    code, paper = WageWeights(8), WageWeights(8, init=6.0)
    assert code.alpha(weight) == paper.alpha(weight) == 1.0
    small = torch.empty(64, 512)
    assert WageWeights().alpha(small) == 8.0  # sqrt(3 / 512) = 0.077: 0.75 is 9.8 times as much
    assert WageWeights(init=6.0).alpha(small) == 8.0
    assert WageWeights(init=6.0).alpha(torch.empty(64, 300)) == 4.0
    assert WageWeights(init=3.0).alpha(torch.empty(64, 300)) == 8.0


def test_weights_start_on_the_grid_of_their_codes() -> None:
    torch.manual_seed(0)
    weight = torch.empty(32, 16, 3, 3)
    WageWeights().start(weight)
    assert torch.unique(weight).tolist() == [-0.5, 0, 0.5]


def test_a_weights_gradient_passes_rounding_and_clipping_unchanged() -> None:
    weight = torch.tensor([[-2.0, -0.1, 0.3, 0.9]], requires_grad=True)
    sent = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    WageWeights()(weight).backward(sent)
    assert torch.equal(weight.grad, sent), "not masked where C clips"


def test_an_activations_gradient_is_masked_where_it_is_clipped_and_where_relu_is_zero() -> None:
    value = torch.tensor([[-0.5, 0.3, 0.99, 1.5]], requires_grad=True)
    made = WageActivations()(value)
    assert (made * 128).tolist() == [[0, 38, 127, 127]]
    made.backward(torch.tensor([[0.5, 0.5, 0.25, 0.5]]))
    assert value.grad.tolist() == [[0, 127 / 128, 0.5, 0]]  # divided by Shift(0.5), then clipped


def test_errors_are_scaled_by_the_whole_tensors_largest_and_have_their_levels() -> None:
    value = torch.zeros(2, 3, requires_grad=True)
    WageOutput()(value).backward(torch.tensor([[3.0, -0.3, 0.01], [0.0, 1.5, -3.0]]))
    wanted = [[96, -10, 0], [0, 48, -96]]  # of 1/128, after a division by Shift(3) = 4
    assert (value.grad * 128).tolist() == wanted


def test_no_error_at_all_is_no_error() -> None:
    value = torch.zeros(2, 3, requires_grad=True)
    WageOutput()(value).backward(torch.zeros(2, 3))
    assert not value.grad.any()


def test_the_input_keeps_its_sign() -> None:
    made = WageInput()(torch.tensor([[-1.0, -0.5, 0.0, 1.0]]))
    assert (made * 128).tolist() == [[-127, -64, 0, 127]]


# --- the update -------------------------------------------------------------------------------------------------------


def test_updates_are_whole_steps_and_right_on_average() -> None:
    torch.manual_seed(0)
    gradient = torch.tensor([1.0, 0.3, -0.55, 0.0])
    made = torch.stack([stochastic(gradient, 2.0) for _ in range(4000)])
    assert torch.equal(made, made.round())
    bound = 4 * 0.5 / math.sqrt(4000)
    assert torch.allclose(made.mean(0), 2.0 * gradient, atol=bound)
    assert set(made[:, 2].unique().tolist()) == {-1.0, -2.0}


def test_how_large_a_loss_is_does_not_matter() -> None:
    gradient = drawn(50)
    torch.manual_seed(0)
    first = stochastic(gradient, 1.0)
    torch.manual_seed(0)
    assert torch.equal(first, stochastic(gradient * 1024, 1.0))


def test_a_gradient_of_zeros_changes_nothing() -> None:
    assert not stochastic(torch.zeros(4), 8.0).any()


@pytest.mark.parametrize("rate", [3.0, 0.0, -1.0])
def test_rates_are_powers_of_two(rate: float) -> None:
    with pytest.raises(BadInput, match="must be a power of two"):
        WageUpdate(network(), rate)
    update = WageUpdate(network(), 8.0)
    with pytest.raises(BadInput, match="must be a power of two at every step"):
        update.set({"lr": 0.3})


def test_what_has_batch_norms_or_biases_is_refused() -> None:
    whole = torch.nn.Sequential(network(), torch.nn.BatchNorm1d(CLASSES))
    with pytest.raises(BadInput, match="got 3 of them and 2 other parameters"):
        WageUpdate(whole, 1.0)


def test_the_loss_is_half_the_sum_and_no_mean() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    assert float(sum_of_squares(scores, torch.tensor([0, 2]))) == 0.5 * (0.25 + 1)


# --- the network ------------------------------------------------------------------------------------------------------


def test_every_weight_is_on_the_grid_after_every_step_and_the_network_learns() -> None:
    module = network()
    watched = OnTheGrid(module)
    assert trained(module, watched) > 0.9
    assert watched.steps == 120
    assert watched.moved, "finer than the codes' own grid"
    assert trained(network(), epochs=0) < 0.8


def test_whole_numbers_give_the_simulations_scores_exactly() -> None:
    module = network()
    trained(module, epochs=3)
    images = Stripes().x
    with torch.no_grad():
        wanted = module(images).double().numpy()
    assert np.array_equal(integer_scores(module, images.numpy()), wanted)
    assert len(np.unique(wanted)) > 20


def test_a_file_gives_the_simulations_scores_exactly_and_holds_codes_and_integers() -> None:
    module = network()
    trained(module, epochs=3)
    content = to_onnx(module, IMAGE)
    session = open_model(content)
    for image in Stripes().x[:60]:
        (answer,) = session.run(["final"], {"image": image[None].numpy()})
        with torch.no_grad():
            assert np.array_equal(answer, module(image[None]).numpy())


def test_one_batch_in_whole_numbers_by_hand() -> None:
    """One layer: codes 64 and -32 of 1/128 with weights +0.5 / alpha and -0.5 / alpha."""
    module = network()
    (layer, *_) = quantized_layers(module)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 1, 1] = 0.5
    image = np.full((1, 1, SIDE, SIDE), 0.5, np.float32)
    step = float(layer.quantizer.scale(layer.weight))
    with torch.no_grad():
        made = layer(WageInput()(torch.from_numpy(image)))
    assert float(made[0, 0, 3, 3]) == 0.5 * step
    assert not made[0, 1:].any()


def test_what_whole_numbers_cannot_compute_is_refused() -> None:
    with pytest.raises(BadInput, match="whole numbers know no Conv2d"):
        integer_scores(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)), np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(BadInput, match="input is not quantized"):
        integer_scores(torch.nn.Sequential(torch.nn.Flatten()), np.zeros((1, 1, 8, 8), np.float32))
