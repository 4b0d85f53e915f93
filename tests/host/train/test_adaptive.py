"""A bit width for each weight: tolerances by water-filling, fewest bits, the bound that holds, what is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.core.manifest import Tensor as Described

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.adaptive import (  # noqa: E402
    MOST_BITS,
    adapt,
    decode,
    encode,
    fewest_bits,
    tolerances_of,
    widths_of,
)
from edgekit.host.train.supervised import Labelled, Training, evaluate, train_classifier  # noqa: E402

IMAGE = Input(Described("x", "float32", (1, 8)), "none", None)


def samples(count: int = 300) -> Labelled:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, count)
    x = random.normal(0, 1, (count, 8)).astype(np.float32)
    x[np.arange(count), y] += 2
    return Labelled(x, y, IMAGE)


@pytest.fixture(scope="module")
def trained() -> Any:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    train_classifier(module, samples(), Training(epochs=10, batch=20, lr=0.05), seed=1)
    return module.state_dict()


@pytest.fixture
def module(trained: Any) -> Any:
    made = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    made.load_state_dict(trained)
    return made.eval()


# --- tolerances -------------------------------------------------------------------------------------------------------


def test_unclipped_tolerances_are_the_closed_form() -> None:
    slopes = np.array([0.5, -2.0, 1.0, 4.0])
    budget = 0.1
    assert np.allclose(tolerances_of(slopes, budget, 10.0), budget / (4 * np.abs(slopes)))


def test_clipped_tolerances_use_the_budget_up_and_share_one_lambda() -> None:
    slopes = np.random.default_rng(0).normal(0, 1, 500)
    budget, delta = 3.0, 0.05
    tau = tolerances_of(slopes, budget, delta)
    assert (np.abs(slopes) * tau).sum() == pytest.approx(budget, rel=1e-9)
    inside = tau < delta * (1 - 1e-12)
    levels = (np.abs(slopes) * tau)[inside]
    assert 0 < inside.sum() < 500
    assert np.ptp(levels) < 1e-9 * levels.mean(), "the condition of Karush, Kuhn and Tucker"
    assert (np.abs(slopes)[~inside] * delta <= levels.mean() * (1 + 1e-9)).all()


def test_where_nothing_has_a_slope_the_trust_region_alone_bounds_it() -> None:
    """The trap: at an optimum all slopes are about zero."""
    assert tolerances_of(np.zeros(3), 0.0, 0.25).tolist() == [0.25] * 3
    assert tolerances_of(np.array([0.0, 1.0]), 0.1, 0.25) == pytest.approx([0.25, 0.1])


def test_no_budget_is_no_tolerance() -> None:
    assert tolerances_of(np.array([1.0, -2.0]), 0.0, 0.25) == pytest.approx([0, 0], abs=1e-12)


# --- fewest bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "number", "bits"),
    [
        (-0.1, 0.2, 0.0, 0),
        (0.4, 0.6, 0.5, 2),
        (0.6, 0.8, 0.75, 3),
        (-0.3, -0.2, -0.25, 3),
        (0.95, 1.2, 0.96875, 6),
        (0.3, 0.3, round(0.3 * 2**MOST_BITS) / 2**MOST_BITS, MOST_BITS + 1),
    ],
)
def test_the_number_of_fewest_bits_in_an_interval(low: float, high: float, number: float, bits: int) -> None:
    values, widths = fewest_bits(np.array([low]), np.array([high]), np.array([min(0.99, (low + high) / 2)]))
    assert (values[0], widths[0]) == (number, bits)


def test_fewest_bits_against_trying_all() -> None:
    random = np.random.default_rng(0)
    wanted = random.uniform(-0.999, 0.999, 300)
    tau = 10.0 ** random.uniform(-4, -0.5, 300)
    values, bits = fewest_bits(wanted - tau, wanted + tau, wanted)
    for value, width, aim, room in zip(values, bits, wanted, tau, strict=True):
        assert abs(value - aim) <= room + 1e-12
        for fewer in range(1, max(int(width) - 1, 1)):
            steps = np.arange(1 - 2**fewer, 2**fewer) / 2**fewer
            assert (np.abs(steps - aim) > room).all(), "a shorter number would have done"


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 2.0, 10.0])
def test_the_loss_stays_within_the_bound_and_bits_never_rise(module: Any, factor: float) -> None:
    data = samples()
    before = evaluate(module, data).loss[-1]
    made = adapt(module, data, factor)
    assert made.before == before
    assert evaluate(module, data).loss[-1] == made.after <= made.bound == factor * before
    bits = [step.bits for step in made.steps]
    assert bits == sorted(bits, reverse=True)
    assert all(step.loss <= made.bound for step in made.steps)
    assert made.payload_bits == bits[-1] < 0.5 * 17 * made.weights
    assert sum(made.widths.values()) == made.weights == 8 * 16 + 16 + 16 * 3 + 3


def test_a_wider_bound_takes_fewer_bits(module: Any, trained: Any) -> None:
    narrow = adapt(module, samples(), 1.0).payload_bits
    module.load_state_dict(trained)
    assert adapt(module, samples(), 10.0).payload_bits < narrow


def test_without_direction_nothing_is_saved_where_the_bound_is_the_loss(module: Any, trained: Any) -> None:
    """The trap: no budget, no tolerance."""
    data = samples()
    directed = adapt(module, data, 1.0).bits_per_weight
    module.load_state_dict(trained)
    plain = adapt(module, data, 1.0, directed=False).bits_per_weight
    assert plain > 1.5 * directed


def test_what_is_stored_comes_back_and_is_as_long_as_was_said(module: Any) -> None:
    made = adapt(module, samples(), 2.0)
    total, table = 0, 0
    for each in module.parameters():
        scale = 2.0 ** (np.floor(np.log2(float(each.abs().max().detach()))) + 1)
        numbers = each.detach().double().flatten().numpy() / scale
        payload, widths = encode(numbers)
        assert np.array_equal(decode(payload, widths, numbers.size), numbers)
        total += int(widths_of(numbers).sum())
        table += widths.size
    assert total <= made.payload_bits
    assert 8 * table >= made.table_bits - 8 * 4
    with pytest.raises(BadInput, match="must be"):
        decode(payload[:-1], widths, numbers.size)


def test_nothing_but_layers_weights_changes() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    adapt(module, samples(), 2.0)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize(("factor", "delta"), [(0.9, 0.05), (1.0, 0.0), (1.0, 2.0)])
def test_what_makes_no_sense_is_refused(module: Any, factor: float, delta: float) -> None:
    with pytest.raises(BadInput, match="factor of at least 1 and delta in"):
        adapt(module, samples(), factor, delta=delta)
    with pytest.raises(BadInput, match="no convolution and no dense layer"):
        adapt(torch.nn.Sequential(torch.nn.ReLU()), samples())
