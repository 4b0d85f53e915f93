"""MSDNet: the closed form against the module, the authors' figures and the exported stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input, Tensor
from edgekit.core.profile import Backend

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.convert import whole_stage  # noqa: E402
from edgekit.host.graph import Graph  # noqa: E402
from edgekit.host.load import load  # noqa: E402
from edgekit.host.pack import draft  # noqa: E402
from edgekit.host.passes import Context, run_steps, step  # noqa: E402
from edgekit.host.split import split  # noqa: E402
from edgekit.host.train.networks import build  # noqa: E402
from edgekit.host.train.networks.msdnet import Layer, MSDNet  # noqa: E402
from edgekit.host.train.networks.msdnet_plan import (  # noqa: E402
    GROWING,
    Config,
    Stem,
    cifar,
    costs,
    imagenet,
    needed_costs,
    parts,
)
from edgekit.host.train.outputs import Outputs  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402
from edgekit.host.work import layers  # noqa: E402

SMALL = Config(side=12, classes=4, channels=4, growth=4, blocks=3, stem=Stem(3, 1), head=8)
CONFIGS = {
    "ours": Config(),
    "CIFAR-10, 10 blocks": cifar(),
    "CIFAR-100, 7 blocks": cifar(100, 7),
    "CIFAR-10, growing spans": cifar(10, 7, GROWING),
    "ImageNet, step 4": imagenet(4),
    "ImageNet, step 7, base 7": imagenet(7, 7),
    "no transitions": replace(cifar(10, 4), reduction=0.0),
    "no bottlenecks": replace(cifar(10, 3), bottlenecks=None),
    "two scales": replace(SMALL, factors=(1, 2), base=3, step=2),
    "one scale": replace(SMALL, factors=(1,), base=2),
    "one layer": replace(SMALL, blocks=1),
    "odd sides": replace(SMALL, side=27, growth=6, bottlenecks=(2, 1, 3), blocks=5),
}


def counted(config: Config) -> list[tuple[int, int, int]]:
    """(parameters, MACs, what the authors' counter says) at each classifier, cumulative: from the module's own pass.

    The rules are the counter's (kalviny/MSDNet-PyTorch, op_counter.py): a figure is taken after each linear layer.
    """
    with torch.device("meta"):  # shapes without numbers
        module = MSDNet(config).eval()
        image = torch.zeros(1, config.channels_in, config.side, config.side)
    sums, found = [0, 0, 0], []

    def count(layer: Any, inputs: tuple[Any, ...], made: Any) -> None:
        macs = more = 0
        if isinstance(layer, torch.nn.Conv2d):
            macs = made.numel() * layer.weight[0].numel()
        elif isinstance(layer, torch.nn.Linear):
            macs, more = layer.weight.numel(), layer.bias.numel()
        elif isinstance(layer, (torch.nn.ReLU, torch.nn.AdaptiveAvgPool2d)):
            more = inputs[0].numel()
        elif isinstance(layer, torch.nn.MaxPool2d):
            more = made.numel() * layer.kernel_size**2
        sums[0] += sum(each.numel() for each in layer.parameters())
        sums[1] += macs
        sums[2] += macs + more
        if isinstance(layer, torch.nn.Linear):
            found.append((sums[0], sums[1], sums[2]))

    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    module(image)
    return found


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_closed_form_is_what_the_module_counts_at_every_classifier(config: Config) -> None:
    expected = [(each.parameters, each.macs, each.counted) for each in costs(config)]
    assert expected == counted(config)
    with torch.device("meta"):
        assert expected[-1][0] == sum(each.numel() for each in MSDNet(config).parameters())


def test_ten_blocks_on_cifar_10_have_the_parameters_the_authors_printed() -> None:
    """kalviny/MSDNet-PyTorch, check_msdnet/log.txt: the count, and what each classifier's first convolution reads."""
    config = cifar()
    assert costs(config)[-1].parameters == 4_839_544
    ends = [sum(config.spans[: block + 1]) for block in range(config.blocks)]
    reads = [config.width(end) * config.factors[-1] for end in ends]
    assert reads == [160, 208, 256, 164, 212, 260, 308, 188, 236, 284]


def test_seven_layers_a_block_on_imagenet_cost_what_the_authors_counter_printed() -> None:
    """kalviny/MSDNet-PyTorch, issue 10: "FLOPs: 615.69M, Params: 8.76M" and so on, for the released step-7 network."""
    made = [(f"{each.counted / 1e6:.2f}", f"{each.parameters / 1e6:.2f}") for each in costs(imagenet(7, 7))]
    assert made == [
        ("615.69", "8.76"),
        ("1436.39", "20.15"),
        ("2283.21", "31.73"),
        ("2967.42", "41.86"),
        ("3253.79", "62.31"),
    ]


def test_growing_spans_and_the_end_of_a_scale_are_where_the_authors_code_puts_them() -> None:
    """kalviny/MSDNet-PyTorch, issue 12: spans 1 to 5; layer 6 reads 46 channels, ends a scale, and 52 become 26."""
    config = cifar(100, 5, GROWING)
    assert (config.spans, config.layers) == ((1, 2, 3, 4, 5), 15)
    assert [config.finest(layer) for layer in (5, 6, 10, 11)] == [0, 1, 1, 2]
    assert (config.width(5), config.width(6)) == (46, 26)
    assert config.ends_scale(6)


def test_even_spans_are_the_base_and_then_the_step() -> None:
    assert cifar().spans == (4, *[2] * 9)
    assert [sum(imagenet(4, 7).spans[:k]) for k in range(1, 6)] == [
        4 * i + 3 for i in range(1, 6)
    ]  # the paper's


def test_a_layer_keeps_what_it_reads_and_adds_its_growth() -> None:
    config = replace(SMALL, growth=6)
    maps = [torch.randn(1, 4 * f, side, side) for f, side in zip((1, 2, 4), (12, 6, 3), strict=True)]
    made = Layer(config, 1)(maps)
    for before, after, factor in zip(maps, made, (1, 2, 4), strict=True):
        assert after.shape[1] == before.shape[1] + 6 * factor
        torch.testing.assert_close(after[:, : before.shape[1]], before)


def test_every_branch_with_two_sources_takes_half_its_growth_from_each() -> None:
    layer = Layer(replace(SMALL, growth=6), 1)
    made = [[each[-3].out_channels for each in kind] for kind in (layer.normal, layer.down)]
    assert made == [[6, 6, 12], [6, 12]]


def test_a_scale_that_no_classifier_reads_any_more_is_needed_by_nobody() -> None:
    config = replace(SMALL, factors=(1, 2, 4), blocks=4)
    unread = {(part.layer, part.scale) for part in parts(config) if part.needed is None}
    assert unread == {(4, 1)}
    assert needed_costs(config)[-1].macs < costs(config)[-1].macs


# --- stages -----------------------------------------------------------------------------------------------------------

BACKEND = Backend("onnxruntime", max_opset=21, max_ir=10)
EXPORTED = {
    "ours": Config(),
    "bottlenecks, growing spans": replace(SMALL, bottlenecks=(1, 2, 2), spacing=GROWING),
    "two scales": replace(SMALL, factors=(1, 2), base=2, step=2),
    "a scale nobody reads": replace(SMALL, blocks=4),
}


def exported(config: Config, folder: Path) -> Graph:
    """Through a file, with weights and norms that have seen something."""
    torch.manual_seed(3)
    module = MSDNet(config)
    with torch.no_grad():
        module(torch.randn(16, config.channels_in, config.side, config.side))
    shape = (1, config.channels_in, config.side, config.side)
    path = folder / "msdnet.onnx"
    path.write_bytes(to_onnx(module, Input(Tensor("image", "float32", shape), "NCHW", None)))
    return run_steps(load(path).graph, (step("confidence"), step("fold")), Context())


@pytest.mark.parametrize("config", EXPORTED.values(), ids=EXPORTED.keys())
def test_each_exported_stage_does_what_its_classifier_needs_and_no_more(
    config: Config, tmp_path: Path
) -> None:
    graph = exported(config, tmp_path)
    macs = np.cumsum([sum(layer.macs for layer in layers(stage.model)) for stage in split(graph)])
    assert macs.tolist() == [each.macs for each in needed_costs(config)]


def test_a_stage_takes_the_maps_of_every_scale_it_reads(tmp_path: Path) -> None:
    stages = split(exported(Config(), tmp_path))
    sides = [sorted({tensor.shape[-1] for tensor in stage.inputs}) for stage in stages[1:]]
    assert sides == [
        [4, 7, 14],
        [4, 7, 14],
        [4, 7, 14],
        [4, 7],
    ]  # the finest scale ends before the last stage


@pytest.mark.parametrize("name", ["ours", "bottlenecks, growing spans"])
def test_stages_give_what_the_whole_network_gives(name: str, tmp_path: Path) -> None:
    config = EXPORTED[name]
    graph = exported(config, tmp_path)
    one = draft(graph, [whole_stage(graph)], BACKEND, "one", 1, "host").open()
    many = draft(graph, split(graph), BACKEND, "many", 1, "host").open()
    random = np.random.default_rng(5)
    for _ in range(4):
        image = random.normal(size=(1, config.channels_in, config.side, config.side)).astype(np.float32)
        whole, staged = one.run_all({"image": image}), many.run_all({"image": image})
        for entry in graph.exits:
            np.testing.assert_allclose(staged[entry.output], whole[entry.output], rtol=1e-4, atol=1e-4)


# --- learning, and what is refused ------------------------------------------------------------------------------------


def gradients(module: MSDNet, outputs: Sequence[Any]) -> list[float]:
    """Of the losses of its own, by classifier."""
    (loss,) = module.losses(Outputs(tuple(outputs))).values()
    loss.backward()
    return [
        float(sum(each.grad.abs().sum() for each in head.parameters() if each.grad is not None))
        for head in module.heads
    ]


def test_earlier_classifiers_follow_the_last_which_learns_nothing_by_it() -> None:
    module = MSDNet(SMALL)
    found = gradients(module, module(torch.randn(6, 1, 12, 12)))
    assert min(found[:-1]) > 0
    assert found[-1] == 0


def test_the_papers_networks_have_no_loss_of_their_own() -> None:
    module = MSDNet(replace(SMALL, follow=0.0))
    assert module.losses(Outputs(module(torch.randn(2, 1, 12, 12)))) == {}


def test_it_is_built_by_name_with_our_configuration() -> None:
    module = build("msdnet")
    assert isinstance(module, MSDNet)
    assert module.config == Config()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"growth": 5, "factors": (1, 1)}, "growth must be even at scales with two branches, got 5"),
        ({"spacing": "odd"}, "spacing must be even or lin_grow, got 'odd'"),
        ({"bottlenecks": (1, 2)}, "bottlenecks must be 3, one per scale"),
        ({"blocks": 0}, "must be at least 1"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        replace(SMALL, **wrong)
