"""LFC and CNV as they were trained, on real images: every kernel set gives the reference's bits, layer by layer."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx_ir")

from edgekit.host.load import load
from edgekit.host.lower import native
from edgekit.host.pack_plan import as_plan_source
from edgekit.native import door, plan

Array = NDArray[Any]
MODELS = Path(__file__).parents[2] / "models"
IMAGES = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
SETS = sorted({row.name for row in door.kernels() if row.supported} - {"reference"})
HEADER = 16

needs_images = pytest.mark.skipif(
    not IMAGES.is_file(), reason="the package dataset-fashion-mnist is not installed"
)


def plan_of(name: str) -> bytes:
    graph = as_plan_source(load(MODELS / f"fashion_mnist_{name}_w1a1.onnx").graph)
    (stage,) = native.plans(graph)
    return plan.encode(stage.plan)


def images(count: int) -> Array:
    with gzip.open(IMAGES) as file:
        content = file.read(HEADER + count * 784)
    return np.frombuffer(content, np.uint8, offset=HEADER).reshape(count, 1, 1, 28, 28)


def layers_agree(name: str, count: int) -> None:
    content = plan_of(name)
    tensors = range(len(plan.decode(content).tensors))
    opened = {
        kernels: door.open_plan(content, kernels=kernels, keep=True) for kernels in ("reference", *SETS)
    }
    outputs = {kernels: np.zeros((1, 10), np.float32) for kernels in opened}
    for index, image in enumerate(images(count)):
        for kernels, runner in opened.items():
            runner.run([image], [outputs[kernels]])
        for tensor in tensors:
            want = opened["reference"].codes(tensor)
            for kernels in SETS:
                np.testing.assert_array_equal(
                    opened[kernels].codes(tensor), want, err_msg=f"image {index}, tensor {tensor}, {kernels}"
                )


@needs_images
@pytest.mark.parametrize(("name", "count"), [("lfc", 20), ("cnv", 2)])
def test_every_kernel_set_gives_the_references_bits_on_every_layer(name: str, count: int) -> None:
    layers_agree(name, count)


@needs_images
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["lfc", "cnv"])
def test_every_kernel_set_gives_the_references_bits_over_a_thousand_images(name: str) -> None:
    layers_agree(name, 1000)
