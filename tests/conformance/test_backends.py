"""What every backend must do, whatever runs underneath."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np
import pytest

from edgekit.core.errors import BadBundle, MissingExtra
from edgekit.core.manifest import Part, Tensor
from edgekit.native import plan
from edgekit.runtime.backends import BACKENDS, Options, Runner, known_backends, opener
from edgekit.runtime.backends._tflite import tiny_model

X, Y = Tensor("x", "float32", (1, 4)), Tensor("y", "float32", (1, 4))


def null_doubler() -> bytes:
    return json.dumps({"outputs": {"y": {"op": "affine", "from": "x", "scale": 2.0}}}).encode()


def onnx_doubler() -> bytes:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    two = helper.make_tensor("two", kind, [1], [2.0])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "doubler",
        [helper.make_tensor_value_info("x", kind, [1, 4])],
        [helper.make_tensor_value_info("y", kind, [1, 4])],
        [two],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def plan_doubler() -> bytes:
    x = plan.PlanTensor(plan.F32, 1, 1, 4, is_input=True, name="x")
    y = plan.PlanTensor(plan.F32, 1, 1, 4, is_output=True, name="y")
    return plan.encode(plan.Plan((x, y), (plan.Operator(plan.ADD, (0, 0), 1),)))


DOUBLERS: dict[str, Callable[[], bytes]] = {
    "native": plan_doubler,
    "null": null_doubler,
    "onnxruntime": onnx_doubler,
    "litert": tiny_model,
    "tflite-runtime": tiny_model,
}
# They run plans of bits and sums alone: tests/runtime/overlay/test_overlay_backends.py asks this suite's questions.
OVERLAYS = {"overlay", "overlay-sim"}
VERIFIES = {"native", "null", "onnxruntime", "litert"}  # the whole file, before it reads it


def test_every_built_in_backend_is_in_this_suite() -> None:
    assert set(DOUBLERS) | OVERLAYS == set(BACKENDS)
    assert set(BACKENDS) <= set(known_backends())


@pytest.fixture(params=sorted(DOUBLERS))
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime")
    try:
        opener(name)
        if name == "tflite-runtime":
            open_doubler(name)  # it imports where it does not work
    except MissingExtra as err:
        pytest.skip(str(err))
    return name


def open_doubler(backend: str) -> tuple[Runner, np.ndarray, np.ndarray]:
    data = DOUBLERS[backend]()
    x, y = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
    return opener(backend)(data, part_of(backend, data), {"x": x}, {"y": y}, Options()), x, y


def part_of(backend: str, data: bytes, outputs: tuple[Tensor, ...] = (Y,)) -> Part:
    return Part(backend, "stages/0", hashlib.sha256(data).hexdigest(), (X,), outputs)


def test_it_reads_and_fills_the_buffers_it_was_given_every_time(backend: str) -> None:
    runner, x, y = open_doubler(backend)
    for value in (1.0, -3.0):
        x[...] = value
        runner.run()
        np.testing.assert_array_equal(y, np.full((1, 4), 2 * value, np.float32))
    assert runner.provider


def test_garbage_is_a_bad_bundle_in_one_line(backend: str) -> None:
    cut = [DOUBLERS[backend]()[:-7]] if backend in VERIFIES else []
    for data in (b"", b"garbage", *cut):
        x, y = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
        with pytest.raises(BadBundle) as caught:
            opener(backend)(data, part_of(backend, data), {"x": x}, {"y": y}, Options())
        assert "\n" not in str(caught.value)
        assert "stages/0" in str(caught.value)


def test_outputs_other_than_the_manifests_are_a_bad_bundle(backend: str) -> None:
    data = DOUBLERS[backend]()
    z = Tensor("z", "float32", (1, 4))
    x, out = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
    with pytest.raises(BadBundle):
        opener(backend)(data, part_of(backend, data, (z,)), {"x": x}, {"z": out}, Options())


def test_a_buffer_of_another_shape_than_the_graphs_is_refused_before_it_is_written(backend: str) -> None:
    if backend == "null":
        pytest.skip("it has no graph")
    data = DOUBLERS[backend]()
    small = Tensor("y", "float32", (1, 2))
    x, out = np.zeros((1, 4), np.float32), np.zeros((1, 2), np.float32)
    with pytest.raises(BadBundle, match="not those its manifest lists"):
        opener(backend)(data, part_of(backend, data, (small,)), {"x": x}, {"y": out}, Options())
