"""A module becomes an ONNX file that convert can load, and gives the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input, Preprocess
from edgekit.core.manifest import Tensor as Described
from edgekit.host.load import load
from edgekit.host.ort import open_model
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.confidence import apply as add_confidences
from edgekit.host.split import split

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.outputs import Outputs, outputs_of  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402

IMAGE = Input(
    Described("image", "float32", (1, 1, 8, 8)),
    "NCHW",
    Preprocess("L", "stretch", "bilinear", 1 / 255, (0.3,), (0.35,)),
)


class TwoExits(torch.nn.Module):  # type: ignore[misc]
    """Convolution and batch norm, an exit, the same again, the last exit."""

    def __init__(self, *, confident: bool = False) -> None:
        super().__init__()
        self.confident = confident
        self.first = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        self.second = torch.nn.Sequential(
            torch.nn.Conv2d(4, 4, 3, stride=2, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        self.early, self.late = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, image: Any) -> Any:
        first = self.first(image)
        second = self.second(first)
        logits = (self.early(first.mean((2, 3))), self.late(second.mean((2, 3))))
        if not self.confident:
            return logits
        return Outputs(logits, tuple(torch.sigmoid(each[:, 0] - each[:, 1]) for each in logits))


def lived(module: Any, shape: tuple[int, ...] = (64, 1, 8, 8)) -> Any:
    """The module with weights and statistics that are not the initial ones."""
    torch.manual_seed(4)
    for _ in range(3):
        module.train()(3 * torch.randn(shape) + 1)
    for value in module.parameters():
        value.data += 0.1 * torch.randn(value.shape)
    return module


def written(content: bytes, folder: Path) -> Path:
    path = folder / "module.onnx"
    path.write_bytes(content)
    return path


def test_the_file_answers_as_the_module_does_and_load_knows_its_exits(tmp_path: Path) -> None:
    module = lived(TwoExits())
    content = to_onnx(module, IMAGE, ("a", "b", "c"))
    graph = load(written(content, tmp_path)).graph
    assert [(entry.name, entry.output, entry.confidence) for entry in graph.exits] == [
        ("exit1", "exit1", None),
        ("exit2", "exit2", None),
    ]
    assert graph.labels == ("a", "b", "c")
    assert graph.inputs == (IMAGE,)
    assert graph.opset == 17
    x = np.random.default_rng(3).normal(size=(1, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        wanted = [each.numpy() for each in module.eval()(torch.from_numpy(x))]
    for right, got in zip(wanted, open_model(content).run(["exit1", "exit2"], {"image": x}), strict=True):
        np.testing.assert_allclose(got, right, atol=1e-5)


def test_layers_are_called_as_in_the_module(tmp_path: Path) -> None:
    graph = load(written(to_onnx(lived(TwoExits()), IMAGE), tmp_path)).graph
    named = {node.name: node.op_type for node in graph.model.graph}
    assert named["/early/Gemm"] == "Gemm"
    assert not [name for name in named if name and "module" in name]


def test_batch_norms_are_folded_into_the_convolutions_before_them() -> None:
    proto = onnx.load_model_from_string(to_onnx(lived(TwoExits()), IMAGE))
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}


def test_the_module_keeps_its_mode_and_its_weights() -> None:
    module = lived(TwoExits()).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    to_onnx(module, IMAGE)
    assert module.training
    assert module.first.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_same_module_gives_the_same_bytes() -> None:
    module = lived(TwoExits())
    assert to_onnx(module, IMAGE) == to_onnx(module, IMAGE)


def test_the_only_exit_is_called_final(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    graph = load(written(to_onnx(module, IMAGE), tmp_path)).graph
    assert [entry.name for entry in graph.exits] == ["final"]


def test_a_confidence_the_module_computes_becomes_the_one_that_decides(tmp_path: Path) -> None:
    module = lived(TwoExits(confident=True)).eval()
    graph = load(written(to_onnx(module, IMAGE), tmp_path)).graph
    assert [entry.confidence for entry in graph.exits] == ["exit1/confidence", "exit2/confidence"]
    kept = add_confidences(graph, NoOptions(), Context())
    assert kept.exits == graph.exits
    first = split(kept)[0]
    assert [tensor.name for tensor in first.outputs[:2]] == ["exit1", "exit1/confidence"]
    x = torch.randn(1, 1, 8, 8)
    got = open_model(to_onnx(module, IMAGE)).run(["exit1/confidence"], {"image": x.numpy()})[0]
    with torch.no_grad():
        wanted = module(x).confidences[0]
    assert got.shape == (1,)
    assert got[0] == pytest.approx(float(wanted), abs=1e-5)


class OfTheData(torch.nn.Module):  # type: ignore[misc]
    """A way that depends on the data, which tracing cannot see."""

    def forward(self, image: Any) -> Any:
        flat = image.flatten(1)
        return flat[:, :3] if float(image.detach()[0, 0, 0, 0]) > 0 else -flat[:, 3:6]


def test_an_export_that_answers_otherwise_than_the_module_is_refused() -> None:
    with pytest.raises(BadInput, match=r"must give the module's final to 0.0001, got .* off"):
        to_onnx(OfTheData(), IMAGE)


class OnRealOnly(torch.nn.Module):  # type: ignore[misc]
    """Differs from its trace for large inputs alone."""

    def forward(self, image: Any) -> Any:
        flat = image.flatten(1)
        return flat[:, :3] if float(image.detach().max()) < 50 else flat[:, 3:6]


def test_samples_are_compared_besides_random_inputs() -> None:
    to_onnx(OnRealOnly(), IMAGE)
    real = 100 * np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    with pytest.raises(BadInput, match="must give the module's final"):
        to_onnx(OnRealOnly(), IMAGE, samples=real)


class Unknown(torch.nn.Module):  # type: ignore[misc]
    def forward(self, image: Any) -> Any:
        return torch.linalg.svd(image[:, 0])[1]


def test_what_onnx_has_no_operator_for_is_refused_in_one_line() -> None:
    with pytest.raises(BadInput, match="cannot be exported") as err:
        to_onnx(Unknown(), IMAGE)
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 1, 8, 8), "float32"), ((1, 1, 8, 8), "uint8")])
def test_an_input_that_is_no_single_float_sample_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(BadInput, match="float32 with batch 1"):
        to_onnx(TwoExits(), Input(Described("image", dtype, shape), "NCHW", None))


def test_names_must_be_as_many_as_exits() -> None:
    with pytest.raises(BadInput, match="has 2 exits, got 3 names"):
        to_onnx(TwoExits(), IMAGE, names=("a", "b", "c"))


def test_outputs_are_logits_per_exit_in_any_of_three_forms() -> None:
    logits = torch.zeros(2, 3)
    assert outputs_of(logits).logits == (logits,)
    assert outputs_of([logits, logits]).logits == (logits, logits)
    whole = Outputs((logits,), (torch.zeros(2),))
    assert outputs_of(whole) is whole
    with pytest.raises(TypeError, match="must give logits per exit, got dict"):
        outputs_of({"logits": logits})
    with pytest.raises(ValueError, match="2 exits need as many confidences"):
        Outputs((logits, logits), (torch.zeros(2),))
