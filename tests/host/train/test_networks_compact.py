"""SqueezeNet, ShuffleNet, Wide ResNet, VGG-small: published counts, closed forms, what is special, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.core.manifest import Tensor as Described
from edgekit.host.load import load
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.work import layers

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.networks import build, shufflenet, squeezenet, vgg, wide_resnet  # noqa: E402
from edgekit.host.train.networks.squeezenet import Fire, FireModule  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402

OURS = ("squeezenet", "shufflenet", "wide-resnet", "vgg")


def parameters(module: Any) -> int:
    return sum(each.numel() for each in module.parameters())


def conv_weights(module: Any) -> int:
    return sum(each.numel() for each in module.parameters() if each.ndim > 1)


def macs_of(module: Any, shape: tuple[int, ...], folder: Path) -> int:
    path = folder / "m.onnx"
    path.write_bytes(to_onnx(module, Input(Described("image", "float32", shape), "NCHW", None)))
    return sum(layer.macs for layer in layers(fold(load(path).graph, NoOptions(), Context()).model))


@pytest.mark.parametrize(
    ("config", "published"), [(squeezenet.v1_0(), 1_248_424), (squeezenet.v1_1(), 1_235_496)]
)
def test_squeezenets_parameters_are_the_published_ones(config: Any, published: int) -> None:
    assert parameters(build("squeezenet", config)) == config.parameters() == published


def test_a_fire_module_is_its_closed_form_and_joins_both_sizes() -> None:
    module = FireModule(96, Fire(16, 64), norm=False).eval()
    assert parameters(module) == Fire(16, 64).parameters(96) == 11_920
    value = torch.randn(1, 96, 5, 5)
    made = module(value)
    assert made.shape == (1, 128, 5, 5)
    assert torch.equal(made[:, :64], module.small(module.squeeze(value)))


@pytest.mark.parametrize(
    ("groups", "scale", "millions"), [(3, 2.0, 5.4), (3, 1.5, 3.4), (3, 1.0, 1.9), (3, 0.5, 0.7)]
)
def test_shufflenets_parameters_are_the_authors(groups: int, scale: float, millions: float) -> None:
    config = shufflenet.paper(groups, scale)
    assert config.parameters() / 1e6 == pytest.approx(millions, abs=0.06)
    if scale < 1.5:
        assert parameters(build("shufflenet", config)) == config.parameters()


@pytest.mark.parametrize(("scale", "millions"), [(0.5, 38), (1.0, 138)])
def test_shufflenets_macs_are_the_authors(scale: float, millions: float, tmp_path: Path) -> None:
    found = macs_of(build("shufflenet", shufflenet.paper(3, scale)), (1, 3, 224, 224), tmp_path)
    assert found / 1e6 == pytest.approx(millions, abs=1)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
def test_every_number_of_groups_of_the_paper_makes_a_network(groups: int) -> None:
    config = shufflenet.paper(groups, classes=10)
    assert config.width % (4 * groups) == 0


def test_the_shuffle_is_a_transposition_and_its_inverse_is_the_other_one() -> None:
    """The trap: the reference transposes the other way; weights of one do not fit the other."""
    value = torch.arange(12.0).reshape(1, 12, 1, 1)
    mixed = shufflenet.shuffle(value, 3)
    assert mixed.flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(shufflenet.shuffle(mixed, 4), value)
    assert not torch.equal(shufflenet.shuffle(mixed, 3), value)


@pytest.mark.parametrize(("depth", "width", "millions"), [(20, 4, 4.3), (20, 10, 26.7)])
def test_wide_resnets_have_as_many_weights_as_published(depth: int, width: int, millions: float) -> None:
    config = wide_resnet.paper(depth, width)
    assert config.weights() / 1e6 == pytest.approx(millions, abs=0.06)
    if width == 4:
        assert conv_weights(build("wide-resnet", config)) == config.weights()


def test_wide_resnets_shortcuts_have_no_weights_and_only_the_input_is_scaled() -> None:
    module = build("wide-resnet", wide_resnet.Config(affine=False))
    assert parameters(module) == conv_weights(module) + 2, "the first batch norm's two numbers"
    block = module.layers[3]
    with torch.no_grad():
        for each in block.parameters():
            each.zero_()
        value = torch.randn(1, 16, 8, 8)
        made = block.eval()(value)
    assert torch.allclose(made[:, :16], torch.nn.functional.avg_pool2d(value, 3, 2, 1))
    assert not made[:, 16:].any()


def test_vggs_closed_forms(tmp_path: Path) -> None:
    config = vgg.paper()
    assert config.weights() == conv_weights(build("vgg", config))
    small = vgg.Config(16, 3, 4, (8, 16), 12)
    assert macs_of(build("vgg", small), (1, 3, 16, 16), tmp_path) == small.macs()


@pytest.mark.parametrize("name", OURS)
def test_ours_are_exported_as_they_answer_and_learn(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build(name).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    value, classes = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(module(value), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert macs_of(module, (1, 1, 28, 28), tmp_path) > 100_000  # the export compares
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: squeezenet.Config(fires=()), "needs Fire modules"),
        (lambda: shufflenet.Config(groups=3), "width must be a multiple of 4"),
        (lambda: shufflenet.paper(5), "the paper has 1, 2, 3, 4, 8 groups, got 5"),
        (lambda: shufflenet.paper(3, 0.7), "the paper has scales of 0.5, 1.0, 1.5, 2.0, got 0.7"),
        (lambda: shufflenet.Config(repeats=()), "needs stages"),
        (lambda: wide_resnet.Config(depth=10), "depth must be 6 n"),
        (lambda: vgg.Config(side=4), "3 pools want a side of at least 8, got 4"),
        (lambda: vgg.Config(widths=()), "needs widths"),
    ],
)
def test_what_makes_no_network_is_refused(make: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()
