"""See in a layer's float weights the few bits they are made of: codes, and one scale for each output channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.host.lower.native.steps import ROUNDING
from edgekit.native import plan
from edgekit.runtime.backends import Array

Floats = NDArray[np.float64]
_INT8 = 127
_RANGES = {plan.TERNARY: (-1, 1), plan.SIGNED2: (-2, 1)}


@dataclass(frozen=True)
class Coded:
    """weight = scale[out channel] * value, where value is what the code of `coding` stands for.

    values: int64 (out_c, ...), as the weights were shaped.
    """

    coding: int
    values: NDArray[np.int64]
    scale: Floats

    def codes(self, falling: NDArray[np.bool_]) -> Array:
        """As the plan holds them, rows of `falling` channels negated."""
        signs = np.where(falling, -1, 1).reshape(-1, *[1] * (self.values.ndim - 1))
        values = self.values * signs
        if self.coding == plan.INTEGER8:
            return values.astype(np.int8)
        return np.searchsorted(plan.VALUES[self.coding], values).astype(np.uint8)

    @property
    def negatable(self) -> bool:
        """Whether every row can be negated within the coding."""
        return self.coding in (plan.BIPOLAR, plan.TERNARY, plan.INTEGER8)

    @property
    def name(self) -> str:
        """How people write it: "w1", "w2", "w8"."""
        return {plan.BIPOLAR: "w1", plan.INTEGER8: "w8"}.get(self.coding, "w2")


def coded(weight: Array) -> Coded | str:
    """The weights (out_c, ...) in the fewest bits that hold them exactly, 8 at most; else what speaks against it."""
    different = len(np.unique(np.abs(weight[0])))
    if different > _INT8 + 1:  # said before all rows are looked at: most networks are not binary
        return f"its weights take {different} values in output channel 0 and lie on no grid of 8 bits"
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    if not np.isfinite(rows).all():
        return "its weights are not all finite"
    if np.all(np.abs(rows) == np.abs(rows[:, :1])) and (rows != 0).all():
        return Coded(plan.BIPOLAR, np.sign(weight).astype(np.int64), np.abs(rows[:, 0]))
    scale = np.ones(len(rows))
    for index, row in enumerate(rows):
        scale[index] = _step(row)
        if scale[index] == 0:
            different = len(np.unique(row))
            return (
                f"its weights take {different} values in output channel {index} and lie on no grid of 8 bits"
            )
    values = np.round(rows / scale[:, None]).astype(np.int64).reshape(weight.shape)
    for coding, (low, high) in _RANGES.items():
        if values.min() >= low and values.max() <= high:
            return Coded(coding, values, scale)
    return Coded(plan.INTEGER8, values, scale)


def _step(row: Floats) -> float:
    """The largest step that all of the row's weights are multiples of, up to 127; 0 where there is none."""
    sizes = np.unique(np.abs(row))
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0
    if sizes.size > _INT8:
        return 0.0
    steps = sizes[0] / np.arange(1, _INT8 + 1)
    counts = sizes / steps[:, None]
    near = ROUNDING * counts[:, -1]
    fits = (np.abs(counts - np.round(counts)).max(axis=1) <= near) & (np.round(counts[:, -1]) <= _INT8)
    if not fits.any():
        return 0.0
    count = np.round(counts[fits.argmax()])
    return float((sizes * count).sum() / (count**2).sum())  # least squares: float32 rounded each of them
