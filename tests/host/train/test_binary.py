"""Layers with binary weights: what they multiply, what an update leaves of them, the orders they stand in."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.binary import bnn_conv, bnn_dense, xnor_conv  # noqa: E402
from edgekit.host.train.fit import Moment  # noqa: E402
from edgekit.host.train.quantized import (  # noqa: E402
    QuantizedConv2d,
    QuantizedLinear,
    Settle,
    parameter_groups,
    quantized_layers,
)
from edgekit.host.train.quantizers import Constant, PerFilter, Sign  # noqa: E402

MOMENT = Moment(0, 1, 10, {}, {})


def kinds(module: Any) -> list[type]:
    return [type(layer) for layer in module]


def test_a_convolution_multiplies_by_the_signs_of_its_weights() -> None:
    torch.manual_seed(0)
    layer = QuantizedConv2d(3, 4, 3, 2, 1)
    value = torch.randn(2, 3, 7, 7)
    signs = torch.where(layer.weight >= 0, 1.0, -1.0)
    assert torch.equal(layer(value), torch.nn.functional.conv2d(value, signs, None, 2, 1))
    assert layer.bias is None


def test_a_dense_layer_multiplies_by_what_its_quantizer_makes() -> None:
    torch.manual_seed(0)
    layer = QuantizedLinear(6, 4, PerFilter())
    value = torch.randn(5, 6)
    alpha = layer.weight.abs().mean(1, keepdim=True)
    assert torch.allclose(layer(value), value @ (torch.sign(layer.weight) * alpha).T, atol=1e-6)


def test_sums_of_bits_are_exact_integers_of_the_parity_of_their_terms() -> None:
    torch.manual_seed(0)
    bits = Sign()(torch.randn(2, 64, 5, 5))
    sums = QuantizedConv2d(64, 8, 3)(bits)
    assert torch.equal(sums, sums.round())
    assert ((sums.long() - 576) % 2 == 0).all()
    assert int(sums.abs().max()) <= 576


def test_after_an_update_every_layer_is_settled_as_its_quantizer_wants() -> None:
    module = torch.nn.Sequential(
        QuantizedLinear(4, 4),
        QuantizedLinear(4, 4, Constant()),
        torch.nn.Linear(4, 4),
        QuantizedConv2d(2, 2, 1),
    )
    hook = Settle(module)
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(5)
    hook.after_step(MOMENT)
    assert [float(layer.weight.detach().max()) for layer in module] == [1, 5, 5, 1]


def test_each_binary_weight_has_a_rate_of_its_own_and_every_parameter_is_in_one_group() -> None:
    module = torch.nn.Sequential(bnn_dense(784, 1024), QuantizedLinear(1024, 10, Constant()))
    groups = parameter_groups(module, 0.01)
    assert [group["lr"] for group in groups] == [pytest.approx(0.01 * ((784 + 1024) / 1.5) ** 0.5), 0.01]
    grouped = [id(value) for group in groups for value in group["params"]]
    assert sorted(grouped) == sorted(map(id, module.parameters()))


def test_bnns_order_is_convolution_pool_batch_norm_sign() -> None:
    assert kinds(bnn_conv(2, 3, pool=2)) == [
        QuantizedConv2d,
        torch.nn.MaxPool2d,
        torch.nn.BatchNorm2d,
        Sign,
    ]
    assert kinds(bnn_dense(4, 3)) == [QuantizedLinear, torch.nn.BatchNorm1d, Sign]
    assert kinds(bnn_dense(4, 3, last=True, dropout=0.1)) == [
        torch.nn.Dropout,
        QuantizedLinear,
        torch.nn.BatchNorm1d,
    ]


def test_xnors_order_is_batch_norm_sign_convolution_pool_with_scales_per_filter() -> None:
    block = xnor_conv(2, 3, padding=1, pool=2)
    assert kinds(block) == [torch.nn.BatchNorm2d, Sign, QuantizedConv2d, torch.nn.MaxPool2d]
    assert isinstance(block[2].quantizer, PerFilter)
    assert block(torch.randn(2, 2, 8, 8)).shape == (2, 3, 4, 4)


def test_a_pool_before_a_batch_norm_of_negative_gamma_takes_the_smallest_bit_of_a_window() -> None:
    torch.manual_seed(0)
    block = bnn_conv(4, 6, pool=2).eval()
    conv, pool, norm, sign = block
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1, 0.5, -0.5, 2, -2]))
        norm.bias.copy_(torch.randn(6))
        bits = sign(
            norm(conv(value := Sign()(torch.randn(3, 4, 8, 8))))
        )  # as hardware does: threshold, then pool
        largest, smallest = pool(bits), -pool(-bits)
        made = block(value)
    for channel, gamma in enumerate(norm.weight.tolist()):
        assert torch.equal(made[:, channel], (largest if gamma > 0 else smallest)[:, channel])
    assert not torch.equal(largest, smallest)


def test_quantized_layers_are_found_wherever_they_are() -> None:
    module = torch.nn.ModuleDict({"a": xnor_conv(1, 2), "b": torch.nn.Sequential(bnn_dense(2, 2))})
    assert [type(layer) for layer in quantized_layers(module)] == [QuantizedConv2d, QuantizedLinear]
