"""tools/train_bnn.py: real short runs on made-up images of Fashion-MNIST's size."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fashion_data import made_up, script

from edgekit.host.load import load

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "train_bnn.py"
COMMITTED = {name: ROOT / "models" / f"fashion_mnist_{name}_w1a1.onnx" for name in ("lfc", "cnv")}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the extra train (PyTorch) is not installed"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tool() -> Any:
    return script("train_bnn")


def test_a_run_leaves_a_small_model_and_its_figures(
    tool: Any,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    assert (
        tool.main(["--network", "lfc", "--epochs", "3", "--seed", "3", "--batch", "50", "--data", str(data)])
        == 0
    )
    said = capsys.readouterr()
    assert "epoch 3/3: squared hinge" in said.err
    file = tmp_path / "networks" / "lfc-3.onnx"
    graph = load(file).graph
    assert graph.inputs[0].tensor.dtype == "uint8"
    assert graph.inputs[0].preprocess is not None
    assert len(graph.labels or ()) == 10
    figures = json.loads(file.with_suffix(".json").read_text())
    assert (figures["network"], figures["training"]["epochs"], figures["seed"]) == ("lfc", 3, 3)
    assert figures["images"] == {"train": 550, "held_out": 50, "test": 40}
    assert figures["size_bytes"] == file.stat().st_size < 424_000
    assert figures["binary_weights"] == 2_910_208
    (only,) = figures["exits"]
    assert (only["name"], only["macs"], only["cost_share"]) == ("final", 2_910_208, 1.0)
    assert only["accuracy_test"] > 0.8
    assert f"{only['accuracy_test']:.2%}" in said.out
    assert not list((tmp_path / "networks").glob("*.checkpoint"))


def test_early_exits_and_widths_get_a_file_of_their_own_name(
    tool: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    options = [
        "--network",
        "cnv",
        "--exits",
        "2",
        "--width",
        "0.125",
        "--epochs",
        "1",
        "--limit-train",
        "100",
    ]
    assert tool.main([*options, "--data", str(data)]) == 0
    file = tmp_path / "networks" / "cnv-w0.125-2exits-1.onnx"
    assert [entry.name for entry in load(file).graph.exits] == ["exit1", "exit2", "exit3"]
    shares = [each["cost_share"] for each in json.loads(file.with_suffix(".json").read_text())["exits"]]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_options_of_cnv_are_refused_for_lfc(
    tool: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    assert tool.main(["--network", "lfc", "--exits", "1", "--data", str(data), "--out", str(out)]) == 2
    assert capsys.readouterr().err == "train_bnn: --exits and --width are of cnv, not of lfc\n"
    assert not out.exists()


def test_a_folder_without_the_files_is_one_line(
    tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--network", "lfc", "--data", str(tmp_path), "--out", str(tmp_path / "m.onnx")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("train_bnn: ")
    assert said.count("\n") == 1


def test_resume_goes_on_only_from_a_checkpoint_of_the_same_run(
    tool: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.onnx"
    out.with_suffix(".checkpoint").write_bytes(b"no checkpoint")
    options = [
        "--network",
        "lfc",
        "--epochs",
        "1",
        "--limit-train",
        "50",
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    assert tool.main([*options, "--resume"]) == 2
    assert "must be a training's checkpoint" in capsys.readouterr().err
    assert tool.main(options) == 0
    assert out.exists()


# --- the committed files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion() -> Path:
    """The folder with the real images."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/fetch_data.py")], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(done.stderr.strip())
    return Path(done.stdout.strip())


def told(name: str) -> float:
    """The accuracy on the test images that the README prints for a network."""
    readme = (ROOT / "models" / "README.md").read_text()
    rows = re.findall(r"^ *final +([\d.]+)% ", readme, flags=re.MULTILINE)
    assert len(rows) == len(COMMITTED)
    return float(rows[list(COMMITTED).index(name)]) / 100


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_file_is_the_small_one_its_readme_describes(name: str) -> None:
    content = COMMITTED[name].read_bytes()
    assert hashlib.sha256(content).hexdigest() in (ROOT / "models" / "README.md").read_text()
    assert len(content) < {"lfc": 424_000, "cnv": 250_000}[name]


def accuracy(tool: Any, name: str, folder: Path, count: int) -> float:
    graph = load(COMMITTED[name]).graph
    images = tool.fashion_mnist.read_split(folder, "t10k").part(slice(0, count))
    return tool.judge(graph, ["final"], graph.inputs[0], images)["final"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "count"), [("lfc", 1_000), ("cnv", 200)])
def test_the_committed_file_answers_about_as_well_as_its_readme_says(
    name: str, count: int, tool: Any, fashion: Path
) -> None:
    assert accuracy(tool, name, fashion, count) == pytest.approx(told(name), abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_file_is_as_accurate_as_its_readme_says(name: str, tool: Any, fashion: Path) -> None:
    assert accuracy(tool, name, fashion, 10_000) == pytest.approx(told(name), abs=1e-4)
