"""Limits a user sets, checked against what the report says. A figure nobody knows meets no limit."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.core.figure import Figure
from edgekit.core.manifest import BoardLimits
from edgekit.core.report import Change

DEFAULT_MAX_DROP = 0.5  # points of accuracy a step may cost before it is taken back
DEFAULT_MAX_DISAGREEMENT = 2.0  # the same without labels: most answers that change were wrong before, too


@dataclass(frozen=True)
class Limits:
    """max_drop: points of accuracy (or of agreement, without labels). None: no such limit."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_energy_mj: float | None = None
    max_size_kb: float | None = None
    max_memory_mb: float | None = None

    @property
    def on_board(self) -> BoardLimits:
        """Those that a board judges anew when it tries the bundle."""
        return BoardLimits(self.max_latency_ms, self.max_memory_mb, self.max_energy_mj)

    def missed(
        self,
        accuracy: Change,
        latency_ms: float | None,
        energy_mj: Figure,
        size_bytes: float | None,
        memory_mb: float | None = None,
    ) -> tuple[str, ...]:
        """One line per limit that is not met: the option, what it wanted, what came, and what may help."""
        drop = None
        if accuracy.before is not None and accuracy.after is not None:
            drop = 100 * (accuracy.before - accuracy.after)
        size_kb = None if size_bytes is None else size_bytes / 1e3
        slow = "allow more, or run with a budget"
        checked = (
            ("max-drop", self.max_drop, drop, "points", "allow more, or give more calibration data"),
            (
                "max-latency-ms",
                self.max_latency_ms,
                latency_ms,
                "ms",
                _UNTIMED if latency_ms is None else slow,
            ),
            (
                "max-energy-mj",
                self.max_energy_mj,
                energy_mj.value,
                "mJ",
                "allow more, or measure with a sensor",
            ),
            ("max-size-kb", self.max_size_kb, size_kb, "kB", "allow more, or start from a smaller network"),
            (
                "max-memory-mb",
                self.max_memory_mb,
                memory_mb,
                "MB",
                _UNWEIGHED if memory_mb is None else "allow more, or start from a smaller network",
            ),
        )
        return tuple(
            f"{option}: wanted at most {limit:g} {unit}, got {_shown(came, unit)}: {remedy}"
            for option, limit, came, unit, remedy in checked
            if limit is not None and (came is None or came > limit + 1e-9)
        )


_UNWEIGHED = "its runtime is not installed here, or this system does not tell a process's memory"
_UNTIMED = "it was not timed there, and the profile has no costs to estimate it from"


def _shown(came: float | None, unit: str) -> str:
    return "unknown" if came is None else f"{came:.4g} {unit}"
