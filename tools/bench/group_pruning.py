#!/usr/bin/env python3
"""Time what group-level pruning leaves of a convolution against the whole one, in onnxruntime, in one run.

    python tools/bench/group_pruning.py

Needs the extra `train`. Prints, for each share of places that is gone, the terms of a sum, the median time of both and
their ratio; where whole channels are gone what is left is a convolution, else a gather and a matrix product.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgekit.core.manifest import Input, Tensor
from edgekit.host.graph import model_bytes
from edgekit.host.load import load
from edgekit.host.ort import OpenModel, open_model
from edgekit.host.passes.base import Context, NoOptions
from edgekit.host.passes.fold import apply as fold
from edgekit.host.train import require_torch

require_torch("tools/bench/group_pruning.py")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.host.train.group_pruning import PositionConv2d, keep_positions  # noqa: E402
from edgekit.host.train.to_onnx import to_onnx  # noqa: E402

CHANNELS, WIDTH, SIDE = 64, 128, 28
ROUNDS, RUNS = 15, 20


def opened(conv: nn.Module, folder: Path) -> OpenModel:
    """The convolution as convert would give it to onnxruntime."""
    path = folder / "conv.onnx"
    image = Input(Tensor("x", "float32", (1, CHANNELS, SIDE, SIDE)), "NCHW", None)
    path.write_bytes(to_onnx(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), image))
    return open_model(model_bytes(fold(load(path).graph, NoOptions(), Context()).model))


def once(session: OpenModel, value: np.ndarray) -> float:
    start = time.perf_counter()
    for _ in range(RUNS):
        session.run(["final"], {"x": value})
    return (time.perf_counter() - start) / RUNS * 1e3


def pruned(share: float, *, channels: bool) -> nn.Conv2d:
    """A convolution without this share of its places, or of its channels."""
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
    with torch.no_grad():
        if channels:
            conv.weight[:, : round(share * CHANNELS)] = 0
        else:
            conv.weight.mul_(keep_positions(conv.weight, share))
    return conv


def main() -> int:
    value = np.random.default_rng(0).standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    print(f"{CHANNELS} -> {WIDTH} channels, 3x3, {SIDE}x{SIDE}; medians of {ROUNDS} x {RUNS} runs")
    print(f"{'gone':>6}{'of':>10}{'terms':>8}{'whole, ms':>11}{'left, ms':>10}{'ratio':>8}")
    with TemporaryDirectory() as name:
        for channels in (True, False):
            for share in (0.25, 0.5, 0.75, 0.9):
                conv = pruned(share, channels=channels)
                small = PositionConv2d(conv)
                both = [opened(each, Path(name)) for each in (conv, small)]
                pairs = [[once(each, value) for each in both] for _ in range(ROUNDS)]
                whole, left = (statistics.median(each) for each in zip(*pairs, strict=True))
                ratio = statistics.median(first / second for first, second in pairs)
                of = "channels" if channels else "places"
                print(f"{share:>6.0%}{of:>10}{small.depth:>8}{whole:>11.3f}{left:>10.3f}{ratio:>8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
