"""What a search has tried, why each candidate was not taken, and what was taken back on the way to the chosen one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.core.errors import BadInput
from edgekit.core.report import Attempt, Dropped
from edgekit.host.graph import Graph
from edgekit.host.passes import Step
from edgekit.host.tried import Setting, Tried, harm_of, timed, try_steps

CHOSEN, NOT_BEST = "chosen", "another was better"


@dataclass
class Trail:
    """Candidates by label, in the order they were tried, and what spoke against them."""

    tried: dict[str, Tried] = field(default_factory=dict)
    against: dict[str, str] = field(default_factory=dict)

    def add(self, tried: Tried, against: str | None = None) -> Tried:
        """Note a candidate, or what is newly known of it."""
        self.tried[tried.label] = tried
        if against is not None:
            self.against[tried.label] = against
        return tried

    def free(self, label: str) -> str:
        """The label, or the label with a number where it is taken."""
        names = (label, *(f"{label} ({number})" for number in range(2, 1000)))
        return next(name for name in names if name not in self.tried)

    def attempts(self, chosen: Tried) -> tuple[Attempt, ...]:
        """All of it for the report; whatever nobody spoke against was simply not the best."""
        return tuple(
            entry.attempt(chosen=True, why=CHOSEN)
            if entry.label == chosen.label
            else entry.attempt(chosen=False, why=self.against.get(entry.label, NOT_BEST))
            for entry in self.tried.values()
        )


@dataclass(frozen=True)
class Branch:
    """A search for the best formats of one network: the float network itself, or what the user made of it first.

    stayed: the float network that came in. start: what this branch begins with. asked: the user wanted `start`, so what
    it lost already is not held against its descendants. dropped: what was taken back here. stays: node -> why it is
    float where int8 came to nothing.
    """

    setting: Setting
    stayed: Tried
    start: Tried
    trail: Trail
    asked: bool
    dropped: list[Dropped] = field(default_factory=list)
    stays: dict[str, str] = field(default_factory=dict)

    def attempt(
        self,
        label: str,
        steps: Sequence[Step],
        graph: Graph | None = None,
        why: Mapping[str, str] | None = None,
    ) -> Tried:
        """Try these steps upon `start`. Raises BadInput where one cannot be taken."""
        taken = (*self.start.steps, *steps)
        return self.trail.add(try_steps(self.setting, label, taken, self.stayed, graph, why))

    def called(self, what: str) -> str:
        """The label of a candidate of this branch."""
        return what if self.start is self.stayed else f"{self.start.label}, {what}"

    def harm(self, tried: Tried) -> str | None:
        """Why its answers are too bad; None where they are good enough."""
        return harm_of(self.setting, tried, self.start if self.asked else None)

    def timed(self, *candidates: Tried) -> list[Tried]:
        """`start` and the candidates with their latencies; ratios are to `start`'s."""
        return [self.trail.add(entry) for entry in timed(self.setting, [self.start, *candidates])]

    @property
    def time_is_up(self) -> bool:
        """Whether nothing new should be tried."""
        return time.monotonic() > self.setting.until

    def drop(self, step: str, why: str, layer: str = "*") -> None:
        """Note a step that is taken back."""
        self.dropped.append(Dropped(layer, step, why))

    def offer(self, label: str, steps: Sequence[Step], why: Mapping[str, str], step: str) -> Tried | None:
        """Try steps that are only an offer: None, and noted, where one cannot be taken or the time is up."""
        if self.time_is_up:
            self.drop(
                step, f"not tried: {self.setting.effort.limit_s:g} s were over; a greater --effort has more"
            )
            return None
        try:
            return self.attempt(label, steps, why=why)
        except BadInput as err:
            self.drop(step, str(err))
            return None


def slower(entry: Tried, first: Tried) -> str:
    """Its time against the other's, or that the target cannot use it."""
    if entry.problem is not None:
        return f"of no use on the target: {entry.problem}"
    word = "slower" if (entry.ratio or 0.0) > 1 else "hardly faster"
    times = f"{entry.latency_ms or 0.0:.4g} ms against {first.latency_ms or 0.0:.4g} ms in float32"
    return f"{word} on the target: {times} ({entry.provenance})"
