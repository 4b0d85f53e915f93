"""Made-up images in Fashion-MNIST's files, and the scripts of tools/ that train on them, as modules."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

TOOLS = Path(__file__).parents[1] / "tools"


def script(name: str) -> ModuleType:
    """tools/NAME.py as a module: a process of its own would load PyTorch again for every test."""
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))  # scripts find what lies beside them
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def made_up(folder: Path) -> Path:
    """600 training images and 40 test images of ten classes: one bright block each, at the class's own place."""
    random = np.random.default_rng(0)
    for prefix, count in (("train", 600), ("t10k", 40)):
        y = random.integers(0, 10, count).astype(np.uint8)
        x = random.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(x, y, strict=True):
            row, column = divmod(int(label), 5)
            image[5 + 10 * row : 13 + 10 * row, 3 + 5 * column : 7 + 5 * column] = 250
        _write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", x)
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", y)
    return folder


def _write_idx(path: Path, values: Any) -> None:
    head = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes(), 1))
