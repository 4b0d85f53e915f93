"""ONNX files written byte by byte: tests with a board's packages alone have large ones, too. Matrix products only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bundles import npy

from edgekit.core.bundle import Bundle, members_of, open_bundle, pack
from edgekit.core.cost import Work
from edgekit.core.manifest import (
    Exit,
    Golden,
    GoldenOutput,
    Input,
    Manifest,
    OperatingPoint,
    Part,
    Preprocess,
    Stage,
    Tensor,
)

FLOAT = 1


def varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def field(key: int, value: int | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(key << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(key << 3 | 2) + varint(len(data)) + data


def tensor_info(name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, dims)))


def products(x: str, weights: Sequence[np.ndarray], y: str) -> bytes:  # type: ignore[type-arg]
    """x @ weights[0] @ weights[1] ... = y, all float32."""
    names = [x, *(f"between{index}" for index in range(1, len(weights))), y]
    nodes, constants = b"", b""
    for index, weight in enumerate(weights):
        node = (
            field(1, names[index]) + field(1, f"w{index}") + field(2, names[index + 1]) + field(4, "MatMul")
        )
        nodes += field(1, node)
        dims = b"".join(field(1, size) for size in weight.shape)
        constants += field(5, dims + field(2, FLOAT) + field(8, f"w{index}") + field(9, weight.tobytes()))
    borders = field(11, tensor_info(x, (1, weights[0].shape[0])))
    borders += field(12, tensor_info(y, (1, weights[-1].shape[1])))
    graph = nodes + field(2, "products") + constants + borders
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))


def write_products(path: Path, weights: Sequence[np.ndarray]) -> Bundle:  # type: ignore[type-arg]
    """A bundle of one stage that multiplies by these matrices, opened."""
    x = Tensor("x", "float32", (1, weights[0].shape[0]))
    y = Tensor("y", "float32", (1, weights[-1].shape[1]))
    content = products("x", weights, "y")
    cases = np.ones((1, *x.shape), np.float32)
    files = {
        "stages/0.onnx": content,
        "golden/x.npy": npy(cases),
        "golden/y.npy": npy(np.zeros((1, *y.shape))),
    }
    files["recipe.toml"] = b'kind = "products"\n'
    part = Part("onnxruntime", "stages/0.onnx", hashlib.sha256(content).hexdigest(), (x,), (y,))
    manifest = Manifest(
        name="products",
        version=1,
        profiles=("host",),
        inputs=(Input(x, "flat", Preprocess(channels="L")),),
        labels=None,
        stages=(Stage((part,), (Work("MatMul", "float32", 1, 1, 1),)),),
        exits=(Exit("y", 0, "y", None, 1.0),),
        quality_metric="agreement",
        operating_points=(OperatingPoint((), 1.0, (1.0,), 1.0),),
        golden=Golden(1, {"x": "golden/x.npy"}, (GoldenOutput("y", 0, "golden/y.npy", 1.0),)),
        recipe="recipe.toml",
        files=members_of(files),
    )
    path.write_bytes(pack(manifest, files, {"v": 1}))
    return open_bundle(path)
