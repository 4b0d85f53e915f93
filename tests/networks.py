"""Small ONNX networks for tests, with random weights of a seed, and data for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
SIDE, CLASSES = 12, 5
Shape = Sequence[int | str]


class Builder:
    """Collects nodes and weights; every method gives the name of the tensor it makes."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        value = self.random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        return self.constant(name, value)

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], f"n_{name}", **attributes))
        return name

    def conv(
        self,
        x: str,
        name: str,
        wide: tuple[int, int],
        kernel: int = 3,
        stride: int = 1,
        group: int = 1,
        relu: bool = True,
    ) -> str:
        inputs = [
            x,
            self.weight(f"{name}_w", wide[1], wide[0] // group, kernel, kernel),
            self.weight(f"{name}_b", wide[1]),
        ]
        pads = [kernel // 2] * 4
        made = self.op(
            "Conv",
            inputs,
            f"{name}_y" if relu else name,
            kernel_shape=[kernel] * 2,
            pads=pads,
            strides=[stride] * 2,
            group=group,
        )
        return self.op("Relu", [made], name) if relu else made

    def head(self, x: str, name: str, channels: int, classes: int = CLASSES) -> str:
        pooled = self.op("GlobalAveragePool", [x], f"{name}_pool")
        flat = self.op("Flatten", [pooled], f"{name}_flat")
        return self.op(
            "Gemm",
            [flat, self.weight(f"{name}_w", channels, classes), self.weight(f"{name}_b", classes)],
            name,
        )

    def model(
        self,
        outputs: Sequence[tuple[str, Shape]],
        inputs: Sequence[tuple[str, Shape]] = (("x", (1, 3, SIDE, SIDE)),),
        exits: Sequence[str] | None = None,
        **metadata: Any,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs],
            [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs],
            self.weights,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        if exits is not None:
            metadata["exits"] = [{"name": name, "output": name} for name in exits]
        helper.set_model_props(made, {f"edgekit.{key}": json.dumps(value) for key, value in metadata.items()})
        return made


def three_exits(seed: int = 0, opset: int = 17, channels: int = 8) -> onnx.ModelProto:
    """Three stages; a skip connection crosses the second stage into the third."""
    b = Builder(seed, opset)
    a1 = b.conv("x", "a1", (3, channels))
    a2 = b.conv(a1, "a2", (channels, channels))
    b.head(b.conv(a2, "h1", (channels, channels), stride=2), "exit1", channels)
    b1 = b.conv(a2, "b1", (channels, channels), relu=False)
    b2 = b.op("Relu", [b.op("Add", [b1, a2], "b_sum")], "b2")
    b.head(b2, "exit2", channels)
    c1 = b.conv(b2, "c1", (channels, channels), relu=False)
    c2 = b.op("Relu", [b.op("Add", [c1, a1], "c_sum")], "c2")
    b.head(c2, "exit3", channels)
    names = ("exit1", "exit2", "exit3")
    return b.model([(name, (1, CLASSES)) for name in names], exits=names)


def depthwise(seed: int = 0) -> onnx.ModelProto:
    """A step of MobileNet, its classes behind a softmax."""
    b = Builder(seed)
    x = b.conv("x", "stem", (3, 8), stride=2)
    x = b.conv(x, "deep", (8, 8), group=8)
    x = b.conv(x, "wide", (8, 16), kernel=1)
    b.op("Softmax", [b.head(x, "logits", 16)], "probs", axis=1)
    return b.model([("probs", (1, CLASSES))])


def probabilities_and_maps(seed: int = 0) -> onnx.ModelProto:
    """Three exits: a class vector with image axes, one with softmax in the network, and plain logits."""
    b = Builder(seed)
    x = b.conv("x", "stem", (3, 8), stride=2)
    b.op("GlobalAveragePool", [b.conv(x, "c", (8, CLASSES))], "cube")
    y = b.conv(x, "wide", (8, 16), kernel=1)
    b.op("Softmax", [b.head(y, "logits", 16)], "probs", axis=1)
    b.head(b.conv(y, "last", (16, 16)), "y", 16)
    shapes = {"cube": (1, CLASSES, 1, 1), "probs": (1, CLASSES), "y": (1, CLASSES)}
    return b.model(list(shapes.items()), exits=tuple(shapes))


def concat_and_pool(seed: int = 0) -> onnx.ModelProto:
    """Two branches, their concatenation, pooling."""
    b = Builder(seed)
    left, right = b.conv("x", "left", (3, 4)), b.conv("x", "right", (3, 4), kernel=1)
    x = b.op("Concat", [left, right], "both", axis=1)
    x = b.op("MaxPool", [x], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    b.head(b.conv(x, "last", (8, 8)), "y", 8)
    return b.model([("y", (1, CLASSES))])


def batch_norm(seed: int = 0) -> onnx.ModelProto:
    """Convolutions with batch normalisation of their own."""
    b = Builder(seed)
    x = b.conv("x", "c", (3, 8), relu=False)
    stats = [
        b.constant(f"bn_{name}", b.random.uniform(0.5, 1.5, 8).astype(np.float32))
        for name in ("s", "b", "m", "v")
    ]
    x = b.op("Relu", [b.op("BatchNormalization", [x, *stats], "bn")], "r")
    b.head(x, "y", 8)
    return b.model([("y", (1, CLASSES))])


def perceptron(seed: int = 0) -> onnx.ModelProto:
    """MatMul and Add, as other exporters write dense layers."""
    b = Builder(seed)
    x = b.op("MatMul", ["x", b.weight("w1", 16, 32)], "m1")
    x = b.op("Relu", [b.op("Add", [x, b.weight("b1", 32)], "s1")], "r1")
    x = b.op("MatMul", [x, b.weight("w2", 32, CLASSES)], "m2")
    b.op("Add", [x, b.weight("b2", CLASSES)], "y")
    return b.model([("y", (1, CLASSES))], [("x", (1, 16))])


def channels_last(seed: int = 0) -> onnx.ModelProto:
    """An image whose channels come last, and a layout change inside."""
    b = Builder(seed)
    x = b.op("Transpose", ["x"], "t", perm=[0, 3, 1, 2])
    b.head(b.conv(x, "c", (3, 8)), "y", 8)
    return b.model([("y", (1, CLASSES))], [("x", (1, SIDE, SIDE, 3))])


def image_out(seed: int = 0) -> onnx.ModelProto:
    """No classes: a map comes out."""
    b = Builder(seed)
    x = b.conv("x", "c", (3, 4))
    b.op("ConvTranspose", [x, b.weight("up_w", 4, 2, 2, 2)], "y", kernel_shape=[2, 2], strides=[2, 2])
    return b.model([("y", (1, 2, 2 * SIDE, 2 * SIDE))])


NETWORKS: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    maker.__name__: maker
    for maker in (three_exits, depthwise, concat_and_pool, batch_norm, perceptron, channels_last, image_out)
}


def save(model: onnx.ModelProto, path: Path) -> Path:
    """The model as a file."""
    path.write_bytes(model.SerializeToString())
    return path


def write_data(
    path: Path, shape: Sequence[int], count: int = 40, seed: int = 0, classes: int | None = None
) -> Path:
    """Random inputs of the shape (batch left out); labels where `classes` says so."""
    random = np.random.default_rng(seed)
    arrays = {"x": random.normal(size=(count, *shape)).astype(np.float32)}
    if classes is not None:
        arrays["y"] = random.integers(0, classes, count)
    np.savez(path, **arrays)
    return path
