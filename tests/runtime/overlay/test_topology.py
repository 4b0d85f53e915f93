from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from overlay_plans import cnv, lfc, network, small_cnv

from edgekit.core.errors import BadInput
from edgekit.native import plan as pl
from edgekit.native.plan import Linear, Operator, Plan, PlanTensor, Threshold, Window
from edgekit.runtime.overlay.topology import chain_of


def shapes(plan: Plan) -> list[tuple[str, int, int]]:
    return [(layer.name, layer.terms, layer.out_c) for layer in chain_of(plan).layers]


def with_linear(plan: Plan, index: int, **changes: object) -> Plan:
    """The plan with one linear operator changed."""
    operators = list(plan.operators)
    of = operators[index].of
    assert isinstance(of, Linear)
    operators[index] = replace(operators[index], of=replace(of, **changes))
    return replace(plan, operators=tuple(operators))


def with_tensor(plan: Plan, index: int, **changes: object) -> Plan:
    tensors = list(plan.tensors)
    tensors[index] = replace(tensors[index], **changes)
    return replace(plan, tensors=tuple(tensors))


def test_cnv_is_nine_layers_with_weights_and_two_pools() -> None:
    chain = chain_of(cnv())
    assert [layer.name for layer in chain.layers] == [
        "L0",
        "L1",
        "P0",
        "L2",
        "L3",
        "P1",
        "L4",
        "L5",
        "L6",
        "L7",
        "L8",
    ]
    assert shapes(cnv())[-4:] == [("L5", 2304, 256), ("L6", 256, 512), ("L7", 512, 512), ("L8", 512, 10)]
    assert [layer.input_bits for layer in chain.layers[:2]] == [8, 1]
    assert chain.input_bytes == 3072


def test_lfc_begins_with_one_threshold_and_takes_whole_vectors() -> None:
    chain = chain_of(lfc())
    assert chain.binarize == 0
    assert shapes(lfc()) == [("L0", 784, 1024), ("L1", 1024, 1024), ("L2", 1024, 1024), ("L3", 1024, 10)]
    assert chain.layers[-1].gives_sums


def test_a_copy_that_only_changes_the_shape_costs_nothing() -> None:
    plan = small_cnv()
    flat = PlanTensor(pl.BITS, 1, 1, 144, coding=pl.BIPOLAR)
    copied = [Operator(pl.COPY, (3,), len(plan.tensors))]
    dense = plan.operators[3]
    assert isinstance(dense.of, Linear)
    weights = dense.of.weights.reshape(16, 1, 1, -1)
    moved = replace(
        dense, inputs=(len(plan.tensors),), of=replace(dense.of, weights=weights[..., :144], kernel=(1, 1))
    )
    operators = (*plan.operators[:3], *copied, moved, *plan.operators[4:])
    chain = chain_of(Plan((*plan.tensors, flat), operators))
    assert [(layer.name, layer.operator) for layer in chain.layers[-2:]] == [("L2", 4), ("L3", 5)]


def test_integer_weights_of_plus_and_minus_one_are_bits() -> None:
    plan = small_cnv()
    of = plan.operators[0].of
    assert isinstance(of, Linear)
    signs = (of.weights.astype(np.int8) * 2 - 1).astype(np.int8)
    assert shapes(with_linear(plan, 0, weights=signs, coding=pl.INTEGER8)) == shapes(plan)
    signs[0, 0, 0, 0] = 3
    with pytest.raises(
        BadInput, match=r"operator 0 \(linear\): its weights are 8-bit, the overlay's are 1-bit"
    ):
        chain_of(with_linear(plan, 0, weights=signs, coding=pl.INTEGER8))


def exits() -> Plan:
    return with_tensor(small_cnv(), 2, is_output=True, name="exit")


def residual() -> Plan:
    plan = small_cnv()
    operators = (plan.operators[0], Operator(pl.ADD, (1, 1), 2), *plan.operators[2:])
    return replace(plan, operators=operators)


def averaged() -> Plan:
    plan = small_cnv()
    operators = (plan.operators[0], Operator(pl.SUM, (1,), 2, Window((2, 2), (2, 2))), *plan.operators[2:])
    return replace(with_tensor(plan, 2, type=pl.I32, coding=0), operators=operators)


def overlapping() -> Plan:
    plan = small_cnv()
    operators = list(plan.operators)
    operators[1] = replace(operators[1], of=Window((3, 3), (2, 2)))
    return replace(plan, operators=tuple(operators))


def per_channel() -> Plan:
    plan = network((8, 8, 3), (("conv", 8), ("dense", 4)), binarize=True)
    operators = list(plan.operators)
    operators[0] = replace(operators[0], of=Threshold(np.array([[1], [2], [3]], np.int32)))
    return replace(plan, operators=tuple(operators))


REFUSED = [
    (exits(), r"gives one output, the plan has 2 \(early exits\)"),
    (with_tensor(small_cnv(), 1, is_input=True), "takes one input, the plan has 2"),
    (residual(), r"operator 1 \(add\): the overlay is one chain without residual adds"),
    (averaged(), r"operator 1 \(sum\): the overlay has convolutions, dense layers and pools"),
    (overlapping(), r"operator 1 \(pool\): its windows \[3, 3\] overlap or leave gaps at stride \[2, 2\]"),
    (
        with_tensor(small_cnv(), 1, coding=pl.UNSIGNED2),
        r"operator 0 \(linear\): its outputs are 2-bit unsigned",
    ),
    (with_linear(small_cnv(), 2, coding=pl.SIGNED2), r"operator 2 \(linear\): its weights are 2-bit signed"),
    (with_linear(small_cnv(), 2, coding=pl.TERNARY), "its weights are ternary"),
    (with_linear(small_cnv(), 2, pads=(1, 1, 1, 1)), "it pads bits with true zeros"),
    (with_linear(small_cnv(), 4, epilogue=pl.SCALED), r"operator 4 \(linear\): it gives floats"),
    (with_linear(small_cnv(), 2, epilogue=pl.SUMS), "L1 gives sums, and only bits go on inside the overlay"),
    (
        with_tensor(with_linear(small_cnv(), 4, epilogue=pl.THRESHOLDS), -1, type=pl.BITS, coding=pl.BIPOLAR),
        "the overlay's last layer must give sums, L3 gives bits",
    ),
    (with_tensor(small_cnv(), 0, type=pl.F32), r"operator 0 \(linear\): its input is float32"),
    (per_channel(), "one rising threshold for all input channels"),
]


@pytest.mark.parametrize(("plan", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_what_the_overlay_cannot_hold_is_refused_by_name_in_one_line(plan: Plan, said: str) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        chain_of(plan)
    assert "\n" not in str(refused.value)


def test_a_layer_padded_with_bits_keeps_its_padding() -> None:
    plan = with_linear(small_cnv(), 2, pads=(1, 1, 1, 1), pad=pl.PAD_PLUS)
    layer = chain_of(plan).layers[2]
    assert (layer.pads, layer.pad_one, layer.needs_windows) == ((1, 1, 1, 1), True, True)
