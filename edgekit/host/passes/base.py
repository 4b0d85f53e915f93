"""What a pass is, and what it may know besides the graph. Knows none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgekit.host.graph import Graph


@dataclass(frozen=True)
class Int8:
    """How int8 is written on one board. activation: "uint8" or "int8", whichever has fused kernels.

    reduce_range: weights in 7 bits, for processors whose 8-bit products saturate in 16 bits. method: how the ranges
    were found; keep_float: nodes that stay as they are.
    """

    activation: str
    reduce_range: bool = False
    method: str = "minmax"
    keep_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a pass may know. ranges: per activation what calibration found; int8: the format to write."""

    int8: Int8 | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """One step. min_sqnr_db: how close its outputs stay to the graph's it was given; conformance checks it.

    The figure is 10 log10(signal / error) over the exits' outputs of small random networks.
    """

    name: str
    apply: Callable[[Graph, Context], Graph]
    min_sqnr_db: float
    needs_ranges: bool = False
