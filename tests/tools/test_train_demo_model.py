"""tools/train_demo_model.py and the model it made: a short real run, and the committed file against its README."""

import gzip
import hashlib
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "train_demo_model.py"
COMMITTED = ROOT / "models" / "fashion_mnist_3exit.onnx"
EXITS = ["exit1", "exit2", "exit3"]


@pytest.fixture(scope="module")
def data() -> Path:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/fetch_data.py")], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(done.stderr.strip())
    return Path(done.stdout.strip())


def run_script(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """Model file, figures and standard output of a short run."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("training needs torch, which is not installed: tools/setup --train")
    folder = tmp_path_factory.mktemp("trained")
    out, figures = folder / "new" / "model.onnx", folder / "figures.json"
    short = ("--epochs", "1", "--limit-train", "2000", "--seed", "3")
    done = run_script(out, *short, "--data", str(data), "--json", str(figures))
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stderr
    return out, json.loads(figures.read_text()), done.stdout


def test_images(data: Path) -> tuple[np.ndarray, np.ndarray]:
    x = np.frombuffer(gzip.decompress((data / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    y = np.frombuffer(gzip.decompress((data / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return x.reshape(-1, 1, 28, 28), y


test_images.__test__ = False  # the data's name, not a test's


def accuracies(model: onnx.ModelProto, data: Path) -> dict[str, float]:
    """Top-1 by exit on the 10,000 test images, prepared as the model's metadata says, 500 at a time."""
    x, y = test_images(data)
    how = metadata(model)["edgekit.input"]["preprocess"]
    prepared = ((x * how["scale"] - how["mean"][0]) / how["std"][0]).astype(np.float32)
    batched = onnx.ModelProto()
    batched.CopyFrom(model)
    for value in (*batched.graph.input, *batched.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    session = ort.InferenceSession(batched.SerializeToString(), providers=["CPUExecutionProvider"])
    parts = [session.run(EXITS, {"image": part}) for part in np.split(prepared, len(x) // 500)]
    return {
        name: float((np.concatenate(column).argmax(1) == y).mean())
        for name, column in zip(EXITS, zip(*parts, strict=True), strict=True)
    }


def metadata(model: onnx.ModelProto) -> dict:
    return {entry.key: json.loads(entry.value) for entry in model.metadata_props}


def macs_needed(model: onnx.ModelProto) -> dict[str, int]:
    """Cumulative MACs by exit, counted from the graph's own shapes and not from the script's table."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    sizes = {
        value.name: math.prod(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    weights = {each.name: each.dims for each in model.graph.initializer}
    by_output = {node.output[0]: node for node in model.graph.node}
    seen: set[str] = set()
    total, at_exit = 0, {}
    for name in EXITS:
        waiting = [name]
        while waiting:
            value = waiting.pop()
            if value in seen or value not in by_output:
                continue
            seen.add(value)
            node = by_output[value]
            waiting += node.input
            if node.op_type in {"Conv", "Gemm"}:
                total += sizes[value] * math.prod(weights[node.input[1]][1:])
        at_exit[name] = total
    return at_exit


def assert_keeps_its_contract(path: Path) -> None:
    """What convert and every runtime on a board rely on."""
    model = onnx.load(path)
    assert path.stat().st_size <= 1_000_000
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    assert model.ir_version <= 10
    assert {node.op_type for node in model.graph.node} <= {
        *("Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm")
    }
    assert all(re.fullmatch(r"(stage|exit)\d/[a-z]+\d?(/[a-z]+)?", node.name) for node in model.graph.node)

    [image] = model.graph.input
    assert image.name == "image"
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 1, 28, 28]
    assert [each.name for each in model.graph.output] == EXITS
    assert all([d.dim_value for d in o.type.tensor_type.shape.dim] == [1, 10] for o in model.graph.output)

    known = metadata(model)
    assert known["edgekit.exits"] == [{"name": name, "output": name} for name in EXITS]
    assert len(known["edgekit.labels"]) == 10
    assert known["edgekit.labels"][9] == "Ankle boot"
    preprocess = known["edgekit.input"].pop("preprocess")
    assert known["edgekit.input"] == {
        "name": "image",
        "shape": [1, 1, 28, 28],
        "dtype": "float32",
        "layout": "NCHW",
    }
    assert preprocess.pop("mean") == [pytest.approx(0.286, abs=0.001)]
    assert preprocess.pop("std") == [pytest.approx(0.353, abs=0.001)]
    assert preprocess == {
        "channels": "L",
        "resize": "stretch",
        "resampler": "bilinear",
        "scale": 0.00392156862745098,
    }

    macs = macs_needed(model)
    assert macs["exit1"] >= 0.20 * macs["exit3"]
    assert macs["exit2"] >= 0.50 * macs["exit3"]


def test_a_short_run_exports_a_model_that_keeps_its_contract(trained):
    assert_keeps_its_contract(trained[0])


def test_a_short_run_already_tells_most_clothes_apart(trained):
    assert trained[1]["exits"][-1]["accuracy_test"] > 0.6


def test_the_figures_are_those_of_the_file(trained, data: Path):
    path, figures, printed = trained
    model = onnx.load(path)
    assert figures["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {each["name"]: each["macs"] for each in figures["exits"]} == macs_needed(model)
    assert figures["parameters"] == sum(numpy_helper.to_array(each).size for each in model.graph.initializer)
    measured = accuracies(model, data)
    for each in figures["exits"]:
        assert each["accuracy_test"] == pytest.approx(measured[each["name"]], abs=1e-4)
        assert f"{each['accuracy_test']:.2%}" in printed
        assert f"{each['accuracy_held_out']:.2%}" in printed


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(trained, data: Path, tmp_path: Path):
    again = tmp_path / "again.onnx"
    done = run_script(again, "--epochs", "1", "--limit-train", "2000", "--seed", "3", "--data", str(data))
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == trained[0].read_bytes()


def test_a_folder_without_the_data_is_named_in_one_line(trained, tmp_path: Path):
    done = run_script(tmp_path / "model.onnx", "--data", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr


def test_the_committed_model_keeps_its_contract():
    assert_keeps_its_contract(COMMITTED)


def test_the_committed_model_is_as_accurate_as_its_readme_says(data: Path):
    readme = (ROOT / "models" / "README.md").read_text()
    rows = dict(re.findall(r"^ *(exit\d) +([\d.]+)% ", readme, flags=re.MULTILINE))
    assert list(rows) == EXITS
    measured = accuracies(onnx.load(COMMITTED), data)
    for name, percent in rows.items():
        assert 100 * measured[name] == pytest.approx(float(percent), abs=0.01)
    assert measured["exit3"] >= 0.93
    assert measured["exit1"] >= 0.905


def test_the_committed_model_is_the_file_its_readme_describes():
    readme = (ROOT / "models" / "README.md").read_text()
    assert hashlib.sha256(COMMITTED.read_bytes()).hexdigest() in readme
