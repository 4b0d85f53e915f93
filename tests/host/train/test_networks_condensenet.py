"""CondenseNet: published counts, what each stage lets go, and the plain convolution that comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.core.manifest import Tensor as Described
from edgekit.host.load import load
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.work import layers

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.fit import Gradient, Moment, fit  # noqa: E402
from edgekit.host.train.networks.condensenet import (  # noqa: E402
    Condense,
    CondenseNet,
    Config,
    Gathered,
    LearnedGroups,
    cifar,
    converted,
    learned,
)
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402

SMALL = Config(1, 3, (2, 2), (4, 4), 2, 2)


class Noise:
    """Images whose class is where they are bright."""

    count = 96

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.y = torch.randint(0, 3, (self.count,), generator=random)
        self.x = torch.randn(self.count, 1, 8, 8, generator=random)
        self.x[torch.arange(self.count), 0, 2 * self.y] += 2

    def take(self, indices: Any, random: Any) -> Any:
        return {"x": self.x[indices], "y": self.y[indices]}


def trained(config: Config = SMALL, epochs: int = 6) -> Any:
    torch.manual_seed(0)
    module = CondenseNet(config)

    def loss(models: Any, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(models["m"](batch["x"]).logits[0], batch["y"])

    update = Gradient(torch.optim.SGD(module.parameters(), 0.05, momentum=0.9))
    fit(
        Noise(),
        {"m": module.train()},
        {"l": loss},
        update,
        hooks=[Condense(module)],
        epochs=epochs,
        batch=16,
        seed=1,
    )
    return module.eval()


def condensed(learned_groups: Any) -> Any:
    for _ in range(learned_groups.condense - 1):
        learned_groups.condense_once()
    return learned_groups


def as_the_authors_count(config: Config, side: int) -> int:
    """Multiply-accumulates, one for each ReLU, and each number that a pool reads."""
    total, found, channels = config.macs(side), list(config.layers()), 0
    for place, stage in enumerate(config.stages):
        for _ in range(stage):
            inputs, growth = found.pop(0)
            total += (inputs + 4 * growth) * side**2
            channels = inputs + growth
        last = place + 1 == len(config.stages)
        total += channels * side**2 * (2 if last else 1)  # the pool; and the last ReLU
        side //= 2
    return total


@pytest.mark.parametrize(("depth", "millions", "operations"), [(8, 0.22, 28.6), (14, 0.52, 65.8)])
def test_parameters_and_operations_are_the_published_ones(
    depth: int, millions: float, operations: float
) -> None:
    config = cifar(depth)
    assert config.parameters() / 1e6 == pytest.approx(millions, abs=0.006)
    assert as_the_authors_count(config, 32) / 1e6 == pytest.approx(operations, abs=0.1)


def test_the_closed_forms_count_what_the_converted_network_has(tmp_path: Path) -> None:
    module = CondenseNet(SMALL)
    for each in learned(module):
        condensed(each)
    plain = converted(module)
    assert sum(each.numel() for each in plain.parameters() if each.ndim > 1) == SMALL.weights()
    assert sum(each.numel() for each in plain.parameters()) == SMALL.parameters()
    path = tmp_path / "m.onnx"
    path.write_bytes(to_onnx(plain, Input(Described("image", "float32", (1, 1, 8, 8)), "NCHW", None)))
    found = layers(fold(load(path).graph, NoOptions(), Context()).model)
    assert sum(layer.macs for layer in found) == SMALL.macs(8)


def test_each_group_lets_go_of_its_weakest_inputs_in_equal_shares() -> None:
    module = LearnedGroups(8, 4, groups=2, condense=4)
    with torch.no_grad():
        weight = torch.ones(4, 8)
        weight[0::2] = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
        weight[1::2] = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])
        module.conv.weight.copy_(weight[:, :, None, None])
    for stage, (even, odd) in enumerate(
        [([2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5]), ([4, 5, 6, 7], [0, 1, 2, 3])]
    ):
        module.condense_once()
        assert module.stage == stage + 1
        for row, left in ((0, even), (1, odd), (2, even), (3, odd)):
            assert module.mask[row].flatten().nonzero().flatten().tolist() == left


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("condense", [2, 4])
def test_the_converted_convolution_answers_as_the_masked_one(groups: int, condense: int) -> None:
    torch.manual_seed(groups)
    module = LearnedGroups(16, 8, groups, condense)
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2)
    condensed(module.eval())
    plain = Gathered(module).eval()
    value = torch.randn(2, 16, 5, 5)
    assert torch.allclose(plain(value), module(value), atol=1e-5)
    assert plain.conv.weight.shape == (8, 16 // condense, 1, 1)
    assert len(plain.index) == groups * 16 // condense


def test_a_pass_does_not_change_the_mask() -> None:
    """The trap: the reference prunes inside the pass."""
    module = CondenseNet(SMALL).train()
    before = [each.mask.clone() for each in learned(module)]
    module(torch.randn(4, 1, 8, 8))
    assert all(torch.equal(old, each.mask) for old, each in zip(before, learned(module), strict=True))


def test_stages_begin_in_the_first_half_of_the_training() -> None:
    module = LearnedGroups(8, 4, 1, 4)
    hook = Condense(module)
    stages = []
    for step in range(1, 13):
        hook.after_step(moment(step, 12))
        stages.append(module.stage)
    assert stages == [0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3]


def moment(step: int, steps: int) -> Any:
    return Moment(0, step, steps, {}, {})


def test_it_learns_condenses_and_answers_the_same_afterwards() -> None:
    module = trained()
    assert [each.stage for each in learned(module)] == [1, 1, 1, 1]
    plain, data = converted(module), Noise()
    with torch.no_grad():
        wanted, made = module(data.x).logits[0], plain(data.x).logits[0]
    assert torch.allclose(made, wanted, atol=1e-4)
    assert float((made.argmax(1) == data.y).float().mean()) > 0.8


def test_the_lasso_is_a_loss_where_it_has_a_weight() -> None:
    plain = CondenseNet(SMALL)
    assert plain.losses(plain(torch.zeros(2, 1, 8, 8))) == {}
    module = CondenseNet(Config(1, 3, (2, 2), (4, 4), 2, 2, lasso=0.1))
    loss = module.losses(module(torch.zeros(2, 1, 8, 8)))["group lasso"]
    first = learned(module)[0]
    by_hand = sum(
        float(first.conv.weight[group::2, column].detach().norm())
        for group in range(2)
        for column in range(8)
    )
    assert float(first.lasso().detach()) == pytest.approx(by_hand, rel=1e-5)
    assert float(loss.detach()) == pytest.approx(
        0.1 * sum(float(each.lasso().detach()) for each in learned(module))
    )


def test_what_does_not_divide_or_is_not_over_is_refused() -> None:
    with pytest.raises(BadInput, match="inputs must be multiples of 4"):
        Config(stages=(1,), growth=(3,))
    with pytest.raises(BadInput, match="wants a growth for each stage"):
        Config(stages=(1, 2), growth=(8,))
    with pytest.raises(BadInput, match="1 stages of pruning must be over, got 0"):
        converted(CondenseNet(SMALL))
