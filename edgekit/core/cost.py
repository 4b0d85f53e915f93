"""Predict what work costs on a board from its profile alone. No graph, no clock: board and server agree.

An operator's class is a path such as "Conv.depthwise.odd": a profile that has measured that class answers for it, else
the class above it ("Conv.depthwise", "Conv"), else the general roofline of the profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from edgekit.core.checks import integer, table, text
from edgekit.core.figure import Figure, unknown
from edgekit.core.profile import Costs, OpCosts, Profile

LAYOUT, VIEW, WEIGHTS, STAGE, UNFOLD, PADDING = "Layout", "View", "Weights", "Stage", "Unfold", "Padding"
SIDE_WORK = (LAYOUT, VIEW, WEIGHTS, STAGE, UNFOLD, PADDING)
"""What a runtime does besides the operators' own work, or may do: tensors re-ordered for its kernels, views made,
weights that do not stay in a cache, a stage called, windows of an image unfolded into rows, operands multiplied only to
fill a register. They hold no MACs. Only a profile that has measured them charges for them."""


@dataclass(frozen=True)
class Work:
    """What one class of operator in one number format does for one input.

    op: the operator's name ("Conv"), or a path below it ("Conv.depthwise"). format: the number format it computes in
    ("float32", "float16", "int8", "binary"). macs: multiply-accumulates. bytes: weights and activations, read or
    written. calls: of kernels.
    """

    op: str
    format: str
    macs: int
    bytes: int
    calls: int

    def to_json(self) -> dict[str, object]:
        """The five keys as they stand in a bundle's manifest."""
        return {
            "op": self.op,
            "format": self.format,
            "macs": self.macs,
            "bytes": self.bytes,
            "calls": self.calls,
        }

    @classmethod
    def from_json(cls, data: object, where: str = "work") -> Work:
        """Parse one entry of a manifest's `work`. Raises BadInput naming `where`."""
        entry = table(data, where)
        return cls(
            text(entry.get("op"), f"{where}.op"),
            text(entry.get("format"), f"{where}.format"),
            integer(entry.get("macs"), f"{where}.macs"),
            integer(entry.get("bytes"), f"{where}.bytes"),
            integer(entry.get("calls"), f"{where}.calls"),
        )


class HasWork(Protocol):
    """A layer: whatever says what it does for one input."""

    @property
    def work(self) -> tuple[Work, ...]:
        """All it does; nothing where another layer's kernel does it."""


def predict(profile: Profile, work: Iterable[Work]) -> Figure:
    """Latency in ms of one input on `profile`, estimated; unknown as soon as one needed coefficient is.

    An entry whose class the profile has measured costs macs / macs_per_second + bytes / bytes_per_second + calls *
    call_overhead with that class's coefficients (`cost.operators`); any other max(macs / macs_per_second, bytes /
    bytes_per_second) + calls * call_overhead with the general ones (the roofline model: Williams, Waterman, Patterson
    2009), on `profile.cost.threads` threads. No work: unknown.
    """
    parts = [_seconds(profile.cost, entry) for entry in work]
    known = [seconds for seconds in parts if seconds is not None]
    if not known or len(known) != len(parts):
        return unknown("ms")
    return Figure(sum(known) * 1e3, "ms", "estimated", on=profile.name)


def estimate_layers(profile: Profile, layers: Iterable[HasWork]) -> tuple[Figure, ...]:
    """Each layer's share of a prediction in ms; 0 for one whose work another layer's kernel does."""
    nothing = Figure(0.0, "ms", "estimated", on=profile.name)
    return tuple(predict(profile, layer.work) if layer.work else nothing for layer in layers)


def macs(work: Iterable[Work]) -> int:
    """All multiply-accumulates for one input."""
    return sum(entry.macs for entry in work)


def classes(op: str) -> Iterator[str]:
    """The class itself and those above it: "Conv.1x1.odd", "Conv.1x1", "Conv"."""
    while op:
        yield op
        op = op.rpartition(".")[0]


def measured_class(cost: Costs, op: str, fmt: str) -> OpCosts | None:
    """The coefficients of the closest class the profile has measured, None where it has none."""
    for path in classes(op):
        found = cost.operators.get(path, {}).get(fmt)
        if found is not None:
            return found
    return None


def _seconds(cost: Costs, entry: Work) -> float | None:
    own = measured_class(cost, entry.op, entry.format)
    if own is None and entry.op.partition(".")[0] in SIDE_WORK:
        return 0.0
    general = (cost.macs_per_second.get(entry.format), cost.bytes_per_second, cost.call_overhead_us)
    mac_rate, byte_rate, overhead = general if own is None else _known(own, general)
    parts: list[float] = []
    for amount, rate in ((entry.macs, mac_rate), (entry.bytes, byte_rate)):
        if amount == 0:
            continue
        if rate is None or rate.value is None:
            return None
        parts.append(amount / rate.value)
    seconds = max(parts, default=0.0) if own is None else sum(parts)
    if entry.calls == 0:
        return seconds
    if overhead is None or overhead.value is None:
        return None
    return seconds + entry.calls * overhead.value * 1e-6


def _known(own: OpCosts, general: tuple[Figure | None, ...]) -> tuple[Figure | None, ...]:
    """A class's own coefficients, the general one where it has none."""
    mine = (own.macs_per_second, own.bytes_per_second, own.call_overhead_us)
    return tuple(
        figure if figure.value is not None else fallback
        for figure, fallback in zip(mine, general, strict=True)
    )
