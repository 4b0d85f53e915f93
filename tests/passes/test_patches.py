"""Columns of a product's inputs: multiplied with the weights' matrix they give what onnxruntime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import FLOAT
from onnx import helper, numpy_helper

from edgekit.host.ort import open_model
from edgekit.host.passes._patches import columns, matrix_of, positions, weight_of


def product(
    op: str, x: np.ndarray, weight: np.ndarray, attributes: dict[str, Any]
) -> tuple[ir.Node, np.ndarray]:
    made = helper.make_node(op, ["x", "w"], ["y"], "n", **attributes)
    graph = helper.make_graph(
        [made],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (y,) = open_model(model.SerializeToString()).run(["y"], {"x": x})
    return next(iter(ir.from_proto(model).graph)), y


def check(op: str, x: np.ndarray, weight: np.ndarray, **attributes: Any) -> None:
    node, y = product(op, x, weight, attributes)
    matrix = matrix_of(node, weight)
    np.testing.assert_array_equal(weight_of(node, matrix, weight.shape), weight)
    outputs = np.moveaxis(y, 1, -1) if op.startswith("Conv") else y
    count = positions(node, x.shape, weight.shape)
    assert count * matrix.shape[0] * matrix.shape[1] == y.size
    chosen = np.random.default_rng(0).permutation(count)[: max(1, count // 2)]
    made = columns(node, x, weight.shape, chosen) @ np.swapaxes(matrix, 1, 2)  # (groups, positions, outputs)
    wanted = outputs.reshape(count, -1)[chosen]
    np.testing.assert_allclose(np.moveaxis(made, 0, 1).reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-3)


SIZES = st.integers(1, 3)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 3), SIZES, SIZES, SIZES, st.sampled_from(["Conv", "ConvTranspose"]))
def test_convolutions_of_any_geometry(
    data: st.DataObject, rank: int, groups: int, inputs: int, outputs: int, op: str
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    kernel, strides, dilations = (data.draw(st.lists(SIZES, min_size=rank, max_size=rank)) for _ in range(3))
    side = data.draw(st.lists(st.integers(7, 9), min_size=rank, max_size=rank))
    x = random.normal(size=(1, groups * inputs, *side)).astype(np.float32)
    shape = (groups * outputs, inputs) if op == "Conv" else (groups * inputs, outputs)
    weight = random.normal(size=(*shape, *kernel)).astype(np.float32)
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups}
    padding = data.draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID", "none"]))
    if padding == "pads":
        attributes["pads"] = data.draw(st.lists(st.integers(0, 1), min_size=2 * rank, max_size=2 * rank))
    elif padding != "none" and not (op == "ConvTranspose" and padding.startswith("SAME")):
        attributes["auto_pad"] = padding
        if padding.startswith("SAME"):
            attributes["dilations"] = [1] * rank  # onnxruntime's own reading of SAME with dilations differs
    check(op, x, weight, **attributes)


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"transA": 1}, {"transA": 1, "transB": 1}])
def test_dense_products(attributes: dict[str, int]) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(6, 3) if attributes.get("transA") else (3, 6)).astype(np.float32)
    weight = random.normal(size=(5, 6) if attributes.get("transB") else (6, 5)).astype(np.float32)
    check("Gemm", x, weight, **attributes)


def test_a_product_over_the_last_axis_of_a_sequence() -> None:
    random = np.random.default_rng(0)
    check(
        "MatMul",
        random.normal(size=(1, 7, 6)).astype(np.float32),
        random.normal(size=(6, 5)).astype(np.float32),
    )
