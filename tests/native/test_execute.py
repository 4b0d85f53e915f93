"""The executor of plans against a slow interpretation of the same plan in numpy, with every kernel that runs here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plan_reference import from_outside, run, to_outside
from random_plans import random_codes, random_plan

from edgekit.native import door
from edgekit.native import plan as p

Array = NDArray[Any]
RUNNABLE = [row.name for row in door.kernels() if row.family == "xnor" and row.supported]
SEEDS = st.integers(0, 2**32 - 1)


def executed(
    plan: p.Plan, inputs: list[Array], kernels: str | None, *, keep: bool
) -> tuple[list[Array], door.OpenPlan]:
    opened = door.open_plan(p.encode(plan), kernels=kernels, keep=keep)
    given_ = [to_outside(tensor, codes) for tensor, codes in zip(opened.inputs, inputs, strict=True)]
    outputs = [
        np.full_like(to_outside(tensor, np.zeros((tensor.h, tensor.w, tensor.c), np.int32)), 77)
        for tensor in opened.outputs
    ]
    for _ in range(2):  # the second run finds what the first left behind
        opened.run(given_, outputs)
    return outputs, opened


def check_plan(plan: p.Plan, inputs: list[Array], kernels: str) -> None:
    """Every tensor as the reference has it, and the same outputs where tensors share memory."""
    wanted = run(plan, inputs)
    outputs, opened = executed(plan, inputs, kernels, keep=True)
    for index, tensor in enumerate(plan.tensors):
        same(tensor, opened.codes(index), wanted[index], f"{kernels}: tensor {index}, {tensor}")
    shared, _ = executed(plan, inputs, kernels, keep=False)
    marked = plan.marked(outputs=True)
    for index, first, second in zip(marked, outputs, shared, strict=True):
        np.testing.assert_array_equal(first.view(np.uint8), second.view(np.uint8))
        if plan.tensors[index].type != p.F32:
            np.testing.assert_array_equal(from_outside(plan.tensors[index], first), wanted[index])


def same(tensor: p.PlanTensor, codes: Array, wanted: Array, where: str) -> None:
    if tensor.type != p.F32:
        np.testing.assert_array_equal(codes, wanted, where)
        return
    floats = codes.view(np.float32)
    np.testing.assert_allclose(floats, wanted, rtol=1e-6, atol=1e-37, err_msg=where)


@pytest.mark.parametrize("kernels", RUNNABLE)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_random_plans_give_what_their_definition_says(kernels: str, seed: int) -> None:
    plan = random_plan(seed)
    rng = np.random.default_rng(seed)
    inputs = [random_codes(rng, plan.tensors[index]) for index in plan.marked(outputs=False)]
    check_plan(plan, inputs, kernels)


__all__ = ["replace"]
