"""How much a search may try: quick, default, extensive. What it does not try, it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """methods: calibration methods that are compared. samples: validation samples that candidates are compared on.

    rounds: turns each candidate is timed. refine: how often the assignment of formats is worked out anew from what was
    measured. improve: lists of steps that may bring int8 closer to float, each tried on its own. bisections: of the
    weight on harm; 0: int8 that harms is dropped as a whole. shares: of the MACs, pruned in turn where a limit on
    latency or size is missed. epochs: of training then. cuts: places where exits are tried; head_epochs: to fit a head
    there. limit_s: after this many seconds nothing new is tried; what is under way is finished.
    """

    name: str
    methods: tuple[str, ...]
    samples: int
    rounds: int
    refine: int
    improve: tuple[tuple[str, ...], ...]
    bisections: int
    shares: tuple[float, ...]
    epochs: int
    cuts: int
    head_epochs: int
    limit_s: float


QUICK = Effort("quick", ("minmax",), 512, 5, 0, (), 0, (), 0, 4, 6, 60.0)
DEFAULT = Effort(
    "default",
    ("minmax", "percentile", "mse"),
    1000,
    15,
    1,
    (("bias_correction",), ("equalize",)),
    5,
    (0.25, 0.5),
    3,
    8,
    15,
    180.0,
)
EXTENSIVE = Effort(
    "extensive",
    ("minmax", "percentile", "mse", "entropy"),
    4000,
    25,
    3,
    (
        ("bias_correction",),
        ("equalize",),
        ("adaround",),
        ("equalize", "bias_correction"),
        ("equalize", "adaround", "bias_correction"),
    ),
    8,
    (0.2, 0.35, 0.5, 0.65, 0.8),
    10,
    12,
    40,
    3600.0,
)
EFFORTS: Mapping[str, Effort] = {entry.name: entry for entry in (QUICK, DEFAULT, EXTENSIVE)}
