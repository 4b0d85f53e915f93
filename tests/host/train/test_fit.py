"""The training loop: deterministic, resumable after a kill, stopped by hooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit.core.errors import BadInput

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.fit import Checkpoint, Fitted, Gradient, Hook, Moment, fit  # noqa: E402
from edgekit.host.train.hooks import KeepBest, Masks, keep_largest  # noqa: E402


class Points:
    """x [N, 4] and what a hidden linear rule makes of it; noise drawn anew in each batch."""

    def __init__(self, count: int = 50) -> None:
        random = torch.Generator().manual_seed(7)
        self.x = torch.randn(count, 4, generator=random)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5, 0.0])
        self.seen: list[int] = []

    @property
    def count(self) -> int:
        return len(self.x)

    def take(self, indices: Any, random: Any) -> Mapping[str, Any]:
        self.seen += indices.tolist()
        return {
            "x": self.x[indices] + 0.01 * torch.randn(len(indices), 4, generator=random),
            "y": self.y[indices],
        }


def squared(models: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    dropped = torch.nn.functional.dropout(batch["x"], 0.05)  # draws from PyTorch's own generator
    return (models["net"](dropped)[:, 0] - batch["y"]).square().mean()


def train(
    *hooks: Hook, rate: float = 0.05, epochs: int = 4, points: Points | None = None, **options: Any
) -> tuple[Any, Fitted]:
    torch.manual_seed(3)
    net = torch.nn.Linear(4, 1)
    made = fit(
        points or Points(),
        {"net": net},
        {"squared": squared},
        Gradient(torch.optim.Adam(net.parameters(), rate), clip=5.0),
        {"lr": lambda done: 1 - done, "sparsity": lambda done: 0.5},
        hooks,
        **{"epochs": epochs, "batch": 8, "seed": 5, **options},
    )
    return net, made


def test_training_learns_and_says_how() -> None:
    _, made = train(epochs=30)
    assert made.steps == 30 * 6
    assert len(made.losses) == 30
    assert made.losses[-1]["squared"] < 0.1 * made.losses[0]["squared"]
    assert not made.stopped


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, second, other = train()[0], train()[0], train(seed=6)[0]
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)


def test_an_epoch_sees_each_sample_once_at_most_and_each_epoch_another_order() -> None:
    points = Points()
    train(epochs=2, points=points)
    first, second = points.seen[:48], points.seen[48:]
    assert len(set(first)) == len(set(second)) == 48
    assert first != second


class Killed(Exception):
    pass


class KillAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.step:
            raise Killed


@pytest.mark.parametrize("killed_at", [1, 5, 11, 23])
def test_a_killed_training_goes_on_and_ends_in_the_same_bits(tmp_path: Path, killed_at: int) -> None:
    whole, told = train()
    path = tmp_path / "training.pt"
    with pytest.raises(Killed):
        train(KillAt(killed_at), checkpoint=Checkpoint(path, "k", every=2))
    assert path.exists() == (killed_at > 2)
    points = Points()
    resumed, made = train(KillAt(0), checkpoint=Checkpoint(path, "k", every=2), points=points)
    assert torch.equal(whole.weight, resumed.weight)
    assert made == told
    assert len(points.seen) == 8 * (24 - (killed_at - 1) // 2 * 2)  # what was done is not done again
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    with pytest.raises(Killed):
        train(KillAt(5), checkpoint=Checkpoint(path, "k", every=2))
    with pytest.raises(BadInput, match="another training"):
        train(KillAt(0), checkpoint=Checkpoint(path, "other"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInput, match=r"training\.pt: must be a training's checkpoint"):
        train(KillAt(0), checkpoint=Checkpoint(path, "k"))


def test_a_loss_that_is_no_number_is_said_at_once() -> None:
    with pytest.raises(BadInput, match=r"loss is not finite at step \d+ \(squared .*smaller learning rate"):
        train(rate=1e30, epochs=20)


def test_threads_and_generators_are_as_before() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    torch.manual_seed(0)
    fit(
        Points(),
        {"net": net},
        {"squared": squared},
        Gradient(torch.optim.SGD(net.parameters(), 0.1)),
        epochs=1,
        batch=8,
        seed=1,
        threads=1,
    )
    assert torch.equal(torch.rand(1), wanted)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_progress_counts_every_step() -> None:
    from contextlib import contextmanager

    told: list[tuple[str, int]] = []
    done: list[int] = []

    @contextmanager
    def watch(what: str, total: int) -> Any:
        told.append((what, total))
        yield done.append

    train(epochs=2, watch=watch, what="recover")
    assert told == [("recover", 12)]
    assert sum(done) == 12


def test_the_best_weights_are_kept_and_patience_ends_the_training() -> None:
    figures = iter([3.0, 1.0, 2.0, 2.5, 0.0])
    net = torch.nn.Linear(4, 1)
    best = KeepBest({"net": net}, lambda: next(figures), patience=2)
    weights: list[Any] = []

    class Remember(Hook):
        def after_epoch(self, moment: Moment) -> bool:
            weights.append(net.weight.detach().clone())
            return False

    made = fit(
        Points(),
        {"net": net},
        {"squared": squared},
        Gradient(torch.optim.SGD(net.parameters(), 0.05)),
        {},
        [Remember(), best],
        epochs=9,
        batch=8,
        seed=1,
    )
    assert made.stopped
    assert len(made.losses) == 4
    assert (best.best, best.best_epoch) == (1.0, 1)
    best.restore()
    assert torch.equal(net.weight, weights[1])


def test_masked_weights_are_zero_after_every_step_and_the_masks_stay_once_the_share_is_reached() -> None:
    net = torch.nn.Linear(8, 4)
    masks = Masks({"w": net.weight}, final=0.75, every=3)
    zeros: list[int] = []

    class Count(Hook):
        def after_step(self, moment: Moment) -> None:
            zeros.append(int((net.weight == 0).sum()))
            if moment.step == 9:
                self.then = masks.masks["w"].clone()

    count = Count()

    def loss(models: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        return (models["net"](torch.cat([batch["x"]] * 2, 1)).sum(1) - batch["y"]).square().mean()

    fit(
        Points(),
        {"net": net},
        {"loss": loss},
        Gradient(torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)),
        {"sparsity": lambda done: 0.75 if done > 0.3 else 0.25},
        [masks, count],
        epochs=3,
        batch=8,
        seed=1,
    )
    assert zeros[:3] == [0, 0, 8]
    assert set(zeros[8:]) == {24}
    assert torch.equal(count.then, masks.masks["w"])


def test_exactly_the_share_of_smallest_weights_goes() -> None:
    mask = keep_largest(torch.tensor([[0.5, -3.0], [0.5, 0.1]]), 0.5)
    assert mask.tolist() == [[0, 1], [1, 0]]
    assert keep_largest(torch.ones(7), 0.0).sum() == 7
