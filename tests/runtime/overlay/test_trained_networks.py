"""LFC and CNV as trained on Fashion-MNIST, whole overlays in Verilator on real images: the bits of the CPU kernels.

The quick ones take a small folding; the published foldings, the cycles they were published for and every layer's sums
are slow, for Verilator's compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import overlay_foldings
import pytest
from numpy.typing import NDArray
from overlay_foldings import with_design

from edgekit.native import door
from edgekit.native import plan as pl
from edgekit.native.plan import Linear, Operator, Plan, PlanTensor
from edgekit.native.plan_door import outside_shape
from edgekit.runtime.data import read_idx
from edgekit.runtime.overlay.cycles import interval_cycles
from edgekit.runtime.overlay.design import Design, Folding
from edgekit.runtime.overlay.driver import Overlay, Run
from edgekit.runtime.overlay.simulation import missing, simulate

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
Array = NDArray[Any]
IMAGES = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
MODELS = Path(__file__).parents[3] / "models"
PUBLISHED = {"cnv": overlay_foldings.published_cnv(1), "lfc": overlay_foldings.published_lfc()}
SMALL = {
    "cnv": {
        f"L{index}": Folding(*pair)
        for index, pair in enumerate(
            zip((4, 8, 4, 8, 4, 4, 1, 1, 1), (1, 16, 16, 16, 16, 8, 4, 8, 1), strict=True)
        )
    },
    "lfc": {f"L{index}": Folding(*pair) for index, pair in enumerate([(8, 16), (8, 16), (8, 16), (2, 8)])},
}
LAYERS = [("cnv", index) for index in range(9)] + [("lfc", index) for index in range(4)]


@functools.cache
def trained(name: str) -> Plan:
    """The committed network down to its last layer's sums."""
    pytest.importorskip("onnx")
    from edgekit.host.load import load
    from edgekit.host.lower import native
    from edgekit.host.pack_plan import as_plan_source

    model = MODELS / f"fashion_mnist_{name}_w1a1.onnx"
    if not model.exists():
        pytest.skip(f"models/{model.name} is not in this checkout")
    (stage,) = native.plans(as_plan_source(load(model).graph))
    return down_to(stage.plan, len(PUBLISHED[name]) - 1)


def down_to(plan: Plan, layer: int) -> Plan:
    """Its operators up to the layer-th with weights, which gives its sums."""
    last = [index for index, operator in enumerate(plan.operators) if operator.kind == pl.LINEAR][layer]
    operator = plan.operators[last]
    of, made = operator.of, plan.tensors[operator.output]
    assert isinstance(of, Linear)
    tensors = list(plan.tensors[: operator.output])
    tensors.append(PlanTensor(pl.I32, made.h, made.w, made.c, is_output=True, name="sums"))
    bare = replace(of, epilogue=pl.SUMS, thresholds=None, scale=None, bias=None)
    return Plan(
        tuple(tensors),
        (*plan.operators[:last], Operator(pl.LINEAR, operator.inputs, operator.output, bare)),
    )


def images_of(plan: Plan, count: int) -> Array:
    if not IMAGES.exists():
        pytest.skip(f"Fashion-MNIST is not in {IMAGES.parent}: install the package dataset-fashion-mnist")
    return read_idx(IMAGES, 3)[:count].reshape(count, *outside_shape(plan.tensors[0]))


def on_cpu(plan: Plan, images: Array) -> Array:
    opened = door.open_plan(pl.encode(plan))
    made = plan.tensors[plan.marked(outputs=True)[0]]
    sums = np.zeros((len(images), made.h, made.w, made.c), np.int32)
    for image, row in zip(images, sums, strict=True):
        opened.run([np.ascontiguousarray(image)], [row])
    return sums


def on_overlay(plan: Plan, foldings: Mapping[str, Folding], images: Array) -> tuple[Run, Design]:
    designed = with_design(plan, foldings)
    overlay = Overlay(simulate(Design.parse(designed.design)), designed)
    return overlay.run(images), overlay.design


@pytest.mark.parametrize(("name", "count"), [("cnv", 3), ("lfc", 20)])
def test_a_trained_network_gives_the_cpus_sums_on_real_images(name: str, count: int) -> None:
    plan = trained(name)
    images = images_of(plan, count)
    run, design = on_overlay(plan, SMALL[name], images)
    np.testing.assert_array_equal(run.sums, on_cpu(plan, images))
    assert run.interval_cycles == pytest.approx(interval_cycles(design), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count", "cycles"), [("cnv", 200, 32_768), ("lfc", 1000, 512)])
def test_at_the_published_folding_bits_and_cycles_are_right(name: str, count: int, cycles: int) -> None:
    plan = trained(name)
    images = images_of(plan, count)
    run, design = on_overlay(plan, PUBLISHED[name], images)
    np.testing.assert_array_equal(run.sums, on_cpu(plan, images))
    assert interval_cycles(design) == cycles
    assert run.interval_cycles == pytest.approx(cycles, rel=0.02)
    assert run.cycles / count == pytest.approx(cycles, rel=0.05)  # filling the pipeline once included


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_every_layer_gives_the_cpus_sums(name: str, layer: int) -> None:
    plan = down_to(trained(name), layer)
    foldings = {key: value for key, value in PUBLISHED[name].items() if int(key[1:]) <= layer}
    if layer < len(PUBLISHED[name]) - 1:  # sums are 32 bits wide
        last = foldings[f"L{layer}"]
        foldings[f"L{layer}"] = replace(last, pe=min(last.pe, 4))
    images = images_of(plan, 100)
    np.testing.assert_array_equal(on_overlay(plan, foldings, images)[0].sums, on_cpu(plan, images))
