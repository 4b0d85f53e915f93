"""Fine-tune the compressed network on inputs without labels: it learns what the original answers. Needs PyTorch.

With its default options nothing is trained. PyTorch is imported only when something is.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.host.graph import Graph
from edgekit.host.options import option
from edgekit.host.passes._grid import GRIDS
from edgekit.host.passes.base import Context, Pass
from edgekit.host.train import require_torch


@dataclass(frozen=True)
class Recover:
    """How to train. epochs: over the calibration data less `validation`, the share that decides what is kept.

    lr: of Adam, at its peak. threads: fixed, since sums depend on them. patience: epochs without gain that end it, 0:
    none. temperature: of softmaxes. features: weight of inner tensors that both networks have. Without labels the
    inputs can be shifted (pixels), mirrored (flip) and mixed (mixup: at most this share of another). sparsity: share of
    each product's weights that is zero in the end, rising as Zhu and Gupta's schedule says. prune_share: share of the
    multiply-accumulates that prune_channels removes, in `rounds` with training after each. quantize_aware: a grid that
    weights are rounded to in every step, and in the result; block: numbers that share a scale there, 0: a channel's.
    """

    epochs: int = option(0, min=0, max=100_000)
    lr: float = option(1e-3, min=1e-8, max=10.0)
    batch: int = option(64, min=1)
    validation: float = option(0.1, min=0.01, max=0.9)
    patience: int = option(0, min=0)
    threads: int = option(2, min=1, max=256)
    temperature: float = option(1.0, min=0.1, max=100.0)
    features: float = option(0.0, min=0.0, max=1000.0)
    shift: int = option(0, min=0, max=1024)
    flip: bool = False
    mixup: float = option(0.0, min=0.0, max=1.0)
    sparsity: float = option(0.0, min=0.0, max=0.99)
    prune_share: float = option(0.0, min=0.0, max=0.95)
    rounds: int = option(1, min=1, max=100)
    granularity: int = option(8, min=1, max=256)
    quantize_aware: str = option("", choices=("", *GRIDS))
    block: int = option(0, min=0)


def apply(graph: Graph, options: Recover, context: Context) -> Graph:
    """The graph with trained weights; `graph` itself, or what pruning left of it, where training did not help.

    Raises MissingExtra without PyTorch; BadInput without data or an original to learn from, or where a node cannot be
    trained through.
    """
    if not options.epochs:
        return graph
    require_torch("recover")
    from edgekit.host.train.recover import recover

    return recover(graph, options, context).graph


PASS = Pass("recover", apply, min_sqnr_db=120.0, options=Recover, costly=True)
