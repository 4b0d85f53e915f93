"""TernGrad: workers tell each other gradients of three levels (Wen et al. 2017, arXiv 1705.07878).

Each gradient tensor is clipped to c standard deviations; what is left of g becomes s * sign(g) with the chance |g| / s,
else 0, s the largest magnitude that any worker has: right on average, and all workers' sums lie on one grid. Two bits a
number and one float a tensor go over the wire. Weights and what the optimizer does with the mean stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.core.errors import BadInput
from edgekit.host.stored import GRIDS, pack, unpack
from edgekit.host.train.fit import Gradient

CLIP = 2.5  # standard deviations, the authors'


def clipped(gradient: Tensor, deviations: float = CLIP) -> Tensor:
    """Values within so many standard deviations; without any where they are all the same."""
    limit = deviations * gradient.std(correction=0)
    return gradient.clamp(-limit, limit) if float(limit) > 0 else gradient


def ternary(gradient: Tensor, scale: Tensor) -> Tensor:
    """-1, 0 and 1: sign(g) with the chance |g| / scale. From PyTorch's generator."""
    chance = gradient.abs() / scale if float(scale) > 0 else torch.zeros_like(gradient)
    return torch.sign(gradient) * (torch.rand(gradient.shape) < chance)


def encode(codes: Tensor) -> NDArray[np.uint8]:
    """Four numbers a byte, the last byte filled with -1: whoever decodes knows the count."""
    return pack(codes.to(torch.int8).numpy(), GRIDS["ternary"])


def decode(packed: NDArray[np.uint8], shape: Sequence[int]) -> Tensor:
    """What encode was given. Raises BadInput where the bytes are another number of codes."""
    count = int(np.prod(shape))
    return torch.from_numpy(unpack(packed, GRIDS["ternary"], count).reshape(tuple(shape))).float()


class TernGrad:
    """Workers in turn: each step is one worker's batch, and after the last one's all take the same step.

    exempt: tensors with fewer numbers are told as floats. sent_bytes: what one worker has sent so far.
    """

    def __init__(self, inner: Gradient, workers: int = 2, clip: float = CLIP, exempt: int = 64) -> None:
        if workers < 1 or not clip > 0:
            raise BadInput(f"terngrad: wants at least 1 worker and a clip above 0, got {workers} and {clip}")
        self._inner, self._workers, self._clip, self._exempt = inner, workers, clip, exempt
        self._pending: list[list[Tensor]] = []
        self.sent_bytes = 0

    def set(self, values: Mapping[str, float]) -> None:
        self._inner.set(values)

    def step(self, loss: Tensor) -> bool:
        self._inner.backward(loss)
        found = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._inner.weights]
        self._pending.append([each.detach().clone() for each in found])
        if len(self._pending) == self._workers:
            for place, weight in enumerate(self._inner.weights):
                weight.grad = self._told([gradients[place] for gradients in self._pending])
            self._pending = []
            self._inner.apply()
        return True

    def _told(self, gradients: Sequence[Tensor]) -> Tensor:
        """The mean of what all workers hear of one tensor."""
        count = gradients[0].numel()
        if count < self._exempt:
            self.sent_bytes += 4 * count
            return torch.stack(list(gradients)).mean(0)
        kept = [clipped(each, self._clip) for each in gradients]
        scale = torch.stack([each.abs().max() for each in kept]).max()
        heard = []
        for each in kept:
            sent = encode(ternary(each, scale))
            heard.append(decode(sent, each.shape) * scale)
        self.sent_bytes += sent.size + 4
        return torch.stack(heard).mean(0)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self._inner.state_dict(), "pending": self._pending, "sent": self.sent_bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state["inner"])
        self._pending = [list(each) for each in state["pending"]]
        self.sent_bytes = int(state["sent"])
