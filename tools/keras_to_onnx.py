#!/usr/bin/env python3
"""Write a Keras network (.h5: its configuration and its weights) as one ONNX file. A script: never imported.

    python tools/keras_to_onnx.py model.h5 model.onnx [--compare model.tflite]

Needs no TensorFlow: numpy, onnx and h5py. The ONNX network keeps the Keras input (NHWC, batch 1) and does as common
exporters do: one Transpose to NCHW at the start, batch normalizations left as nodes, a Transpose back before a Flatten
that has more than one position. Layers it does not know are named, and nothing is written. --compare runs both
on the same seeded inputs (needs onnxruntime and ai-edge-litert) and prints how far apart they are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Layer = Mapping[str, Any]
OPSET, IR_VERSION = 17, 8
COMPARED = 64


class CannotConvert(ValueError):
    """What this script does not know how to say in ONNX; the text names the layer."""


@dataclass(frozen=True)
class Value:
    """A tensor being built: its ONNX name, and its shape as Keras sees it, without the batch.

    Of three dimensions (height, width, channels) it is NCHW in ONNX; else it is as in Keras.
    """

    name: str
    shape: tuple[int, ...]


@dataclass
class Network:
    """The nodes and weights so far."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """One node with one output, which is its name's."""
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}:0"], name, **attributes))
        return f"{name}:0"

    def weight(self, name: str, value: Array) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def same_padding(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> list[int]:
    """TensorFlow's SAME in ONNX's order (begins, then ends): the odd row goes to the end."""
    total = [
        max((math.ceil(have / step) - 1) * step + extent - have, 0)
        for have, extent, step in zip(size, window, stride, strict=True)
    ]
    return [each // 2 for each in total] + [each - each // 2 for each in total]


def activation(net: Network, layer: Layer, value: Value, kind: str) -> Value:
    """Append what a Keras activation's name stands for; "linear" is nothing."""
    name = layer["name"]
    if kind == "linear":
        return value
    if kind == "softmax":
        if len(value.shape) != 1:
            raise CannotConvert(f"layer {name}: softmax over an image is not known to this script")
        return Value(net.add("Softmax", f"{name}/softmax", [value.name], axis=-1), value.shape)
    known = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
    if kind not in known:
        raise CannotConvert(
            f"layer {name}: activation {kind!r} is not one of linear, softmax, {', '.join(known)}"
        )
    return Value(net.add(known[kind], f"{name}/{kind}", [value.name]), value.shape)


def windows(
    layer: Layer, value: Value, window: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1)
) -> tuple[list[int], tuple[int, int]]:
    """ONNX's pads, and the height and width that come out."""
    name, padding = layer["name"], layer["config"]["padding"]
    if len(value.shape) != 3 or layer["config"].get("data_format", "channels_last") != "channels_last":
        raise CannotConvert(f"layer {name}: wanted an input of (height, width, channels), got {value.shape}")
    extent = [1 + (size - 1) * step for size, step in zip(window, dilation, strict=True)]
    if padding == "same":
        pads = same_padding(value.shape[:2], extent, stride)
    elif padding == "valid":
        pads = [0, 0, 0, 0]
    else:
        raise CannotConvert(f"layer {name}: padding {padding!r} is neither same nor valid")
    height, width = (
        (value.shape[axis] + pads[axis] + pads[axis + 2] - extent[axis]) // stride[axis] + 1
        for axis in (0, 1)
    )
    return pads, (height, width)


def conv(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    config, value, name = layer["config"], values[0], layer["name"]
    kernel = weights["kernel"]  # height, width, in/group, out
    stride, dilation = config["strides"], config["dilation_rate"]
    pads, (height, width) = windows(layer, value, kernel.shape[:2], stride, dilation)
    inputs = [value.name, net.weight(f"{name}/kernel", kernel.transpose(3, 2, 0, 1))]
    if config["use_bias"]:
        inputs.append(net.weight(f"{name}/bias", weights["bias"]))
    out = net.add(
        "Conv",
        name,
        inputs,
        kernel_shape=kernel.shape[:2],
        strides=stride,
        pads=pads,
        dilations=dilation,
        group=config.get("groups", 1),
    )
    return activation(net, layer, Value(out, (height, width, kernel.shape[3])), config["activation"])


def depthwise(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    config, value, name = layer["config"], values[0], layer["name"]
    kernel = weights["depthwise_kernel"]  # height, width, in, multiplier
    stride, dilation = config["strides"], config["dilation_rate"]
    pads, (height, width) = windows(layer, value, kernel.shape[:2], stride, dilation)
    count = kernel.shape[2] * kernel.shape[3]
    flat = kernel.reshape(*kernel.shape[:2], count).transpose(2, 0, 1)[:, None]
    inputs = [value.name, net.weight(f"{name}/depthwise_kernel", flat)]
    if config["use_bias"]:
        inputs.append(net.weight(f"{name}/bias", weights["bias"]))
    out = net.add(
        "Conv",
        name,
        inputs,
        kernel_shape=kernel.shape[:2],
        strides=stride,
        pads=pads,
        dilations=dilation,
        group=kernel.shape[2],
    )
    return activation(net, layer, Value(out, (height, width, count)), config["activation"])


def temporal(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    """TENet's multi-scale temporal convolution; with one scale it is a depthwise convolution along the time axis."""
    config = layer["config"]
    if len(config["scales"]) != 1:
        raise CannotConvert(f"layer {layer['name']}: more than one scale {config['scales']}")
    plain = {
        "strides": (config["stride"], 1),
        "dilation_rate": (1, 1),
        "padding": "same",
        "use_bias": False,
        "activation": "linear",
    }
    return depthwise(net, {**layer, "config": plain}, weights, values)


def dense(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    config, value, name = layer["config"], values[0], layer["name"]
    if len(value.shape) != 1:
        raise CannotConvert(f"layer {name}: Dense over {value.shape} is not known to this script; flatten it")
    inputs = [value.name, net.weight(f"{name}/kernel", weights["kernel"])]
    if config["use_bias"]:
        inputs.append(net.weight(f"{name}/bias", weights["bias"]))
    out = Value(net.add("Gemm", name, inputs), (weights["kernel"].shape[1],))
    return activation(net, layer, out, config["activation"])


def normalization(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    config, value, name = layer["config"], values[0], layer["name"]
    mean = weights["moving_mean"]
    parts = {
        "gamma": weights["gamma"] if config["scale"] else np.ones_like(mean),
        "beta": weights["beta"] if config["center"] else np.zeros_like(mean),
        "moving_mean": mean,
        "moving_variance": weights["moving_variance"],
    }
    inputs = [value.name, *(net.weight(f"{name}/{key}", part) for key, part in parts.items())]
    return Value(net.add("BatchNormalization", name, inputs, epsilon=config["epsilon"]), value.shape)


def pool(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    config, value = layer["config"], values[0]
    pads, (height, width) = windows(layer, value, config["pool_size"], config["strides"])
    shared = {"kernel_shape": config["pool_size"], "strides": config["strides"], "pads": pads}
    if layer["class_name"] == "MaxPooling2D":
        out = net.add("MaxPool", layer["name"], [value.name], **shared)
    else:
        out = net.add("AveragePool", layer["name"], [value.name], count_include_pad=0, **shared)
    return Value(out, (height, width, value.shape[2]))


def global_pool(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    value, name = values[0], layer["name"]
    if layer["config"].get("keepdims"):
        raise CannotConvert(f"layer {name}: keepdims is not known to this script")
    out = net.add("GlobalAveragePool", f"{name}/mean", [value.name])
    return Value(net.add("Flatten", name, [out], axis=1), value.shape[2:])


def zero_padding(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    value, name = values[0], layer["name"]
    (top, bottom), (left, right) = layer["config"]["padding"]
    pads = net.weight(f"{name}/pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    height, width, channels = value.shape
    return Value(
        net.add("Pad", name, [value.name, pads]), (height + top + bottom, width + left + right, channels)
    )


def add(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    total = values[0]
    for number, other in enumerate(values[1:]):
        if other.shape != total.shape:
            raise CannotConvert(f"layer {layer['name']}: adds {total.shape} and {other.shape}")
        name = layer["name"] if number == 0 else f"{layer['name']}/{number}"
        total = Value(net.add("Add", name, [total.name, other.name]), total.shape)
    return total


def named_activation(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    return activation(net, layer, values[0], layer["config"]["activation"])


def relu(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    config, value, name = layer["config"], values[0], layer["name"]
    if config.get("negative_slope") or config.get("threshold"):
        raise CannotConvert(f"layer {name}: a ReLU with a slope or a threshold is not known to this script")
    limit = config.get("max_value")
    if limit is None:
        return Value(net.add("Relu", name, [value.name]), value.shape)
    bounds = [net.weight(f"{name}/{key}", np.float32(bound)) for key, bound in (("min", 0), ("max", limit))]
    return Value(net.add("Clip", name, [value.name, *bounds]), value.shape)


def to_nhwc(net: Network, name: str, value: Value) -> str:
    """The tensor in Keras's order of elements: only where there is an order to change."""
    if len(value.shape) == 3 and math.prod(value.shape[:2]) > 1:
        return net.add("Transpose", f"{name}/nhwc", [value.name], perm=[0, 2, 3, 1])
    return value.name


def flatten(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    value, name = values[0], layer["name"]
    out = net.add("Flatten", name, [to_nhwc(net, name, value)], axis=1)
    return Value(out, (math.prod(value.shape),))


def reshape(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    value, name = values[0], layer["name"]
    shape = tuple(layer["config"]["target_shape"])
    if min(shape) < 1 or math.prod(shape) != math.prod(value.shape):
        raise CannotConvert(f"layer {name}: reshapes {value.shape} to {shape}")
    size = net.weight(f"{name}/shape", np.array([1, *shape], np.int64))
    out = net.add("Reshape", name, [to_nhwc(net, name, value), size])
    if len(shape) == 3:
        out = net.add("Transpose", f"{name}/nchw", [out], perm=[0, 3, 1, 2])
    return Value(out, shape)


def nothing(net: Network, layer: Layer, weights: Mapping[str, Array], values: list[Value]) -> Value:
    """Dropout when the network is used, not trained."""
    return values[0]


Writer = Callable[[Network, Layer, Mapping[str, Array], list[Value]], Value]
LAYERS: dict[str, Writer] = {
    "Activation": named_activation,
    "Add": add,
    "AveragePooling2D": pool,
    "BatchNormalization": normalization,
    "Conv2D": conv,
    "Dense": dense,
    "DepthwiseConv2D": depthwise,
    "Dropout": nothing,
    "Flatten": flatten,
    "GlobalAveragePooling2D": global_pool,
    "MaxPooling2D": pool,
    "MultiScaleTemporalConvolution": temporal,
    "ReLU": relu,
    "Reshape": reshape,
    "ZeroPadding2D": zero_padding,
}


def layers_in_order(config: Mapping[str, Any]) -> tuple[list[tuple[Layer, list[str]]], str]:
    """(each layer and the names of the layers it reads, the layer that gives the output)."""
    layers = config["config"]["layers"]
    if config["class_name"] == "Sequential":
        if not layers or layers[0]["class_name"] != "InputLayer":
            first = layers[0]["config"] if layers else {}
            if "batch_input_shape" not in first:
                raise CannotConvert("the network does not say the shape of its input")
            entry = {
                "class_name": "InputLayer",
                "config": {"name": "input", "batch_input_shape": first["batch_input_shape"]},
            }
            layers = [entry, *layers]
        named = [{**layer, "name": layer["config"]["name"]} for layer in layers]
        reads: list[list[str]] = [[], *([layer["name"]] for layer in named[:-1])]
        return list(zip(named, reads, strict=True)), named[-1]["name"]
    outputs = config["config"]["output_layers"]
    if len(outputs) != 1 or len(config["config"]["input_layers"]) != 1:
        raise CannotConvert("the network has several inputs or outputs")
    waiting = {layer["name"]: layer for layer in layers}
    ordered: list[tuple[Layer, list[str]]] = []
    done: set[str] = set()
    while waiting:
        ready = []
        for name, layer in waiting.items():
            inbound = layer["inbound_nodes"]
            if len(inbound) > 1:
                raise CannotConvert(f"layer {name} is used {len(inbound)} times")
            read = [each[0] for each in inbound[0]] if inbound else []
            if done.issuperset(read):
                ready.append((layer, read))
        if not ready:
            raise CannotConvert(f"layers {', '.join(waiting)} read what no layer gives")
        for layer, read in ready:
            ordered.append((layer, read))
            done.add(layer["name"])
            del waiting[layer["name"]]
    return ordered, outputs[0][0]


def to_onnx(config: Mapping[str, Any], weights: Mapping[str, Mapping[str, Array]]) -> onnx.ModelProto:
    """The network as ONNX. config: Keras's model_config; weights: layer name -> weight name -> array.

    Raises CannotConvert, naming the layer.
    """
    ordered, last = layers_in_order(config)
    net = Network()
    values: dict[str, Value] = {}
    graph_input = None
    for layer, reads in ordered:
        name, kind = layer["name"], layer["class_name"]
        if kind == "InputLayer":
            if graph_input is not None:
                raise CannotConvert("the network has several inputs")
            shape = tuple(layer["config"]["batch_input_shape"][1:])
            graph_input = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape])
            start = name
            if len(shape) == 3:
                start = net.add("Transpose", f"{name}/nchw", [name], perm=[0, 3, 1, 2])
            values[name] = Value(start, shape)
            continue
        if kind not in LAYERS:
            raise CannotConvert(
                f"layer {name}: {kind} is not known to this script (it knows {', '.join(LAYERS)})"
            )
        try:
            values[name] = LAYERS[kind](net, layer, weights.get(name, {}), [values[read] for read in reads])
        except KeyError as err:
            raise CannotConvert(f"layer {name}: {kind} lacks {err}") from err
    if graph_input is None:
        raise CannotConvert("the network has no input layer")
    out = values[last]
    net.add("Identity", "output", [to_nhwc(net, "output", out)])
    net.nodes[-1].output[0] = "output"
    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, *out.shape])
    graph = helper.make_graph(
        net.nodes, config["config"].get("name", "keras"), [graph_input], [result], net.weights
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="keras_to_onnx",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def read_h5(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Array]]]:
    """(the configuration, layer name -> weight name -> array) of a Keras .h5 file. Raises OSError, CannotConvert."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as err:
        raise CannotConvert(f"{err}; reading {path.name} needs: pip install h5py") from err
    weights: dict[str, dict[str, Array]] = {}
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs or "model_weights" not in file:
            raise CannotConvert(f"{path}: not a whole Keras network (it has no model_config or no weights)")
        text = file.attrs["model_config"]
        for layer, group in file["model_weights"].items():
            found = {}
            for raw in group.attrs["weight_names"]:
                full = raw.decode() if isinstance(raw, bytes) else str(raw)
                found[full.rpartition("/")[2].partition(":")[0]] = np.asarray(group[full])
            weights[layer] = found
    return json.loads(text), weights


def compare(model: onnx.ModelProto, tflite: Path, low: float, high: float, seed: int = 1) -> str:
    """One line: how far the ONNX network is from the .tflite on COMPARED seeded inputs.

    low, high: the input's range where the .tflite takes floats; one that takes int8 says its range itself. The inputs
    are blocks of 4 equal steps with noise on them, so that they have the large areas that real inputs have.
    """
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    interpreter = Interpreter(str(tflite))
    interpreter.allocate_tensors()
    entry, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = entry["quantization"] if entry["dtype"] == np.int8 else ((high - low) / 255, 0.0)
    if entry["dtype"] != np.int8:
        zero = -128 - low / scale
    random = np.random.default_rng(seed)
    shape = tuple(int(each) for each in entry["shape"])
    worst, total, agreed = 0.0, 0.0, 0
    for _ in range(COMPARED):
        coarse = random.uniform(-110, 110, [-(-each // 4) for each in shape[1:]])
        for axis, each in enumerate(shape[1:]):
            coarse = np.take(np.repeat(coarse, 4, axis), np.arange(each), axis)
        steps = np.clip(np.round(coarse + random.normal(0, 8, shape)), -128, 127)
        x = ((steps - zero) * scale).astype(np.float32)
        interpreter.set_tensor(entry["index"], x if entry["dtype"] == np.float32 else steps.astype(np.int8))
        interpreter.invoke()
        theirs = interpreter.get_tensor(result["index"]).astype(np.float32)
        if result["dtype"] == np.int8:
            theirs = (theirs - result["quantization"][1]) * result["quantization"][0]
        ours = session.run(None, {session.get_inputs()[0].name: x})[0]
        worst = max(worst, float(np.abs(ours - theirs).max()))
        total += float(np.abs(ours - theirs).mean())
        agreed += int(ours.argmax() == theirs.argmax())
    figures = f"largest difference {worst:.3g}, mean {total / COMPARED:.3g}"
    return f"{tflite.name}: {figures}, same largest output in {agreed} of {COMPARED}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("h5", type=Path)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--compare", type=Path, help="a .tflite of the same network, to be run beside it")
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        default=(-1.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="of its float inputs",
    )
    asked = parser.parse_args()
    try:
        model = to_onnx(*read_h5(asked.h5))
    except (OSError, CannotConvert) as err:
        print(f"keras_to_onnx: {asked.h5}: {err}", file=sys.stderr)
        return 2
    asked.onnx.parent.mkdir(parents=True, exist_ok=True)
    temporary = asked.onnx.with_name(f".{asked.onnx.name}.part")
    temporary.write_bytes(model.SerializeToString(deterministic=True))
    temporary.replace(asked.onnx)
    if asked.compare is not None:
        print(f"keras_to_onnx: {compare(model, asked.compare, *asked.range)}", file=sys.stderr)
    print(asked.onnx)
    return 0


if __name__ == "__main__":
    sys.exit(main())
