from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import numpy as np
import pytest
from arm_boards import ROOT

IMAGES = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="session")
def lab() -> Path:
    """The folder of boards; skips where this machine lacks what makes it, fails where making it fails."""
    done = subprocess.run([ROOT / "tools/arm_lab.sh"], capture_output=True, text=True, check=False)
    if done.returncode == 2 and "missing" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """calib.npz and val.npz of Fashion-MNIST's training images."""
    if not IMAGES.is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    folder = tmp_path_factory.mktemp("data")
    x = np.frombuffer(gzip.decompress((IMAGES / "train-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    y = np.frombuffer(gzip.decompress((IMAGES / "train-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    x = x.reshape(-1, 28, 28)
    np.savez(folder / "calib.npz", x=x[-700:-500])
    np.savez(folder / "val.npz", x=x[-500:], y=y[-500:])
    return folder
