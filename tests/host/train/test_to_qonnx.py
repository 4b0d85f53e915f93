"""A binary network becomes a QONNX file: same answers once it is loaded, one bit a weight, batch norms as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input, Preprocess
from edgekit.core.manifest import Tensor as Described
from edgekit.host.graph import model_bytes
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.stored import GRIDS, unpack
from edgekit.runtime.preprocess import preprocess

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.binary import bnn_conv, bnn_dense, xnor_conv  # noqa: E402
from edgekit.host.train.quantized import QuantizedConv2d, QuantizedLinear, quantized_layers  # noqa: E402
from edgekit.host.train.quantizers import Constant, Deterministic, PerFilter  # noqa: E402
from edgekit.host.train.quantizers.base import DOMAIN, OPERATOR  # noqa: E402
from edgekit.host.train.to_qonnx import to_qonnx  # noqa: E402

PIXELS = Input(
    Described("image", "uint8", (1, 1, 8, 8)),
    "NCHW",
    Preprocess("L", "none", "bilinear", 1.0, (0.0,), (1.0,)),
)


class Bits(torch.nn.Module):  # type: ignore[misc]
    """Two exits in BNN's order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = bnn_conv(1, 9, padding=1), bnn_conv(9, 11, pool=2)
        self.early, self.late = bnn_dense(9 * 64, 3, last=True), bnn_dense(11 * 9, 3, last=True)

    def forward(self, pixels: Any) -> Any:
        first = self.first(pixels)
        return self.early(first.flatten(1)), self.late(self.second(first).flatten(1))


class Xnor(torch.nn.Module):  # type: ignore[misc]
    """XNOR's order, real first and last layers, a scale per filter and one per layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 6, 3, padding=1),
            xnor_conv(6, 8, padding=1, pool=2, quantizer=PerFilter()),
            xnor_conv(8, 8, padding=1, pool=2, quantizer=Constant()),
            torch.nn.Flatten(),
            torch.nn.Linear(32, 3),
        )

    def forward(self, pixels: Any) -> Any:
        return self.layers(pixels / 128 - 1)


def lived(module: Any) -> Any:
    """The module with statistics, gammas of both signs and biases that are not the initial ones."""
    torch.manual_seed(4)
    for value in module.parameters():
        value.data += 0.3 * torch.randn(value.shape)
    for layer in module.modules():
        if isinstance(layer, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            layer.weight.data *= torch.where(torch.rand(layer.weight.shape) < 0.3, -1.0, 1.0)
    for _ in range(30):
        module.train()(torch.randint(0, 256, (64, 1, 8, 8)).float())
    return module


def images(count: int = 50) -> Any:
    return np.random.default_rng(1).integers(0, 256, (count, 8, 8)).astype(np.uint8)


def written(module: Any, folder: Path, **options: Any) -> Path:
    path = folder / "module.onnx"
    path.write_bytes(to_qonnx(module, PIXELS, ("a", "b", "c"), **options))
    return path


@pytest.mark.parametrize("kind", [Bits, Xnor])
def test_a_loaded_file_answers_as_the_module_does_on_images_as_boards_prepare_them(
    kind: Any, tmp_path: Path
) -> None:
    module = lived(kind())
    graph = load(written(module, tmp_path, samples=images())).graph
    assert graph.labels == ("a", "b", "c")
    assert graph.inputs == (PIXELS,)
    names = [entry.output for entry in graph.exits]
    session = open_model(model_bytes(graph.model), optimize=False)
    module.eval()
    answers = set()
    for image in images():
        with torch.no_grad():
            made = module(torch.from_numpy(image).float()[None, None])
        wanted = made if isinstance(made, tuple) else (made,)
        got = session.run(names, {"image": preprocess(image, graph.inputs[0])})
        for one, other in zip(wanted, got, strict=True):
            np.testing.assert_allclose(other, one.numpy(), atol=1e-4)
            answers.add(other.tobytes())
    assert len(answers) > 10


def test_every_weight_and_activation_has_its_bipolar_quant(tmp_path: Path) -> None:
    proto = onnx.load(written(lived(Bits()), tmp_path))
    found = [node for node in proto.graph.node if node.domain == DOMAIN]
    assert {node.op_type for node in found} == {OPERATOR}
    assert len(found) == 4 + 2  # weights, activations
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 17, DOMAIN: 1}


def test_a_file_holds_each_binary_weights_sign_in_one_bit(tmp_path: Path) -> None:
    module = lived(Bits())
    held = {
        entry.name: numpy_helper.to_array(entry)
        for entry in onnx.load(written(module, tmp_path)).graph.initializer
    }
    packed = {name: array for name, array in held.items() if name.endswith("/packed")}
    layers = list(quantized_layers(module))
    assert len(packed) == len(layers)
    for layer, array in zip(
        layers, sorted(packed.values(), key=lambda each: _place(each, layers)), strict=True
    ):
        signs = np.where(layer.weight.detach().numpy() >= 0, 1, -1)
        assert np.array_equal(unpack(array.reshape(-1), GRIDS["binary"], signs.size), signs.reshape(-1))
    assert not [name for name, array in held.items() if array.dtype == np.float32 and array.size > 64]


def _place(packed: Any, layers: list[Any]) -> int:
    sizes = [-(-layer.weight.numel() // 8) for layer in layers]
    return sizes.index(packed.size)


@pytest.mark.parametrize("quantizer", [Deterministic(), PerFilter(), Constant()])
def test_a_loaded_weight_is_what_the_quantizer_multiplies_by(quantizer: Any, tmp_path: Path) -> None:
    module = lived(
        torch.nn.Sequential(
            QuantizedConv2d(1, 9, 3, quantizer=quantizer), torch.nn.Flatten(), QuantizedLinear(324, 3)
        )
    )
    graph = load(written(module, tmp_path)).graph
    conv = next(node for node in graph.model.graph if node.op_type == "Conv")
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    wanted = quantizer(module[0].weight).detach().numpy()
    np.testing.assert_array_equal(weight.const_value.numpy(), wanted)


def test_a_weight_of_zero_is_a_one_in_the_file_too(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), QuantizedLinear(64, 3))
    with torch.no_grad():
        module[1].weight.zero_()
    held = {
        entry.name: numpy_helper.to_array(entry)
        for entry in onnx.load(written(module, tmp_path)).graph.initializer
    }
    (packed,) = [array for name, array in held.items() if name.endswith("/packed")]
    assert set(packed.reshape(-1).tolist()) == {255}


def test_batch_norms_stand_as_they_are_with_their_own_numbers(tmp_path: Path) -> None:
    module = lived(Bits())
    proto = onnx.load(written(module, tmp_path))
    held = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    assert len(norms) == 4
    gammas = [held[node.input[1]] for node in norms]
    assert any(np.array_equal(gamma, module.second[2].weight.detach().numpy()) for gamma in gammas)
    assert any((gamma < 0).any() for gamma in gammas)


def test_the_module_keeps_its_mode_and_its_weights(tmp_path: Path) -> None:
    module = lived(Bits()).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    written(module, tmp_path)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(("shape", "dtype"), [((2, 1, 8, 8), "uint8"), ((1, 1, 8, 8), "float32")])
def test_an_input_that_is_no_single_image_of_bytes_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(BadInput, match="uint8 with batch 1"):
        to_qonnx(Bits(), Input(Described("image", dtype, shape), "NCHW", None))


class OfTheData(torch.nn.Module):  # type: ignore[misc]
    """A way that depends on the data, which tracing cannot see."""

    def forward(self, image: Any) -> Any:
        flat = image.flatten(1)
        return flat[:, :3] if float(image.detach()[0, 0, 0, 0]) > 128 else -flat[:, 3:6]


def test_an_export_that_answers_otherwise_than_the_module_is_refused() -> None:
    with pytest.raises(BadInput, match="must give the module's final"):
        to_qonnx(OfTheData(), PIXELS)
