"""Lottery tickets: train, prune the smallest weights, rewind what is left, again (Frankle, Carbin 2019, 1803.03635).

Each round is one fit. The control of a round has the same masks on weights that are drawn anew: a ticket is one only if
it does better than that. Snapshots are taken before the first step, biases included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.core.errors import BadInput
from edgekit.host.train.fit import Hook
from edgekit.host.train.hooks import Masks

# a network and the hook that keeps it sparse -> accuracy after each epoch
Fit = Callable[[nn.Module, Hook, str], Sequence[float]]


@dataclass(frozen=True)
class Round:
    """density: of the prunable weights. ticket, control: accuracy after each epoch."""

    density: float
    ticket: tuple[float, ...]
    control: tuple[float, ...]


def draw_tickets(
    make: Callable[[], nn.Module],
    fit: Fit,
    *,
    rounds: int,
    rate: float,
    last_rate: float | None = None,
) -> tuple[nn.Module, tuple[Round, ...]]:
    """(the network of the last round, trained; every round, the dense one first).

    make: a network with fresh weights from PyTorch's generator; its first call gives the ticket's, each further one a
    control's. rate: the share of what is left that goes in each round and layer, exactly; last_rate: of the last layer,
    half the rate if nothing is said, as in the paper. Raises BadInput for rates that leave nothing.
    """
    last = rate / 2 if last_rate is None else last_rate
    if rounds < 1 or not 0 < rate < 1 or not 0 <= last < 1:
        raise BadInput(
            f"lottery: wants at least 1 round and rates in (0, 1), got {rounds}, {rate} and {last}"
        )
    module = make()
    start = {name: value.detach().clone() for name, value in module.state_dict().items()}
    weights = weights_of(module)
    masks = {name: torch.ones_like(weight) for name, weight in weights.items()}
    found = []
    for number in range(rounds + 1):
        if number:
            masks = {
                name: pruned(weight, masks[name], last if place == len(weights) - 1 else rate)
                for place, (name, weight) in enumerate(weights.items())
            }
            module.load_state_dict(start)
        ticket = tuple(fit(module, _sparse(module, masks), f"round {number}"))
        other = make()
        control = tuple(fit(other, _sparse(other, masks), f"round {number}, drawn anew"))
        alive = sum(float(mask.sum()) for mask in masks.values())
        found.append(Round(alive / sum(mask.numel() for mask in masks.values()), ticket, control))
    return module, tuple(found)


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """What is pruned: the weights of convolutions and dense layers, in order."""
    return {
        f"{name}.weight": layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    }


def pruned(weight: Tensor, mask: Tensor, rate: float) -> Tensor:
    """The mask without round(rate * n) of its n weights, those of smallest magnitude; of equal ones the first go."""
    alive = int(mask.sum())
    sizes = torch.where(mask > 0, weight.detach().abs(), torch.inf).flatten()
    gone = torch.sort(sizes, stable=True)[1][: round(rate * alive)]
    made = mask.clone().flatten()
    made[gone] = 0
    return made.reshape(mask.shape)


def _sparse(module: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Put the masks on a network's weights, and what keeps them there."""
    weights = weights_of(module)
    hook = Masks(weights)
    hook.masks = dict(masks)
    hook.apply()
    return hook
