"""What several tests of the converter need."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import CLASSES, SIDE, save, three_exits, write_data

from edgekit.host.calibrate import Calibration
from edgekit.host.graph import Graph
from edgekit.host.load import load
from edgekit.host.passes import Context, Step, run_steps, step
from edgekit.host.passes.quantize_static import Int8
from edgekit.runtime.data import Data, load_data

FASHION = Path("/usr/share/datasets/fashion-mnist")
DEMO_MODEL = Path(__file__).parents[2] / "models" / "fashion_mnist_3exit.onnx"


@dataclass(frozen=True)
class Made:
    """A network on its way: as it came in, folded with confidences, in int8; its data and what calibration saw."""

    loaded: Graph
    plain: Graph
    quantized: Graph
    data: Data
    seen: Calibration


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """A model proto through load, passes and calibration."""

    def through(model: onnx.ModelProto, int8: Int8 | None = None, count: int = 24) -> Made:
        loaded = load(save(model, tmp_path / "model.onnx")).graph
        shape = loaded.inputs[0].tensor.shape[1:]
        data = load_data(write_data(tmp_path / "data.npz", shape, count), loaded.inputs)
        plain = run_steps(loaded, (step("confidence"), step("fold")), Context())
        context = Context(data, plain)
        quantized = run_steps(plain, (Step("quantize_static", int8 or Int8()),), context)
        return Made(loaded, plain, quantized, data, context.calibration(plain))

    return through


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(model, labelled calibration data, labelled test data) of a small network with three exits."""
    model = save(three_exits(), tmp_path / "three.onnx")
    calib = write_data(tmp_path / "calib.npz", (3, SIDE, SIDE), 60, 1, CLASSES)
    test = write_data(tmp_path / "test.npz", (3, SIDE, SIDE), 30, 2, CLASSES)
    return model, calib, test


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, slice], Path]:
    """Writes part of Fashion-MNIST as .npz: ("train" or "t10k", which images) -> path."""
    if not FASHION.is_dir():
        pytest.skip(f"Fashion-MNIST is not in {FASHION}: install the package dataset-fashion-mnist")
    folder = tmp_path_factory.mktemp("fashion")

    def part(split: str, which: slice) -> Path:
        path = folder / f"{split}-{which.start}-{which.stop}.npz"
        if not path.exists():
            x = np.frombuffer(
                gzip.decompress((FASHION / f"{split}-images-idx3-ubyte.gz").read_bytes()), np.uint8, -1, 16
            )
            y = np.frombuffer(
                gzip.decompress((FASHION / f"{split}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, -1, 8
            )
            np.savez(path, x=x.reshape(-1, 28, 28)[which], y=y[which].astype(np.int64))
        return path

    return part


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The trained network of the demo."""
    if not DEMO_MODEL.exists():
        pytest.skip("models/fashion_mnist_3exit.onnx is not in this checkout")
    return DEMO_MODEL
