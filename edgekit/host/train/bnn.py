"""Train a binary network: squared hinge loss at every exit, Adam, a rate that falls exponentially (as BNN trains).

Courbariaux et al. 2016 (arXiv 1602.02830) and BNN-PYNQ: the scores are the last batch norm's output, the targets -1 and
+1; each quantizer sets its layer's rate and what becomes of the real weights after an update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.host.train.fit import Fitted, Gradient, Hook
from edgekit.host.train.quantized import Settle, parameter_groups
from edgekit.host.train.schedules import exponential
from edgekit.host.train.supervised import Labelled, Method, train_by
from edgekit.host.watch import Watch, unwatched


@dataclass(frozen=True)
class BinaryTraining:
    """lr falls to lr * last at the end; each binary layer's is multiplied by its quantizer's rate.

    exit_weights: of each exit's loss in the sum, none given: 1 each. bfloat16: products in mixed precision: -1, +1 and
    8-bit pixels are exact in it.
    """

    epochs: int = 30
    batch: int = 100
    lr: float = 3e-3
    last: float = 1e-3
    exit_weights: tuple[float, ...] = ()
    shift: int = 0  # pixels, each way, edges repeated
    flip: bool = False
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if not (self.lr > 0 and 0 < self.last <= 1):
            raise BadInput(f"bnn: wants lr above 0 and last in (0, 1], got {self.lr} and {self.last}")


def squared_hinge(scores: Tensor, classes: Tensor) -> Tensor:
    """Mean of max(0, 1 - t * score)^2 over samples and classes; t: +1 for the sample's class, -1 for all others."""
    targets = 2 * functional.one_hot(classes, scores.shape[-1]) - 1
    return functional.relu(1 - targets * scores).square().mean()


def train_bnn(
    module: nn.Module,
    samples: Labelled,
    options: BinaryTraining,
    *,
    seed: int,
    threads: int = 1,
    hooks: Sequence[Hook] = (),
    checkpoint: Path | None = None,
    watch: Watch = unwatched,
    what: str = "train",
) -> Fitted:
    """Train the module in place; leaves it in evaluation mode. As train_classifier: seed, resume, what is raised."""
    optimizer = torch.optim.Adam(parameter_groups(module, options.lr), options.lr, fused=True)
    method = Method("squared hinge", squared_hinge, Gradient(optimizer), exponential(options.last))
    return train_by(
        method,
        module,
        samples,
        options,
        seed=seed,
        threads=threads,
        hooks=(Settle(module), *hooks),
        checkpoint=checkpoint,
        watch=watch,
        what=what,
    )
