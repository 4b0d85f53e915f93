"""Networks from Brevitas as plans: our kernels give what QONNX's own executor gives, layer by layer and at the outputs.

The oracle's answers are in data/qonnx; make_qonnx_vectors.py made them and says how.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.host.load import load
from edgekit.host.lower import native
from edgekit.host.pack_plan import as_plan_source
from edgekit.native import door, plan

Array = NDArray[Any]
DATA = Path(__file__).parent / "data" / "qonnx"
FORMATS = {
    "cnv_w1a1": {"w1a8", "w1a1"},
    "cnv_w1a2": {"w1a8", "w1a2"},
    "cnv_w2a2": {"w2a8", "w2a2"},
    "lfc_w1a1": {"w1a1"},
    "lfc_w1a2": {"w1a2"},
    "residual_w4a4": {"w8a8"},  # 4 bits take 8
    "cnv_clean": {"w1a8", "w1a2"},
    "cnv_last": {"w1a8", "w1a2"},
}
KERNELS = [row.name for row in door.kernels() if row.family == "xnor" and row.supported]
_CODES = (plan.BITS, plan.U8, plan.I8)


@functools.cache
def oracle(name: str) -> Mapping[str, Array]:
    with np.load(DATA / f"{name}.npz") as stored:
        return dict(stored)


@functools.cache
def stage_of(name: str) -> native.StagePlan:
    (stage,) = native.plans(as_plan_source(load(DATA / f"{name}.onnx").graph))
    return stage


def answer(opened: door.OpenPlan, stage: native.StagePlan, pixels: Array) -> Array:
    (output,) = [np.full(tensor.shape, np.nan, tensor.dtype) for tensor in stage.outputs]
    opened.run([pixels.astype(np.float32) / np.float32(255)], [output])
    return output


@pytest.mark.parametrize("name", FORMATS)
def test_every_layer_runs_in_the_format_it_was_trained_in(name: str) -> None:
    found = native.read(as_plan_source(load(DATA / f"{name}.onnx").graph)).formats
    assert set(found.values()) == FORMATS[name]
    layers = [operator for operator in stage_of(name).plan.operators if operator.kind == plan.LINEAR]
    assert len(found) == len(layers)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", FORMATS)
def test_the_answers_are_those_of_qonnx(name: str, kernels: str) -> None:
    stored, stage = oracle(name), stage_of(name)
    opened = door.open_plan(plan.encode(stage.plan), kernels=kernels)
    assert len(stored["x"]) >= 32
    for pixels, wanted in zip(stored["x"], stored["y"], strict=True):
        came = answer(opened, stage, pixels)
        np.testing.assert_allclose(came, wanted, rtol=1e-5, atol=1e-5)  # scale and bias are multiplied out
        assert (
            came.argmax() == wanted.argmax()
        )  # classes with the same sum among them: the first wins here and there


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_layer_hands_on_the_codes_of_qonnx(name: str, kernels: str) -> None:
    stored, stage = oracle(name), stage_of(name)
    opened = door.open_plan(plan.encode(stage.plan), kernels=kernels, keep=True)
    moved = (plan.POOL, plan.COPY)  # what they make stands behind no quantizer
    coded = [
        operator.output
        for operator in stage.plan.operators
        if operator.kind not in moved and stage.plan.tensors[operator.output].type in _CODES
    ]
    tensors = [key.removeprefix("at ") for key in stored if key.startswith("at ")]
    assert len(coded) == len(tensors)
    for index in range(len(stored[f"at {tensors[0]}"])):
        answer(opened, stage, stored["x"][index])
        for place, tensor in zip(coded, tensors, strict=True):
            levels = stored[f"at {tensor}"][index][0]
            codes = opened.codes(place)
            last = name == "cnv_last" or levels.ndim == 1
            same_code_for_same_value(codes, levels if last else levels.transpose(1, 2, 0), tensor)


def same_code_for_same_value(codes: Array, levels: Array, tensor: str) -> None:
    """Every value has one code, and greater values have greater codes."""
    pairs = np.unique(np.stack([levels.ravel(), codes.ravel()]), axis=1)
    assert (np.diff(pairs[0].astype(int)) > 0).all(), tensor
    assert (np.diff(pairs[1].astype(int)) > 0).all(), tensor
