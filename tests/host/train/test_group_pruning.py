"""Group-level pruning: places of the kernel go in all filters, and what is left is smaller and answers the same."""

from __future__ import annotations

import copy
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

from edgekit.host.train.group_pruning import PositionConv2d, compact, group_lasso, keep_positions  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402


def conv(*, stride: int = 1, padding: int = 1, dilation: int = 1, bias: bool = True) -> Any:
    torch.manual_seed(0)
    return torch.nn.Conv2d(6, 8, 3, stride, padding, dilation, bias=bias).eval()


def masked(share: float, **more: Any) -> Any:
    made = conv(**more)
    with torch.no_grad():
        made.weight.mul_(keep_positions(made.weight, share))
    return made


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_exactly_so_many_places_go_and_the_same_in_every_filter(share: float) -> None:
    weight = conv().weight
    mask = keep_positions(weight, share)
    assert torch.equal(mask, mask[:1].expand_as(mask))
    assert int((mask[0] == 0).sum()) == round(share * 54)
    norms = weight.detach().square().sum(0)
    if share:
        assert norms[mask[0] == 0].max() <= norms[mask[0] == 1].min()


def test_equal_norms_go_in_order() -> None:
    mask = keep_positions(torch.ones(2, 1, 2, 2), 0.5)
    assert mask[0].flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_left_answers_as_the_masked_convolution(
    stride: int, padding: int, dilation: int, *, bias: bool
) -> None:
    dense = masked(0.6, stride=stride, padding=padding, dilation=dilation, bias=bias)
    small = PositionConv2d(dense)
    value = torch.randn(3, 6, 9, 8)
    assert torch.allclose(small(value), dense(value), atol=1e-5)
    assert small.depth == 54 - round(0.6 * 54)
    assert small.weight.shape == (8, small.depth)


def test_channels_that_nobody_reads_are_left_out_and_a_whole_kernel_stays_a_convolution() -> None:
    dense = conv()
    with torch.no_grad():
        dense.weight[:, [1, 4]] = 0
    small = PositionConv2d(dense)
    assert small.channels.tolist() == [0, 2, 3, 5]
    assert small.weight.shape == (8, 4, 3, 3)
    value = torch.randn(2, 6, 7, 7)
    assert torch.allclose(small(value), dense(value), atol=1e-6)


def test_a_file_multiplies_fewer_numbers(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        masked(0.5), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 64, 3)
    ).eval()
    counts = []
    for module in (network, compact(copy.deepcopy(network))):
        path = tmp_path / "m.onnx"
        image = Input(Described("image", "float32", (1, 6, 8, 8)), "NCHW", None)
        path.write_bytes(to_onnx(module, image))  # which compares both
        counts.append(
            sum(layer.macs for layer in layers(fold(load(path).graph, NoOptions(), Context()).model))
        )
    assert counts == [8 * 64 * 54 + 8 * 64 * 3, 8 * 64 * 27 + 8 * 64 * 3]


def test_only_convolutions_that_lost_places_are_exchanged() -> None:
    network = torch.nn.Sequential(conv(), torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=8)))
    whole = network[0]
    assert compact(network)[0] is whole


def test_the_group_lasso_is_the_sum_of_norms_and_draws_places_evenly() -> None:
    weight = torch.nn.Parameter(torch.tensor([[[[3.0, 0.0]]], [[[4.0, 0.0]]]]))
    loss = group_lasso([weight])
    assert float(loss.detach()) == pytest.approx(5.0, abs=1e-6)
    loss.backward()
    assert weight.grad[:, 0, 0, 0].tolist() == pytest.approx([0.6, 0.8])
    assert torch.isfinite(weight.grad).all(), "a place of zeros has no direction"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="wants a convolution's weight"):
        keep_positions(torch.zeros(3, 4), 0.5)
    with pytest.raises(BadInput, match="nothing is left"):
        PositionConv2d(masked(1.0))
    with pytest.raises(BadInput, match="plain convolution of one group"):
        PositionConv2d(torch.nn.Conv2d(4, 4, 3, groups=2))
