"""Hooks of the training loop: masks that keep pruned weights at zero, and the best state by a measure of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.host.train.fit import Hook, Models, Moment


class Masks(Hook):
    """Pruned weights are zero after every step, whatever momentum says. What is zero at the start stays zero.

    final: the share of each tensor that shall be zero in the end. The schedule `sparsity` says how much of it already
    is; every `every` steps all weights are ranked anew by magnitude, so that one may come back, until `final` is
    reached; then the masks stay (Zhu, Gupta 2017, arXiv 1710.01878). keep: (weight, share that goes) -> mask.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        final: float = 0.0,
        every: int = 20,
        keep: Callable[[Tensor, float], Tensor] | None = None,
    ) -> None:
        self._weights, self._final, self._every = dict(weights), final, max(1, every)
        self._keep = keep or keep_largest
        self.masks = {name: (weight.detach() != 0).to(weight.dtype) for name, weight in weights.items()}
        self.finished = not final

    def after_step(self, moment: Moment) -> None:
        if not self.finished and (moment.step % self._every == 0 or moment.step == moment.steps):
            share = self._final if moment.step == moment.steps else moment.values["sparsity"]
            self.prune(share)
            self.finished = math.isclose(share, self._final, abs_tol=1e-9)
        self.apply()

    def prune(self, share: float) -> None:
        """Masks of the largest weights as they are now."""
        self.masks = {name: self._keep(weight, share) for name, weight in self._weights.items()}

    def apply(self) -> None:
        """What is masked becomes zero."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.mul_(self.masks[name])

    def state_dict(self) -> dict[str, Any]:
        return {"masks": dict(self.masks), "finished": self.finished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks, self.finished = dict(state["masks"]), bool(state["finished"])


def keep_largest(weight: Tensor, share: float) -> Tensor:
    """1 where a weight stays, 0 for the `share` of smallest magnitude; exactly round(share * n), ties by position."""
    flat = weight.detach().abs().reshape(-1)
    mask = torch.ones_like(flat)
    gone = round(share * flat.numel())
    mask[torch.sort(flat, stable=True)[1][:gone]] = 0
    return mask.reshape(weight.shape)


class KeepBest(Hook):
    """Evaluates after each epoch and keeps the weights of the best.

    evaluate: no argument -> a figure to be small. patience: epochs without gain that end the training, 0: none. ready:
    whether an epoch counts already, for what must finish first.
    """

    def __init__(
        self,
        models: Models,
        evaluate: Callable[[], float],
        *,
        patience: int = 0,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._models, self._evaluate = models, evaluate
        self._patience, self._ready = patience, ready
        self.best, self.best_epoch = math.inf, -1
        self._kept: dict[str, dict[str, Tensor]] = {}

    def after_epoch(self, moment: Moment) -> bool:
        if not self._ready():
            return False
        figure = self._evaluate()
        if figure < self.best:
            self.best, self.best_epoch = figure, moment.epoch
            self._kept = {
                name: {key: value.detach().clone() for key, value in model.state_dict().items()}
                for name, model in self._models.items()
            }
        return self._patience > 0 and moment.epoch - self.best_epoch >= self._patience

    def restore(self) -> None:
        """Put the best weights into the models."""
        for name, state in self._kept.items():
            self._models[name].load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.best_epoch, "kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch, self._kept = (
            float(state["best"]),
            int(state["epoch"]),
            dict(state["kept"]),
        )
