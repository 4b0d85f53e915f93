"""Layers with quantized weights: trained by the one loop, exported as codes, and read back as what was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.core.manifest import Tensor as Described
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.stored import stored_weights, weight_bytes

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.fit import Gradient, fit  # noqa: E402
from edgekit.host.train.quantized import (  # noqa: E402
    QuantizedConv2d,
    QuantizedLinear,
    Settle,
    packed_weight_bytes,
    parameter_groups,
    quantized_layers,
)
from edgekit.host.train.quantizers import Constant, Deterministic, PerFilter  # noqa: E402
from edgekit.host.train.quantizers.dorefa import ClippedActivation, SignTimesMean, TanhWeights  # noqa: E402
from edgekit.host.train.quantizers.points import Points  # noqa: E402
from edgekit.host.train.quantizers.ttq import Ttq  # noqa: E402
from edgekit.host.train.quantizers.twn import Twn  # noqa: E402
from edgekit.host.train.quantizers.wrpn import ClippedWeights  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402
from edgekit.host.train.to_qonnx import to_qonnx  # noqa: E402

SIDE, CLASSES = 8, 3
IMAGE = Input(Described("image", "float32", (1, 1, SIDE, SIDE)), "NCHW", None)

# the format that a file holds the weights in, and the bits of one
HELD = [
    (Deterministic(), "binary", 1, 1),
    (Constant(4.0), "binary", 1, 1),
    (PerFilter(), "binary", 1, 16),
    (SignTimesMean(), "binary", 1, 1),
    (Twn(), "ternary", 2, 1),
    (TanhWeights(2), "int2", 2, 1),
    (TanhWeights(3), "int4", 4, 1),
    (ClippedWeights(4), "int4", 4, 1),
    (ClippedWeights(8), "int8", 8, 1),
    (Ttq(), "table2", 2, 1),
    (Ttq(positive=0.0, negative=0.0), "table2", 2, 1),
    (Points(2), "table2", 2, 1),
    (Points(3), "table4", 4, 1),
    (Points(4, passed=False), "table4", 4, 1),
]
TABLES = {"table2": range(3, 5), "table4": range(5, 17)}  # levels: two points may fall together


class Stripes:
    """Images of noise with a bright row, whose place is the class."""

    count = 240

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.y = torch.from_numpy(random.integers(0, CLASSES, self.count))
        x = random.normal(0, 0.5, (self.count, 1, SIDE, SIDE)).astype(np.float32)
        x[np.arange(self.count), 0, 1 + 2 * self.y.numpy()] += 1
        self.x = torch.from_numpy(x)

    def take(self, indices: Any, random: Any) -> Any:
        return {"x": self.x[indices], "y": self.y[indices]}


def network(quantizer: Any, bits: int | None = None) -> Any:
    torch.manual_seed(0)
    quantizer = copy.deepcopy(quantizer)  # one may learn something of its own
    activation = torch.nn.ReLU() if bits is None else ClippedActivation(bits)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        activation,
        QuantizedConv2d(16, 16, 3, 2, 1, quantizer),
        torch.nn.BatchNorm2d(16),
        activation,
        torch.nn.Flatten(),
        torch.nn.Linear(256, CLASSES),
    )


def trained(module: Any, epochs: int = 6) -> float:
    """Train it, and give its accuracy."""
    data = Stripes()
    optimizer = torch.optim.Adam(parameter_groups(module, 5e-3), 5e-3)

    def loss(models: Any, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(models["student"](batch["x"]), batch["y"])

    module.train()
    fit(
        data,
        {"student": module},
        {"cross entropy": loss},
        Gradient(optimizer),
        hooks=[Settle(module)],
        epochs=epochs,
        batch=24,
        seed=1,
    )
    module.eval()
    with torch.no_grad():
        return float((module(data.x).argmax(1) == data.y).float().mean())


def read(content: bytes, folder: Path) -> Any:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return fold(load(path).graph, NoOptions(), Context())


@pytest.mark.parametrize(("quantizer", "held", "bits", "scales"), HELD, ids=repr)
def test_a_file_holds_codes_of_as_few_bits_as_the_method_has_and_answers_as_trained(
    quantizer: Any, held: str, bits: int, scales: int, tmp_path: Path
) -> None:
    module = network(quantizer)
    assert trained(module) > 0.9
    content = to_onnx(module, IMAGE)  # which compares both
    graph = read(content, tmp_path)
    convs = [node for node in graph.model.graph if node.op_type == "Conv"]
    assert [stored_weights(node) for node in convs] == [None, held]
    count = 16 * 16 * 9
    more = weight_bytes(convs[1]) - -(-count * bits // 8) - 4 * scales
    assert more in {table + bias for table in TABLES.get(held, (0,)) for bias in (0, 64)}, "64: a bias"
    floats = 4 * (9 * 16 + 256 * CLASSES)
    assert packed_weight_bytes(module) == weight_bytes(convs[1]) - (64 if more >= 64 else 0) + floats
    session = open_model(content)
    for image in Stripes().x[:20]:
        (answer,) = session.run(["final"], {"image": image[None].numpy()})
        with torch.no_grad():
            wanted = module(image[None])[0]
        assert answer.reshape(-1).argmax() == int(wanted.argmax())


def test_activations_of_few_bits_are_exported_with_their_levels(tmp_path: Path) -> None:
    module = network(TanhWeights(2), bits=2)
    assert trained(module, epochs=8) > 0.8
    session = open_model(to_onnx(module, IMAGE))
    (answer,) = session.run(["final"], {"image": Stripes().x[:1].numpy()})
    with torch.no_grad():
        assert np.allclose(answer.reshape(-1), module(Stripes().x[:1])[0].numpy(), atol=1e-4)


def test_without_training_the_stripes_are_not_told_apart() -> None:
    assert trained(network(Twn()), epochs=0) < 0.8


def test_groups_are_kept() -> None:
    torch.manual_seed(0)
    layer = QuantizedConv2d(8, 8, 3, 1, 1, Twn(), groups=8)
    value = torch.randn(2, 8, 5, 5)
    wanted = torch.nn.functional.conv2d(value, Twn()(layer.weight), None, 1, 1, 1, 8)
    assert layer.weight.shape == (8, 1, 3, 3)
    assert torch.equal(layer(value), wanted)


def test_codes_that_no_file_can_hold_become_floats_and_are_counted_as_floats(tmp_path: Path) -> None:
    module = network(TanhWeights(8))  # the odd numbers from -255 to 255
    graph = read(to_onnx(module, IMAGE), tmp_path)
    assert [stored_weights(node) for node in graph.model.graph if node.op_type == "Conv"] == [None, None]
    assert packed_weight_bytes(module) == 4 * (9 * 16 + 16 * 16 * 9 + 256 * CLASSES)


def test_qonnx_takes_two_levels_alone() -> None:
    image = Input(Described("image", "uint8", (1, 1, SIDE, SIDE)), "NCHW", None)
    module = torch.nn.Sequential(torch.nn.Flatten(), QuantizedLinear(SIDE * SIDE, 3, Twn()))
    with pytest.raises(BadInput, match="wants weights of two levels, got those of Twn: use to_onnx"):
        to_qonnx(module, image)


def test_the_real_weights_learn_and_the_quantized_ones_are_what_is_multiplied() -> None:
    module = network(Twn())
    (layer,) = quantized_layers(module)
    before = layer.weight.detach().clone()
    trained(module, epochs=1)
    assert not torch.equal(before, layer.weight)
    assert len(torch.unique(layer.weight)) > 100
    value = torch.randn(1, 16, 8, 8)
    wanted = torch.nn.functional.conv2d(
        value, Twn().codes(layer.weight) * Twn().scale(layer.weight), None, 2, 1
    )
    assert torch.equal(layer(value), wanted)
