"""LFC and CNV as they were trained, as plans, and the real images that they were not trained on."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.native.plan import Plan

MODELS = Path(__file__).parent.parent / "models"
IMAGES = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
_HEADER = 16


def plan_of(name: str) -> Plan:
    """ "lfc" or "cnv"; skips the test where edgekit's host part is not installed."""
    pytest.importorskip("onnx_ir")
    # Here and not above: most of the tests of native code need no host part.
    from edgekit.host.load import load
    from edgekit.host.lower import native
    from edgekit.host.pack_plan import as_plan_source

    graph = as_plan_source(load(MODELS / f"fashion_mnist_{name}_w1a1.onnx").graph)
    (stage,) = native.plans(graph)
    return stage.plan


def images(count: int) -> NDArray[Any]:
    """uint8 (count, 1, 1, 28, 28); skips the test where the package with the images is not installed."""
    if not IMAGES.is_file():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    with gzip.open(IMAGES) as file:
        content = file.read(_HEADER + count * 784)
    return np.frombuffer(content, np.uint8, offset=_HEADER).reshape(count, 1, 1, 28, 28)
