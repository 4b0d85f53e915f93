"""Loss scaling: gradients too small for a 16-bit float are made larger on their way back (arXiv 1710.03740).

The loss is multiplied before the way back, gradients are divided by as much before they are clipped, decayed and used.
A static scale stays; a dynamic one doubles after `clean` steps without overflow, and where a gradient is not finite the
step is left out and the scale halved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgekit.core.errors import BadInput
from edgekit.host.train.fit import Gradient

FIRST, LARGEST, CLEAN = 2.0**16, 2.0**24, 2000


class LossScaled:
    """Another Gradient's steps with a scaled loss. scale: the first, or the only one where it is not dynamic."""

    def __init__(
        self, inner: Gradient, scale: float = FIRST, clean: int = CLEAN, *, dynamic: bool = True
    ) -> None:
        if not 0 < scale <= LARGEST or clean < 1:
            raise BadInput(
                f"mixed: scale must be above 0 and at most 2^24, clean at least 1, got {scale}, {clean}"
            )
        self._inner, self.scale, self._clean, self._dynamic = inner, scale, clean, dynamic
        self._since = 0

    def set(self, values: Mapping[str, float]) -> None:
        self._inner.set(values)

    def step(self, loss: Tensor) -> bool:
        self._inner.backward(loss * self.scale)
        gradients = [each.grad for each in self._inner.weights if each.grad is not None]
        if not all(bool(torch.isfinite(each).all()) for each in gradients):
            if self._dynamic:
                self.scale, self._since = max(self.scale / 2, 1.0), 0
            return False
        for each in gradients:
            each.div_(self.scale)
        self._inner.apply()
        self._since += 1
        if self._dynamic and self._since == self._clean:
            self.scale, self._since = min(self.scale * 2, LARGEST), 0
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self._inner.state_dict(), "scale": self.scale, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state["inner"])
        self.scale, self._since = float(state["scale"]), int(state["since"])
