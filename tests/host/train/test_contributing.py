"""CONTRIBUTING.md's example of a quantizer: one file and one recipe, trained as it stands there."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.cli.main import run
from edgekit.host.load import load
from edgekit.host.stored import stored_weights

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train import quantizers, recipe  # noqa: E402

PAGE = Path(__file__).resolve().parents[3] / "CONTRIBUTING.md"
NAME = f"{quantizers.__name__}.shifts"


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both files, where edgekit looks for them."""
    for name, language in (("shifts.py", "python"), ("shifts.toml", "toml")):
        (tmp_path / name).write_text(block(language), encoding="utf-8")
    monkeypatch.setattr(quantizers, "__path__", [*quantizers.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop(NAME, None)


def test_the_example_is_found_trained_and_stored_in_four_bits(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 300)
    x = random.integers(0, 140, (300, 12, 12)).astype(np.uint8)
    x[np.arange(300), 2 + 4 * y] += 100
    np.savez(example / "data.npz", x=x, y=y)
    monkeypatch.chdir(example)
    monkeypatch.setattr(recipe, "FOLDER", example)
    assert run(["train", "shifts", "--data", "data.npz", "--epochs", "5", "-o", "m.onnx"]) == 0
    said = capsys.readouterr().out
    assert "Weights that shift" in said
    assert float(re.findall(r"accuracy (\S+) %", said)[0]) > 90
    convs = [node for node in load(example / "m.onnx").graph.model.graph if node.op_type == "Conv"]
    assert [stored_weights(node) for node in convs] == [None, "int4", "int4", "int4"]


def test_the_example_has_its_levels_and_refuses_other_options(example: Path) -> None:
    module = importlib.import_module(NAME)
    weight = torch.tensor([[0.0, 0.1, -0.4, 0.9, -1.6]])
    assert (module.Shifts()(weight) / 0.4).tolist() == [[1, 1, -1, 2, -4]]
    path = example / "wrong.toml"
    path.write_text(block("toml").replace("largest = 2", "smallest = 2"), encoding="utf-8")
    assert run(["train", str(path), "--data", "none.npz", "-o", "m.onnx"]) == 2
