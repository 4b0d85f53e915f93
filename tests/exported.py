"""A PyTorch module as the converter sees it once it is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.core.manifest import Input, Tensor
from edgekit.host.load import load
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.work import layers


def parameters_and_macs(module: Any, channels: int, side: int, folder: Path) -> tuple[int, int]:
    """Its parameters, and the MACs that the converter counts in the file exported for square images."""
    from edgekit.host.train.to_onnx import to_onnx  # torch: only for tests that have it

    file = folder / "module.onnx"
    image = Input(Tensor("image", "float32", (1, channels, side, side)), "NCHW", None)
    file.write_bytes(to_onnx(module, image))
    graph = fold(load(file).graph, NoOptions(), Context())
    return sum(value.numel() for value in module.parameters()), sum(
        layer.macs for layer in layers(graph.model)
    )
