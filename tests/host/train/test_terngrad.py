"""TernGrad: three levels, right on average, on one grid for all workers, four in a byte."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgekit.core.errors import BadInput

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.fit import Checkpoint, Gradient, Hook, fit  # noqa: E402
from edgekit.host.train.terngrad import TernGrad, clipped, decode, encode, ternary  # noqa: E402


class Points:
    """A line with noise."""

    count = 64

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.x = torch.randn(self.count, 100, generator=random)
        self.truth = torch.randn(100, 1, generator=random)
        self.y = self.x @ self.truth

    def take(self, indices: Any, random: Any) -> Any:
        return {"x": self.x[indices], "y": self.y[indices]}


def squared(models: Any, batch: Any) -> Any:
    return (models["m"](batch["x"]) - batch["y"]).square().mean()


def line() -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(100, 1, bias=False)


def run(update: Any, module: Any, epochs: int = 40, **more: Any) -> list[float]:
    fitted = fit(Points(), {"m": module}, {"l": squared}, update, epochs=epochs, batch=16, seed=1, **more)
    return [each["l"] for each in fitted.losses]


def test_what_is_told_is_right_on_average() -> None:
    torch.manual_seed(0)
    gradient = torch.tensor([0.7, -0.2, 0.0, 1.0, -1.0])
    many = torch.stack([ternary(gradient, torch.tensor(1.0)) for _ in range(4000)])
    assert set(many.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.allclose(many.mean(0), gradient, atol=4 * 0.5 / math.sqrt(4000))


def test_values_are_clipped_to_so_many_deviations() -> None:
    gradient = torch.cat([torch.ones(99), torch.tensor([-100.0])])
    limit = 2.5 * float(gradient.std(correction=0))
    assert float(clipped(gradient).min()) == pytest.approx(-limit)
    assert torch.equal(clipped(torch.full((3,), 0.5)), torch.full((3,), 0.5)), "no deviation: no limit"
    assert not ternary(torch.zeros(4), torch.tensor(0.0)).any()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 1001])
def test_four_codes_are_one_byte_and_come_back_without_what_fills_the_last(count: int) -> None:
    codes = torch.randint(-1, 2, (count,), generator=torch.Generator().manual_seed(count)).float()
    packed = encode(codes)
    assert packed.size == -(-count // 4)
    assert torch.equal(decode(packed, (count,)), codes)
    with pytest.raises(BadInput):
        decode(packed, (count + 4,))


def test_all_workers_share_a_scale_so_that_their_sum_is_on_one_grid() -> None:
    module = line()
    update = TernGrad(Gradient(torch.optim.SGD(module.parameters(), 1.0)), workers=2, clip=100.0)
    before = module.weight.detach().clone()
    torch.manual_seed(3)
    largest = 0.0
    for worker in (1.0, 3.0):
        gradient = worker * torch.randn(1, 100)
        largest = max(largest, float(gradient.abs().max()))
        update.step((module.weight * gradient).sum())
    moved = (before - module.weight.detach()) / largest
    assert set((2 * moved).round(decimals=4).abs().unique().tolist()) <= {0.0, 1.0, 2.0}
    assert moved.any()


def test_weights_move_only_after_the_last_workers_turn() -> None:
    module = line()
    update = TernGrad(Gradient(torch.optim.SGD(module.parameters(), 1.0)), workers=3)
    before = module.weight.detach().clone()
    for turn in range(3):
        assert torch.equal(module.weight, before), turn
        update.step(squared({"m": module}, {"x": Points().x, "y": Points().y}))
    assert not torch.equal(module.weight, before)


def test_small_tensors_are_told_as_floats_and_bytes_are_counted() -> None:
    module = line()
    whole = TernGrad(Gradient(torch.optim.SGD(module.parameters(), 0.0)), workers=1, exempt=101)
    whole.step(module.weight.square().sum())
    assert whole.sent_bytes == 400
    assert torch.equal(module.weight.grad, 2 * module.weight.detach())
    told = TernGrad(Gradient(torch.optim.SGD(module.parameters(), 0.0)), workers=1)
    told.step(module.weight.square().sum())
    assert told.sent_bytes == 25 + 4


def test_two_workers_learn_what_one_learns() -> None:
    alone, module = line(), line()
    first = run(Gradient(torch.optim.SGD(alone.parameters(), 0.02)), alone)
    told = run(TernGrad(Gradient(torch.optim.SGD(module.parameters(), 0.02)), workers=2), module, 80)
    assert first[-1] < 0.2 * first[0]
    assert told[-1] < 0.2 * told[0]


def test_a_training_that_is_stopped_between_two_workers_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    class Stop(Hook):
        def after_step(self, moment: Any) -> None:
            if moment.step == 6:
                raise KeyboardInterrupt

    def made() -> Any:
        module = line()
        return module, TernGrad(Gradient(torch.optim.SGD(module.parameters(), 0.02)), workers=2)

    whole, update = made()
    run(update, whole, 4)
    stopped, update = made()
    kept = Checkpoint(tmp_path / "c", every=5)  # after an odd step: one worker's turn is pending
    with pytest.raises(KeyboardInterrupt):
        run(update, stopped, 4, checkpoint=kept, hooks=[Stop()])
    again, update = made()
    run(update, again, 4, checkpoint=kept, hooks=[Hook()])
    assert torch.equal(whole.weight, again.weight)


def test_no_workers_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 1 worker and a clip above 0, got 0"):
        TernGrad(Gradient(torch.optim.SGD(line().parameters(), 1.0)), workers=0)
