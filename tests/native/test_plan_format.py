"""plan.h and plan.py describe one file: the same numbers, the same records, and what goes in comes out."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_plans import random_plan

from edgekit.core.errors import BadBundle
from edgekit.native import door
from edgekit.native import plan as p
from edgekit.runtime.weights import weights_of

HEADER = (Path(__file__).parent.parent.parent / "edgekit" / "native" / "plan.h").read_text("utf-8")

# What the header calls by another name than the module: EK_NAME -> attribute.
NAMES = {
    "EK_PLAN_MAGIC": "MAGIC",
    "EK_PLAN_MAJOR": "MAJOR",
    "EK_PLAN_MINOR": "MINOR",
    "EK_PLAN_MAX_TERMS": "MAX_TERMS",
    "EK_PLAN_MAX_LEVELS": "MAX_LEVELS",
    "EK_TENSOR_INPUT": "_INPUT",
    "EK_TENSOR_OUTPUT": "_OUTPUT",
    "EK_TENSOR_CHANNELS_FIRST": "_CHANNELS_FIRST",
}
ONLY_IN_C = {
    *("EK_PLAN_MAX_TENSORS", "EK_PLAN_MAX_OPERATORS", "EK_PLAN_MAX_SIDE"),
    *("EK_PLAN_MAX_CHANNELS", "EK_PLAN_MAX_VALUES"),
}
FORMATS = {
    "uint8_t": "B",
    "uint16_t": "H",
    "int32_t": "i",
    "uint32_t": "I",
    "float": "f",
    "ek_plan_span": "II",
}


def numbers() -> dict[str, int]:
    """Every number that the header gives a name to."""
    found = dict(re.findall(r"\b(EK_\w+) = (\d+)", HEADER))
    for name, text in re.findall(r"#define (EK_PLAN_\w+) (.+?)\s*(?:/\*.*)?\n", HEADER):
        found[name] = str(eval(re.sub(r"UINT32_C\((\w+)\)", r"\1", text), {}))
    return {name: int(text) for name, text in found.items()}


def layout(record: str) -> str:
    """A record of the header as Python's struct spells it."""
    body = re.search(rf"typedef struct {{([^}}]*)}} {record};", HEADER)
    assert body is not None
    fields = re.findall(
        r"^\s+(\w+) ([\w, \[\]]+);", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL), re.MULTILINE
    )
    return "<" + "".join(FORMATS[kind] * len(names.split(",")) for kind, names in fields)


def spelled_out(form: struct.Struct) -> str:
    return re.sub(r"(\d+)([a-zA-Z])", lambda m: m[2] * int(m[1]) if m[2] != "s" else m[0], form.format)


def test_every_number_of_the_header_is_the_modules() -> None:
    for name, number in numbers().items():
        if name not in ONLY_IN_C:
            assert getattr(p, NAMES.get(name, name.removeprefix("EK_"))) == number, name
    assert len(numbers()) >= 40


@pytest.mark.parametrize(
    ("record", "form"),
    [
        ("ek_plan_header", p._HEADER),
        ("ek_plan_tensor", p._TENSOR),
        ("ek_plan_quantize", p._QUANTIZE),
        ("ek_plan_linear", p._LINEAR),
        ("ek_plan_threshold", p._THRESHOLD),
        ("ek_plan_window", p._WINDOW),
        ("ek_plan_affine", p._AFFINE),
        ("ek_plan_requantize", p._REQUANTIZE),
    ],
)
def test_records_have_the_headers_fields(record: str, form: struct.Struct) -> None:
    assert spelled_out(form) == layout(record)


def test_records_have_the_sizes_that_the_header_asserts() -> None:
    sizes = dict(re.findall(r"sizeof\((ek_plan_\w+)\) == (\d+)", HEADER))
    assert {name: int(size) for name, size in sizes.items()} == {
        "ek_plan_header": p._HEADER.size,
        "ek_plan_tensor": p._TENSOR.size,
        "ek_plan_operator": p._OPERATOR.size,
    }


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_written_is_a_plan_and_is_read_back(seed: int) -> None:
    plan = random_plan(seed)
    content = p.encode(plan)
    door.check_plan(content)
    assert p.encode(p.decode(content)) == content
    assert p.decode(content).tensors == plan.tensors == p.decode_tensors(content)


def test_the_checksum_is_zlibs_of_what_follows_it() -> None:
    content = p.encode(random_plan(3))
    assert struct.unpack_from("<I", content, 12)[0] == zlib.crc32(content[16:])


@given(
    codes=st.integers(1, 100).flatmap(lambda n: st.lists(st.integers(0, 2), min_size=n, max_size=n)),
)
def test_weights_come_back_in_every_coding(codes: list[int]) -> None:
    for coding, levels in p.LEVELS.items():
        weights = np.minimum(np.array(codes, np.uint8), levels - 1).reshape(1, 1, 1, -1)
        np.testing.assert_array_equal(
            p.unpack_weights(p.pack_weights(weights, coding), coding, weights.shape), weights
        )


def one_linear() -> p.Plan:
    x = p.PlanTensor(p.BITS, 1, 1, 64, p.BIPOLAR, is_input=True, name="x")
    y = p.PlanTensor(p.F32, 1, 1, 10, is_output=True, name="y")
    of = p.Linear(
        *(np.zeros((10, 1, 1, 64), np.uint8), p.BIPOLAR, (1, 1)),
        epilogue=p.SCALED,
        scale=np.ones(10, np.float32),
        bias=np.ones(10, np.float32),
    )
    return p.Plan((x, y), (p.Operator(p.LINEAR, (0,), 1, of),))


def test_a_plans_weights_are_its_constants() -> None:
    content = p.encode(one_linear())
    weights = weights_of(content)
    assert weights is not None
    assert weights.file_bytes == weights.computed_bytes == 10 * 64 // 8 + 2 * 10 * 4


def test_another_major_version_is_refused_by_name_and_a_greater_minor_is_read() -> None:
    content = bytearray(p.encode(one_linear()))
    content[6:8] = (9).to_bytes(2, "little")
    door.check_plan(bytes(content))
    assert p.decode(bytes(content)) is not None
    content[4:6] = (2).to_bytes(2, "little")
    with pytest.raises(BadBundle, match="must be of plan version 1: update edgekit, got 2"):
        door.check_plan(bytes(content))


def test_longer_records_of_a_greater_minor_version_are_read() -> None:
    plan = random_plan(11)
    content = p.encode(plan)
    tensors, operators = len(plan.tensors), len(plan.operators)
    start = 56 + tensors * 24 + operators * 80
    added = tensors * 8 + operators * 16  # a multiple of 8, so that numbers stay aligned
    head = [*p._HEADER.unpack_from(content)]
    records = b"".join(_moved(content, 56 + 24 * i, 24, (16,), added) + b"new data" for i in range(tensors))
    at = 56 + 24 * tensors
    for index, operator in enumerate(plan.operators):
        places = SPANS.get(operator.kind, ())
        records += _moved(content, at + 80 * index, 80, [16 + place for place in places], added) + bytes(16)
    head[3] = len(content) + added
    head[8], head[9], head[10] = 56 + tensors * 32, 32, 96
    body = p._HEADER.pack(*head)[16:] + bytes(4) + records + content[start:]
    head[4] = zlib.crc32(body)
    longer = p._HEADER.pack(*head)[:16] + body
    door.check_plan(longer)
    assert p.encode(p.decode(longer)) == content


# Where an operator's spans stand behind its first 16 bytes.
SPANS = {
    p.LINEAR: (20, 28, 36, 44),
    p.THRESHOLD: (8, 16),
    p.POOL: (8,),
    p.AFFINE: (0, 8),
    p.REQUANTIZE: (8, 16, 24),
}


def _moved(content: bytes, at: int, size: int, spans: object, by: int) -> bytes:
    record = bytearray(content[at : at + size])
    for place in spans:  # type: ignore[attr-defined]
        offset, length = struct.unpack_from("<II", record, place)
        if length:
            struct.pack_into("<I", record, place, offset + by)
    return bytes(record)


def test_the_example_of_the_documentation_runs() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "plan.md").read_text("utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    names: dict[str, object] = {}
    exec(example[1], names)
    assert np.any(np.asarray(names["sums"]) != 0)
