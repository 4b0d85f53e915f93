"""Training a classifier on labelled samples: it learns at every exit, resumes, and refuses what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input, Preprocess
from edgekit.core.manifest import Tensor as Described
from edgekit.runtime.data import load_data
from edgekit.runtime.preprocess import preprocess

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.fit import Hook, Moment, reproducible  # noqa: E402
from edgekit.host.train.outputs import Outputs  # noqa: E402
from edgekit.host.train.samples import Augment  # noqa: E402
from edgekit.host.train.supervised import (  # noqa: E402
    Labelled,
    Training,
    evaluate,
    labelled,
    train_classifier,
)

SIDE = 8
IMAGE = Input(
    Described("image", "float32", (1, 1, SIDE, SIDE)),
    "NCHW",
    Preprocess("L", "stretch", "bilinear", 1 / 255, (0.3,), (0.35,)),
)


def bars(count: int = 240, seed: int = 0) -> tuple[Any, Any]:
    """Noisy images with one bright bar: across, upright, or none. uint8 [N, 8, 8] and the class."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 90, (count, SIDE, SIDE)).astype(np.uint8)
    y = random.integers(0, 3, count)
    place = random.integers(0, SIDE, count)
    for index in range(count):
        if y[index] == 0:
            x[index, place[index]] = 220
        elif y[index] == 1:
            x[index, :, place[index]] = 220
    return x, y


class Small(torch.nn.Module):  # type: ignore[misc]
    """Two exits. ponder: a loss of its own that pulls the early logits to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        )
        self.second = torch.nn.Sequential(
            torch.nn.Conv2d(8, 16, 3, 2, 1), torch.nn.BatchNorm2d(16), torch.nn.ReLU()
        )
        self.early, self.late = torch.nn.Linear(8, 3), torch.nn.Linear(16, 3)

    def forward(self, image: Any) -> Any:
        first = self.first(image)
        second = self.second(first)
        return self.early(first.amax((2, 3))), self.late(second.amax((2, 3)))


class Pulled(Small):
    def forward(self, image: Any) -> Any:
        logits = super().forward(image)
        return Outputs(logits, also={"early": logits[0]})

    def losses(self, outputs: Outputs) -> Mapping[str, Any]:
        return {"pull": outputs.also["early"].square().mean()}


def made(kind: Any = Small) -> Any:
    with reproducible(1, 1):
        return kind()


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def trained(module: Any, augment: Augment | None = None, **options: Any) -> Any:
    how = {key: options.pop(key) for key in ("hooks", "checkpoint", "seed") if key in options}
    training = Training(**{"epochs": 2, "batch": 24, "lr": 0.05, **options})
    samples = Labelled(*bars(), IMAGE, augment)
    return train_classifier(module, samples, training, **{"seed": 3, **how})


def test_every_exit_learns_and_is_judged_on_samples_it_has_not_seen() -> None:
    module = made()
    exam = Labelled(*bars(300, seed=9), IMAGE)
    before = evaluate(module, exam)
    fitted = trained(module, Augment(shift=1, flip=True), epochs=10)
    after = evaluate(module, exam)
    assert fitted.losses[-1]["cross entropy"] < 0.5 * fitted.losses[0]["cross entropy"]
    assert max(before.accuracy) < 0.6
    assert after.accuracy[0] > 0.6  # its features see three pixels
    assert after.accuracy[1] > 0.9
    assert after.loss[1] < before.loss[1]
    assert not module.training


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, second, other = made(), made(), made()
    trained(first)
    trained(second)
    trained(other, seed=4)
    assert same(first, second)
    assert not same(first, other)


class Killed(Exception):
    pass


class Kill(Hook):
    def __init__(self, at: int) -> None:
        self.at = at

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.at:
            raise Killed


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.host.train.supervised._STEPS_KEPT", 5)
    file = tmp_path / "checkpoint"
    whole, parts = made(), made()
    trained(whole)
    with pytest.raises(Killed):
        trained(parts, hooks=[Kill(13)], checkpoint=file)
    assert file.exists()
    resumed = made()
    trained(resumed, hooks=[Kill(0)], checkpoint=file)
    assert same(whole, resumed)
    assert not file.exists()


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.host.train.supervised._STEPS_KEPT", 5)
    file = tmp_path / "checkpoint"
    with pytest.raises(Killed):
        trained(made(), hooks=[Kill(7)], checkpoint=file)
    with pytest.raises(BadInput, match="another training"):
        trained(made(), lr=0.01, checkpoint=file)


def test_a_loss_of_the_module_is_added_and_told_by_name() -> None:
    free, pulled = made(), made(Pulled)
    trained(free, epochs=6)
    fitted = trained(pulled, epochs=6)
    assert set(fitted.losses[0]) == {"cross entropy", "pull"}
    samples = Labelled(*bars(seed=5), IMAGE).plain(0, 100)["x"]
    with torch.no_grad():
        sizes = [float(each(samples)[0].square().mean()) for each in (free, lambda x: pulled(x).logits)]
    assert sizes[1] < 0.3 * sizes[0]


def test_an_exit_of_weight_zero_teaches_nothing() -> None:
    module = made()
    before = module.early.weight.detach().clone()
    trained(module, exit_weights=(0.0, 1.0), weight_decay=0.0)
    assert torch.equal(module.early.weight, before)
    assert not torch.equal(module.late.weight, made().late.weight)


def test_weight_decay_spares_biases_and_batch_norms() -> None:
    bare, decayed = made(), made()
    for module, decay in ((bare, 0.0), (decayed, 5.0)):
        trained(
            module, epochs=1, batch=240, lr=0.01, momentum=0.0, weight_decay=decay, warm_up=0.0
        )  # one step
    assert torch.equal(bare.first[1].weight, decayed.first[1].weight)
    assert torch.equal(bare.late.bias, decayed.late.bias)
    assert decayed.late.weight.detach().norm() < 0.99 * bare.late.weight.detach().norm()


def test_mixed_precision_trains_as_well() -> None:
    module = made()
    fitted = trained(module, epochs=6, bfloat16=True)
    assert fitted.losses[-1]["cross entropy"] < 0.7 * fitted.losses[0]["cross entropy"]
    assert {value.dtype for value in module.parameters()} == {torch.float32}


def test_pixels_become_what_boards_make_of_them() -> None:
    x, y = bars(4)
    batch = Labelled(x, y, IMAGE).plain(0, 4)
    for index in range(4):
        np.testing.assert_allclose(batch["x"][index].numpy(), preprocess(x[index], IMAGE)[0], atol=1e-6)
    assert batch["y"].tolist() == y.tolist()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_colours_take_their_places(layout: str, channels: str) -> None:
    shape = (1, 3, 6, 5) if layout == "NCHW" else (1, 6, 5, 3)
    how = Preprocess(channels, "stretch", "bilinear", 1 / 255, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    image = Input(Described("image", "float32", shape), layout, how)
    x = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3)).astype(np.uint8)
    batch = Labelled(x, np.arange(3), image).plain(0, 3)["x"]
    for index in range(3):
        np.testing.assert_allclose(batch[index].numpy(), preprocess(x[index], image)[0], atol=1e-6)


def test_tensors_that_are_no_images_are_taken_as_they_are() -> None:
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    flat = Input(Described("x", "float32", (1, 7)), "flat", None)
    assert np.array_equal(Labelled(x, np.zeros(5, np.int64), flat).plain(0, 5)["x"].numpy(), x)


def test_data_that_was_read_from_a_file_trains_too(tmp_path: Path) -> None:
    x, y = bars(12)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    samples = labelled(load_data(tmp_path / "data.npz", (IMAGE,)), IMAGE)
    direct = Labelled(x, y, IMAGE)
    assert torch.allclose(samples.plain(0, 12)["x"], direct.plain(0, 12)["x"], atol=1e-6)
    assert torch.equal(samples.y, direct.y)
    np.savez(tmp_path / "plain.npz", x=x)
    with pytest.raises(BadInput, match="needs labels"):
        labelled(load_data(tmp_path / "plain.npz", (IMAGE,)), IMAGE)


def test_augmented_samples_keep_their_class_and_change() -> None:
    x, y = bars(60)
    samples = Labelled(x, y, IMAGE, Augment(shift=2, flip=True))
    indices = torch.arange(60)
    batch = samples.take(indices, torch.Generator().manual_seed(0))
    assert batch["y"].tolist() == y.tolist()
    assert not torch.equal(batch["x"], samples.plain(0, 60)["x"])
    again = samples.take(indices, torch.Generator().manual_seed(0))
    assert torch.equal(batch["x"], again["x"])


BAD: list[tuple[Any, Any, str]] = [
    (np.zeros((4, 8, 8), np.uint8), np.zeros(3, np.int64), "a class >= 0 per sample"),
    (np.zeros((4, 8, 8), np.uint8), np.array([0, 1, -1, 0]), "a class >= 0 per sample"),
    (np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.float32), "a class >= 0 per sample"),
    (np.zeros((4, 9, 8), np.uint8), np.zeros(4, np.int64), r"samples of shape \[1, 8, 8\], got \[9, 8\]"),
    (np.zeros((0, 8, 8), np.uint8), np.zeros(0, np.int64), "a class >= 0 per sample"),
]


@pytest.mark.parametrize(("x", "y", "said"), BAD)
def test_samples_that_do_not_fit_are_refused(x: Any, y: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Labelled(x, y, IMAGE)


def test_more_classes_than_the_network_tells_apart_are_refused() -> None:
    x, _ = bars(10)
    with pytest.raises(BadInput, match="tells 3 classes apart, the samples have 5"):
        train_classifier(made(), Labelled(x, np.full(10, 4), IMAGE), Training(epochs=1), seed=0)


def test_weights_for_other_exits_are_refused() -> None:
    with pytest.raises(BadInput, match="has 2 exits, got 3 exit weights"):
        trained(made(), exit_weights=(1.0, 1.0, 1.0))


def test_mixtures_without_labels_are_refused() -> None:
    with pytest.raises(BadInput, match="mixup"):
        Labelled(*bars(5), IMAGE, Augment(mixup=0.2))


def test_evaluating_leaves_the_module_as_it_was() -> None:
    module = made().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    evaluate(module, Labelled(*bars(20), IMAGE))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
