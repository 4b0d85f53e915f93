"""Odd networks as plans: each gives what onnxruntime gives, or is refused in one line that names a node and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import Builder
from onnx import TensorProto, helper

from edgekit.core.errors import BadInput
from edgekit.host.graph import model_bytes
from edgekit.host.load import load
from edgekit.host.lower import native
from edgekit.host.ort import open_model
from edgekit.host.pack_plan import as_plan_source
from edgekit.native import door, plan

VECTOR, IMAGE = (1, 8), (1, 3, 6, 6)


class Net(Builder):
    """Names come by themselves; s: signs of +-1 with a threshold."""

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        return self.constant(f"c{len(self.weights)}", np.array(value, dtype))

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.op(kind, inputs, f"t{len(self.nodes)}", **attributes)

    def sign(self, x: str, up: float = 1.0, down: float = -1.0, at: float = 0.0) -> str:
        reached = self.node("GreaterOrEqual", [x, self.const(at)])
        return self.node("Where", [reached, self.const(up), self.const(down)])

    def bits(self, *shape: int) -> str:
        return self.const(np.where(self.random.random(shape) < 0.5, -1.0, 1.0))

    def dense(self, x: str, wide: int, out: int) -> str:
        return self.node("MatMul", [x, self.bits(wide, out)])

    def conv(self, x: str, *shape: int, **attributes: Any) -> str:  # type: ignore[override]
        return self.node("Conv", [x, self.bits(*shape)], **attributes)

    def norm(self, x: str, gamma: Sequence[float], **attributes: Any) -> str:
        rows = [gamma, np.zeros(len(gamma)), np.arange(len(gamma)) - 1.5, np.ones(len(gamma))]
        return self.node("BatchNormalization", [x, *(self.const(row) for row in rows)], **attributes)

    def steps(self, x: str, values: Sequence[float], starts: Sequence[float]) -> str:
        """values[0], then values[i + 1] from starts[i] on."""
        made = self.const(values[0])
        for value, start in zip(values[1:], starts, strict=True):
            made = self.node(
                "Where", [self.node("GreaterOrEqual", [x, self.const(start)]), self.const(value), made]
            )
        return made


Nodes = Callable[[Net, str], "str | list[str]"]


def model(nodes: Nodes, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Several outputs are exits."""
    net = Net(1, 13)
    made = nodes(net, "x")
    names = [made] if isinstance(made, str) else made
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    source = [helper.make_tensor_value_info("x", kind, shape)]
    graph = helper.make_graph(net.nodes, "odd", source, outputs, net.weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if len(names) > 1:
        exits = json.dumps([{"name": name, "output": name} for name in names])
        helper.set_model_props(proto, {"edgekit.exits": exits})
    return proto


def check(proto: onnx.ModelProto, folder: Path, count: int = 20) -> None:
    """Equal on random inputs."""
    path = folder / "odd.onnx"
    path.write_bytes(proto.SerializeToString())
    graph = as_plan_source(load(path).graph)
    stages = native.plans(graph)
    names = [name for exit_ in graph.exits for name in exit_.tensors]
    reference = open_model(model_bytes(graph.model), optimize=False)
    (entry,) = graph.inputs
    random = np.random.default_rng(0)
    for _ in range(count):
        x: Any = random.normal(size=entry.tensor.shape).astype(np.float32)
        if entry.tensor.dtype == "uint8":
            x = random.integers(0, 256, entry.tensor.shape, np.uint8)
        came = {entry.tensor.name: x}
        for stage in stages:
            outputs = [np.zeros(tensor.shape, tensor.dtype) for tensor in stage.outputs]
            door.open_plan(plan.encode(stage.plan)).run([came[t.name] for t in stage.inputs], outputs)
            came.update({tensor.name: out for tensor, out in zip(stage.outputs, outputs, strict=True)})
        for name, want in zip(names, reference.run(names, {entry.tensor.name: x}), strict=True):
            np.testing.assert_allclose(came[name], want, atol=2e-6 * max(1.0, float(np.abs(want).max())))


def scaled_conv(net: Net, x: str) -> str:
    """Sums that stand for other numbers in each channel: a scale in the weights, and a bias."""
    scales = np.array([1.0, 0.5, 3.0, 0.25]).reshape(4, 1, 1, 1)
    weight = np.where(net.random.random((4, 3, 3, 3)) < 0.5, -1.0, 1.0) * scales
    return net.node("Conv", [x, net.const(weight), net.const([-9.25, 0.25, 5.25, 0.125])])


EQUAL: dict[str, tuple[Nodes, Sequence[int]]] = {
    "an exit that is the input": (
        lambda n, x: [n.node("Identity", [x]), n.dense(n.sign(x), 8, 5)],
        VECTOR,
    ),
    "a later exit that is the input": (
        lambda n, x: [n.dense(n.sign(x), 8, 5), n.node("Identity", [x])],
        VECTOR,
    ),
    "two exits that are one tensor, read later as well": (
        lambda n, x: [
            (p := n.node("Softmax", [n.dense(n.sign(x), 8, 5)], axis=1)),
            n.node("Identity", [p]),
            n.dense(n.sign(p, at=0.2), 5, 4),
        ],
        VECTOR,
    ),
    "Identity and Dropout within a function": (
        lambda n, x: n.dense(
            n.node(
                "Cast", [n.node("Dropout", [n.node("Identity", [n.sign(n.dense(n.sign(x), 8, 8))])])], to=1
            ),
            8,
            5,
        ),
        VECTOR,
    ),
    "sums with a scale and a bias in each channel, flattened": (
        lambda n, x: n.dense(n.sign(n.node("Flatten", [scaled_conv(n, n.sign(x))]), at=1.5), 64, 5),
        IMAGE,
    ),
    "a vector with the axes of an image": (
        lambda n, x: n.node("Flatten", [n.conv(n.sign(n.conv(n.sign(x), 4, 8, 1, 1)), 5, 4, 1, 1)]),
        (1, 8, 1, 1),
    ),
    "a cast of what comes in": (
        lambda n, x: n.dense(
            n.node("Cast", [n.node("Cast", [n.node("Clip", [x, n.const(-2.7), n.const(2.7)])], to=6)], to=1),
            8,
            5,
        ),
        VECTOR,
    ),
    "a cast of sums": (
        lambda n, x: n.dense(
            n.node(
                "Cast",
                [n.node("Cast", [n.node("MatMul", [n.sign(x), n.const(0.3 - 0.6 * np.eye(8))])], to=6)],
                to=1,
            ),
            8,
            5,
        ),
        VECTOR,
    ),
    "a mean over one flattened axis": (
        lambda n, x: n.dense(
            n.sign(
                n.node(
                    "ReduceMean",
                    [n.node("Reshape", [n.sign(x), n.const([1, 3, 36], np.int64)])],
                    axes=[2],
                    keepdims=0,
                )
            ),
            3,
            5,
        ),
        IMAGE,
    ),
    "levels a little beside a grid through 0": (
        lambda n, x: n.dense(
            n.steps(n.dense(n.sign(x), 8, 8), [0.009, 1.009, 2.009, 3.009], [-3, 0, 3]), 8, 5
        ),
        VECTOR,
    ),
    "levels a little beside -1 and 1": (
        lambda n, x: n.dense(n.sign(n.dense(n.sign(x), 8, 4000), 1.00015, -1.0), 4000, 5),
        VECTOR,
    ),
    "levels with an offset large against their step": (
        lambda n, x: n.dense(n.sign(n.dense(n.sign(x), 8, 8), 1 + 2.0**-20, 1.0), 8, 5),
        VECTOR,
    ),
    "two scales of 1e-10 that differ": (
        lambda n, x: n.dense(
            n.sign(
                n.node(
                    "Add",
                    [
                        n.node("MatMul", [n.sign(x), n.const(np.where(np.eye(8) > 0, 1e-10, -1e-10))]),
                        n.node("MatMul", [n.sign(x), n.const(np.where(np.eye(8) > 0, -3e-10, 3e-10))]),
                    ],
                ),
                at=1e-10,
            ),
            8,
            5,
        ),
        VECTOR,
    ),
    "a channel with a huge gamma beside others": (
        lambda n, x: n.dense(
            n.sign(
                n.node(
                    "Add",
                    [
                        (a := n.norm(n.dense(n.sign(x), 8, 8), [1e8, *np.linspace(0.5, 1, 7)])),
                        n.norm(n.dense(n.sign(a), 8, 8), np.linspace(1, 0.5, 8).tolist()),
                    ],
                ),
                at=0.37,
            ),
            8,
            5,
        ),
        VECTOR,
    ),
    "a quantizer of a hundred thousand floats": (
        lambda n, x: n.dense(n.sign(x, at=0.3), 100_000, 2),
        (1, 100_000),
    ),
    "floats that become one level": (
        lambda n, x: n.dense(n.sign(x, 1.0, 1.0), 8, 5),
        VECTOR,
    ),
}


@pytest.mark.parametrize("case", EQUAL)
def test_what_is_odd_gives_what_onnxruntime_gives(case: str, tmp_path: Path) -> None:
    nodes, shape = EQUAL[case]
    check(model(nodes, shape), tmp_path, 5 if shape[-1] > 1000 else 20)


def test_bytes_are_dequantized_as_onnx_says(tmp_path: Path) -> None:
    def nodes(n: Net, x: str) -> str:
        real = n.node("DequantizeLinear", [x, n.const(2.0**-5), n.const(77, np.uint8)])
        return n.node("Flatten", [n.conv(n.sign(n.conv(real, 4, 3, 3, 3)), 5, 4, 4, 4)])

    check(model(nodes, IMAGE, TensorProto.UINT8), tmp_path)


def bump_before_pool(n: Net, x: str) -> str:
    """1 becomes the largest value: the pool would see it, thresholds on sums would not."""
    sums = n.node("Conv", [n.sign(x, 1.0, 0.0), n.const(np.ones((1, 1, 1, 2)))])
    bump = n.node(
        "Where", [n.node("Equal", [sums, n.const(1.0)]), n.const(5.0), n.node("Mul", [sums, n.const(1.5)])]
    )
    pooled = n.node("MaxPool", [bump], kernel_shape=[2, 1], strides=[1, 1])
    last = n.node("Where", [n.node("Equal", [pooled, n.const(3.0)]), n.const(1.0), n.const(-1.0)])
    return n.node("Flatten", [n.conv(last, 3, 1, 3, 3)])


def reshaped(*shape: int) -> Callable[[Net, str], str]:
    return lambda n, x: n.node(
        "Flatten",
        [n.conv(n.node("Reshape", [n.sign(x), n.const(shape, np.int64)]), 5, *shape[1:])],
    )


def by_position(n: Net, x: str) -> str:
    """As many positions as channel sums: a constant for each must not be taken for one per sum."""
    sums = n.node("Add", [n.conv(n.sign(x), 2, 3, 1), n.const([-9.0, 9.0, -1.0, 9.0])])
    return n.node("Flatten", [n.conv(n.sign(sums), 5, 2, 4)])


REFUSED: dict[str, tuple[Nodes, Sequence[int], str]] = {
    "an image in another shape": (
        reshaped(1, 3, 4, 9),
        IMAGE,
        "n_t3: Conv of a tensor whose axes were moved",
    ),
    "channels in another shape": (
        reshaped(1, 6, 3, 6),
        IMAGE,
        "n_t3: Conv of a tensor whose axes were moved",
    ),
    "a mean over a channel": (
        lambda n, x: n.dense(n.node("ReduceMean", [n.sign(x)], axes=[1, 2], keepdims=0), 4, 5),
        (1, 4, 4, 4),
        "a mean over other axes",
    ),
    "a sum over channels": (
        lambda n, x: n.node(
            "Flatten",
            [n.conv(n.sign(n.node("ReduceSum", [n.sign(x), n.const([1], np.int64)])), 5, 1, 6, 6)],
        ),
        IMAGE,
        "looks at more than one number",
    ),
    "a sum over floats": (
        lambda n, x: n.dense(n.sign(n.node("ReduceSum", [x, n.const([1], np.int64)])), 1, 5),
        VECTOR,
        "looks at more than one number",
    ),
    "a constant for each position": (by_position, (1, 3, 4), "looks at more than one number"),
    "a function that goes up and down before a pool": (
        bump_before_pool,
        (1, 1, 4, 4),
        "MaxPool of what goes up",
    ),
    "a Sum with a constant": (
        lambda n, x: n.dense(
            n.sign(n.node("Sum", [n.dense(n.sign(x), 8, 8), n.dense(n.sign(x), 8, 8), n.const(3.0)])), 8, 5
        ),
        VECTOR,
        "Sum has no operator",
    ),
    "a Softmax of one number each": (
        lambda n, x: n.node("Softmax", [n.dense(n.sign(x), 8, 5)], axis=0),
        VECTOR,
        "n_t3: Softmax over more than one vector",
    ),
    "a bent line in a small channel beside a huge one": (
        lambda n, x: n.node(
            "LeakyRelu", [n.norm(n.dense(n.sign(x), 8, 5), [1e6, 1, -1, 0, 1e-3])], alpha=0.5
        ),
        VECTOR,
        "neither few levels nor a scaled sum",
    ),
    "normalization by the batch": (
        lambda n, x: n.dense(
            n.sign(n.node("Dropout", [n.dense(n.sign(x), 8, 8), n.const(0.5), n.const(True, bool)])), 8, 5
        ),
        VECTOR,
        "n_t3: Dropout as in training",
    ),
    "no batch axis": (
        lambda n, x: n.dense(
            n.node(
                "Unsqueeze",
                [
                    n.sign(n.node("Squeeze", [n.dense(n.sign(x), 8, 8), n.const([0], np.int64)])),
                    n.const([0], np.int64),
                ],
            ),
            8,
            5,
        ),
        VECTOR,
        "first axis is not the batch",
    ),
    "a product of two tensors": (
        lambda n, x: n.node("MatMul", [n.sign(x), n.node("Transpose", [n.sign(x)])]),
        VECTOR,
        "its weights are not constants",
    ),
    "numbers drawn at random": (
        lambda n, x: n.dense(
            n.sign(n.node("Add", [n.dense(n.sign(x), 8, 8), n.node("RandomNormal", [], shape=[1, 8])])), 8, 5
        ),
        VECTOR,
        "RandomNormal has no operator in a plan",
    ),
    "a constant output": (
        lambda n, x: [n.dense(n.sign(x), 8, 5), n.node("Identity", [n.const(np.ones((1, 5)))])],
        VECTOR,
        "Identity works on constants alone",
    ),
    "weights nearly on a grid": (
        lambda n, x: n.node("MatMul", [n.sign(x), n.const(np.tile([[1.0], [2.00008]], (4, 5)))]),
        VECTOR,
        "lie on no grid of 8 bits",
    ),
    "levels nearly on a grid": (
        lambda n, x: n.dense(n.steps(n.dense(n.sign(x), 8, 8), [0, 1, 2.004, 3], [-3, 0, 3]), 8, 5),
        VECTOR,
        "values on no grid",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_plan_computes_is_refused_by_name(case: str, tmp_path: Path) -> None:
    nodes, shape, why = REFUSED[case]
    with pytest.raises(BadInput) as refused:
        check(model(nodes, shape), tmp_path)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16])
def test_outputs_of_another_type_are_refused(kind: int, tmp_path: Path) -> None:
    proto = model(lambda n, x: n.node("Cast", [n.dense(n.sign(x), 8, 5)], to=kind), VECTOR)
    proto.graph.output[0].type.tensor_type.elem_type = kind
    with pytest.raises(BadInput, match="outputs of a plan are float32"):
        check(proto, tmp_path)
