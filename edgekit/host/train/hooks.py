"""Hooks of the training loop: masks that keep pruned weights at zero, and the best state by a measure of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.host.train.fit import Hook, Models, Moment


class Masks(Hook):
    """Magnitude pruning: the smallest weights of each tensor are zero after every step (Zhu, Gupta 2017, 1710.01878).

    The share comes from the schedule `sparsity`. Every `every` steps all weights are ranked anew, so that one may come
    back, until the schedule has reached `final`; then the masks stay. What was zero at the start counts as pruned.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], final: float, every: int = 20) -> None:
        self._weights, self._final, self._every = dict(weights), final, max(1, every)
        self.masks: dict[str, Tensor] = {}
        self._frozen = False

    def after_step(self, moment: Moment) -> None:
        share = moment.values["sparsity"]
        due = moment.step % self._every == 0 or not self.masks or moment.step == moment.steps
        if due and not self._frozen:
            self.masks = {name: keep_largest(weight, share) for name, weight in self._weights.items()}
            self._frozen = math.isclose(share, self._final, abs_tol=1e-9)
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.mul_(self.masks[name])

    def state_dict(self) -> dict[str, Any]:
        return {"masks": dict(self.masks), "frozen": self._frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks, self._frozen = dict(state["masks"]), bool(state["frozen"])


def keep_largest(weight: Tensor, share: float) -> Tensor:
    """1 where a weight stays, 0 for the `share` of smallest magnitude; exactly round(share * n), ties by position."""
    flat = weight.detach().abs().reshape(-1)
    mask = torch.ones_like(flat)
    gone = round(share * flat.numel())
    mask[torch.sort(flat, stable=True)[1][:gone]] = 0
    return mask.reshape(weight.shape)


class KeepBest(Hook):
    """Evaluates after each epoch and keeps the weights of the best. patience: epochs without gain that end it, 0: none.

    evaluate: no argument -> a figure to be small. not_before: the first epoch that counts, for what must finish first.
    """

    def __init__(
        self, models: Models, evaluate: Callable[[], float], *, patience: int = 0, not_before: int = 0
    ) -> None:
        self._models, self._evaluate = models, evaluate
        self._patience, self._not_before = patience, not_before
        self.best, self.best_epoch = math.inf, -1
        self._kept: dict[str, dict[str, Tensor]] = {}

    def after_epoch(self, moment: Moment) -> bool:
        if moment.epoch < self._not_before:
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
