"""Graphs as plans: what our kernels compute on bits is what onnxruntime computes in floats, exit by exit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from binary_networks import BLOCKS, binary_inputs, binary_network
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import Builder
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekit.core.errors import BadInput
from edgekit.host.graph import Graph, model_bytes
from edgekit.host.load import load
from edgekit.host.lower import native
from edgekit.host.ort import open_model
from edgekit.host.pack_plan import as_plan_source, is_binary
from edgekit.native import door, plan

Array = NDArray[Any]
KERNELS = [row.name for row in door.kernels() if row.family == "xnor" and row.supported]


def source_of(proto: onnx.ModelProto, folder: Path) -> Graph:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return as_plan_source(load(path).graph)


def by_plans(
    stages: tuple[native.StagePlan, ...], x: Array, name: str, kernels: str | None
) -> dict[str, Array]:
    """Every tensor at a border, by running the plans one after the other."""
    known = {name: x}
    for stage in stages:
        opened = door.open_plan(plan.encode(stage.plan), kernels=kernels)
        outputs = [np.zeros(tensor.shape, tensor.dtype) for tensor in stage.outputs]
        opened.run([known[tensor.name] for tensor in stage.inputs], outputs)
        known.update({tensor.name: out for tensor, out in zip(stage.outputs, outputs, strict=True)})
    return known


def compare(
    graph: Graph, proto: onnx.ModelProto, kernels: str | None, tolerance: float, count: int = 3
) -> None:
    stages = native.plans(graph)
    assert len(stages) == len(graph.exits)
    names = [name for exit_ in graph.exits for name in exit_.tensors]
    reference = open_model(model_bytes(graph.model), optimize=False)
    name = graph.inputs[0].tensor.name
    for x in binary_inputs(proto, count):
        wanted = dict(zip(names, reference.run(names, {name: x}), strict=True))
        came = by_plans(stages, x, name, kernels)
        for output, want in wanted.items():
            scale = max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(came[output], want, atol=tolerance * scale, err_msg=output)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), kernels=st.sampled_from(KERNELS))
def test_random_binary_networks_give_what_onnxruntime_gives(
    seed: int, kernels: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    proto = binary_network(seed)
    compare(source_of(proto, tmp_path_factory.mktemp("net")), proto, kernels, 1e-5)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(seed=st.integers(0, 1_000_000), scales=st.sampled_from(["one", "powers", "any"]))
def test_a_thousand_random_binary_networks_give_what_onnxruntime_gives_or_are_refused(
    seed: int, scales: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    proto = binary_network(seed, scales=scales)
    graph = source_of(proto, tmp_path_factory.mktemp("net"))
    assume(not native.read(graph).refused)  # few: averages that fit no 16 bits, say
    compare(graph, proto, None, 1e-4)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("first", ["quant8", "uint8", "bits"])
def test_every_kind_of_block_becomes_a_plan(block: str, first: str, tmp_path: Path) -> None:
    proto = binary_network(7, kind="image", blocks=[block], first=first, exits=2, length=1)
    compare(source_of(proto, tmp_path), proto, None, 1e-5)


@pytest.mark.parametrize("weights", ["w1", "w1q", "w3", "w2", "w8"])
@pytest.mark.parametrize("acts", ["a1", "a3", "a2s", "a2"])
def test_every_pair_of_formats_becomes_a_plan(weights: str, acts: str, tmp_path: Path) -> None:
    proto = binary_network(
        3, kind="image", weights=[weights], acts=[acts], blocks=["conv"], exits=1, length=2
    )
    graph = source_of(proto, tmp_path)
    compare(graph, proto, None, 1e-5)
    inner = [name for name, kind in native.read(graph).formats.items() if not kind.endswith("a8")]
    assert weights == "w8" or inner


def test_bits_are_handed_from_stage_to_stage_as_bits(tmp_path: Path) -> None:
    proto = binary_network(
        5, kind="image", weights=["w1"], acts=["a1"], blocks=["conv"], exits=2, heads=["dense"]
    )
    first, second = native.plans(source_of(proto, tmp_path))
    handed = [tensor for tensor in second.inputs if tensor.name in {entry.name for entry in first.outputs}]
    assert handed
    assert all(tensor.dtype == "uint8" and tensor.shape[-1] <= 8 for tensor in handed)
    index = second.plan.marked(outputs=False)[0]
    assert second.plan.tensors[index].type == plan.BITS


# --- networks by hand -------------------------------------------------------------------------------------------------


class Net(Builder):
    """Signs, and layers with weights of +-1; names come by themselves."""

    def const(self, value: Array) -> str:
        return self.constant(f"c{len(self.weights)}", value)

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self.op(kind, inputs, f"t{len(self.nodes)}", **attributes)

    def sign(self, x: str) -> str:
        least = self.const(np.array(0.0, np.float32))
        up, down = (self.const(np.array(value, np.float32)) for value in (1.0, -1.0))
        return self.node("Where", [self.node("GreaterOrEqual", [x, least]), up, down])

    def binary_conv(self, x: str, channels: int, out: int, kernel: int, **attributes: Any) -> str:
        signs = np.where(self.random.random((out, channels, kernel, kernel)) < 0.5, -1.0, 1.0)
        return self.node("Conv", [x, self.const(signs.astype(np.float32))], **attributes)

    def norm(self, x: str, gamma: Array) -> str:
        count = len(gamma)
        rows = [gamma, *(self.random.normal(size=(2, count)) * 3), np.full(count, 2.0)]
        return self.node("BatchNormalization", [x, *(self.const(row.astype(np.float32)) for row in rows)])


def network(build: Mapping[str, Any]) -> onnx.ModelProto:
    """A model with the input "x" and one output; build: "shape", "nodes" (Net, x) -> output, "out"."""
    net = Net(build.get("seed", 0), 13)
    output = build["nodes"](net, "x")
    return net.model([(output, build["out"])], [("x", build["shape"])])


GAMMAS = np.array([1.0, -1.0, 0.0, 2.5, -0.3, 1e-3])


def pooled_before_norm(net: Net, x: str) -> str:
    """As BNN-PYNQ trains: conv, pool, batch norm, sign; channels with negative gamma must be pooled by AND."""
    bits = net.sign(x)
    sums = net.binary_conv(bits, 3, 6, 3)
    pooled = net.node("MaxPool", [sums], kernel_shape=[2, 2], strides=[2, 2])
    again = net.binary_conv(net.sign(net.norm(pooled, GAMMAS)), 6, 5, 3)
    return net.node("Flatten", [again])


def test_a_pool_before_batch_normalization_is_an_and_where_gamma_is_negative(tmp_path: Path) -> None:
    proto = network({"shape": (1, 3, 8, 8), "nodes": pooled_before_norm, "out": (1, 5)})
    graph = source_of(proto, tmp_path)
    (stage,) = native.plans(graph)
    (pool,) = [operator for operator in stage.plan.operators if operator.kind == plan.POOL]
    assert isinstance(pool.of, plan.Window)
    assert pool.of.smallest is not None
    np.testing.assert_array_equal(pool.of.smallest, GAMMAS < 0)
    for kernels in KERNELS:
        compare(graph, proto, kernels, 0.0, count=8)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_borders_of_either_sign_and_of_true_zero_are_exact(
    value: float, kernel: int, stride: int, tmp_path: Path
) -> None:
    def nodes(net: Net, x: str) -> str:
        half = kernel // 2
        sizes = net.const(np.array([0, 0, half, half, 0, 0, half, half], np.int64))
        bits = net.node("Pad", [net.sign(x), sizes, net.const(np.array(value, np.float32))])
        sums = net.binary_conv(bits, 5, 7, kernel, strides=[stride, stride])
        return net.node("ReduceMean", [net.sign(net.norm(sums, np.ones(7)))], axes=[2, 3], keepdims=0)

    proto = network({"shape": (1, 5, 6, 7), "nodes": nodes, "out": (1, 7)})
    compare(source_of(proto, tmp_path), proto, None, 1e-6)


def test_a_residual_sum_of_floats_is_added_as_floats(tmp_path: Path) -> None:
    """Bi-Real: batch norm's output goes on as a float beside its sign."""

    def nodes(net: Net, x: str) -> str:
        start = net.norm(net.binary_conv(net.sign(x), 4, 6, 3), np.abs(GAMMAS) + 0.5)
        more = net.norm(net.binary_conv(net.sign(start), 6, 6, 3, pads=[1, 1, 1, 1]), GAMMAS)
        both = net.node("Add", [start, more])
        return net.node("Flatten", [net.binary_conv(net.sign(both), 6, 3, 4)])

    proto = network({"shape": (1, 4, 6, 6), "nodes": nodes, "out": (1, 3)})
    compare(source_of(proto, tmp_path), proto, None, 1e-6)


REFUSED = {
    "float weights": (
        lambda net, x: net.node("Flatten", [net.node("Conv", [net.sign(x), net.weight("w", 3, 4, 6, 6)])]),
        "its weights take 144 values in output channel 0 and lie on no grid of 8 bits",
    ),
    "a float input to a layer": (
        lambda net, x: net.node("Flatten", [net.binary_conv(net.node("Relu", [x]), 4, 3, 6)]),
        "its input is not quantized",
    ),
    "groups": (
        lambda net, x: net.node("Flatten", [net.binary_conv(net.sign(x), 2, 4, 6, group=2)]),
        "grouped convolutions have no operator in a plan",
    ),
    "up and down": (
        lambda net, x: net.node(
            "Flatten",
            [net.binary_conv(net.sign(net.node("Abs", [net.binary_conv(net.sign(x), 4, 4, 1)])), 4, 3, 6)],
        ),
        None,
    ),
}


@pytest.mark.parametrize("case", [name for name, entry in REFUSED.items() if entry[1]])
def test_what_no_plan_holds_is_named_with_its_layer(case: str, tmp_path: Path) -> None:
    nodes, why = REFUSED[case]
    out = 4 if case == "groups" else 3
    graph = source_of(network({"shape": (1, 4, 6, 6), "nodes": nodes, "out": (1, out)}), tmp_path)
    with pytest.raises(BadInput) as refused:
        native.plans(graph)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_sign_of_zero_is_a_third_level_only_where_a_sum_can_be_zero(tmp_path: Path) -> None:
    def nodes(channels: int) -> Any:
        def build(net: Net, x: str) -> str:
            sums = net.binary_conv(net.sign(x), channels, 4, 1)
            return net.node("Flatten", [net.binary_conv(net.node("Sign", [sums]), 4, 3, 6)])

        return build

    for channels, coding in ((3, plan.BIPOLAR), (4, plan.TERNARY)):
        proto = network({"shape": (1, channels, 6, 6), "nodes": nodes(channels), "out": (1, 3)})
        graph = source_of(proto, tmp_path)
        (stage,) = native.plans(graph)
        codings = [tensor.coding for tensor in stage.plan.tensors if tensor.type == plan.BITS]
        assert codings[-1] == coding
        compare(graph, proto, None, 0.0)


def test_a_network_of_floats_is_not_taken_for_a_binary_one(tmp_path: Path) -> None:
    proto = network({"shape": (1, 4, 6, 6), "nodes": REFUSED["float weights"][0], "out": (1, 3)})
    path = tmp_path / "float.onnx"
    path.write_bytes(proto.SerializeToString())
    assert not is_binary(load(path).graph)
    proto = binary_network(1, weights=["w1"])
    path.write_bytes(proto.SerializeToString())
    assert is_binary(load(path).graph)


def test_a_product_of_two_tensors_makes_no_copy_to_see_that_a_network_is_not_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nodes(net: Net, x: str) -> str:
        return net.node("MatMul", [x, net.node("Transpose", [net.node("Relu", [x])], perm=[1, 0])])

    path = tmp_path / "attention.onnx"
    path.write_bytes(network({"shape": (1, 4), "nodes": nodes, "out": (1, 1)}).SerializeToString())
    monkeypatch.setattr("edgekit.host.pack_plan.as_plan_source", None)
    assert not is_binary(load(path).graph)


def test_bytes_in_channels_last_order_are_read_as_they_lie(tmp_path: Path) -> None:
    def nodes(net: Net, x: str) -> str:
        image = net.node("Transpose", [net.node("Cast", [x], to=TensorProto.FLOAT)], perm=[0, 3, 1, 2])
        bits = net.sign(net.binary_conv(image, 3, 4, 3))
        return net.node("Flatten", [net.binary_conv(bits, 4, 3, 4)])

    proto = network({"shape": (1, 6, 6, 3), "nodes": nodes, "out": (1, 3)})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    helper.set_model_props(proto, {"edgekit.input": '{"name": "x", "layout": "NHWC"}'})
    compare(source_of(proto, tmp_path), proto, None, 0.0)


def test_bits_that_two_readers_threshold_alike_are_made_once_and_handed_on_as_bits(tmp_path: Path) -> None:
    """One reader pools them for an exit, the other is the next layer."""
    net = Net(3, 13)
    bits = net.sign(net.norm(net.binary_conv(net.sign("x"), 3, 6, 3), GAMMAS))
    pooled = net.node("MaxPool", [bits], kernel_shape=[2, 2], strides=[2, 2])
    early = net.node("Flatten", [net.binary_conv(pooled, 6, 4, 3)])
    late = net.node("Flatten", [net.binary_conv(net.sign(net.binary_conv(bits, 6, 6, 3)), 6, 4, 4)])
    proto = net.model([(early, (1, 4)), (late, (1, 4))], [("x", (1, 3, 8, 8))], exits=[early, late])
    graph = source_of(proto, tmp_path)
    if len(graph.exits) == 1:
        helper.set_model_props(
            proto, {"edgekit.exits": json.dumps([{"name": n, "output": n} for n in (early, late)])}
        )
        graph = source_of(proto, tmp_path)
    first, second = native.plans(graph)
    handed = [tensor for tensor in second.inputs if tensor.name.startswith("stage")]
    assert [tensor.dtype for tensor in handed] == ["uint8"]
    made = [step for step in first.plan.operators if step.kind == plan.LINEAR]
    assert isinstance(made[0].of, plan.Linear)
    assert made[0].of.epilogue == plan.THRESHOLDS
    compare(graph, proto, None, 1e-6)


@pytest.mark.parametrize("always", [0.25, -0.25])
def test_a_tensor_that_is_always_one_value_can_be_padded_with_its_opposite(
    always: float, tmp_path: Path
) -> None:
    """All gammas 0: a bit never changes; what the border holds never occurs inside."""

    def nodes(net: Net, x: str) -> str:
        sums = net.binary_conv(net.sign(x), 3, 6, 1)
        level = net.node("Clip", [net.node("Mul", [sums, net.const(np.array(0.0, np.float32))])])
        bits = net.node("Mul", [net.sign(level), net.const(np.array(always, np.float32))])
        sizes = net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        padded = net.node("Pad", [bits, sizes, net.const(np.array(-always, np.float32))])
        last = net.sign(net.binary_conv(padded, 6, 6, 3))
        return net.node("Flatten", [net.binary_conv(last, 6, 3, 4)])

    proto = network({"shape": (1, 3, 4, 4), "nodes": nodes, "out": (1, 3)})
    compare(source_of(proto, tmp_path), proto, None, 0.0)


def test_bits_that_are_negated_stand_for_their_opposites_in_sums_of_layers(tmp_path: Path) -> None:
    def nodes(net: Net, x: str) -> str:
        turned = net.node("Neg", [net.sign(x)])
        wide = net.binary_conv(turned, 3, 6, 3, pads=[1, 1, 1, 1])
        both = net.node("Add", [wide, net.binary_conv(turned, 3, 6, 1)])
        pooled = net.node("MaxPool", [net.sign(net.norm(both, GAMMAS))], kernel_shape=[2, 2], strides=[2, 2])
        return net.node("Flatten", [net.binary_conv(net.node("Neg", [pooled]), 6, 3, 2)])

    proto = network({"shape": (1, 3, 4, 4), "nodes": nodes, "out": (1, 3)})
    compare(source_of(proto, tmp_path), proto, None, 1e-6, count=12)
