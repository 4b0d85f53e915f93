"""Time every node of a graph with onnxruntime's own profiler, on this machine, one thread. Decides nothing."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.host.graph import Graph, model_bytes
from edgekit.host.ort import profiled_session
from edgekit.host.sqnr import spread
from edgekit.host.work import MACS
from edgekit.runtime.backends import Array
from edgekit.runtime.data import Data

RUNS = 40
_LIMIT_MS = 1500.0  # a slow network is timed with fewer runs
_WARM_UP = 3
_KERNEL = "_kernel_time"
_FOLLOWS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Add", "Sum", "BatchNormalization")
_BLOCKED = "_nchwc"
_RENAMED = re.compile(r"(_nchwc|_token_\d+|_quant|_transposed)+$")  # endings that onnxruntime's rewrites add
_OVERHEAD_MS = 0.001  # what the profiler itself adds to a node, about: seen as the least of any
_SIZES = (1024, 262_144)  # values that are rounded to codes and back, to time it


def node_times(graph: Graph, data: Data, runs: int = RUNS) -> Mapping[str, float]:
    """Node name -> mean ms of its kernel. A node that was fused into another is not listed: that one's time holds it.

    What onnxruntime puts in by itself (layout changes, codes) appears under the name it gives it.
    """
    return times_of(model_bytes(graph.model), [data.inputs(index) for index in spread(data.count, 8)], runs)


def times_of(content: bytes, samples: list[dict[str, Array]], runs: int = RUNS) -> dict[str, float]:
    """The same for a model's bytes and its inputs."""
    model = onnx.load_model_from_string(content)
    makers = {
        name: node.name for node in model.graph.node for name in node.output
    }  # blocked kernels go by tensors
    nodes = set(makers.values())
    times: dict[str, float] = {}
    for name, ms in _profile(content, samples, runs).items():
        plain = _RENAMED.sub("", name)
        by_tensor = name.endswith(_BLOCKED) or plain not in nodes
        node = makers.get(plain, plain) if by_tensor else plain
        times[node] = times.get(node, 0.0) + ms
    return _at_products(model, times)


def _at_products(model: onnx.ModelProto, times: dict[str, float]) -> dict[str, float]:
    """A kernel that computes a product and what follows it may go by the last node's name: give it to the product."""
    maker = {name: node for node in model.graph.node for name in node.output}
    moved = dict(times)
    for node in model.graph.node:
        if node.name not in times or node.op_type not in _FOLLOWS:
            continue
        behind = [maker[name] for name in node.input if name in maker]
        while behind:
            source = behind.pop(0)
            if source.name in times:
                continue
            if source.op_type in MACS:
                moved[source.name] = moved.pop(node.name)
                break
            if source.op_type in _FOLLOWS:
                behind += [maker[name] for name in source.input if name in maker]
    return moved


@functools.cache
def rounding_ms() -> tuple[float, float]:
    """(ms a call, ms a value) of turning floats to 8-bit codes, or back: the mean of both."""
    calls = []
    for size in _SIZES:
        found = _profile(_round_trip(size), [{"x": np.ones((1, size), np.float32)}], RUNS)
        calls.append(sum(found.values()) / 2)
    each = max(0.0, (calls[1] - calls[0]) / (_SIZES[1] - _SIZES[0]))
    return max(0.0, calls[0] - each * _SIZES[0]), each


def _profile(content: bytes, samples: list[dict[str, Array]], runs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        session = profiled_session(content, Path(folder))
        spent, done = 0.0, 0
        while done < _WARM_UP + runs and (spent < _LIMIT_MS or done < _WARM_UP + 1):
            session.run(None, samples[done % len(samples)])
            spent, done = spent + session.last_ms, done + 1
        events = json.loads(session.end().read_text())
    rows: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            rows.setdefault(event["name"].removesuffix(_KERNEL), []).append(event["dur"] / 1e3)
    return {name: max(0.0, _typical(row[_WARM_UP:] or row) - _OVERHEAD_MS) for name, row in rows.items()}


def _typical(row: list[float]) -> float:
    """The mean without the disturbed fifth: the clock's microsecond is too coarse for a median."""
    kept = np.sort(np.array(row))[: max(1, int(0.8 * len(row)))]
    return float(kept.mean())


def _round_trip(size: int) -> bytes:
    """A model that rounds `size` floats and reads them back."""
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.01])
    zero = helper.make_tensor("z", TensorProto.UINT8, [], [3])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("Reshape", ["q", "shape"], ["r"], name="r"),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"], name="d"),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [size])
    graph = helper.make_graph(
        nodes,
        "round",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size])],
        [scale, zero, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
