"""What tests of the outbox share: a clock of their own, Records, the bytes of its files."""

from __future__ import annotations

from pathlib import Path

from edgekit.core.histogram import Histogram
from edgekit.core.record import Record


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(requests: int = 1) -> Record:
    """A Record as a board at work makes it: about 700 bytes."""
    latency = Histogram(dict.fromkeys(range(100, 120), 20))
    return Record(1, 1.0, None, False, 60.0, "toy/1", "full", requests=requests, latency=latency)


def size_on_disk(path: Path) -> int:
    """Bytes of the outbox's file and everything beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))
