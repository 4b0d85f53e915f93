"""What is no plan is refused in one line that says where and why; what is cut or damaged anywhere, too."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from random_plans import random_plan

from edgekit.core.errors import BadBundle, BadInput
from edgekit.native import door
from edgekit.native import plan as p

TENSORS, OPERATORS = 56, 56 + 24 * 9  # where the records of `network` begin


def network() -> p.Plan:
    """One of most kinds of operators, wired one behind the other."""
    rng = np.random.default_rng(5)
    tensors = (
        p.PlanTensor(p.F32, 6, 6, 3, is_input=True, channels_first=True, name="x"),
        p.PlanTensor(p.U8, 6, 6, 3),
        p.PlanTensor(p.BITS, 6, 6, 10, p.TERNARY),
        p.PlanTensor(p.BITS, 3, 3, 10, p.TERNARY),
        p.PlanTensor(p.I32, 1, 1, 5),
        p.PlanTensor(p.U8, 1, 1, 5),
        p.PlanTensor(p.BITS, 1, 1, 5, p.UNSIGNED2),
        p.PlanTensor(p.F32, 1, 1, 5),
        p.PlanTensor(p.F32, 1, 1, 5, is_output=True, name="y"),
    )
    first = p.Linear(
        *(rng.integers(-128, 128, (10, 3, 3, 3)).astype(np.int8), p.INTEGER8, (3, 3)),
        pads=(1, 1, 1, 1),
        epilogue=p.THRESHOLDS,
        thresholds=np.sort(rng.integers(-9, 9, (10, 2)), axis=1),
    )
    second = p.Linear(rng.integers(0, 3, (5, 3, 3, 10)).astype(np.uint8), p.TERNARY, (3, 3))
    scaling = p.Requantize(0, 255, np.ones(5, np.int32), np.zeros(5, np.int64), np.zeros(5, np.uint8))
    operators = (
        p.Operator(p.QUANTIZE, (0,), 1, p.Quantize(0.5, 3)),
        p.Operator(p.LINEAR, (1,), 2, first),
        p.Operator(p.POOL, (2,), 3, p.Window((2, 2), (2, 2), np.arange(10) % 2 == 0)),
        p.Operator(p.LINEAR, (3,), 4, second),
        p.Operator(p.REQUANTIZE, (4,), 5, scaling),
        p.Operator(p.THRESHOLD, (5,), 6, p.Threshold(np.tile(np.array([3, 5, 9]), (5, 1)), 0, None)),
        p.Operator(p.AFFINE, (6,), 7, p.Affine(np.ones(5, np.float32), np.zeros(5, np.float32))),
        p.Operator(p.SOFTMAX, (7,), 8),
    )
    return p.Plan(tensors, operators)


def refusal(content: bytes) -> str:
    with pytest.raises(BadBundle) as refused:
        door.check_plan(content)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def sealed(content: bytes | bytearray) -> bytes:
    """With the size and the checksum that its header must have."""
    made = bytearray(content)
    struct.pack_into("<I", made, 8, len(made))
    struct.pack_into("<I", made, 12, zlib.crc32(bytes(made[16:])))
    return bytes(made)


def patched(at: int, form: str, value: float) -> bytes:
    made = bytearray(p.encode(network()))
    struct.pack_into(form, made, at, value)
    return sealed(made)


def test_the_network_of_these_tests_is_a_plan() -> None:
    door.check_plan(p.encode(network()))


def test_every_shorter_file_is_refused() -> None:
    content = p.encode(network())
    for size in range(len(content)):
        refusal(content[:size])
        if 52 <= size < len(content) - 8:  # there may be as much behind the last number
            refusal(sealed(content[:size]))


def test_every_flipped_bit_is_found() -> None:
    content = p.encode(network())
    for bit in range(0, len(content) * 8, 7):
        if bit // 8 in (6, 7):  # the minor version
            continue
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        refusal(bytes(damaged))


def operator_at(index: int, field: int = 0) -> int:
    return OPERATORS + 80 * index + field


def tensor_at(index: int, field: int = 0) -> int:
    return TENSORS + 24 * index + field


FIELDS = [
    (0, "<I", 7, "must begin with EKPL: not a plan, got 7"),
    (16, "<I", 0, "tensors must be 1 to 4096, got 0"),
    (16, "<I", 4097, "tensors must be 1 to 4096, got 4097"),
    (20, "<I", 0, "operators must be 1 to 4096, got 0"),
    (24, "<I", 0x7FFFFFF0, "the tensors must lie in the file"),
    (28, "<I", 51, "the operators must lie in the file"),
    (32, "<H", 20, "tensor_size must be a multiple of 4 from 24 on, got 20"),
    (34, "<H", 82, "operator_size must be a multiple of 4 from 80 on, got 82"),
    (36, "<I", 2, "inputs must be the number of tensors marked so, got 2"),
    (40, "<I", 0, "outputs must be the number of tensors marked so, got 0"),
    (48, "<I", 0x7FFFFFFF, "design must lie in the file"),
    (tensor_at(1), "<B", 6, "tensor 1: type must be 1 to 5, got 6"),
    (tensor_at(1, 1), "<B", 1, "tensor 1: coding must be 1 to 4 for bits, else 0, got 1"),
    (tensor_at(2, 1), "<B", 5, "tensor 2: coding must be 1 to 4 for bits, else 0, got 5"),
    (tensor_at(1, 2), "<B", 8, "tensor 1: flags must be of those known, got 8"),
    (tensor_at(0, 2), "<B", 3, "tensor 0: cannot be input and output at once"),
    (tensor_at(1, 2), "<B", 4, "tensor 1: channels first is for inputs that are not bits"),
    (tensor_at(1, 3), "<B", 1, "tensor 1: reserved must be 0, got 1"),
    (tensor_at(1, 4), "<i", 0, "tensor 1: h must be 1 to 65535, got 0"),
    (tensor_at(1, 8), "<i", -3, "tensor 1: w must be 1 to 65535, got -3"),
    (tensor_at(1, 12), "<i", 1 << 21, "tensor 1: c must be 1 to 1048576, got 2097152"),
    (tensor_at(0, 20), "<I", 0xFFFFFFFF, "tensor 0: name must lie in the file"),
    (operator_at(0), "<H", 12, "operator 0: kind must be 1 to 11: update edgekit, got 12"),
    (operator_at(0, 2), "<H", 1, "operator 0 (quantize): reserved must be 0, got 1"),
    (operator_at(0, 4), "<i", 9, "operator 0 (quantize): an input must be one of the tensors, got 9"),
    (operator_at(0, 4), "<i", -1, "operator 0 (quantize): an input must be one of the tensors, got -1"),
    (operator_at(0, 4), "<i", 2, "operator 0 (quantize): an input must be made before it is used, got 2"),
    (operator_at(0, 8), "<i", 0, "operator 0 (quantize): must have one input, and -1, got 0"),
    (operator_at(0, 12), "<i", 0, "operator 0 (quantize): out must be made once, got 0"),
    (operator_at(1, 12), "<i", 1, "operator 1 (linear): out must be made once, got 1"),
    (operator_at(0, 16), "<f", 0.0, "operator 0 (quantize): scale must be positive and finite"),
    (operator_at(0, 16), "<f", float("nan"), "operator 0 (quantize): scale must be positive and finite"),
    (operator_at(0, 20), "<i", 256, "operator 0 (quantize): zero_point must be a code of out, got 256"),
    (operator_at(1, 16), "<H", 9, "operator 1 (linear): the kernel must fit the padded input, got 9"),
    (operator_at(1, 20), "<H", 0, "operator 1 (linear): strides must be positive"),
    (operator_at(1, 24), "<H", 3, "operator 1 (linear): padding must be smaller than the kernel, got 3"),
    (
        operator_at(1, 32),
        "<B",
        1,
        "operator 1 (linear): pad must be zero, or minus or plus one on bipolar bits",
    ),
    (operator_at(1, 33), "<B", 6, "operator 1 (linear): coding of weights must be 1 to 5, got 6"),
    (operator_at(1, 33), "<B", 1, "operator 1 (linear): weights must have the kernel's size, got 280"),
    (operator_at(1, 34), "<B", 3, "operator 1 (linear): epilogue must be 0 to 2, got 3"),
    (operator_at(1, 34), "<B", 0, "operator 1 (linear): thresholds must be empty"),
    (operator_at(1, 35), "<B", 2, "operator 1 (linear): wide must be 0 or 1, got 2"),
    (operator_at(1, 35), "<B", 1, "operator 1 (linear): thresholds must be [c][levels - 1], got 40"),
    (operator_at(1, 36), "<I", 0xFFFFFFF0, "operator 1 (linear): weights must have the kernel's size"),
    (operator_at(1, 36), "<I", 57, "operator 1 (linear): weights must have the kernel's size"),
    (operator_at(2, 16), "<H", 7, "operator 2 (pool): the window must fit the input, got 7"),
    (operator_at(2, 20), "<H", 1, "operator 2 (pool): out must have the height that windows give, got 3"),
    (
        operator_at(2, 28),
        "<I",
        1,
        "operator 2 (pool): smallest must be a bit for each channel, or empty, got 1",
    ),
    (operator_at(4, 16), "<i", 256, "operator 4 (requantize): low and high must be numbers of out, got 256"),
    (operator_at(5, 16), "<I", 5, "operator 5 (threshold): levels must be those of out, got 5"),
    (operator_at(5, 20), "<i", 1, "operator 5 (threshold): first must be 0 for bits, got 1"),
    (operator_at(6, 20), "<I", 4, "operator 6 (affine): scale must be [c], got 4"),
    (operator_at(7), "<H", 10, "operator 7 (confidence): out must be one value, got 5"),
]


@pytest.mark.parametrize(("at", "form", "value", "said"), FIELDS)
def test_a_field_out_of_bounds_is_named(at: int, form: str, value: float, said: str) -> None:
    assert said in refusal(patched(at, form, value))


def with_linear(index: int, **changes: object) -> p.Plan:
    plan = network()
    operators = list(plan.operators)
    of = operators[index].of
    assert of is not None
    operators[index] = replace(operators[index], of=replace(of, **changes))  # type: ignore[arg-type]
    return replace(plan, operators=tuple(operators))


def _infinite() -> p.Plan:
    scale = np.ones(5, np.float32)
    scale[3] = np.inf
    return with_linear(6, scale=scale)


def _falling_where_it_must_rise() -> p.Plan:
    return with_linear(1, thresholds=np.tile(np.array([4, 3]), (10, 1)))


def _rising_where_it_must_fall() -> p.Plan:
    return with_linear(5, falling=np.array([True, False, True, False, False]))


def _large_sums() -> p.Plan:
    weights = np.full((1, 1, 1, 20000), -128, np.int8)
    x = p.PlanTensor(p.U8, 1, 1, 20000, is_input=True, name="x")
    y = p.PlanTensor(p.I32, 1, 1, 1, is_output=True, name="y")
    return p.Plan((x, y), (p.Operator(p.LINEAR, (0,), 1, p.Linear(weights, p.INTEGER8, (1, 1))),))


def _never_made() -> p.Plan:
    plan = network()
    return replace(plan, tensors=(*plan.tensors, p.PlanTensor(p.I32, 1, 1, 1)))


def _large_addend() -> p.Plan:
    return with_linear(4, addend=np.array([0, 0, 1 << 62, 0, 0]))


def _large_shift() -> p.Plan:
    return with_linear(4, shift=np.array([0, 63, 0, 0, 0]))


def _many_borders() -> p.Plan:
    x = p.PlanTensor(p.BITS, 80, 80, 1, p.BIPOLAR, is_input=True, name="x")
    y = p.PlanTensor(p.I32, 158, 158, 1, is_output=True, name="y")
    of = p.Linear(np.zeros((1, 79, 79, 1), np.uint8), p.BIPOLAR, (79, 79), pads=(78, 78, 78, 78))
    return p.Plan((x, y), (p.Operator(p.LINEAR, (0,), 1, of),))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_infinite, "operator 6 (affine): scale must be finite, is not at index, got 3"),
        (_falling_where_it_must_rise, "operator 1 (linear): thresholds must rise within a channel, got 0"),
        (_rising_where_it_must_fall, "operator 5 (threshold): thresholds must be numbers in order, got 0"),
        (_large_sums, "operator 0 (linear): sums must stay below 2^29, got 652800000"),
        (_many_borders, "windows must have at most 4096 different borders, got 24649"),
        (_never_made, "tensor 9: must be an input or made"),
        (_large_addend, "operator 4 (requantize): addend must be below 2^62"),
        (_large_shift, "operator 4 (requantize): shift must be 0 to 62, got 63"),
    ],
)
def test_numbers_that_do_not_make_sense_are_named(made: Callable[[], p.Plan], said: str) -> None:
    assert said in refusal(p.encode(made()))


def test_weights_have_no_bits_past_a_rows_end() -> None:
    content = bytearray(p.encode(network()))
    weights = struct.unpack_from("<I", content, operator_at(3, 36))[0]
    content[weights + 11] = 0x80  # the third word of a plane of 90 bits
    said = refusal(sealed(content))
    assert (
        "operator 3 (linear): weight bits past a row's end must be 0, got 0" in said or "thermometer" in said
    )


def test_ternary_weights_are_thermometer_codes() -> None:
    content = bytearray(p.encode(network()))
    weights = struct.unpack_from("<I", content, operator_at(3, 36))[0]
    content[weights] = 0  # eight first bits of the first plane
    content[weights + 12] = 1
    assert "ternary weights must be thermometer codes" in refusal(sealed(content))


def test_a_name_that_is_not_utf8_is_refused() -> None:
    content = bytearray(p.encode(network()))
    name = struct.unpack_from("<I", content, tensor_at(0, 16))[0]
    for byte in (0xFF, 0xC0, 0x80, 0x0A, 0xED):
        content[name] = byte
        assert "tensor 0: name must be UTF-8" in refusal(sealed(content))


def test_two_inputs_of_one_name_are_refused() -> None:
    plan = network()
    twice = replace(plan, tensors=(*plan.tensors, replace(plan.tensors[0])))
    assert "tensor 9: name must differ from those before on its side" in refusal(p.encode(twice))


def test_names_of_other_scripts_are_read() -> None:
    plan = network()
    named = replace(plan, tensors=(replace(plan.tensors[0], name="größe 画像 🙂"), *plan.tensors[1:]))
    assert door.open_plan(p.encode(named)).inputs[0].name == "größe 画像 🙂"


def test_kernels_that_nobody_knows_are_refused() -> None:
    with pytest.raises(
        BadInput, match="kernels must be an instruction set that this machine runs, got 'sse9'"
    ):
        door.open_plan(p.encode(random_plan(1)), kernels="sse9")
