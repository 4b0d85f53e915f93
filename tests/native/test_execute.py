"""The executor of plans against a slow interpretation of the same plan in numpy, with every kernel that runs here."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plan_reference import from_outside, run, to_outside
from random_plans import random_codes, random_plan

from edgekit.core.errors import BadInput
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
    check_random_plan(seed, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", RUNNABLE)
def test_thousands_of_random_plans_give_what_their_definition_says(kernels: str) -> None:
    for seed in range(2000):
        check_random_plan(seed, kernels, steps=8)


def check_random_plan(seed: int, kernels: str, steps: int = 5) -> None:
    plan = random_plan(seed, steps)
    rng = np.random.default_rng(seed)
    check_plan(
        plan, [random_codes(rng, plan.tensors[index]) for index in plan.marked(outputs=False)], kernels
    )


def floats_of(plan: p.Plan, inputs: list[Array], kernels: str) -> list[Array]:
    outputs, _ = executed(plan, inputs, kernels, keep=False)
    return [output.view(np.uint8) for output in outputs]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_all_kernels_give_the_same_bits_floats_included(seed: int) -> None:
    plan = random_plan(seed)
    rng = np.random.default_rng(seed)
    inputs = [random_codes(rng, plan.tensors[index]) for index in plan.marked(outputs=False)]
    wanted = floats_of(plan, inputs, RUNNABLE[0])
    for kernels in RUNNABLE[1:]:
        for first, second in zip(wanted, floats_of(plan, inputs, kernels), strict=True):
            np.testing.assert_array_equal(first, second, kernels)


# --- thresholds ---------------------------------------------------------------------------------------------------


def with_thresholds(x: p.PlanTensor, weights: Array, coding: int, thresholds: Array, made: int) -> p.Plan:
    y = p.PlanTensor(p.BITS, 1, 1, len(weights), made, is_output=True, name="y")
    of = p.Linear(weights, coding, (1, 1), epilogue=p.THRESHOLDS, thresholds=thresholds)
    return p.Plan((x, y), (p.Operator(p.LINEAR, (0,), 1, of),))


CODED = [(coding, weights) for coding in p.VALUES for weights in (*p.VALUES, p.INTEGER8)]


@pytest.mark.parametrize("kernels", RUNNABLE)
@pytest.mark.parametrize(("coding", "weight_coding"), CODED)
def test_every_threshold_is_exact_at_every_sum(coding: int, weight_coding: int, kernels: str) -> None:
    """Every sum that a row can have stands against every threshold around it: one channel for each threshold."""
    terms = 5
    rng = np.random.default_rng(coding * 10 + weight_coding)
    x = p.PlanTensor(p.BITS, 1, 1, terms, coding, is_input=True, name="x")
    integers = weight_coding == p.INTEGER8
    levels = np.array([-3, 0, 2]) if integers else np.arange(p.LEVELS[weight_coding])
    weights_of = levels if integers else np.array(p.VALUES[weight_coding])
    most = terms * max(map(abs, p.VALUES[coding])) * int(np.abs(weights_of).max()) + 1
    channels = 2 * most + 1
    row = rng.integers(0, len(levels), terms)
    weights = np.tile(levels[row], (channels, 1)).reshape(channels, 1, 1, terms).astype(np.int8)
    thresholds = np.arange(-most, most + 1)[:, None]
    plan = with_thresholds(x, weights, weight_coding, thresholds, p.BIPOLAR)
    seen = set()
    for _ in range(60):
        codes = rng.integers(0, p.LEVELS[coding], (1, 1, terms), dtype=np.int32)
        total = int(np.array(p.VALUES[coding])[codes.ravel()] @ weights_of[row])
        seen.add(total)
        outputs, _ = executed(plan, [codes], kernels, keep=False)
        reached = from_outside(plan.tensors[1], outputs[0]).ravel()
        np.testing.assert_array_equal(reached, thresholds.ravel() <= total)
    assert len(seen) > 3


@pytest.mark.parametrize("kernels", RUNNABLE)
@pytest.mark.parametrize("ends", [(0, 4), (-40_000, 40_000)])
def test_the_ends_of_a_threshold_are_always_and_never(kernels: str, ends: tuple[int, int]) -> None:
    int32 = np.iinfo(np.int32)
    for kind, coding in ((p.BITS, p.BIPOLAR), (p.U8, 0), (p.I8, 0)):
        x = p.PlanTensor(kind, 1, 1, 600, coding, is_input=True, name="x")
        thresholds = np.array([[int32.min], [int32.max], [ends[0]], [ends[1]]])
        weights = np.ones((4, 1, 1, 600), np.uint8)
        plan = with_thresholds(x, weights, p.BIPOLAR, thresholds, p.BIPOLAR)
        for level in (0, 1, 127, -128, 255):
            low, high = {p.BITS: (0, 1), p.U8: (0, 255), p.I8: (-128, 127)}[kind]
            inputs = [np.full((1, 1, 600), np.clip(level, low, high), np.int32)]
            outputs, _ = executed(plan, inputs, kernels, keep=False)
            np.testing.assert_array_equal(from_outside(plan.tensors[1], outputs[0]), run(plan, inputs)[1])
            assert from_outside(plan.tensors[1], outputs[0]).ravel()[:2].tolist() == [1, 0]


def test_a_float_threshold_is_reached_at_itself_and_never_by_nan() -> None:
    x = p.PlanTensor(p.F32, 1, 1, 2, is_input=True, name="x")
    y = p.PlanTensor(p.U8, 1, 1, 2, is_output=True, name="y")
    thresholds = np.array([[-1.0, 0.0, np.inf], [2.0, 0.0, -np.inf]], np.float32)
    of = p.Threshold(thresholds, 7, np.array([False, True]))
    plan = p.Plan((x, y), (p.Operator(p.THRESHOLD, (0,), 1, of),))
    tiny = np.finfo(np.float32).smallest_subnormal
    for value, wanted in (
        *((-1.0, (8, 9)), (-0.0, (9, 9)), (tiny, (9, 8)), (-tiny, (8, 9)), (2.0, (9, 8))),
        *((3.0, (9, 7)), (np.inf, (10, 7)), (-np.inf, (7, 10)), (np.nan, (7, 7))),
    ):
        outputs, _ = executed(plan, [np.full((1, 1, 2), value, np.float32)], None, keep=False)
        assert outputs[0].ravel().tolist() == list(wanted), value


# --- padding and memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", RUNNABLE)
def test_operators_that_want_other_borders_of_one_tensor_all_get_theirs(kernels: str) -> None:
    rng = np.random.default_rng(2)
    x = p.PlanTensor(p.BITS, 5, 4, 70, p.BIPOLAR, is_input=True, name="x")
    tensors, operators = [x], []
    for pad, pads in (
        *((p.PAD_PLUS, (1, 0, 2, 1)), (p.PAD_MINUS, (2, 2, 2, 2)), (p.PAD_ZERO, (1, 1, 1, 1))),
        *((p.PAD_PLUS, (0, 2, 1, 0)), (p.PAD_ZERO, (0, 0, 0, 0))),
    ):
        weights = rng.integers(0, 2, (9, 3, 3, 70)).astype(np.uint8)
        h, w = 5 + pads[0] + pads[2] - 2, 4 + pads[1] + pads[3] - 2
        tensors.append(p.PlanTensor(p.I32, h, w, 9, is_output=True, name=f"y{len(tensors)}"))
        of = p.Linear(weights, p.BIPOLAR, (3, 3), pads=pads, pad=pad)
        operators.append(p.Operator(p.LINEAR, (0,), len(tensors) - 1, of))
    check_plan(p.Plan(tuple(tensors), tuple(operators)), [random_codes(rng, x)], kernels)


@pytest.mark.parametrize("kernels", RUNNABLE)
@pytest.mark.parametrize("kind", [p.U8, p.I8])
@pytest.mark.parametrize("coding", [p.BIPOLAR, p.TERNARY, p.SIGNED2, p.UNSIGNED2, p.INTEGER8])
def test_dense_layers_on_bytes_are_exact_with_few_and_with_many_weights(
    kernels: str, kind: int, coding: int
) -> None:
    rng = np.random.default_rng(coding)
    for terms in (100, 468, 469, 1100):  # 70 rows: from 469 on there are 2^15 weights
        x = p.PlanTensor(kind, 1, 1, terms, is_input=True, name="x")
        y = p.PlanTensor(p.I32, 1, 1, 70, is_output=True, name="y")
        low, high = (-128, 128) if coding == p.INTEGER8 else (0, p.LEVELS[coding])
        weights = rng.integers(low, high, (70, 1, 1, terms)).astype(np.int8)
        plan = p.Plan((x, y), (p.Operator(p.LINEAR, (0,), 1, p.Linear(weights, coding, (1, 1))),))
        check_plan(plan, [random_codes(rng, x)], kernels)


def chain(layers: int) -> p.Plan:
    x = p.PlanTensor(p.I32, 8, 8, 16, is_input=True, name="x")
    tensors = [x, *(replace(x, is_input=False, name="") for _ in range(layers))]
    tensors[-1] = replace(tensors[-1], is_output=True, name="y")
    operators = [p.Operator(p.ADD, (index, index), index + 1) for index in range(layers)]
    return p.Plan(tuple(tensors), tuple(operators))


def test_memory_of_what_nobody_reads_again_is_used_again() -> None:
    one = 8 * 8 * 16 * 4
    short, long = (door.open_plan(p.encode(chain(layers))).arena_bytes for layers in (4, 24))
    kept = door.open_plan(p.encode(chain(24)), keep=True).arena_bytes
    assert kept - long > 20 * one
    assert long - short < 20 * one


def test_more_tensors_alive_at_once_than_the_layout_follows_keep_their_values() -> None:
    x = p.PlanTensor(p.I32, 2, 2, 3, is_input=True, name="x")
    many = 45
    tensors = [x, *(replace(x, is_input=False, name="") for _ in range(2 * many))]
    operators = [p.Operator(p.ADD, (0, index), index + 1) for index in range(many)]
    operators += [p.Operator(p.ADD, (many + index, many - index), many + index + 1) for index in range(many)]
    tensors[-1] = replace(tensors[-1], is_output=True, name="y")
    plan = p.Plan(tuple(tensors), tuple(operators))
    check_plan(plan, [random_codes(np.random.default_rng(1), x)], RUNNABLE[-1])


# --- floats -------------------------------------------------------------------------------------------------------


def softmax_of(values: Array) -> tuple[Array, float]:
    x = p.PlanTensor(p.F32, 1, 1, len(values), is_input=True, name="x")
    y = replace(x, is_input=False, is_output=True, name="y")
    plan = p.Plan(
        (x, y, replace(y, c=1, name="z")), (p.Operator(p.SOFTMAX, (0,), 1), p.Operator(p.CONFIDENCE, (0,), 2))
    )
    outputs, _ = executed(plan, [values.astype(np.float32).reshape(1, 1, -1)], None, keep=False)
    return outputs[0].ravel(), float(outputs[1].ravel()[0])


@given(seed=SEEDS, count=st.integers(1, 1000), spread=st.sampled_from([0.1, 1.0, 10.0, 40.0]))
@settings(max_examples=80, deadline=None)
def test_softmax_is_within_four_units_of_the_last_place(seed: int, count: int, spread: float) -> None:
    values = np.random.default_rng(seed).normal(0, spread, count).astype(np.float32)
    shifted = (values - values.max()).astype(np.float64)
    wanted = np.exp(shifted) / np.exp(shifted).sum()
    found, confidence = softmax_of(values)
    sure = (shifted > -87) & (wanted > np.finfo(np.float32).tiny)
    units = np.abs(found - wanted)[sure] / np.spacing(wanted[sure].astype(np.float32))
    assert units.max() <= 4
    assert np.all(found[shifted < -88] == 0)
    assert confidence == found.max()


@pytest.mark.parametrize("values", [[1.0, np.nan, 2.0], [np.inf, 0.0, 1.0], [-np.inf, -np.inf, -np.inf]])
def test_a_softmax_that_is_not_defined_is_one_nan(values: list[float]) -> None:
    found, confidence = softmax_of(np.array(values))
    assert found.view(np.uint32).tolist() == [0x7FC00000] * 3
    assert np.isnan(confidence)


def test_softmax_of_what_has_minus_infinity_gives_it_nothing() -> None:
    found, confidence = softmax_of(np.array([0.0, -np.inf, 0.0]))
    assert found.tolist() == [0.5, 0.0, 0.5]
    assert confidence == 0.5


def test_quantizing_rounds_half_to_even_and_ends_at_the_ends() -> None:
    values = [0.5, 1.5, 2.5, -0.5, -1.5, 126.49, 126.5, 3e38, -3e38, np.inf, -np.inf, np.nan]
    wanted = [1, 3, 3, 1, -1, 127, 127, 127, -128, 127, -128, 1]
    x = p.PlanTensor(p.F32, 1, 1, len(values), is_input=True, name="x")
    y = replace(x, type=p.I8, is_input=False, is_output=True, name="y")
    plan = p.Plan((x, y), (p.Operator(p.QUANTIZE, (0,), 1, p.Quantize(1.0, 1)),))
    outputs, _ = executed(plan, [np.array(values, np.float32).reshape(1, 1, -1)], None, keep=False)
    assert outputs[0].ravel().tolist() == wanted


def test_not_a_number_is_always_written_alike() -> None:
    x = p.PlanTensor(p.F32, 1, 1, 2, is_input=True, name="x")
    y, z = (replace(x, is_input=False, is_output=True, name=name) for name in "yz")
    operators = (p.Operator(p.ADD, (0, 0), 1), p.Operator(p.POOL, (0,), 2, p.Window((1, 1), (1, 1))))
    odd = np.array([0xFFC12345, 0x7F812345], np.uint32).view(np.float32).reshape(1, 1, 2)
    outputs, _ = executed(p.Plan((x, y, z), operators), [odd], None, keep=False)
    for output in outputs:
        assert output.view(np.uint32).ravel().tolist() == [0x7FC00000] * 2


# --- the door -----------------------------------------------------------------------------------------------------


def doubler(kind: int = p.I32) -> door.OpenPlan:
    x = p.PlanTensor(kind, 1, 2, 3, is_input=True, name="x")
    y = replace(x, is_input=False, is_output=True, name="y")
    return door.open_plan(p.encode(p.Plan((x, y), (p.Operator(p.ADD, (0, 0), 1),))))


X, Y = np.zeros((1, 2, 3), np.int32), np.zeros((1, 2, 3), np.int32)
FROZEN = np.zeros((1, 2, 3), np.int32)
FROZEN.flags.writeable = False


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ([], [Y], "the plan has 1 inputs, got 0 arrays"),
        ([X], [Y, Y], "the plan has 1 outputs, got 2 arrays"),
        ([X.astype(np.int64)], [Y], "input 'x' must be an array of int32, got int64"),
        ([[1]], [Y], "input 'x' must be an array of int32, got list"),
        ([X.reshape(1, 3, 2)], [Y], "input 'x' must have shape [1, 2, 3], got [1, 3, 2]"),
        ([X], [np.zeros((1, 2, 6), np.int32)[:, :, ::2]], "output 'y' must be C-contiguous"),
        ([X], [FROZEN], "output 'y' must be writeable"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(inputs: Any, outputs: Any, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        doubler().run(inputs, outputs)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_axes_of_length_one_do_not_count() -> None:
    y = np.zeros((2, 1, 3), np.int32)
    doubler().run([np.arange(6, dtype=np.int32).reshape(1, 1, 2, 3)], [y])
    assert y.ravel().tolist() == [0, 2, 4, 6, 8, 10]


def test_arrays_bound_once_are_read_at_every_run() -> None:
    opened, x, y = doubler(), X.copy(), Y.copy()
    with pytest.raises(BadInput, match="bind the plan's inputs and outputs before it runs"):
        opened.run_bound()
    opened.bind([x], [y])
    for value in (3, -4):
        x[...] = value
        opened.run_bound()
        assert (y == 2 * value).all()


def test_codes_need_a_plan_opened_with_keep() -> None:
    with pytest.raises(BadInput, match="opened with keep is wanted, got 0"):
        doubler().codes(0)


def test_sums_of_integers_wrap() -> None:
    y = Y.copy()
    doubler().run([np.full((1, 2, 3), 2**30 + 1, np.int32)], [y])
    assert (y == -(2**31) + 2).all()


def test_a_call_keeps_its_plan_and_its_arrays_alive() -> None:
    y = Y.copy()
    call = doubler().bound([np.full((1, 2, 3), 21, np.int32)], [y])
    gc.collect()
    churn = [np.full((1, 2, 3), 5, np.int32) for _ in range(100)]
    assert call() == 0
    assert (y == 42).all()
    del churn


def test_an_opened_plan_is_freed_when_nobody_holds_it() -> None:
    gc.disable()
    try:
        opened = doubler()
        opened.bind([X], [Y])
        alive = weakref.ref(opened)
        del opened
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kernels", RUNNABLE)
@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("epilogue", [p.SUMS, p.SCALED])
def test_an_output_may_lie_anywhere_and_nothing_beside_it_is_written(
    epilogue: int, shift: int, kernels: str
) -> None:
    rng = np.random.default_rng(5)
    source = p.PlanTensor(p.BITS, 3, 4, 70, p.BIPOLAR, is_input=True, name="x")
    kind = p.I32 if epilogue == p.SUMS else p.F32
    result = p.PlanTensor(kind, 3, 4, 37, is_output=True, name="y")
    scale, bias = rng.normal(size=(2, 37)).astype(np.float32)
    of = p.Linear(rng.integers(0, 2, (37, 1, 1, 70)).astype(np.uint8), p.BIPOLAR, (1, 1), epilogue=epilogue)
    if epilogue == p.SCALED:
        of = replace(of, scale=scale, bias=bias)
    plan = p.Plan((source, result), (p.Operator(p.LINEAR, (0,), 1, of),))
    given_ = random_codes(rng, source)
    held = np.full(64 + result.count * 4 + 64, 77, np.uint8)
    start = -held.ctypes.data % 16 + 16 + shift
    output = held[start : start + result.count * 4].view(p._DTYPES[kind]).reshape(3, 4, 37)
    door.open_plan(p.encode(plan), kernels=kernels).run([to_outside(source, given_)], [output])
    np.testing.assert_array_equal(output, run(plan, [given_])[1])
    assert set(held[:start].tolist() + held[start + output.nbytes :].tolist()) == {77}
