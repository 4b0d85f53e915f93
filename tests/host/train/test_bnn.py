"""Training binary networks: the loss by hand, small ones learn with each quantizer, seeds and checkpoints hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input, Preprocess
from edgekit.core.manifest import Tensor as Described

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.binary import bnn_conv, bnn_dense, xnor_conv  # noqa: E402
from edgekit.host.train.bnn import BinaryTraining, squared_hinge, train_bnn  # noqa: E402
from edgekit.host.train.fit import Hook, Moment, reproducible  # noqa: E402
from edgekit.host.train.quantized import QuantizedLinear, quantized_layers  # noqa: E402
from edgekit.host.train.quantizers import Constant, PerFilter  # noqa: E402
from edgekit.host.train.schedules import exponential  # noqa: E402
from edgekit.host.train.supervised import Labelled, evaluate  # noqa: E402

SIDE = 8
PIXELS = Input(
    Described("image", "uint8", (1, 1, SIDE, SIDE)),
    "NCHW",
    Preprocess("L", "stretch", "bilinear", 1.0, (0.0,), (1.0,)),
)


def bars(count: int = 800, seed: int = 0) -> tuple[Any, Any]:
    """Noisy images with one bright bar: across, upright, or none. uint8 [N, 8, 8] and the class."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 60, (count, SIDE, SIDE)).astype(np.uint8)
    y = random.integers(0, 3, count)
    place = random.integers(0, SIDE, count)
    for index in range(count):
        if y[index] == 0:
            x[index, place[index]] = 220
        elif y[index] == 1:
            x[index, :, place[index]] = 220
    return x, y


class Bits(torch.nn.Module):  # type: ignore[misc]
    """BNN's order: all layers binary, two exits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = bnn_conv(1, 24)
        self.second = bnn_conv(24, 32, pool=2)
        self.early, self.late = bnn_dense(24 * 36, 3, last=True), bnn_dense(32 * 4, 3, last=True)

    def forward(self, pixels: Any) -> Any:
        first = self.first(pixels)
        return self.early(first.flatten(1)), self.late(self.second(first).flatten(1))


class Xnor(torch.nn.Module):  # type: ignore[misc]
    """XNOR's order: first and last layers real."""

    def __init__(self, quantizer: Any) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1),
            xnor_conv(16, 24, padding=1, pool=2, quantizer=quantizer),
            xnor_conv(24, 24, padding=1, pool=2, quantizer=quantizer),
            torch.nn.BatchNorm2d(24),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(24 * 4, 3),
        )

    def forward(self, pixels: Any) -> Any:
        return self.layers(pixels / 128 - 1)


def made(kind: Any = Bits, *parts: Any) -> Any:
    with reproducible(1, 1):
        return kind(*parts)


def trained(module: Any, **options: Any) -> Any:
    how = {key: options.pop(key) for key in ("hooks", "checkpoint", "seed") if key in options}
    training = BinaryTraining(**{"epochs": 2, "batch": 25, "last": 1e-3, **options})
    return train_bnn(module, Labelled(*bars(), PIXELS), training, **{"seed": 3, **how})


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_the_squared_hinge_by_hand() -> None:
    scores = torch.tensor([[2.0, -0.5, -3.0], [0.5, 0.0, -1.0]])
    wanted = (0 + 0.5**2 + 0 + 1.5**2 + 1.0**2 + 0) / 6  # classes 0 and 1: margins of 1 on either side
    assert float(squared_hinge(scores, torch.tensor([0, 1]))) == pytest.approx(wanted)


def test_the_rate_falls_by_the_same_factor_in_each_step() -> None:
    rate = exponential(1e-3)
    assert [rate(done / 3) for done in range(4)] == [pytest.approx(10.0**-power) for power in range(4)]


def test_a_binary_network_learns_at_both_exits() -> None:
    module = made()
    fitted = trained(module, epochs=6)
    accuracy = evaluate(module, Labelled(*bars(300, 9), PIXELS)).accuracy
    assert fitted.losses[-1]["squared hinge"] < 0.6 * fitted.losses[0]["squared hinge"]
    assert accuracy[0] > 0.6
    assert accuracy[1] > 0.75
    assert not module.training
    assert all(float(layer.weight.detach().abs().max()) <= 1 for layer in quantized_layers(module))


@pytest.mark.parametrize("quantizer", [PerFilter(), Constant(4.0)])
def test_networks_in_xnors_order_learn(quantizer: Any) -> None:
    module = made(Xnor, quantizer)
    trained(module, epochs=4, lr=1e-2)
    assert evaluate(module, Labelled(*bars(300, 9), PIXELS)).accuracy[0] > 0.85


def flipped(scaled: bool) -> int:
    """Signs that one epoch changes, with the rates of the quantizers or without."""
    module = made(
        torch.nn.Sequential, torch.nn.Flatten(), QuantizedLinear(SIDE * SIDE, 3), torch.nn.BatchNorm1d(3)
    )
    before = module[1].weight.detach() >= 0
    if not scaled:
        object.__setattr__(module[1].quantizer, "rate", lambda weight: 1.0)
    trained(module, epochs=1, last=1.0)
    return int(((module[1].weight.detach() >= 0) != before).sum())


def test_without_the_scaled_rate_hardly_any_sign_changes() -> None:
    assert flipped(scaled=True) > 2 * flipped(scaled=False)


def test_mixed_precision_learns_as_well() -> None:
    module = made()
    trained(module, epochs=6, bfloat16=True)
    assert evaluate(module, Labelled(*bars(300, 9), PIXELS)).accuracy[1] > 0.75


class Killed(Exception):
    pass


class Kill(Hook):
    def after_step(self, moment: Moment) -> None:
        if moment.step == 23:
            raise Killed


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.host.train.supervised._STEPS_KEPT", 5)
    whole, parts, resumed = made(), made(), made()
    trained(whole)
    file = tmp_path / "checkpoint"
    with pytest.raises(Killed):
        trained(parts, hooks=[Kill()], checkpoint=file)
    trained(resumed, hooks=[Hook()], checkpoint=file)
    assert same(whole, resumed)
    assert not same(whole, parts)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"last": 0.0}, {"last": 2.0}])
def test_rates_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="wants lr above 0 and last in"):
        BinaryTraining(**options)  # type: ignore[arg-type]
