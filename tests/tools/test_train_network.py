"""tools/train_network.py: real short runs on made-up images of Fashion-MNIST's size."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from fashion_data import made_up, script

from edgekit.host.load import load

SCRIPT = Path(__file__).parents[2] / "tools" / "train_network.py"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the extra train (PyTorch) is not installed"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tool() -> Any:
    return script("train_network")


def test_a_run_leaves_a_model_and_its_figures(
    tool: Any,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    options = ["--network", "mobilenet", "--epochs", "2", "--seed", "3", "--limit-train", "300"]
    assert tool.main([*options, "--data", str(data)]) == 0
    said = capsys.readouterr()
    assert "epoch 2/2: cross entropy" in said.err
    file = tmp_path / "networks" / "mobilenet-3.onnx"
    graph = load(file).graph
    assert graph.labels is not None
    assert len(graph.labels) == 10
    assert graph.inputs[0].preprocess is not None
    figures = json.loads(file.with_suffix(".json").read_text())
    assert (figures["network"], figures["epochs"], figures["seed"]) == ("mobilenet", 2, 3)
    assert figures["images"] == {"train": 300, "held_out": 50, "test": 40}
    assert figures["size_bytes"] == file.stat().st_size
    assert figures["training"]["weight_decay"] == 1e-4
    (only,) = figures["exits"]
    assert only["name"] == "final"
    assert only["cost_share"] == 1.0
    assert only["macs"] > 1e6
    assert (only["accuracy_test"] * 40) % 1 == 0  # a share of 40 images
    assert f"{only['macs']:,}" in said.out
    assert not list((tmp_path / "networks").glob("*.checkpoint"))


def test_a_folder_without_the_files_is_one_line(
    tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    assert tool.main(["--network", "resnet20", "--data", str(tmp_path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("train_network: ")
    assert said.count("\n") == 1
    assert not out.exists()


def test_resume_goes_on_only_from_a_checkpoint_of_the_same_run(
    tool: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    checkpoint = out.with_suffix(".checkpoint")
    checkpoint.write_bytes(b"something else")
    options = ["--network", "mobilenet", "--epochs", "1", "--limit-train", "130", "--data", str(data)]
    assert tool.main([*options, "--out", str(out), "--resume"]) == 2
    assert "must be a training's checkpoint" in capsys.readouterr().err
    assert checkpoint.exists()
    assert tool.main([*options, "--out", str(out)]) == 0  # without --resume it starts anew
    assert json.loads(out.with_suffix(".json").read_text())["seconds"] > 0
