"""Every operator against ONNX's own cases: the expected outputs come with the package onnx."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.from_onnx import _at, _run, _step  # noqa: E402
from edgekit.host.train.operators import OPERATORS, At, conv, why_not  # noqa: E402

_KINDS = "fiub"  # and of these, what PyTorch computes with
_NO_UNSIGNED = (np.uint16, np.uint32, np.uint64)
ELSEWHERE = {
    "test_resize_downsample_scales_linear_align_corners",  # onnxruntime takes the rounded size, ONNX the broken one
    "test_reduce_max_empty_set",  # the largest of nothing
    "test_reduce_max_empty_set_bool",
    "test_reduce_min_empty_set",
    "test_training_dropout",  # training inside the graph is refused
    "test_training_dropout_default",
    "test_training_dropout_zero_ratio",
}
Case = tuple[str, onnx.ModelProto, Sequence[Any]]


@pytest.fixture(scope="module")
def cases() -> Mapping[str, list[Case]]:
    """operator -> ONNX's single-node cases of it whose types PyTorch has."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    found = defaultdict(list)
    for case in collected:
        nodes = case.model.graph.node
        arrays = [entry for pair in case.data_sets for side in pair for entry in side]
        if len(nodes) != 1 or nodes[0].domain or not all(map(_usual, arrays)):
            continue
        found[nodes[0].op_type].append((case.name, case.model, case.data_sets))
    return found


def _usual(array: Any) -> bool:
    if array is None or isinstance(array, list):  # sequences and optional values
        return False
    dtype = _numpy(array).dtype
    return (
        dtype.kind in _KINDS
        and dtype not in _NO_UNSIGNED
        and dtype.name != "bfloat16"
        and dtype.isbuiltin == 1
    )


def _numpy(array: Any) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(array) if isinstance(array, onnx.TensorProto) else np.asarray(array)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_an_operator_computes_what_onnx_says(cases: Mapping[str, list[Case]], operator: str) -> None:
    tried = 0
    for name, model, data_sets in cases[operator]:
        node = next(iter(ir.from_proto(model).graph))
        step = _step(node, model.opset_import[0].version)
        if name in ELSEWHERE or why_not(step.at, [value is not None for value in node.inputs]):
            continue
        for inputs, outputs in data_sets:
            given = zip(model.graph.input, inputs, strict=True)
            values = {entry.name: torch.from_numpy(np.array(_numpy(array))) for entry, array in given}
            _run(step, values)
            for entry, wanted in zip(model.graph.output, outputs, strict=True):
                got, want = values[entry.name].numpy(), _numpy(wanted)
                assert got.shape == want.shape, name
                assert got.dtype == want.dtype, name
                np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4, err_msg=name)
        tried += 1
    assert tried or operator == "Upsample", "ONNX has no case of it: write one"


@pytest.mark.parametrize(
    ("operator", "attributes", "outputs", "said"),
    [
        ("NonZero", {}, 1, "the operator NonZero"),
        ("MaxPool", {"kernel_shape": [2]}, 2, "MaxPool with 2 outputs"),
        ("AveragePool", {"dilations": [2]}, 1, "AveragePool with dilations"),
        ("Resize", {"mode": "cubic"}, 1, "Resize with mode cubic"),
        ("Resize", {"coordinate_transformation_mode": "tf_crop_and_resize"}, 1, "tf_crop_and_resize"),
        ("Resize", {"antialias": 1}, 1, "antialias"),
        ("GRU", {"layout": 1}, 1, "layout"),
        ("LSTM", {"activations": ["relu", "tanh", "tanh"]}, 1, "activations relu"),
        ("BatchNormalization", {"training_mode": 1}, 1, "training mode"),
    ],
)
def test_what_is_out_of_scope_is_named(
    operator: str, attributes: dict[str, Any], outputs: int, said: str
) -> None:
    assert said in str(why_not(At(operator, 17, attributes, outputs), [True] * 3))


def test_peepholes_are_out_of_scope() -> None:
    assert "peepholes" in str(why_not(At("LSTM", 17, {}), [True] * 8))


def test_gradients_of_norms_are_numbers_where_all_is_zero() -> None:
    zeros = torch.zeros(1, 4, requires_grad=True)
    for operator in ("ReduceL2", "LpNormalization"):
        (slope,) = torch.autograd.grad(OPERATORS[operator](At(operator, 17, {}), zeros).sum(), zeros)
        assert torch.isfinite(slope).all(), operator


def test_a_convolution_pads_as_same_lower_says() -> None:
    x, weight = torch.arange(4.0).reshape(1, 1, 4), torch.tensor([[[1.0, 0.0]]])
    lower = conv(At("Conv", 17, {"auto_pad": "SAME_LOWER"}), x, weight)
    assert lower.tolist() == [[[0.0, 0.0, 1.0, 2.0]]]


def test_outputs_nobody_reads_do_not_count() -> None:
    x, made = ir.Value(name="x"), ir.node("Dropout", [ir.Value(name="x")], num_outputs=2)
    made.outputs[0].name, made.outputs[1].name = "y", "mask"
    assert x.name == "x"
    assert _at(made, 17).outputs == 1
