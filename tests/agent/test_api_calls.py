"""Requests of the Open Inference Protocol as bytes: whatever comes is a request or one line that says what is wrong."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from bundles import null_files, null_manifest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekit.agent.api import tensors
from edgekit.agent.api.calls import check, inputs_of, parse_call, signature_of, write_answer
from edgekit.core.errors import BadInput
from edgekit.runtime.session import Answer

SIGNATURE = signature_of(null_manifest(*null_files()))
DTYPES = st.sampled_from(sorted(tensors.DATATYPES))
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensor(draw: st.DrawFn, finite: bool = False) -> Any:
    dtype = draw(DTYPES)
    values = st.floats(-100, 100, width=16) if finite and dtype.startswith("float") else None
    return draw(arrays.arrays(dtype, draw(SHAPES), elements=values))


def request(array: Any, *, binary: bool, nested: bool = False) -> tuple[bytes, int]:
    """A request with one tensor, and the length of its JSON."""
    entry: dict[str, Any] = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": tensors.DATATYPES[array.dtype.name],
    }
    if binary:
        entry["parameters"] = {"binary_data_size": array.nbytes}
    else:
        entry["data"] = array.tolist() if nested and array.ndim else array.ravel().tolist()
    head = json.dumps({"inputs": [entry]}).encode()
    return head + (array.tobytes() if binary else b""), len(head)


@given(tensor())
def test_every_datatype_comes_through_in_binary_with_all_its_bits(array: Any) -> None:
    body, length = request(array, binary=True)
    (found,) = parse_call(body, length).inputs
    assert isinstance(found.content, np.ndarray)
    assert (found.content.dtype, found.content.shape) == (array.dtype, array.shape)
    assert found.content.tobytes() == array.tobytes()


@given(tensor(finite=True), st.booleans())
def test_every_datatype_comes_through_in_json_flat_and_nested(array: Any, nested: bool) -> None:
    if nested and array.size == 0:
        return  # a list of lists of nothing has no one shape
    body, _ = request(array, binary=False, nested=nested)
    (found,) = parse_call(body, None).inputs
    assert isinstance(found.content, np.ndarray)
    assert (found.content.dtype, found.content.shape) == (array.dtype, array.shape)
    assert np.array_equal(found.content, array)


@given(tensor())
def test_what_goes_out_is_what_was_answered_and_json_has_no_nan(array: Any) -> None:
    answer = Answer({"exit3": array}, "exit3", 2, float("nan"), 1.0)
    body, length = request(np.zeros((1, 1, 4, 4), np.float32), binary=False)
    call = parse_call(body, length)
    text, none = write_answer(call, SIGNATURE, answer, "full")
    assert none is None

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (output,) = json.loads(text, parse_constant=refuse)["outputs"]
    assert "confidence" not in json.loads(text)["parameters"]
    back = np.array(output["data"], np.float64 if array.dtype.kind == "f" else array.dtype)
    plain = np.where(np.isfinite(array), array, np.nan) if array.dtype.kind == "f" else array
    assert np.array_equal(
        back.astype(array.dtype).reshape(output["shape"]), plain, equal_nan=array.dtype.kind == "f"
    )


def refusal(body: bytes, length: int | None) -> str:
    """Why it is no request for this bundle; empty where it is one."""
    try:
        call = parse_call(body, length)
        check(call, SIGNATURE)
        inputs_of(call, SIGNATURE)
    except BadInput as err:
        return str(err)
    return ""


def is_one_line(text: str) -> bool:
    return "\n" not in text and len(text) < 1000


@given(st.binary(max_size=300), st.none() | st.integers(-5, 400))
@example(b'{"inputs":[{"name":"x","shape":[],"datatype":"BOOL","data":[{}]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[2],"datatype":"INT8","data":[[],[]]}]}', None)
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[' + b"9" * 400 + b"]}]}", None)
def test_any_bytes_are_a_request_or_one_line(body: bytes, length: int | None) -> None:
    assert is_one_line(refusal(body, length))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
ODD = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y", ""]) | JSON,
        "shape": st.just([1, 1, 4, 4]) | st.lists(st.integers(-1, 5), max_size=5) | JSON,
        "datatype": st.sampled_from([*tensors.KNOWN, "FP64"]) | JSON,
        "data": st.lists(st.integers(-2, 300) | st.floats(allow_nan=False), max_size=16) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 80) | JSON})
        | JSON,
    },
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        key: JSON | st.sampled_from(["full", "budget", "anytime", "confidence", "3ms", "40%", 5, 0.1])
        for key in ("policy", "budget", "deadline_ms", "max_drop", "binary_data_output")
    },
)


@given(
    st.lists(ODD, max_size=3) | JSON,
    PARAMETERS | JSON,
    st.lists(JSON | ODD, max_size=2) | JSON,
    st.binary(max_size=80),
)
def test_any_json_is_a_request_or_one_line(inputs: Any, parameters: Any, outputs: Any, behind: bytes) -> None:
    head = json.dumps({"inputs": inputs, "parameters": parameters, "outputs": outputs}).encode()
    assert is_one_line(refusal(head + behind, len(head)))


@given(st.binary(max_size=64))
def test_any_image_is_decoded_or_refused_in_one_line(content: bytes) -> None:
    data = struct.pack("<I", len(content)) + content
    entry = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [entry]}).encode()
    assert is_one_line(refusal(head + data, len(head)))


@pytest.mark.parametrize("size", [0, 3, 5, 12])
def test_a_text_tensor_must_hold_what_its_length_says(size: int) -> None:
    with pytest.raises(BadInput, match="a length in 4 bytes"):
        tensors.one_text(memoryview(struct.pack("<I", 9) + bytes(8))[:size], (1,), "input 'x'")


def test_flags_in_binary_are_bytes_of_0_and_1() -> None:
    with pytest.raises(BadInput, match="BOOL must be bytes of 0 and 1, got 2"):
        tensors.from_bytes(memoryview(b"\x01\x02"), "BOOL", (2,), "input 'x'")


def test_bytes_are_read_from_where_the_protocol_puts_them_and_only_once() -> None:
    first = {"name": "a", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}
    second = {"name": "b", "shape": [1], "datatype": "INT16", "parameters": {"binary_data_size": 2}}
    head = json.dumps({"inputs": [first, second]}).encode()
    a, b = parse_call(head + b"\x01\x02\x03\x00", len(head)).inputs
    assert (np.asarray(a.content).tolist(), np.asarray(b.content).tolist()) == ([1, 2], [3])


def test_the_largest_classes_come_first_and_ties_by_index() -> None:
    output = np.array([[1, 3, 3, -1]], np.int32)
    assert tensors.classes(output, 3, ("a", "b")) == ["3:1:b", "3:2", "1:0:a"]
    assert tensors.classes(np.float32([[np.nan, 0.5]]), 5, None)[0] == "0.500000:1"


def test_the_limit_of_a_body_follows_from_the_inputs() -> None:
    largest = [[-3.4028234663852886e38] * 4] * 4
    entry = {"name": "x", "shape": [1, 1, 4, 4], "datatype": "FP32", "data": [[largest]]}
    assert len(json.dumps({"inputs": [entry]}, indent=1)) < SIGNATURE.max_body < 10 * 2**20
