"""Plans of binary networks that an overlay holds, with random weights: LFC, CNV, and anything as a list of layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.native import plan as pl
from edgekit.native.plan import Linear, Operator, Plan, PlanTensor, Threshold, Window

CNV = (*(("conv", 64), ("conv", 64), ("pool", 2)), *(("conv", 128), ("conv", 128), ("pool", 2)))
CNV = (*CNV, ("conv", 256), ("conv", 256), ("dense", 512), ("dense", 512), ("dense", 10))
LFC = (("dense", 1024), ("dense", 1024), ("dense", 1024), ("dense", 10))

# (PE, SIMD) of BNN-PYNQ's W1A1 overlays
CNV_FOLDING = {
    f"L{index}": pair
    for index, pair in enumerate(
        zip((16, 32, 16, 16, 4, 1, 1, 1, 4), (3, 32, 32, 32, 32, 32, 4, 8, 1), strict=True)
    )
}
LFC_FOLDING = {"L0": (32, 64), "L1": (64, 32), "L2": (32, 64), "L3": (16, 8)}


def network(
    shape: tuple[int, int, int], layers: Sequence[tuple[str, int]], *, seed: int = 0, binarize: bool = False
) -> Plan:
    """A chain over a uint8 image (h, w, c). ("conv", outputs): 3x3 without padding; ("pool", side); ("dense", outputs).

    The last layer gives sums. binarize: one threshold turns the image into bits first.
    """
    rng = np.random.default_rng(seed)
    tensors = [PlanTensor(pl.U8, *shape, is_input=True, name="x")]
    operators = []
    if binarize:
        tensors.append(PlanTensor(pl.BITS, *shape, coding=pl.BIPOLAR))
        operators.append(Operator(pl.THRESHOLD, (0,), 1, Threshold(np.full((shape[2], 1), 128, np.int32))))
    for index, (kind, size) in enumerate(layers):
        source, last = tensors[-1], index == len(layers) - 1
        if kind == "pool":
            made = PlanTensor(pl.BITS, source.h // size, source.w // size, source.c, coding=pl.BIPOLAR)
            smallest = rng.integers(0, 2, source.c).astype(np.bool_)
            operators.append(
                Operator(
                    pl.POOL, (len(tensors) - 1,), len(tensors), Window((size, size), (size, size), smallest)
                )
            )
        else:
            kernel = (3, 3) if kind == "conv" else (source.h, source.w)
            h, w = source.h - kernel[0] + 1, source.w - kernel[1] + 1
            of = _linear(rng, size, kernel, source, last=last)
            made = PlanTensor(pl.I32 if last else pl.BITS, h, w, size, coding=0 if last else pl.BIPOLAR)
            operators.append(Operator(pl.LINEAR, (len(tensors) - 1,), len(tensors), of))
        tensors.append(made)
    end = tensors[-1]
    tensors[-1] = PlanTensor(end.type, end.h, end.w, end.c, end.coding, is_output=True, name="sums")
    return Plan(tuple(tensors), tuple(operators))


def cnv(channels: int = 3, *, seed: int = 0) -> Plan:
    """BNN-PYNQ's CNV for 32x32 images."""
    return network((32, 32, channels), CNV, seed=seed)


def lfc(*, seed: int = 0) -> Plan:
    """BNN-PYNQ's LFC: 28x28 pixels as one vector, binarized."""
    return network((1, 1, 784), LFC, seed=seed, binarize=True)


def small_cnv(*, seed: int = 0) -> Plan:
    """CNV's kinds of layers in small: 12x12x3 -> 8C3 -> P2 -> 16C3 -> 16 -> 10."""
    return network(
        (12, 12, 3), (("conv", 8), ("pool", 2), ("conv", 16), ("dense", 16), ("dense", 10)), seed=seed
    )


def _linear(
    rng: np.random.Generator, rows: int, kernel: tuple[int, int], source: PlanTensor, *, last: bool
) -> Linear:
    weights = rng.integers(0, 2, (rows, *kernel, source.c)).astype(np.uint8)
    terms = kernel[0] * kernel[1] * source.c
    spread = int(terms**0.5 * (1 if source.type == pl.BITS else 147)) + 1
    thresholds = rng.integers(-spread, spread + 1, (rows, 1)).astype(np.int32)
    return Linear(
        weights,
        pl.BIPOLAR,
        kernel,
        epilogue=pl.SUMS if last else pl.THRESHOLDS,
        thresholds=None if last else thresholds,
    )
