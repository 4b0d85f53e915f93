"""A binary network as a QONNX file: BipolarQuant on weights and activations, batch norms as they are, weights packed.

The file takes uint8 pixels and holds one bit per binary weight: ONNX's own operators unpack them, and whoever reads the
file folds them once. BipolarQuant is QONNX's (Pappalardo et al. 2022, arXiv 2206.07527): scale where x >= 0, -scale
elsewhere. As to_onnx, no wrong export leaves this module.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input
from edgekit.host.graph import model_bytes
from edgekit.host.load import load
from edgekit.host.stored import GRIDS, pack
from edgekit.host.train.quantized import exported_as_bipolar, quantized_layers
from edgekit.host.train.quantizers.base import OPERATOR
from edgekit.host.train.to_onnx import export

_COMPARED = 8  # random inputs
_SMALLEST = 64  # weights: fewer are left as floats


def to_qonnx(
    module: nn.Module,
    image: Input,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    samples: NDArray[Any] | None = None,
) -> bytes:
    """The module, in evaluation mode, as a QONNX file for one image of uint8 pixels, our metadata in it.

    module: takes pixels 0-255 as floats [N, ...], gives scores per exit. image: its input, uint8 with batch 1 and, if
    any, preprocessing that changes no pixel. names, samples: as in to_onnx. Raises BadInput where the module cannot be
    exported, or the file, read by host/load.py and run in onnxruntime, gives other answers than the module.
    """
    shape = image.tensor.shape
    if shape[0] != 1 or image.tensor.dtype != "uint8":
        raise BadInput(
            f"to_qonnx: wants an input of uint8 with batch 1, got {image.tensor.dtype} {list(shape)}"
        )
    random = np.random.default_rng(0)
    compared = list(random.integers(0, 256, (_COMPARED, *shape)).astype(np.uint8))
    if samples is not None:
        compared += list(np.array(samples, np.uint8).reshape(-1, *shape))
    for layer in quantized_layers(module):
        codes = layer.quantizer.codes(layer.weight)
        if codes is None or float(codes.abs().min()) != 1:
            raise BadInput(
                f"to_qonnx: wants weights of two levels, got those of {type(layer.quantizer).__name__}: use to_onnx"
            )
    with exported_as_bipolar():
        return export(module, image, labels, names, compared, _pack_weights, _as_loaded, fused=False)


def _as_loaded(content: bytes) -> bytes:
    """The file as convert reads it: with ONNX's own operators in the place of BipolarQuant."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "module.onnx"
        path.write_bytes(content)
        return model_bytes(load(path).graph.model)


# --- packing ----------------------------------------------------------------------------------------------------------


def _pack_weights(proto: onnx.ModelProto) -> None:
    """Put one bit a weight, and what unpacks them, in the place of every weight that BipolarQuant reads."""
    graph = proto.graph
    weights = {entry.name: entry for entry in graph.initializer}
    unpacking: list[onnx.NodeProto] = []
    for node in graph.node:
        found = weights.get(node.input[0]) if node.op_type == OPERATOR else None
        if found is None or np.prod(found.dims) < _SMALLEST:
            continue
        array = numpy_helper.to_array(found)
        nodes, constants = _unpacking(found.name, array)
        unpacking += nodes
        graph.initializer.extend(constants)
        graph.initializer.remove(found)
        node.input[0] = nodes[-1].output[0]
    for node in reversed(unpacking):
        graph.node.insert(0, node)


def _unpacking(name: str, weight: NDArray[np.float32]) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes and constants that make +0.5 where a weight is >= 0, else -0.5, of packed bits: only signs count."""
    packed = pack(np.where(weight >= 0, 1, -1).astype(np.int8), GRIDS["binary"])
    constants = {
        "packed": packed[:, None],
        "shifts": np.arange(8, dtype=np.uint8),
        "two": np.array([2], np.uint8),
        "half": np.array([0.5], np.float32),
        "flat": np.array([-1], np.int64),
        "start": np.array([0], np.int64),
        "end": np.array([weight.size], np.int64),
        "shape": np.array(weight.shape, np.int64),
    }
    steps: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
        ("BitShift", ("packed", "shifts"), {"direction": "RIGHT"}),
        ("Mod", ("two",), {}),
        ("Cast", (), {"to": TensorProto.FLOAT}),
        ("Sub", ("half",), {}),
    ]
    if weight.size % 8:
        steps += [("Reshape", ("flat",), {}), ("Slice", ("start", "end"), {})]
    steps.append(("Reshape", ("shape",), {}))
    nodes, value = [], ""
    for place, (operator, others, attributes) in enumerate(steps):
        inputs = [*([value] if value else []), *(f"{name}/{other}" for other in others)]
        value = f"{name}/unpack{place + 1}"
        nodes.append(helper.make_node(operator, inputs, [value], value, **attributes))
    read = {entry.removeprefix(f"{name}/") for node in nodes for entry in node.input}
    made = [
        numpy_helper.from_array(np.ascontiguousarray(array), f"{name}/{key}")
        for key, array in constants.items()
        if key in read
    ]
    return nodes, made
