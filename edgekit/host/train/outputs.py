"""What a network of ours answers in one pass: logits at every exit, and what else it knows of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """logits: [N, classes] per exit, in order. confidences: float [N] per exit where the network computes its own.

    also: whatever the module's own losses need (a ponder cost, halting scores), by name.
    """

    logits: tuple[Tensor, ...]
    confidences: tuple[Tensor, ...] = ()
    also: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.confidences and len(self.confidences) != len(self.logits):
            raise ValueError(
                f"{len(self.logits)} exits need as many confidences, or none, got {len(self.confidences)}"
            )


def outputs_of(made: object) -> Outputs:
    """What a forward pass gave, as Outputs: these themselves, a tuple of logits per exit, or the only exit's logits."""
    if isinstance(made, Outputs):
        return made
    if isinstance(made, Tensor):
        return Outputs((made,))
    if isinstance(made, (tuple, list)) and made and all(isinstance(each, Tensor) for each in made):
        return Outputs(tuple(made))
    raise TypeError(f"forward must give logits per exit, got {type(made).__name__}")
